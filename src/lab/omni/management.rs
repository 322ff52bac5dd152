//! The management calls that are open to a provider, and those of people: service accounts and power.
//!
//! Edge: it answers calls and reads the clock. Source: contract omni-wire.md sections 2.7, 4.6, 5.1 and 6.3.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};

use super::account;
use super::accounts::Accounts;
use super::factory::{Factory, NoSchematic};
use super::faults::Knobs;
use super::join_tokens::join_tokens;
use super::patch;
use super::people::People;
use super::role::{Identity, PROVIDER_PREFIX, Role};
use super::schema::Schema;
use super::validate;
use crate::proto::management::{
    BootAssetKind, BootAssetUrlRequest, BootAssetUrlResponse, CreateJoinTokenRequest, CreateJoinTokenResponse,
    CreateSchematicFromRawRequest, CreateSchematicResponse, CreateServiceAccountRequest, CreateServiceAccountResponse,
    MachinePowerOffRequest, MachinePowerOffResponse, MachinePowerOnRequest, MachinePowerOnResponse,
    RenewServiceAccountRequest, RenewServiceAccountResponse, ValidateConfigRequest, ValidateJsonSchemaRequest,
    ValidateJsonSchemaResponse, management_service_server, validate_json_schema_response,
};
use crate::proto::specs::JoinTokenSpec;
use crate::resource::Resource;
use crate::time::UnixTime;

/// `management.ManagementService` over a [`Factory`].
#[derive(Debug)]
pub(super) struct Management {
    pub(super) factory: Factory,
    /// URL of the factory, without a slash at the end.
    pub(super) factory_url: String,
    pub(super) knobs: Arc<Knobs>,
    pub(super) accounts: Accounts,
    pub(super) people: People,
}

/// Checks that the caller's role is at least `least`; a provider's is not, unless providers are meant.
fn allow<T>(request: &Request<T>, least: Role, providers: bool) -> Result<(), Status> {
    let identity = request.extensions().get::<Identity>().ok_or_else(|| Status::unauthenticated("no identity"))?;
    let role = identity.role();
    if role >= least || (providers && role == Role::InfraProvider) {
        Ok(())
    } else {
        Err(Status::permission_denied(format!("insufficient role: {role}")))
    }
}

impl Management {
    /// Stores a public key of the account; returns its fingerprint.
    fn register(&self, armored: &str, identity: Identity) -> Result<String, Status> {
        let (key, expires) = account::public_key(UnixTime::now(), armored)
            .map_err(|bad| Status::invalid_argument(format!("failed to validate: {bad}")))?;
        self.accounts.admit(&key, expires, &identity).map_err(|refused| Status::internal(refused.to_string()))
    }

