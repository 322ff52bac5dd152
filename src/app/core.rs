//! The provider service: Omni, the machines' plans, the boot and tunnel port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::status::Sources;
use super::{Running, health, view};
use crate::agent::{Limits, Tunnels};
use crate::boot::{Advertise, BootFiles};
use crate::config::Config;
use crate::controller;
use crate::controller::desk::Desk;
use crate::controller::rack::Rack;
use crate::controller::records::{Records, chain};
use crate::images::{Cache, Images};
use crate::netboot::http::{image_router, router};
use crate::netboot::serve;
use crate::omni::provider::{Registration, register, run_heartbeat};
use crate::omni::watch::{Backoff, Watch};
use crate::omni::{self, Client, Mirror};
use crate::resource::LABEL_INFRA_PROVIDER_ID;
use crate::status::{Service, Snapshot};
use crate::store::Store;
use crate::store::seal::SealingKey;
use crate::telemetry::Counters;
use crate::time::UnixTime;

/// How often the registration is looked at.
const REGISTER_AGAIN: Duration = Duration::from_secs(3_600);
/// A key that expires within this is warned about.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 86_400);
/// The small flame on Omni's list of providers.
const ICON: &str = include_str!("flame.svg");

/// What the provider service is made of.
pub(super) struct Parts {
    pub config: Config,
    pub client: Client,
    pub advertise: Advertise,
    pub images_at: Advertise,
    pub store: Arc<dyn Store>,
    pub images: Arc<dyn Images>,
    pub cache: Option<Arc<Cache>>,
    pub files: Arc<BootFiles>,
    pub rack: Rack,
    pub counters: Counters,
    /// What else must serve for machines to boot, where each service is a process of its own.
    pub services: watch::Receiver<Vec<Service>>,
}

/// Starts it; returns the snapshots that the status page shows.
pub(super) async fn start(parts: Parts, running: &mut Running) -> anyhow::Result<watch::Receiver<Arc<Snapshot>>> {
    let Parts { config, client, advertise, images_at, store, images, cache, files, rack, counters, services } = parts;
    let cancel = running.cancel.clone();
    let key_dir = config.state_dir.join("provider");
    std::fs::create_dir_all(&key_dir).with_context(|| format!("{} can't be made", key_dir.display()))?;
    let sealing = SealingKey::load_or_create(&key_dir.join("sealing.key")).context("the sealing key can't be read")?;
    // Omni answers some kinds from a cache that ignores who asks, so the label is asked for everywhere it stands.
    let watches =
        controller::kinds(&config.id).into_iter().map(|kind| match kind.r#type.ends_with(".omni.sidero.dev") {
            true if kind.r#type.starts_with("ProviderJoinConfigs.") => Watch {
                stand_in: Some(omni::join::stand_in(&config.id)),
                ..Watch::labelled(kind, LABEL_INFRA_PROVIDER_ID, &config.id)
            },
            true => Watch::labelled(kind, LABEL_INFRA_PROVIDER_ID, &config.id),
            false => Watch::all(kind),
        });
    let mirror = Mirror::new(watches.collect());
    match view::load(&*store, &sealing).await {
        Ok(resources) if resources.is_empty() => {}
        Ok(resources) => {
            let newest = resources.iter().map(|resource| resource.updated).max().unwrap_or_default();
            tracing::info!(resources = resources.len(), newest = %newest, "answering from the stored view until Omni confirms it");
            mirror.preload(resources, newest);
        }
        Err(error) => tracing::error!(error = %chain(&error), "stored view not loaded"),
    }
    let records = Records::load(
        &config.id,
        client.state().clone(),
        mirror.clone(),
        Arc::clone(&store),
        sealing.clone(),
        config.clear_passwords,
    )
    .await
    .context("the local records can't be read")?;

    let (image_trouble, images_failing) = watch::channel(String::new());
    let images: Arc<dyn Images> = Arc::new(health::Observed { images, trouble: image_trouble });
    let desk = Arc::new(Desk {
        records: records.clone(),
        rack: rack.clone(),
        images,
        advertise: advertise.clone(),
        images_at,
        local_assets: config.local_assets.clone(),
        agent_talos_version: config.agent_talos_version.clone(),
        disk_method: config.disk_method,
        counters: counters.clone(),
    });
    let tunnels = Tunnels::counting(desk.clone(), Limits::default(), counters.clone());
    let mut http = router(desk, files, config.local_assets.clone(), &advertise);
    if let Some(cache) = cache {
        http = http.merge(image_router(cache));
    }
    let routes = serve::beside_grpc(http, Routes::new(tunnels.service()).into_axum_router());
    let listener = bind(config.listen, config.api_port).await?;
    running.up("provider", format!("http://{advertise}"));
    let token = cancel.clone();
    running.spawn("provider", async move {
        serve::serve(listener, routes, token).await;
        Ok(())
    });

    let (trouble, omni_trouble) = watch::channel(String::new());
    let (health, health_trouble) = watch::channel(String::new());
    let (failure, heartbeat_trouble) = watch::channel(String::new());
    let (state, id, token) = (client.state().clone(), config.id.clone(), cancel.clone());
    running.spawn("omni watch", async move {
        omni::watch::run(state, mirror, token).await;
        Ok(())
    });
    let forgotten = Arc::new(Notify::new());
    let registering = keep_registered(client.clone(), config.clone(), trouble, Arc::clone(&forgotten), cancel.clone());
    running.spawn("omni registration", async move {
        registering.await;
        Ok(())
    });
    let (state, token) = (client.state().clone(), cancel.clone());
    running.spawn("omni heartbeat", async move {
        run_heartbeat(state, id, health_trouble, failure, forgotten, token).await;
        Ok(())
    });
    let keeping = view::keep(records.mirror().clone(), store, sealing, counters.clone(), cancel.clone());
    running.spawn("view", async move {
        keeping.await;
        Ok(())
    });

    let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let sources = Sources {
        provider_id: config.id.clone(),
        endpoint: config.omni.endpoint.clone(),
        started: UnixTime::now(),
        rack: rack.clone(),
        mirror: records.mirror().clone(),
        omni_trouble,
        heartbeat_trouble,
        key_expires: client.key_expiry(),
        services: running.services(),
        counters: counters.clone(),
    };
    let (token, watched) = (cancel.clone(), snapshots.clone());
    running.spawn("health", async move {
        health::keep(health, watched, services, images_failing, health::PACE, token).await;
        Ok(())
    });
    let token = cancel.clone();
    running.spawn("status", async move {
        sources.publish(sender, token).await;
        Ok(())
    });
    running.spawn("machines", async move {
        controller::run(&config, records, rack, tunnels.clone(), counters, cancel).await?;
        tunnels.close_all();
        Ok(())
    });
    Ok(snapshots)
}

