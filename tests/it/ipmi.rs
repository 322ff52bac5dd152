//! IPMI 2.0 over LAN: our client against OpenIPMI's `ipmi_sim`, `ipmitool` against our BMC, and one against the other
//! over a network that loses, delays, repeats and damages.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilotlight::bmc::cli::{self, BmcArgs};
use pilotlight::bmc::ipmi::{IpmiBmc, Timing};
use pilotlight::bmc::{Bmc, Credentials, Error, Retry};
use pilotlight::lab::bmc::{Chassis, SimulatedBmc};
use pilotlight::machine::{PowerState, PxeBootMode};
use pilotlight::secret::Secret;
use pilotlight::wire::ipmi::command::{BootDevice, BootOverride, ChassisControl};
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::peers;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Short waits, for tests in which replies do not come.
fn hasty() -> Timing {
    Timing {
        first_timeout: Duration::from_millis(200),
        longest_timeout: Duration::from_millis(800),
        tries_when_reused: 5,
        ..patient()
    }
}

/// Waits that outlast a machine busy with other tests: a command that is sent twice is also done twice.
fn patient() -> Timing {
    Timing {
        first_timeout: Duration::from_secs(5),
        busy_pause: Duration::from_millis(5),
        spacing: Duration::ZERO,
        ..Timing::default()
    }
}

fn client_with(timing: Timing, address: SocketAddr, username: &str, password: &str) -> IpmiBmc {
    let credentials = Credentials {
        address: address.ip().to_string(),
        port: address.port(),
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    };
    IpmiBmc::new(credentials, timing)
}

fn client(address: SocketAddr, username: &str, password: &str) -> IpmiBmc {
    client_with(patient(), address, username, password)
}

fn hasty_client(address: SocketAddr) -> IpmiBmc {
    client_with(hasty(), address, "admin", "secret")
}

/// A machine that does at once what its BMC says, and remembers it.
#[derive(Default)]
struct Machine(Mutex<(bool, Vec<ChassisControl>)>);

impl Machine {
    fn set(&self, on: bool) {
        self.0.lock().unwrap().0 = on;
    }

    fn controls(&self) -> Vec<ChassisControl> {
        self.0.lock().unwrap().1.clone()
    }
}

impl Chassis for Machine {
    fn power(&self) -> PowerState {
        if self.0.lock().unwrap().0 { PowerState::On } else { PowerState::Off }
    }

    fn control(&self, control: ChassisControl) {
        let mut state = self.0.lock().unwrap();
        state.0 = !matches!(control, ChassisControl::PowerDown | ChassisControl::SoftShutdown);
        state.1.push(control);
    }

    fn boot_override(&self, _: BootOverride) {}
}

async fn simulated() -> (Arc<Machine>, SimulatedBmc) {
    let machine = Arc::new(Machine::default());
    let bmc = SimulatedBmc::start(LOOPBACK, machine.clone()).await.unwrap();
    bmc.set_user("admin", &Secret::new("secret".to_owned())).unwrap();
    (machine, bmc)
}

/// Runs ipmitool against `address`; returns whether it succeeded, and what it printed.
async fn ipmitool(address: SocketAddr, suite: u8, password: &str, command: &[&str]) -> (bool, String) {
    let (host, port, suite) = (address.ip().to_string(), address.port().to_string(), suite.to_string());
    let run = Command::new("ipmitool")
        .args(["-I", "lanplus", "-C", &suite, "-H", &host, "-p", &port, "-U", "admin", "-P", password])
        .args(["-N", "1", "-R", "5"])
        .args(command)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), run).await.expect("ipmitool ends").unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// OpenIPMI's BMC simulator on a loopback port, with users `admin` and `operator`.
struct IpmiSim {
    dir: TempDir,
    address: SocketAddr,
    _process: Child,
}

