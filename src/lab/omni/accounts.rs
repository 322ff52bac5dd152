//! Accounts as people see them: a PublicKey a key, and of each account a User and an Identity.
//!
//! Edge: it runs a task. The signature check reads what stands here, at every call.
//!
//! Source: contract omni-wire.md sections 2.5 to 2.7, 4.4 and 4.5.

use std::collections::BTreeSet;
use std::time::Duration;

use pgp::composed::{ArmorOptions, Deserializable as _, SignedPublicKey};
use tokio::task::JoinSet;

use super::account::{self, ServiceAccount};
use super::auth::{Key, Known, Rejected};
use super::collection::Refused;
use super::plain::PlainKey;
use super::role::{Identity, Role};
use super::state::State;
use crate::proto::specs::{IdentitySpec, PublicKeySpec, UserSpec, public_key_spec};
use crate::resource::{Kind, NAMESPACE_DEFAULT, Resource};
use crate::time::UnixTime;

/// Omni looks for expired keys this often.
const PRUNED_EVERY: Duration = Duration::from_secs(600);
/// More keys than this never wait to be confirmed.
const MAX_UNCONFIRMED: usize = 64;
/// The owner of keys.
const KEY_OWNER: &str = "KeyPrunerController";
/// At the end of the address of every service account.
const SERVICE_ACCOUNT_MAIL: &str = "serviceaccount.omni.sidero.dev";
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

/// `PublicKeySpec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyType {
    /// Armored OpenPGP.
    OpenPgp = 1,
    /// ECDSA in PEM.
    Plain = 2,
}

/// A key to be stored.
#[derive(Debug)]
pub(super) struct NewKey {
    /// As it was sent.
    pub(super) octets: Vec<u8>,
    pub(super) kind: KeyType,
    pub(super) expires: UnixTime,
}

/// Who may call.
#[derive(Clone, Debug)]
pub(super) struct Accounts {
    pub(super) state: State,
}

impl Accounts {
    /// Lets the holder of `key` in as `identity` until it expires; returns the key's fingerprint.
    pub(super) fn admit(
        &self,
        key: &SignedPublicKey,
        expires: UnixTime,
        identity: &Identity,
    ) -> Result<String, Refused> {
        let user_id = self.add_user(identity)?;
        let octets = key.to_armored_bytes(ArmorOptions::default()).unwrap_or_default();
        let fingerprint = account::fingerprint(key);
        let new = NewKey { octets, kind: KeyType::OpenPgp, expires };
        let (mut resource, spec) = key_resource(&fingerprint, &identity.email(), &user_id, identity.role(), new);
        mark(&mut resource, identity);
        let spec = PublicKeySpec { confirmed: true, ..spec };
        resource.encode(&spec);
        self.state.put(resource, |stored| stored.encode(&spec))?;
        Ok(fingerprint)
    }

    /// Makes somebody known, without a key, or changes the role of who is known; returns the user's UUID.
    pub(super) fn add_user(&self, identity: &Identity) -> Result<String, Refused> {
        let (email, role) = (identity.email(), identity.role().to_string());
        let known = self.state.get(&identities(), &email).ok().and_then(|stored| stored.decode::<IdentitySpec>().ok());
        let user_id = known.map_or_else(super::uuid, |identity| identity.user_id);
        let user = UserSpec { role };
        let mut resource = Resource::new(users(), &user_id, &user);
        mark(&mut resource, identity);
        self.state.put(resource, |stored| stored.encode(&user))?;
        let mut own = Resource::new(identities(), &email, &IdentitySpec { user_id: user_id.clone() });
        mark(&mut own, identity);
        own.labels.insert(LABEL_USER_ID.to_owned(), user_id.clone());
        if email.ends_with(SERVICE_ACCOUNT_MAIL) {
            own.labels.insert(LABEL_SERVICE_ACCOUNT.to_owned(), String::new());
        }
        self.state.put(own, |_| ())?;
        Ok(user_id)
    }

