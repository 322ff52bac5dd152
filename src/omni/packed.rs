//! A resource as the mirror holds it: octets in one allocation, decoded for each reader.
//!
//! The maps and strings of a decoded resource take six times its octets, and most resources of a rack are read once an
//! hour. Kind and ID are left out: the mirror's tables are sorted by them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

use crate::resource::{Kind, Phase, Resource};
use crate::time::UnixTime;

/// Orders the states of one ID: incarnations by their creation, then versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    pub created: UnixTime,
    pub version: u64,
}

impl Age {
    pub fn of(resource: &Resource) -> Self {
        Self::new(resource.created, resource.version)
    }

    fn new(created: UnixTime, version: Option<u64>) -> Self {
        Self { created, version: version.unwrap_or(0) }
    }
}

/// One resource without its kind and ID. Equal octets are equal resources: sets and maps are written in order.
///
/// The octets hold secrets where the spec does; `Debug` gives their number alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

/// What leads the octets, so that two states can be told apart without decoding the rest.
struct Head {
    created: UnixTime,
    version: Option<u64>,
}

/// What follows: owner, phase, updated, finalizers, labels, annotations, spec.
#[derive(serde::Deserialize)]
struct Body {
    owner: String,
    phase: Phase,
    updated: UnixTime,
    finalizers: BTreeSet<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Bytes,
}

impl Packed {
    /// The resource, packed.
    pub fn of(resource: &Resource) -> Self {
        let Resource { kind: _, id: _, version, owner, phase, created, updated, .. } = resource;
        let Resource { finalizers, labels, annotations, spec, .. } = resource;
        let octets =
            postcard::to_stdvec(&((created, version), (owner, phase, updated, finalizers, labels, annotations, spec)));
        Self(octets.expect("writing strings and numbers to a vector cannot fail").into_boxed_slice())
    }

    pub(super) fn age(&self) -> Age {
        let (Head { created, version }, _) = self.head();
        Age::new(created, version)
    }

    /// The resource `id` of `kind` that was packed.
    pub fn unpack(&self, kind: &Kind, id: &str) -> Resource {
        let (Head { created, version }, rest) = self.head();
        let body = postcard::from_bytes::<Body>(rest).expect("these octets were written by `of`");
        let Body { owner, phase, updated, finalizers, labels, annotations, spec } = body;
        let (kind, id) = (kind.clone(), id.to_owned());
        Resource { kind, id, version, owner, phase, created, updated, finalizers, labels, annotations, spec }
    }

    fn head(&self) -> (Head, &[u8]) {
        let ((created, version), rest) = postcard::take_from_bytes(&self.0).expect("these octets were written by `of`");
        (Head { created, version }, rest)
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} octets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resource::tests::resources;

    proptest! {
        #[test]
        fn a_packed_resource_is_the_resource_and_its_age(resource in resources(), other in resources()) {
            let packed = Packed::of(&resource);
            prop_assert_eq!(&packed.unpack(&resource.kind, &resource.id), &resource);
            prop_assert_eq!(packed.age(), Age::of(&resource));
            let same = other == Resource { kind: other.kind.clone(), id: other.id.clone(), ..resource.clone() };
            prop_assert_eq!(packed == Packed::of(&other), same);
        }

        #[test]
        fn any_difference_shows(resource in resources(), which in 0..8_u8) {
            let mut other = resource.clone();
            match which {
                0 => other.version = Some(other.version.map_or(0, |version| version ^ 1)),
                1 => other.owner.push('x'),
                2 => other.phase = if other.phase == Phase::Running { Phase::TearingDown } else { Phase::Running },
                3 => other.updated = UnixTime::from_millis(1),
                4 => drop(other.finalizers.insert("new one".into())),
                5 => drop(other.labels.insert("new one".into(), String::new())),
                6 => drop(other.annotations.insert("new one".into(), String::new())),
                _ => other.spec = [&other.spec[..], &[0]].concat().into(),
            }
            prop_assert_ne!(Packed::of(&other), Packed::of(&resource));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut resource = Resource::new(Kind::omni("BMCConfigs"), "m", &());
        resource.spec = Bytes::from_static(b"hunter2");
        let text = format!("{:?}", Packed::of(&resource));
        assert!(text.starts_with("Packed(") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_machine_of_a_cluster_is_held_in_fewer_octets_than_it_came_in() {
        let spec = crate::proto::specs::InfraMachineSpec { wipe_id: "w".into(), ..Default::default() };
        let mut resource = Resource::new(Kind::omni("InfraMachines"), "4c4c4544-0042-3510-8054-b7c04f333132", &spec);
        resource.labels.insert("omni.sidero.dev/cluster".into(), "production".into());
        let wire = prost::Message::encoded_len(&resource.to_wire());
        assert!(Packed::of(&resource).0.len() < wire, "{} of {wire}", Packed::of(&resource).0.len());
    }
}
