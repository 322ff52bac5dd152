//! What Omni checks about a resource's contents before it stores it.
//!
//! Pure. Source: contract omni-wire.md sections 2.7, 4.4 and 5.5.

use super::document::BadYaml;
use super::patch::{self, BadPatch};
use super::schema::{BadSchema, Fault, Schema};
use crate::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use crate::proto::specs::{
    ConfigPatchSpec, InfraMachineConfigSpec, JoinTokenSpec, MachineClassSpec, MachineRequestSetSpec, MachineRequestSpec,
};
use crate::resource::Resource;

/// The longest name of a join token.
const TOKEN_NAME_MAX: usize = 16;

/// What is wrong with a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A provider's ID is no DNS label.
    #[error(
        "failed to validate: infra provider ID {0:?} must be a DNS label: at most 63 lower-case letters, digits and inner dashes"
    )]
    ProviderId(String),
    /// The spec is no message of its type.
    #[error("failed to validate: the spec of {0} is malformed")]
    Spec(String),
    /// The version is none.
    #[error("failed to validate: Talos version {0:?} is not a semantic version")]
    TalosVersion(String),
    /// A machine request's spec is what it was made with.
    #[error("failed to validate: machine request {0} is immutable")]
    Immutable(String),
    /// Machines of a static provider exist; nobody makes them.
    #[error("failed to validate: {id} cannot use the static infra provider {provider:?}")]
    StaticProvider {
        /// The class or set.
        id: String,
        /// Whom it names.
        provider: String,
    },
    /// A class or set names no provider, or one that has not told of itself.
    #[error("failed to validate: failed to get provider: {0:?} has no status")]
    NoProvider(String),
    /// A class has machines made and picks some, too, or neither.
    #[error("failed to validate: machine class {0} should either have auto provision or match labels set")]
    Class(String),
    /// What the provider wants to know is no YAML.
    #[error("failed to validate: the provider data are no YAML: {0}")]
    ProviderData(BadYaml),
    /// The provider's own schema is none.
    #[error("failed to validate: failed to load json schema for provider {provider:?}: {why}")]
    Schema {
        /// Whose it is.
        provider: String,
        /// What is wrong with it.
        why: BadSchema,
    },
    /// What the provider wants to know is not what its schema says.
    #[error("failed to validate: the provider data do not agree with the provider's schema{}", listed(.0))]
    Data(Vec<Fault>),
    /// A config patch says what it may not.
    #[error("failed to validate: {0}")]
    Patch(BadPatch),
    /// A join token has no name, too long a one, or one with control characters.
    #[error("failed to validate: the name of a join token has 1 to {TOKEN_NAME_MAX} characters, no control characters")]
    TokenName,
    /// An accepted machine stays accepted.
    #[error("failed to validate: machine {0} was accepted already")]
    Accepted(String),
}

/// A line for each fault.
fn listed(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n- {fault}")).collect()
}

fn name(resource: &Resource) -> &str {
    resource.kind.r#type.strip_suffix(".omni.sidero.dev").unwrap_or_default()
}

/// Checks a new resource.
///
/// # Errors
///
/// [`Invalid`].
pub fn create(resource: &Resource) -> Result<(), Invalid> {
    match name(resource) {
        "InfraProviders" if !is_dns_label(&resource.id) => Err(Invalid::ProviderId(resource.id.clone())),
        "MachineRequests" => {
            let spec: MachineRequestSpec = resource.decode().map_err(|_| Invalid::Spec(resource.id.clone()))?;
            if is_semver(&spec.talos_version) { Ok(()) } else { Err(Invalid::TalosVersion(spec.talos_version)) }
        }
        "ConfigPatches" => config_patch(resource),
        "JoinTokens" => token_name(resource),
        _ => Ok(()),
    }
}

fn config_patch(resource: &Resource) -> Result<(), Invalid> {
    let spec: ConfigPatchSpec = resource.decode().map_err(|_| Invalid::Spec(resource.id.clone()))?;
    // What is compressed is not read here.
    if spec.compressed_data.is_empty() { patch::check(&spec.data).map_err(Invalid::Patch) } else { Ok(()) }
}

fn token_name(resource: &Resource) -> Result<(), Invalid> {
    let spec: JoinTokenSpec = resource.decode().map_err(|_| Invalid::Spec(resource.id.clone()))?;
    let good = (1..=TOKEN_NAME_MAX).contains(&spec.name.len()) && !spec.name.contains(char::is_control);
    if good { Ok(()) } else { Err(Invalid::TokenName) }
}

