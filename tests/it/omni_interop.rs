//! The Omni client against the Go libraries that Omni is made of: the signature library and COSI's State server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pilotlight::omni::join;
use pilotlight::omni::provider::decode_join_config;
use pilotlight::omni::watch::{self, Watch};
use pilotlight::omni::{Client, Clock, Config, Error, Mirror, Retry, ServiceAccountKey};
use pilotlight::proto::specs;
use pilotlight::resource::{Kind, Phase, Resource};
use pilotlight::secret::Secret;
use pilotlight::time::{UnixTime, Uptime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::go::{self, Go};
use crate::omni_script::{PUBLIC_KEY, service_account};
use crate::peers;

const SIGNATURES: &str = "peer 1: go-api-signature v0.3.13";
const SERVER: &str = "peer 1: State server of cosi-project/runtime v1.16.2, our client's calls";
/// What a new resource holds.
const ME: &str = "metal-1.Controller";

fn kind() -> Kind {
    Kind::private("Thing", "metal-1")
}

fn thing(id: &str) -> Resource {
    Resource::new(kind(), id, &pilotlight::proto::cosi::IdQuery { regexp: id.to_owned() })
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it happens soon")
}

/// A Go server, its address and its keys.
struct Server {
    go: Go,
    endpoint: String,
    member: String,
    stranger: String,
}

impl Server {
    async fn start(program: &Path, flags: &[&str]) -> Self {
        let mut go = Go::start(program, &[&["serve"], flags].concat());
        let started = go.json().await;
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Self {
            go,
            endpoint: format!("http://{}", text(&started["address"])),
            member: text(&started["member"]["key"]),
            stranger: text(&started["stranger"]["key"]),
        }
    }

    fn client(&self) -> Client {
        self.client_with(|_| ())
    }

    fn client_with(&self, change: impl FnOnce(&mut Config)) -> Client {
        let mut config = Config {
            endpoint: self.endpoint.clone(),
            key: Some(Secret::new(self.member.clone())),
            provider_id: "metal-1".to_owned(),
            ..Config::default()
        };
        change(&mut config);
        Client::connect(config).unwrap()
    }

    async fn tell(&mut self, command: &str) {
        assert_eq!(self.go.ask(command).await, "\"done\"");
    }

    async fn stats(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.go.ask("stats").await).unwrap()
    }
}

/// A mirror fed from `client`, until the token is cancelled.
fn follow(client: &Client, watch: Watch) -> (Mirror, CancellationToken) {
    let cancel = CancellationToken::new();
    let mirror = Mirror::new(vec![watch]);
    tokio::spawn(watch::run(client.state().clone(), mirror.clone(), cancel.clone()));
    (mirror, cancel)
}

