//! Our Omni, beside the machines.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use pilotlight::lab::omni::factory::AssetSource;
use pilotlight::lab::omni::{Omni, Options};
use tokio::sync::oneshot;

use super::site::OMNI;

/// The provider that it knows.
pub const PROVIDER_ID: &str = "e2e";

/// Omni, on a thread of its own inside the rack's namespace.
pub struct OmniThread {
    pub omni: Arc<Omni>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl OmniThread {
    pub fn start(namespace: &str, assets: &Path) -> anyhow::Result<Self> {
        let entrance = std::fs::File::open(format!("/run/netns/{namespace}"))?;
        let address: IpAddr = OMNI.parse()?;
        let options = Options {
            grpc: (address, 0).into(),
            factory: (address, 0).into(),
            advertise: address,
            assets: AssetSource::Directory(assets.to_owned()),
            ..Options::loopback(PROVIDER_ID)
        };
        let (started, result) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let run = || -> anyhow::Result<()> {
                // Sockets belong to the namespace of the thread that makes them: this thread serves, and nothing else.
                setns(entrance, CloneFlags::CLONE_NEWNET)?;
                tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                    let omni = Arc::new(Omni::start(options).await?);
                    started.send(Ok(omni)).context("nobody waits")?;
                    let _ = stopped.await;
                    Ok(())
                })
            };
            if let Err(error) = run() {
                let _ = started.send(Err(error));
            }
        });
        let omni = result.recv().context("Omni's thread died")??;
        Ok(Self { omni, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for OmniThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