    fn present(&self) -> Result<(), Status> {
        if self.knobs.no_management.load(Ordering::Relaxed) {
            return Err(Status::unimplemented("unknown method"));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl management_service_server::ManagementService for Management {
    async fn create_schematic_from_raw(
        &self,
        request: Request<CreateSchematicFromRawRequest>,
    ) -> Result<Response<CreateSchematicResponse>, Status> {
        self.present()?;
        allow(&request, Role::Operator, true)?;
        let yaml = String::from_utf8(request.into_inner().raw_schematic)
            .map_err(|_| Status::invalid_argument("the schematic is not UTF-8"))?;
        let schematic_id = self.factory.add_schematic(&yaml).map_err(|refused| match refused {
            NoSchematic::Full => Status::resource_exhausted(refused.to_string()),
            NoSchematic::Invalid(_) => Status::invalid_argument(refused.to_string()),
        })?;
        Ok(Response::new(CreateSchematicResponse { schematic_id, ..CreateSchematicResponse::default() }))
    }

    async fn get_boot_asset_url(
        &self,
        request: Request<BootAssetUrlRequest>,
    ) -> Result<Response<BootAssetUrlResponse>, Status> {
        self.present()?;
        allow(&request, Role::Operator, true)?;
        let asked = request.into_inner();
        let kind = asked.boot_asset_kind();
        let words = [&asked.talos_version, &asked.schematic_id, &asked.platform, &asked.architecture];
        let format = (kind == BootAssetKind::Disk).then_some(&asked.format);
        if !words.into_iter().chain(format).all(|word| is_plain(word)) {
            return Err(Status::invalid_argument(
                "version, schematic, platform, architecture and format are plain words",
            ));
        }
        let version = asked.talos_version.trim_start_matches('v');
        let secure = if asked.secure_boot { "-secureboot" } else { "" };
        let name = format!("{}-{}{secure}", asked.platform, asked.architecture);
        let (folder, file) = match kind {
            BootAssetKind::Unset => return Err(Status::invalid_argument("unknown boot asset kind")),
            BootAssetKind::Pxe => ("pxe", name),
            BootAssetKind::Iso => ("image", format!("{name}.iso")),
            BootAssetKind::Disk => ("image", format!("{name}.{}", asked.format)),
        };
        Ok(Response::new(BootAssetUrlResponse {
            url: format!("{}/{folder}/{}/v{version}/{file}", self.factory_url, asked.schematic_id),
            image_factory_host: self.factory_url.trim_start_matches("http://").to_owned(),
            ..BootAssetUrlResponse::default()
        }))
    }

    async fn validate_config(&self, request: Request<ValidateConfigRequest>) -> Result<Response<()>, Status> {
        allow(&request, Role::None, true)?;
        patch::check(&request.get_ref().config).map_err(|bad| Status::invalid_argument(bad.to_string()))?;
        Ok(Response::new(()))
    }

    async fn validate_json_schema(
        &self,
        request: Request<ValidateJsonSchemaRequest>,
    ) -> Result<Response<ValidateJsonSchemaResponse>, Status> {
        allow(&request, Role::None, true)?;
        let asked = request.get_ref();
        // Only what does not agree is an answer; what cannot be compared is an error without a code of its own.
        let schema = Schema::parse(&asked.schema).map_err(|bad| Status::unknown(bad.to_string()))?;
        let faults = schema.check(&asked.data).map_err(|bad| Status::unknown(bad.to_string()))?;
        let errors = faults.into_iter().map(|fault| validate_json_schema_response::Error {
            errors: Vec::new(),
            schema_path: fault.schema_path,
            data_path: fault.data_path,
            cause: fault.cause,
        });
        Ok(Response::new(ValidateJsonSchemaResponse { errors: errors.collect() }))
    }

    async fn create_service_account(
        &self,
        request: Request<CreateServiceAccountRequest>,
    ) -> Result<Response<CreateServiceAccountResponse>, Status> {
        allow(&request, Role::Admin, false)?;
        let caller = request.extensions().get::<Identity>().map_or(Role::None, Identity::role);
        let asked = request.into_inner();
        let role = if asked.use_user_role { Some(caller) } else { Role::find(&asked.role) };
        let role = role.ok_or_else(|| Status::invalid_argument(format!("unknown role {:?}", asked.role)))?;
        // The prefix and the role of providers go together.
        let provider = asked.name.starts_with(PROVIDER_PREFIX);
        if provider != (role == Role::InfraProvider) || (provider && asked.use_user_role) {
            return Err(Status::invalid_argument(format!("account {:?} cannot have role {role}", asked.name)));
        }
        if self.accounts.named(&asked.name).is_some() {
            return Err(Status::already_exists(format!("service account {:?} already exists", asked.name)));
        }
        let identity = Identity::of_account(&asked.name, role);
        let public_key_id = self.register(&asked.armored_pgp_public_key, identity)?;
        Ok(Response::new(CreateServiceAccountResponse { public_key_id }))
    }

    async fn renew_service_account(
        &self,
        request: Request<RenewServiceAccountRequest>,
    ) -> Result<Response<RenewServiceAccountResponse>, Status> {
        allow(&request, Role::Admin, false)?;
        let asked = request.into_inner();
        let identity = self
            .accounts
            .named(&asked.name)
            .ok_or_else(|| Status::not_found(format!("service account {:?} does not exist", asked.name)))?;
        let public_key_id = self.register(&asked.armored_pgp_public_key, identity)?;
        Ok(Response::new(RenewServiceAccountResponse { public_key_id }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        allow(&request, Role::Admin, false)?;
        let asked = request.into_inner();
        let spec = JoinTokenSpec { name: asked.name, expiration_time: asked.expiration_time, revoked: false };
        let id = super::seeds::secret();
        let token = Resource::new(join_tokens(), &id, &spec);
        validate::create(&token).map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        self.accounts.state.create(token, "").map_err(|refused| Status::internal(refused.to_string()))?;
        Ok(Response::new(CreateJoinTokenResponse { id }))
    }

    async fn machine_power_off(
        &self,
        request: Request<MachinePowerOffRequest>,
    ) -> Result<Response<MachinePowerOffResponse>, Status> {
        allow(&request, Role::Operator, false)?;
        let id = request.into_inner().machine_id;
        if !self.people.has_accepted(&id) {
            return Err(Status::failed_precondition(format!("machine {id:?} is not accepted")));
        }
        self.people.power_off(&id).map_err(|impossible| Status::not_found(impossible.to_string()))?;
        Ok(Response::new(MachinePowerOffResponse {}))
    }

    async fn machine_power_on(
        &self,
        request: Request<MachinePowerOnRequest>,
    ) -> Result<Response<MachinePowerOnResponse>, Status> {
        allow(&request, Role::Operator, false)?;
        let id = request.into_inner().machine_id;
        self.people.power_on(&id).map_err(|impossible| Status::not_found(impossible.to_string()))?;
        Ok(Response::new(MachinePowerOnResponse {}))
    }
}

fn is_plain(word: &str) -> bool {
    !matches!(word, "" | "." | "..")
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
