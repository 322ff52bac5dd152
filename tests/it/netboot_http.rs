//! The HTTP routes: curl for ranges, HEAD and h2c; a herd of machines; clients that mean no good.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pilotlight::boot::files::NAMES;
use pilotlight::boot::{Advertise, Binary, BootAnswer, BootFiles, BootRequest, script};
use pilotlight::images::{Cache, Limits, MemoryIndex, Origin};
use pilotlight::machine::MachineId;
use pilotlight::netboot::http::{BootDesk, ConfigRefusal, image_router, router};
use pilotlight::netboot::serve::{beside_grpc, serve};
use pilotlight::secret::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::netboot_images::{TinyOrigin, asset};
use crate::peers::require;

const PATIENCE: Duration = Duration::from_secs(30);
const UUID: &str = "4c4c4544-0042-3510-8054-b7c04f333132";

/// Boots whoever asks, and knows one machine's configuration.
#[derive(Default)]
struct Desk(AtomicUsize);

#[async_trait]
impl BootDesk for Desk {
    async fn boot(&self, request: BootRequest) -> BootAnswer {
        self.0.fetch_add(1, Ordering::SeqCst);
        BootAnswer::script(format!("#!ipxe\necho {} {} {}\n", request.uuid, request.peer, request.arch), "test")
    }

    async fn machine_config(&self, uuid: Option<MachineId>, _: IpAddr) -> Result<Secret<String>, ConfigRefusal> {
        match uuid {
            Some(uuid) if uuid.as_str() == UUID => Ok(Secret::new("apiVersion: v1alpha1\n".into())),
            Some(_) => Err(ConfigRefusal::Unknown),
            None => Err(ConfigRefusal::NotReady),
        }
    }
}

struct Service {
    address: SocketAddr,
    desk: Arc<Desk>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    cache: Arc<Cache>,
    origin: TinyOrigin,
    directory: tempfile::TempDir,
}

const INITRAMFS: &[u8] = &[7; 700_000];

async fn start() -> Service {
    let directory = tempfile::tempdir().unwrap();
    let assets = directory.path().join("assets");
    std::fs::create_dir_all(assets.join("sub")).unwrap();
    std::fs::write(assets.join("kernel-amd64"), (0..1_000_000u32).map(|at| (at / 3) as u8).collect::<Vec<_>>())
        .unwrap();
    std::fs::write(directory.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", assets.join("way-out")).unwrap();
    let origin = TinyOrigin::start(INITRAMFS.to_vec()).await;
    let images = directory.path().join("images");
    let index = Arc::new(MemoryIndex::default());
    let cache =
        Cache::open(&images, Origin::new(&origin.url).unwrap(), index, Limits::default()).await.map(Arc::new).unwrap();
    let files = BootFiles::new(Binary::ALL.map(|binary| (binary, Bytes::from(format!("{binary:?} 0123456789")))));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let advertise = Advertise { host: "127.0.0.1".parse().unwrap(), port: address.port() };
    let desk = Arc::new(Desk::default());
    let shared: Arc<dyn BootDesk> = Arc::clone(&desk) as _;
    let router = router(shared, Arc::new(files), Some(assets), &advertise).merge(image_router(Arc::clone(&cache)));
    // gRPC beside it, as the provider has it.
    let router = beside_grpc(router, tonic::service::Routes::default().into_axum_router());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(serve(listener, router, cancel.clone()));
    Service { address, desk, cancel, task, cache, origin, directory }
}

/// One request as written, on a connection of its own; status, header block and body.
async fn raw(address: SocketAddr, request: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end + 4..].to_vec())
}

