//! The page over TLS, as OpenSSL and curl see it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use pilotlight::netboot::serve::{self, OverTls};
use pilotlight::status::Snapshot;
use pilotlight::web::identity::Identity;
use pilotlight::web::{encrypted, router_with};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

use crate::peers;

/// The page on two ports.
struct Page {
    dir: TempDir,
    fingerprint: String,
    plain: u16,
    tls: u16,
    _end: DropGuard,
    _status: watch::Sender<Arc<Snapshot>>,
}

impl Page {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::make("Pilotlight", &["pilotlight".to_owned(), "box.local".to_owned()]).unwrap();
        fs::write(dir.path().join("certificate.pem"), identity.pem()).unwrap();
        let (sender, status) = watch::channel(Arc::new(Snapshot::default()));
        let router = router_with(status, encrypted::certificate(identity.pem()));
        let cancel = CancellationToken::new();
        let bind = || TcpListener::bind(("127.0.0.1", 0));
        let (plain, tls) = (bind().await.unwrap(), bind().await.unwrap());
        let (plain_port, tls_port) = (plain.local_addr().unwrap().port(), tls.local_addr().unwrap().port());
        let over = OverTls { fingerprint: identity.fingerprint().into() };
        let config = identity.server().unwrap();
        tokio::spawn(serve::serve_tls(tls, config, over, router.clone(), cancel.clone()));
        tokio::spawn(serve::serve(plain, encrypted::beside_tls(router, tls_port), cancel.clone()));
        Self {
            dir,
            fingerprint: identity.fingerprint(),
            plain: plain_port,
            tls: tls_port,
            _end: cancel.drop_guard(),
            _status: sender,
        }
    }

    fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// A program's exit code and all that it says.
    async fn run(&self, program: &str, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_knows_the_box_by_its_certificate_alone() {
    if !peers::require("curl", "curl") {
        return;
    }
    let page = Page::start().await;
    let known = page.certificate().display().to_string();
    for name in ["pilotlight", "box.local"] {
        let (url, to) = (format!("https://{name}:{}/readyz", page.tls), format!("{name}:{}:127.0.0.1", page.tls));
        for version in ["--http1.1", "--http2"] {
            let arguments = ["-sS", version, "--cacert", &known, "--resolve", &to, &url];
            let (code, said) = page.run("curl", &arguments).await;
            assert!(code == 0 && said.contains("no service has reported yet"), "{name} {version}: {code} {said}");
        }
    }
    // 60: the certificate is not known; also of a box of another name.
    let url = format!("https://127.0.0.1:{}/readyz", page.tls);
    assert_eq!(page.run("curl", &["-sS", "--cacert", &known, &url]).await.0, 60);
    assert_eq!(page.run("curl", &["-sS", &url]).await.0, 60);
    // What is fetched in the clear is what TLS shows, and forms are not shown there.
    let plain = |path: &str| format!("http://127.0.0.1:{}{path}", page.plain);
    let (_, fetched) = page.run("curl", &["-sS", &plain("/certificate.pem")]).await;
    assert_eq!(fetched, fs::read_to_string(page.certificate()).unwrap());
    let (_, sent) = page.run("curl", &["-sS", "-o", "/dev/null", "-w", "%{redirect_url}", &plain("/setup")]).await;
    assert_eq!(sent, format!("https://127.0.0.1:{}/setup", page.tls));
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_accepts_the_certificate_and_shows_the_same_fingerprint() {
    if !peers::require("openssl", "openssl") {
        return;
    }
    let page = Page::start().await;
    let (known, at) = (page.certificate().display().to_string(), format!("127.0.0.1:{}", page.tls));
    for version in ["-tls1_2", "-tls1_3"] {
        let arguments = [
            "s_client",
            version,
            "-connect",
            &at,
            "-CAfile",
            &known,
            "-verify_return_error",
            "-verify_hostname",
            "box.local",
            "-servername",
            "box.local",
            "-purpose",
            "sslserver",
        ];
        let (code, said) = page.run("openssl", &arguments).await;
        assert!(code == 0 && said.contains("Verify return code: 0 (ok)"), "{version}: {said}");
    }
    for refused in ["-tls1_1", "-tls1"] {
        let (code, said) = page.run("openssl", &["s_client", refused, "-connect", &at]).await;
        assert!(code != 0, "{refused}: {said}");
    }
    let (_, said) = page.run("openssl", &["x509", "-noout", "-fingerprint", "-sha256", "-in", &known]).await;
    assert_eq!(said.trim().rsplit_once('=').unwrap().1, page.fingerprint);
    let (_, said) = page.run("openssl", &["x509", "-noout", "-text", "-in", &known]).await;
    for wanted in [
        "Version: 3",
        "CN = Pilotlight",
        "Not After : Dec 31 23:59:59 9999 GMT",
        "DNS:pilotlight, DNS:box.local",
        "TLS Web Server Authentication",
        "Digital Signature",
        "CA:FALSE",
        "ASN1 OID: prime256v1",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}
