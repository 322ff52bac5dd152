//! A site: Omni's double, the product's binary, machines with BMCs, all on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use pilotlight::lab::PROVIDER_ID;
use pilotlight::lab::machine::Timing;
use pilotlight::lab::omni::script::{Plan, Step};
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::lab::os::Patience;
use pilotlight::lab::provider::Provider;
use pilotlight::lab::rack::Rack;
use pilotlight::status::Snapshot;
use pilotlight::time::Uptime;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than anything here takes; a wait that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that rings no bell.
pub const LOOK: Duration = Duration::from_millis(25);

/// Everything around one provider. The provider is killed when this is dropped.
pub struct Site {
    pub omni: Omni,
    pub provider: Provider,
    pub rack: Rack,
    _directory: TempDir,
}

impl Site {
    /// A site whose machines are off and whose provider does not run yet.
    pub async fn new(machines: u16) -> Self {
        Self::with(machines, Patience::short()).await
    }

    pub async fn with(machines: u16, patience: Patience) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Long enough for the provider not to warn of the key's end.
        let options = Options { key_lifetime: Duration::from_secs(90 * 86_400), ..Options::loopback(PROVIDER_ID) };
        let omni = Omni::start(options).await.unwrap();
        let page = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut provider = Provider::prepare(directory.path(), &omni, page).unwrap();
        provider.set_program(Path::new(env!("CARGO_BIN_EXE_pilotlight")));
        provider.set_flag("poll-interval", "1s");
        provider.set_flag("agent-wait", "8s");
        let timing = Timing {
            post: Duration::from_millis(100),
            dhcp_wait: Duration::from_millis(300),
            retry: Duration::from_millis(200),
            retry_most: Duration::from_secs(1),
            ..Timing::default()
        };
        let rack = Rack::with(machines, provider.network(), timing, patience).await.unwrap();
        Self { omni, provider, rack, _directory: directory }
    }

    /// A site whose provider runs.
    pub async fn start(machines: u16) -> Self {
        let mut site = Self::new(machines).await;
        site.provider.start().await.unwrap();
        site
    }

    /// What the provider says about itself.
    pub async fn status(&self) -> Snapshot {
        self.provider.status().await.unwrap_or_else(|| panic!("the provider does not answer\n{}", self.tail()))
    }

    /// Waits until the provider's status `holds`.
    pub async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let deadline = Uptime::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            assert!(Uptime::now() < deadline, "{what}: not so in time\n{status:#?}\n{}", self.tail());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until `holds`, which looks at the double or at the rack.
    pub async fn see(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Uptime::now() + PATIENCE;
        while !holds(self) {
            assert!(Uptime::now() < deadline, "{what}: not so in time\n{}\n{}", self.lives(), self.tail());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets people lead each machine through its life, and switches the machines on.
    pub async fn live(&self) {
        self.omni.direct(Plan { fleet: self.rack.ids(), pause: Duration::from_millis(100), ..Plan::default() });
        self.rack.switch_on().await;
    }

    /// The step that the life at `index` has reached.
    pub fn step(&self, index: usize) -> Step {
        let id = self.rack.ids()[index].clone();
        let life = self.omni.progress().into_iter().find(|life| life.uuid == id);
        life.map_or(Step::Joining, |life| life.step)
    }

    /// Whether every life is over as it should be.
    pub fn is_done(&self) -> bool {
        (0..self.rack.ids().len()).all(|index| self.step(index) == Step::Done)
    }

    /// Waits until every life is over, and checks that each disk was wiped twice and each machine is off.
    pub async fn done(&self) {
        self.see("every life is done", Self::is_done).await;
        self.rack.verify().unwrap();
    }

    /// Where each life stands and what the machines did last.
    pub fn lives(&self) -> String {
        let mut text = String::new();
        for life in self.omni.progress() {
            text.push_str(&format!("{}: {}, waits for {}\n", life.uuid, life.step, life.waiting_for));
            for event in self.rack.journal(&life.uuid, 15) {
                text.push_str(&format!("  {event}\n"));
            }
        }
        text
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.provider.log()).unwrap_or_default()
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Sends `request` as it is and reads all of the answer.
    pub async fn http(&self, request: &str) -> String {
        self.http_from(Ipv4Addr::LOCALHOST, request).await
    }

    /// As [`Self::http`], from another address of loopback.
    pub async fn http_from(&self, from: Ipv4Addr, request: &str) -> String {
        let exchange = async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            let mut stream: TcpStream = socket.connect(self.provider.api()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // A connection that is reset after its answer has told all the same.
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer within a minute")
    }

    /// GETs `path`.
    pub async fn get(&self, path: &str) -> String {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: provider\r\nConnection: close\r\n\r\n")).await
    }

    /// What the machine at `index` is told to boot when it asks from its own address.
    pub async fn boots(&self, index: usize) -> String {
        let machine = self.rack.machines().nth(index).unwrap();
        let path = format!("/ipxe/boot.ipxe?uuid={}&mac=52-54-00-77-00-01&arch=x86_64", machine.id());
        let request = format!("GET {path} HTTP/1.1\r\nHost: provider\r\nConnection: close\r\n\r\n");
        self.http_from(machine.spec().address, &request).await
    }
}

/// How often `name` was counted.
pub fn counter(status: &Snapshot, name: &str) -> u64 {
    status.counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, count)| *count)
}
