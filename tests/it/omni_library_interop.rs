//! The lab's Omni against the official client library: its client makes every call, its infra provider controllers live a
//! machine request through, and a controller like the bare-metal provider's answers for a machine that joins by itself.

use std::path::Path;
use std::time::Duration;

use pilotlight::lab::omni::controller::{links, machines};
use pilotlight::lab::omni::dynamic::{PATCH_FINALIZER, REQUEST_FINALIZER, STATUS_FINALIZER, config_patches};
use pilotlight::lab::omni::{Generation, Omni, Options, token};
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::specs::infra_machine_bmc_config_spec::Ipmi;
use pilotlight::proto::specs::infra_machine_status_spec::MachinePowerState as Observed;
use pilotlight::proto::specs::{
    InfraMachineBmcConfigSpec, InfraMachineStatusSpec, InfraProviderHealthStatusSpec, InfraProviderStatusSpec,
    MachineRequestSetSpec, MachineRequestStatusSpec, ProviderJoinConfigSpec,
};
use pilotlight::resource::Kind;
use tonic::transport::Channel;

use crate::go::{self, Go};
use crate::peers;

/// What a machine shows of its tunnel's key.
const WIREGUARD_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const ID: &str = "virtual";
const UUID: &str = "4c4c4544-0044-4810-8031-b4c04f333132";
const PATIENCE: Duration = Duration::from_secs(30);
/// The library, as its module is called.
const LIBRARY: &str = "peer 2: omni/client v1.9.3";

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

/// Starts the program as the double's provider, in `role`.
fn start(omni: &Omni, program: &Path, role: &str) -> Go {
    let key = omni.service_account().key_string.reveal();
    Go::start_with(program, &[role, &omni.endpoint(), ID], &[("OMNI_SERVICE_ACCOUNT_KEY", key)])
}

/// Joins the machine with `token`.
async fn join(omni: &Omni, token: String) {
    let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
    let join = ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.into(),
        join_token: Some(token),
        ..Default::default()
    };
    ProvisionServiceClient::new(channel).provision(join).await.unwrap();
}

