//! Plain join tokens: which of them let machines in, how many machines came with each, and what speaks against its end.
//!
//! Edge: it runs a task and reads the clock. Source: contract omni-wire.md sections 4.4 and 7.3.

use std::time::Duration;

use tokio::task::JoinSet;

use super::admission::UniqueToken;
use super::controller::{FORCE_UNIQUE_TOKEN, join_token_usages, links, node_unique_tokens};
use super::seeds::default_join_tokens;
use super::state::State;
use crate::proto::specs::join_token_status_spec::{State as Is, Warning};
use crate::proto::specs::{
    DefaultJoinTokenSpec, JoinTokenSpec, JoinTokenStatusSpec, JoinTokenUsageSpec, NodeUniqueTokenSpec,
};
use crate::resource::{Kind, NAMESPACE_DEFAULT, Phase, Resource};
use crate::time::UnixTime;

/// Who writes the statuses.
const OWNER: &str = "JoinTokenStatusController";
/// Expiry is looked at this often.
const TICK: Duration = Duration::from_secs(1);

/// The kind of join tokens; the ID of one is the token.
pub fn join_tokens() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "JoinTokens.omni.sidero.dev")
}

/// The kind that tells what each join token is good for.
pub fn join_token_statuses() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "JoinTokenStatuses.omni.sidero.dev")
}

/// Whether machines may join with this token now.
pub(super) fn is_active(state: &State, token: &str) -> bool {
    let status = state.get(&join_token_statuses(), token).ok();
    status
        .and_then(|status| status.decode::<JoinTokenStatusSpec>().ok())
        .is_some_and(|status| status.state() == Is::Active)
}

/// The token that stands for all that have none of their own.
pub(super) fn default_token(state: &State) -> Option<String> {
    let default = state.get(&default_join_tokens(), "default").ok()?;
    Some(default.decode::<DefaultJoinTokenSpec>().ok()?.token_id)
}

/// Why a token, or what names the default one, is not to be destroyed.
pub(super) fn keeps(state: &State, kind: &Kind, id: &str) -> Option<&'static str> {
    if *kind == default_join_tokens() {
        return Some("failed to validate: destroying the default join token resource is not allowed");
    }
    let is_default = *kind == join_tokens() && default_token(state).as_deref() == Some(id);
    is_default.then_some("failed to validate: deleting default join token is not possible")
}

/// Whether what is to be the default is a token.
pub(super) fn names_a_token(state: &State, resource: &Resource) -> bool {
    let named = || {
        resource.decode::<DefaultJoinTokenSpec>().is_ok_and(|spec| state.get(&join_tokens(), &spec.token_id).is_ok())
    };
    resource.kind != default_join_tokens() || named()
}

/// Omni's controller of join tokens.
#[derive(Clone, Debug)]
pub(super) struct JoinTokens {
    pub(super) state: State,
}

impl JoinTokens {
    /// Looks at every token now, and again after each change.
    pub(super) fn spawn(self, tasks: &mut JoinSet<()>) {
        let kinds = [join_tokens(), default_join_tokens(), join_token_usages(), node_unique_tokens()];
        let mut bells = self.state.bells(kinds);
        tasks.spawn(async move {
            loop {
                let expires = self.reconcile(UnixTime::now());
                // Cancel-safe: both only wait.
                tokio::select! {
                    () = bells.rung() => {}
                    () = tokio::time::sleep(TICK), if expires => {}
                }
            }
        });
    }

    /// One look; whether a token will expire, so that another one is due without any change.
    pub(super) fn reconcile(&self, now: UnixTime) -> bool {
        let default = default_token(&self.state);
        let usages: Vec<_> = self.state.list(&join_token_usages());
        let mut expires = false;
        for token in self.state.list(&join_tokens()).iter().filter(|token| token.phase == Phase::Running) {
            let Ok(spec) = token.decode::<JoinTokenSpec>() else { continue };
            let uses =
                |usage: &Resource| usage.decode::<JoinTokenUsageSpec>().is_ok_and(|spec| spec.token_id == token.id);
            let users: Vec<_> = usages.iter().filter(|usage| uses(usage)).map(|usage| usage.id.as_str()).collect();
            let end = spec.expiration_time.map(UnixTime::from);
            let state = if spec.revoked {
                Is::Revoked
            } else if end.is_some_and(|end| end < now) {
                Is::Expired
            } else {
                expires |= end.is_some();
                Is::Active
            };
            let status = JoinTokenStatusSpec {
                state: state.into(),
                is_default: default.as_deref() == Some(&token.id),
                use_count: users.len() as u64,
                expiration_time: spec.expiration_time,
                name: spec.name,
                warnings: users.iter().filter_map(|machine| self.warning(machine)).collect(),
            };
            let mut resource = Resource::new(join_token_statuses(), &token.id, &status);
            resource.owner = OWNER.to_owned();
            let _ = self.state.put(resource, |stored| stored.encode(&status));
        }
        for status in self.state.list(&join_token_statuses()) {
            if self.state.get(&join_tokens(), &status.id).is_err() {
                let _ = self.state.destroy(&status.kind, &status.id, &status.owner);
            }
        }
        expires
    }

