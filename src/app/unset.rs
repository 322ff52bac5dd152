//! The provider of a box that nobody has set up: it says so, and waits to be started anew.
//!
//! An edge: it binds the provider's socket.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use super::{Running, allowed, peers, socket};
use crate::config::Config;
use crate::ipc;
use crate::status::{Link, Snapshot};
use crate::time::UnixTime;

/// What such a service says of itself.
pub(super) const WORDS: &str = "waits: the box is not set up";
/// What the page and the console say where Omni would be.
const TROUBLE: &str = "The box is not set up. Its page's Setup, or pilotlight.toml on its PILOTLIGHT partition or a stick, tells it \
                       where Omni is and gives it the key.";

/// Serves a snapshot without machines.
pub(super) fn provider(config: &Config, running: &mut Running) -> anyhow::Result<()> {
    let (_, snapshots) = watch::channel(Arc::new(snapshot(config, UnixTime::now())));
    let listener = ipc::bind(&socket(&config.run_dir, "provider")).context("provider socket")?;
    let cancel = running.cancel.clone();
    running.up("provider", WORDS.to_owned());
    running.spawn("status", peers::serve_status(listener, allowed(&["web", "console"]), snapshots, cancel));
    Ok(())
}

fn snapshot(config: &Config, started: UnixTime) -> Snapshot {
    Snapshot {
        provider_id: config.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started,
        omni: Link { trouble: TROUBLE.to_owned(), ..Link::default() },
        ..Snapshot::default()
    }
}