/// A token that names the provider, as machines of this double get it.
fn provider_token(omni: &Omni) -> String {
    let config = omni.state().get(&Kind::omni("ProviderJoinConfigs"), ID).unwrap();
    token::for_provider(&config.decode::<ProviderJoinConfigSpec>().unwrap().join_token, ID)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_makes_every_call() {
    let Some(program) = go::program("omni") else { return };
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    let mut go = start(&omni, &program, "calls");
    let mut events = 0;
    for seen in [
        "of the kind: Bootstrapped Noop Created Updated Updated Updated Updated Destroyed",
        "of the one: Created Updated Updated Updated Updated Destroyed",
        "from the bookmark: Updated Updated Updated Updated Destroyed",
    ] {
        assert_eq!(go.line().await, seen);
        events += seen.split_once(": ").unwrap().1.split(' ').count();
    }
    let checks = go.line().await;
    assert_eq!(checks, "checks: 76");
    peers::say(&format!("{LIBRARY}: {checks}, events: {events}, calls: {}", go.ask("counts").await));
    omni.shutdown().await;
}

/// A machine request's life with the library's own controllers.
async fn a_provider_life(generation: Generation) {
    let Some(program) = go::program("omni") else { return };
    let omni = Omni::start(Options { generation, ..Options::loopback(ID) }).await.unwrap();
    let mut go = start(&omni, &program, "dynamic");
    assert_eq!(go.line().await, "provisioning");

    let health = Kind::new("infra-provider-ephemeral", "InfraProviderHealthStatuses.omni.sidero.dev");
    let status = Kind::omni("InfraProviderStatuses");
    let reported = until(&omni, [health.clone(), status.clone()], || {
        omni.state().get(&status, ID).ok()?;
        omni.state().get(&health, ID).ok()
    })
    .await;
    assert_eq!(reported.owner, format!("{ID}.ProviderHealthStatusController"));
    let spec: InfraProviderHealthStatusSpec = reported.decode().unwrap();
    assert_eq!(spec.error, "the hypervisor is warm");
    let spec: InfraProviderStatusSpec = omni.state().get(&status, ID).unwrap().decode().unwrap();
    assert_eq!(spec.name, "Virtual");

    let set = |machine_count| MachineRequestSetSpec {
        provider_id: ID.into(),
        machine_count,
        talos_version: "1.11.2".into(),
        ..MachineRequestSetSpec::default()
    };
    omni.people().request_machines("web", &set(1)).unwrap();
    let [requests, statuses, patches] =
        ["MachineRequests", "MachineRequestStatuses", "ConfigPatchRequests"].map(Kind::omni);
    let private = Kind::private("VM", ID);
    let request = until(&omni, [requests.clone()], || omni.state().list(&requests).pop()).await.id.clone();
    assert_eq!(go.line().await, "schematic of 64");
    assert_eq!(go.line().await, format!("provisioned {request} 1.11.2"));
    let owner = format!("{ID}.ProvisionController");
    until(&omni, [statuses.clone(), requests.clone(), patches.clone(), private.clone()], || {
        let status = omni.state().get(&statuses, &request).ok()?;
        let spec: MachineRequestStatusSpec = status.decode().unwrap();
        let held = omni.state().get(&requests, &request).ok()?;
        let patch = omni.state().get(&patches, &format!("{request}-hostname")).ok()?;
        let kept = omni.state().get(&private, &request).ok()?;
        assert!([&status, &patch, &kept].iter().all(|resource| resource.owner == owner));
        let ours = status.finalizers.contains(STATUS_FINALIZER) && patch.finalizers.contains(PATCH_FINALIZER);
        let both = held.finalizers.contains(&owner) && held.finalizers.contains(REQUEST_FINALIZER);
        (spec.id == UUID && spec.status == "Provision Complete" && ours && both).then_some(())
    })
    .await;

    if generation == Generation::Current {
        // The machine boots with a token that does not name its request; Omni finds it by the status.
        join(&omni, provider_token(&omni)).await;
        let machine = until(&omni, [machines()], || omni.state().get(&machines(), UUID).ok()).await;
        assert_eq!(machine.labels.get(token::MACHINE_REQUEST), Some(&request));
        assert!(omni.state().get(&config_patches(), &format!("{request}-hostname")).is_ok());
    }

    let all = [
        (statuses, request.clone()),
        (private, request.clone()),
        (patches, format!("{request}-hostname")),
        (config_patches(), format!("{request}-hostname")),
        (machines(), UUID.to_owned()),
        (links(), UUID.to_owned()),
    ];
    let made = all.iter().filter(|(kind, id)| omni.state().get(kind, id).is_ok()).count();
    assert!(made >= 3 && (generation == Generation::Old || made == all.len()), "{made}");

    omni.people().request_machines("web", &set(0)).unwrap();
    until(&omni, [requests.clone()], || omni.state().get(&requests, &request).is_err().then_some(())).await;
    assert_eq!(go.line().await, format!("deprovisioned {request} schematic=true"));
    for (kind, id) in &all {
        assert!(omni.state().get(kind, id).is_err(), "{kind} {id} is left");
    }
    let counts = go.ask("counts").await;
    peers::say(&format!(
        "{LIBRARY}, infra provider, {generation:?} Omni: {made} resources made and gone, calls: {counts}"
    ));
    omni.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_librarys_provider_lives_a_machine_request_through() {
    a_provider_life(Generation::Current).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_librarys_provider_lives_a_machine_request_through_with_an_old_omni() {
    a_provider_life(Generation::Old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_provider_of_the_library_answers_for_a_machine() {
    let Some(program) = go::program("omni") else { return };
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    let mut go = start(&omni, &program, "static");
    assert_eq!(go.line().await, "answering");
    join(&omni, provider_token(&omni)).await;
    assert_eq!(go.line().await, format!("machine {UUID} PENDING bmc=nobody rebooted=false"));

    let statuses = Kind::omni("InfraMachineStatuses");
    let (people, observed) =
        (omni.people(), || omni.state().get(&statuses, UUID).ok()?.decode::<InfraMachineStatusSpec>().ok());
    people.accept(UUID).unwrap();
    until(&omni, [statuses.clone()], || observed().filter(|status| status.ready_to_use)).await;
    let ipmi = Ipmi { address: "10.0.0.5".into(), username: "ADMIN".into(), ..Default::default() };
    people.bmc(UUID, Some(&InfraMachineBmcConfigSpec { ipmi: Some(ipmi), api: None })).unwrap();
    while go.line().await != format!("machine {UUID} ACCEPTED bmc=ADMIN rebooted=false") {}
    let reboot = people.reboot(UUID).unwrap();
    let status = until(&omni, [statuses.clone()], || observed().filter(|status| status.last_reboot_id == reboot)).await;
    assert_eq!(status.power_state(), Observed::PowerStateOn);
    let status = omni.state().get(&statuses, UUID).unwrap();
    assert_eq!(status.owner, format!("{ID}.InfraMachineStatusController"));
    assert_eq!(status.labels.get("rack").map(String::as_str), Some("1"));

    people.remove(UUID).unwrap();
    while go.line().await != format!("released {UUID}") {}
    let infra_machines = Kind::omni("InfraMachines");
    until(&omni, [infra_machines.clone(), statuses.clone()], || {
        let left = [&infra_machines, &statuses].into_iter().any(|kind| omni.state().get(kind, UUID).is_ok());
        (!left).then_some(())
    })
    .await;
    peers::say(&format!("{LIBRARY}, static provider: 1 machine, calls: {}", go.ask("counts").await));
    omni.shutdown().await;
}
