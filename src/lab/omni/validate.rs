//! What Omni checks about a resource's contents before it stores it.
//!
//! Pure. Source: contract omni-wire.md sections 2.7, 4.4 and 5.5.

use crate::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use crate::proto::specs::{InfraMachineConfigSpec, MachineClassSpec, MachineRequestSpec};
use crate::resource::Resource;

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
    #[error("failed to validate: machine class {class} cannot use the static infra provider {provider:?}")]
    StaticProvider {
        /// The class.
        class: String,
        /// Whom it names.
        provider: String,
    },
    /// An accepted machine stays accepted.
    #[error("failed to validate: machine {0} was accepted already")]
    Accepted(String),
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
        _ => Ok(()),
    }
}

/// Checks what is to replace `stored`.
///
/// # Errors
///
/// [`Invalid`].
pub fn update(stored: &Resource, resource: &Resource) -> Result<(), Invalid> {
    match name(resource) {
        "MachineRequests" if stored.spec != resource.spec => Err(Invalid::Immutable(resource.id.clone())),
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

/// Checks a machine class that is to be stored, among others: `is_static` tells which providers only have what stands there.
/// Omni also checks `provider_data` against the provider's JSON schema, which this double does not.
///
/// # Errors
///
/// [`Invalid`].
pub fn machine_class(resource: &Resource, is_static: impl FnOnce(&str) -> bool) -> Result<(), Invalid> {
    if name(resource) != "MachineClasses" {
        return Ok(());
    }
    let spec: MachineClassSpec = resource.decode().map_err(|_| Invalid::Spec(resource.id.clone()))?;
    match spec.auto_provision {
        Some(provision) if is_static(&provision.provider_id) => {
            Err(Invalid::StaticProvider { class: resource.id.clone(), provider: provision.provider_id })
        }
        _ => Ok(()),
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
        let class = |provider: &str| {
            let provision = machine_class_spec::Provision { provider_id: provider.into(), ..Default::default() };
            let spec = MachineClassSpec { auto_provision: Some(provision), ..MachineClassSpec::default() };
            Resource::new(Kind::new("default", "MachineClasses.omni.sidero.dev"), "large", &spec)
        };
        assert!(machine_class(&class("virtual"), |provider| provider == "metal").is_ok());
        assert!(machine_class(&class("metal"), |provider| provider == "metal").is_err());
        assert!(machine_class(&request("1.11.0"), |_| true).is_ok());
        let config = |status: AcceptanceStatus| {
            let mut spec = InfraMachineConfigSpec::default();
            spec.set_acceptance_status(status);
            Resource::new(Kind::new("default", "InfraMachineConfigs.omni.sidero.dev"), "u", &spec)
        };
        let (accepted, rejected) = (config(AcceptanceStatus::Accepted), config(AcceptanceStatus::Rejected));
        assert!(update(&rejected, &accepted).is_ok() && update(&accepted, &rejected).is_err());
    }
}
