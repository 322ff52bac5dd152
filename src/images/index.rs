//! Where the cache remembers what it has.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

/// The index could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the image index can't be reached")]
pub struct IndexError(#[source] pub std::sync::Arc<dyn std::error::Error + Send + Sync>);

/// A small durable map. Keys are text of printable ASCII; values at most a few hundred octets.
#[async_trait]
pub trait Index: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// [`IndexError`] when the store can't be reached; likewise below.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError>;
    /// Stores `value` durably.
    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), IndexError>;
    /// Forgets `key`; absent is fine.
    async fn remove(&self, key: &str) -> Result<(), IndexError>;
    /// Every key that starts with `prefix`, with its value, in key order.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, IndexError>;
}

/// An index that lives as long as the process.
#[derive(Debug, Default)]
pub struct MemoryIndex(Mutex<BTreeMap<String, Vec<u8>>>);

#[async_trait]
impl Index for MemoryIndex {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), IndexError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), value);
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<(), IndexError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = map.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(from.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
