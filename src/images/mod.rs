//! Kernels and initramfs: asked for once, kept on disk, served from there.
//!
//! An edge: it talks to an Image Factory and writes files.

pub mod asset;
pub mod cache;
pub mod index;
pub mod origin;

pub use asset::{Asset, AssetPath, InvalidAsset, Kind, SchematicId};
pub use cache::{Cache, Error, Limits};
pub use index::{Index, IndexError, MemoryIndex};
pub use origin::Origin;

use async_trait::async_trait;

/// What a boot decision needs of the image cache, which may be another process's.
#[async_trait]
pub trait Images: Send + Sync {
    /// The ID of a schematic, which is registered with the factory unless it is known.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], with the cause in words.
    async fn schematic(&self, yaml: &str) -> Result<SchematicId, Unavailable>;

    /// A small asset as text, such as a command line.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], with the cause in words.
    async fn text(&self, path: &AssetPath) -> Result<String, Unavailable>;
}

/// Why an image is not at hand, in words: the cause may lie in another process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// The chain of causes.
    pub reason: String,
}

impl Unavailable {
    /// `error` and its causes in one line.
    pub fn because(error: &dyn std::error::Error) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            cause = error.source();
        }
        Self { reason }
    }
}

#[async_trait]
impl Images for Cache {
    async fn schematic(&self, yaml: &str) -> Result<SchematicId, Unavailable> {
        Self::schematic(self, yaml).await.map_err(|error| Unavailable::because(&error))
    }

    async fn text(&self, path: &AssetPath) -> Result<String, Unavailable> {
        let octets = self.read(path).await.map_err(|error| Unavailable::because(&error))?;
        Ok(String::from_utf8_lossy(&octets).into_owned())
    }
}
