//! The lab's Omni over its real wire: raw tonic clients that sign with the OpenPGP crate.

mod checks;
mod client;
mod joins;
mod life;
mod login;
mod people;

use std::net::SocketAddr;
use std::time::Duration;

use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::controller::links;
use pilotlight::lab::omni::factory::Asset;
use pilotlight::proto::cosi::{self, EventType};
use pilotlight::proto::management::management_service_client::ManagementServiceClient;
use pilotlight::proto::management::{BootAssetKind, BootAssetUrlRequest, CreateSchematicFromRawRequest};
use pilotlight::proto::specs::{
    InfraMachineSpec, InfraMachineStatusSpec, InfraProviderHealthStatusSpec, InfraProviderStatusSpec,
};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Resource};
use pilotlight::time::UnixTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic::transport::Channel;

use self::client::*;

#[tokio::test]
async fn only_a_fresh_signature_over_this_very_call_is_accepted() {
    let (omni, client) = omni().await;
    let kind = Kind::omni("ProviderJoinConfigs");
    client.get(&kind, ID).await.unwrap();

    let now = UnixTime::now().as_secs();
    let method = "/cosi.resource.State/Get".to_owned();
    let plain = || Signing { method: method.clone(), timestamp: now, created: now, payload: None };
    let payload = |text: String| Signing { payload: Some(text), ..plain() };
    let minimal = format!(r#"{{"headers":{{"x-sidero-timestamp":["{now}"]}},"method":"{method}"}}"#);
    for (why, signing, accepted) in [
        ("the canonical payload", plain(), true),
        ("the minimal payload", payload(minimal.clone()), true),
        ("a clock four minutes ahead", Signing { timestamp: now + 240, created: now + 240, ..plain() }, true),
        ("a clock four minutes behind", Signing { timestamp: now - 240, created: now, ..plain() }, true),
        ("another method", Signing { method: "/cosi.resource.State/List".into(), ..plain() }, false),
        (
            "an empty array for an absent header",
            payload(minimal.replace("},\"method\"", ",\"nodes\":[]},\"method\"")),
            false,
        ),
        (
            "a header that was not sent",
            payload(minimal.replace("},\"method\"", ",\"nodes\":[\"a\"]},\"method\"")),
            false,
        ),
        ("no timestamp in the payload", payload(format!(r#"{{"headers":{{}},"method":"{method}"}}"#)), false),
        ("no JSON", payload("nonsense".into()), false),
        ("six minutes ahead", Signing { timestamp: now + 360, ..plain() }, false),
        ("six minutes behind", Signing { timestamp: now - 360, ..plain() }, false),
        ("a signature of the future", Signing { created: now + 400, ..plain() }, false),
    ] {
        let answer = client.state().get(client.sign(signing, get(&kind, ID))).await;
        match answer {
            Ok(_) => assert!(accepted, "{why} was accepted"),
            Err(status) => {
                assert!(!accepted, "{why} was refused");
                assert_eq!(of(status), (Code::Unauthenticated, "invalid signature".into()), "{why}");
            }
        }
    }
    let unsigned = client.state().get(get(&kind, ID)).await.unwrap_err();
    assert_eq!(unsigned.code(), Code::Unauthenticated);
    let mut extra = client.signed(&method, get(&kind, ID));
    extra.metadata_mut().insert("runtime", "Talos".parse().unwrap());
    assert_eq!(client.state().get(extra).await.unwrap_err().code(), Code::Unauthenticated);
    let mut spoilt = client.signed(&method, get(&kind, ID));
    spoilt.metadata_mut().insert("x-sidero-payload", minimal.parse().unwrap());
    assert_eq!(client.state().get(spoilt).await.unwrap_err().code(), Code::Unauthenticated);
    omni.shutdown().await;
}

#[tokio::test]
async fn unknown_expired_and_revoked_keys_are_refused() {
    let (omni, client) = omni().await;
    let kind = Kind::omni("ProviderJoinConfigs");
    let day = Duration::from_secs(86_400);
    let stranger = ServiceAccount::create(ID, day).unwrap();
    let unknown = Client::connect(&omni, &stranger).await;
    assert_eq!(unknown.get(&kind, ID).await.unwrap_err().code(), Code::Unauthenticated);
    omni.add_account(&stranger);
    unknown.get(&kind, ID).await.unwrap();
    omni.revoke(&stranger.fingerprint);
    assert_eq!(unknown.get(&kind, ID).await.unwrap_err().code(), Code::Unauthenticated);

    let long_ago = UnixTime::from_secs(UnixTime::now().as_secs() - 2 * 86_400);
    let expired = ServiceAccount::create_at(long_ago, ID, day).unwrap();
    omni.add_account(&expired);
    let late = Client::connect(&omni, &expired).await;
    assert_eq!(of(late.get(&kind, ID).await.unwrap_err()), (Code::Unauthenticated, "invalid signature".into()));

    omni.faults().clock_offset(-600);
    assert_eq!(client.get(&kind, ID).await.unwrap_err().code(), Code::Unauthenticated);
    omni.faults().clock_offset(0);
    client.get(&kind, ID).await.unwrap();
    omni.shutdown().await;
}

#[tokio::test]
async fn writes_follow_the_rules_of_version_owner_phase_and_finalizers() {
    let (omni, client) = omni().await;
    let kind = Kind::private("MachineStatus", ID);
    let sent = fresh(&kind, "a", &InfraProviderStatusSpec { name: "x".into(), ..Default::default() });
    assert_eq!(client.get(&kind, "a").await.unwrap_err().code(), Code::NotFound);
    let stored = client.create(sent.clone(), "me").await.unwrap();
    assert_eq!(stored.metadata.as_ref().unwrap().version, "1");
    assert_eq!(stored.metadata.as_ref().unwrap().owner, "me");
    assert_eq!(stored.spec, sent.spec);
    assert_eq!(client.create(sent.clone(), "me").await.unwrap_err().code(), Code::AlreadyExists);

    let updated = client.update(stored.clone(), "me", Some("running")).await.unwrap();
    assert_eq!(updated.metadata.as_ref().unwrap().version, "2");
    for (resource, owner, phase, code, fragment) in [
        (&stored, "me", None, Code::FailedPrecondition, "update conflict: expected version"),
        (&updated, "you", None, Code::PermissionDenied, "is owned by \"me\""),
        (&updated, "me", Some("tearingDown"), Code::InvalidArgument, "is not in phase"),
        (&updated, "me", Some("dancing"), Code::Unknown, "phase"),
    ] {
        let (got, text) = of(client.update(resource.clone(), owner, phase).await.unwrap_err());
        assert!(got == code && text.contains(fragment), "{got:?} {text}");
    }
    let mut absent = updated.clone();
    metadata(&mut absent).id = "b".into();
    assert_eq!(client.update(absent, "me", None).await.unwrap_err().code(), Code::NotFound);
    let mut malformed = sent.clone();
    metadata(&mut malformed).version.clear();
    assert_eq!(client.create(malformed, "").await.unwrap_err().code(), Code::Unknown);
    let no_spec = cosi::Resource { spec: None, ..sent.clone() };
    assert_eq!(of(client.create(no_spec, "").await.unwrap_err()), (Code::Unknown, "spec is missing".into()));
    let mut line = sent;
    labels(&mut line).insert("a".into(), "b\nc".into());
    assert_eq!(client.create(line, "").await.unwrap_err().code(), Code::InvalidArgument);

    let mut held = updated;
    metadata(&mut held).finalizers = vec!["f".into()];
    let held = client.update(held, "me", None).await.unwrap();
    let (code, text) = of(client.destroy(&kind, "a", "me").await.unwrap_err());
    assert!(code == Code::FailedPrecondition && text.contains("has pending finalizers"), "{text}");
    assert_eq!(client.destroy(&kind, "a", "you").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.teardown(&kind, "a").await.unwrap_err().code(), Code::PermissionDenied);
    let mut free = held;
    metadata(&mut free).finalizers.clear();
    client.update(free, "me", None).await.unwrap();
    client.destroy(&kind, "a", "me").await.unwrap();
    assert_eq!(client.destroy(&kind, "a", "me").await.unwrap_err().code(), Code::NotFound);
    omni.shutdown().await;
}

#[tokio::test]
async fn teardown_and_destroy_waits_for_the_last_finalizer() {
    let (omni, client) = omni().await;
    let kind = Kind::private("MachineStatus", ID);
    let mut sent = fresh(&kind, "a", &InfraProviderStatusSpec::default());
    metadata(&mut sent).finalizers = vec!["f".into()];
    client.create(sent, "").await.unwrap();
    assert!(!client.teardown(&kind, "a").await.unwrap());
    let request = cosi::TeardownAndDestroyRequest {
        namespace: kind.namespace.clone(),
        r#type: kind.r#type.clone(),
        id: "a".into(),
        options: None,
    };
    let (mut state, request) = (client.state(), client.signed("/cosi.resource.State/TeardownAndDestroy", request));
    let destroying = tokio::spawn(async move { state.teardown_and_destroy(request).await });
    let mut free = client.get(&kind, "a").await.unwrap();
    assert_eq!(metadata(&mut free).phase, "tearingDown");
    metadata(&mut free).finalizers.clear();
    client.update(free, "", None).await.unwrap();
    destroying.await.unwrap().unwrap();
    assert_eq!(client.get(&kind, "a").await.unwrap_err().code(), Code::NotFound);
    omni.shutdown().await;
}

#[tokio::test]
async fn a_kind_watch_bootstraps_goes_live_and_resumes() {
    let (omni, client) = omni().await;
    let kind = Kind::private("MachineStatus", ID);
    for id in ["b", "a"] {
        client.create(fresh(&kind, id, &InfraProviderStatusSpec::default()), "").await.unwrap();
    }
    assert_eq!(client.list(&kind, cosi::ListOptions::default()).await.unwrap(), ["a", "b"]);

    let options = cosi::WatchOptions { bootstrap_contents: true, bootstrap_bookmark: true, ..Default::default() };
    let mut plain = client.watch(&kind, None, options.clone()).await.unwrap();
    for id in ["a", "b"] {
        let (what, event) = event(&mut plain).await;
        assert_eq!((what, id_of(&event), &event.bookmark), (EventType::Created, id, &None));
    }
    let (what, bootstrapped) = event(&mut plain).await;
    assert_eq!((what, id_of(&bootstrapped)), (EventType::Bootstrapped, ""));
    let bookmark = bootstrapped.bookmark.unwrap();
    assert_eq!(bookmark.len(), 16);
    assert_eq!(event(&mut plain).await.0, EventType::Noop);

    let mut aggregated = client.watch(&kind, None, cosi::WatchOptions { aggregated: true, ..options }).await.unwrap();
    let types: Vec<_> = batch(&mut aggregated).await.iter().map(cosi::Event::event_type).collect();
    assert_eq!(types, [EventType::Created, EventType::Created, EventType::Bootstrapped]);

    let mut stored = client.get(&kind, "a").await.unwrap();
    labels(&mut stored).insert("k".into(), "v".into());
    client.update(stored, "", None).await.unwrap();
    client.destroy(&kind, "b", "").await.unwrap();
    let (what, updated) = event(&mut plain).await;
    assert!(what == EventType::Updated && updated.old.is_some());
    let (what, destroyed) = event(&mut plain).await;
    assert_eq!((what, id_of(&destroyed)), (EventType::Destroyed, "b"));

    let resume = cosi::WatchOptions { start_from_bookmark: Some(bookmark.clone()), ..Default::default() };
    let mut resumed = client.watch(&kind, None, resume.clone()).await.unwrap();
    assert_eq!(event(&mut resumed).await.0, EventType::Updated);
    assert_eq!(event(&mut resumed).await.0, EventType::Destroyed);
    let resume_last = cosi::WatchOptions { start_from_bookmark: updated.bookmark, ..Default::default() };
    let mut resumed = client.watch(&kind, None, resume_last).await.unwrap();
    assert_eq!(event(&mut resumed).await.0, EventType::Destroyed);

    omni.faults().overrun_watches();
    let mut last = event(&mut resumed).await;
    assert_eq!(last.0, EventType::Errored);
    assert!(last.1.error.take().unwrap().starts_with("buffer overrun"));
    assert_eq!(client.watch(&kind, None, resume).await.unwrap_err().code(), Code::FailedPrecondition);
    let both =
        cosi::WatchOptions { start_from_bookmark: Some(bookmark), bootstrap_contents: true, ..Default::default() };
    assert_eq!(client.watch(&kind, None, both).await.unwrap_err().code(), Code::Unknown);
    omni.shutdown().await;
}

#[tokio::test]
async fn a_query_turns_updates_into_creations_and_destructions() {
    let (omni, client) = omni().await;
    let kind = Kind::private("MachineStatus", ID);
    let term = cosi::LabelTerm { key: "k".into(), ..Default::default() };
    let label_query = vec![cosi::LabelQuery { terms: vec![term] }];
    let options = cosi::WatchOptions { label_query: label_query.clone(), ..Default::default() };
    let mut stream = client.watch(&kind, None, options).await.unwrap();
    let stored = client.create(fresh(&kind, "a", &InfraProviderStatusSpec::default()), "").await.unwrap();
    let mut labelled = stored;
    labels(&mut labelled).insert("k".into(), "v".into());
    let mut labelled = client.update(labelled, "", None).await.unwrap();
    assert_eq!(event(&mut stream).await.0, EventType::Created);
    assert_eq!(
        client.list(&kind, cosi::ListOptions { label_query: label_query.clone(), id_query: None }).await.unwrap(),
        ["a"]
    );
    labels(&mut labelled).clear();
    client.update(labelled, "", None).await.unwrap();
    assert_eq!(event(&mut stream).await.0, EventType::Destroyed);
    assert!(client.list(&kind, cosi::ListOptions { label_query, id_query: None }).await.unwrap().is_empty());
    let bad = cosi::ListOptions { id_query: Some(cosi::IdQuery { regexp: "(".into() }), ..Default::default() };
    assert_eq!(client.list(&kind, bad).await.unwrap_err().code(), Code::InvalidArgument);
    omni.shutdown().await;
}

#[tokio::test]
async fn a_watch_of_one_resource_begins_with_it_or_its_tombstone() {
    let (omni, client) = omni().await;
    let private = Kind::private("MachineStatus", ID);
    let mut stream = client.watch(&private, Some("a"), cosi::WatchOptions::default()).await.unwrap();
    let (what, tombstone) = event(&mut stream).await;
    assert_eq!(what, EventType::Destroyed);
    assert_eq!(tombstone.resource.unwrap().metadata.unwrap().version, "undefined");
    client.create(fresh(&private, "b", &InfraProviderStatusSpec::default()), "").await.unwrap();
    client.create(fresh(&private, "a", &InfraProviderStatusSpec::default()), "").await.unwrap();
    assert_eq!(id_of(&event(&mut stream).await.1), "a");
    let bootstrap = cosi::WatchOptions { bootstrap_contents: true, ..Default::default() };
    assert_eq!(client.watch(&private, Some("a"), bootstrap).await.unwrap_err().code(), Code::Unimplemented);

    // In a shared namespace nothing is said of what is not there.
    let shared = Kind::omni("InfraMachineStatuses");
    let mut stream = client.watch(&shared, Some("a"), cosi::WatchOptions::default()).await.unwrap();
    client.create(fresh(&shared, "a", &InfraMachineStatusSpec::default()), "").await.unwrap();
    let (what, created) = event(&mut stream).await;
    assert_eq!(what, EventType::Created);
    assert_eq!(labels(&mut created.resource.unwrap())[LABEL_INFRA_PROVIDER_ID], ID);
    omni.shutdown().await;
}

#[tokio::test]
async fn a_provider_sees_its_own_and_writes_what_is_its_to_write() {
    let (omni, client) = omni().await;
    let machines = Kind::omni("InfraMachines");
    for (id, provider) in [("mine", ID), ("theirs", "metal-2")] {
        let mut machine =
            Resource::new(machines.clone(), id, &InfraMachineSpec { wipe_id: "w".into(), ..Default::default() });
        machine.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), provider.into());
        omni.state().create(machine, "InfraMachineController").unwrap();
    }
    assert_eq!(client.list(&machines, cosi::ListOptions::default()).await.unwrap(), ["mine"]);
    assert_eq!(client.get(&machines, "theirs").await.unwrap_err().code(), Code::NotFound);
    let bootstrap = cosi::WatchOptions { bootstrap_contents: true, aggregated: true, ..Default::default() };
    let mut stream = client.watch(&machines, None, bootstrap).await.unwrap();
    assert_eq!(batch(&mut stream).await.len(), 2, "one machine, and BOOTSTRAPPED");

    let mut mine = client.get(&machines, "mine").await.unwrap();
    metadata(&mut mine).finalizers.push("metal-1.provider".into());
    assert_eq!(client.update(mine.clone(), "", None).await.unwrap_err().code(), Code::PermissionDenied);
    let mut mine = client.update(mine, "InfraMachineController", None).await.unwrap();
    labels(&mut mine).insert("x".into(), "y".into());
    let (code, text) = of(client.update(mine, "InfraMachineController", None).await.unwrap_err());
    assert!(
        code == Code::PermissionDenied && text.contains("infra providers are not allowed to create/update/destroy")
    );
    assert_eq!(
        client.destroy(&machines, "mine", "InfraMachineController").await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let wrong_id = fresh(&Kind::omni("InfraProviderStatuses"), "other", &InfraProviderStatusSpec::default());
    assert_eq!(client.create(wrong_id, "").await.unwrap_err().code(), Code::InvalidArgument);
    for (kind, code) in [
        (links(), Code::PermissionDenied),
        (Kind::private("MachineStatus", "metal-2"), Code::PermissionDenied),
        (Kind::new("infra-provider:metal-1", "Things.example.com"), Code::InvalidArgument),
        (Kind::omni("InfraProviders"), Code::NotFound),
    ] {
        assert_eq!(client.get(&kind, ID).await.unwrap_err().code(), code, "{kind}");
    }
    for (kind, id) in [
        (Kind::new("default", "SiderolinkAPIConfigs.omni.sidero.dev"), "siderolink-config"),
        (Kind::new("default", "FeaturesConfigs.omni.sidero.dev"), "features-config"),
        (Kind::new("ephemeral", "SysVersions.system.sidero.dev"), "current"),
        (Kind::new("meta", "ResourceDefinitions.meta.cosi.dev"), "providerjoinconfigs.omni.sidero.dev"),
        (Kind::omni("ProviderJoinConfigs"), ID),
    ] {
        client.get(&kind, id).await.unwrap();
    }

    let unregistered = ServiceAccount::create("metal-9", Duration::from_secs(3600)).unwrap();
    omni.add_account(&unregistered);
    let unregistered = Client::connect(&omni, &unregistered).await;
    let (code, text) = of(unregistered.get(&machines, "mine").await.unwrap_err());
    assert_eq!(
        (code, text.as_str()),
        (Code::PermissionDenied, "infra provider with name \"metal-9\" is not registered in the system")
    );
    omni.shutdown().await;
}

#[tokio::test]
async fn faults_happen_and_end() {
    let (omni, client) = omni().await;
    let kind = Kind::private("MachineStatus", ID);
    let stored = client.create(fresh(&kind, "a", &InfraProviderStatusSpec::default()), "").await.unwrap();
    omni.faults().conflict(1);
    let (code, text) = of(client.update(stored.clone(), "", None).await.unwrap_err());
    assert!(code == Code::FailedPrecondition && text.contains("update conflict: expected version"));
    client.update(stored, "", None).await.unwrap();

    omni.faults().refuse(Code::PermissionDenied, "no");
    assert_eq!(of(client.get(&kind, "a").await.unwrap_err()), (Code::PermissionDenied, "no".into()));
    omni.faults().serve_again();

    let health = Kind::new("infra-provider-ephemeral", "InfraProviderHealthStatuses.omni.sidero.dev");
    client.create(fresh(&health, ID, &InfraProviderHealthStatusSpec::default()), "").await.unwrap();
    let options = cosi::WatchOptions { bootstrap_bookmark: true, ..Default::default() };
    let mut stream = client.watch(&kind, None, options).await.unwrap();
    let bookmark = event(&mut stream).await.1.bookmark;
    omni.faults().restart().await;
    assert!(stream.message().await.is_err(), "the stream was cut");
    let client = Client::connect(&omni, omni.service_account()).await;
    assert_eq!(client.get(&health, ID).await.unwrap_err().code(), Code::NotFound);
    client.get(&kind, "a").await.unwrap();
    let resume = cosi::WatchOptions { start_from_bookmark: bookmark, ..Default::default() };
    assert_eq!(client.watch(&kind, None, resume).await.unwrap_err().code(), Code::FailedPrecondition);

    omni.stop().await;
    assert!(Channel::from_shared(omni.endpoint()).unwrap().connect().await.is_err());
    omni.resume().await.unwrap();
    let client = Client::connect(&omni, omni.service_account()).await;
    client.get(&kind, "a").await.unwrap();
    omni.faults().slow(Duration::from_millis(30));
    let before = pilotlight::time::Uptime::now();
    client.get(&kind, "a").await.unwrap();
    assert!(pilotlight::time::Uptime::now().since(before) >= Duration::from_millis(30));
    assert_eq!(omni.calls()["/cosi.resource.State/Create"], 2);
    omni.shutdown().await;
}

#[tokio::test]
async fn schematics_lead_to_boot_assets_that_machines_download() {
    let (omni, client) = omni().await;
    let mut management = ManagementServiceClient::new(client.channel.clone());
    let raw =
        b"customization:\n  systemExtensions:\n    officialExtensions:\n      - siderolabs/metal-agent\n".to_vec();
    let create = || CreateSchematicFromRawRequest { raw_schematic: raw.clone(), talos_version: "1.11.2".into() };
    let path = "/management.ManagementService/CreateSchematicFromRaw";
    let schematic =
        management.create_schematic_from_raw(client.signed(path, create())).await.unwrap().into_inner().schematic_id;
    assert!(omni.factory().is_agent(&schematic));
    let asked = BootAssetUrlRequest {
        talos_version: "1.11.2".into(),
        schematic_id: schematic.clone(),
        boot_asset_kind: BootAssetKind::Pxe.into(),
        platform: "metal".into(),
        architecture: "amd64".into(),
        ..Default::default()
    };
    let path = "/management.ManagementService/GetBootAssetURL";
    let url = management.get_boot_asset_url(client.signed(path, asked.clone())).await.unwrap().into_inner().url;
    assert_eq!(url, format!("{}/pxe/{schematic}/v1.11.2/metal-amd64", omni.factory_url()));
    let address: SocketAddr = omni.factory_url().trim_start_matches("http://").parse().unwrap();
    let (head, script) = http(address, "GET", &format!("/pxe/{schematic}/v1.11.2/metal-amd64"), "").await;
    assert!(head.starts_with("HTTP/1.1 200") && script.starts_with(b"#!ipxe\n"));
    let file = format!("/image/{schematic}/v1.11.2/initramfs-amd64.xz");
    let (head, initramfs) = http(address, "GET", &file, "").await;
    assert!(head.to_ascii_lowercase().contains("content-length: 131072"), "{head}");
    assert!(initramfs.starts_with(format!("pilotlight-lab initramfs {schematic} v1.11.2\n").as_bytes()));
    let asset = Asset { schematic: schematic.clone(), version: "v1.11.2".into(), file: "initramfs-amd64.xz".into() };
    assert_eq!(omni.factory().downloads()[&asset], 1);
    let (head, body) = http(address, "POST", "/schematics", std::str::from_utf8(&raw).unwrap()).await;
    assert!(head.starts_with("HTTP/1.1 201"));
    let made: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(made, serde_json::json!({ "id": schematic, "schematic": std::str::from_utf8(&raw).unwrap() }));
    let (head, body) = http(address, "GET", &format!("/schematics/{schematic}"), "").await;
    assert!(head.starts_with("HTTP/1.1 200") && body == raw);
    assert!(http(address, "GET", "/schematics/none", "").await.0.starts_with("HTTP/1.1 404"));

    omni.faults().factory_unavailable(true);
    assert!(http(address, "GET", &file, "").await.0.starts_with("HTTP/1.1 503"));
    omni.faults().factory_away().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    omni.faults().factory_back().await.unwrap();
    omni.faults().no_management(true);
    let path = "/management.ManagementService/GetBootAssetURL";
    let status = management.get_boot_asset_url(client.signed(path, asked)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    omni.shutdown().await;
}

async fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> (String, Vec<u8>) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end + 4..].to_vec())
}
