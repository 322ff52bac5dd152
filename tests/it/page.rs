//! The status page: its routes, and what a real browser makes of it.

pub mod browser;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use pilotlight::machine::PowerState;
use pilotlight::status::{Link, Machine, Moment, Service, Snapshot, Stage};
use pilotlight::time::UnixTime;
use pilotlight::web;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use browser::Browser;

/// What a plan says of each stage; some of it long.
const STORIES: [(Stage, &str, &str, &str); 13] = [
    (
        Stage::Ready,
        "Wiped and idle. Stays on until 15 minutes after its last power-on, then is turned off.",
        "",
        "ready for a cluster",
    ),
    (
        Stage::Installed,
        "Talos runs from disk. Nothing to do until Omni takes it out of its cluster.",
        "",
        "installed from event 42",
    ),
    (
        Stage::Provisioning,
        "Boots Talos v1.11.5 from the network; waits for the installer to report back.",
        "",
        "PXE boot answered with Talos v1.11.5, schematic 376567988ad3",
    ),
    (
        Stage::Stuck,
        "Cannot reach the BMC at 10.20.0.117:623, so its power cannot be managed. Check the cable of the management port, then that IPMI over LAN is enabled for channel 1.",
        "get chassis status: RAKP message 2 did not arrive within 5 s (4 tries): no route to host",
        "BMC stopped answering",
    ),
    (Stage::Pending, "Waits for a person to accept it in Omni. Runs the agent meanwhile.", "", "agent connected"),
    (Stage::Wiping, "The agent wipes 4 disks (fast); asked 40 seconds ago.", "", "wipe requested, ID 7f3a"),
    (Stage::Preparing, "Sets up a BMC user through the agent before anything else.", "", "accepted"),
    (
        Stage::PoweredOff,
        "Turned off on request. Stays off until Omni clears the request or asks for a wipe.",
        "",
        "power-off request 9c1e acknowledged",
    ),
    (
        Stage::Cordoned,
        "Cordoned: no action is taken and boots from the network fall through to its disk.",
        "",
        "cordoned",
    ),
    (Stage::Rejected, "Rejected by a person. It is not booted and its power is left alone.", "", "rejected"),
    (Stage::Removing, "Removed from Omni. Boots the agent once more, then is forgotten.", "", "teardown began"),
    (Stage::Discovered, "Seen booting for the first time; its record in Omni is being made.", "", "DISCOVER, UEFI x64"),
    (
        Stage::Stuck,
        "Boots from its disk although the network was asked for: three one-time overrides were ignored. Set the network ahead of the disk in its firmware, or clear a vendor's persistent override such as BootSourceOverrideTarget=HddContinuousUntilFurtherNoticeFromTheManagementController.",
        "",
        "boot override ignored for the third time",
    ),
];

