//! What every call passes first: counting, faults, the signature.
//!
//! Edge: it reads the clock and sleeps.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State as Extract};
use axum::middleware::Next;
use axum::response::Response;
use tonic::Status;

use super::accounts::Accounts;
use super::auth;
use super::faults::Knobs;

/// The machine API: machines have no keys, they show a join token.
const MACHINE_API: [&str; 2] = ["/sidero.link.ProvisionService/", "/pilotlight.lab.MachineLink/"];

/// What wants no signature, since it is how a key comes to be one; revoking a key does.
const UNSIGNED: [&str; 3] = [
    "/auth.AuthService/RegisterPublicKey",
    "/auth.AuthService/AwaitPublicKeyConfirmation",
    "/auth.AuthService/ConfirmPublicKey",
];

/// What stands before the services.
#[derive(Debug)]
pub(super) struct Gate {
    accounts: Accounts,
    knobs: Arc<Knobs>,
    calls: Mutex<BTreeMap<String, u64>>,
}

impl Gate {
    pub(super) fn new(accounts: Accounts, knobs: Arc<Knobs>) -> Self {
        Self { accounts, knobs, calls: Mutex::default() }
    }

    /// Calls by method, refused ones included.
    pub(super) fn calls(&self) -> BTreeMap<String, u64> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, method: &str) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = calls.get_mut(method) {
            *count += 1;
        } else if calls.len() < 64 {
            // A stranger can name any method; the table does not grow without end for it.
            calls.insert(method.to_owned(), 1);
        }
    }

    fn refuses(&self, request: &mut Request) -> Option<Status> {
        if let Some(status) = self.knobs.refusal() {
            return Some(status);
        }
        let method = request.uri().path();
        if UNSIGNED.contains(&method) {
            return None;
        }
        match auth::verify(self.knobs.now(), method, request.headers(), |key| self.accounts.known(key)) {
            Ok(identity) => {
                let suspended = self.knobs.suspended.load(Ordering::Relaxed);
                let identity = if suspended { identity.suspended() } else { identity };
                request.extensions_mut().insert(identity);
                None
            }
            Err(reason) => {
                tracing::debug!(method = request.uri().path(), %reason, "signature rejected");
                Some(Status::unauthenticated("invalid signature"))
            }
        }
    }
}

/// The middleware.
pub(super) async fn pass(Extract(gate): Extract<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    gate.count(request.uri().path());
    if !MACHINE_API.iter().any(|service| request.uri().path().starts_with(service)) {
        let delay = gate.knobs.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(status) = gate.refuses(&mut request) {
            return status.into_http();
        }
    }
    next.run(request).await
}
