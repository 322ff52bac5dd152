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
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pings find a peer that is gone without a word. They are sent only while a stream is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keepalive {
    /// From what was heard last to a ping.
    interval: Duration,
    /// How long a ping may stay unanswered.
    timeout: Duration,
}

/// As Omni's own clients.
const KEEPALIVE: Keepalive = Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
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
    let mut builder = builder(endpoint, KEEPALIVE)?;
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

/// What all channels have in common.
fn builder(endpoint: &Endpoint, keepalive: Keepalive) -> Result<Builder, tonic::transport::Error> {
    let builder = Builder::from_shared(endpoint.to_string())?.user_agent(USER_AGENT)?;
    Ok(builder
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.timeout))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::proto::cosi::state_client::StateClient;
    use crate::proto::cosi::{GetOptions, GetRequest};

    /// Frame types and the flag of HTTP/2 (RFC 9113 section 6).
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    const PREFACE: usize = 24;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// An HTTP/2 server that takes a connection and answers nothing but, with `answers`, pings; returns the types of the
    /// frames that it got by the `pings`th ping, or by the end of the connection.
    async fn peer(listener: TcpListener, answers: bool, pings: usize) -> (Vec<u8>, TcpStream) {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; PREFACE]).await.unwrap();
        stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.unwrap();
        let mut frames = Vec::new();
        let mut head = [0; 9];
        while frames.iter().filter(|frame| **frame == PING).count() < pings
            && stream.read_exact(&mut head).await.is_ok()
        {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.unwrap();
            let (frame, is_ack) = (head[3], head[4] & ACK != 0);
            if frame == SETTINGS && !is_ack {
                stream.write_all(&[0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0]).await.unwrap();
            }
            if frame == PING && answers {
                stream.write_all(&[0, 0, 8, PING, ACK, 0, 0, 0, 0]).await.unwrap();
                stream.write_all(&payload).await.unwrap();
            }
            frames.push(frame);
        }
        (frames, stream)
    }

    /// A call to a peer, and the peer. The pings come sooner than in earnest.
    async fn call(answers: bool, pings: usize) -> (impl Future<Output = tonic::Status>, (Vec<u8>, TcpStream)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint: Endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let keepalive = Keepalive { interval: Duration::from_millis(50), timeout: Duration::from_millis(200) };
        let channel = builder(&endpoint, keepalive).unwrap().connect_lazy();
        let mut get = Box::pin(async move {
            let request = GetRequest { options: Some(GetOptions {}), ..GetRequest::default() };
            StateClient::new(channel).get(request).await.expect_err("nobody answers")
        });
        let peer = peer(listener, answers, pings);
        let met = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                status = &mut get => panic!("the call ended before the pings: {status}"),
                met = peer => met,
            }
        });
        let met = met.await.expect("it pings");
        (get, met)
    }

    #[tokio::test]
    async fn a_peer_that_falls_silent_under_a_call_is_left_and_one_that_answers_pings_is_not() {
        let (get, (frames, _open)) = call(false, 1).await;
        let (headers, ping) =
            (frames.iter().position(|frame| *frame == HEADERS), frames.iter().position(|frame| *frame == PING));
        assert!(headers.is_some() && headers < ping, "{frames:?}");
        let status = tokio::time::timeout(PATIENCE, get).await.expect("the silent peer is left");
        let mut text = status.to_string();
        let mut source = std::error::Error::source(&status);
        while let Some(cause) = source {
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        assert!(text.contains("keep-alive timed out"), "{text}");

        // Ten pings take longer than an answer may: the call still waits.
        let (_get, (frames, _open)) = call(true, 10).await;
        assert_eq!(frames.iter().filter(|frame| **frame == PING).count(), 10);
    }

    #[test]
    fn pings_are_as_far_apart_as_omnis_own_clients_have_them() {
        assert_eq!(KEEPALIVE, Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) });
        assert_eq!(MAX_MESSAGE, 33_554_432);
    }
}