    /// Why a machine would be lost with the token that it came with.
    fn warning(&self, machine: &str) -> Option<Warning> {
        let warning = |message: &str| Some(Warning { machine: machine.to_owned(), message: message.to_owned() });
        let own = self.state.get(&node_unique_tokens(), machine).ok();
        let own = own.and_then(|own| own.decode::<NodeUniqueTokenSpec>().ok()).unwrap_or_default();
        if UniqueToken::parse(&own.token).ok().flatten().is_none() {
            return warning("Does not have the node unique token");
        }
        let installed =
            self.state.get(&links(), machine).is_ok_and(|link| link.annotations.contains_key(FORCE_UNIQUE_TOKEN));
        if installed { None } else { warning("Talos is not installed so the generated node unique token is ephemeral") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_active_until_it_is_revoked_or_expires_and_counts_its_machines() {
        let tokens = JoinTokens { state: State::default() };
        let now = UnixTime::from_secs(1_700_000_000);
        let add = |id: &str, spec: JoinTokenSpec| {
            tokens.state.put(Resource::new(join_tokens(), id, &spec), |stored| stored.encode(&spec)).unwrap();
        };
        let status =
            |id: &str| tokens.state.get(&join_token_statuses(), id).unwrap().decode::<JoinTokenStatusSpec>().unwrap();
        add("a", JoinTokenSpec { name: "rack".into(), ..JoinTokenSpec::default() });
        assert!(!tokens.reconcile(now));
        add(
            "b",
            JoinTokenSpec { expiration_time: Some((now + Duration::from_secs(60)).into()), ..JoinTokenSpec::default() },
        );
        tokens
            .state
            .create(Resource::new(default_join_tokens(), "default", &DefaultJoinTokenSpec { token_id: "a".into() }), "")
            .unwrap();
        assert!(tokens.reconcile(now));
        assert!(is_active(&tokens.state, "a") && is_active(&tokens.state, "b") && !is_active(&tokens.state, "c"));
        assert!(status("a").is_default && !status("b").is_default && status("a").name == "rack");
        assert!(!tokens.reconcile(now + Duration::from_secs(61)));
        assert_eq!(status("b").state(), Is::Expired);
        add("a", JoinTokenSpec { revoked: true, name: "rack".into(), ..JoinTokenSpec::default() });
        for (machine, token) in [("m1", "a"), ("m2", "a"), ("m3", "b")] {
            let usage = JoinTokenUsageSpec { token_id: token.into() };
            tokens.state.create(Resource::new(join_token_usages(), machine, &usage), "").unwrap();
        }
        let own = NodeUniqueTokenSpec { token: r#"{"Fingerprint":"f","Token":"t"}"#.into() };
        tokens.state.create(Resource::new(node_unique_tokens(), "m2", &own), "").unwrap();
        tokens.reconcile(now);
        assert_eq!((status("a").state(), status("a").use_count, status("b").use_count), (Is::Revoked, 2, 1));
        let told: Vec<_> = status("a").warnings.into_iter().map(|warning| warning.message).collect();
        assert!(told.len() == 2 && told[0].starts_with("Does not have") && told[1].contains("ephemeral"), "{told:?}");
        let mut link = Resource::new(links(), "m2", &());
        link.annotations.insert(FORCE_UNIQUE_TOKEN.into(), String::new());
        tokens.state.create(link, "").unwrap();
        tokens.state.destroy(&join_tokens(), "b", "").unwrap();
        tokens.reconcile(now);
        assert_eq!(status("a").warnings.len(), 1);
        assert!(tokens.state.get(&join_token_statuses(), "b").is_err());
    }
}
