//! Records as the engine's keys and values.
//!
//! A record's head is `v1/<tree>/<key>`: one octet that counts the chunks which follow, then the first chunk. The others
//! are `v1+/<number>/<tree>/<key>`. All trees share one keyspace, so that a batch over several is atomic.
//!
//! Chunks, because the engine writes what exceeds 128 KiB into a file of its own that a commit does not sync, and it
//! writes up to 17 neighbouring records as one node: values of 8 KiB are enough to lose them all in a power cut.

use std::collections::BTreeMap;

use sled::IVec;

use super::{Batch, Op, Tree};

/// Octets of a value in one engine value. 17 of these with their keys stay well below 128 KiB.
const CHUNK: usize = 4096;

/// Why a record could not be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The engine reports an error.
    Engine(sled::Error),
    /// A key or value that this version does not write, or a chunk that is missing; the key as text.
    Foreign(String),
}

/// A record as read: its tree, key and value.
pub(super) type Record = (Tree, String, Vec<u8>);

/// The engine's form of `batch`. When a key occurs more than once, its last change counts.
///
/// Reads how many chunks there are to be replaced: nobody else may write between this and the batch's application.
pub(super) fn engine_batch(db: &sled::Db, batch: &Batch) -> Result<sled::Batch, sled::Error> {
    let last: BTreeMap<(Tree, &str), Option<&[u8]>> = batch
        .ops()
        .iter()
        .map(|op| match op {
            Op::Put { tree, key, value } => ((*tree, key.as_str()), Some(value.as_slice())),
            Op::Remove { tree, key } => ((*tree, key.as_str()), None),
        })
        .collect();
    let mut out = sled::Batch::default();
    for ((tree, key), value) in last {
        let head = head_key(tree, key);
        let former = db.get(&head)?.and_then(|value| value.first().copied()).unwrap_or(0);
        let mut following = 0;
        match value {
            Some(value) => {
                let (first, rest) = value.split_at(value.len().min(CHUNK));
                for chunk in rest.chunks(CHUNK) {
                    following += 1;
                    out.insert(chunk_key(following, tree, key), chunk);
                }
                out.insert(head, [&[following], first].concat());
            }
            None => out.remove(head),
        }
        for number in following + 1..=former {
            out.remove(chunk_key(number, tree, key));
        }
    }
    Ok(out)
}

/// The value of a record, or `None`.
pub(super) fn get(db: &sled::Db, tree: Tree, key: &str) -> Result<Option<Vec<u8>>, Unreadable> {
    let head = db.get(head_key(tree, key)).map_err(Unreadable::Engine)?;
    head.map(|head| join(db, tree, key, &head)).transpose()
}

/// The records of `tree`, or of all trees; in the order of trees' names, then of keys.
pub(super) fn list(db: &sled::Db, tree: Option<Tree>) -> impl Iterator<Item = Result<Record, Unreadable>> {
    let prefix = tree.map_or_else(|| b"v1/".to_vec(), |tree| head_key(tree, ""));
    db.scan_prefix(prefix).map(|record| {
        let (head_key, head) = record.map_err(Unreadable::Engine)?;
        let (tree, key) = split_head_key(&head_key).ok_or_else(|| foreign(&head_key))?;
        Ok((tree, key.to_owned(), join(db, tree, key, &head)?))
    })
}

fn join(db: &sled::Db, tree: Tree, key: &str, head: &IVec) -> Result<Vec<u8>, Unreadable> {
    let (following, first) = head.split_first().ok_or_else(|| foreign(&head_key(tree, key)))?;
    let mut value = first.to_vec();
    for number in 1..=*following {
        let chunk_key = chunk_key(number, tree, key);
        let chunk = db.get(&chunk_key).map_err(Unreadable::Engine)?.ok_or_else(|| foreign(&chunk_key))?;
        value.extend_from_slice(&chunk);
    }
    Ok(value)
}

fn foreign(key: &[u8]) -> Unreadable {
    Unreadable::Foreign(String::from_utf8_lossy(key).into_owned())
}

fn head_key(tree: Tree, key: &str) -> Vec<u8> {
    format!("v1/{tree}/{key}").into_bytes()
}

fn chunk_key(number: u8, tree: Tree, key: &str) -> Vec<u8> {
    format!("v1+/{number:02x}/{tree}/{key}").into_bytes()
}

/// The tree and key behind the key of a head; `None` for one that this version did not write.
fn split_head_key(bytes: &[u8]) -> Option<(Tree, &str)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (tree, key) = text.strip_prefix("v1/")?.split_once('/')?;
    Some((Tree::from_name(tree)?, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_on_disk_names_its_version_and_tree() {
        for tree in Tree::ALL {
            assert_eq!(split_head_key(&head_key(tree, "a/b/../c")), Some((tree, "a/b/../c")));
        }
        assert_eq!(head_key(Tree::Intent, "x"), b"v1/intent/x");
        assert_eq!(chunk_key(10, Tree::View, "x"), b"v1+/0a/view/x");
        for foreign in [&b"v2/bmc/x"[..], b"v1/other/x", b"v1/bmc", b"\xff", b"", &chunk_key(1, Tree::Bmc, "x")] {
            assert_eq!(split_head_key(foreign), None);
        }
        assert!(Tree::ALL.windows(2).all(|pair| pair[0].name() < pair[1].name()));
    }

    #[test]
    fn a_value_that_shrinks_leaves_no_chunks_behind() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::Config::new().path(dir.path()).open().unwrap();
        for (size, keys) in [(0, 1), (CHUNK, 1), (CHUNK + 1, 2), (65_536, 16), (5_000, 2), (65_536, 16), (1, 1)] {
            let value: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            let batch = Batch::new().put(Tree::Bmc, "k", "former").put(Tree::Bmc, "k", value.clone());
            db.apply_batch(engine_batch(&db, &batch).unwrap()).unwrap();
            assert_eq!(get(&db, Tree::Bmc, "k").unwrap(), Some(value));
            assert_eq!(db.len(), keys, "{size}");
            assert_eq!(list(&db, None).count(), 1);
        }
        let batch = Batch::new().put(Tree::Bmc, "k", vec![1; 9_000]);
        db.apply_batch(engine_batch(&db, &batch).unwrap()).unwrap();
        db.remove(chunk_key(1, Tree::Bmc, "k")).unwrap();
        assert!(matches!(get(&db, Tree::Bmc, "k"), Err(Unreadable::Foreign(key)) if key == "v1+/01/bmc/k"));
        db.apply_batch(engine_batch(&db, &Batch::new().remove(Tree::Bmc, "k")).unwrap()).unwrap();
        assert!(db.is_empty());
    }
}
