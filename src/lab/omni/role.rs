//! Who an account is, and what its role lets it see and change.
//!
//! Pure. Source: contract omni-wire.md sections 2.5, 2.7 and 4.2.

use std::fmt;
use std::sync::Arc;

use super::types::{NAMESPACE_EPHEMERAL, NAMESPACE_META};
use super::view::{Denied, Right};
use crate::resource::{Kind, NAMESPACE_DEFAULT, NAMESPACE_INFRA_PROVIDER};

/// What precedes a provider's ID in the name of its service account.
pub const PROVIDER_PREFIX: &str = "infra-provider:";

/// At the end of the e-mail address of a provider's account.
const PROVIDER_MAIL: &str = "@infra-provider.serviceaccount.omni.sidero.dev";
/// At the end of the e-mail address of a program's account.
const SERVICE_ACCOUNT_MAIL: &str = "@serviceaccount.omni.sidero.dev";

/// What an account may do; each role may what those before it may, but for `InfraProvider`, which has a view of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing.
    None,
    /// What a provider may.
    InfraProvider,
    /// Read.
    Reader,
    /// Read, logs of what others did included.
    Auditor,
    /// Run machines and clusters.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    const ALL: [Self; 6] = [Self::None, Self::InfraProvider, Self::Reader, Self::Auditor, Self::Operator, Self::Admin];

    /// The role of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::InfraProvider => "InfraProvider",
            Self::Reader => "Reader",
            Self::Auditor => "Auditor",
            Self::Operator => "Operator",
            Self::Admin => "Admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A provider, by its ID.
    Provider(Arc<str>),
    /// A person, or a program that stands for one.
    Person {
        /// The account's name.
        name: Arc<str>,
        /// What it may do.
        role: Role,
    },
}

impl Identity {
    /// The account called `name`, whose role is `role` unless the name is a provider's.
    pub fn of_account(name: &str, role: Role) -> Self {
        match name.strip_prefix(PROVIDER_PREFIX) {
            Some(id) => Self::Provider(id.into()),
            None => Self::Person { name: name.into(), role },
        }
    }

    /// Whoever has this e-mail address and `role`. A provider is one by its address, as long as its role is a provider's.
    pub fn of_email(email: &str, role: Role) -> Self {
        match email.strip_suffix(PROVIDER_MAIL) {
            Some(id) if role == Role::InfraProvider => Self::Provider(id.into()),
            _ => Self::Person { name: email.strip_suffix(SERVICE_ACCOUNT_MAIL).unwrap_or(email).into(), role },
        }
    }

    /// The account's name: a provider's has its prefix.
    pub fn account_name(&self) -> String {
        match self {
            Self::Provider(id) => format!("{PROVIDER_PREFIX}{id}"),
            Self::Person { name, .. } => name.to_string(),
        }
    }

    /// The e-mail address that Omni knows the account by.
    pub fn email(&self) -> String {
        match self {
            Self::Provider(id) => format!("{id}{PROVIDER_MAIL}"),
            // A person who logs in is called by the address.
            Self::Person { name, .. } if name.contains('@') => name.to_string(),
            Self::Person { name, .. } => format!("{name}{SERVICE_ACCOUNT_MAIL}"),
        }
    }

    /// Its role.
    pub const fn role(&self) -> Role {
        match self {
            Self::Provider(_) => Role::InfraProvider,
            Self::Person { role, .. } => *role,
        }
    }

    /// What the account is while it is suspended: a reader, whatever it was.
    #[must_use]
    pub fn suspended(&self) -> Self {
        Self::Person { name: self.account_name().into(), role: Role::Reader }
    }
}

