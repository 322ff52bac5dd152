//! A box with two slots in files, an init that the test plays, and a web server.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use http::request::Parts;
use pilotlight::netboot::serve;
use pilotlight::slots::{Slot, Version};
use pilotlight::status::Snapshot;
use pilotlight::supervise::cmdline;
use pilotlight::supervise::control::{self, MAX_REQUEST, Reply, SlotRecords, Status};
use pilotlight::update::protocol::{Job, Request, Response, State};
use pilotlight::update::service::{client, compatible};
use pilotlight::update::{Manifest, sign};
use pilotlight::web::{self, guard};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::peers;

/// Octets of a slot.
pub const SLOT: u64 = 8 << 20;
/// Octets of a chunk.
pub const CHUNK: u64 = 64 << 10;
/// Nothing that a test waits for takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn version(text: &str) -> Version {
    Version::parse(text).expect("SemVer")
}

pub fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Octets without a pattern that a chunk repeats.
pub fn image(length: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

pub fn manifest(of: &str, image: &[u8]) -> Manifest {
    Manifest::of(&compatible(), version(of), None, image, CHUNK as u32)
}

pub fn bundle(manifest: &Manifest, image: &[u8]) -> Vec<u8> {
    [sign(manifest, &key()), image.to_vec()].concat()
}

/// The box: its service, and what the test says as init.
pub struct TheBox {
    dir: TempDir,
    service: Child,
    init: Arc<Mutex<Init>>,
}

struct Init {
    status: Status,
    asked: Vec<control::Request>,
}

impl Drop for TheBox {
    fn drop(&mut self) {
        self.kill();
    }
}

impl TheBox {
    pub fn start(running: &str) -> Self {
        Self::start_behind(running, "")
    }

    /// A box whose way out is `proxy`.
    pub fn start_behind(running: &str, proxy: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["run/update", "state/update", "stick", "disk"] {
            fs::create_dir_all(dir.path().join(name)).expect("a directory");
        }
        for (name, octet) in [("slot-a", 0xaa), ("slot-b", 0xbb)] {
            fs::write(dir.path().join("disk").join(name), vec![octet; SLOT as usize]).expect("a slot");
        }
        let records = SlotRecords {
            committed: Slot::A,
            pending: None,
            versions: [Some(version(running)), None],
            failed: Vec::new(),
            want_recovery: false,
            trial: String::new(),
        };
        let slot = cmdline::Slot { name: "a".into(), ..cmdline::Slot::default() };
        let status = Status { slot, records: Some(records), ..Status::default() };
        let init = Arc::new(Mutex::new(Init { status, asked: Vec::new() }));
        play_init(&dir.path().join("run/init.sock"), Arc::clone(&init));
        let service = Self::spawn(dir.path(), proxy);
        Self { dir, service, init }
    }

    fn spawn(dir: &Path, proxy: &str) -> Child {
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        command.args(["service", "update", "--debug"]);
        command.arg(format!("--run-dir={}", dir.join("run").display()));
        command.arg(format!("--state-dir={}", dir.join("state").display()));
        command.arg(format!("--update-disk-path={}", dir.join("disk").display()));
        command.arg(format!("--update-stick-path={}", dir.join("stick").display()));
        command.arg(format!("--update-key={}", hex::encode(key().verifying_key().as_bytes())));
        command
            .env_clear()
            .env("HTTPS_PROXY", proxy)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        command.spawn().expect("it starts")
    }

    pub fn kill(&mut self) {
        let _ = self.service.kill();
        let _ = self.service.wait();
    }

    pub fn restart(&mut self) {
        self.service = Self::spawn(self.dir.path(), "");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn stick(&self) -> PathBuf {
        self.path("stick")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/update/update.sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("a log")
    }

    pub fn slot_a(&self) -> Vec<u8> {
        fs::read(self.path("disk/slot-a")).expect("a slot")
    }

    pub fn slot_b(&self, length: usize) -> Vec<u8> {
        let mut octets = vec![0; length];
        File::open(self.path("disk/slot-b")).expect("a slot").read_exact_at(&mut octets, 0).expect("it reads");
        octets
    }

    /// A version failed its trial.
    pub fn failed(&mut self, text: &str) {
        let mut init = self.init.lock().expect("no panic");
        init.status.records.as_mut().expect("they are there").failed.push(version(text));
    }

    /// The slot that may be written is this device.
    pub fn write_to(&self, device: &Path) {
        fs::remove_file(self.path("disk/slot-b")).expect("a slot");
        std::os::unix::fs::symlink(device, self.path("disk/slot-b")).expect("a link");
    }

    /// What init was asked so far.
    pub fn asked(&self) -> Vec<control::Request> {
        self.init.lock().expect("no panic").asked.clone()
    }

    pub async fn until_asked(&self, request: &control::Request) {
        self.wait(async || self.asked().contains(request).then_some(())).await;
    }

    pub async fn ask(&self, request: Request) {
        let answer = client(&self.socket()).call(&request).await;
        assert_eq!(answer.expect("it answers"), Response::Accepted, "{request:?}");
    }

    pub async fn state(&self) -> State {
        match client(&self.socket()).call(&Request::State).await {
            Ok(Response::State(state)) => state,
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    /// Waits until the job is as wanted.
    pub async fn until(&self, wanted: impl Fn(&Job) -> bool) -> Job {
        self.wait(async || self.state().await.job.filter(&wanted)).await
    }

    /// Waits until the slot holds that much, and not all; returns how much it is.
    pub async fn until_held(&self, octets: u64) -> u64 {
        let job = self.until(|job| job.held >= octets).await;
        assert!(!job.ended() && job.held < job.total, "too late: {job:?}");
        job.held
    }

    async fn wait<T>(&self, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let looking = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(found) => found,
            Err(_) => panic!("waited too long: {:?}\n{}", self.state().await, self.log()),
        }
    }

    /// The page, for those whom `guard` lets in.
    pub async fn page(&self, guard: impl guard::Guard) -> Page {
        let (sender, status) = watch::channel(Arc::new(Snapshot::default()));
        let updates = web::update::routes(client(&self.socket()), Arc::new(guard));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let cancel = CancellationToken::new();
        tokio::spawn(serve::serve(listener, web::router_with(status, updates), cancel.clone()));
        Page { address, _status: sender, _cancel: cancel.drop_guard() }
    }
}

pub struct Page {
    address: SocketAddr,
    _status: watch::Sender<Arc<Snapshot>>,
    _cancel: tokio_util::sync::DropGuard,
}

impl Page {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Lets everybody in.
#[derive(Debug)]
pub struct Open;

impl guard::Guard for Open {
    fn admit(&self, _: &Parts) -> Result<(), guard::Denied> {
        Ok(())
    }
}

/// Answers as init does, until the test ends.
fn play_init(path: &Path, init: Arc<Mutex<Init>>) {
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
    listener.bind(&SockAddr::unix(path).expect("a path")).expect("it binds");
    listener.listen(16).expect("it listens");
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let mut octets = [0; MAX_REQUEST + 1];
            let Ok(length) = Read::read(&mut &socket, &mut octets) else { continue };
            let Ok(request) = control::decode::<control::Request>(&octets[..length]) else { continue };
            let mut init = init.lock().expect("no panic");
            init.asked.push(request.clone());
            let reply = match request {
                control::Request::Status => Reply::Status(init.status.clone()),
                control::Request::Reboot => Reply::Accepted,
                _ => Reply::Done,
            };
            let _ = socket.send(&control::encode(&reply));
        }
    });
}

/// nginx on loopback.
pub struct Server {
    dir: TempDir,
    port: u16,
    nginx: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Sends at most `rate` octets a second. `None` where there is no nginx.
    pub fn start(rate: &str) -> Option<Self> {
        if !peers::require("nginx", "nginx-light") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|one| one.local_addr()).expect("a port").port();
        let root = dir.path().display();
        // One process, whose death is the server's; a rate, so that the middle of a download can be met.
        let text = format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/errors;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n\
               log_format ranges '$request_method $http_range $status'; access_log {root}/access ranges;\n\
               client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;\n\
               uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;\n\
               server {{ listen 127.0.0.1:{port}; root {root}/www; limit_rate {rate}; sendfile off; }}\n\
             }}\n"
        );
        fs::write(dir.path().join("conf"), text).expect("a file");
        fs::create_dir(dir.path().join("www")).expect("a directory");
        let nginx = Self::spawn(dir.path());
        Some(Self { dir, port, nginx }.listens())
    }

    fn spawn(dir: &Path) -> Child {
        let mut command = Command::new("nginx");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(["-e", "stderr", "-c"]).arg(dir.join("conf"));
        command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx starts")
    }

    /// Waits until it listens.
    fn listens(self) -> Self {
        for _ in 0..2000 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return self;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nginx does not listen: {:?}", fs::read_to_string(self.dir.path().join("errors")));
    }

    pub fn offer(&self, name: &str, octets: &[u8]) {
        fs::write(self.dir.path().join("www").join(name), octets).expect("a file");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    pub fn kill(&mut self) {
        let _ = self.nginx.kill();
        let _ = self.nginx.wait();
    }

    /// It listens soon; whoever asks too early asks again.
    pub fn restart(&mut self) {
        self.nginx = Self::spawn(self.dir.path());
    }

    /// The first octets of all ranges that were answered, in order.
    pub fn ranges(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.dir.path().join("access")).expect("a log");
        let first = |line: &str| line.strip_prefix("GET bytes=")?.split('-').next()?.parse().ok();
        text.lines().filter_map(first).collect()
    }
}

