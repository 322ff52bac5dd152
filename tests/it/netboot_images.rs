//! The image cache against an origin that counts, breaks off and goes away.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilotlight::images::{AssetPath, Cache, Error, Index, Limits, MemoryIndex, Origin};
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::omni::Client;
use pilotlight::secret::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

const LIMITS: Limits = Limits { max_bytes: 10 << 20, attempts: 1, retry_after: Duration::from_millis(1) };

/// What the origin does with the next requests for assets.
#[derive(Clone, Copy)]
enum Mood {
    Well,
    /// Sends half of the body.
    BreakOff,
    /// 503.
    Busy,
    /// 404.
    Unknown,
    /// 302 to the same path below `/elsewhere`.
    Elsewhere,
}

/// A tiny HTTP/1.0 origin that this test can make misbehave.
pub struct TinyOrigin {
    pub url: String,
    requests: Arc<AtomicUsize>,
    mood: Arc<Mutex<Mood>>,
    /// While a permit is missing, asset bodies wait.
    gate: Arc<Notify>,
    gated: Arc<Mutex<bool>>,
    task: tokio::task::JoinHandle<()>,
}

impl TinyOrigin {
    pub async fn start(body: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let (mood, gate) = (Arc::new(Mutex::new(Mood::Well)), Arc::new(Notify::new()));
        let gated = Arc::new(Mutex::new(false));
        let shared = (Arc::clone(&requests), Arc::clone(&mood), Arc::clone(&gate), Arc::clone(&gated));
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let ((requests, mood, gate, gated), body) = (shared.clone(), body.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    requests.fetch_add(1, Ordering::SeqCst);
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    let wait = *gated.lock().unwrap();
                    if wait {
                        gate.notified().await;
                    }
                    let mood = *mood.lock().unwrap();
                    let ok = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                    let answer = match mood {
                        _ if path == "/schematics" => {
                            let json = format!("{{\"id\":\"{}\"}}", "ab".repeat(32));
                            let length = json.len();
                            format!("HTTP/1.1 201 Created\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{json}")
                                .into_bytes()
                        }
                        Mood::Elsewhere if !path.starts_with("/elsewhere") => {
                            format!("HTTP/1.1 302 Found\r\nlocation: /elsewhere{path}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                                .into_bytes()
                        }
                        Mood::Well | Mood::Elsewhere => [ok.as_bytes(), &body].concat(),
                        Mood::BreakOff => [ok.as_bytes(), &body[..body.len() / 2]].concat(),
                        Mood::Busy => b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec(),
                        Mood::Unknown => b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec(),
                    };
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { url, requests, mood, gate, gated, task }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub fn asset(file: &str) -> AssetPath {
    AssetPath::parse(&"ab".repeat(32), "v1.13.7", file).unwrap()
}

fn body() -> Vec<u8> {
    (0..3_000_000u32).map(|at| (at * 7 + at / 255) as u8).collect()
}

async fn open(directory: &Path, origin: &TinyOrigin, index: Arc<MemoryIndex>, limits: Limits) -> Cache {
    Cache::open(directory, Origin::new(&origin.url).unwrap(), index, limits).await.unwrap()
}

fn partials(directory: &Path) -> usize {
    std::fs::read_dir(directory.join(".partial")).unwrap().count()
}

#[tokio::test]
async fn fifty_who_ask_at_once_cause_one_download() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let cache = open(directory.path(), &origin, Arc::default(), LIMITS).await;
    *origin.gated.lock().unwrap() = true;
    let path = asset("initramfs-amd64.xz");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (cache, path) = (cache.clone(), path.clone());
        waiting.spawn(async move { cache.asset(&path).await });
    }
    // The one download stands at the gate until all fifty have had their turn to join it.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    *origin.gated.lock().unwrap() = false;
    origin.gate.notify_one();
    while let Some(result) = waiting.join_next().await {
        let asset = result.unwrap().unwrap();
        assert_eq!(asset.size, 3_000_000);
        assert!(std::fs::read(&asset.path).unwrap() == body());
    }
    assert_eq!(origin.requests(), 1);
}

#[tokio::test]
async fn what_is_known_is_served_without_the_origin_and_after_a_restart() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let index: Arc<MemoryIndex> = Arc::default();
    let cache = open(directory.path(), &origin, Arc::clone(&index), LIMITS).await;
    let path = asset("kernel-amd64");
    assert!(!cache.knows(&path));
    let id = cache.schematic("customization: {}\n").await.unwrap();
    assert_eq!((id.as_str(), cache.knows(&path)), ("ab".repeat(32).as_str(), true));
    let first = cache.asset(&path).await.unwrap();
    assert_eq!(cache.schematic("customization: {}\n").await.unwrap(), id);
    assert_eq!(origin.requests(), 2);
    let reopened = open(directory.path(), &origin, Arc::clone(&index), LIMITS).await;
    origin.stop().await;
    for cache in [cache, reopened] {
        assert_eq!(cache.asset(&path).await.unwrap(), first);
        assert_eq!(cache.schematic("customization: {}\n").await.unwrap(), id);
        assert!(cache.knows(&asset("initramfs-amd64.xz")));
        let error = cache.asset(&asset("initramfs-amd64.xz")).await.unwrap_err();
        assert!(error.to_string().contains("the image factory did not deliver"), "{error}");
    }
}

#[tokio::test]
async fn a_broken_download_is_never_served_and_the_next_try_is_whole() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let cache = open(directory.path(), &origin, Arc::default(), LIMITS).await;
    let path = asset("initramfs-amd64.xz");
    origin.mood(Mood::BreakOff);
    let error = cache.asset(&path).await.unwrap_err();
    assert!(matches!(error, Error::BrokeOff { .. }), "{error:?}");
    assert_eq!((partials(directory.path()), cache.total_bytes()), (0, 0));
    origin.mood(Mood::Well);
    assert!(std::fs::read(cache.asset(&path).await.unwrap().path).unwrap() == body());
}

