//! Resources and events as COSI's protobuf messages.
//!
//! Source: contract omni-wire.md sections 3.1, 3.4 and 3.7.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::collection::Stored;
use super::types::Type;
use super::yaml;
use crate::proto::cosi;
use crate::resource::{Kind, Phase, Resource};

/// More labels, or annotations, than this has no resource.
const MAX_ENTRIES: usize = 256;

/// Why a message is no resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No metadata.
    #[error("metadata is missing")]
    NoMetadata,
    /// No spec message, not even an empty one.
    #[error("spec is missing")]
    NoSpec,
    /// Neither `undefined` nor a number.
    #[error("invalid version {0:?}")]
    Version(String),
    /// Neither `running` nor `tearingDown`.
    #[error("invalid phase {0:?}")]
    Phase(String),
}

/// Metadata beyond Omni's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Empty, longer than 1024 bytes, or with control characters.
    #[error("failed to validate: resource ID must have 1 to 1024 bytes and no control characters")]
    Id,
    /// More than 256 labels or annotations.
    #[error("failed to validate: more than 256 labels or annotations")]
    Count,
    /// Empty, longer than 1024 bytes, or with control characters.
    #[error("failed to validate: keys of labels and annotations must have 1 to 1024 bytes and no control characters")]
    Key,
    /// Longer than 16384 bytes, or with control characters.
    #[error("failed to validate: values of labels and annotations have at most 16384 bytes and no control characters")]
    Value,
}

/// Reads a phase.
///
/// # Errors
///
/// [`Malformed::Phase`].
pub fn phase(text: &str) -> Result<Phase, Malformed> {
    [Phase::Running, Phase::TearingDown]
        .into_iter()
        .find(|phase| phase.as_str() == text)
        .ok_or_else(|| Malformed::Phase(text.to_owned()))
}

