//! Accounts as people see them: a PublicKey a key, and of each account a User and an Identity.
//!
//! Edge: it runs a task. The signature check reads [`super::auth::Keys`]; what stands here follows it, and a key that is destroyed here,
//! or has expired, is taken from there.
//!
//! Source: contract omni-wire.md sections 2.5 to 2.7, 4.4 and 4.5.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pgp::composed::{ArmorOptions, SignedPublicKey};
use pgp::types::KeyDetails as _;
use tokio::task::JoinSet;

use super::account::ServiceAccount;
use super::collection::Refused;
use super::gate::Gate;
use super::role::Identity;
use super::state::State;
use crate::proto::specs::{IdentitySpec, PublicKeySpec, UserSpec, public_key_spec};
use crate::resource::{Kind, NAMESPACE_DEFAULT, Resource};
use crate::time::UnixTime;

/// Omni looks for expired keys this often.
const PRUNED_EVERY: Duration = Duration::from_secs(600);
/// `PublicKeySpec.type` of an OpenPGP key.
const PGP: i32 = 1;
/// The account of a key, and of an identity.
const LABEL_USER_ID: &str = "user-id";
/// The e-mail address of a key's account.
const LABEL_IDENTITY: &str = "identity";
/// On the identity of a service account, which all of ours are.
const LABEL_SERVICE_ACCOUNT: &str = "type-service-account";
/// On all three of a provider's account.
const LABEL_INFRA_PROVIDER: &str = "omni.sidero.dev/infra-provider";

fn kind(name: &str) -> Kind {
    Kind::new(NAMESPACE_DEFAULT, format!("{name}.omni.sidero.dev"))
}

/// The kind of public keys; their IDs are fingerprints.
pub fn public_keys() -> Kind {
    kind("PublicKeys")
}

/// The kind of users; their IDs are UUIDs.
pub fn users() -> Kind {
    kind("Users")
}

/// The kind of identities; their IDs are e-mail addresses.
pub fn identities() -> Kind {
    kind("Identities")
}

/// Who may call.
#[derive(Clone, Debug)]
pub(super) struct Accounts {
    pub(super) state: State,
    pub(super) gate: Arc<Gate>,
}

impl Accounts {
    /// Lets the holder of `key` in as `identity` until it expires; returns the key's fingerprint.
    pub(super) fn admit(&self, key: SignedPublicKey, expires: UnixTime, identity: Identity) -> Result<String, Refused> {
        let (email, role) = (identity.email(), identity.role().to_string());
        let armored = key.to_armored_bytes(ArmorOptions::default()).unwrap_or_default();
        let labelled = |mut resource: Resource, own: &[(&str, &str)]| {
            let provider = matches!(identity, Identity::Provider(_)).then_some((LABEL_INFRA_PROVIDER, ""));
            let labels = own.iter().copied().chain(provider);
            resource.labels.extend(labels.map(|(key, value)| (key.to_owned(), value.to_owned())));
            resource
        };
        let known = self.state.get(&identities(), &email).ok().and_then(|stored| stored.decode::<IdentitySpec>().ok());
        let user_id = known.map_or_else(super::uuid, |identity| identity.user_id);
        let user = UserSpec { role: role.clone() };
        let resource = Resource::new(users(), &user_id, &user);
        self.state.put(labelled(resource, &[]), |stored| stored.encode(&user))?;
        let own = Resource::new(identities(), &email, &IdentitySpec { user_id: user_id.clone() });
        self.state.put(labelled(own, &[(LABEL_USER_ID, &user_id), (LABEL_SERVICE_ACCOUNT, "")]), |_| ())?;
        let fingerprint = format!("{:x}", key.primary_key.fingerprint());
        let spec = PublicKeySpec {
            public_key: armored,
            expiration: Some(expires.into()),
            confirmed: true,
            identity: Some(public_key_spec::Identity { email: email.clone() }),
            role,
            r#type: PGP,
        };
        let resource = Resource::new(public_keys(), &fingerprint, &spec);
        let resource = labelled(resource, &[(LABEL_USER_ID, &user_id), (LABEL_IDENTITY, &email)]);
        self.state.put(resource, |stored| stored.encode(&spec))?;
        // Last: a key that does not stand in the state is taken out of the check.
        Ok(self.gate.keys.register(key, expires, identity))
    }

    /// As [`Self::admit`], with the key that `account` was made with.
    pub(super) fn add(&self, account: &ServiceAccount) -> Result<(), Refused> {
        self.admit(account.public_key.clone(), account.expires, account.identity.clone()).map(drop)
    }

