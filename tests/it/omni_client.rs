//! The Omni client against a scripted server, GnuPG and OpenSSL.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use pilotlight::omni::management::{BootAsset, BootAssetKind};
use pilotlight::omni::provider::{self, Registration};
use pilotlight::omni::watch::{self, Watch};
use pilotlight::omni::{Client, Config, Error, Mirror, Retry, ServiceAccountKey};
use pilotlight::proto::{cosi, specs};
use pilotlight::resource::{Kind, LABEL_IS_STATIC_INFRA_PROVIDER, Phase, Resource};
use pilotlight::secret::Secret;
use pilotlight::time::{UnixTime, Uptime};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Identity;

use crate::omni_script::{Opened, PUBLIC_KEY, Script, service_account};
use crate::peers::require;

fn kind() -> Kind {
    Kind::omni("InfraMachines")
}

/// A stored resource whose spec no schema of ours knows in full: field 99 holds "future".
fn stored(id: &str) -> Resource {
    let mut resource = Resource::new(kind(), id, &());
    resource.version = Some(1);
    resource.owner = "InfraMachineController".to_owned();
    resource.spec = Bytes::from_static(b"\x2a\x01w\x9a\x06\x06future");
    resource
}

fn config(endpoint: String, key: Option<String>) -> Config {
    Config { endpoint, key: key.map(Secret::new), provider_id: "metal-1".to_owned(), ..Config::default() }
}

async fn scripted() -> (Script, Client, tokio::sync::mpsc::UnboundedReceiver<Opened>) {
    let (script, address, watches) = Script::start(true, None).await;
    let client = Client::connect(config(format!("http://{address}"), Some(service_account()))).unwrap();
    (script, client, watches)
}

/// Waits for a condition that the network will bring about; far longer than it ever takes.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it happens soon")
}

#[tokio::test]
async fn every_call_is_signed_for_its_own_method_and_compressed() {
    let (script, client, mut watches) = scripted().await;
    let state = client.state();
    script.store(stored("m1").to_wire());
    state.get(&kind(), "m1").await.unwrap();
    assert_eq!(state.list(&kind(), &[]).await.unwrap().len(), 1);
    assert!(state.list(&kind(), &[("a", "b")]).await.unwrap().is_empty(), "labels are checked on this side too");
    assert!(state.find(&kind(), "m2").await.unwrap().is_none());
    assert_eq!(client.management().create_schematic("customization: {}", "").await.unwrap(), "schematic-of-17");
    let cancel = CancellationToken::new();
    let mirror = Mirror::new(vec![Watch::all(kind())]);
    tokio::spawn(watch::run(state.clone(), mirror, cancel.clone()));
    soon(watches.recv()).await.unwrap();
    cancel.cancel();
    assert_eq!(script.calls(), ["Get", "List", "List", "Get", "CreateSchematicFromRaw", "Watch"]);
    assert!(script.encodings().iter().all(|encoding| encoding == "gzip"), "{:?}", script.encodings());
}

#[tokio::test]
async fn without_a_key_calls_go_out_unsigned() {
    let (script, address, _) = Script::start(false, None).await;
    script.store(stored("m1").to_wire());
    let client = Client::connect(config(format!("grpc://{address}"), None)).unwrap();
    client.state().get(&kind(), "m1").await.unwrap();
    assert_eq!(client.key_expiry(), None);

    let (_script, address, _) = Script::start(true, None).await;
    let client = Client::connect(config(format!("grpc://{address}"), None)).unwrap();
    let error = client.state().get(&kind(), "m1").await.unwrap_err();
    assert!(error.to_string().contains("set OMNI_SERVICE_ACCOUNT_KEY"), "{error}");
}

