//! The agent's reverse tunnel against the Go library that real agents and providers are made of, in both roles.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use pilotlight::agent::{CallError, IpmiAccess, PowerManagement, TunnelState};
use pilotlight::lab::agent;
use pilotlight::secret::Secret;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::peers;
use crate::tunnel::simulated::Bench;
use crate::tunnel::{PATIENCE, Provider, machine, within};

/// The Go program, built once per run; `None` without Go, or without a way to get its modules.
fn go_tunnel() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if !peers::require("go", "golang-go") {
                return None;
            }
            let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-tunnel");
            let built = std::process::Command::new("go")
                .args(["build", "-mod=readonly", "-o"])
                .arg(&program)
                .arg(".")
                .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/tunnel"))
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
            crate::peers::say("skipped: the Go modules cannot be fetched (go mod download in tests/interop/tunnel)");
            None
        })
        .clone()
}

/// A running Go program; killed when dropped.
struct Go {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Go {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        within(self.lines.next_line()).await.unwrap().expect("the Go program still runs")
    }
}

async fn a_go_agent(flags: &[&str]) {
    let Some(program) = go_tunnel() else { return };
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
    go.child.kill().await.unwrap();
    assert!(matches!(within(cut).await.unwrap(), Err(CallError::Closed { .. })));
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
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
    let Some(program) = go_tunnel() else { return };
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
    let Some(program) = go_tunnel() else { return };
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
}

#[tokio::test]
async fn our_agent_answers_a_go_provider() {
    a_go_provider(&[]).await;
}

#[tokio::test]
async fn our_agent_answers_a_go_provider_in_revision_zero() {
    a_go_provider(&["-no-flow-control"]).await;
}
