//! The TFTP service against tftp-hpa, atftp and curl.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pilotlight::boot::files::NAMES;
use pilotlight::boot::{Binary, BootFiles};
use pilotlight::netboot::Counters;
use pilotlight::netboot::tftp::{self, AsyncTftp, Sockets};
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::peers::require;

const PATIENCE: Duration = Duration::from_secs(30);

struct Service {
    address: SocketAddr,
    files: Arc<BootFiles>,
    counters: Counters,
    cancel: CancellationToken,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn start() -> Service {
    // Sizes around the edges of a block: a multiple of 512 and of 1468, one less, one more.
    let sizes = [512 * 1468, 300_001, 512, 511, 1_100_000];
    let octets = |size: usize, seed: usize| (0..size).map(|at| (at * 31 + at / 251 + seed) as u8).collect::<Bytes>();
    let binaries = Binary::ALL.into_iter().zip(sizes).enumerate();
    let files = Arc::new(BootFiles::new(binaries.map(|(seed, (binary, size))| (binary, octets(size, seed)))));
    let sockets = Sockets::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = sockets.addresses()[0];
    let (counters, cancel) = (Counters::default(), CancellationToken::new());
    let engine = Arc::new(AsyncTftp::new(Arc::clone(&files), counters.clone()));
    tokio::spawn(tftp::run(sockets, engine, cancel.clone()));
    Service { address, files, counters, cancel }
}

async fn succeeds(command: &mut Command) {
    let output = timeout(PATIENCE, command.kill_on_drop(true).output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn same(service: &Service, name: &str, got: &Path) {
    let want = service.files.get(name).unwrap();
    assert!(std::fs::read(got).unwrap() == want, "{name} differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tftp_hpa_gets_every_name() {
    if !require("tftp", "tftp-hpa") {
        return;
    }
    let (service, directory) = (start(), tempfile::tempdir().unwrap());
    for (index, (name, _)) in NAMES.iter().enumerate() {
        let local = directory.path().join(index.to_string());
        let mut command = Command::new("tftp");
        command.args(["-m", "octet", "127.0.0.1", &service.address.port().to_string(), "-c", "get", name]);
        succeeds(command.arg(&local)).await;
        same(&service, name, &local);
    }
    assert_eq!(service.counters.value("tftp_requests"), NAMES.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn atftp_gets_files_with_every_option() {
    if !require("atftp", "atftp") {
        return;
    }
    let (service, directory) = (start(), tempfile::tempdir().unwrap());
    let options: [&[&str]; 4] = [
        &[],
        &["--option", "blksize 1468"],
        &["--option", "tsize 0", "--option", "blksize 1468"],
        &["--option", "blksize 1432", "--option", "windowsize 8"],
    ];
    for (index, options) in options.iter().enumerate() {
        let local = directory.path().join(index.to_string());
        let mut command = Command::new("atftp");
        command.args(*options).args(["--get", "-r", "undionly.kpxe", "-l"]).arg(&local);
        succeeds(command.args(["127.0.0.1", &service.address.port().to_string()])).await;
        same(&service, "undionly.kpxe", &local);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_told_which_file_is_not_there() {
    if !require("curl", "curl") {
        return;
    }
    let (service, directory) = (start(), tempfile::tempdir().unwrap());
    let local = directory.path().join("snp.efi");
    let mut command = Command::new("curl");
    command.args(["-sS", "-o"]).arg(&local).args(["--tftp-blksize", "1468"]);
    succeeds(command.arg(format!("tftp://{}/snp.efi", service.address))).await;
    same(&service, "snp.efi", &local);
    let missing = Command::new("curl")
        .args(["-sS", "-m", "10", &format!("tftp://{}/../../etc/passwd", service.address)])
        .kill_on_drop(true)
        .output();
    let missing = timeout(PATIENCE, missing).await.unwrap().unwrap();
    assert!(!missing.status.success());
    assert_eq!(service.counters.value("tftp_unknown_name"), 1);
}

/// An RRQ as EDK2 sends it first, to learn the size.
const SIZE_PROBE: &[u8] = b"\0\x01snp.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_is_told_and_an_abandoned_probe_does_not_keep_the_machine_from_its_file() {
    let service = start();
    let probe = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    probe.send_to(SIZE_PROBE, service.address).await.unwrap();
    let mut buffer = [0; 2048];
    let (len, transfer) = timeout(PATIENCE, probe.recv_from(&mut buffer)).await.unwrap().unwrap();
    let oack = &buffer[..len];
    let size = service.files.get("snp.efi").unwrap().len();
    for pair in [format!("tsize\0{size}\0"), "blksize\x001468\0".into(), "windowsize\x004\0".into()] {
        let at = oack.windows(pair.len()).position(|window| window == pair.as_bytes());
        assert!(oack.starts_with(&[0, 6]) && at.is_some(), "{pair:?} in {oack:?}");
    }
    probe.send_to(b"\0\x05\0\x08User aborted the transfer\0", transfer).await.unwrap();
    let second = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    second.send_to(b"\0\x01snp-arm64.efi\0octet\0", service.address).await.unwrap();
    let (len, _) = timeout(PATIENCE, second.recv_from(&mut buffer)).await.unwrap().unwrap();
    // 511 octets: one short block is the whole file.
    assert_eq!((len, &buffer[..4]), (4 + 511, &[0, 3, 0, 1][..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_one_address_is_told_to_come_back_and_others_are_served() {
    let service = start();
    let mut flood = Vec::new();
    for _ in 0..12 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(SIZE_PROBE, service.address).await.unwrap();
        flood.push(client);
    }
    let (mut accepted, mut busy) = (0, 0);
    for client in &flood {
        let mut buffer = [0; 2048];
        let (len, _) = timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
        match buffer[1] {
            6 => accepted += 1,
            5 if buffer[..len].windows(4).any(|window| window == b"busy") => busy += 1,
            other => panic!("opcode {other}"),
        }
    }
    assert_eq!((accepted, busy), (8, 4));
    let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    other.send_to(SIZE_PROBE, service.address).await.unwrap();
    let mut buffer = [0; 2048];
    timeout(PATIENCE, other.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(buffer[1], 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_is_refused() {
    let service = start();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(b"\0\x02snp.efi\0octet\0", service.address).await.unwrap();
    let mut buffer = [0; 600];
    timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..2], &[0, 5]);
    assert_eq!(service.counters.value("tftp_write_refused"), 1);
}
