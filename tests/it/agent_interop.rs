//! The official metal agent, as published, against our tunnel server. A stand-in for Talos runs it as Talos does.

use pilotlight::agent::{CallError, PowerManagement, TunnelState};
use pilotlight::secret::Secret;
use tonic::Code;

use crate::go::{self, Go};
use crate::peers;
use crate::tunnel::{PATIENCE, Provider, machine, within};

/// An agent that dials `provider` for machine 1, in a root directory without hardware.
fn agent(provider: &Provider, flags: &[&str]) -> Option<(Go, tempfile::TempDir)> {
    if !nix::unistd::geteuid().is_root() {
        peers::say("skipped: only root gives the agent a root directory of its own");
        return None;
    }
    let (talos, agent) = (go::program("talos")?, go::program("talos-metal-agent")?);
    let root = tempfile::tempdir().unwrap();
    let address = format!("http://{}", provider.address);
    let (id, agent, directory) = (machine(1), agent.to_str().unwrap(), root.path().to_str().unwrap());
    let arguments = [&[agent, directory, id.as_str(), &address], flags].concat();
    Some((Go::start(&talos, &arguments), root))
}

#[tokio::test]
async fn our_provider_calls_the_official_agent() {
    let mut provider = Provider::start().await;
    let Some((mut talos, _root)) = agent(&provider, &["--test-mode"]) else { return };
    let id = machine(1);
    assert!(matches!(provider.event(&id).await, TunnelState::Opened { .. }));
    let tunnels = provider.tunnels.clone();

    let mut hellos = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (tunnels, id) = (tunnels.clone(), id.clone());
        hellos.spawn(async move { tunnels.hello(&id, PATIENCE).await });
    }
    let mut calls = hellos.len();
    for answer in within(hellos.join_all()).await {
        answer.unwrap();
    }
    let answer = tunnels.power_management(&id, PATIENCE).await.unwrap();
    assert_eq!(answer, PowerManagement { ipmi: None, api: true });
    tunnels.set_api_power_management(&id, PATIENCE).await.unwrap();
    tunnels.set_power_management(&id, "talos-agent", &Secret::new("password".into()), PATIENCE).await.unwrap();

    calls += 3;

    // What Talos is asked for: every disk that can be written, and a reboot with a power cycle.
    for (zeroes, method) in [(false, "FAST"), (true, "ZEROES")] {
        tunnels.wipe_disks(&id, zeroes, PATIENCE).await.unwrap();
        assert_eq!(talos.line().await, format!("wipe nvme0n1:{method} sda:{method}"));
        calls += 1;
    }
    tunnels.reboot(&id, PATIENCE).await.unwrap();
    assert_eq!(talos.line().await, "reboot POWERCYCLE");

    // An agent whose tunnel ends exits; Talos starts it again, and it dials again.
    tunnels.close(&id);
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
    assert_eq!(talos.line().await, "agent ended with 1");
    assert!(matches!(provider.event(&id).await, TunnelState::Opened { .. }));
    tunnels.hello(&id, PATIENCE).await.unwrap();
    calls += 2;
    peers::say(&format!("peer 4: talos-metal-agent v0.1.6 in its test mode: {calls} calls over 2 tunnels"));
}

#[tokio::test]
async fn the_official_agent_without_a_bmc_says_what_is_missing() {
    let mut provider = Provider::start().await;
    let Some((_talos, _root)) = agent(&provider, &[]) else { return };
    let id = machine(1);
    assert!(matches!(provider.event(&id).await, TunnelState::Opened { .. }));
    let error = provider.tunnels.power_management(&id, PATIENCE).await.unwrap_err();
    let CallError::Refused { code: Code::Internal, message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("error creating ipmi client"), "{message}");
    let password = Secret::new("password".into());
    let error = provider.tunnels.set_power_management(&id, "talos-agent", &password, PATIENCE).await.unwrap_err();
    let CallError::Refused { code: Code::Unknown, message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("error creating ipmi client"), "{message}");
    provider.tunnels.hello(&id, PATIENCE).await.unwrap();
    peers::say("peer 4: talos-metal-agent v0.1.6 without a BMC: both IPMI calls refused with its reasons");
}