#[tokio::test]
async fn a_passing_fault_is_tried_again_and_a_clear_no_is_not() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let cache = open(directory.path(), &origin, Arc::default(), Limits { attempts: 3, ..LIMITS }).await;
    for (mood, requests) in [(Mood::Busy, 3), (Mood::BreakOff, 3), (Mood::Unknown, 1)] {
        let before = origin.requests();
        origin.mood(mood);
        let error = cache.asset(&asset("kernel-amd64")).await.unwrap_err();
        assert_eq!(origin.requests() - before, requests, "{error}");
    }
}

#[tokio::test]
async fn a_redirect_inside_the_origin_is_followed() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let cache = open(directory.path(), &origin, Arc::default(), LIMITS).await;
    origin.mood(Mood::Elsewhere);
    assert_eq!(cache.asset(&asset("kernel-amd64")).await.unwrap().size, 3_000_000);
    assert_eq!(origin.requests(), 2);
}

#[tokio::test]
async fn the_longest_unused_goes_when_room_is_needed() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let index: Arc<MemoryIndex> = Arc::default();
    let cache = open(directory.path(), &origin, Arc::clone(&index), Limits { max_bytes: 7_000_000, ..LIMITS }).await;
    let (kernel, initramfs, other) = (asset("kernel-amd64"), asset("initramfs-amd64.xz"), asset("kernel-arm64"));
    cache.asset(&kernel).await.unwrap();
    let evicted = cache.asset(&initramfs).await.unwrap();
    cache.asset(&kernel).await.unwrap();
    cache.asset(&other).await.unwrap();
    assert_eq!(cache.total_bytes(), 6_000_000);
    assert!(!evicted.path.exists());
    assert_eq!(index.list("asset/").await.unwrap().len(), 2);
    let before = origin.requests();
    cache.asset(&kernel).await.unwrap();
    assert_eq!(origin.requests(), before);
    let small = Limits { max_bytes: 1_000_000, ..LIMITS };
    let elsewhere = tempfile::tempdir().unwrap();
    let cache = open(elsewhere.path(), &origin, Arc::default(), small).await;
    assert!(matches!(cache.asset(&kernel).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn opening_drops_what_index_and_disk_do_not_agree_on() {
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let index: Arc<MemoryIndex> = Arc::default();
    let cache = open(directory.path(), &origin, Arc::clone(&index), LIMITS).await;
    let (kernel, initramfs, cmdline) =
        (asset("kernel-amd64"), asset("initramfs-amd64.xz"), asset("cmdline-metal-amd64"));
    let cut = cache.asset(&kernel).await.unwrap();
    let kept = cache.asset(&initramfs).await.unwrap();
    let stray = directory.path().join(asset("kernel-arm64").to_string());
    std::fs::write(&stray, "stray").unwrap();
    std::fs::write(&cut.path, "cut").unwrap();
    std::fs::write(directory.path().join(".partial/left"), "left").unwrap();
    index.put(&format!("asset/{cmdline}"), vec![9, 9]).await.unwrap();
    // Damage is seen while it runs, too.
    assert_eq!(cache.asset(&kernel).await.unwrap().size, 3_000_000);
    std::fs::write(&cut.path, "cut").unwrap();
    let reopened = open(directory.path(), &origin, Arc::clone(&index), LIMITS).await;
    assert_eq!(reopened.total_bytes(), 3_000_000);
    assert_eq!((stray.exists(), cut.path.exists(), kept.path.exists()), (false, false, true));
    assert_eq!((partials(directory.path()), index.list("asset/").await.unwrap().len()), (0, 1));
}

#[tokio::test]
async fn a_small_asset_is_read_and_a_large_one_is_not() {
    let (origin, directory) =
        (TinyOrigin::start(b"talos.platform=metal\n".to_vec()).await, tempfile::tempdir().unwrap());
    let cache = open(directory.path(), &origin, Arc::default(), LIMITS).await;
    assert_eq!(&cache.read(&asset("cmdline-metal-amd64")).await.unwrap()[..], b"talos.platform=metal\n");
    let (origin, directory) = (TinyOrigin::start(body()).await, tempfile::tempdir().unwrap());
    let cache = open(directory.path(), &origin, Arc::default(), LIMITS).await;
    assert!(matches!(cache.read(&asset("kernel-amd64")).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn omnis_factory_comes_before_the_flags_and_the_flags_before_nothing() {
    let omni = Omni::start(Options::loopback("metal-1")).await.unwrap();
    let client = Client::connect(pilotlight::omni::Config {
        endpoint: omni.endpoint(),
        key: Some(Secret::new(omni.service_account().key_string.reveal().clone())),
        provider_id: "metal-1".into(),
        ..Default::default()
    })
    .unwrap();
    let of_flags = TinyOrigin::start(vec![7; 100]).await;
    let origin = Origin::new(&of_flags.url).unwrap().behind(client.management().clone());
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), origin, Arc::new(MemoryIndex::default()), LIMITS).await.unwrap();
    let id = cache.schematic("customization: {}").await.unwrap();
    let kernel = |version: &str| AssetPath::parse(id.as_str(), version, "kernel-amd64").unwrap();
    let asset = cache.asset(&kernel("v1.11.2")).await.unwrap();
    assert_ne!(asset.size, 100);
    assert_eq!(of_flags.requests.load(Ordering::SeqCst), 0);
    omni.faults().no_management(true);
    let asset = cache.asset(&kernel("v1.11.3")).await.unwrap();
    assert_eq!((asset.size, of_flags.requests.load(Ordering::SeqCst)), (100, 1));
}