impl IpmiSim {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        // The simulator cannot say which port it got, so it is told one that was free a moment ago.
        let address = UdpSocket::bind(LOOPBACK).await.unwrap().local_addr().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("power", "0");
        write("boot", "default");
        write(
            "chassis.sh",
            "#!/bin/sh\n\
             dir=$(dirname \"$0\"); echo \"$@\" >>\"$dir/calls\"; op=$2; shift 2\n\
    case $op in\n\
             get) for what in \"$@\"; do echo \"$what:$(cat \"$dir/$what\")\"; done;;\n\
             set) while [ $# -gt 1 ]; do echo \"$2\" >\"$dir/$1\"; shift 2; done;;\n\
             esac\n\
             exit 0\n",
        );
        std::fs::set_permissions(dir.path().join("chassis.sh"), PermissionsExt::from_mode(0o755)).unwrap();
        write(
            "sim.emu",
            "mc_setbmc 0x20\n\
             mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\n\
             sel_enable 0x20 1000 0x0a\n\
             mc_enable 0x20\n",
        );
        let script = dir.path().join("chassis.sh");
        write(
            "lan.conf",
            &format!(
                "name \"bmc\"\n\
                 set_working_mc 0x20\n\
                 startlan 1\n\
                 addr 127.0.0.1 {}\n\
                 priv_limit admin\n\
                 allowed_auths_callback none md2 md5 straight\n\
                 allowed_auths_user none md2 md5 straight\n\
                 allowed_auths_operator none md2 md5 straight\n\
                 allowed_auths_admin none md2 md5 straight\n\
                 guid a123456789abcdefa123456789abcdef\n\
                 endlan\n\
                 chassis_control \"{} x\"\n\
                 user 1 true \"\" \"\" user 10 none md2 md5 straight\n\
                 user 2 true \"admin\" \"secret\" admin 10 none md2 md5 straight\n\
                 user 3 true \"operator\" \"secret\" operator 10 none md2 md5 straight\n",
                address.port(),
                script.display(),
            ),
        );
        let file = |name: &str| dir.path().join(name);
        let process = Command::new("ipmi_sim")
            .arg("-n")
            .arg("-c")
            .arg(file("lan.conf"))
            .arg("-f")
            .arg(file("sim.emu"))
            .arg("-s")
            .arg(file("state"))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(file("log")).unwrap())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { dir, address, _process: process }
    }

    /// A client, once the simulator answers.
    async fn client(&self, username: &str, password: &str) -> IpmiBmc {
        let start = Instant::now();
        let probe = client_with(hasty(), self.address, username, password);
        while let Err(Error::Unreachable { .. } | Error::Timeout { .. }) = probe.power_state().await {
            assert!(start.elapsed() < Duration::from_secs(30), "ipmi_sim does not answer: {}", self.read("log"));
            sleep(Duration::from_millis(20)).await;
        }
        client(self.address, username, password)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(Path::new(self.dir.path()).join(name)).unwrap()
    }
}

#[tokio::test]
async fn ipmi_sim_is_powered_and_told_to_boot_by_pxe_once() {
    if !(peers::require("ipmi_sim", "openipmi") && peers::require("ipmitool", "ipmitool")) {
        return;
    }
    let sim = IpmiSim::start().await;
    let bmc = sim.client("admin", "secret").await;
    assert_eq!(bmc.power_state().await.unwrap(), PowerState::Off);
    bmc.power_on().await.unwrap();
    assert_eq!((bmc.power_state().await.unwrap(), sim.read("power").trim()), (PowerState::On, "1"));
    bmc.power_cycle().await.unwrap();
    let calls = sim.read("calls");
    bmc.power_off().await.unwrap();
    assert_eq!((bmc.power_state().await.unwrap(), sim.read("power").trim()), (PowerState::Off, "0"), "{calls}");
    bmc.power_off().await.unwrap();
    bmc.power_cycle().await.unwrap();
    assert_eq!(bmc.power_state().await.unwrap(), PowerState::On, "a cycle starts a machine that is off");

    // This simulator keeps the device of the boot flags and nothing else.
    bmc.set_pxe_once(PxeBootMode::Uefi).await.unwrap();
    assert_eq!(sim.read("boot").trim(), "pxe");
    let (ok, text) = ipmitool(sim.address, 3, "secret", &["chassis", "bootparam", "get", "5"]).await;
    assert!(ok && text.contains("Force PXE") && text.contains("only next boot"), "{text}");
}

