//! How people's keys come to be: registered by anybody, confirmed by whom they name, revoked by their holder.
//!
//! Edge: it answers calls and reads the clock. Omni leaves the log-in to an identity provider, whose ID token the browser
//! shows; here [`Logins`] stands for it.
//!
//! Source: contract omni-wire.md sections 2.5, 2.6 and 2.8.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::account;
use super::accounts::{Accounts, KeyType, NewKey, public_keys};
use super::plain::PlainKey;
use super::role::{Identity, Role};
use super::token::query_escape;
use crate::proto::auth::{
    AwaitPublicKeyConfirmationRequest, ConfirmPublicKeyRequest, PublicKey, RegisterPublicKeyRequest,
    RegisterPublicKeyResponse, RevokePublicKeyRequest, auth_service_server,
};
use crate::proto::specs::PublicKeySpec;
use crate::secret::Secret;
use crate::time::UnixTime;

/// How long a program waits for its key to be confirmed.
const PATIENCE: Duration = Duration::from_secs(300);
/// The longest life of a browser's key.
const PLAIN_LIFETIME_MAX: Duration = Duration::from_secs(8 * 3_600);
/// More people than this are never logged in at once.
const MAX_LOGINS: usize = 64;

/// The identity provider's half: who is logged in, by ID token. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Logins(Arc<Mutex<BTreeMap<String, String>>>);

impl Logins {
    /// Logs the person of this address in; `None` while too many are.
    pub(super) fn begin(&self, email: &str) -> Option<Secret<String>> {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() >= MAX_LOGINS {
            return None;
        }
        let token = super::uuid();
        logins.insert(token.clone(), email.to_lowercase());
        Some(Secret::new(token))
    }

    fn email(&self, token: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }
}

/// `auth.AuthService`.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) accounts: Accounts,
    pub(super) logins: Logins,
    /// URL of Omni's pages, without a slash at the end.
    pub(super) url: String,
}

impl Login {
    /// The key for whom it is registered, with the role that it will have; `None` when nobody is called so.
    fn key_of(&self, asked: &RegisterPublicKeyRequest, email: &str) -> Result<Option<(Role, String)>, Status> {
        let Some((user_id, role)) = self.accounts.user(email) else { return Ok(None) };
        if !asked.skip_user_role {
            return Ok(Some((role, user_id)));
        }
        let role = Role::find(&asked.role);
        let role = role.ok_or_else(|| Status::unknown(format!("failed to parse role {:?}", asked.role)))?;
        Ok(Some((role, user_id)))
    }
}

/// What a registered key is: its ID, and what Omni stores of it.
fn read(key: Option<PublicKey>, now: UnixTime) -> Result<(String, NewKey), Status> {
    let bad = |text: String| Status::invalid_argument(format!("failed to validate: {text}"));
    let key = key.unwrap_or_default();
    if !key.webauthn_data.is_empty() {
        return Err(Status::unimplemented("webauthn keys are not implemented"));
    }
    if let Some(plain) = key.plain_key {
        let read = PlainKey::parse(&plain.key_pem).ok_or_else(|| bad("the key is no P-256 public key".to_owned()))?;
        let expires = plain.not_after.map(UnixTime::from).unwrap_or_default();
        if expires <= now || expires > now + PLAIN_LIFETIME_MAX {
            return Err(bad("the key must expire within eight hours".to_owned()));
        }
        let id = read.id();
        let new = NewKey { octets: plain.key_pem.into_bytes(), kind: KeyType::Plain, expires };
        return Ok((id, new));
    }
    let armored = std::str::from_utf8(&key.pgp_data).map_err(|_| bad("the key is no text".to_owned()))?;
    let (read, expires) = account::public_key(now, armored).map_err(|why| bad(why.to_string()))?;
    let id = account::fingerprint(&read);
    let new = NewKey { octets: key.pgp_data, kind: KeyType::OpenPgp, expires };
    Ok((id, new))
}

#[tonic::async_trait]
impl auth_service_server::AuthService for Login {
    async fn register_public_key(
        &self,
        request: Request<RegisterPublicKeyRequest>,
    ) -> Result<Response<RegisterPublicKeyResponse>, Status> {
        let mut asked = request.into_inner();
        let email = asked.identity.take().unwrap_or_default().email.to_lowercase();
        let (id, new) = read(asked.public_key.take(), UnixTime::now())?;
        if self.accounts.is_full() {
            return Err(Status::resource_exhausted("too many keys wait to be confirmed"));
        }
        // Who names a stranger is told the same: nobody learns who has an account.
        if let Some((role, user_id)) = self.key_of(&asked, &email)? {
            self.accounts.propose(&id, &email, &user_id, role, new);
        }
        let login_url = format!("{}/authenticate?flow=cli&public-key-id={}", self.url, query_escape(&id));
        Ok(Response::new(RegisterPublicKeyResponse { login_url, public_key_id: id }))
    }

    async fn await_public_key_confirmation(
        &self,
        request: Request<AwaitPublicKeyConfirmationRequest>,
    ) -> Result<Response<()>, Status> {
        let id = request.into_inner().public_key_id;
        let confirmed = async {
            let mut bells = self.accounts.state.bells([public_keys()]);
            while !self.accounts.key(&id).is_some_and(|key| key.confirmed) {
                bells.rung().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, confirmed).await;
        waited.map(Response::new).map_err(|_| Status::deadline_exceeded("nobody confirmed the key"))
    }

    async fn confirm_public_key(&self, request: Request<ConfirmPublicKeyRequest>) -> Result<Response<()>, Status> {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let email = self.logins.email(token).ok_or_else(|| Status::unauthenticated("nobody is logged in"))?;
        let id = request.into_inner().public_key_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("the public key's ID is missing"));
        }
        let Some((user_id, _)) = self.accounts.user(&email) else {
            return Err(Status::permission_denied(format!("the identity {email:?} has no account here")));
        };
        match self.accounts.confirm(&id, &user_id) {
            Some(true) => Ok(Response::new(())),
            Some(false) => Err(Status::unknown("the public key is another user's")),
            None => Err(Status::permission_denied("permission denied")),
        }
    }

    async fn revoke_public_key(&self, request: Request<RevokePublicKeyRequest>) -> Result<Response<()>, Status> {
        let caller = request.extensions().get::<Identity>().map(Identity::email);
        let id = request.into_inner().public_key_id;
        let key =
            self.accounts.key(&id).ok_or_else(|| Status::not_found(format!("public key {id:?} does not exist")))?;
        if caller != email_of(&key) {
            return Err(Status::permission_denied("the key is somebody else's"));
        }
        self.accounts.revoke(&id);
        Ok(Response::new(()))
    }
}

/// Whose a stored key is.
fn email_of(key: &PublicKeySpec) -> Option<String> {
    key.identity.as_ref().map(|identity| identity.email.clone())
}