fn rack(machines: usize) -> Snapshot {
    let now = UnixTime::now();
    let ago = |secs: u64| UnixTime::from_secs(now.as_secs().saturating_sub(secs));
    let machine = |index: usize| {
        let (stage, verdict, trouble, last) = STORIES[index % STORIES.len()];
        let on = !matches!(stage, Stage::PoweredOff | Stage::Rejected) && index % 7 != 6;
        let cluster = match stage {
            Stage::Installed | Stage::Provisioning => {
                ["edge-fra-1", "training-gpu", "storage-cold-archive-europe"][index % 3]
            }
            _ => "",
        };
        let older = ["first seen booting", "agent connected", "accepted", "BMC user created", "disks wiped", last];
        let moment = |(step, what): (usize, &&str)| Moment {
            at: ago(((older.len() - step) * 731 + index * 97) as u64),
            what: (*what).to_owned(),
        };
        Machine {
            id: format!("4c4c4544-0042-3510-8054-b7c04f{:06x}", index * 4_099 + 0x1f31).parse().unwrap(),
            stage,
            power: if stage == Stage::Stuck && index % 2 == 1 {
                PowerState::Unknown
            } else if on {
                PowerState::On
            } else {
                PowerState::Off
            },
            agent: matches!(stage, Stage::Ready | Stage::Pending | Stage::Wiping | Stage::Preparing) && on,
            boot_mode: match stage {
                Stage::Installed => "disk",
                Stage::Provisioning => "talos",
                Stage::Cordoned | Stage::Rejected => "",
                _ => "agent",
            }
            .into(),
            verdict: verdict.into(),
            decided_at: "src/reconcile/power.rs:118".into(),
            next_attempt: matches!(stage, Stage::Ready | Stage::Stuck)
                .then(|| now + Duration::from_secs(40 + index as u64 * 11)),
            trouble: trouble.into(),
            mac: format!("b4:96:91:5a:{:02x}:{:02x}", index / 256, index % 256),
            address: format!("10.20.{}.{}", index / 200, index % 200 + 20),
            bmc: format!("10.20.100.{}:623", index % 200 + 20),
            cluster: cluster.into(),
            timeline: older.iter().enumerate().map(moment).collect(),
        }
    };
    let service = |name: &str, up, detail: &str| Service { name: name.into(), up, detail: detail.into() };
    Snapshot {
        provider_id: "bare-metal-fra-1".into(),
        version: "0.1.0".into(),
        started: ago(90_000),
        omni: Link {
            endpoint: "https://example.omni.siderolabs.io".into(),
            connected: true,
            trouble: String::new(),
            synced: Some(ago(12)),
            key_expires: None,
        },
        services: vec![
            service("provider", true, "10.20.0.2:50042"),
            service("dhcp", true, "eno2, ports 67 and 4011"),
            service("tftp", true, "10.20.0.2:69"),
            service("images", true, "41 files, 6.2 GB"),
            service("store", true, "flushed 2 s ago"),
            service("web", true, "port 443"),
        ],
        machines: (0..machines).map(machine).collect(),
        appliance: None,
        counters: vec![("dhcp_offer".into(), 311), ("dhcp_not_pxe".into(), 12_031)],
    }
}

fn cut_off(mut snapshot: Snapshot) -> Snapshot {
    snapshot.omni.connected = false;
    snapshot.omni.trouble = "Omni refuses this box's key: it expired on 2026-11-20. Create a new one with `omnictl serviceaccount renew` and paste it on the setup page; machines keep booting from what the box knows.".into();
    snapshot.services[3].up = false;
    snapshot.services[3].detail = "data partition is full".into();
    snapshot
}