#[test]
fn gnupg_verifies_our_signature_and_refuses_another_payload() {
    if !require("gpg", "gnupg") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let key = ServiceAccountKey::parse(&service_account()).unwrap();
    let public = file("public.asc", PUBLIC_KEY.as_bytes());
    let payload = file("payload", b"payload");
    let other = file("other", b"Payload");
    let signature = file("payload.sig", &key.sign(b"payload", UnixTime::now()).unwrap());
    let gpg = |arguments: &[&std::path::Path]| {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--no-autostart", "--status-fd", "1", "--homedir"]).arg(dir.path()).args(arguments);
        gpg.output().unwrap()
    };
    assert!(gpg(&["--import".as_ref(), &public]).status.success());
    let good = gpg(&["--verify".as_ref(), &signature, &payload]);
    let text = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success(), "{text}");
    // VALIDSIG: fingerprint, dates, version 4, reserved, algorithm 22 (EdDSA), hash 10 (SHA-512), class 00.
    let valid = text.lines().find(|line| line.contains("VALIDSIG")).unwrap();
    assert!(valid.contains(&key.fingerprint().to_uppercase()) && valid.contains(" 22 10 00 "), "{valid}");
    assert!(!gpg(&["--verify".as_ref(), &signature, &other]).status.success());
}

#[tokio::test]
async fn a_finalizer_update_echoes_the_spec_and_writes_under_the_stored_owner() {
    let (script, client, _) = scripted().await;
    script.store(stored("m1").to_wire());
    let added = client.state().add_finalizers(&kind(), "m1", &["metal-1.Machine", "other"]).await.unwrap();
    assert_eq!(added.version, Some(2));
    let wire = script.resource("m1").unwrap();
    assert_eq!(wire.spec.unwrap().proto_spec, stored("m1").spec);
    assert_eq!(script.calls(), ["Get", "Update"]);
    client.state().add_finalizers(&kind(), "m1", &["other"]).await.unwrap();
    assert_eq!(script.calls(), ["Get"], "nothing changed, nothing is written");
    let removed = client.state().remove_finalizers(&kind(), "m1", &["metal-1.Machine"]).await.unwrap().unwrap();
    assert_eq!(removed.finalizers, BTreeSet::from(["other".to_owned()]));
    assert!(client.state().remove_finalizers(&kind(), "gone", &["x"]).await.unwrap().is_none());
}

#[tokio::test]
async fn a_version_conflict_is_retried_with_a_fresh_read_but_not_for_ever() {
    let (script, client, _) = scripted().await;
    let conflict = || Status::failed_precondition("resource m1 update conflict: expected version \"1\"");
    script.store(stored("m1").to_wire());
    script.refuse("Update", conflict());
    script.refuse("Update", conflict());
    let label = |resource: &mut Resource| drop(resource.labels.insert("a".into(), "b".into()));
    let written = client.state().modify(&kind(), "m1", label).await.unwrap();
    assert_eq!(written.labels["a"], "b");
    assert_eq!(script.calls(), ["Get", "Update", "Get", "Update", "Get", "Update"]);

    (0..100).for_each(|_| script.refuse("Update", conflict()));
    let relabel = |resource: &mut Resource| drop(resource.labels.insert("a".into(), "c".into()));
    let error = client.state().modify(&kind(), "m1", relabel).await.unwrap_err();
    assert!(matches!(error, Error::Conflict(_)) && error.retry() == Retry::Reread, "{error}");
    assert_eq!(script.calls().len(), 16);
}

#[tokio::test]
async fn an_unaccepted_eula_shares_the_conflicts_code_and_is_not_retried() {
    let (script, client, _) = scripted().await;
    script.store(stored("m1").to_wire());
    script.refuse("Update", Status::failed_precondition("EULA has not been accepted; visit Omni"));
    let label = |resource: &mut Resource| drop(resource.labels.insert("a".into(), "b".into()));
    let error = client.state().modify(&kind(), "m1", label).await.unwrap_err();
    assert!(matches!(error, Error::Eula) && error.retry() == Retry::Operator, "{error}");
    assert_eq!(script.calls(), ["Get", "Update"]);
}