async fn curl(arguments: &[&str], url: &str) -> Vec<u8> {
    let output = Command::new("curl").args(["-sS", "-m", "20"]).args(arguments).arg(url).kill_on_drop(true).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert!(output.status.success(), "{arguments:?} {url}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_name_that_dhcp_can_hand_out_is_served() {
    use pilotlight::boot::Firmware::*;
    let service = start().await;
    let names: BTreeSet<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    for firmware in [X86Pc, X86Efi, ArmEfi, X86Http, ArmHttp] {
        assert!(names.contains(firmware.boot_file()));
    }
    for (name, binary) in NAMES {
        let (status, head, body) = raw(service.address, &format!("GET /tftp/{name}")).await;
        assert_eq!((status, body), (200, format!("{binary:?} 0123456789").into_bytes()), "{name}");
        assert!(head.contains("content-length:") && !head.contains("chunked"), "{head}");
    }
    let (status, _, body) = raw(service.address, "GET /ipxe/init.ipxe").await;
    assert_eq!(status, 200);
    let url = format!("http://{}/ipxe/boot.ipxe?disk=script&", service.address);
    assert!(String::from_utf8(body).unwrap().contains(&url));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_answers_as_the_contract_says() {
    let service = start().await;
    for (request, status, body) in [
        (format!("GET /config?u={UUID}"), 200, "apiVersion: v1alpha1\n"),
        ("GET /config?u=00112233-4455-6677-8899-010203040506".into(), 404, "404 page not found\n"),
        ("GET /config".into(), 503, "the configuration is not there yet\n"),
        ("GET /ipxe/boot.ipxe".into(), 400, "the query has no uuid\n"),
        ("GET /ipxe/boot.ipxe?uuid=x".into(), 400, "the uuid is unusable: "),
        (
            "GET /ipxe/boot.ipxe?disk=script&uuid=00000000-0000-0000-0000-000000000000".into(),
            200,
            "#!ipxe\necho the uuid",
        ),
        (format!("GET /ipxe/boot.ipxe?uuid={UUID}&arch=arm64"), 200, "#!ipxe\necho 4c4c4544-"),
        ("GET /tftp/nothing".into(), 404, "404 page not found\n"),
        ("GET /tftp/".into(), 404, ""),
        ("GET /ipxe/autoexec.ipxe".into(), 404, ""),
        ("GET /".into(), 404, ""),
        (format!("POST /config?u={UUID}"), 405, ""),
        ("DELETE /assets/kernel-amd64".into(), 405, ""),
    ] {
        let (got, _, text) = raw(service.address, &request).await;
        assert_eq!(got, status, "{request}");
        assert!(String::from_utf8_lossy(&text).starts_with(body), "{request}: {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_are_files_below_the_directory_and_are_not_listed() {
    let service = start().await;
    assert_eq!(raw(service.address, "GET /assets/kernel-amd64").await.0, 200);
    for path in [
        "/assets/",
        "/assets/sub",
        "/assets/sub/",
        "/assets/../secret",
        "/assets/..%2fsecret",
        "/assets/%2e%2e/secret",
        "/assets/sub/../../secret",
        "/assets//etc/passwd",
        "/assets/%2Fetc%2Fpasswd",
        "/assets/way-out",
        "/assets/kernel-amd64%00",
        "/assets/%ff",
    ] {
        let (status, _, body) = raw(service.address, &format!("GET {path}")).await;
        assert!((400..500).contains(&status), "{path}: {status}");
        assert!(!body.starts_with(b"secret") && !body.starts_with(b"root:"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_ranges_heads_and_h2c() {
    if !require("curl", "curl") {
        return;
    }
    let service = start().await;
    let url = |path: &str| format!("http://{}{path}", service.address);
    let kernel: Vec<u8> = std::fs::read(service.directory.path().join("assets/kernel-amd64")).unwrap();
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        assert!(curl(&[protocol], &url("/assets/kernel-amd64")).await == kernel);
        assert!(curl(&[protocol, "-r", "500000-"], &url("/assets/kernel-amd64")).await == kernel[500_000..]);
        assert!(curl(&[protocol, "-r", "10-19"], &url("/assets/kernel-amd64")).await == kernel[10..20]);
        assert!(curl(&[protocol, "-r", "-5"], &url("/tftp/snp.efi")).await == b"56789");
        let head =
            String::from_utf8(curl(&[protocol, "-I"], &url("/assets/kernel-amd64")).await).unwrap().to_lowercase();
        assert!(head.contains(" 200") && head.contains("content-length: 1000000") && head.contains("accept-ranges"));
        let head =
            String::from_utf8(curl(&[protocol, "-I"], &url("/tftp/amd64/snp.efi")).await).unwrap().to_lowercase();
        assert!(head.contains("content-length: 17") && head.contains("application/efi"), "{head}");
        let part = curl(&[protocol, "-r", "2000000-", "-D", "-"], &url("/assets/kernel-amd64")).await;
        let part = String::from_utf8(part).unwrap();
        assert!(part.contains(" 416") && part.to_lowercase().contains("content-range: bytes */1000000"), "{part}");
        let part = curl(&[protocol, "-r", "1-2", "-D", "-"], &url("/tftp/snp.efi")).await;
        let part = String::from_utf8(part).unwrap();
        assert!(part.contains(" 206") && part.to_lowercase().contains("content-range: bytes 1-2/17"), "{part}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_told_apart_by_its_content_type() {
    if !require("curl", "curl") {
        return;
    }
    let service = start().await;
    let url = format!("http://{}/grpctunnel.v1.Nothing/Call", service.address);
    let grpc = ["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc", "-D", "-"];
    let answer = String::from_utf8(curl(&grpc, &url).await).unwrap();
    assert!(answer.contains("grpc-status: 12"), "{answer}");
    for other in [&["--http2-prior-knowledge", "-D", "-"][..], &["-H", "content-type: application/grpc", "-D", "-"]] {
        let answer = String::from_utf8(curl(other, &url).await).unwrap();
        assert!(answer.contains(" 404"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_fetched_for_registered_schematics_alone() {
    let service = start().await;
    let get = format!("GET /image/{}", asset("initramfs-amd64.xz"));
    assert_eq!(raw(service.address, &get).await.0, 404);
    service.cache.schematic("customization: {}\n").await.unwrap();
    for _ in 0..2 {
        let (status, _, body) = raw(service.address, &get).await;
        assert!(status == 200 && body == INITRAMFS, "{status}");
    }
    assert!(service.origin.url.starts_with("http://127.0.0.1"));
    assert_eq!(raw(service.address, &get.replace("initramfs-amd64.xz", "passwd")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_of_two_hundred_machines_is_answered() {
    let service = start().await;
    let mut herd = tokio::task::JoinSet::new();
    for machine in 0..200 {
        let address = service.address;
        herd.spawn(async move {
            let request = format!("GET /ipxe/boot.ipxe?uuid=4c4c4544-0042-3510-8054-{machine:012x}&arch=x86_64");
            (machine, raw(address, &request).await)
        });
    }
    while let Some(answer) = herd.join_next().await {
        let (machine, (status, _, body)) = answer.unwrap();
        let expected = format!("#!ipxe\necho 4c4c4544-0042-3510-8054-{machine:012x} 127.0.0.1 amd64\n");
        assert_eq!((status, body), (200, expected.into_bytes()));
    }
    assert_eq!(service.desk.0.load(Ordering::SeqCst), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_nothing_is_hung_up_on() {
    let service = start().await;
    let mut clients = Vec::new();
    for beginning in ["", "P", "GET /config HTTP/1.1\r\nhost"] {
        let mut stream = TcpStream::connect(service.address).await.unwrap();
        stream.write_all(beginning.as_bytes()).await.unwrap();
        clients.push(stream);
    }
    for mut stream in clients {
        let mut rest = Vec::new();
        // The end of the connection is what is waited for; whether an answer comes before it does not matter.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("hung up on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_ends_when_told_though_a_client_is_idle() {
    let service = start().await;
    let mut idle = TcpStream::connect(service.address).await.unwrap();
    idle.write_all(b"GET /ipxe/init.ipxe HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    service.cancel.cancel();
    timeout(PATIENCE, service.task).await.unwrap().unwrap();
    assert!(Path::new(service.directory.path()).exists());
}

#[test]
fn our_init_script_is_told_the_way_to_the_disk_where_others_get_404() {
    let query = |disk: &str| format!("uuid={UUID}{disk}");
    for (disk, status) in [("", 404), ("&disk=script", 200)] {
        let request = BootRequest::parse(&query(disk), [127, 0, 0, 1].into()).unwrap();
        let answer = script::refused(script::Refusal::Cordoned, script::DiskMethod::IpxeExit, request.disk_script);
        assert_eq!(answer.status.as_u16(), status);
    }
}
