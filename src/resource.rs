//! COSI resources as values: metadata, phases, and the kinds that a bare-metal provider reads or writes.
//!
//! Source: contracts omni-wire.md sections 3.1 and 4, bare-metal-provider.md section 7.9.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::proto::cosi;
use crate::time::UnixTime;

/// Where resources of one type live: `namespace` and `type`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Kind {
    /// COSI namespace.
    pub namespace: String,
    /// COSI type, such as `InfraMachines.omni.sidero.dev`.
    pub r#type: String,
}

impl Kind {
    /// A kind from its two names.
    pub fn new(namespace: impl Into<String>, r#type: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), r#type: r#type.into() }
    }

    /// A type of Omni's in the shared namespace `infra-provider`: `Kind::omni("InfraMachines")`.
    pub fn omni(name: &str) -> Self {
        Self::new(NAMESPACE_INFRA_PROVIDER, format!("{name}.omni.sidero.dev"))
    }

    /// A type of the provider `id`'s own: `Kind::private("MachineStatus", "bare-metal")`.
    pub fn private(name: &str, id: &str) -> Self {
        Self::new(format!("{NAMESPACE_INFRA_PROVIDER}:{id}"), format!("{name}.{id}.infraprovider.sidero.dev"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.r#type)
    }
}

/// Shared between Omni and all providers; Omni filters it by provider label.
pub const NAMESPACE_INFRA_PROVIDER: &str = "infra-provider";
/// Lost when Omni restarts; holds provider health alone.
pub const NAMESPACE_INFRA_PROVIDER_EPHEMERAL: &str = "infra-provider-ephemeral";
/// Omni's own types.
pub const NAMESPACE_DEFAULT: &str = "default";
/// The provider ID, on every shared resource.
pub const LABEL_INFRA_PROVIDER_ID: &str = "omni.sidero.dev/infra-provider-id";
/// Marks a provider of machines that outlive clusters; without it Omni ignores the machines.
pub const LABEL_IS_STATIC_INFRA_PROVIDER: &str = "omni.sidero.dev/is-static-infra-provider";

/// Whether a resource is in use or on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// In use.
    #[default]
    Running,
    /// To be destroyed once its finalizers are gone.
    TearingDown,
}

impl Phase {
    /// `running` or `tearingDown`, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::TearingDown => "tearingDown",
        }
    }

    /// The phase that `text` names, if it names one: the empty string does not.
    pub fn from_wire(text: &str) -> Option<Self> {
        match text {
            "running" => Some(Self::Running),
            "tearingDown" => Some(Self::TearingDown),
            _ => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One resource: metadata and the raw protobuf spec.
///
/// The spec stays raw, since a finalizer update of a read-only type must echo it octet for octet. `Debug` gives its size
/// alone, since specs hold BMC passwords and join tokens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Namespace and type.
    pub kind: Kind,
    /// ID within the kind; for most kinds here the machine's UUID.
    pub id: String,
    /// Stored version; `None` is COSI's `undefined`, a resource not stored yet.
    pub version: Option<u64>,
    /// The controller that owns it; empty for none.
    pub owner: String,
    /// Running or tearing down.
    pub phase: Phase,
    /// When it was created.
    pub created: UnixTime,
    /// When it was last updated.
    pub updated: UnixTime,
    /// Who must let go before it can be destroyed.
    pub finalizers: BTreeSet<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The protobuf spec, as received.
    pub spec: Bytes,
}

impl Resource {
    /// A running resource that is not stored yet.
    pub fn new(kind: Kind, id: impl Into<String>, spec: &impl prost::Message) -> Self {
        Self {
            kind,
            id: id.into(),
            version: None,
            owner: String::new(),
            phase: Phase::Running,
            created: UnixTime::default(),
            updated: UnixTime::default(),
            finalizers: BTreeSet::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec: Bytes::from(spec.encode_to_vec()),
        }
    }

    /// The spec as the message of its kind.
    ///
    /// # Errors
    ///
    /// What prost makes of octets that are no such message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, prost::DecodeError> {
        M::decode(self.spec.clone())
    }

    /// Replaces the spec.
    pub fn encode(&mut self, spec: &impl prost::Message) {
        self.spec = Bytes::from(spec.encode_to_vec());
    }
}

/// What the wire calls the version of a resource that is not stored yet.
const VERSION_UNDEFINED: &str = "undefined";

/// Why a resource off the wire is none. Source: contract omni-wire.md section 3.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedResource {
    /// There is no metadata.
    #[error("resource without metadata")]
    NoMetadata,
    /// The version is neither `undefined` nor a decimal number; the empty string is neither.
    #[error("version {0:?} is neither `undefined` nor a number")]
    Version(String),
    /// The phase is neither `running` nor `tearingDown`; the empty string is neither.
    #[error("phase {0:?} is neither `running` nor `tearingDown`")]
    Phase(String),
}