async fn ask(router: &axum::Router, path: &str) -> Response<Body> {
    router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn every_path_answers_under_a_policy_that_admits_this_origin_alone() {
    let snapshot = rack(24);
    let one = format!("/machines/{}", snapshot.machines[3].id);
    let (_sender, status) = watch::channel(Arc::new(snapshot.clone()));
    let router = web::router(status);
    for (path, status, kind) in [
        ("/", 200, "text/html"),
        ("/?stage=stuck&find=10.20", 200, "text/html"),
        (&one, 200, "text/html"),
        ("/machines/none", 404, "text/html"),
        ("/events", 200, "text/event-stream"),
        ("/api/status", 200, "application/json"),
        ("/healthz", 200, "text/plain"),
        ("/readyz", 200, "text/plain"),
        ("/metrics", 200, "text/plain"),
        ("/ui/page.css", 200, "text/css"),
        ("/ui/page.js", 200, "text/javascript"),
        ("/ui/flame.svg", 200, "image/svg+xml"),
    ] {
        let response = ask(&router, path).await;
        assert_eq!(response.status(), status, "{path}");
        assert!(response.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with(kind), "{path}");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{path}");
    }
    let page = text(ask(&router, "/").await).await;
    for machine in &snapshot.machines {
        assert!(page.contains(&format!("/machines/{}", machine.id)), "{}", machine.id);
    }
    assert!(!page.contains("style=") && !page.contains("onclick"), "the policy forbids inline styles and scripts");
    let api: Snapshot = serde_json::from_str(&text(ask(&router, "/api/status").await).await).unwrap();
    assert_eq!(api, snapshot);
}

#[tokio::test]
async fn a_box_with_a_service_down_is_not_ready() {
    let (sender, status) = watch::channel(Arc::new(Snapshot::default()));
    let router = web::router(status);
    assert_eq!(ask(&router, "/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    sender.send_replace(Arc::new(cut_off(rack(1))));
    let response = ask(&router, "/readyz").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(response).await, "down: images\n");
    assert_eq!(ask(&router, "/healthz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_listener_hears_what_changed_and_nothing_else() {
    let (sender, status) = watch::channel(Arc::new(rack(24)));
    let router = web::router(status);
    let page = text(ask(&router, "/").await).await;
    let seen = page.split("data-seen=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mut events = ask(&router, &format!("/events?seen={seen}")).await.into_body().into_data_stream();
    let gone = sender.borrow().machines[5].id.clone();
    sender.send_modify(|snapshot| {
        let snapshot = Arc::make_mut(snapshot);
        snapshot.machines[2].verdict = "Something <new>".into();
        snapshot.machines.remove(5);
    });
    let mut heard = String::new();
    while !heard.contains("event: summary") || !heard.ends_with("\n\n") {
        let frame = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
        heard.push_str(std::str::from_utf8(&frame).unwrap());
    }
    assert_eq!(heard.matches("event: machine").count(), 1);
    assert!(heard.contains("Something &#60;new&#62;"));
    assert!(heard.contains(&format!("event: gone\ndata: {gone}")));
}

#[tokio::test]
async fn a_page_of_an_older_state_hears_everything_again() {
    let (_sender, status) = watch::channel(Arc::new(rack(24)));
    let mut events = ask(&web::router(status), "/events?seen=other").await.into_body().into_data_stream();
    let mut heard = String::new();
    while !heard.contains("event: summary") {
        let frame = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
        heard.push_str(std::str::from_utf8(&frame).unwrap());
    }
    assert_eq!(heard.matches("event: machine").count(), 24);
}

#[tokio::test]
async fn the_sixty_fifth_listener_is_sent_away_until_one_leaves() {
    let (_sender, status) = watch::channel(Arc::new(rack(1)));
    let router = web::router(status);
    let mut listeners = Vec::new();
    for _ in 0..64 {
        let response = ask(&router, "/events").await;
        assert_eq!(response.status(), StatusCode::OK);
        listeners.push(response);
    }
    assert_eq!(ask(&router, "/events").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    listeners.pop();
    assert_eq!(ask(&router, "/events").await.status(), StatusCode::OK);
}

/// Measures the page: what sticks out sideways, states out of sight, and text with too little contrast.
const MEASURE: &str = r#"(() => {
  const width = innerWidth, out = [], pale = [];
  for (const row of document.querySelectorAll(".machine:not([hidden])"))
    for (const part of row.querySelectorAll(".pill, .verdict")) {
      const box = part.getBoundingClientRect();
      if (box.left < 0 || box.right > width || !box.width) out.push(part.textContent);
    }
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (node) => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if ((c[3] ?? 1) > .99) return c; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility() || parent.closest(".unseen, .skip")) continue;
    const [a, b] = [light(rgb(getComputedStyle(parent).color)), light(ground(parent))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) pale.push(`${parent.className || parent.tagName}: ${node.data.trim().slice(0, 40)} ${((a + .05) / (b + .05)).toFixed(2)}`);
  }
  return { width, scroll: document.scrollingElement.scrollWidth, rows: document.querySelectorAll(".machine:not([hidden])").length, out, pale: [...new Set(pale)] };
})()"#;

async fn serve(snapshot: Snapshot) -> (watch::Sender<Arc<Snapshot>>, String, tokio::task::JoinHandle<()>) {
    let (sender, status) = watch::channel(Arc::new(snapshot));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, web::router(status)).await.unwrap() });
    (sender, url, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_it_whole_at_every_width_in_light_and_dark_and_follows_it() {
    if !super::peers::require("chromium", "chromium") {
        return;
    }
    let (sender, url, server) = serve(rack(26)).await;
    let machine = sender.borrow().machines[3].id.clone();
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    let done = tokio::task::spawn_blocking(move || {
        let mut browser = Browser::start();
        for (name, path, rows) in [
            ("rack", "/".to_owned(), 26),
            ("machine", format!("/machines/{machine}"), 0),
            ("stuck", "/?stage=stuck".into(), 4),
        ] {
            for (width, height) in [(1280, 900), (390, 844)] {
                for scheme in ["light", "dark"] {
                    browser.view(width, height, scheme);
                    browser.open(&format!("{url}{path}"));
                    let found = browser.evaluate(MEASURE);
                    let what = format!("{name} at {width}, {scheme}: {found}");
                    assert_eq!(found["width"], width, "{what}");
                    assert!(found["scroll"].as_u64().unwrap() <= width, "sideways scroll: {what}");
                    assert_eq!(found["rows"], rows, "{what}");
                    assert_eq!(found["out"], json!([]), "out of sight: {what}");
                    assert_eq!(found["pale"], json!([]), "contrast below 4.5 to 1: {what}");
                    browser.screenshot(&shots.join(format!("page-{name}-{width}-{scheme}.png")));
                }
            }
        }
        browser.view(1280, 900, "light");
        browser.open(&url);
        // A filter works in place, and rows that come in keep to it.
        browser.evaluate("document.querySelector('[data-filter=stuck]').click()");
        assert_eq!(browser.evaluate("[...document.querySelectorAll('.machine:not([hidden])')].length"), 4);
        assert_eq!(browser.evaluate("location.search"), "?stage=stuck");
        browser.evaluate("document.querySelector('[data-filter=\"\"]').click()");
        sender.send_modify(|snapshot| {
            let snapshot = Arc::make_mut(snapshot);
            snapshot.machines[0].stage = Stage::Stuck;
            snapshot.machines[0].verdict = "A fresh <verdict>.".into();
            snapshot.omni.connected = false;
            snapshot.omni.trouble = "The uplink is down.".into();
        });
        browser.wait_for("document.querySelector('.machine .verdict').textContent.startsWith('A fresh <verdict>.')");
        browser.wait_for("document.querySelector('.trouble')?.textContent.includes('The uplink is down.')");
        browser.wait_for("document.getElementById('announcer').textContent.includes('is stuck: A fresh')");
        assert_eq!(browser.evaluate("document.querySelector('[data-filter=stuck] b').textContent"), "5");
        sender.send_modify(|snapshot| *snapshot = Arc::new(cut_off(rack(200))));
        browser.wait_for("document.querySelectorAll('.machine').length == 200");
        assert_eq!(browser.evaluate("document.querySelectorAll('.lamps a').length"), 200);
        for (width, height) in [(1280, 900), (390, 844)] {
            browser.view(width, height, "light");
            let found = browser.evaluate(MEASURE);
            assert!(found["scroll"].as_u64().unwrap() <= width, "{found}");
            assert_eq!(found["out"], json!([]));
            browser.evaluate("document.querySelector('.machine summary').click(), scrollTo(0, 0)");
            browser.screenshot(&shots.join(format!("page-live-{width}-light.png")));
        }
        // One machine's page follows it as well.
        let machine = sender.borrow().machines[1].id.clone();
        browser.open(&format!("{url}/machines/{machine}"));
        sender.send_modify(|snapshot| Arc::make_mut(snapshot).machines[1].verdict = "Now this.".into());
        browser.wait_for("document.querySelector('.verdict').textContent.startsWith('Now this.')");
        // The keyboard's place is seen.
        browser.open(&url);
        for _ in 0..3 {
            browser.tab();
            assert_eq!(browser.evaluate("getComputedStyle(document.activeElement).outlineStyle"), "solid");
        }
        assert_eq!(browser.complaints(), Vec::<Value>::new(), "the browser's log is empty");
        // Without a script the page is whole and filters.
        browser.without_scripts();
        browser.open(&format!("{url}/?stage=stuck"));
        assert_eq!(browser.evaluate(MEASURE)["rows"], 31);
        assert_eq!(browser.evaluate("document.querySelector('[aria-current]').dataset.filter"), "stuck");
        browser.close();
    });
    done.await.unwrap();
    server.abort();
}