/// A proxy that connects whoever asks to one server, whatever the target: its URL, and a channel of the targets.
pub fn proxy_to(server: u16) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (say, heard) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                if client.read_exact(&mut octet).is_err() {
                    break;
                }
                head.push(octet[0]);
            }
            let _ = say.send(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { continue };
            let _ = client.write_all(b"HTTP/1.1 200 Go on\r\n\r\n");
            for (mut from, mut to) in
                [(client.try_clone().expect("a socket"), server.try_clone().expect("a socket")), (server, client)]
            {
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    (url, heard)
}

/// A file of a slot's size on a file system that holds less, and a block device over another.
pub struct FullDisk {
    dir: TempDir,
    block: PathBuf,
}

impl FullDisk {
    /// `None` where neither mounts nor loop devices can be had.
    pub fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let path = dir.path().to_str().expect("text");
        let mounted = run("mount", &["-t", "tmpfs", "-o", "size=512k", "none", path]);
        let missing = || peers::say("skipped: no mounts or loop devices here");
        if mounted.is_none() {
            missing();
            return None;
        }
        let mut disk = Self { dir, block: PathBuf::new() };
        for name in ["file", "backing"] {
            File::create(disk.dir.path().join(name)).and_then(|file| file.set_len(SLOT)).expect("a file");
        }
        let backing = disk.dir.path().join("backing");
        match run("losetup", &["--find", "--show", backing.to_str().expect("text")]) {
            Some(block) => {
                disk.block = block.into();
                Some(disk)
            }
            None => {
                missing();
                None
            }
        }
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    pub fn block(&self) -> PathBuf {
        self.block.clone()
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        if self.block.exists() {
            let _ = Command::new("losetup").arg("-d").arg(&self.block).status();
        }
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}