async fn bind(listen: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let addresses = match listen {
        Some(address) => vec![SocketAddr::new(address, port)],
        // Dual stack where the kernel has IPv6, else IPv4 alone.
        None => vec![
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        ],
    };
    TcpListener::bind(addresses.as_slice()).await.with_context(|| format!("port {port} can't be bound; see --api-port"))
}

/// Registers the provider, again every hour, and at once when Omni was restarted: it may have been restored without us. Says
/// each time what ails the key.
async fn keep_registered(
    client: Client,
    config: Config,
    trouble: watch::Sender<String>,
    forgotten: Arc<Notify>,
    cancel: CancellationToken,
) {
    let registration = Registration {
        name: config.name.clone(),
        description: config.description.clone(),
        icon: icon(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut backoff = Backoff::default();
    let mut registered = false;
    let tell = |text: String, what: &str| {
        if *trouble.borrow() != text && !text.is_empty() {
            tracing::error!(error = %text, what);
        }
        trouble.send_if_modified(|told| std::mem::replace(told, text.clone()) != text);
    };
    loop {
        let pause = match register(client.state(), &config.id, &registration).await {
            Ok(_) => {
                if !std::mem::replace(&mut registered, true) {
                    tracing::info!(provider = config.id, "registered with Omni");
                }
                backoff.reset();
                tell(expiry_warning(&client, UnixTime::now()).unwrap_or_default(), "renew the key");
                REGISTER_AGAIN
            }
            Err(error) => {
                tell(error.explain(), "not registered with Omni; trying again");
                backoff.pause(getrandom::u32().unwrap_or(u32::MAX / 2))
            }
        };
        // Cancel-safe: all three only wait.
        tokio::select! {
            () = cancel.cancelled() => return,
            () = forgotten.notified(), if registered => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What to say of a key that expires within [`EXPIRY_WARNING`] of `now`. Omni itself gives no warning.
fn expiry_warning(client: &Client, now: UnixTime) -> Option<String> {
    let expiry = client.key_expiry().filter(|expiry| expiry.since(now) <= EXPIRY_WARNING)?;
    let id = client.provider_id();
    Some(format!("the service account key expires on {expiry}; renew it with `omnictl infraprovider renewkey {id}`"))
}

/// The icon as the Go provider sends it: base64 without padding.
fn icon() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD_NO_PAD.encode(ICON)
}
