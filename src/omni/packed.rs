//! A resource as the mirror holds it: octets, decoded for each reader, and many resources to an allocation.
//!
//! The maps and strings of a decoded resource take six times its octets, and most resources of a rack are read once an
//! hour. Kind and ID are left out: the mirror's tables are sorted by them. A whole kind that comes in is written to large
//! blocks: seventy thousand small allocations, made between those of the calls that brought them, would keep as much
//! memory again from being given back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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

/// A block is closed when it has this many octets or more.
const BLOCK: usize = 256 * 1024;

/// One resource without its kind and ID. Equal octets are equal resources: sets and maps are written in order.
///
/// The octets hold secrets where the spec does; `Debug` gives their number alone.
#[derive(Clone)]
pub struct Packed {
    /// Shared with the others that were packed together.
    block: Arc<Box<[u8]>>,
    at: u32,
    length: u32,
}

/// Resources that are packed together, in the order in which they came.
#[derive(Default)]
pub struct Packing {
    closed: Vec<Arc<Box<[u8]>>>,
    open: Vec<u8>,
    places: Vec<Place>,
}

/// Where one resource of a [`Packing`] is.
struct Place {
    block: usize,
    id: Range<u32>,
    /// None when it went again.
    resource: Option<Range<u32>>,
}

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
    /// The resource, packed alone.
    pub fn of(resource: &Resource) -> Self {
        let octets: Box<[u8]> = pack(resource, Vec::new()).into();
        // Omni's messages have 32 MiB at most.
        let length = u32::try_from(octets.len()).expect("a resource came in one message");
        Self { block: Arc::new(octets), at: 0, length }
    }

    fn part(block: &Arc<Box<[u8]>>, range: &Range<u32>) -> Self {
        Self { block: Arc::clone(block), at: range.start, length: range.end - range.start }
    }

    fn octets(&self) -> &[u8] {
        let at = self.at as usize;
        &self.block[at..at + self.length as usize]
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
        let ((created, version), rest) =
            postcard::take_from_bytes(self.octets()).expect("these octets were written by `of`");
        (Head { created, version }, rest)
    }
}

/// The octets of `resource`, added to `octets`.
fn pack(resource: &Resource, octets: Vec<u8>) -> Vec<u8> {
    let Resource { kind: _, id: _, version, owner, phase, created, updated, .. } = resource;
    let Resource { finalizers, labels, annotations, spec, .. } = resource;
    let written = postcard::to_extend(
        &((created, version), (owner, phase, updated, finalizers, labels, annotations, spec)),
        octets,
    );
    written.expect("writing strings and numbers to a vector cannot fail")
}

impl Packing {
    /// `resource` came in: it takes the place of an earlier one of its ID.
    pub fn put(&mut self, resource: &Resource) {
        let id = self.add(|octets| octets.extend_from_slice(resource.id.as_bytes()));
        let resource = self.add(|octets| *octets = pack(resource, std::mem::take(octets)));
        self.place(id, Some(resource));
    }

    /// The resource `id` went.
    pub fn remove(&mut self, id: &str) {
        let id = self.add(|octets| octets.extend_from_slice(id.as_bytes()));
        self.place(id, None);
    }

    /// How many came and went.
    pub fn came(&self) -> usize {
        self.places.len()
    }

    /// All that came and did not go, by ID.
    pub fn finish(mut self) -> BTreeMap<Arc<str>, Packed> {
        self.close();
        let mut contents = BTreeMap::new();
        for Place { block, id, resource } in self.places {
            let block = &self.closed[block];
            let id = std::str::from_utf8(&block[id.start as usize..id.end as usize]).expect("it was written as text");
            match resource {
                None => drop(contents.remove(id)),
                Some(resource) => drop(contents.insert(Arc::from(id), Packed::part(block, &resource))),
            }
        }
        contents
    }

    /// The same resources, in their order, packed together.
    pub fn anew<'a>(resources: impl IntoIterator<Item = &'a Packed>) -> Vec<Packed> {
        let mut packing = Self::default();
        for packed in resources {
            let resource = packing.add(|octets| octets.extend_from_slice(packed.octets()));
            packing.place(0..0, Some(resource));
        }
        packing.close();
        let Self { closed, places, .. } = packing;
        let packed = |place: Place| Some(Packed::part(&closed[place.block], &place.resource?));
        places.into_iter().filter_map(packed).collect()
    }

    /// Where what `write` adds is.
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Range<u32> {
        // A block holds BLOCK octets and one resource at most.
        let end = |octets: &Vec<u8>| u32::try_from(octets.len()).expect("a resource came in one message");
        let start = end(&self.open);
        write(&mut self.open);
        start..end(&self.open)
    }

    fn place(&mut self, id: Range<u32>, resource: Option<Range<u32>>) {
        self.places.push(Place { block: self.closed.len(), id, resource });
        if self.open.len() >= BLOCK {
            self.close();
        }
    }

    fn close(&mut self) {
        self.closed.push(Arc::new(std::mem::take(&mut self.open).into_boxed_slice()));
    }
}

impl PartialEq for Packed {
    fn eq(&self, other: &Self) -> bool {
        self.octets() == other.octets()
    }
}

impl Eq for Packed {}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} octets)", self.length)
    }
}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packing({} resources)", self.places.len())
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

    proptest! {
        #[test]
        fn what_is_packed_together_is_what_a_map_would_hold(
            news in proptest::collection::vec((resources(), 0..4_u8, any::<bool>()), 0..40),
            padding in 0..BLOCK,
        ) {
            let mut expected = BTreeMap::new();
            let mut packing = Packing::default();
            for (place, (mut resource, id, goes)) in news.into_iter().enumerate() {
                resource.id = format!("m{id}");
                if place % 8 == 0 {
                    resource.spec = vec![1; padding].into();
                }
                if goes {
                    packing.remove(&resource.id);
                    expected.remove(resource.id.as_str());
                } else {
                    packing.put(&resource);
                    expected.insert(Arc::from(resource.id.as_str()), Packed::of(&resource));
                }
            }
            let contents = packing.finish();
            prop_assert_eq!(&contents, &expected);
            prop_assert!(Packing::anew(contents.values()).into_iter().eq(expected.into_values()));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut resource = Resource::new(Kind::omni("BMCConfigs"), "m", &());
        resource.spec = Bytes::from_static(b"hunter2");
        let text = format!("{:?}", Packed::of(&resource));
        assert!(text.starts_with("Packed(") && !text.contains("hunter2"), "{text}");
        let mut packing = Packing::default();
        packing.put(&resource);
        assert_eq!(format!("{packing:?}"), "Packing(1 resources)");
    }

    #[test]
    fn a_machine_of_a_cluster_is_held_in_fewer_octets_than_it_came_in() {
        let spec = crate::proto::specs::InfraMachineSpec { wipe_id: "w".into(), ..Default::default() };
        let mut resource = Resource::new(Kind::omni("InfraMachines"), "4c4c4544-0042-3510-8054-b7c04f333132", &spec);
        resource.labels.insert("omni.sidero.dev/cluster".into(), "production".into());
        let wire = prost::Message::encoded_len(&resource.to_wire());
        let octets = Packed::of(&resource).octets().len();
        assert!(octets < wire, "{octets} of {wire}");
    }
}