#[tokio::test]
async fn put_creates_what_is_absent_and_yields_to_who_was_faster() {
    let (script, client, _) = scripted().await;
    let fresh = Resource::new(kind(), "m1", &());
    let set = |resource: &mut Resource| drop(resource.labels.insert("a".into(), "b".into()));
    let created = client.state().put(&fresh, "metal-1.Controller", set).await.unwrap();
    assert_eq!((created.version, created.owner.as_str()), (Some(1), "metal-1.Controller"));
    script.refuse("Get", Status::not_found("not there yet"));
    let reset = |resource: &mut Resource| drop(resource.labels.insert("a".into(), "c".into()));
    let updated = client.state().put(&fresh, "metal-1.Controller", reset).await.unwrap();
    assert_eq!((updated.version, updated.labels["a"].as_str()), (Some(2), "c"));
}

#[tokio::test]
async fn teardown_falls_back_to_a_phase_update_and_remembers() {
    let (script, client, _) = scripted().await;
    script.store(stored("m1").to_wire());
    client.state().add_finalizers(&kind(), "m1", &["metal-1.Machine"]).await.unwrap();
    script.calls();
    assert!(!client.state().teardown(&kind(), "m1", "InfraMachineController").await.unwrap());
    assert_eq!(script.calls(), ["Teardown", "Get", "Update"]);
    assert!(!client.state().teardown(&kind(), "m1", "InfraMachineController").await.unwrap());
    assert_eq!(script.calls(), ["Get"]);
    assert_eq!(script.resource("m1").unwrap().metadata.unwrap().phase, "tearingDown");
    let error = client.state().destroy(&kind(), "m1", "InfraMachineController").await.unwrap_err();
    assert!(matches!(error, Error::PendingFinalizers(_)), "{error}");
    let error = client.state().modify(&kind(), "m1", |r| r.labels.clear()).await.unwrap_err();
    assert!(matches!(error, Error::PhaseConflict(_)), "{error}");
    client.state().remove_finalizers(&kind(), "m1", &["metal-1.Machine"]).await.unwrap();
    client.state().destroy(&kind(), "m1", "InfraMachineController").await.unwrap();
    let resource = Resource { phase: Phase::Running, ..stored("m2") };
    script.store(resource.to_wire());
    let error = client.state().update(&resource, "someone", None).await.unwrap_err();
    assert!(matches!(error, Error::OwnerConflict { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_signature_blames_the_clock_when_omnis_date_differs() {
    let (script, client, _) = scripted().await;
    let refuse = |date: Option<&'static str>| {
        let mut status = Status::unauthenticated("invalid signature");
        if let Some(date) = date {
            status.metadata_mut().insert("date", date.parse().unwrap());
        }
        script.refuse("Get", status);
    };
    refuse(None);
    let error = client.state().get(&kind(), "m1").await.unwrap_err();
    assert!(error.to_string().contains("may be revoked"), "{error}");
    refuse(Some("Tue, 14 Nov 2023 22:13:20 GMT"));
    let error = client.state().get(&kind(), "m1").await.unwrap_err();
    assert!(error.to_string().contains("ahead of Omni's"), "{error}");
    assert_eq!(error.retry(), Retry::Operator);
}

#[tokio::test]
async fn where_nobody_listens_the_error_says_unreachable_and_why() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::connect(config(format!("http://{address}"), Some(service_account()))).unwrap();
    let error = soon(client.state().get(&kind(), "m1")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.retry() == Retry::Later, "{error:?}");
    assert!(error.explain().contains("refused"), "{}", error.explain());
}

#[tokio::test]
async fn a_call_that_nobody_answers_ends_at_its_deadline() {
    let (script, client, _) = scripted().await;
    script.hang();
    let state = client.state().with_deadline(Duration::from_millis(100));
    let error = soon(state.get(&kind(), "m1")).await.unwrap_err();
    assert!(matches!(error, Error::Deadline(_)) && error.retry() == Retry::Later, "{error:?}");
}

fn event(r#type: cosi::EventType, resource: Option<&Resource>, bookmark: &str) -> cosi::Event {
    let bookmark = (!bookmark.is_empty()).then(|| bookmark.as_bytes().to_vec());
    cosi::Event { event_type: r#type.into(), resource: resource.map(Resource::to_wire), bookmark, ..Default::default() }
}

async fn feed(opened: &Opened, events: Vec<cosi::Event>) {
    opened.feed.send(Ok(cosi::WatchResponse { event: events })).await.unwrap();
}

#[tokio::test]
async fn a_watch_bootstraps_resumes_and_starts_over_as_omni_has_it() {
    use cosi::EventType::{Bootstrapped, Created, Destroyed, Errored, Noop, Updated};
    let (script, client, mut watches) = scripted().await;
    let mirror = Mirror::new(vec![Watch::all(kind())]);
    let mut changes = mirror.subscribe();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(watch::run(client.state().clone(), mirror.clone(), cancel.clone()));

    let opened = soon(watches.recv()).await.unwrap();
    let options = opened.request.options.clone().unwrap();
    assert!(options.bootstrap_contents && !options.aggregated && options.start_from_bookmark.is_none());
    assert_eq!((opened.request.id.clone(), opened.request.api_version), (None, 1));
    feed(&opened, vec![]).await;
    let tombstone = Resource { version: None, ..stored("") };
    feed(&opened, vec![event(Created, Some(&stored("a")), ""), cosi::Event::default()]).await;
    feed(&opened, vec![event(Created, Some(&stored("b")), ""), event(Bootstrapped, Some(&tombstone), "1")]).await;
    soon(mirror.synced()).await;
    assert_eq!(soon(changes.next()).await.len(), 2);
    assert_eq!(mirror.kinds(Uptime::now())[0].skipped, 1);

    let newer = Resource { version: Some(2), ..stored("a") };
    feed(&opened, vec![event(Updated, Some(&newer), "2"), event(Destroyed, Some(&stored("b")), "3")]).await;
    while mirror.get(&kind(), "b").is_some() {
        soon(changes.next()).await;
    }
    assert_eq!(mirror.get(&kind(), "a").unwrap().version, Some(2));
    feed(&opened, vec![event(Noop, None, "4")]).await;
    drop(opened);

    // The stream broke: it resumes after the last bookmark.
    let opened = soon(watches.recv()).await.unwrap();
    let options = opened.request.options.clone().unwrap();
    assert_eq!(options.start_from_bookmark.as_deref(), Some(&b"4"[..]));
    assert!(!options.bootstrap_contents);
    // Omni has forgotten the bookmark: the first message is the refusal.
    opened.feed.send(Err(Status::failed_precondition("invalid bookmark"))).await.unwrap();

    let opened = soon(watches.recv()).await.unwrap();
    assert!(opened.request.options.clone().unwrap().bootstrap_contents);
    feed(&opened, vec![]).await;
    feed(&opened, vec![event(Created, Some(&stored("c")), ""), event(Bootstrapped, None, "9")]).await;
    while mirror.get(&kind(), "a").is_some() {
        soon(changes.next()).await;
    }
    // ERRORED leaves the stream open; the client leaves it.
    feed(&opened, vec![event(Errored, None, "")]).await;
    let reopened = soon(watches.recv()).await.unwrap();
    assert!(reopened.request.options.unwrap().bootstrap_contents);
    soon(opened.feed.closed()).await;
    assert!(mirror.get(&kind(), "c").is_some(), "what was known stays until the new set is complete");
    script.refuse("Watch", Status::failed_precondition("EULA has not been accepted; visit Omni"));
    drop(reopened.feed);
    while !mirror.kinds(Uptime::now())[0].trouble.contains("EULA") {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    soon(task).await.unwrap();
}

/// A resource with a spec of so many MiB that does not compress.
fn large(id: &str, mib: usize) -> Resource {
    let mut spec = vec![0; mib << 20];
    getrandom::fill(&mut spec).unwrap();
    Resource { spec: spec.into(), ..stored(id) }
}

#[tokio::test]
async fn messages_of_32_mib_pass_both_ways_and_longer_ones_are_refused_with_their_size() {
    let (script, client, mut watches) = scripted().await;
    let state = client.state();
    state.create(large("m", 5), "").await.unwrap();
    assert_eq!(state.get(&kind(), "m").await.unwrap().spec.len(), 5 << 20);
    let refused = state.create(large("n", 33), "").await.unwrap_err();
    assert!(refused.explain().contains("too large"), "{}", refused.explain());
    assert!(script.resource("n").is_none());

    script.store(large("n", 33).to_wire());
    let refused = state.get(&kind(), "n").await.unwrap_err();
    assert!(refused.explain().contains("too large"), "{}", refused.explain());
    // Zeroes are short on the wire; what counts is what they become.
    script.store(Resource { spec: vec![0; 33 << 20].into(), ..stored("n") }.to_wire());
    assert!(state.get(&kind(), "n").await.is_err());
    assert!(state.list(&kind(), &[]).await.is_err());
    script.forget("n");
    assert_eq!(state.list(&kind(), &[]).await.unwrap()[0].spec.len(), 5 << 20);

    use cosi::EventType::{Bootstrapped, Created, Updated};
    let mirror = Mirror::new(vec![Watch::all(kind())]);
    let mut changes = mirror.subscribe();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(watch::run(state.clone(), mirror.clone(), cancel.clone()));
    let opened = soon(watches.recv()).await.unwrap();
    feed(&opened, vec![]).await;
    feed(&opened, vec![event(Created, Some(&stored("a")), ""), event(Bootstrapped, None, "1")]).await;
    soon(mirror.synced()).await;
    feed(&opened, vec![event(Updated, Some(&Resource { version: Some(2), ..large("a", 8) }), "2")]).await;
    while mirror.get(&kind(), "a").unwrap().version != Some(2) {
        soon(changes.next()).await;
    }
    feed(&opened, vec![event(Updated, Some(&Resource { version: Some(3), ..large("a", 33) }), "3")]).await;
    let _reopened = soon(watches.recv()).await.unwrap();
    let status = &mirror.kinds(Uptime::now())[0];
    assert!(status.trouble.contains("too large"), "{}", status.trouble);
    assert_eq!(mirror.get(&kind(), "a").unwrap().spec.len(), 8 << 20, "what was known stays");
    cancel.cancel();
    soon(task).await.unwrap();
}

#[tokio::test]
async fn a_provider_registers_once_and_updates_what_differs() {
    let (script, client, _) = scripted().await;
    let mut registration = Registration { name: "Rack 7".into(), version: "1.0".into(), ..Registration::default() };
    let created = provider::register(client.state(), "metal-1", &registration).await.unwrap();
    assert_eq!((created.id.as_str(), created.owner.as_str()), ("metal-1", ""));
    assert!(created.labels.contains_key(LABEL_IS_STATIC_INFRA_PROVIDER));
    script.calls();
    provider::register(client.state(), "metal-1", &registration).await.unwrap();
    assert_eq!(script.calls(), ["Get"]);
    registration.version = "1.1".into();
    let updated = provider::register(client.state(), "metal-1", &registration).await.unwrap();
    assert_eq!(updated.decode::<specs::InfraProviderStatusSpec>().unwrap().version, "1.1");
}

#[tokio::test]
async fn the_heartbeat_tells_of_trouble_at_once_and_survives_omnis_restart() {
    let (script, client, _) = scripted().await;
    let (trouble, told) = tokio::sync::watch::channel(String::new());
    let cancel = CancellationToken::new();
    let forgotten = std::sync::Arc::new(tokio::sync::Notify::new());
    let task = tokio::spawn(provider::run_heartbeat(
        client.state().clone(),
        "metal-1".into(),
        told,
        tokio::sync::watch::Sender::default(),
        forgotten.clone(),
        cancel.clone(),
    ));
    let health = || {
        let resource = Resource::from_wire(script.resource("metal-1")?).unwrap();
        let spec: specs::InfraProviderHealthStatusSpec = resource.decode().unwrap();
        Some((resource, spec))
    };
    let until = async |error: &str| {
        soon(async {
            loop {
                match health() {
                    Some((resource, spec)) if spec.error == error => return resource,
                    _ => tokio::task::yield_now().await,
                }
            }
        })
        .await
    };
    let first = until("").await;
    assert_eq!(first.owner, "metal-1.ProviderHealthStatusController");
    assert_eq!(first.kind, provider::health_status_kind());
    trouble.send("TFTP is down".into()).unwrap();
    assert_eq!(until("TFTP is down").await.version, Some(2));
    script.forget("metal-1");
    trouble.send("DHCP is down".into()).unwrap();
    assert_eq!(until("DHCP is down").await.version, Some(1), "made anew");
    soon(forgotten.notified()).await;
    cancel.cancel();
    soon(task).await.unwrap();
}

#[tokio::test]
async fn the_join_config_and_boot_assets_keep_their_secrets() {
    let (script, client, _) = scripted().await;
    let join = specs::JoinConfig { kernel_args: vec!["siderolink.api=hunter2".into()], config: "hunter2".into() };
    let spec = specs::ProviderJoinConfigSpec { config: Some(join), join_token: "hunter2".into() };
    let mut resource = Resource::new(Kind::omni("ProviderJoinConfigs"), "metal-1", &spec);
    resource.version = Some(1);
    script.store(resource.to_wire());
    let join = provider::join_config(client.state(), "metal-1").await.unwrap();
    assert_eq!(join.kernel_args.reveal(), &["siderolink.api=hunter2"]);
    let asset = BootAsset {
        talos_version: "1.11.2".into(),
        schematic_id: "s".into(),
        kind: BootAssetKind::Disk("raw.zst".into()),
        platform: "metal".into(),
        architecture: "amd64".into(),
        secure_boot: false,
        standalone_url: true,
    };
    let url = client.management().boot_asset_url(&asset).await.unwrap();
    assert!(url.url.reveal().ends_with("/s/raw.zst"));
    let shown = format!("{join:?} {url:?} {resource:?} {client:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("PRIVATE KEY"), "{shown}");
    script.refuse("GetBootAssetURL", Status::unimplemented("unknown method"));
    let error = client.management().boot_asset_url(&asset).await.unwrap_err();
    assert!(matches!(error, Error::Unimplemented(_)), "{error}");
}

#[tokio::test]
async fn tls_trusts_given_roots_or_nothing_or_anything_as_configured() {
    if !require("openssl", "openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (key, certificate) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=omni test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let pem = std::fs::read_to_string(&certificate).unwrap();
    let identity = Identity::from_pem(&pem, std::fs::read(&key).unwrap());
    let (script, address, _) = Script::start(true, Some(identity)).await;
    script.store(stored("m1").to_wire());
    let get = async |change: fn(&mut Config, &str)| {
        let mut config = config(format!("https://{address}"), Some(service_account()));
        change(&mut config, &pem);
        soon(Client::connect(config).unwrap().state().get(&kind(), "m1")).await
    };
    let error = get(|_, _| {}).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.explain().to_lowercase().contains("certificate"), "{}", error.explain());
    get(|config, pem| config.extra_roots = Some(pem.to_owned())).await.unwrap();
    get(|config, _| config.insecure_skip_tls_verify = true).await.unwrap();
}