#[tokio::test]
async fn ipmi_sim_takes_an_operator_and_refuses_a_wrong_password() {
    if !peers::require("ipmi_sim", "openipmi") {
        return;
    }
    let sim = IpmiSim::start().await;
    let operator = sim.client("operator", "secret").await;
    operator.power_on().await.unwrap();
    operator.set_pxe_once(PxeBootMode::Uefi).await.unwrap();
    assert_eq!(operator.power_state().await.unwrap(), PowerState::On);
    for (username, password) in [("admin", "wrong"), ("nobody", "secret")] {
        let error = client(sim.address, username, password).power_state().await.unwrap_err();
        assert!(matches!(error, Error::WrongCredentials { .. }), "{username}: {error:?}");
        assert_eq!(error.retry(), Retry::Never);
    }
}

#[tokio::test]
async fn ipmitool_drives_our_bmc_with_both_suites() {
    if !peers::require("ipmitool", "ipmitool") {
        return;
    }
    for suite in [17, 3] {
        let (machine, bmc) = simulated().await;
        let run = async |command: &[&str]| {
            let (ok, text) = ipmitool(bmc.address(), suite, "secret", command).await;
            assert!(ok, "suite {suite}, {command:?}: {text}");
            text
        };
        assert!(run(&["power", "status"]).await.contains("is off"));
        run(&["power", "on"]).await;
        assert!(run(&["power", "status"]).await.contains("is on"));
        run(&["power", "cycle"]).await;
        run(&["chassis", "bootdev", "pxe", "options=efiboot"]).await;
        assert_eq!(bmc.boot_override(), BootOverride::pxe_once(true));
        assert!(run(&["chassis", "bootparam", "get", "5"]).await.contains("Force PXE"));
        run(&["power", "off"]).await;
        use ChassisControl::{PowerCycle, PowerDown, PowerUp};
        assert_eq!(machine.controls(), [PowerUp, PowerCycle, PowerDown]);
        assert!(run(&["mc", "info"]).await.contains("IPMI Version              : 2.0"));
        assert!(run(&["mc", "guid"]).await.contains("GUID"));
        assert!(run(&["channel", "getciphers", "ipmi", "1"]).await.contains("17"));
        let (ok, text) = ipmitool(bmc.address(), suite, "wrong", &["power", "status"]).await;
        assert!(!ok, "{text}");
    }
}

#[tokio::test]
async fn ipmitool_reads_the_boot_options_that_our_client_set() {
    if !peers::require("ipmitool", "ipmitool") {
        return;
    }
    let (_, bmc) = simulated().await;
    let client = client(bmc.address(), "admin", "secret");
    let read = async |parameter: &str| {
        let (ok, text) = ipmitool(bmc.address(), 17, "secret", &["chassis", "bootparam", "get", parameter]).await;
        assert!(ok, "{text}");
        text
    };
    for (mode, octets, firmware) in
        [(PxeBootMode::Uefi, "a004000000", "EFI boot"), (PxeBootMode::Bios, "8004000000", "legacy")]
    {
        client.set_pxe_once(mode).await.unwrap();
        let text = read("5").await;
        for want in [octets, firmware, "Boot Flag Valid", "only next boot", "Force PXE"] {
            assert!(text.contains(want), "{want}: {text}");
        }
    }
    assert!(read("0").await.contains("Set In Progress : set complete"), "{}", read("0").await);
    assert!(read("3").await.contains("Boot parameter data: 08"), "{}", read("3").await);
    assert!(read("4").await.contains("Boot parameter data: 0101"), "{}", read("4").await);
}