    /// Whether no further key may be registered before some are confirmed: anybody can bring one.
    pub(super) fn is_full(&self) -> bool {
        let unconfirmed = |stored: &Resource| stored.decode::<PublicKeySpec>().is_ok_and(|spec| !spec.confirmed);
        self.state.list(&public_keys()).iter().filter(|stored| unconfirmed(stored)).count() >= MAX_UNCONFIRMED
    }

    /// Stores a key that its user has yet to confirm; one that is there already stays as it is.
    pub(super) fn propose(&self, id: &str, email: &str, user_id: &str, role: Role, key: NewKey) {
        let (mut resource, spec) = key_resource(id, email, user_id, role, key);
        resource.encode(&spec);
        let _ = self.state.create(resource, KEY_OWNER);
    }

    /// Confirms a key of this user; whether it is that user's, `None` when there is none.
    pub(super) fn confirm(&self, id: &str, user_id: &str) -> Option<bool> {
        let stored = self.state.get(&public_keys(), id).ok()?;
        if stored.labels.get(LABEL_USER_ID).is_none_or(|of| of != user_id) {
            return Some(false);
        }
        let confirmed = self.state.modify(&public_keys(), id, |stored| {
            let mut spec: PublicKeySpec = stored.decode().unwrap_or_default();
            spec.confirmed = true;
            stored.encode(&spec);
        });
        confirmed.ok().map(|_| true)
    }

    /// A stored key.
    pub(super) fn key(&self, id: &str) -> Option<PublicKeySpec> {
        self.state.get(&public_keys(), id).ok()?.decode().ok()
    }

    /// The UUID and the role of who has this address.
    pub(super) fn user(&self, email: &str) -> Option<(String, Role)> {
        let user_id = self.state.get(&identities(), email).ok()?.decode::<IdentitySpec>().ok()?.user_id;
        let role = Role::find(&self.state.get(&users(), &user_id).ok()?.decode::<UserSpec>().ok()?.role)?;
        Some((user_id, role))
    }

    /// The account of this name.
    pub(super) fn named(&self, account_name: &str) -> Option<Identity> {
        let email = Identity::of_account(account_name, Role::None).email();
        let (_, role) = self.user(&email)?;
        Some(Identity::of_account(account_name, role))
    }

