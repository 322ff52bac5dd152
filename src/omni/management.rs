//! Omni's management calls that a provider may make: schematics and boot assets.
//!
//! Source: contract omni-wire.md section 4.6.

use std::sync::Arc;

use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;

use super::channel::{CALL_DEADLINE, MAX_MESSAGE};
use super::error::{Call, Error};
use super::signer::{Signed, Signer};
use super::state::unary;
use crate::proto::management as proto;
use crate::proto::management::management_service_client::ManagementServiceClient;
use crate::secret::Secret;

/// The management service of one Omni. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Management {
    rpc: ManagementServiceClient<Signed<Channel>>,
    signer: Arc<Signer>,
}

/// Which file of a schematic is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootAsset {
    /// Talos version, such as `1.11.2`; empty for Omni's default.
    pub talos_version: String,
    /// Schematic ID as [`Management::create_schematic`] returned it.
    pub schematic_id: String,
    /// What for.
    pub kind: BootAssetKind,
    /// Platform, such as `metal`.
    pub platform: String,
    /// `amd64` or `arm64`.
    pub architecture: String,
    /// Whether the signed image for Secure Boot is meant.
    pub secure_boot: bool,
    /// Whether the URL must work without the headers. For PXE it always does.
    pub standalone_url: bool,
}

/// What a boot asset is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootAssetKind {
    /// The iPXE script.
    Pxe,
    /// The ISO image.
    Iso,
    /// A disk image in this format, such as `raw.zst`.
    Disk(String),
}

/// Where a boot asset is. The URL and the headers may hold credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootAssetUrl {
    /// The URL.
    pub url: Secret<String>,
    /// HTTP headers to send with it, by name.
    pub headers: Vec<(String, Secret<String>)>,
    /// Host of the image factory.
    pub image_factory_host: String,
    /// A key under which the asset may be cached; it holds no credentials.
    pub storage_key: String,
}

impl Management {
    pub(crate) fn new(channel: Signed<Channel>) -> Self {
        let signer = Arc::clone(channel.signer());
        let rpc = ManagementServiceClient::new(channel)
            .send_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Self { rpc, signer }
    }

    /// Registers the schematic in `yaml` for `talos_version` (empty for Omni's default); returns its ID, which the image
    /// factory computes.
    ///
    /// # Errors
    ///
    /// [`Error::Unimplemented`] on an Omni older than 1.8; [`Error::Validation`] for keys that the factory does not know.
    pub async fn create_schematic(&self, yaml: &str, talos_version: &str) -> Result<String, Error> {
        let request = proto::CreateSchematicFromRawRequest {
            raw_schematic: yaml.as_bytes().to_vec(),
            talos_version: talos_version.to_owned(),
        };
        let call = Box::new(Call { method: "CreateSchematicFromRaw", object: format!("for Talos {talos_version:?}") });
        let mut rpc = self.rpc.clone();
        let answer = unary(&self.signer, CALL_DEADLINE, &call, rpc.create_schematic_from_raw(request)).await?;
        if answer.schematic_id.is_empty() {
            return Err(Error::Misbehaved { call, what: "holds no schematic ID" });
        }
        Ok(answer.schematic_id)
    }

    /// Where `asset` is.
    ///
    /// # Errors
    ///
    /// [`Error::Unimplemented`] on an older Omni: the URL is made from FeaturesConfig then.
    pub async fn boot_asset_url(&self, asset: &BootAsset) -> Result<BootAssetUrl, Error> {
        let (kind, format) = match &asset.kind {
            BootAssetKind::Pxe => (proto::BootAssetKind::Pxe, ""),
            BootAssetKind::Iso => (proto::BootAssetKind::Iso, ""),
            BootAssetKind::Disk(format) => (proto::BootAssetKind::Disk, format.as_str()),
        };
        let request = proto::BootAssetUrlRequest {
            talos_version: asset.talos_version.clone(),
            schematic_id: asset.schematic_id.clone(),
            standalone_url: asset.standalone_url,
            boot_asset_kind: kind.into(),
            platform: asset.platform.clone(),
            architecture: asset.architecture.clone(),
            format: format.to_owned(),
            secure_boot: asset.secure_boot,
        };
        let call = Box::new(Call { method: "GetBootAssetURL", object: format!("of schematic {}", asset.schematic_id) });
        let mut rpc = self.rpc.clone();
        let answer = unary(&self.signer, CALL_DEADLINE, &call, rpc.get_boot_asset_url(request)).await?;
        if answer.url.is_empty() {
            return Err(Error::Misbehaved { call, what: "holds no URL" });
        }
        Ok(BootAssetUrl {
            url: Secret::new(answer.url),
            headers: answer.headers.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
            image_factory_host: answer.image_factory_host,
            storage_key: answer.storage_key,
        })
    }
}
