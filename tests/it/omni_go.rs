//! The lab's Omni against the libraries that official providers are made of: go-api-signature's client signs, COSI's client
//! makes every call, and COSI's controller runtime lives one machine request through.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pilotlight::lab::omni::controller::{links, machines};
use pilotlight::lab::omni::dynamic::{PATCH_FINALIZER, REQUEST_FINALIZER, STATUS_FINALIZER, config_patches};
use pilotlight::lab::omni::{Omni, Options, token};
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::specs::{MachineRequestSetSpec, MachineRequestStatusSpec, ProviderJoinConfigSpec};
use pilotlight::resource::Kind;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tonic::transport::Channel;

use crate::peers;

const ID: &str = "virtual";
const UUID: &str = "4c4c4544-0044-4810-8031-b4c04f333132";
const PATIENCE: Duration = Duration::from_secs(30);

/// The Go program; `None` without Go, or without a way to get its modules.
fn go_provider() -> Option<PathBuf> {
    if !peers::require("go", "golang-go") {
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-omni");
    let built = std::process::Command::new("go")
        .args(["build", "-mod=readonly", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/omni"))
        .output()
        .unwrap();
    if built.status.success() {
        return Some(program);
    }
    let errors = String::from_utf8_lossy(&built.stderr);
    // An offline machine cannot fetch modules; every other failure to build is a fault of the program.
    let offline = errors.contains("dial tcp") || errors.contains("module lookup disabled");
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(offline && !required, "go build: {errors}");
    crate::peers::say("skipped: the Go modules cannot be fetched (go mod download in tests/interop/omni)");
    None
}

/// Waits until `met` gives something, looking again after every change of `kinds`.
async fn until<T>(omni: &Omni, kinds: impl IntoIterator<Item = Kind>, met: impl Fn() -> Option<T>) -> T {
    let mut bells = omni.state().bells(kinds);
    let met = async {
        loop {
            if let Some(met) = met() {
                return met;
            }
            bells.rung().await;
        }
    };
    tokio::time::timeout(PATIENCE, met).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_provider_lives_a_machine_request_through() {
    let Some(program) = go_provider() else { return };
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    let address = omni.endpoint().trim_start_matches("http://").to_owned();
    let mut go = Command::new(program)
        .args([address.as_str(), ID])
        .env("OMNI_SERVICE_ACCOUNT_KEY", omni.service_account().key_string.reveal())
        .env_remove("SIDERO_SERVICE_ACCOUNT_KEY")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(go.stdout.take().unwrap()).lines();
    let mut line = async || {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("a line in time");
        line.unwrap().expect("the Go program still runs; its errors are above")
    };
    // A request of ours is not looked at before its machine is known, so nobody but Go touched it.
    assert_eq!(
        line().await,
        "state: Bootstrapped Noop Created Updated Updated Updated Updated Destroyed",
        "the aggregated watch of one resource's life"
    );
    assert_eq!(line().await, "provisioning");

    let set = |machine_count| MachineRequestSetSpec {
        provider_id: ID.into(),
        machine_count,
        talos_version: "1.11.2".into(),
        ..MachineRequestSetSpec::default()
    };
    omni.people().request_machines("web", &set(1)).unwrap();
    let [requests, statuses, patches] =
        ["MachineRequests", "MachineRequestStatuses", "ConfigPatchRequests"].map(Kind::omni);
    let request = until(&omni, [requests.clone()], || omni.state().list(&requests).pop()).await.id.clone();
    assert_eq!(line().await, format!("provisioned {request} 1.11.2"));
    let owner = format!("{ID}.ProvisionController");
    until(&omni, [statuses.clone(), requests.clone(), patches.clone()], || {
        let status = omni.state().get(&statuses, &request).ok()?;
        let spec: MachineRequestStatusSpec = status.decode().unwrap();
        let held = omni.state().get(&requests, &request).ok()?;
        let patch = omni.state().get(&patches, &format!("{request}-hostname")).ok()?;
        assert_eq!((status.owner.as_str(), patch.owner.as_str()), (owner.as_str(), owner.as_str()));
        let ours = status.finalizers.contains(STATUS_FINALIZER) && patch.finalizers.contains(PATCH_FINALIZER);
        let both = held.finalizers.contains(&owner) && held.finalizers.contains(REQUEST_FINALIZER);
        (spec.id == UUID && ours && both).then_some(())
    })
    .await;

    // The machine boots with a token that does not name its request; Omni finds it by the status.
    let config = omni.state().get(&Kind::omni("ProviderJoinConfigs"), ID).unwrap();
    let secret = config.decode::<ProviderJoinConfigSpec>().unwrap().join_token;
    let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
    let join_token = Some(token::for_provider(&secret, ID));
    let join = ProvisionRequest { node_uuid: UUID.into(), join_token, ..Default::default() };
    ProvisionServiceClient::new(channel).provision(join).await.unwrap();
    let machine = until(&omni, [machines()], || omni.state().get(&machines(), UUID).ok()).await;
    assert_eq!(machine.labels.get(token::MACHINE_REQUEST), Some(&request));
    assert!(omni.state().get(&config_patches(), &format!("{request}-hostname")).is_ok());

    omni.people().request_machines("web", &set(0)).unwrap();
    until(&omni, [requests.clone()], || omni.state().get(&requests, &request).is_err().then_some(())).await;
    while line().await != format!("released {request}") {}
    for (kind, id) in [
        (statuses, request.clone()),
        (patches, format!("{request}-hostname")),
        (config_patches(), format!("{request}-hostname")),
        (machines(), UUID.to_owned()),
        (links(), UUID.to_owned()),
    ] {
        assert!(omni.state().get(&kind, &id).is_err(), "{kind} {id} is left");
    }
    go.start_kill().unwrap();
    omni.shutdown().await;
}