#[tokio::test]
async fn our_client_drives_our_bmc_with_both_suites_and_one_session() {
    for refuse_suite_17 in [false, true] {
        let (machine, bmc) = simulated().await;
        bmc.faults().refuse_suite_17(refuse_suite_17);
        let client = client(bmc.address(), "admin", "secret");
        assert_eq!(client.power_state().await.unwrap(), PowerState::Off);
        client.power_cycle().await.unwrap();
        client.power_cycle().await.unwrap();
        assert_eq!(client.power_state().await.unwrap(), PowerState::On);
        client.set_pxe_once(PxeBootMode::Bios).await.unwrap();
        assert_eq!(bmc.boot_override(), BootOverride::pxe_once(false));
        bmc.clear_boot_override();
        assert_eq!(bmc.boot_override().device, BootDevice::None);
        client.power_off().await.unwrap();
        use ChassisControl::{PowerCycle, PowerDown, PowerUp};
        assert_eq!(machine.controls(), [PowerUp, PowerCycle, PowerDown]);
        assert_eq!(bmc.sessions_opened(), 1);
        client.close().await;
        assert_eq!(client.power_state().await.unwrap(), PowerState::Off);
        assert_eq!(bmc.sessions_opened(), 2);
    }
}

#[tokio::test]
async fn a_changed_password_holds_from_the_next_session_on() {
    let (_, bmc) = simulated().await;
    let old = client(bmc.address(), "admin", "secret");
    old.power_state().await.unwrap();
    bmc.set_user("admin", &Secret::new("another-secret".to_owned())).unwrap();
    bmc.set_user("second", &Secret::new("twenty-octets-long-p".to_owned())).unwrap();
    assert_eq!(bmc.users(), ["admin", "second"]);
    old.close().await;
    assert!(matches!(old.power_state().await, Err(Error::WrongCredentials { .. })));
    client(bmc.address(), "admin", "another-secret").power_state().await.unwrap();
    client(bmc.address(), "second", "twenty-octets-long-p").power_state().await.unwrap();
}