impl Resource {
    /// The resource that `wire` carries. A tombstone has version `undefined`, and its spec may be missing: it is empty then.
    ///
    /// The `yaml_spec` is dropped: Omni makes it anew for the types that it knows.
    ///
    /// # Errors
    ///
    /// [`MalformedResource`] names what breaks section 3.1 of the contract.
    pub fn from_wire(wire: cosi::Resource) -> Result<Self, MalformedResource> {
        let metadata = wire.metadata.ok_or(MalformedResource::NoMetadata)?;
        let version = match metadata.version.as_str() {
            VERSION_UNDEFINED => None,
            // u64's parser takes a leading plus sign, which no server sends.
            digits if digits.starts_with('+') => return Err(MalformedResource::Version(metadata.version)),
            digits => match digits.parse() {
                Ok(version) => Some(version),
                Err(_) => return Err(MalformedResource::Version(metadata.version)),
            },
        };
        let Some(phase) = Phase::from_wire(&metadata.phase) else {
            return Err(MalformedResource::Phase(metadata.phase));
        };
        Ok(Self {
            kind: Kind { namespace: metadata.namespace, r#type: metadata.r#type },
            id: metadata.id,
            version,
            owner: metadata.owner,
            phase,
            created: metadata.created.map(UnixTime::from).unwrap_or_default(),
            updated: metadata.updated.map(UnixTime::from).unwrap_or_default(),
            finalizers: metadata.finalizers.into_iter().collect(),
            labels: metadata.labels,
            annotations: metadata.annotations,
            // Copied, since it is a slice of the whole message: one resource of a bootstrap would keep all of it.
            spec: wire.spec.map(|spec| Bytes::copy_from_slice(&spec.proto_spec)).unwrap_or_default(),
        })
    }

    /// The resource as Omni takes it: metadata and spec present, `yaml_spec` empty.
    pub fn to_wire(&self) -> cosi::Resource {
        cosi::Resource {
            metadata: Some(cosi::Metadata {
                namespace: self.kind.namespace.clone(),
                r#type: self.kind.r#type.clone(),
                id: self.id.clone(),
                version: self.version.map_or_else(|| VERSION_UNDEFINED.to_owned(), |version| version.to_string()),
                owner: self.owner.clone(),
                phase: self.phase.as_str().to_owned(),
                created: Some(self.created.into()),
                updated: Some(self.updated.into()),
                finalizers: self.finalizers.iter().cloned().collect(),
                labels: self.labels.clone(),
                annotations: self.annotations.clone(),
            }),
            spec: Some(cosi::Spec { proto_spec: self.spec.clone(), yaml_spec: String::new() }),
        }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("kind", &format_args!("{}", self.kind))
            .field("id", &self.id)
            .field("version", &self.version)
            .field("owner", &self.owner)
            .field("phase", &self.phase)
            .field("created", &self.created)
            .field("updated", &self.updated)
            .field("finalizers", &self.finalizers)
            .field("labels", &self.labels)
            .field("annotations", &self.annotations)
            .field("spec", &format_args!("{} octets", self.spec.len()))
            .finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(version: &str, phase: &str) -> cosi::Resource {
        let metadata = cosi::Metadata { version: version.into(), phase: phase.into(), ..Default::default() };
        cosi::Resource { metadata: Some(metadata), spec: None }
    }

    #[test]
    fn the_version_is_undefined_or_a_number_and_never_empty() {
        assert_eq!(Resource::from_wire(wire("undefined", "running")).unwrap().version, None);
        assert_eq!(Resource::from_wire(wire("7", "running")).unwrap().version, Some(7));
        for bad in ["", "+7", "-1", "1.0", "Undefined", "18446744073709551616"] {
            assert_eq!(Resource::from_wire(wire(bad, "running")), Err(MalformedResource::Version(bad.into())));
        }
    }

    #[test]
    fn the_phase_is_one_of_two_words() {
        assert_eq!(Resource::from_wire(wire("1", "tearingDown")).unwrap().phase, Phase::TearingDown);
        for bad in ["", "Running", "teardown"] {
            assert_eq!(Resource::from_wire(wire("1", bad)), Err(MalformedResource::Phase(bad.into())));
        }
        assert_eq!(Resource::from_wire(cosi::Resource::default()), Err(MalformedResource::NoMetadata));
    }

    #[test]
    fn debug_shows_the_size_of_a_spec_and_not_its_content() {
        let mut resource = Resource::new(Kind::omni("BMCConfigs"), "m", &());
        resource.spec = Bytes::from_static(b"hunter2");
        let text = format!("{resource:?}");
        assert!(text.contains("7 octets") && !text.contains("hunter2"), "{text}");
    }

    prop_compose! {
        pub(crate) fn resources()(
            names in ("[a-z:-]{0,12}", "[A-Za-z.]{0,20}", "[a-z0-9-]{0,36}", "[A-Za-z.]{0,12}"),
            version in proptest::option::of(any::<u64>()), tearing_down: bool, created in 0..4_102_444_800_000_u64,
            updated in 0..4_102_444_800_000_u64,
            finalizers in proptest::collection::btree_set("[a-zA-Z.]{1,9}", 0..4),
            labels in proptest::collection::btree_map("[a-z/.]{1,9}", ".{0,9}", 0..4),
            annotations in proptest::collection::btree_map("[a-z/.]{1,9}", ".{0,9}", 0..4),
            spec in proptest::collection::vec(any::<u8>(), 0..40),
        ) -> Resource {
            Resource {
                kind: Kind::new(names.0, names.1), id: names.2, version, owner: names.3,
                phase: if tearing_down { Phase::TearingDown } else { Phase::Running },
                created: UnixTime::from_millis(created), updated: UnixTime::from_millis(updated),
                finalizers, labels, annotations, spec: spec.into(),
            }
        }
    }

    proptest! {
        #[test]
        fn a_resource_survives_the_wire(resource in resources()) {
            let octets = prost::Message::encode_to_vec(&resource.to_wire());
            let wire = <cosi::Resource as prost::Message>::decode(octets.as_slice()).unwrap();
            prop_assert_eq!(Resource::from_wire(wire).unwrap(), resource);
        }
    }
}
