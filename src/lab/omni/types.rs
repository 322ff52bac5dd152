//! The types that the double knows: their namespaces, messages, aliases, and the columns in which they are listed.
//!
//! Pure. Source: contract omni-wire.md sections 3.8, 4.1 and 4.4.

use crate::proto::meta::resource_definition_spec::{PrintColumn, Sensitivity};
use crate::proto::meta::{NamespaceSpec, ResourceDefinitionSpec};
use crate::resource::{
    Kind, NAMESPACE_DEFAULT, NAMESPACE_INFRA_PROVIDER, NAMESPACE_INFRA_PROVIDER_EPHEMERAL, Resource,
};

/// The namespace of what Omni forgets.
pub const NAMESPACE_EPHEMERAL: &str = "ephemeral";
/// The namespace of definitions.
pub const NAMESPACE_META: &str = "meta";
/// The owner of definitions.
pub const META_OWNER: &str = "meta";

/// One type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    /// The type's name before its suffix, such as `InfraMachines`.
    pub name: &'static str,
    /// One of them, such as `InfraMachine`.
    pub display: &'static str,
    /// Where they live.
    pub namespace: &'static str,
    /// Full name of the spec's message.
    pub message: &'static str,
    /// Column titles and the paths of what stands in them.
    columns: &'static [(&'static str, &'static str)],
    sensitive: bool,
}

const fn of(
    name: &'static str,
    display: &'static str,
    namespace: &'static str,
    message: &'static str,
    columns: &'static [(&'static str, &'static str)],
) -> Type {
    Type { name, display, namespace, message, columns, sensitive: false }
}

const fn secret(name: &'static str, display: &'static str, namespace: &'static str, message: &'static str) -> Type {
    Type { name, display, namespace, message, columns: &[], sensitive: true }
}

const SHARED: &str = NAMESPACE_INFRA_PROVIDER;
const OMNI: &str = NAMESPACE_DEFAULT;