    /// The key that a signature names, as the check of signatures wants it: confirmed, and with the lesser of the two
    /// roles that the key and its user have.
    pub(super) fn known(&self, fingerprint: &str) -> Result<Known, Rejected> {
        let stored = self.state.get(&public_keys(), fingerprint).map_err(|_| Rejected::UnknownKey)?;
        let spec: PublicKeySpec = stored.decode().map_err(|_| Rejected::UnknownKey)?;
        if !spec.confirmed {
            return Err(Rejected::Unconfirmed);
        }
        let user_id = stored.labels.get(LABEL_USER_ID).ok_or(Rejected::NoUser)?;
        let user = self.state.get(&users(), user_id).map_err(|_| Rejected::NoUser)?;
        let user: UserSpec = user.decode().map_err(|_| Rejected::NoUser)?;
        let (of_user, of_key) = (Role::find(&user.role), Role::find(&spec.role));
        let role = of_user.zip(of_key).map(|(user, key)| user.min(key)).ok_or(Rejected::NoUser)?;
        let email = spec.identity.map(|identity| identity.email).ok_or(Rejected::NoUser)?;
        let text = std::str::from_utf8(&spec.public_key).map_err(|_| Rejected::UnknownKey)?;
        let key = if spec.r#type == KeyType::Plain as i32 {
            Key::Plain(PlainKey::parse(text).ok_or(Rejected::UnknownKey)?)
        } else {
            let (key, _) = SignedPublicKey::from_string(text).map_err(|_| Rejected::UnknownKey)?;
            Key::OpenPgp(Box::new(key))
        };
        let expires = spec.expiration.map(UnixTime::from).unwrap_or_default();
        Ok(Known { key, expires, identity: Identity::of_email(&email, role) })
    }

    /// As [`Self::admit`], with the key that `account` was made with.
    pub(super) fn add(&self, account: &ServiceAccount) -> Result<(), Refused> {
        self.admit(&account.public_key, account.expires, &account.identity).map(drop)
    }

    /// Revokes a key by its fingerprint.
    pub(super) fn revoke(&self, fingerprint: &str) {
        let _ = self.state.destroy(&public_keys(), fingerprint, KEY_OWNER);
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

    /// One look: expired keys go, as do those of an account that is gone.
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

/// A key's resource without its spec, and the spec: not confirmed yet.
fn key_resource(id: &str, email: &str, user_id: &str, role: Role, key: NewKey) -> (Resource, PublicKeySpec) {
    let mut resource = Resource::new(public_keys(), id, &());
    let labels = [(LABEL_USER_ID, user_id), (LABEL_IDENTITY, email)];
    resource.labels.extend(labels.map(|(key, value)| (key.to_owned(), value.to_owned())));
    resource.owner = KEY_OWNER.to_owned();
    let spec = PublicKeySpec {
        public_key: key.octets,
        expiration: Some(key.expires.into()),
        confirmed: false,
        identity: Some(public_key_spec::Identity { email: email.to_owned() }),
        role: role.to_string(),
        r#type: key.kind as i32,
    };
    (resource, spec)
}

/// Marks what belongs to a provider's account.
fn mark(resource: &mut Resource, identity: &Identity) {
    if matches!(identity, Identity::Provider(_)) {
        resource.labels.insert(LABEL_INFRA_PROVIDER.to_owned(), String::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn admitted(accounts: &Accounts, account: &ServiceAccount) -> String {
        accounts.admit(&account.public_key, account.expires, &account.identity).unwrap()
    }

    #[test]
    fn an_account_is_three_resources_and_its_further_keys_are_one_each() {
        let accounts = Accounts { state: State::default() };
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
        accounts.revoke(&first.fingerprint);
        assert!(accounts.known(&first.fingerprint).is_err() && accounts.known(&second.fingerprint).is_ok());
        assert!(accounts.named("infra-provider:metal-1").is_some());
        accounts.forget(&first.identity);
        assert!(accounts.named("infra-provider:metal-1").is_none());
        assert_eq!((count(&public_keys()), count(&users()), count(&identities())), (1, 1, 1));
        accounts.reconcile(UnixTime::now() + DAY + DAY);
        assert_eq!(count(&public_keys()), 0, "expired keys are pruned");
    }

    #[test]
    fn a_call_has_the_lesser_role_of_key_and_user_and_none_without_a_user() {
        let accounts = Accounts { state: State::default() };
        let person = ServiceAccount::person("alice", Role::Operator, DAY).unwrap();
        admitted(&accounts, &person);
        let role = || accounts.known(&person.fingerprint).map(|known| known.identity.role());
        let (user_id, _) = accounts.user(&person.identity.email()).unwrap();
        for (name, expected) in [
            ("Operator", Ok(Role::Operator)),
            ("Admin", Ok(Role::Operator)),
            ("Reader", Ok(Role::Reader)),
            ("None", Ok(Role::None)),
            ("King", Err(Rejected::NoUser)),
        ] {
            let set = |stored: &mut Resource| stored.encode(&UserSpec { role: name.to_owned() });
            accounts.state.modify(&users(), &user_id, set).unwrap();
            assert_eq!(role(), expected, "{name}");
        }
        accounts.state.destroy(&users(), &user_id, "").unwrap();
        assert_eq!(role(), Err(Rejected::NoUser));
        let unconfirmed = |stored: &mut Resource| {
            let spec: PublicKeySpec = stored.decode().unwrap();
            stored.encode(&PublicKeySpec { confirmed: false, ..spec });
        };
        accounts.state.modify(&public_keys(), &person.fingerprint, unconfirmed).unwrap();
        assert_eq!(role(), Err(Rejected::Unconfirmed));
        assert_eq!(accounts.known("00").unwrap_err(), Rejected::UnknownKey);
    }
}
