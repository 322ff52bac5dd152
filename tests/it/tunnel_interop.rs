//! The agent's reverse tunnel against the Go library that real agents and providers are made of, in both roles.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use pilotlight::agent::{CallError, IpmiAccess, PowerManagement, TunnelState};
use pilotlight::lab::agent;
use pilotlight::secret::Secret;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::go::{self, Go};
use crate::peers;
use crate::tunnel::simulated::Bench;
use crate::tunnel::{PATIENCE, Provider, machine, within};

async fn a_go_agent(flags: &[&str]) {
    let Some(program) = go::program("tunnel") else { return };
    let mut provider = Provider::start().await;
    let id = machine(1);
    let address = provider.address.to_string();
    let mut go = Go::start(&program, &[&["agent"], flags, &[&address, id.as_str()]].concat());
    assert!(matches!(provider.event(&id).await, TunnelState::Opened { .. }));
    let tunnels = provider.tunnels.clone();

    // Answers of 300 kB each, which need our credit in revision one.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (tunnels, id) = (tunnels.clone(), id.clone());
        calls.spawn(async move { tunnels.hello(&id, PATIENCE).await });
    }
    for answer in within(calls.join_all()).await {
        answer.unwrap();
    }
    for _ in 0..100 {
        assert_eq!(go.line().await, "hello");
    }

    let ipmi = IpmiAccess { address: [10, 1, 2, 3].into(), port: 6623, user_exists: true };
    let answer = tunnels.power_management(&id, PATIENCE).await.unwrap();
    assert_eq!(answer, PowerManagement { ipmi: Some(ipmi), api: false });
    assert_eq!(go.line().await, "get power management");

    // A request that needs the agent's credit.
    let long = Secret::new("x".repeat(300_000));
    tunnels.set_power_management(&id, "talos-agent", &long, PATIENCE).await.unwrap();
    assert_eq!(go.line().await, "set power management talos-agent 300000");
    let error = tunnels.set_power_management(&id, "nobody", &long, PATIENCE).await.unwrap_err();
    let CallError::Refused { code: Code::Unknown, message, .. } = &error else { panic!("{error}") };
    assert_eq!(message, "failed to set up IPMI user: no slot available for user");
    tunnels.set_api_power_management(&id, PATIENCE).await.unwrap();
    assert_eq!(go.line().await, "set power management  0");

    let error = tunnels.wipe_disks(&id, false, PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { code: Code::FailedPrecondition, .. }), "{error}");
    let wipe = || {
        let (tunnels, id) = (tunnels.clone(), id.clone());
        tokio::spawn(async move { tunnels.wipe_disks(&id, true, PATIENCE * 100).await })
    };
    let given_up = wipe();
    assert_eq!(go.line().await, "wiping with zeroes");
    given_up.abort();
    assert_eq!(go.line().await, "wiping ended: context canceled");
    tunnels.reboot(&id, PATIENCE).await.unwrap();
    assert_eq!(go.line().await, "reboot");

    // A live call fails at once when the agent's process dies.
    let cut = wipe();
    assert_eq!(go.line().await, "wiping with zeroes");
    let calls = go.ask("").await;
    go.kill().await;
    assert!(matches!(within(cut).await.unwrap(), Err(CallError::Closed { .. })));
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
    peers::say(&format!("peer 4: grpctunnel v0.3.0 as agent {flags:?}: {calls}"));
}

#[tokio::test]
async fn our_provider_calls_a_go_agent() {
    a_go_agent(&[]).await;
}

#[tokio::test]
async fn our_provider_calls_a_go_agent_in_revision_zero() {
    a_go_agent(&["-no-flow-control"]).await;
}

#[tokio::test]
async fn a_go_agent_is_told_why_its_tunnel_is_refused_or_ended() {
    let Some(program) = go::program("tunnel") else { return };
    let mut provider = Provider::start().await;
    let address = provider.address.to_string();
    let mut refused = Go::start(&program, &["agent", &address, machine(666).as_str()]);
    // A status without headers counts as a start in Go.
    assert_eq!(refused.line().await, "ended: started=true code=PermissionDenied");
    let mut older = Go::start(&program, &["agent", &address, machine(1).as_str()]);
    provider.event(&machine(1)).await;
    let mut newer = Go::start(&program, &["agent", &address, machine(1).as_str()]);
    provider.event(&machine(1)).await;
    assert_eq!(older.line().await, "ended: started=true code=Aborted");
    provider.tunnels.hello(&machine(1), PATIENCE).await.unwrap();
    assert_eq!(newer.line().await, "hello");
    provider.tunnels.close_all();
    assert_eq!(newer.line().await, "ended: started=true code=Unavailable");
}

async fn a_go_provider(flags: &[&str]) {
    let Some(program) = go::program("tunnel") else { return };
    let mut go = Go::start(&program, &[&["provider"], flags].concat());
    let address = go.line().await.strip_prefix("listening ").unwrap().to_owned();
    let bench = Bench::new(0);
    let cancel = CancellationToken::new();
    let (hardware, token) = (bench.clone(), cancel.clone());
    let bind = Some(Ipv4Addr::new(127, 7, 7, 8).into());
    let agent = tokio::spawn(async move { agent::run(&address, &machine(1), hardware, bind, token).await });
    for want in [
        &format!("opened {}", machine(1)),
        "hundred long hellos: OK \"\"",
        "get: OK \"\"",
        "ipmi 10.0.0.5 623 true",
        "set: OK \"\"",
        "set nobody: Unknown \"failed to set up IPMI user: no slot available for user\"",
        "wipe that waits: DeadlineExceeded \"context deadline exceeded\"",
        "hello after it: OK \"\"",
        "wipe that panics: Internal \"panic\"",
        "reboot: OK \"\"",
        "method \"/management.AgentService/Nope\": Unimplemented \"management.AgentService/Nope not implemented\"",
        "method \"Hello\": InvalidArgument \"Hello is not a well-formed method name\"",
        "method \"\": InvalidArgument \" is not a well-formed method name\"",
        "done",
    ] {
        assert_eq!(go.line().await, want);
    }
    assert_eq!(*bench.users.lock().unwrap(), [("talos-agent".to_owned(), "0123456789abcdef".to_owned())]);
    assert_eq!((bench.wipes.load(Ordering::SeqCst), bench.reboots.load(Ordering::SeqCst)), (2, 1));
    cancel.cancel();
    within(agent).await.unwrap().unwrap();
    assert_eq!(go.line().await, "closed");
    let calls = go.ask("").await;
    peers::say(&format!("peer 4: grpctunnel v0.3.0 as provider {flags:?}: {calls} to our agent"));
}

#[tokio::test]
async fn our_agent_answers_a_go_provider() {
    a_go_provider(&[]).await;
}

#[tokio::test]
async fn our_agent_answers_a_go_provider_in_revision_zero() {
    a_go_provider(&["-no-flow-control"]).await;
}
