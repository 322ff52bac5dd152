//! What a provider sees of Omni's resources, and which of them it may write. What people may is in [`super::role`].
//!
//! Source: contract omni-wire.md sections 4.1 and 4.2.

use super::role::Role;
use crate::resource::{
    Kind, LABEL_INFRA_PROVIDER_ID, NAMESPACE_DEFAULT, NAMESPACE_INFRA_PROVIDER, NAMESPACE_INFRA_PROVIDER_EPHEMERAL,
    Resource,
};

/// What a provider may do with a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Everything with what carries its label; the label is set by Omni on every write.
    Own,
    /// Everything with what carries its label, and only under its own ID.
    OwnId,
    /// Read what carries its label, and change nothing but its finalizers.
    Finalizers,
    /// Everything: the provider's private namespace.
    Private,
    /// Everything: a kind that people write.
    Write,
    /// Read everything.
    Read,
}

/// What the provider is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The account's provider has no `InfraProviders` resource.
    #[error("infra provider with name {0:?} is not registered in the system")]
    Unregistered(String),
    /// The kind is not for providers.
    #[error("failed to validate: insufficient role: {0} is not for infra providers")]
    Kind(Kind),
    /// The namespace is another provider's.
    #[error("infra provider {provider:?} is not allowed to access namespace {namespace:?}")]
    Namespace {
        /// Who asks.
        provider: String,
        /// For what.
        namespace: String,
    },
    /// A type in the private namespace lacks the provider's suffix.
    #[error("failed to validate: resource type {actual:?} must end in {suffix:?}")]
    Suffix {
        /// The type.
        actual: String,
        /// What it must end in.
        suffix: String,
    },
    /// The resource must be called as the provider is.
    #[error("failed to validate: resource ID must be {0:?}")]
    Id(String),
    /// The kind is not for accounts of this role.
    #[error("role {role} is not allowed to access {kind}")]
    Role {
        /// The caller's role.
        role: Role,
        /// What it asked for.
        kind: Kind,
    },
    /// The kind is not written by people.
    #[error("failed to validate: {0} resources are not allowed to be created/updated/destroyed by this role")]
    NotByRole(Kind),
    /// The kind is written by Omni alone.
    #[error("infra providers are not allowed to create/update/destroy {0} resources, except for their finalizers")]
    ReadOnly(Kind),
}

impl Denied {
    /// The gRPC code that goes with it.
    pub const fn code(&self) -> tonic::Code {
        match self {
            Self::Unregistered(_)
            | Self::Kind(_)
            | Self::Namespace { .. }
            | Self::Role { .. }
            | Self::NotByRole(_)
            | Self::ReadOnly(_) => tonic::Code::PermissionDenied,
            Self::Suffix { .. } | Self::Id(_) => tonic::Code::InvalidArgument,
        }
    }
}

impl Right {
    /// Whether `resource` exists for `provider`.
    pub fn sees(self, provider: &str, resource: &Resource) -> bool {
        match self {
            Self::Own | Self::OwnId | Self::Finalizers => {
                resource.labels.get(LABEL_INFRA_PROVIDER_ID).is_some_and(|label| label == provider)
            }
            Self::Private | Self::Write | Self::Read => true,
        }
    }

    /// Checks a Create, or completes it with the provider's label.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn create(self, provider: &str, resource: &mut Resource) -> Result<(), Denied> {
        match self {
            Self::Private | Self::Write => Ok(()),
            Self::OwnId if resource.id != provider => Err(Denied::Id(provider.to_owned())),
            Self::Own | Self::OwnId => {
                label(provider, resource);
                Ok(())
            }
            Self::Finalizers | Self::Read => Err(Denied::ReadOnly(resource.kind.clone())),
        }
    }

    /// Checks an Update of `stored`, which the provider sees, or completes it with the provider's label.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn update(self, provider: &str, stored: &Resource, resource: &mut Resource) -> Result<(), Denied> {
        match self {
            Self::Private | Self::Write => Ok(()),
            Self::Own | Self::OwnId => {
                label(provider, resource);
                Ok(())
            }
            Self::Finalizers if differs_in_finalizers_only(stored, resource) => Ok(()),
            Self::Finalizers | Self::Read => Err(Denied::ReadOnly(resource.kind.clone())),
        }
    }

    /// Checks a Destroy or Teardown.
    ///
    /// # Errors
    ///
    /// [`Denied`].
    pub fn destroy(self, kind: &Kind) -> Result<(), Denied> {
        match self {
            Self::Own | Self::OwnId | Self::Private | Self::Write => Ok(()),
            Self::Finalizers | Self::Read => Err(Denied::ReadOnly(kind.clone())),
        }
    }
}