/// Every type.
pub const TYPES: [Type; 35] = [
    of("InfraProviders", "InfraProvider", SHARED, "specs.InfraProviderSpec", &[]),
    of(
        "InfraProviderStatuses",
        "InfraProviderStatus",
        SHARED,
        "specs.InfraProviderStatusSpec",
        &[("Name", "{.name}"), ("Description", "{.description}")],
    ),
    of(
        "InfraMachines",
        "InfraMachine",
        SHARED,
        "specs.InfraMachineSpec",
        &[
            ("Acceptance", "{.acceptancestatus}"),
            ("Preferred Power", "{.preferredpowerstate}"),
            ("Talos", "{.clustertalosversion}"),
        ],
    ),
    of(
        "InfraMachineStatuses",
        "InfraMachineStatus",
        SHARED,
        "specs.InfraMachineStatusSpec",
        &[("Power", "{.powerstate}"), ("Ready", "{.readytouse}"), ("Installed", "{.installed}")],
    ),
    of("InfraMachineRegistrations", "InfraMachineRegistration", SHARED, "specs.MachineRegistrationSpec", &[]),
    of("MachineRequests", "MachineRequest", SHARED, "specs.MachineRequestSpec", &[("Talos", "{.talosversion}")]),
    of(
        "MachineRequestStatuses",
        "MachineRequestStatus",
        SHARED,
        "specs.MachineRequestStatusSpec",
        &[("UUID", "{.id}"), ("Stage", "{.stage}"), ("Error", "{.error}")],
    ),
    of("ConfigPatchRequests", "ConfigPatchRequest", SHARED, "specs.ConfigPatchSpec", &[]),
    secret("ProviderJoinConfigs", "ProviderJoinConfig", SHARED, "specs.ProviderJoinConfigSpec"),
    secret("BMCConfigs", "BMCConfig", SHARED, "specs.BMCConfigSpec"),
    of(
        "InfraProviderHealthStatuses",
        "InfraProviderHealthStatus",
        NAMESPACE_INFRA_PROVIDER_EPHEMERAL,
        "specs.InfraProviderHealthStatusSpec",
        &[("Error", "{.error}")],
    ),
    of(
        "InfraProviderCombinedStatuses",
        "InfraProviderCombinedStatus",
        NAMESPACE_EPHEMERAL,
        "specs.InfraProviderCombinedStatusSpec",
        &[("Name", "{.name}"), ("Connected", "{.health.connected}"), ("Error", "{.health.error}")],
    ),
    of(
        "SysVersions",
        "SysVersion",
        NAMESPACE_EPHEMERAL,
        "specs.SysVersionSpec",
        &[("Version", "{.backendversion}"), ("API Version", "{.backendapiversion}")],
    ),
    of("Notifications", "Notification", NAMESPACE_EPHEMERAL, "specs.NotificationSpec", &[]),
    of("PendingMachines", "PendingMachine", NAMESPACE_EPHEMERAL, "specs.SiderolinkSpec", &[]),
    secret("PendingMachineStatuses", "PendingMachineStatus", NAMESPACE_EPHEMERAL, "specs.PendingMachineStatusSpec"),
    of(
        "InfraMachineConfigs",
        "InfraMachineConfig",
        OMNI,
        "specs.InfraMachineConfigSpec",
        &[("Acceptance", "{.acceptancestatus}"), ("Power", "{.powerstate}"), ("Cordoned", "{.cordoned}")],
    ),
    secret("InfraMachineBMCConfigs", "InfraMachineBMCConfig", OMNI, "specs.InfraMachineBMCConfigSpec"),
    of(
        "SiderolinkAPIConfigs",
        "SiderolinkAPIConfig",
        OMNI,
        "specs.SiderolinkAPIConfigSpec",
        &[("URL", "{.machineapiadvertisedurl}")],
    ),
    secret("ConnectionParams", "ConnectionParams", OMNI, "specs.ConnectionParamsSpec"),
    of("FeaturesConfigs", "FeaturesConfig", OMNI, "specs.FeaturesConfigSpec", &[]),
    of(
        "Machines",
        "Machine",
        OMNI,
        "specs.MachineSpec",
        &[("Address", "{.managementaddress}"), ("Connected", "{.connected}")],
    ),
    of("Links", "Link", OMNI, "specs.SiderolinkSpec", &[("Address", "{.nodesubnet}"), ("Connected", "{.connected}")]),
    of(
        "MachineRequestSets",
        "MachineRequestSet",
        OMNI,
        "specs.MachineRequestSetSpec",
        &[("Provider", "{.providerid}"), ("Machines", "{.machinecount}")],
    ),
    of(
        "MachineClasses",
        "MachineClass",
        OMNI,
        "specs.MachineClassSpec",
        &[("Provider", "{.autoprovision.providerid}")],
    ),
    of("ConfigPatches", "ConfigPatch", OMNI, "specs.ConfigPatchSpec", &[]),
    secret("JoinTokens", "JoinToken", OMNI, "specs.JoinTokenSpec"),
    secret("JoinTokenStatuses", "JoinTokenStatus", OMNI, "specs.JoinTokenStatusSpec"),
    secret("DefaultJoinTokens", "DefaultJoinToken", OMNI, "specs.DefaultJoinTokenSpec"),
    secret("JoinTokenUsages", "JoinTokenUsage", OMNI, "specs.JoinTokenUsageSpec"),
    secret("NodeUniqueTokens", "NodeUniqueToken", OMNI, "specs.NodeUniqueTokenSpec"),
    of("PublicKeys", "PublicKey", OMNI, "specs.PublicKeySpec", &[("Identity", "{.identity.email}")]),
    of("Users", "User", OMNI, "specs.UserSpec", &[("Role", "{.role}")]),
    of("Identities", "Identity", OMNI, "specs.IdentitySpec", &[("User", "{.userid}")]),
    of(
        "ResourceDefinitions",
        "ResourceDefinition",
        NAMESPACE_META,
        "cosi.resource.meta.ResourceDefinitionSpec",
        &[("Aliases", "{.aliases[:]}")],
    ),
];

/// `Namespaces.meta.cosi.dev`, which has the name of no other.
pub const NAMESPACES: Type = of(
    "Namespaces",
    "Namespace",
    NAMESPACE_META,
    "cosi.resource.meta.NamespaceSpec",
    &[("Description", "{.description}")],
);