/// Reads a resource, with the human view of a spec that only its writer can read.
///
/// # Errors
///
/// [`Malformed`].
pub fn stored(message: cosi::Resource) -> Result<Stored, Malformed> {
    let metadata = message.metadata.ok_or(Malformed::NoMetadata)?;
    let spec = message.spec.ok_or(Malformed::NoSpec)?;
    let version = match metadata.version.as_str() {
        "undefined" => None,
        // Go's unsigned numbers have no sign.
        number if number.starts_with('+') => return Err(Malformed::Version(number.to_owned())),
        number => Some(number.parse().map_err(|_| Malformed::Version(number.to_owned()))?),
    };
    let known = Type::find(&metadata.r#type).is_some();
    let yaml = if known { Arc::default() } else { spec.yaml_spec.into() };
    let resource = Resource {
        kind: Kind::new(metadata.namespace, metadata.r#type),
        id: metadata.id,
        version,
        owner: metadata.owner,
        phase: phase(&metadata.phase)?,
        created: metadata.created.unwrap_or_default().into(),
        updated: metadata.updated.unwrap_or_default().into(),
        finalizers: metadata.finalizers.into_iter().collect(),
        labels: metadata.labels,
        annotations: metadata.annotations,
        spec: spec.proto_spec,
    };
    Ok(Stored { resource, yaml })
}

/// Writes a resource, with the human view of its spec: made anew for a type that Omni knows, else as its writer sent it.
pub fn message(stored: &Stored) -> cosi::Resource {
    let yaml_spec = match Type::find(&stored.kind.r#type) {
        Some(known) => yaml::render(known.message, &stored.spec).unwrap_or_default(),
        None => stored.yaml.to_string(),
    };
    with_yaml(stored, yaml_spec)
}

fn with_yaml(resource: &Resource, yaml_spec: String) -> cosi::Resource {
    cosi::Resource {
        metadata: Some(cosi::Metadata {
            namespace: resource.kind.namespace.clone(),
            r#type: resource.kind.r#type.clone(),
            id: resource.id.clone(),
            version: resource.version.map_or_else(|| "undefined".to_owned(), |version| version.to_string()),
            owner: resource.owner.clone(),
            phase: resource.phase.as_str().to_owned(),
            created: Some(resource.created.into()),
            updated: Some(resource.updated.into()),
            finalizers: resource.finalizers.iter().cloned().collect(),
            labels: resource.labels.clone(),
            annotations: resource.annotations.clone(),
        }),
        spec: Some(cosi::Spec { proto_spec: resource.spec.clone(), yaml_spec }),
    }
}

/// What stands for an absent resource, and in BOOTSTRAPPED, with an empty ID, for none: metadata and an empty spec.
pub fn tombstone(kind: &Kind, id: &str) -> cosi::Resource {
    with_yaml(&Resource::new(kind.clone(), id, &crate::proto::specs::InfraProviderSpec {}), String::new())
}

/// Checks Omni's limits on metadata. What stands in `stored`, which the resource is to replace, may stay as it is.
///
/// # Errors
///
/// [`Excess`].
///
/// Source: contract omni-wire.md section 3.7.
pub fn check_limits(resource: &Resource, stored: Option<&Resource>) -> Result<(), Excess> {
    let named = |text: &str| (1..=1024).contains(&text.len()) && !text.chars().any(char::is_control);
    if stored.is_none() && !named(&resource.id) {
        return Err(Excess::Id);
    }
    let before = stored.map(|stored| [&stored.labels, &stored.annotations]);
    for (index, map) in [&resource.labels, &resource.annotations].into_iter().enumerate() {
        let before = before.map(|maps| maps[index]);
        if map.len() > before.map_or(0, BTreeMap::len).max(MAX_ENTRIES) {
            return Err(Excess::Count);
        }
        for (key, value) in map {
            if before.is_some_and(|before| before.get(key) == Some(value)) {
                continue;
            }
            if !named(key) {
                return Err(Excess::Key);
            }
            if value.len() > 16_384 || value.chars().any(char::is_control) {
                return Err(Excess::Value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_survives_the_wire_and_half_a_message_is_refused() {
        let mut original = Resource::new(Kind::private("Thing", "p"), "a", &cosi::IdQuery { regexp: "x".into() });
        original.version = Some(7);
        original.labels.insert("k".into(), "v".into());
        let original = Stored { resource: original, yaml: "regexp: x".into() };
        let sent = message(&original);
        assert_eq!(stored(sent.clone()).unwrap(), original);
        assert_eq!(stored(cosi::Resource { metadata: None, ..sent.clone() }), Err(Malformed::NoMetadata));
        assert_eq!(stored(cosi::Resource { spec: None, ..sent.clone() }), Err(Malformed::NoSpec));
        for version in ["", "+7", "-7", "1.0"] {
            let mut bad = sent.clone();
            bad.metadata.as_mut().unwrap().version = version.to_owned();
            assert_eq!(stored(bad), Err(Malformed::Version(version.to_owned())));
        }
        let mut empty = sent;
        empty.metadata.as_mut().unwrap().phase.clear();
        assert_eq!(stored(empty), Err(Malformed::Phase(String::new())));
    }

    #[test]
    fn a_tombstone_has_no_version_and_no_spec() {
        let tombstone = tombstone(&Kind::omni("InfraMachines"), "gone");
        assert_eq!(tombstone.metadata.unwrap().version, "undefined");
        assert!(tombstone.spec.unwrap().proto_spec.is_empty());
    }

    #[test]
    fn metadata_have_limits() {
        let fresh = |id: &str| Resource::new(Kind::omni("InfraMachines"), id, &cosi::IdQuery::default());
        assert_eq!(check_limits(&fresh(""), None), Err(Excess::Id));
        assert_eq!(check_limits(&fresh("a\nb"), None), Err(Excess::Id));
        let mut resource = fresh("a");
        resource.labels.insert("k".into(), "a\nb".into());
        assert_eq!(check_limits(&resource, None), Err(Excess::Value));
        let mut next = resource.clone();
        next.labels.insert("l".into(), "fine".into());
        assert_eq!(check_limits(&next, Some(&resource)), Ok(()), "what was there before the limits may stay");
        next.labels.insert("k".into(), "a\nc".into());
        assert_eq!(check_limits(&next, Some(&resource)), Err(Excess::Value));
        resource.labels = (0..257).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(check_limits(&resource, None), Err(Excess::Count));
        assert_eq!(check_limits(&resource, Some(&resource)), Ok(()));
    }
}