/// Waits until the mirror holds exactly what the server lists.
async fn agrees(mirror: &Mirror, client: &Client) {
    let mut changes = mirror.subscribe();
    soon(async {
        loop {
            let listed = client.state().list(&kind(), &[]).await.unwrap();
            if mirror.all(&kind()).iter().eq(&listed) {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn keys_made_by_the_go_library_are_read() {
    let Some(program) = go::program("cosi") else { return };
    let made = Go::start(&program, &["keys"]).json().await;
    let made = made.as_array().unwrap();
    assert_eq!(made.len(), 3);
    let now = UnixTime::now();
    for account in made {
        let key = ServiceAccountKey::parse(account["key"].as_str().unwrap()).unwrap();
        assert_eq!(key.name(), account["name"].as_str().unwrap());
        assert_eq!(key.fingerprint(), account["fingerprint"].as_str().unwrap());
        assert_eq!(key.provider_id_hint(), Some("metal-1"));
        let lifetime = key.expires().unwrap().since(key.created());
        assert_eq!(lifetime.as_secs(), account["lifetime"].as_u64().unwrap());
        assert!(!key.expired(now));
    }
    peers::say(&format!("{SIGNATURES}: {} keys of its making read", made.len()));
}

#[tokio::test]
async fn the_go_library_verifies_our_signatures_and_refuses_what_was_changed() {
    let Some(program) = go::program("cosi") else { return };
    let accounts = Go::start(&program, &["keys"]).json().await;
    let mut keys: Vec<(String, String)> = vec![(service_account(), PUBLIC_KEY.to_owned())];
    for account in accounts.as_array().unwrap() {
        keys.push((account["key"].as_str().unwrap().to_owned(), account["public"].as_str().unwrap().to_owned()));
    }
    let mut verifier = Go::start(&program, &["verify"]);
    let mut asked_so_far = 0;
    let mut verify = async |payload: &str, signature: &[u8], public: &str| {
        asked_so_far += 1;
        let asked = serde_json::json!({
            "payload": payload, "signature": BASE64_STANDARD.encode(signature), "public": public,
        });
        verifier.ask(&asked.to_string()).await
    };
    for (account, public) in &keys {
        let key = ServiceAccountKey::parse(account).unwrap();
        for payload in ["", "{}", "{\"method\":\"/cosi.resource.State/Get\"}", &"é".repeat(10_000)] {
            let signature = key.sign(payload.as_bytes(), UnixTime::now()).unwrap();
            assert_eq!(verify(payload, &signature, public).await, "verified");
            let refused = verify(&format!("{payload} "), &signature, public).await;
            assert!(refused.starts_with("refused"), "{refused}");
        }
    }
    // Another's key does not verify.
    let key = ServiceAccountKey::parse(&keys[0].0).unwrap();
    let signature = key.sign(b"x", UnixTime::now()).unwrap();
    let refused = verify("x", &signature, &keys[1].1).await;
    assert!(refused.starts_with("refused"), "{refused}");
    peers::say(&format!("{SIGNATURES}: {asked_so_far} signatures of {} keys judged", keys.len()));
}

#[tokio::test]
async fn all_eight_calls_work_compressed_and_signed() {
    let Some(program) = go::program("cosi") else { return };
    let mut server = Server::start(&program, &[]).await;
    let client = server.client();
    let state = client.state();
    let (mirror, cancel) = follow(&client, Watch::all(kind()));
    soon(mirror.synced()).await;

    let created = state.create(thing("a"), ME).await.unwrap();
    assert_eq!((created.version, created.owner.as_str(), created.phase), (Some(1), ME, Phase::Running));
    assert_eq!(state.get(&kind(), "a").await.unwrap(), created);
    assert!(matches!(state.create(thing("a"), ME).await, Err(Error::AlreadyExists(_))));
    assert!(state.find(&kind(), "b").await.unwrap().is_none());

    let held = state.add_finalizers(&kind(), "a", &["one", "two"]).await.unwrap();
    assert_eq!((held.version, held.finalizers.len(), &held.spec), (Some(2), 2, &created.spec));
    let error = state.update(&created, ME, None).await.unwrap_err();
    assert!(matches!(error, Error::Conflict(_)) && error.retry() == Retry::Reread, "{error}");
    let error = state.update(&held, "another", None).await.unwrap_err();
    assert!(matches!(&error, Error::OwnerConflict { message, .. } if message.contains(ME)), "{error}");
    let error = state.update(&held, ME, Some(Phase::TearingDown)).await.unwrap_err();
    assert!(matches!(error, Error::PhaseConflict(_)), "{error}");
    let labelled = state.modify(&kind(), "a", |a| drop(a.labels.insert("x".into(), "y".into()))).await.unwrap();
    assert_eq!(labelled.created, created.created);
    assert_eq!(state.list(&kind(), &[("x", "y")]).await.unwrap(), [labelled]);
    assert!(state.list(&kind(), &[("x", "z")]).await.unwrap().is_empty());

    assert!(!state.teardown(&kind(), "a", ME).await.unwrap(), "it is held");
    assert!(!state.teardown(&kind(), "a", ME).await.unwrap());
    let error = state.destroy(&kind(), "a", ME).await.unwrap_err();
    assert!(matches!(error, Error::PendingFinalizers(_)) && error.retry() == Retry::Later, "{error}");
    let error = state.modify(&kind(), "a", |a| a.labels.clear()).await.unwrap_err();
    assert!(matches!(error, Error::PhaseConflict(_)), "{error}");
    state.remove_finalizers(&kind(), "a", &["one", "two"]).await.unwrap().unwrap();
    state.destroy(&kind(), "a", ME).await.unwrap();
    assert!(matches!(state.destroy(&kind(), "a", ME).await, Err(Error::NotFound(_))));

    state.create(thing("b"), "").await.unwrap();
    state.teardown_and_destroy(&kind(), "b", "", Duration::from_secs(10)).await.unwrap();
    agrees(&mirror, &client).await;
    cancel.cancel();

    let stats = server.stats().await;
    let called: Vec<&str> = stats["calls"].as_object().unwrap().keys().map(String::as_str).collect();
    let eight = ["Create", "Destroy", "Get", "List", "Teardown", "TeardownAndDestroy", "Update", "Watch"];
    assert_eq!(called, eight, "{stats}");
    assert!(stats["encodings"].as_object().unwrap().keys().eq(["gzip"]), "{stats}");
    peers::say(&format!("{SERVER}: {}", stats["calls"]));
}

#[tokio::test]
async fn two_writers_meet_and_neither_loses_an_update() {
    let Some(program) = go::program("cosi") else { return };
    let server = Server::start(&program, &[]).await;
    let client = server.client();
    client.state().create(thing("a"), "").await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..2 {
        let state = client.state().clone();
        writers.spawn(async move {
            for round in 0..40 {
                let label = |a: &mut Resource| drop(a.labels.insert(format!("{writer}-{round}"), "x".into()));
                state.modify(&kind(), "a", label).await.unwrap();
            }
        });
    }
    soon(writers.join_all()).await;
    let stored = client.state().get(&kind(), "a").await.unwrap();
    assert_eq!((stored.labels.len(), stored.version), (80, Some(81)));
}

#[tokio::test]
async fn a_server_without_teardown_gets_the_calls_that_it_has() {
    let Some(program) = go::program("cosi") else { return };
    let mut server = Server::start(&program, &["-without-teardown"]).await;
    let client = server.client();
    let state = client.state();
    state.create(thing("a"), ME).await.unwrap();
    state.add_finalizers(&kind(), "a", &["one"]).await.unwrap();
    assert!(!state.teardown(&kind(), "a", ME).await.unwrap());
    assert_eq!(state.get(&kind(), "a").await.unwrap().phase, Phase::TearingDown);
    let error = state.teardown_and_destroy(&kind(), "a", ME, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error}");
    let removing = tokio::spawn({
        let state = state.clone();
        async move { state.teardown_and_destroy(&kind(), "a", ME, Duration::from_secs(20)).await }
    });
    // Let go only once somebody watches for it.
    while server.stats().await["calls"]["Watch"].as_u64() < Some(2) {
        tokio::task::yield_now().await;
    }
    state.remove_finalizers(&kind(), "a", &["one"]).await.unwrap();
    soon(removing).await.unwrap().unwrap();
    assert!(state.find(&kind(), "a").await.unwrap().is_none());
    let error = state.teardown_and_destroy(&kind(), "a", ME, Duration::from_secs(20)).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let calls = server.stats().await["calls"].clone();
    assert_eq!((calls["Teardown"].as_u64(), calls["TeardownAndDestroy"].as_u64()), (Some(1), None), "{calls}");
}

#[tokio::test]
async fn a_watch_resumes_at_its_bookmark_and_starts_over_when_it_is_too_old() {
    let Some(program) = go::program("cosi") else { return };
    let mut server = Server::start(&program, &["-history", "16"]).await;
    let (client, writer) = (server.client(), server.client());
    for id in ["a", "b", "c"] {
        writer.state().create(thing(id), "").await.unwrap();
    }
    let (mirror, cancel) = follow(&client, Watch::all(kind()));
    agrees(&mirror, &writer).await;
    let touch = async |id: &str, times: usize| {
        for time in 0..times {
            let label = |a: &mut Resource| drop(a.labels.insert("time".into(), format!("{time}")));
            writer.state().modify(&kind(), id, label).await.unwrap();
        }
    };
    touch("a", 3).await;
    agrees(&mirror, &writer).await;
    let gap = async |server: &mut Server, times: usize| {
        server.tell("pause").await;
        server.tell("drop").await;
        // The connection that the writer had is gone too: its first call may be the one that notices.
        while writer.state().list(&kind(), &[]).await.is_err() {}
        touch("b", times).await;
        writer.state().destroy(&kind(), "c", "").await.unwrap();
        writer.state().create(thing("c"), "").await.unwrap();
        server.tell("resume").await;
    };
    // Within the history: it resumes, and gets what it missed, a destruction and a new incarnation included.
    gap(&mut server, 2).await;
    agrees(&mirror, &writer).await;
    // Beyond the history: the bookmark is refused, and everything is read anew.
    gap(&mut server, 60).await;
    agrees(&mirror, &writer).await;
    touch("a", 2).await;
    agrees(&mirror, &writer).await;
    let status = &mirror.kinds(Uptime::now())[0];
    assert_eq!((status.connected, status.count, status.skipped), (true, 3, 0));
    cancel.cancel();
}

#[tokio::test]
async fn a_watch_under_labels_sees_what_enters_and_leaves() {
    let Some(program) = go::program("cosi") else { return };
    let server = Server::start(&program, &[]).await;
    let (client, writer) = (server.client(), server.client());
    let (mirror, cancel) = follow(&client, Watch::labelled(kind(), "provider", "metal-1"));
    soon(mirror.synced()).await;
    let mut changes = mirror.subscribe();
    let mut until = async |ids: &[&str]| {
        soon(async {
            while !mirror.ids(&kind()).iter().map(AsRef::as_ref).eq(ids.iter().copied()) {
                changes.next().await;
            }
        })
        .await;
    };
    let label = |value: &'static str| move |a: &mut Resource| drop(a.labels.insert("provider".into(), value.into()));
    writer.state().create(thing("a"), "").await.unwrap();
    writer.state().modify(&kind(), "a", label("metal-1")).await.unwrap();
    until(&["a"]).await;
    writer.state().put(&thing("b"), "", label("metal-1")).await.unwrap();
    until(&["a", "b"]).await;
    writer.state().modify(&kind(), "a", label("metal-2")).await.unwrap();
    until(&["b"]).await;
    writer.state().modify(&kind(), "a", label("metal-1")).await.unwrap();
    until(&["a", "b"]).await;
    writer.state().destroy(&kind(), "b", "").await.unwrap();
    until(&["a"]).await;
    cancel.cancel();
}

#[tokio::test]
async fn a_strangers_key_is_refused() {
    let Some(program) = go::program("cosi") else { return };
    let server = Server::start(&program, &[]).await;
    let stranger = server.client_with(|config| config.key = Some(Secret::new(server.stranger.clone())));
    let error = stranger.state().get(&kind(), "a").await.unwrap_err();
    assert!(matches!(error, Error::InvalidSignature(_)) && error.retry() == Retry::Operator, "{error}");
    assert!(error.to_string().contains("renewkey"), "{error}");
    let (mirror, cancel) = follow(&stranger, Watch::all(kind()));
    soon(async {
        while !mirror.kinds(Uptime::now())[0].trouble.contains("Omni refused the key") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cancel.cancel();
    let unsigned = server.client_with(|config| config.key = None);
    let error = unsigned.state().get(&kind(), "a").await.unwrap_err();
    assert!(error.to_string().contains("set OMNI_SERVICE_ACCOUNT_KEY"), "{error}");
}

#[tokio::test]
async fn a_clock_that_jumps_an_hour_is_blamed_and_a_clock_set_right_recovers() {
    let Some(program) = go::program("cosi") else { return };
    let server = Server::start(&program, &[]).await;
    let offset = Arc::new(AtomicI64::new(0));
    let clock = Clock::new({
        let offset = Arc::clone(&offset);
        move || UnixTime::from_secs(UnixTime::now().as_secs().saturating_add_signed(offset.load(Ordering::Relaxed)))
    });
    let client = server.client_with(|config| config.clock = clock);
    client.state().create(thing("a"), "").await.unwrap();
    for (seconds, words) in [(3_600, "60 minutes ahead of Omni's"), (-3_600, "60 minutes behind Omni's")] {
        offset.store(seconds, Ordering::Relaxed);
        let error = client.state().get(&kind(), "a").await.unwrap_err();
        assert!(matches!(error, Error::InvalidSignature(_)), "{error:?}");
        assert!(error.to_string().contains(words) && error.to_string().contains("NTP"), "{error}");
        offset.store(0, Ordering::Relaxed);
        client.state().get(&kind(), "a").await.unwrap();
        assert_eq!(client.clock_skew(), None, "what was found is no longer true");
    }
    // A fresh key on a clock that is a little behind: no signature claims to be older than its key.
    for seconds in [-200, 200] {
        offset.store(seconds, Ordering::Relaxed);
        client.state().get(&kind(), "a").await.unwrap();
    }
}

#[tokio::test]
async fn an_omni_without_join_configs_is_joined_by_its_connection_parameters() {
    let Some(program) = go::program("cosi") else { return };
    let server = Server::start(&program, &[]).await;
    let client = server.client();
    let params = |token: &str| specs::ConnectionParamsSpec {
        api_endpoint: "grpc://omni.example:8090".into(),
        join_token: token.into(),
        events_port: 8091,
        logs_port: 8092,
        ..Default::default()
    };
    let stand_in = join::stand_in("metal-1");
    let old = Resource::new(stand_in.kind.clone(), "siderolink-config", &params("first"));
    client.state().create(old, "ConnectionParamsController").await.unwrap();
    let kind = Kind::omni("ProviderJoinConfigs");
    let watch = Watch { stand_in: Some(stand_in.clone()), ..Watch::all(kind.clone()) };
    let (mirror, cancel) = follow(&client, watch);
    soon(mirror.synced()).await;
    let token = || decode_join_config(&mirror.get(&kind, "metal-1").unwrap()).unwrap();
    assert_eq!(token().join_token.reveal(), "first");
    assert!(token().kernel_args.reveal()[0].starts_with("siderolink.api=grpc://omni.example:8090?jointoken=v1%3A"));
    // A rotated token is followed live.
    let mut changes = mirror.subscribe();
    changes.take();
    let rotate = |resource: &mut Resource| resource.encode(&params("second"));
    client.state().modify(&stand_in.kind, "siderolink-config", rotate).await.unwrap();
    soon(changes.next()).await;
    assert_eq!(token().join_token.reveal(), "second");
    cancel.cancel();
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_tunnel_and_its_refusal_is_told() {
    let Some(program) = go::program("cosi") else { return };
    let server = Server::start(&program, &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let target = server.endpoint.strip_prefix("http://").unwrap().to_owned();
    // Any name stands for the server: loopback itself would not be proxied.
    let asked = tokio::spawn(async move {
        let mut requests = Vec::new();
        for tunnels in [false, true] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            requests.push(String::from_utf8(request).unwrap());
            if tunnels {
                stream.write_all(b"HTTP/1.1 200 Connection established\r\nX-A: b\r\n\r\n").await.unwrap();
                let mut far = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut far).await });
            } else {
                stream.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n").await.unwrap();
            }
        }
        requests
    });
    let client = server.client_with(|config| {
        config.endpoint = "http://omni.example:8080".into();
        config.proxy.proxy = Some(Secret::new(format!("http://user:pa%20ss@{proxy}")));
    });
    let error = soon(client.state().get(&kind(), "a")).await.unwrap_err();
    let told = error.explain();
    assert!(told.contains("407 Who are you") && told.contains("user and password"), "{told}");
    assert!(!told.contains("pa%20ss") && !told.contains("dXNlc"), "{told}");
    client.state().create(thing("a"), "").await.unwrap();
    for request in soon(asked).await.unwrap() {
        assert!(request.starts_with("CONNECT omni.example:8080 HTTP/1.1\r\nHost: omni.example:8080\r\n"), "{request}");
        assert!(request.contains("\r\nProxy-Authorization: Basic dXNlcjpwYSBzcw==\r\n"), "{request}");
    }
    let direct = server.client_with(|config| config.proxy.proxy = Some(Secret::new("http://192.0.2.1:1".into())));
    soon(direct.state().get(&kind(), "a")).await.unwrap();
}
