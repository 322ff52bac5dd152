//! The simulated agent against our provider.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use pilotlight::agent::{CallError, IpmiAccess, PowerManagement};
use pilotlight::lab::agent::{self, AgentError, BmcLan, Hardware};
use pilotlight::proto::tunnel::NewStream;
use pilotlight::proto::tunnel::tunnel_service_server::{TunnelService, TunnelServiceServer};
use pilotlight::secret::Secret;
use pilotlight::wire::tunnel::Violation;
use tokio::sync::Semaphore;
use tonic::Code;

use super::*;

/// A machine whose wipes wait for `gate`.
pub struct Bench {
    pub bmc: Option<BmcLan>,
    pub users: Mutex<Vec<(String, String)>>,
    pub wipes: AtomicUsize,
    pub reboots: AtomicUsize,
    pub gate: Semaphore,
}

impl Bench {
    pub fn new(gate: usize) -> Arc<Self> {
        let address = Ipv4Addr::new(10, 0, 0, 5);
        let users = vec![String::new(), "ADMIN".to_owned()];
        Arc::new(Self {
            bmc: Some(BmcLan { address, port: 623, users }),
            users: Mutex::default(),
            wipes: AtomicUsize::new(0),
            reboots: AtomicUsize::new(0),
            gate: Semaphore::new(gate),
        })
    }
}

#[async_trait::async_trait]
impl Hardware for Bench {
    async fn wipe(&self, zeroes: bool) -> Result<(), String> {
        self.wipes.fetch_add(1, Ordering::SeqCst);
        assert!(!zeroes, "this bench panics when asked for zeroes");
        self.gate.acquire().await.unwrap().forget();
        Ok(())
    }

    async fn bmc(&self) -> Option<BmcLan> {
        self.bmc.clone()
    }

    async fn set_bmc_user(&self, name: &str, password: &Secret<String>) -> Result<(), String> {
        if name == "nobody" {
            return Err("no slot available for user".to_owned());
        }
        self.users.lock().unwrap().push((name.to_owned(), password.reveal().clone()));
        Ok(())
    }

    async fn reboot(&self) {
        self.reboots.fetch_add(1, Ordering::SeqCst);
    }
}

fn start(provider: &Provider, number: u32, bench: Arc<Bench>, bind: Option<IpAddr>) -> DropGuard {
    let cancel = CancellationToken::new();
    let (address, token) = (provider.address.to_string(), cancel.clone());
    tokio::spawn(async move {
        agent::run_forever(&address, &machine(number), bench, bind, Duration::from_millis(20), token).await;
    });
    cancel.drop_guard()
}