/// What `provider` may do with `kind`; `registered` tells whether its `InfraProviders` resource exists.
///
/// # Errors
///
/// [`Denied`].
pub fn right(provider: &str, kind: &Kind, registered: impl FnOnce() -> bool) -> Result<Right, Denied> {
    let name = kind.r#type.strip_suffix(".omni.sidero.dev").unwrap_or(&kind.r#type);
    let right = match kind.namespace.as_str() {
        NAMESPACE_INFRA_PROVIDER => match name {
            "InfraProviderStatuses" => Right::OwnId,
            "InfraMachineStatuses" | "MachineRequestStatuses" | "ConfigPatchRequests" => Right::Own,
            "InfraMachines"
            | "MachineRequests"
            | "InfraMachineRegistrations"
            | "ProviderJoinConfigs"
            | "BMCConfigs"
            | "InfraProviders" => Right::Finalizers,
            _ => return Err(Denied::Kind(kind.clone())),
        },
        NAMESPACE_INFRA_PROVIDER_EPHEMERAL => match name {
            "InfraProviderHealthStatuses" => Right::OwnId,
            _ => return Err(Denied::Kind(kind.clone())),
        },
        NAMESPACE_DEFAULT => match name {
            "SiderolinkAPIConfigs" | "ConnectionParams" | "Machines" => Right::Read,
            "FeaturesConfigs" | "TalosVersions" | "TalosExtensions" | "KubernetesVersions" | "InstallationMedias" => {
                return Ok(Right::Read);
            }
            _ => return Err(Denied::Kind(kind.clone())),
        },
        "ephemeral" => match kind.r#type.as_str() {
            "SysVersions.system.sidero.dev" | "Notifications.omni.sidero.dev" => return Ok(Right::Read),
            _ => return Err(Denied::Kind(kind.clone())),
        },
        "meta" => return Ok(Right::Read),
        namespace => match namespace.strip_prefix("infra-provider:") {
            Some(id) if id == provider => {
                let suffix = format!(".{provider}.infraprovider.sidero.dev");
                if !kind.r#type.ends_with(&suffix) {
                    return Err(Denied::Suffix { actual: kind.r#type.clone(), suffix });
                }
                Right::Private
            }
            Some(_) => {
                return Err(Denied::Namespace { provider: provider.to_owned(), namespace: namespace.to_owned() });
            }
            None => return Err(Denied::Kind(kind.clone())),
        },
    };
    if registered() { Ok(right) } else { Err(Denied::Unregistered(provider.to_owned())) }
}

fn label(provider: &str, resource: &mut Resource) {
    resource.labels.insert(LABEL_INFRA_PROVIDER_ID.to_owned(), provider.to_owned());
}

/// Compares everything but version, finalizers and times. The spec must be equal octet for octet, which is stricter than
/// Omni, where two encodings of one message are equal; a client that echoes what it read passes both.
fn differs_in_finalizers_only(stored: &Resource, resource: &Resource) -> bool {
    stored.kind == resource.kind
        && stored.id == resource.id
        && stored.phase == resource.phase
        && stored.owner == resource.owner
        && stored.labels == resource.labels
        && stored.annotations == resource.annotations
        && stored.spec == resource.spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &Kind) -> Result<Right, Denied> {
        right("metal-1", kind, || true)
    }

    #[test]
    fn every_kind_has_the_right_that_the_contract_gives_it() {
        let default = |name: &str| Kind::new("default", format!("{name}.omni.sidero.dev"));
        for (kind, expected) in [
            (Kind::omni("InfraProviderStatuses"), Right::OwnId),
            (Kind::omni("InfraMachineStatuses"), Right::Own),
            (Kind::omni("InfraMachines"), Right::Finalizers),
            (Kind::omni("ProviderJoinConfigs"), Right::Finalizers),
            (Kind::private("MachineStatus", "metal-1"), Right::Private),
            (default("SiderolinkAPIConfigs"), Right::Read),
            (Kind::new("ephemeral", "SysVersions.system.sidero.dev"), Right::Read),
            (Kind::new("meta", "ResourceDefinitions.meta.cosi.dev"), Right::Read),
        ] {
            assert_eq!(of(&kind), Ok(expected), "{kind}");
        }
        for (kind, code) in [
            (default("Links"), tonic::Code::PermissionDenied),
            (Kind::omni("Nonsense"), tonic::Code::PermissionDenied),
            (Kind::private("MachineStatus", "other"), tonic::Code::PermissionDenied),
            (
                Kind::new("infra-provider:metal-1", "MachineStatus.other.infraprovider.sidero.dev"),
                tonic::Code::InvalidArgument,
            ),
        ] {
            assert_eq!(of(&kind).unwrap_err().code(), code, "{kind}");
        }
    }

    #[test]
    fn a_provider_that_is_not_registered_reads_nothing_of_its_own() {
        let denied = right("metal-1", &Kind::omni("InfraMachines"), || false).unwrap_err();
        assert_eq!(denied.to_string(), "infra provider with name \"metal-1\" is not registered in the system");
        assert!(right("metal-1", &Kind::new("meta", "Namespaces.meta.cosi.dev"), || false).is_ok());
    }

    #[test]
    fn only_finalizers_of_a_read_only_kind_may_change() {
        let stored =
            Resource::new(Kind::omni("InfraMachines"), "a", &crate::proto::cosi::IdQuery { regexp: "x".into() });
        let mut resource = stored.clone();
        resource.finalizers.insert("metal-1".into());
        assert_eq!(Right::Finalizers.update("metal-1", &stored, &mut resource), Ok(()));
        for spoil in [
            (|r: &mut Resource| r.spec = Default::default()) as fn(&mut Resource),
            |r| drop(r.labels.insert("a".into(), "b".into())),
            |r| r.phase = crate::resource::Phase::TearingDown,
            |r| r.owner = "me".into(),
        ] {
            let mut spoilt = resource.clone();
            spoil(&mut spoilt);
            assert!(Right::Finalizers.update("metal-1", &stored, &mut spoilt).is_err());
        }
        assert!(Right::Finalizers.destroy(&stored.kind).is_err());
        assert!(Right::Finalizers.create("metal-1", &mut resource).is_err());
    }
}