/// Checks what is to replace `stored`.
///
/// # Errors
///
/// [`Invalid`].
pub fn update(stored: &Resource, resource: &Resource) -> Result<(), Invalid> {
    match name(resource) {
        "MachineRequests" if stored.spec != resource.spec => Err(Invalid::Immutable(resource.id.clone())),
        "ConfigPatches" if stored.spec != resource.spec => config_patch(resource),
        "JoinTokens" if stored.spec != resource.spec => token_name(resource),
        "InfraMachineConfigs" => {
            let acceptance = |resource: &Resource| {
                let spec = resource.decode::<InfraMachineConfigSpec>();
                spec.map(|spec| spec.acceptance_status()).map_err(|_| Invalid::Spec(resource.id.clone()))
            };
            let (before, after) = (acceptance(stored)?, acceptance(resource)?);
            if before == AcceptanceStatus::Accepted && after != before {
                return Err(Invalid::Accepted(resource.id.clone()));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What is known of a provider that makes machines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maker {
    /// It only has the machines that stand there.
    pub is_static: bool,
    /// The JSON schema of its `provider_data`; empty when it wants none.
    pub schema: String,
}

/// Checks a machine class or a set of machine requests that is to be stored, instead of `stored` if there is such;
/// `maker` tells what the status of a provider says. What names the same provider and the same data as before stays.
///
/// # Errors
///
/// [`Invalid`].
pub fn made_machines(
    stored: Option<&Resource>,
    resource: &Resource,
    maker: impl FnOnce(&str) -> Option<Maker>,
) -> Result<(), Invalid> {
    let Some((provider, data)) = ordered(resource)? else { return Ok(()) };
    let before = stored.and_then(|stored| ordered(stored).ok().flatten());
    if before.as_ref().is_some_and(|before| *before == (provider.clone(), data.clone())) {
        return Ok(());
    }
    let maker = maker(&provider).ok_or_else(|| Invalid::NoProvider(provider.clone()))?;
    if maker.is_static {
        return Err(Invalid::StaticProvider { id: resource.id.clone(), provider });
    }
    if maker.schema.is_empty() {
        return Ok(());
    }
    let schema = Schema::parse(&maker.schema).map_err(|why| Invalid::Schema { provider, why })?;
    let faults = schema.check(&data).map_err(Invalid::ProviderData)?;
    if faults.is_empty() { Ok(()) } else { Err(Invalid::Data(faults)) }
}

/// The provider of which a class or a set wants machines, and what it tells it; `None` for what wants none made.
fn ordered(resource: &Resource) -> Result<Option<(String, String)>, Invalid> {
    let malformed = |_| Invalid::Spec(resource.id.clone());
    match name(resource) {
        "MachineClasses" => {
            let spec: MachineClassSpec = resource.decode().map_err(malformed)?;
            if spec.auto_provision.is_some() != spec.match_labels.is_empty() {
                return Err(Invalid::Class(resource.id.clone()));
            }
            Ok(spec.auto_provision.map(|provision| (provision.provider_id, provision.provider_data)))
        }
        "MachineRequestSets" => {
            let spec: MachineRequestSetSpec = resource.decode().map_err(malformed)?;
            if !is_semver(&spec.talos_version) {
                return Err(Invalid::TalosVersion(spec.talos_version));
            }
            Ok(Some((spec.provider_id, spec.provider_data)))
        }
        _ => Ok(None),
    }
}

fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_semver(text: &str) -> bool {
    let core = text.strip_prefix('v').unwrap_or(text);
    let core = core.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').collect();
    numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::specs::machine_class_spec;
    use crate::resource::Kind;

    #[test]
    fn contents_are_checked_as_omni_does() {
        for (id, good) in [("metal-1", true), ("Metal", false), ("-a", false), ("", false), (&"a".repeat(64), false)] {
            let provider = Resource::new(Kind::omni("InfraProviders"), id, &crate::proto::specs::InfraProviderSpec {});
            assert_eq!(create(&provider).is_ok(), good, "{id}");
        }
        let request = |version: &str| {
            let spec = MachineRequestSpec { talos_version: version.into(), ..MachineRequestSpec::default() };
            Resource::new(Kind::omni("MachineRequests"), "r", &spec)
        };
        for (version, good) in [("1.11.0", true), ("v1.12.0-beta.1", true), ("1.11", false), ("", false)] {
            assert_eq!(create(&request(version)).is_ok(), good, "{version}");
        }
        assert!(update(&request("1.11.0"), &request("1.11.1")).is_err());
        let config = |status: AcceptanceStatus| {
            let mut spec = InfraMachineConfigSpec::default();
            spec.set_acceptance_status(status);
            Resource::new(Kind::new("default", "InfraMachineConfigs.omni.sidero.dev"), "u", &spec)
        };
        let (accepted, rejected) = (config(AcceptanceStatus::Accepted), config(AcceptanceStatus::Rejected));
        assert!(update(&rejected, &accepted).is_ok() && update(&accepted, &rejected).is_err());
        let token = |name: &str| {
            let spec = JoinTokenSpec { name: name.into(), ..JoinTokenSpec::default() };
            Resource::new(Kind::new("default", "JoinTokens.omni.sidero.dev"), "t", &spec)
        };
        for (name, good) in [("rack-7", true), ("", false), (&"a".repeat(17), false), ("a\nb", false)] {
            assert_eq!(create(&token(name)).is_ok(), good, "{name:?}");
            assert_eq!(update(&token("before"), &token(name)).is_ok(), good, "{name:?}");
        }
        let patch = |data: &str| {
            let spec = ConfigPatchSpec { data: data.into(), ..ConfigPatchSpec::default() };
            Resource::new(Kind::new("default", "ConfigPatches.omni.sidero.dev"), "p", &spec)
        };
        let (fine, kept) = (patch("machine: {}"), patch("machine: {token: x}"));
        assert!(create(&fine).is_ok() && create(&kept).is_err() && update(&fine, &kept).is_err());
        assert!(update(&kept, &kept).is_ok(), "what stands there may stay");
    }

    #[test]
    fn machines_are_made_by_who_makes_some_of_what_it_wants_to_know() {
        let default = |name: &str| Kind::new("default", format!("{name}.omni.sidero.dev"));
        let class = |provider: &str, data: &str| {
            let provision = machine_class_spec::Provision {
                provider_id: provider.into(),
                provider_data: data.into(),
                ..Default::default()
            };
            let spec = MachineClassSpec { auto_provision: Some(provision), ..MachineClassSpec::default() };
            Resource::new(default("MachineClasses"), "large", &spec)
        };
        let set = |provider: &str, data: &str, version: &str| {
            let spec = MachineRequestSetSpec {
                provider_id: provider.into(),
                provider_data: data.into(),
                talos_version: version.into(),
                ..Default::default()
            };
            Resource::new(default("MachineRequestSets"), "web", &spec)
        };
        let maker = |provider: &str| match provider {
            "metal" => Some(Maker { is_static: true, ..Maker::default() }),
            "virtual" => Some(Maker { schema: r#"{"required": ["cores"]}"#.into(), ..Maker::default() }),
            "broken" => Some(Maker { schema: "{".into(), ..Maker::default() }),
            "easy" => Some(Maker::default()),
            _ => None,
        };
        let ask = |resource: &Resource| made_machines(None, resource, maker);
        let now = |provider: &str, data: &str| set(provider, data, "1.11.0");
        for of in [&class as &dyn Fn(&str, &str) -> Resource, &now] {
            assert_eq!(ask(&of("virtual", "cores: 4")), Ok(()));
            assert_eq!(ask(&of("easy", "anything: [")), Ok(()));
            assert!(matches!(ask(&of("metal", "")), Err(Invalid::StaticProvider { .. })));
            assert_eq!(ask(&of("nobody", "")), Err(Invalid::NoProvider("nobody".into())));
            assert!(matches!(ask(&of("broken", "")), Err(Invalid::Schema { .. })));
            assert!(matches!(ask(&of("virtual", "cores: [")), Err(Invalid::ProviderData(_))));
            let told = ask(&of("virtual", "ram: 4")).unwrap_err().to_string();
            assert!(told.ends_with("provider's schema\n- /cores: property is required"), "{told}");
            // The provider's schema changed after this was stored.
            let stored = of("virtual", "ram: 4");
            assert_eq!(made_machines(Some(&stored), &stored, maker), Ok(()));
            assert!(made_machines(Some(&stored), &of("virtual", "ram: 5"), maker).is_err());
        }
        assert!(matches!(ask(&set("virtual", "cores: 4", "1.11")), Err(Invalid::TalosVersion(_))));
        let picking = |labels: &[&str], provision: bool| {
            let match_labels = labels.iter().map(|label| (*label).to_owned()).collect();
            let made = machine_class_spec::Provision { provider_id: "easy".into(), ..Default::default() };
            let spec = MachineClassSpec { match_labels, auto_provision: provision.then_some(made) };
            Resource::new(default("MachineClasses"), "small", &spec)
        };
        assert_eq!(ask(&picking(&["rack=1"], false)), Ok(()));
        assert!(ask(&picking(&["rack=1"], true)).is_err() && ask(&picking(&[], false)).is_err());
    }
}
