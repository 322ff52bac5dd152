//! Wires the `net` service: its socket, its clock and the task that owns the network.

use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Running, allowed, socket};
use crate::config::Config;
use crate::ipc;
use crate::net::service::{self, Ends, Paths, Surroundings};
use crate::net::status::{ClockStatus, NetworkStatus};
use crate::net::trial::{Refused, Request};
use crate::net::{mdns, timekeeper};

/// Requests that wait to be carried out.
const REQUESTS: usize = 8;

/// What others ask of the net service.
#[derive(Debug, Serialize, Deserialize)]
pub enum NetRequest {
    /// How the network is, as JSON of [`NetworkStatus`]: the two sides may be of different versions for a moment.
    Status,
    /// Change it.
    Change(Request),
}

/// What they are answered.
#[derive(Debug, Serialize, Deserialize)]
pub enum NetResponse {
    /// JSON of [`NetworkStatus`].
    Status(String),
    /// Whether it was done.
    Changed(Result<(), Refused>),
}

/// Starts the service's tasks.
pub(super) fn start(config: &Config, running: &mut Running) -> anyhow::Result<()> {
    let paths = Paths {
        state: config.state_dir.join("net"),
        run: config.run_dir.join("net"),
        hostname: config.hostname.clone(),
    };
    let listener = ipc::bind(&socket(&config.run_dir, "net")).context("net socket")?;
    let cancel = running.cancel.clone();
    let (asker, requests) = mpsc::channel(REQUESTS);
    let (status, shown) = watch::channel(Arc::new(NetworkStatus::default()));
    let (time, clock) = watch::channel(ClockStatus::default());
    let (surroundings, seen) = watch::channel(Surroundings::default());
    if config.manage_network {
        let omni = config.omni.endpoint.parse().ok();
        running.reaching(shown.clone(), |status: &Arc<NetworkStatus>| status.has_address());
        running.spawn("clock", timekeeper::run(seen.clone(), omni, time, cancel.clone()));
        running.spawn("names", mdns::run(seen, cancel.clone()));
        running.spawn("net", service::run(paths, Ends { requests, status, clock, surroundings }, cancel.clone()));
    } else {
        // On a machine that has an operating system of its own, that one sees to it.
        tracing::info!("the network is left as it is; with --manage-network this service sets it");
        let trouble = vec!["the network is not this box' own to set: --manage-network is not given".to_owned()];
        status.send_replace(Arc::new(NetworkStatus { trouble, ..NetworkStatus::default() }));
        running.spawn("net", refuse(requests, cancel.clone()));
    }
    let answer = move |_: ipc::Peer, request: NetRequest| {
        let (shown, asker) = (shown.clone(), asker.clone());
        async move { answer(request, shown, asker).await }
    };
    let allowed = allowed(&["web", "console", "settings"]);
    running.spawn("net socket", async move {
        ipc::serve(listener, allowed, cancel, answer).await;
        Ok(())
    });
    Ok(())
}

/// Refuses every change until `cancel`.
async fn refuse(mut requests: mpsc::Receiver<service::Asked>, cancel: CancellationToken) -> anyhow::Result<()> {
    loop {
        // Cancel-safe: a request that is not received stays in the channel.
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            Some((_, answer)) = requests.recv() => {
                // Whoever asked may be gone.
                let _ = answer.send(Err(Refused::NotOurs));
            }
        }
    }
}

async fn answer(
    request: NetRequest,
    shown: watch::Receiver<Arc<NetworkStatus>>,
    asker: mpsc::Sender<service::Asked>,
) -> NetResponse {
    match request {
        NetRequest::Status => NetResponse::Status(serde_json::to_string(&**shown.borrow()).unwrap_or_default()),
        NetRequest::Change(change) => {
            let (answer, answered) = oneshot::channel();
            // The service ends only with its process.
            let _ = asker.send((change, answer)).await;
            NetResponse::Changed(answered.await.unwrap_or(Err(Refused::Ending)))
        }
    }
}
