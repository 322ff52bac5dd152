//! [`MemoryStore`]: a store that forgets, for tests and for the lab.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;

use super::{Batch, Error, Health, Op, Store, Tree};

/// A store in memory with the rules of the real one: limits, atomic batches, sorted lists.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<(Tree, String), Vec<u8>>,
    commits: u64,
    refusing: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every commit fails as on a broken disk (`true`), or works again (`false`).
    pub fn refuse_commits(&self, refusing: bool) {
        self.state().refusing = refusing;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, tree: Tree, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.state().records.get(&(tree, key.to_owned())).cloned())
    }

    async fn list(&self, tree: Tree) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let state = self.state();
        let from = (tree, String::new());
        let of_tree = state.records.range(from..).take_while(|((found, _), _)| *found == tree);
        Ok(of_tree.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, batch: Batch) -> Result<(), Error> {
        batch.check()?;
        let mut state = self.state();
        if state.refusing {
            return Err(Error::Failed { dir: "memory".into() });
        }
        for op in batch.0 {
            match op {
                Op::Put { tree, key, value } => drop(state.records.insert((tree, key), value)),
                Op::Remove { tree, key } => drop(state.records.remove(&(tree, key))),
            }
        }
        state.commits += 1;
        Ok(())
    }

    async fn export(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn health(&self) -> Result<Health, Error> {
        let state = self.state();
        Ok(Health { commits: state.commits, failed: state.refusing, ..Health::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn trees_do_not_meet_and_lists_are_sorted() {
        let store = MemoryStore::new();
        let batch = Batch::new().put(Tree::Bmc, "b", "1").put(Tree::Bmc, "a", "2").put(Tree::View, "a", "3");
        store.commit(batch).await.unwrap();
        store.commit(Batch::new().put(Tree::Bmc, "c", "4").remove(Tree::Bmc, "c")).await.unwrap();
        let listed = store.list(Tree::Bmc).await.unwrap();
        assert_eq!(listed, [("a".to_owned(), b"2".to_vec()), ("b".to_owned(), b"1".to_vec())]);
        assert_eq!(store.get(Tree::View, "a").await.unwrap(), Some(b"3".to_vec()));
        assert_eq!(store.get(Tree::Meta, "a").await.unwrap(), None);
        assert_eq!(store.health().await.unwrap().commits, 2);
    }

    #[tokio::test]
    async fn a_store_told_to_refuse_keeps_what_it_has() {
        let store = MemoryStore::new();
        store.commit(Batch::new().put(Tree::Meta, "a", "1")).await.unwrap();
        store.refuse_commits(true);
        assert!(store.commit(Batch::new().put(Tree::Meta, "a", "2")).await.is_err());
        assert_eq!(store.get(Tree::Meta, "a").await.unwrap(), Some(b"1".to_vec()));
    }
}
