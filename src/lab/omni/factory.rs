//! A small image factory: schematics in, boot assets out.
//!
//! Edge: it answers HTTP requests and may read files.
//!
//! Source: contract omni-wire.md section 4.6; the paths are the public Image Factory's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Path, Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::faults::Knobs;
use super::schematic;

/// The extension that makes a Talos image the agent's.
pub const AGENT_EXTENSION: &str = "siderolabs/metal-agent";
/// Schematics that are remembered, and their greatest length: more than any lab needs, and an end to what a stranger fills.
const MAX_SCHEMATICS: usize = 1024;

/// Where kernels and initramfs come from.
#[derive(Clone, Debug)]
pub enum AssetSource {
    /// Made up: always the same octets for a name, of these sizes.
    Generated {
        /// Octets of a kernel.
        kernel: usize,
        /// Octets of an initramfs.
        initramfs: usize,
    },
    /// Files of a directory, by the names that the factory gives them: `kernel-amd64`, `initramfs-amd64.xz`.
    Directory(PathBuf),
}

impl Default for AssetSource {
    /// 64 KiB of kernel, 128 KiB of initramfs.
    fn default() -> Self {
        Self::Generated { kernel: 64 << 10, initramfs: 128 << 10 }
    }
}

/// The factory's memory; clones share it.
#[derive(Clone, Debug)]
pub struct Factory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    assets: AssetSource,
    knobs: Arc<Knobs>,
    schematics: Mutex<BTreeMap<String, String>>,
    downloads: Mutex<BTreeMap<Asset, u64>>,
}

/// One file that machines boot from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asset {
    /// ID of the schematic.
    pub schematic: String,
    /// Talos version, as in the path.
    pub version: String,
    /// File name, such as `kernel-amd64`.
    pub file: String,
}

/// Why a schematic is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSchematic {
    /// The factory remembers no more of them, or none as long as this.
    #[error("the factory is full")]
    Full,
    /// It says what no schematic says.
    #[error("the schematic is not valid: {0}")]
    Invalid(String),
}

impl Factory {
    pub(super) fn new(assets: AssetSource, knobs: Arc<Knobs>) -> Self {
        Self(Arc::new(Inner { assets, knobs, schematics: Mutex::default(), downloads: Mutex::default() }))
    }

