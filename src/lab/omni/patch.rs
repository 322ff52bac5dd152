//! What may stand in a patch of a machine's config: documents of Talos's forms that leave alone what is Omni's to say.
//!
//! Pure. Of the oldest document, which has no kind, the first level of keys is checked and those keys that Omni keeps for
//! itself, wherever it stands; Omni looks for them in the first document alone. Talos's whole schema is not known here, nor
//! are its kinds. Source: Talos's reference of its configuration; Omni's of config patches.

use serde_json::{Map, Value};

use super::document::{self, BadYaml};

/// The first level of the document that has no kind. The version alone says nothing.
const FIRST_LEVEL: [&str; 5] = ["version", "debug", "persist", "machine", "cluster"];

/// What Omni says about a machine, and no patch.
const KEPT: [&str; 13] = [
    "cluster.clusterName",
    "cluster.id",
    "cluster.controlPlane.endpoint",
    "cluster.token",
    "cluster.secret",
    "cluster.aescbcEncryptionSecret",
    "cluster.secretboxEncryptionSecret",
    "cluster.acceptedCAs",
    "machine.token",
    "machine.ca",
    "machine.type",
    "machine.install.extensions",
    "machine.acceptedCAs",
];

/// The list of roles that Kubernetes may have in Talos, and the one that Omni lets nobody give away.
const ROLES: (&str, &str) = ("machine.features.kubernetesTalosAPIAccess.allowedRoles", "os:admin");

/// Why a patch is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPatch {
    /// It is not read.
    #[error("the patch is no YAML: {0}")]
    Yaml(BadYaml),
    /// A document is no map.
    #[error("a document is not a map")]
    NotAMap,
    /// A document names a kind without its version.
    #[error("a document of a kind needs an apiVersion")]
    HalfAKind,
    /// No document says anything.
    #[error("config not found")]
    Nothing,
    /// The document without a kind stands there twice.
    #[error("duplicate document /v1alpha1/ is not allowed")]
    Twice,
    /// Nothing is called so.
    #[error("unknown keys found during decoding: {0}")]
    Unknown(String),
    /// It is Omni's.
    #[error("overriding {0:?} is not allowed in the config patch")]
    Kept(&'static str),
    /// A role that is not given away.
    #[error("element {:?} is not allowed in field {:?}", ROLES.1, ROLES.0)]
    Role,
}

/// Checks a patch.
///
/// # Errors
///
/// [`BadPatch`], the first that is found.
pub fn check(patch: &str) -> Result<(), BadPatch> {
    let (mut of_a_kind, mut without) = (0, 0);
    for document in document::parse(patch).map_err(BadPatch::Yaml)?.iter().filter(|document| !document.is_null()) {
        let fields = document.as_object().ok_or(BadPatch::NotAMap)?;
        match (fields.contains_key("apiVersion"), fields.contains_key("kind")) {
            (true, true) => of_a_kind += 1,
            (false, true) => return Err(BadPatch::HalfAKind),
            (_, false) => {
                check_oldest(document, fields)?;
                without += usize::from(fields.keys().any(|key| key != "version"));
            }
        }
    }
    match (of_a_kind, without) {
        (0, 0) => Err(BadPatch::Nothing),
        (_, 0 | 1) => Ok(()),
        _ => Err(BadPatch::Twice),
    }
}

fn check_oldest(document: &Value, fields: &Map<String, Value>) -> Result<(), BadPatch> {
    if let Some(unknown) = fields.keys().find(|key| !FIRST_LEVEL.contains(&key.as_str())) {
        return Err(BadPatch::Unknown(unknown.clone()));
    }
    let at = |path: &str| path.split('.').try_fold(document, |value, key| value.get(key));
    if let Some(kept) = KEPT.into_iter().find(|path| at(path).is_some()) {
        return Err(BadPatch::Kept(kept));
    }
    let roles = at(ROLES.0).and_then(Value::as_array);
    if roles.is_some_and(|roles| roles.iter().any(|role| role == ROLES.1)) { Err(BadPatch::Role) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_leaves_alone_what_is_omnis() {
        for good in [
            "machine:",
            "debug: true",
            "machine:\n  network:\n    hostname: a\n",
            "machine: {}\n---\napiVersion: v1alpha1\nkind: HostnameConfig\nhostname: a\n",
            "cluster:\n  network: {}\n",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for kept in KEPT {
            let mut keys: Vec<_> = kept.split('.').collect();
            let last = keys.pop().unwrap();
            let patch = keys.iter().rev().fold(format!("{{{last}: x}}"), |inner, key| format!("{{{key}: {inner}}}"));
            assert_eq!(check(&patch), Err(BadPatch::Kept(kept)), "{patch}");
        }
        let role = "machine: {features: {kubernetesTalosAPIAccess: {allowedRoles: [os:reader, os:admin]}}}";
        assert_eq!(check(role), Err(BadPatch::Role));
        for (bad, why) in [
            ("machines: {}", BadPatch::Unknown("machines".into())),
            ("- a", BadPatch::NotAMap),
            ("kind: HostnameConfig\nhostname: a", BadPatch::HalfAKind),
            ("apiVersion: v1alpha1\nmachine: {}", BadPatch::Unknown("apiVersion".into())),
            ("machine: {}\n---\ncluster: {}", BadPatch::Twice),
            ("", BadPatch::Nothing),
            ("---\n# nothing\n", BadPatch::Nothing),
            ("version: v1alpha1", BadPatch::Nothing),
        ] {
            assert_eq!(check(bad), Err(why), "{bad}");
        }
        assert!(matches!(check("machine: ["), Err(BadPatch::Yaml(_))));
    }
}
