//! The connection to Omni: HTTP/2 in the clear or over TLS, opened at the first call and reopened when it breaks.
//!
//! Source: contract omni-wire.md sections 1.1 and 1.2.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::DigitallySignedStruct;
use rustls::SignatureScheme;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Builder};

use super::endpoint::Endpoint;
use super::proxy::Proxy;

/// How long a TCP connection and, after it, a TLS handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A ping on an open stream this often finds a dead peer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long a ping may stay unanswered.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How we name ourselves.
pub(crate) const USER_AGENT: &str = concat!("pilotlight/", env!("CARGO_PKG_VERSION"));
/// Largest message either way: 32 MiB, as Omni's own.
pub(crate) const MAX_MESSAGE: usize = 32 << 20;
/// How long an answer to a unary call, or the next part of a list, may take.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// A channel to `endpoint` that has not connected yet. Must be called within a tokio runtime.
///
/// `extra_roots` is PEM, trusted beside the public roots. `insecure_skip_tls_verify` accepts any certificate. Through
/// `proxy` a tunnel is asked for first.
///
/// # Errors
///
/// tonic's, when the endpoint's host cannot be a TLS server name or `extra_roots` is no PEM.
pub(crate) fn open(
    endpoint: &Endpoint,
    extra_roots: Option<&str>,
    insecure_skip_tls_verify: bool,
    proxy: Option<Proxy>,
) -> Result<Channel, tonic::transport::Error> {
    let mut builder = Builder::from_shared(endpoint.to_string())?
        .user_agent(USER_AGENT)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    if endpoint.tls {
        // The host is given without brackets: with them an IPv6 address is no server name.
        let tls = ClientTlsConfig::new().domain_name(&endpoint.host).timeout(CONNECT_TIMEOUT);
        builder = if insecure_skip_tls_verify {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            builder.tls_config_with_verifier(tls, Arc::new(AnyCertificate { provider }))?
        } else {
            let tls = tls.with_webpki_roots();
            let tls = match extra_roots {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls,
            };
            builder.tls_config(tls)?
        };
    }
    let Some(proxy) = proxy else { return Ok(builder.connect_lazy()) };
    let target = endpoint.authority();
    Ok(builder.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (proxy, target) = (proxy.clone(), target.clone());
        async move { proxy.connect(&target).await.map(TokioIo::new) }
    })))
}

/// Accepts whatever certificate the peer shows, and still checks that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