/// What a person of `role` may do with `kind`.
///
/// # Errors
///
/// [`Denied::Role`].
pub fn right(role: Role, kind: &Kind) -> Result<Right, Denied> {
    let at_least = |least: Role, right: Right| {
        if role >= least { Ok(right) } else { Err(Denied::Role { role, kind: kind.clone() }) }
    };
    let write_from = |least: Role| at_least(least, Right::Write).or_else(|_| at_least(Role::Reader, Right::Read));
    let name = kind.r#type.strip_suffix(".omni.sidero.dev").unwrap_or(&kind.r#type);
    match (kind.namespace.as_str(), name) {
        (NAMESPACE_META, _) | (NAMESPACE_EPHEMERAL, "SysVersions.system.sidero.dev" | "Notifications") => {
            Ok(Right::Read)
        }
        (
            NAMESPACE_DEFAULT,
            "FeaturesConfigs" | "TalosVersions" | "TalosExtensions" | "KubernetesVersions" | "InstallationMedias",
        ) => Ok(Right::Read),
        (NAMESPACE_INFRA_PROVIDER, "BMCConfigs") => at_least(Role::Admin, Right::Read),
        (NAMESPACE_INFRA_PROVIDER, "InfraProviders") => write_from(Role::Admin),
        (NAMESPACE_INFRA_PROVIDER, "MachineRequests") => write_from(Role::Operator),
        (NAMESPACE_DEFAULT, "InfraMachineBMCConfigs" | "JoinTokens" | "DefaultJoinTokens") => {
            at_least(Role::Admin, Right::Write)
        }
        (NAMESPACE_DEFAULT, "JoinTokenUsages" | "NodeUniqueTokens") => at_least(Role::Admin, Right::Read),
        (NAMESPACE_DEFAULT, "InfraMachineConfigs" | "MachineRequestSets" | "MachineClasses" | "ConfigPatches") => {
            write_from(Role::Operator)
        }
        _ => at_least(Role::Reader, Right::Read),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_and_each_may_what_the_contract_says() {
        let default = |name: &str| Kind::new("default", format!("{name}.omni.sidero.dev"));
        for (role, kind, expected) in [
            (Role::Admin, Kind::omni("InfraProviders"), Some(Right::Write)),
            (Role::Operator, Kind::omni("InfraProviders"), Some(Right::Read)),
            (Role::Operator, Kind::omni("MachineRequests"), Some(Right::Write)),
            (Role::Admin, Kind::omni("InfraMachines"), Some(Right::Read)),
            (Role::Operator, Kind::omni("BMCConfigs"), None),
            (Role::Admin, Kind::omni("BMCConfigs"), Some(Right::Read)),
            (Role::Operator, default("InfraMachineConfigs"), Some(Right::Write)),
            (Role::Reader, default("InfraMachineConfigs"), Some(Right::Read)),
            (Role::Reader, Kind::private("BMCConfiguration", "metal-1"), Some(Right::Read)),
            (Role::None, Kind::omni("InfraMachines"), None),
            (Role::None, Kind::new("ephemeral", "SysVersions.system.sidero.dev"), Some(Right::Read)),
            (Role::None, default("FeaturesConfigs"), Some(Right::Read)),
            (Role::None, default("Machines"), None),
        ] {
            assert_eq!(right(role, &kind).ok(), expected, "{role} {kind}");
        }
        assert!(Role::Admin > Role::Operator && Role::Reader > Role::InfraProvider);
        assert_eq!(Role::find("Operator"), Some(Role::Operator));
    }

    #[test]
    fn a_suspended_provider_is_a_reader() {
        let provider = Identity::of_account("infra-provider:metal-1", Role::InfraProvider);
        assert_eq!(provider.email(), "metal-1@infra-provider.serviceaccount.omni.sidero.dev");
        assert_eq!(provider.suspended().role(), Role::Reader);
    }

    #[test]
    fn an_address_tells_who_it_is() {
        for (name, role) in [
            ("infra-provider:metal-1", Role::InfraProvider),
            ("automation", Role::Admin),
            ("alice@example.com", Role::Reader),
        ] {
            let identity = Identity::of_account(name, role);
            assert_eq!(Identity::of_email(&identity.email(), role), identity);
        }
        let demoted = Identity::of_email("metal-1@infra-provider.serviceaccount.omni.sidero.dev", Role::None);
        assert!(matches!(demoted, Identity::Person { role: Role::None, .. }));
    }
}