impl Type {
    /// Everything that the double knows.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        TYPES.iter().chain(std::iter::once(&NAMESPACES))
    }

    /// The type called so, such as `InfraMachines.omni.sidero.dev`.
    pub fn find(r#type: &str) -> Option<&'static Self> {
        let (name, suffix) = r#type.split_once('.')?;
        Self::all().find(|known| known.name == name && known.suffix() == suffix)
    }

    const fn suffix(&self) -> &'static str {
        // By first letters, since constant functions cannot compare strings.
        match (self.namespace.as_bytes()[0], self.name.as_bytes()[0], self.name.as_bytes()[1]) {
            (b'm', ..) => "meta.cosi.dev",
            (_, b'S', b'y') => "system.sidero.dev",
            _ => "omni.sidero.dev",
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        Kind::new(self.namespace, format!("{}.{}", self.name, self.suffix()))
    }

    /// Its definition, for namespace `meta`.
    pub fn definition(&self) -> Resource {
        let (plural, singular) = (self.name.to_lowercase(), self.display.to_lowercase());
        let initials: String = self.display.chars().filter(char::is_ascii_uppercase).collect();
        let kind = self.kind();
        let mut all_aliases = vec![singular, plural, kind.r#type.to_lowercase()];
        all_aliases.dedup();
        // The initials of some are those of others; whoever is first in the table has them.
        let first =
            Self::all().find(|other| other.display.chars().filter(char::is_ascii_uppercase).eq(initials.chars()));
        let aliases: Vec<_> =
            if first == Some(self) && initials.len() > 1 { vec![initials.to_lowercase()] } else { Vec::new() };
        all_aliases.extend(aliases.iter().cloned());
        let columns = self.columns.iter();
        let spec = ResourceDefinitionSpec {
            resource_type: kind.r#type.clone(),
            display_type: self.display.to_owned(),
            default_namespace: self.namespace.to_owned(),
            aliases,
            all_aliases,
            print_columns: columns
                .map(|(name, path)| PrintColumn { name: (*name).to_owned(), json_path: (*path).to_owned() })
                .collect(),
            sensitivity: if self.sensitive { Sensitivity::Sensitive } else { Sensitivity::NonSensitive }.into(),
        };
        Resource::new(definitions(), kind.r#type.to_lowercase(), &spec)
    }
}

/// The kind of definitions.
pub fn definitions() -> Kind {
    Kind::new(NAMESPACE_META, "ResourceDefinitions.meta.cosi.dev")
}

/// The resources that describe a provider's private namespace, and the fixed ones.
pub fn namespace(name: &str) -> Resource {
    let description = match name {
        NAMESPACE_DEFAULT => "What Omni and its users keep",
        NAMESPACE_EPHEMERAL => "What Omni forgets when it restarts",
        NAMESPACE_META => "Definitions",
        NAMESPACE_INFRA_PROVIDER => "What Omni and its providers tell each other",
        NAMESPACE_INFRA_PROVIDER_EPHEMERAL => "Health of the providers",
        _ => "What one provider keeps",
    };
    Resource::new(NAMESPACES.kind(), name, &NamespaceSpec { description: description.to_owned() })
}

/// The namespaces that are always there.
pub const FIXED_NAMESPACES: [&str; 5] = [
    NAMESPACE_DEFAULT,
    NAMESPACE_EPHEMERAL,
    NAMESPACE_META,
    NAMESPACE_INFRA_PROVIDER,
    NAMESPACE_INFRA_PROVIDER_EPHEMERAL,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_type_has_a_message_that_renders_and_aliases_of_its_own() {
        let mut aliases = BTreeSet::new();
        for known in Type::all() {
            assert_eq!(Type::find(&known.kind().r#type), Some(known));
            assert!(crate::lab::omni::yaml::render(known.message, b"").is_ok(), "{}", known.message);
            let definition: ResourceDefinitionSpec = known.definition().decode().unwrap();
            for alias in definition.all_aliases {
                assert!(aliases.insert(alias.clone()), "{alias} twice");
            }
        }
        assert!(aliases.contains("inframachines") && aliases.contains("im"));
        assert_eq!(Type::find("InfraMachines.example.com"), None);
        assert_eq!(Type::find("SysVersions.system.sidero.dev").unwrap().namespace, NAMESPACE_EPHEMERAL);
    }
}
