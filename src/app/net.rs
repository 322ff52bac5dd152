//! Wires the `net` service: its socket, its clock and the task that owns the network.

use std::sync::Arc;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Running, allowed, socket};
use crate::config::Config;
use crate::ipc;
use crate::net::service::{self, Ends, Paths, Surroundings};
use crate::net::status::{ClockStatus, NetworkStatus};
use crate::net::trial::{Refused, Request};

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
    let paths = Paths { state: config.state_dir.join("net"), run: config.run_dir.join("net") };
    let listener = ipc::bind(&socket(&config.run_dir, "net")).context("net socket")?;
    let cancel = running.cancel.clone();
    let (asker, requests) = mpsc::channel(REQUESTS);
    let (status, shown) = watch::channel(Arc::new(NetworkStatus::default()));
    let (_clock, clock) = watch::channel(ClockStatus::default());
    let (surroundings, _) = watch::channel(Surroundings::default());
    let ends = Ends { requests, status, clock, surroundings };
    running.spawn("net", service::run(paths, ends, cancel.clone()));
    let answer = move |_: ipc::Peer, request: NetRequest| {
        let (shown, asker) = (shown.clone(), asker.clone());
        async move { answer(request, shown, asker).await }
    };
    let allowed = allowed(&["web", "console"]);
    running.spawn("net socket", async move {
        ipc::serve(listener, allowed, cancel, answer).await;
        Ok(())
    });
    Ok(())
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
            NetResponse::Changed(answered.await.unwrap_or_else(|_| Err(Refused::Disk("the service ends".to_owned()))))
        }
    }
}