    /// Remembers a schematic, and returns its ID: the digest of its octets in hexadecimal.
    ///
    /// # Errors
    ///
    /// [`NoSchematic`].
    pub fn add_schematic(&self, yaml: &str) -> Result<String, NoSchematic> {
        let id: String = Sha256::digest(yaml.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut schematics = self.0.schematics.lock().unwrap_or_else(PoisonError::into_inner);
        if !schematics.contains_key(&id) {
            if schematics.len() >= MAX_SCHEMATICS || yaml.len() > 1 << 20 {
                return Err(NoSchematic::Full);
            }
            if let Some(fault) = schematic::fault(yaml) {
                return Err(NoSchematic::Invalid(fault));
            }
            schematics.insert(id.clone(), yaml.to_owned());
        }
        Ok(id)
    }

    /// The YAML of a schematic.
    pub fn schematic(&self, id: &str) -> Option<String> {
        self.0.schematics.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// How many schematics there are.
    pub fn schematics(&self) -> usize {
        self.0.schematics.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether an image of this schematic is the agent: its extensions contain [`AGENT_EXTENSION`].
    pub fn is_agent(&self, id: &str) -> bool {
        self.schematic(id).is_some_and(|yaml| yaml.contains(AGENT_EXTENSION))
    }

    /// How often each asset was asked for and served.
    pub fn downloads(&self) -> BTreeMap<Asset, u64> {
        self.0.downloads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn router(&self) -> Router {
        Router::new()
            .route("/schematics", post(post_schematic))
            .route("/schematics/{schematic}", get(get_schematic))
            .route("/image/{schematic}/{version}/{file}", get(get_image))
            .route("/pxe/{schematic}/{version}/{platform}", get(get_pxe))
            .layer(from_fn_with_state(self.clone(), available))
            .with_state(self.clone())
    }

    /// The octets of an asset of a schematic that is known.
    async fn content(&self, asset: &Asset) -> Option<Bytes> {
        let yaml = self.schematic(&asset.schematic)?;
        let name = ["-amd64", "-arm64"].iter().find_map(|arch| {
            let (name, rest) = asset.file.split_once(arch)?;
            matches!((name, rest), ("kernel" | "cmdline-metal", "") | ("initramfs", ".xz")).then_some(name)
        })?;
        if name == "cmdline-metal" {
            return Some(Bytes::from(cmdline(&yaml)));
        }
        match &self.0.assets {
            AssetSource::Directory(directory) => {
                // The name is one of six, so that no path leads out of the directory.
                tokio::fs::read(directory.join(&asset.file)).await.ok().map(Bytes::from)
            }
            AssetSource::Generated { kernel, .. } if name == "kernel" => Some(made_up(asset, String::new(), *kernel)),
            AssetSource::Generated { initramfs, .. } => {
                let line = format!("pilotlight-lab initramfs {} {}\n", asset.schematic, asset.version);
                Some(made_up(asset, line, *initramfs))
            }
        }
    }
}

async fn available(Extract(factory): Extract<Factory>, request: Request, next: Next) -> Response {
    if factory.0.knobs.factory_unavailable.load(std::sync::atomic::Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(request).await
}

async fn post_schematic(Extract(factory): Extract<Factory>, yaml: String) -> Response {
    match factory.add_schematic(&yaml) {
        // Older factories leave the schematic out; their clients then ask for it.
        Ok(id) if factory.0.knobs.is_old() => {
            (StatusCode::CREATED, axum::Json(serde_json::json!({ "id": id }))).into_response()
        }
        Ok(id) => (StatusCode::CREATED, axum::Json(serde_json::json!({ "id": id, "schematic": yaml }))).into_response(),
        Err(full @ NoSchematic::Full) => (StatusCode::INSUFFICIENT_STORAGE, full.to_string()).into_response(),
        Err(invalid) => (StatusCode::BAD_REQUEST, invalid.to_string()).into_response(),
    }
}

async fn get_schematic(Extract(factory): Extract<Factory>, Path(schematic): Path<String>) -> Response {
    match factory.schematic(&schematic) {
        Some(yaml) => ([(header::CONTENT_TYPE, "application/yaml")], yaml).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn get_image(
    Extract(factory): Extract<Factory>,
    Path((schematic, version, file)): Path<(String, String, String)>,
) -> Response {
    let asset = Asset { schematic, version, file };
    let Some(content) = factory.content(&asset).await else {
        return StatusCode::NOT_FOUND.into_response();
    };
    *factory.0.downloads.lock().unwrap_or_else(PoisonError::into_inner).entry(asset).or_default() += 1;
    ([(header::CONTENT_TYPE, "application/octet-stream")], content).into_response()
}

async fn get_pxe(
    Extract(factory): Extract<Factory>,
    Path((schematic, version, platform)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let arch = platform.strip_prefix("metal-").filter(|arch| matches!(*arch, "amd64" | "arm64"));
    let (Some(arch), Some(yaml)) = (arch, factory.schematic(&schematic)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let base = format!("http://{host}/image/{schematic}/{version}");
    let cmdline = cmdline(&yaml);
    let script =
        format!("#!ipxe\n\nimgfree\nkernel {base}/kernel-{arch} {cmdline}\ninitrd {base}/initramfs-{arch}.xz\nboot\n");
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], script).into_response()
}

/// Talos's own arguments and the schematic's, which are the plain list items below `extraKernelArgs`.
fn cmdline(yaml: &str) -> String {
    let mut arguments = vec!["talos.platform=metal", "console=tty0", "init_on_alloc=1", "slab_nomerge", "pti=on"];
    let below = yaml.lines().skip_while(|line| line.trim() != "extraKernelArgs:").skip(1);
    let items = below.map_while(|line| line.trim().strip_prefix("- "));
    arguments.extend(items.map(|item| item.trim().trim_matches(['"', '\''])));
    arguments.join(" ")
}

/// `size` octets that begin with `head` and depend on nothing but the asset's name: xorshift, seeded with its digest.
fn made_up(asset: &Asset, head: String, size: usize) -> Bytes {
    let seed = Sha256::digest(format!("{}/{}/{}", asset.schematic, asset.version, asset.file));
    let mut word = u64::from_be_bytes(*seed.first_chunk().expect("a SHA-256 digest has 32 octets")) | 1;
    let mut content = head.into_bytes();
    while content.len() < size {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        content.extend_from_slice(&word.to_be_bytes());
    }
    content.truncate(size);
    Bytes::from(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factory() -> Factory {
        Factory::new(AssetSource::default(), Arc::default())
    }

    #[test]
    fn a_schematic_is_called_by_its_digest_and_tells_the_agent() {
        let factory = factory();
        let agent = factory
            .add_schematic(
                "customization:\n  systemExtensions:\n    officialExtensions:\n      - siderolabs/metal-agent\n",
            )
            .unwrap();
        let talos = factory.add_schematic("{}").unwrap();
        assert_eq!(talos, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        assert!(factory.is_agent(&agent) && !factory.is_agent(&talos) && !factory.is_agent("none"));
    }

    #[tokio::test]
    async fn assets_are_always_the_same_and_only_of_known_schematics() {
        let factory = factory();
        let schematic = factory.add_schematic("{}").unwrap();
        let asset = |file: &str| Asset { schematic: schematic.clone(), version: "v1.11.0".into(), file: file.into() };
        let initramfs = factory.content(&asset("initramfs-amd64.xz")).await.unwrap();
        assert_eq!(initramfs.len(), 128 << 10);
        assert!(initramfs.starts_with(format!("pilotlight-lab initramfs {schematic} v1.11.0\n").as_bytes()));
        assert_eq!(factory.content(&asset("initramfs-amd64.xz")).await.unwrap(), initramfs);
        assert_eq!(factory.content(&asset("kernel-arm64")).await.unwrap().len(), 64 << 10);
        for wrong in ["kernel-riscv64", "initramfs-amd64", "kernel-amd64.xz", "../kernel-amd64", "kernel"] {
            assert!(factory.content(&asset(wrong)).await.is_none(), "{wrong}");
        }
        let unknown = Asset { schematic: "0".repeat(64), ..asset("kernel-amd64") };
        assert!(factory.content(&unknown).await.is_none());
    }

    #[test]
    fn the_command_line_has_the_schematics_arguments() {
        let yaml = "customization:\n    extraKernelArgs:\n        - a=b\n        - \"c\"\n    meta: []\n";
        assert!(cmdline(yaml).ends_with(" a=b c"));
    }
}
