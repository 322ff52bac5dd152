//! How machines join and live, with a provider and machines that the test plays.

use std::time::Duration;

use pilotlight::lab::omni::controller::{join_token_usages, links, node_unique_tokens};
use pilotlight::lab::omni::lifecycle::Allocation;
use pilotlight::lab::omni::script::{Plan, Step, Variant};
use pilotlight::lab::omni::token;
use pilotlight::proto::cosi::{self, EventType};
use pilotlight::proto::lab::machine_link_client::MachineLinkClient;
use pilotlight::proto::lab::next_response::Order;
use pilotlight::proto::lab::report_request::Event as Report;
use pilotlight::proto::lab::{NextRequest, ReportRequest};
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use pilotlight::proto::specs::infra_machine_status_spec::MachinePowerState as Observed;
use pilotlight::proto::specs::{
    InfraMachineSpec, InfraMachineStatusSpec, JoinTokenUsageSpec, NodeUniqueTokenSpec, ProviderJoinConfigSpec,
};
use pilotlight::resource::Kind;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Channel;

use super::client::*;

/// The secret of the provider's join tokens, as the provider reads it.
pub async fn join_secret(client: &Client) -> String {
    let config = client.get(&Kind::omni("ProviderJoinConfigs"), ID).await.unwrap();
    let spec: ProviderJoinConfigSpec = prost::Message::decode(config.spec.unwrap().proto_spec).unwrap();
    let kernel_args = spec.config.unwrap().kernel_args;
    let token = token::query_escape(&token::for_provider(&spec.join_token, ID));
    assert!(kernel_args[0].ends_with(&format!("?jointoken={token}")), "{kernel_args:?}");
    spec.join_token
}

#[tokio::test]
async fn a_machine_joins_with_its_providers_token_alone() {
    let (omni, client) = omni().await;
    let secret = join_secret(&client).await;
    let mut link = ProvisionServiceClient::new(client.channel.clone());
    let with = |token: String| ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.to_uppercase(),
        join_token: Some(token),
        ..Default::default()
    };
    assert_eq!(link.provision(with("v2:nonsense".into())).await.unwrap_err().code(), Code::PermissionDenied);
    let (code, text) = of(link.provision(with(token::for_provider("another", ID))).await.unwrap_err());
    assert_eq!((code, text.as_str()), (Code::PermissionDenied, "unauthorized"));
    let good = token::for_provider(&secret, ID);
    let machines = Kind::omni("InfraMachines");
    link.provision(with(good.clone())).await.unwrap();
    assert!(omni.state().get(&links(), UUID).is_ok());
    assert_eq!(client.get(&machines, UUID).await.unwrap_err().code(), Code::NotFound, "no static provider yet");
    let mut stream = client.watch(&machines, Some(UUID), cosi::WatchOptions::default()).await.unwrap();
    client.register().await;
    let (what, mut created) = event(&mut stream).await;
    assert_eq!(what, EventType::Created);
    assert!(labels(created.resource.as_mut().unwrap()).contains_key("omni.sidero.dev/accept-pending"));

    omni.rotate_join_token().unwrap();
    assert_eq!(link.provision(with(good)).await.unwrap_err().code(), Code::PermissionDenied);
    let other = token::for_provider(&join_secret(&client).await, ID);
    link.provision(with(other.clone())).await.unwrap();
    let usage: JoinTokenUsageSpec = omni.state().get(&join_token_usages(), UUID).unwrap().decode().unwrap();
    assert_eq!(usage.token_id, other);
    let report = ReportRequest { uuid: "4c4c4544-0000-4810-8031-b4c04f333132".into(), event: Report::Agent.into() };
    let status = MachineLinkClient::new(client.channel.clone()).report(report).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    omni.shutdown().await;
}