#[tokio::test]
async fn the_five_calls_reach_the_hardware() {
    let mut provider = Provider::start().await;
    let bench = Bench::new(1);
    let bind = IpAddr::from([127, 7, 7, 7]);
    let _agent = start(&provider, 1, bench.clone(), Some(bind));
    let id = machine(1);
    assert!(matches!(provider.event(&id).await, TunnelState::Opened { peer } if peer.ip() == bind));
    let tunnels = &provider.tunnels;
    tunnels.hello(&id, PATIENCE).await.unwrap();
    // The empty name that we ask for is the one of the empty slot.
    let ipmi = Some(IpmiAccess { address: [10, 0, 0, 5].into(), port: 623, user_exists: true });
    assert_eq!(tunnels.power_management(&id, PATIENCE).await.unwrap(), PowerManagement { ipmi, api: false });
    let password = Secret::new("0123456789abcdef".to_owned());
    tunnels.set_power_management(&id, "talos-agent", &password, PATIENCE).await.unwrap();
    assert_eq!(*bench.users.lock().unwrap(), [("talos-agent".to_owned(), "0123456789abcdef".to_owned())]);
    let error = tunnels.set_power_management(&id, "nobody", &password, PATIENCE).await.unwrap_err();
    let CallError::Refused { code: Code::Unknown, message, .. } = &error else { panic!("{error}") };
    assert_eq!(message, "failed to set up IPMI user: no slot available for user");
    tunnels.wipe_disks(&id, false, PATIENCE).await.unwrap();
    let panicked = tunnels.wipe_disks(&id, true, PATIENCE).await.unwrap_err();
    assert!(matches!(panicked, CallError::Refused { code: Code::Internal, .. }), "{panicked}");
    tunnels.reboot(&id, PATIENCE).await.unwrap();
    assert_eq!((bench.wipes.load(Ordering::SeqCst), bench.reboots.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn a_machine_in_test_mode_is_managed_by_the_api() {
    let mut provider = Provider::start().await;
    let mut bench = Bench::new(0);
    Arc::get_mut(&mut bench).unwrap().bmc = None;
    let _agent = start(&provider, 1, bench.clone(), None);
    let id = machine(1);
    provider.event(&id).await;
    let answer = provider.tunnels.power_management(&id, PATIENCE).await.unwrap();
    assert_eq!(answer, PowerManagement { ipmi: None, api: true });
    provider.tunnels.set_api_power_management(&id, PATIENCE).await.unwrap();
    assert!(bench.users.lock().unwrap().is_empty());
}

#[tokio::test]
async fn identical_concurrent_wipes_share_one_run() {
    let mut provider = Provider::start().await;
    let bench = Bench::new(0);
    let _agent = start(&provider, 1, bench.clone(), None);
    provider.event(&machine(1)).await;
    let wipe = || {
        let tunnels = provider.tunnels.clone();
        tokio::spawn(async move { tunnels.wipe_disks(&machine(1), false, PATIENCE).await })
    };
    let calls = [wipe(), wipe(), wipe()];
    while bench.wipes.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // Once this answer is here, so are the three requests that went before it.
    provider.tunnels.hello(&machine(1), PATIENCE).await.unwrap();
    bench.gate.add_permits(1);
    for call in calls {
        within(call).await.unwrap().unwrap();
    }
    assert_eq!(bench.wipes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_agent_comes_back_after_its_tunnel_was_ended() {
    let mut provider = Provider::start().await;
    let _agent = start(&provider, 1, Bench::new(0), None);
    for _ in 0..3 {
        assert!(matches!(provider.event(&machine(1)).await, TunnelState::Opened { .. }));
        provider.tunnels.hello(&machine(1), PATIENCE).await.unwrap();
        provider.tunnels.close(&machine(1));
        assert!(matches!(provider.event(&machine(1)).await, TunnelState::Closed { .. }));
    }
}

#[tokio::test]
async fn an_agent_that_cannot_connect_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    let run = async |address: &str, number| {
        let cancel = CancellationToken::new();
        within(agent::run(address, &machine(number), Bench::new(0), None, cancel)).await.unwrap_err()
    };
    assert!(matches!(run("localhost:50042", 1).await, AgentError::Address { .. }));
    assert!(matches!(run("https://127.0.0.1:1", 1).await, AgentError::TlsUnsupported { .. }));
    assert!(matches!(run(&closed, 1).await, AgentError::Dial { .. }));
    let provider = Provider::start().await;
    let refused = run(&provider.address.to_string(), 666).await;
    let AgentError::Refused { source, .. } = refused else { panic!("{refused}") };
    assert_eq!(source.message(), "not in this rack");
}

/// A provider that writes what the test says, and passes on what it reads.
struct Script {
    negotiate: bool,
    frames: Vec<ClientToServer>,
    read: mpsc::Sender<Option<ServerToClient>>,
}

#[tonic::async_trait]
impl TunnelService for Script {
    type OpenTunnelStream = tokio_stream::Empty<Result<ServerToClient, Status>>;
    type OpenReverseTunnelStream = BoxStream<'static, Result<ClientToServer, Status>>;

    async fn open_tunnel(
        &self,
        _: Request<Streaming<ClientToServer>>,
    ) -> Result<tonic::Response<Self::OpenTunnelStream>, Status> {
        Err(Status::unimplemented("forward"))
    }

    async fn open_reverse_tunnel(
        &self,
        request: Request<Streaming<ServerToClient>>,
    ) -> Result<tonic::Response<Self::OpenReverseTunnelStream>, Status> {
        let mut from = request.into_inner();
        let read = self.read.clone();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = from.message().await {
                // The test may have seen enough.
                let _ = read.send(Some(frame)).await;
            }
            let _ = read.send(None).await;
        });
        let frames: Vec<_> = self.frames.iter().cloned().map(Ok).collect();
        let frames = tokio_stream::StreamExt::chain(tokio_stream::iter(frames), tokio_stream::pending());
        let mut response = tonic::Response::new(frames.boxed());
        if self.negotiate {
            response.metadata_mut().insert("grpctunnel-negotiate", "on".parse().unwrap());
        }
        Ok(response)
    }
}

/// Runs an agent against a scripted provider. Returns what it writes, `None` once it let go, and its end.
async fn play(
    negotiate: bool,
    frames: Vec<(i64, down::Frame)>,
) -> (mpsc::Receiver<Option<ServerToClient>>, tokio::task::JoinHandle<Result<(), AgentError>>) {
    let frames =
        frames.into_iter().map(|(stream_id, frame)| ClientToServer { stream_id, frame: Some(frame) }).collect();
    let (read, written) = mpsc::channel(64);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(TunnelServiceServer::new(Script { negotiate, frames, read }))
        .serve_with_incoming(TcpListenerStream::new(listener));
    // Ends with the test's runtime.
    tokio::spawn(server);
    let agent = async move { agent::run(&address, &machine(1), Bench::new(0), None, CancellationToken::new()).await };
    (written, tokio::spawn(agent))
}

fn new_stream(id: i64, method: &str) -> (i64, down::Frame) {
    (id, down::Frame::NewStream(NewStream { method_name: method.into(), ..NewStream::default() }))
}

#[tokio::test]
async fn an_agent_drops_both_halves_when_the_provider_breaks_the_rules() {
    let hello = "/management.AgentService/Hello";
    for (frames, violation) in [
        (vec![(3, down::Frame::Cancel(()))], Violation::NeverCreated(3)),
        (vec![new_stream(1, hello), new_stream(1, hello)], Violation::AlreadyExists(1)),
        (vec![new_stream(5, hello), new_stream(2, hello)], Violation::AlreadyUsed(2)),
    ] {
        let (mut written, agent) = play(true, frames).await;
        let error = within(agent).await.unwrap().unwrap_err();
        assert!(matches!(error, AgentError::Violation { source, .. } if source == violation), "{error:?}");
        while within(written.recv()).await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn settings_go_only_to_a_provider_that_negotiates() {
    for negotiate in [true, false] {
        let (mut written, agent) = play(negotiate, vec![new_stream(0, "Nope")]).await;
        let first = within(written.recv()).await.unwrap().unwrap();
        assert_eq!(matches!(first.frame, Some(up::Frame::Settings(_))), negotiate, "{first:?}");
        agent.abort();
    }
}

#[tokio::test]
async fn two_hundred_agents_answer_at_once() {
    let mut provider = Provider::start().await;
    let _agents: Vec<_> = (0..200).map(|number| start(&provider, number, Bench::new(0), None)).collect();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let event = within(provider.events.next()).await;
        let tunnels = provider.tunnels.clone();
        calls.spawn(async move { tunnels.power_management(&event.machine, PATIENCE).await });
    }
    for answer in within(calls.join_all()).await {
        answer.unwrap();
    }
    assert_eq!(provider.tunnels.machines().len(), 200);
}
