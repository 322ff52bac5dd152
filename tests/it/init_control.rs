//! The real `init` is asked how it is, by those who may and by those who may not, and remembers its runs.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use pilotlight::supervise::control::{MAX_REPLY, Reply, Request, ServiceStatus, Status, decode, encode};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::init::{Program, Running, Setup, service, wait_until};

/// What the others than root are told. Nobody is in the services' group but they, so one of them asks.
const CURIOUS: &str = r#"
sub ask { my $socket = say_to(SOCK_SEQPACKET, "/run/pilotlight/init.sock", $_[0]); recv($socket, my $reply, 4096, 0); return $reply; }
if ($name eq "tftp") {
    note("reboot: " . unpack("H*", ask("\x01\x01")));
    note("rubbish: " . substr(ask("\x07rubbish"), 2));
    note("status: " . length(ask("\x01\x00")));
}
"#;

pub fn ask(socket: &Path, request: Request) -> Reply {
    let connection = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    connection.connect(&SockAddr::unix(socket).unwrap()).unwrap();
    connection.send(&encode(&request)).unwrap();
    let mut octets = vec![0; MAX_REPLY];
    let length = (&connection).read(&mut octets).unwrap();
    decode(&octets[..length]).unwrap()
}

pub fn status(socket: &Path) -> Status {
    match ask(socket, Request::Status) {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

fn named<'a>(status: &'a Status, name: &str) -> &'a ServiceStatus {
    status.services.iter().find(|service| service.name == name).unwrap()
}

#[test]
fn init_tells_how_the_box_is_and_obeys_only_those_who_may_order() {
    let script = service(CURIOUS);
    let setup = Setup {
        program: Program::Script(&script),
        flags: "",
        arguments: &["pilotlight.slot=b", "pilotlight.why=pending", "pilotlight.try=2", "pilotlight.colour=red"],
        own_network: true,
        environment: &[],
    };
    let Some(mut running) = Running::start(&setup, |_| {}) else { return };
    let socket = || running.path("run/pilotlight/init.sock");
    wait_until("init listens", || socket().exists());
    wait_until("all are ready", || status(&socket()).services.iter().all(|service| service.ready));
    let before = status(&socket());
    assert_eq!((before.slot.name.as_str(), before.slot.why.as_str(), before.slot.attempt), ("b", "pending", Some(2)));
    assert!(before.faults.iter().any(|fault| fault == "pilotlight.colour=red means nothing here"), "{before:#?}");
    let web = named(&before, "web");
    assert_eq!((web.restarts, web.says.as_str(), web.last_exit.as_str()), (0, "web is here", ""));

    // A service may see, and not order.
    wait_until("the curious one has asked", || running.written("log").iter().any(|line| line.starts_with("status: ")));
    let log = running.written("log");
    assert!(log.contains(&"reboot: 0102".to_owned()), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("another version")), "{log:#?}");
    let meta = std::fs::metadata(socket()).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 900, 0o660));

    nix::sys::signal::kill(running.pid("dhcp"), Signal::SIGKILL).unwrap();
    wait_until("dhcp is ready again", || {
        let now = status(&socket());
        let dhcp = named(&now, "dhcp");
        dhcp.ready && dhcp.restarts == 1 && dhcp.last_exit == "signal 9"
    });

    // A tmpfs forgets, so that init would never reboot by itself here; what was asked for is written down all the same.
    let record = || std::fs::read_to_string(running.path("data/pilotlight/init/run")).unwrap_or_default();
    assert_eq!(record(), "pilotlight-run 1\nin-a-row=0\ncomplete\n");
    // Without a disk nobody would remember it.
    assert!(matches!(ask(&socket(), Request::FactoryReset), Reply::Refused(_)));
    assert_eq!(ask(&socket(), Request::Reboot), Reply::Accepted);
    running.wait_for_log("the run ends by reboot: asked by user 0");
    let ended = running.ended();
    // In a namespace a reboot shows as SIGHUP.
    assert_eq!(ended.signal(), Some(Signal::SIGHUP as i32), "{ended}\n{}", running.log().join("\n"));
}