#[tokio::test]
async fn a_machine_whose_join_token_was_revoked_joins_by_its_unique_token_alone() {
    let (omni, client) = omni().await;
    client.register().await;
    let old = token::for_provider(&join_secret(&client).await, ID);
    let mut link = ProvisionServiceClient::new(client.channel.clone());
    let with = |uuid: &str, unique_token: Option<&str>| ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: uuid.to_owned(),
        join_token: Some(old.clone()),
        node_unique_token: unique_token.map(str::to_owned),
        talos_version: Some("v1.13.7".into()),
        ..Default::default()
    };
    let unique = r#"{"Fingerprint":"a","Token":"b"}"#;
    link.provision(with(UUID, Some(unique))).await.unwrap();
    let stored: NodeUniqueTokenSpec = omni.state().get(&node_unique_tokens(), UUID).unwrap().decode().unwrap();
    assert_eq!(stored.token, unique);

    omni.rotate_join_token().unwrap();
    link.provision(with(UUID, Some(unique))).await.unwrap();
    let another_uuid = "4c4c4544-0000-4810-8031-b4c04f333132";
    for (why, request) in [
        ("no unique token", with(UUID, None)),
        ("another unique token", with(UUID, Some(r#"{"Fingerprint":"a","Token":"c"}"#))),
        ("the unique token of another machine", with(another_uuid, Some(unique))),
    ] {
        let said = of(link.provision(request).await.unwrap_err());
        assert_eq!(said, (Code::PermissionDenied, "unauthorized".into()), "{why}");
    }
    for kind in [join_token_usages(), node_unique_tokens()] {
        assert_eq!(client.get(&kind, UUID).await.unwrap_err().code(), Code::PermissionDenied);
        Client::connect(&omni, omni.admin()).await.get(&kind, UUID).await.unwrap();
    }
    omni.people().remove(UUID).unwrap();
    assert!(omni.state().get(&join_token_usages(), UUID).is_err());
    assert!(omni.state().get(&node_unique_tokens(), UUID).is_err());
    omni.shutdown().await;
}

/// How a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Off,
    Agent,
    Talos,
    Disk,
}

/// A machine's two ends: what the provider tells it, and how it runs.
#[derive(Clone)]
struct Chassis {
    told: watch::Sender<Power>,
    runs: watch::Sender<Power>,
}

/// A machine: boots as told, reports, and does what Omni orders.
async fn machine(channel: Channel, uuid: String, token: String, chassis: Chassis) {
    let mut told = chassis.told.subscribe();
    let (mut provision, mut link) = (ProvisionServiceClient::new(channel.clone()), MachineLinkClient::new(channel));
    let report = |event: Report| ReportRequest { uuid: uuid.clone(), event: event.into() };
    loop {
        let mode = *told.borrow_and_update();
        let booted = match mode {
            Power::Off => None,
            Power::Agent => Some(Report::Agent),
            Power::Talos => Some(Report::Maintenance),
            Power::Disk => Some(Report::BootedFromDisk),
        };
        if let Some(booted) = booted {
            let join_token = Some(token.clone());
            let join = ProvisionRequest {
                node_public_key: WIREGUARD_KEY.into(),
                node_uuid: uuid.clone(),
                join_token,
                ..Default::default()
            };
            provision.provision(join).await.unwrap();
            link.report(report(booted)).await.unwrap();
        }
        chassis.runs.send_replace(mode);
        let mut orders = link.clone();
        while *chassis.runs.borrow() != Power::Off {
            let order = tokio::select! {
                _ = told.changed() => break,
                answer = orders.next(NextRequest { uuid: uuid.clone() }) => match answer {
                    Ok(answer) => answer.into_inner().order(),
                    Err(_) => return,
                },
            };
            match order {
                Order::Wait => (),
                Order::Install => {
                    link.report(report(Report::Installed)).await.unwrap();
                    link.report(report(Report::BootedFromDisk)).await.unwrap();
                    chassis.runs.send_replace(Power::Disk);
                }
                Order::Reset => link.report(report(Report::ResetDone)).await.map(drop).unwrap(),
                Order::Shutdown => drop(chassis.runs.send_replace(Power::Off)),
            }
        }
        if *chassis.runs.borrow() == Power::Off && !told.has_changed().unwrap_or(false) && told.changed().await.is_err()
        {
            return;
        }
    }
}

/// What the provider below remembers of a machine.
#[derive(Default)]
struct Memory {
    wiped: Option<String>,
    wiped_at: u64,
    status: InfraMachineStatusSpec,
}

/// A provider for one machine: reads the InfraMachine, drives the machine's power, writes the status.
async fn provide(client: Client, uuid: String, chassis: Chassis) {
    let (machines, statuses) = (Kind::omni("InfraMachines"), Kind::omni("InfraMachineStatuses"));
    let mut stream = client.watch(&machines, Some(&uuid), cosi::WatchOptions::default()).await.unwrap();
    let mut memory = Memory::default();
    let mut stored: Option<cosi::Resource> = None;
    let mut infra: Option<cosi::Resource> = None;
    let mut runs = chassis.runs.subscribe();
    let mut told = *chassis.told.borrow();
    loop {
        tokio::select! {
            message = stream.message() => {
                for event in message.unwrap().unwrap().event {
                    if event.event_type() == EventType::Destroyed {
                        return;
                    }
                    infra = event.resource;
                }
            }
            _ = runs.changed() => told = *runs.borrow_and_update(),
        }
        let Some(seen) = infra.as_mut() else { continue };
        let spec: InfraMachineSpec = prost::Message::decode(seen.spec.clone().unwrap().proto_spec).unwrap();
        let finalizer = "metal-1.test".to_owned();
        if metadata(seen).phase == "tearingDown" {
            if stored.take().is_some() {
                client.destroy(&statuses, &uuid, "").await.unwrap();
            }
            let mut free = seen.clone();
            metadata(&mut free).finalizers.clear();
            // A conflict means that a newer event is under way.
            let _ = client.update(free, "InfraMachineController", None).await;
            continue;
        }
        if !metadata(seen).finalizers.contains(&finalizer) {
            let mut held = seen.clone();
            metadata(&mut held).finalizers.push(finalizer);
            let _ = client.update(held, "InfraMachineController", None).await;
            continue;
        }
        if spec.acceptance_status() != AcceptanceStatus::Accepted || spec.cordoned {
            continue;
        }
        let allocated = !spec.cluster_talos_version.is_empty();
        let runs_now = *chassis.runs.borrow();
        if memory.wiped.as_ref() != Some(&spec.wipe_id) && runs_now == Power::Agent {
            memory.wiped = Some(spec.wipe_id.clone());
            memory.wiped_at = spec.install_event_id;
            memory.status.wiped_node_unique_token.clone_from(&spec.node_unique_token);
        }
        let wanted = if memory.wiped.as_ref() != Some(&spec.wipe_id) {
            Power::Agent
        } else if !spec.power_off_request_id.is_empty() && runs_now == Power::Off {
            memory.status.last_power_off_id.clone_from(&spec.power_off_request_id);
            Power::Off
        } else if allocated {
            memory.status.last_power_off_id.clear();
            if spec.install_event_id > memory.wiped_at { Power::Disk } else { Power::Talos }
        } else {
            Power::Off
        };
        let rebooted = allocated && spec.requested_reboot_id != memory.status.last_reboot_id;
        if rebooted {
            memory.status.last_reboot_id.clone_from(&spec.requested_reboot_id);
        }
        if rebooted || wanted != told {
            told = wanted;
            chassis.told.send_replace(wanted);
        }
        memory.status.ready_to_use = memory.wiped.as_ref() == Some(&spec.wipe_id);
        memory.status.installed = spec.install_event_id > memory.wiped_at;
        memory.status.set_power_state(if runs_now == Power::Off {
            Observed::PowerStateOff
        } else {
            Observed::PowerStateOn
        });
        let fresh = fresh(&statuses, &uuid, &memory.status);
        stored = Some(match stored {
            None => client.create(fresh, "").await.unwrap(),
            Some(before) if before.spec == fresh.spec => before,
            Some(before) => {
                client.update(cosi::Resource { spec: fresh.spec, ..before }, "", Some("running")).await.unwrap()
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_machines_live_their_whole_scripted_lives() {
    let (omni, client) = omni().await;
    client.register().await;
    let token = token::for_provider(&join_secret(&client).await, ID);
    let fleet: Vec<_> = (0..10).map(|index| format!("4c4c4544-0044-4810-8031-{index:012}")).collect();
    omni.direct(Plan { fleet: fleet.clone(), pause: Duration::from_millis(20), ..Plan::default() });
    let mut rack = tokio::task::JoinSet::new();
    for uuid in &fleet {
        let chassis = Chassis { told: watch::Sender::new(Power::Agent), runs: watch::Sender::new(Power::Off) };
        rack.spawn(provide(client.clone(), uuid.clone(), chassis.clone()));
        rack.spawn(machine(client.channel.clone(), uuid.clone(), token.clone(), chassis));
    }
    let mut changes = omni.progress_changes();
    let finished = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let progress = omni.progress();
            if progress.len() == fleet.len() && progress.iter().all(|life| life.step >= Step::Done) {
                return progress;
            }
            changes.changed().await.unwrap();
        }
    });
    let progress = finished.await.unwrap_or_else(|_| panic!("stuck: {:#?}", omni.progress()));
    assert!(progress.iter().all(|life| life.step == Step::Done), "{progress:#?}");
    let variant = |index: usize| progress.iter().find(|life| life.uuid == fleet[index]).unwrap().variant;
    assert_eq!(
        [variant(0), variant(7), variant(8), variant(9)],
        [Variant::Plain, Variant::Cordoned, Variant::Rebooted, Variant::RejectedFirst]
    );
    assert!(omni.controller().machines().is_empty());
    assert!(omni.state().list(&Kind::omni("InfraMachineStatuses")).is_empty());
    assert!(omni.state().list(&links()).is_empty());
    rack.shutdown().await;
    omni.shutdown().await;
}

#[tokio::test]
async fn a_machine_that_waits_is_named_with_what_it_waits_for() {
    let (omni, client) = omni().await;
    client.register().await;
    omni.direct(Plan { fleet: vec![UUID.into()], ..Plan::default() });
    let mut changes = omni.progress_changes();
    while omni.progress().is_empty() {
        changes.changed().await.unwrap();
    }
    assert_eq!(
        (omni.progress()[0].step, omni.progress()[0].waiting_for.as_str()),
        (Step::Joining, "the machine to join")
    );
    let token = token::for_provider(&join_secret(&client).await, ID);
    let join = ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.into(),
        join_token: Some(token),
        ..Default::default()
    };
    ProvisionServiceClient::new(client.channel.clone()).provision(join).await.unwrap();
    while omni.progress()[0].step != Step::Preparing {
        changes.changed().await.unwrap();
    }
    assert!(omni.people().reject(UUID).is_err(), "acceptance is final");
    let allocation = Allocation {
        cluster: "c".into(),
        machine_set: "c-workers".into(),
        control_plane: true,
        talos_version: "1.11.2".into(),
        extensions: vec![],
    };
    omni.people().allocate(UUID, allocation).unwrap();
    let mut machine = client.get(&Kind::omni("InfraMachines"), UUID).await.unwrap();
    assert!(labels(&mut machine).contains_key("omni.sidero.dev/role-controlplane"));
    omni.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_drops_its_questions_at_once_keeps_its_connection() {
    let (omni, client) = omni().await;
    client.register().await;
    let token = token::for_provider(&join_secret(&client).await, ID);
    let join = ProvisionRequest {
        node_public_key: WIREGUARD_KEY.into(),
        node_uuid: UUID.into(),
        join_token: Some(token),
        ..Default::default()
    };
    ProvisionServiceClient::new(client.channel.clone()).provision(join).await.unwrap();
    // Some are dropped before the server has seen them, some after: it depends on how often the others had their turn.
    for turns in 0..40 {
        let mut questions = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let mut link = MachineLinkClient::new(client.channel.clone());
            questions.spawn(async move { link.next(NextRequest { uuid: UUID.into() }).await });
        }
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        questions.shutdown().await;
    }
    client.get(&Kind::omni("InfraMachines"), UUID).await.unwrap();
    omni.shutdown().await;
}
