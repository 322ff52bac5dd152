//! Answers booting machines: what to boot, with which configuration, and whose tunnel to let in.
//!
//! Every answer comes from memory and from the disk; Omni and the image factory are asked only for what is not there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::addresses::Sighting;
use super::rack::Rack;
use super::records::Records;
use crate::agent::{Admission, Refusal};
use crate::boot::script::{self, AgentArgs, DiskMethod, KernelArgs};
use crate::boot::{Advertise, BootAnswer, BootRequest, schematic::Schematic};
use crate::images::{self, AssetPath, Images, Kind};
use crate::machine::{Acceptance, Arch, BootMode, Desired, MachineId, boot_mode};
use crate::netboot::http::{BootDesk, ConfigRefusal};
use crate::omni::provider::decode_join_config;
use crate::resource;
use crate::secret::Secret;
use crate::telemetry::{Counters, Limit};
use crate::time::{UnixTime, Uptime};

/// Lines that machines may cause which Omni does not know: a stranger can make up UUIDs without end.
static STRANGERS: Limit = Limit::new(20, Duration::from_secs(5));
/// Lines about boots without an answer: while the image factory is away every machine asks again and again.
static UNANSWERED: Limit = Limit::new(20, Duration::from_secs(5));

/// Why a boot script could not be made.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("boot images are not at hand")]
    Images(#[source] images::Unavailable),
    #[error("Omni names an impossible Talos version {version:?}")]
    Version {
        version: String,
        #[source]
        source: images::InvalidAsset,
    },
    #[error("local boot asset {path} can't be read")]
    Asset {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the kernel command line can't be written")]
    Script(#[source] script::ScriptError),
}

/// Answers booting machines.
pub struct Desk {
    /// Omni's word and ours.
    pub records: Records,
    /// What has been seen.
    pub rack: Rack,
    /// Kernels and initramfs.
    pub images: Arc<dyn Images>,
    /// Where machines reach us.
    pub advertise: Advertise,
    /// Where machines fetch images, which may be another port than ours.
    pub images_at: Advertise,
    /// Directory of local agent assets, when they are used.
    pub local_assets: Option<std::path::PathBuf>,
    /// Talos version of agent boots.
    pub agent_talos_version: String,
    /// How machines are sent to their disk.
    pub disk_method: DiskMethod,
    /// Decisions by reason.
    pub counters: Counters,
}

impl Desk {
    async fn answer(&self, request: &BootRequest) -> Result<BootAnswer, Unanswered> {
        let desired = self.records.desired(&request.uuid);
        let recorded = self.records.recorded(&request.uuid);
        match &desired {
            Some(machine) if machine.cordoned => {
                return Ok(script::refused(script::Refusal::Cordoned, self.disk_method, request.disk_script));
            }
            Some(machine) if machine.acceptance == Acceptance::Rejected => {
                return Ok(script::refused(script::Refusal::Rejected, self.disk_method, request.disk_script));
            }
            _ => {}
        }
        match boot_mode(desired.as_ref(), &recorded) {
            BootMode::TalosDisk => Ok(script::disk(self.disk_method, request.disk_script)),
            BootMode::AgentPxe => {
                self.rack.expect_agent(&request.uuid, Uptime::now());
                self.agent(request.arch, desired.as_ref()).await
            }
            BootMode::TalosPxe => self.talos(request.arch, &desired.unwrap_or_default()).await,
        }
    }

    async fn agent(&self, arch: Arch, desired: Option<&Desired>) -> Result<BootAnswer, Unanswered> {
        let args = KernelArgs {
            advertise: &self.advertise,
            arch,
            inline_config: None,
            agent: Some(AgentArgs { tls_address: None, test_mode: false, tls_skip_verify: false }),
            extra: desired.map_or("", |machine| machine.extra_kernel_args.as_str()),
        };
        let reason = "boots the agent";
        let Some(assets) = &self.local_assets else {
            let schematic = Schematic::agent(arch);
            return self.cached(&schematic, &self.agent_talos_version, &args, reason).await;
        };
        let path = assets.join(format!("cmdline-metal-{arch}"));
        let base = tokio::fs::read_to_string(&path)
            .await
            .map_err(|source| Unanswered::Asset { path: path.display().to_string(), source })?;
        let kernel = self.advertise.url(&format!("/assets/kernel-{arch}"));
        let initrd = self.advertise.url(&format!("/assets/initramfs-metal-{arch}.xz"));
        let text = script::boot(&kernel, &initrd, base.trim(), &args.to_vec()).map_err(Unanswered::Script)?;
        Ok(BootAnswer::script(text, reason))
    }

    async fn talos(&self, arch: Arch, desired: &Desired) -> Result<BootAnswer, Unanswered> {
        let schematic = Schematic { extensions: desired.extensions.clone(), sealed_args: Vec::new() };
        let args = KernelArgs {
            advertise: &self.advertise,
            arch,
            inline_config: None,
            agent: None,
            extra: &desired.extra_kernel_args,
        };
        let version = &desired.cluster_talos_version;
        // Omni writes cluster versions without the v that the factory's file names have.
        let version = if version.starts_with('v') { version.clone() } else { format!("v{version}") };
        self.cached(&schematic, &version, &args, "boots Talos").await
    }

    async fn cached(
        &self,
        schematic: &Schematic,
        version: &str,
        args: &KernelArgs<'_>,
        reason: &'static str,
    ) -> Result<BootAnswer, Unanswered> {
        let id = self.images.schematic(&schematic.to_yaml()).await.map_err(Unanswered::Images)?;
        let path = |kind| {
            AssetPath::new(id.clone(), version, kind, args.arch)
                .map_err(|source| Unanswered::Version { version: version.to_owned(), source })
        };
        let base = self.images.text(&path(Kind::CommandLine)?).await.map_err(Unanswered::Images)?;
        let url = |path: &AssetPath| script::image_url(&self.images_at, id.as_str(), path.version(), &path.file());
        let (kernel, initrd) = (url(&path(Kind::Kernel)?), url(&path(Kind::Initramfs)?));
        let text = script::boot(&kernel, &initrd, base.trim(), &args.to_vec()).map_err(Unanswered::Script)?;
        Ok(BootAnswer::script(text, reason))
    }
}

#[async_trait]
impl BootDesk for Desk {
    async fn boot(&self, request: BootRequest) -> BootAnswer {
        let answer = match self.answer(&request).await {
            Ok(answer) => answer,
            Err(error) => {
                let cause = super::records::chain(&error);
                if let Some(held_back) = UNANSWERED.allow(Uptime::now()) {
                    tracing::error!(machine = %request.uuid, error = %cause, held_back, "boot not answered");
                }
                self.counters.count("boot_unanswered");
                self.rack.note(&request.uuid, format!("boot not answered: {cause}"), Uptime::now(), UnixTime::now());
                BootAnswer::failed(&error, "boot not answered")
            }
        };
        let sighting = Sighting { mac: request.mac.clone().unwrap_or_default(), address: request.peer };
        let what = format!("network boot from {}: {}", request.peer, answer.reason);
        let known = self.records.desired(&request.uuid).is_some();
        let held_back = if known { Some(0) } else { STRANGERS.allow(Uptime::now()) };
        if let Some(held_back) = held_back {
            tracing::info!(machine = %request.uuid, mac = %sighting.mac, peer = %request.peer, reason = answer.reason, held_back, "boot answered");
        }
        self.counters.count(if answer.status.is_success() { "boot_script" } else { "boot_refused" });
        let news = self.rack.saw_boot(&request.uuid, sighting, what, Uptime::now(), UnixTime::now());
        if let Some(addresses) = news
            && let Err(error) = self.records.sightings().keep_boot(&request.uuid, &addresses, Uptime::now()).await
        {
            tracing::warn!(machine = %request.uuid, error = %super::records::chain(&error), "sighting not kept");
        }
        answer
    }

    /// The machine config holds the join token: only machines that boot here, or that Omni knows, are given it.
    async fn machine_config(&self, uuid: Option<MachineId>, peer: IpAddr) -> Result<Secret<String>, ConfigRefusal> {
        let refused = |refusal| {
            self.counters.count("config_refused");
            refusal
        };
        let known = uuid.as_ref().is_some_and(|id| self.records.desired(id).is_some());
        if !known && !self.rack.booted_from(peer) {
            return Err(refused(ConfigRefusal::Unknown));
        }
        let kind = resource::Kind::omni("ProviderJoinConfigs");
        let resource = self
            .records
            .mirror()
            .get(&kind, self.records.provider_id())
            .ok_or_else(|| refused(ConfigRefusal::NotReady))?;
        let join = decode_join_config(&resource).map_err(|_| refused(ConfigRefusal::NotReady))?;
        Ok(join.config.clone())
    }
}

impl Admission for Desk {
    /// From an address that booted the machine, or that its agent worked from. Where none is known, as with a new store, a
    /// machine that Omni knows is let in.
    fn admit(&self, machine: &MachineId, peer: SocketAddr) -> Result<(), Refusal> {
        let addresses = self.rack.addresses(machine);
        if addresses.counts(peer.ip()) || (addresses.is_empty() && self.records.desired(machine).is_some()) {
            return Ok(());
        }
        let reason = match addresses.is_empty() {
            true => "the machine has not booted here and Omni does not know it",
            false => "the machine booted from another address",
        };
        Err(Refusal { reason: reason.into() })
    }
}