    /// Revokes a key by its fingerprint.
    pub(super) fn revoke(&self, fingerprint: &str) {
        let _ = self.state.destroy(&public_keys(), fingerprint, "");
        self.gate.keys.remove(fingerprint);
    }

    /// Follows what is destroyed, and prunes what has expired.
    pub(super) fn spawn(self, tasks: &mut JoinSet<()>) {
        let mut bells = self.state.bells([public_keys(), identities()]);
        tasks.spawn(async move {
            loop {
                self.reconcile(UnixTime::now());
                // Cancel-safe: both only wait.
                tokio::select! {
                    () = bells.rung() => {}
                    () = tokio::time::sleep(PRUNED_EVERY) => {}
                }
            }
        });
    }

    /// One look: expired keys go, as do those of an account that is gone; what is not there lets nobody in.
    pub(super) fn reconcile(&self, now: UnixTime) {
        let accounts: BTreeSet<_> = self.state.list(&identities()).iter().map(|stored| stored.id.clone()).collect();
        for stored in self.state.list(&public_keys()) {
            let spec = stored.decode::<PublicKeySpec>().unwrap_or_default();
            let expired = spec.expiration.is_none_or(|at| UnixTime::from(at) < now);
            let orphan = spec.identity.is_none_or(|identity| !accounts.contains(&identity.email));
            if expired || orphan {
                // Who destroys it meanwhile wants the same.
                let _ = self.state.destroy(&public_keys(), &stored.id, &stored.owner);
            }
        }
        let state = &self.state;
        self.gate.keys.retain(|fingerprint| state.get(&public_keys(), fingerprint).is_ok());
    }

    /// Ends an account, as when its provider is removed.
    pub(super) fn forget(&self, identity: &Identity) {
        let email = identity.email();
        let Ok(stored) = self.state.get(&identities(), &email) else { return };
        let user_id = stored.decode::<IdentitySpec>().unwrap_or_default().user_id;
        for (kind, id) in [(identities(), email), (users(), user_id)] {
            let _ = self.state.destroy(&kind, &id, "");
        }
        self.reconcile(UnixTime::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::omni::role::Role;

    const DAY: Duration = Duration::from_secs(86_400);

    fn admitted(accounts: &Accounts, account: &ServiceAccount) -> String {
        accounts.admit(account.public_key.clone(), account.expires, account.identity.clone()).unwrap()
    }

    #[test]
    fn an_account_is_three_resources_and_its_further_keys_are_one_each() {
        let accounts = Accounts { state: State::default(), gate: Arc::new(Gate::new(Arc::default())) };
        let first = ServiceAccount::create("metal-1", DAY).unwrap();
        let second = ServiceAccount::create("metal-1", DAY).unwrap();
        let person = ServiceAccount::person("alice", Role::Operator, DAY).unwrap();
        assert_eq!(admitted(&accounts, &first), first.fingerprint);
        admitted(&accounts, &second);
        admitted(&accounts, &person);
        let count = |kind: &Kind| accounts.state.list(kind).len();
        assert_eq!((count(&public_keys()), count(&users()), count(&identities())), (3, 2, 2));
        let key = accounts.state.get(&public_keys(), &first.fingerprint).unwrap();
        let identity = accounts.state.get(&identities(), &first.identity.email()).unwrap();
        let user_id = identity.decode::<IdentitySpec>().unwrap().user_id;
        assert_eq!((&key.labels[LABEL_USER_ID], &key.labels[LABEL_IDENTITY]), (&user_id, &identity.id));
        assert!(key.labels.contains_key(LABEL_INFRA_PROVIDER) && identity.labels.contains_key(LABEL_SERVICE_ACCOUNT));
        assert_eq!(accounts.state.get(&users(), &user_id).unwrap().decode::<UserSpec>().unwrap().role, "InfraProvider");

        // A key that is destroyed lets nobody in; the others still do.
        accounts.state.destroy(&public_keys(), &first.fingerprint, "").unwrap();
        accounts.reconcile(UnixTime::now());
        assert!(accounts.gate.keys.knows("infra-provider:metal-1").is_some());
        accounts.forget(&first.identity);
        assert!(accounts.gate.keys.knows("infra-provider:metal-1").is_none());
        assert_eq!((count(&public_keys()), count(&users()), count(&identities())), (1, 1, 1));
        accounts.reconcile(UnixTime::now() + DAY + DAY);
        assert!(accounts.gate.keys.knows("alice").is_none(), "expired keys are pruned");
    }
}
