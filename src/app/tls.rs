//! Wires the page's port that speaks TLS.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use axum::Router;
use tokio::net::TcpListener;

use super::Running;
use crate::netboot::serve::{self, OverTls};
use crate::settings::disk::Directory;
use crate::web::encrypted;
use crate::web::identity::Identity;

/// The file beside the service's sockets that says its certificate's fingerprint to the console.
pub(super) const FINGERPRINT: &str = "fingerprint";

/// Serves `router` over TLS on `address`; returns it with the certificate to fetch, for the plain port. Key and certificate
/// are kept in `state`, the fingerprint is told in `run`.
///
/// # Errors
///
/// Why the page is served in the clear alone.
pub(super) async fn start(
    address: SocketAddr,
    (state, run): (&Path, &Path),
    router: Router,
    running: &mut Running,
) -> anyhow::Result<Router> {
    let mut files = Directory::new(state, None);
    files.make().with_context(|| state.display().to_string())?;
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let mut names = vec!["pilotlight".to_owned(), "pilotlight.local".to_owned()];
    if host.len() <= 63 && !host.is_empty() && host.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
    {
        names.extend([host.clone(), format!("{host}.local")]);
    }
    names.dedup();
    let (identity, lost) = Identity::load(&mut files, "Pilotlight", &names).context("the page's certificate")?;
    if let Some(error) = lost {
        tracing::warn!(%error, "the page's certificate can't be kept; it is another one at the next start");
    }
    let listener = TcpListener::bind(address).await.with_context(|| format!("{address} can't be bound"))?;
    let (bound, fingerprint) = (listener.local_addr().unwrap_or(address), identity.fingerprint());
    if let Err(error) = Directory::new(run, None).write_for_group(FINGERPRINT, fingerprint.as_bytes()) {
        tracing::warn!(%error, "the console can't be told the certificate's fingerprint");
    }
    running.up("web", format!("https://{bound}"));
    tracing::info!(address = %bound, fingerprint, "the page is served over TLS, too");
    let router = router.merge(encrypted::certificate(identity.pem()));
    let over = OverTls { fingerprint: fingerprint.into() };
    let (config, served, cancel) = (identity.server()?, router.clone(), running.cancel.clone());
    running.spawn("web over TLS", async move {
        serve::serve_tls(listener, config, over, served, cancel).await;
        Ok(())
    });
    Ok(router)
}