#[tokio::test]
async fn credentials_that_ipmi_cannot_carry_are_refused_before_anything_is_sent() {
    for (username, password) in [("seventeen-octets!", "secret"), ("admin", "twenty-one-octets-lon")] {
        let error = client(LOOPBACK, username, password).power_state().await.unwrap_err();
        assert!(matches!(error, Error::Misconfigured { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_dead_bmc_is_unreachable_and_a_silent_one_times_out() {
    let silent = UdpSocket::bind(LOOPBACK).await.unwrap();
    let address = silent.local_addr().unwrap();
    let error = hasty_client(address).power_state().await.unwrap_err();
    assert!(matches!(error, Error::Timeout { operation: "open session", tries: 5, .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Soon);
    drop(silent);
    let error = hasty_client(address).power_state().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Later);
}

#[tokio::test]
async fn lost_replies_are_asked_for_again_at_every_step() {
    let mut tasks = tokio::task::JoinSet::new();
    // 0 is Open Session, 1 and 2 are RAKP messages 2 and 4, 3 is the privilege level, 4 the command itself.
    for (step, lost) in (0..5).flat_map(|step| [(step, 1), (step, 2)]) {
        tasks.spawn(async move {
            let (machine, bmc) = simulated().await;
            machine.set(true);
            let proxy = LossyLink::start(bmc.address(), step, lost).await;
            let state = hasty_client(proxy.address).power_state().await;
            assert_eq!(state.unwrap(), PowerState::On, "reply {step} lost {lost} times");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn late_and_repeated_replies_never_answer_the_wrong_question() {
    let (machine, bmc) = simulated().await;
    let client = hasty_client(bmc.address());
    client.power_state().await.unwrap();
    for round in 0..16 {
        let on = round % 3 != 0;
        machine.set(on);
        match round % 4 {
            0 => bmc.faults().delay(1, Duration::from_millis(240)),
            1 => bmc.faults().double(1),
            2 => bmc.faults().damage(1),
            _ => bmc.faults().lose(1),
        }
        let want = if on { PowerState::On } else { PowerState::Off };
        assert_eq!(client.power_state().await.unwrap(), want, "round {round}");
    }
    assert_eq!(bmc.sessions_opened(), 1);
}

#[tokio::test]
async fn a_busy_bmc_is_asked_again_until_patience_ends() {
    let (machine, bmc) = simulated().await;
    let client = client(bmc.address(), "admin", "secret");
    bmc.faults().busy(3);
    client.power_on().await.unwrap();
    assert_eq!(machine.controls(), [ChassisControl::PowerUp]);
    bmc.faults().busy(100);
    let error = client.power_state().await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Soon);
    bmc.faults().busy(0);
    assert_eq!(client.power_state().await.unwrap(), PowerState::On);
}

#[tokio::test]
async fn a_bmc_that_restarts_gets_one_new_session() {
    let (machine, bmc) = simulated().await;
    let client = hasty_client(bmc.address());
    client.power_on().await.unwrap();
    bmc.faults().restart();
    // The old session is asked in vain, and then left.
    client.power_off().await.unwrap();
    assert_eq!(bmc.sessions_opened(), 2);
    assert_eq!(machine.controls(), [ChassisControl::PowerUp, ChassisControl::PowerDown]);

    // The process behind the port may be another one altogether.
    let address = bmc.address();
    drop(bmc);
    let restarted = loop {
        match SimulatedBmc::start(address, machine.clone()).await {
            Ok(bmc) => break bmc,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    restarted.set_user("admin", &Secret::new("secret".to_owned())).unwrap();
    assert_eq!(client.power_state().await.unwrap(), PowerState::Off);
    assert_eq!(restarted.sessions_opened(), 1);
}

#[tokio::test]
async fn abandoned_sessions_do_not_lock_a_bmc() {
    let (_, bmc) = simulated().await;
    // Each of these leaves a half-open session behind, more than a BMC has.
    for _ in 0..40 {
        let error = client(bmc.address(), "admin", "wrong").power_state().await.unwrap_err();
        assert!(matches!(error, Error::WrongCredentials { .. }), "{error:?}");
    }
    // Each of these opens a session and closes it by dropping it.
    for _ in 0..40 {
        client(bmc.address(), "admin", "secret").power_state().await.unwrap();
    }
    assert_eq!(bmc.sessions_opened(), 40);
}

#[tokio::test]
async fn concurrent_operations_wait_for_each_other() {
    let (machine, bmc) = simulated().await;
    let client = Arc::new(client(bmc.address(), "admin", "secret"));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = client.clone();
        tasks.spawn(async move { client.power_on().await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!((machine.controls().len(), bmc.sessions_opened()), (20, 1));
}

#[tokio::test]
async fn an_operation_abandoned_half_way_leaves_the_next_one_whole() {
    let (machine, bmc) = simulated().await;
    machine.set(true);
    let client = hasty_client(bmc.address());
    client.power_state().await.unwrap();
    for _ in 0..5 {
        bmc.faults().lose(1);
        assert!(timeout(Duration::from_millis(20), client.power_state()).await.is_err());
        assert_eq!(client.power_state().await.unwrap(), PowerState::On);
    }
}

#[tokio::test]
async fn noise_from_the_bmcs_address_is_ignored() {
    let (machine, bmc) = simulated().await;
    machine.set(true);
    let proxy = LossyLink::noisy(bmc.address()).await;
    let client = hasty_client(proxy.address);
    for _ in 0..5 {
        assert_eq!(client.power_state().await.unwrap(), PowerState::On);
    }
}

#[tokio::test]
async fn a_session_left_idle_is_closed_and_opened_anew() {
    let (_, bmc) = simulated().await;
    let timing = Timing { session_idle: Duration::ZERO, ..patient() };
    let client = client_with(timing, bmc.address(), "admin", "secret");
    // More operations than the BMC has session slots.
    for _ in 0..30 {
        client.power_state().await.unwrap();
    }
    assert_eq!(bmc.sessions_opened(), 30);
}

#[tokio::test]
async fn two_hundred_bmcs_are_asked_at_once() {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        tasks.spawn(async {
            let (machine, bmc) = simulated().await;
            let client = client(bmc.address(), "admin", "secret");
            client.power_on().await.unwrap();
            client.set_pxe_once(PxeBootMode::Uefi).await.unwrap();
            machine.controls()
        });
    }
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap(), [ChassisControl::PowerUp]);
    }
}

#[tokio::test]
async fn the_command_line_does_what_it_says() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: BmcArgs,
    }
    let (machine, bmc) = simulated().await;
    let dir = TempDir::new().unwrap();
    let (right, wrong) = (dir.path().join("right"), dir.path().join("wrong"));
    std::fs::write(&right, "secret\n").unwrap();
    std::fs::write(&wrong, "wrong\n").unwrap();
    let run = async |password: &Path, operation: &str| {
        let address = bmc.address().to_string();
        let line = ["bmc", "--address", &address, "--username", "admin", "--password-file"];
        let line = line.into_iter().map(std::ffi::OsStr::new).chain([password.as_os_str(), operation.as_ref()]);
        cli::run(<Line as clap::Parser>::parse_from(line).args).await
    };
    for operation in ["status", "on", "pxe", "cycle", "off"] {
        run(&right, operation).await.unwrap();
    }
    use ChassisControl::{PowerCycle, PowerDown, PowerUp};
    assert_eq!(machine.controls(), [PowerUp, PowerCycle, PowerDown]);
    assert_eq!(bmc.boot_override(), BootOverride::pxe_once(true));
    let error = run(&wrong, "status").await.unwrap_err().to_string();
    assert!(error.contains("does not accept user") && error.contains("lock") && !error.contains("wrong"), "{error}");
}

/// A path to a BMC for one console at a time, that loses or soils what comes back.
struct LossyLink {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl LossyLink {
    /// Loses the `lost` replies that follow the first `pass` ones.
    async fn start(bmc: SocketAddr, pass: usize, lost: usize) -> Self {
        Self::with(bmc, move |count, reply| if (pass..pass + lost).contains(&count) { vec![] } else { vec![reply] })
            .await
    }

    /// Puts garbage, cut replies and replies with a flipped bit before each reply.
    async fn noisy(bmc: SocketAddr) -> Self {
        Self::with(bmc, |count, reply| {
            let mut flipped = reply.clone();
            let at = 4 + count * 7 % (reply.len() - 4);
            flipped[at] ^= 0x20;
            vec![vec![], vec![0x06], b"garbage".to_vec(), reply[..reply.len() - 1].to_vec(), flipped, reply]
        })
        .await
    }

    async fn with(bmc: SocketAddr, fate: impl Fn(usize, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let console_side = UdpSocket::bind(LOOPBACK).await.unwrap();
        let bmc_side = UdpSocket::bind(LOOPBACK).await.unwrap();
        bmc_side.connect(bmc).await.unwrap();
        let address = console_side.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut from_console, mut from_bmc) = ([0; 1500], [0; 1500]);
            let (mut console, mut count) = (None, 0);
            loop {
                tokio::select! {
                    Ok((len, from)) = console_side.recv_from(&mut from_console) => {
                        console = Some(from);
                        let _ = bmc_side.send(&from_console[..len]).await;
                    }
                    Ok(len) = bmc_side.recv(&mut from_bmc) => {
                        let Some(console) = console else { continue };
                        for datagram in fate(count, from_bmc[..len].to_vec()) {
                            let _ = console_side.send_to(&datagram, console).await;
                        }
                        count += 1;
                    }
                }
            }
        });
        Self { address, task }
    }
}

impl Drop for LossyLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}
