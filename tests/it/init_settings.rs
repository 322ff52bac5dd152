//! The real `init` hands its services what the box is set to, and starts anew those that it is told of.

use std::fs;
use std::path::Path;

use pilotlight::settings::disk::{Directory, FLAGS, Files, KEY};
use pilotlight::supervise::control::{Reply, Request, Services, Status};

use crate::init::{Program, Running, Setup, service, wait_until};
use crate::init_control::ask;

fn status(socket: &Path) -> Status {
    match ask(socket, Request::Status) {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_that_is_told_of_starts_anew_with_what_is_set() {
    let script = service("");
    let setup = Setup {
        program: Program::Script(&script),
        flags: "--id=image\n--debug\n",
        arguments: &[],
        own_network: true,
        environment: &[("SIDERO_SERVICE_ACCOUNT_KEY", "of-the-image")],
    };
    let Some(mut running) = Running::start(&setup, |_| {}) else { return };
    let socket = || running.path("run/pilotlight/init.sock");
    running.wait_for_log("web: runs as");
    wait_until("all are ready", || status(&socket()).services.iter().all(|service| service.ready));
    assert!(running.written("provider.environment").contains(&"SIDERO_SERVICE_ACCOUNT_KEY=of-the-image".to_owned()));

    let mut kept = Directory::new(&running.path("data/pilotlight/settings"), Some(910));
    kept.replace(FLAGS, b"# Made of settings.toml.\n--id=set\n--state-dir=/etc\n--poll-interval=45s\n").unwrap();
    kept.replace(KEY, b"of-the-page").unwrap();
    let wish = Request::Restart(Services::of(["provider", "tftp"]));
    assert_eq!(ask(&socket(), wish), Reply::Accepted);
    let anew = |name: &str| format!("start service {name} --debug --id=set --poll-interval=45s");
    wait_until("both run anew", || {
        ["provider", "tftp"].iter().all(|name| running.written("log").contains(&anew(name)))
    });
    wait_until("all are ready again", || status(&socket()).services.iter().all(|service| service.ready));
    let now = status(&socket());
    for service in &now.services {
        assert_eq!((service.restarts, service.degraded), (0, false), "{service:?}");
        assert_eq!(service.last_exit.is_empty(), !["provider", "tftp"].contains(&service.name.as_str()), "{service:?}");
        let handed = running.written(&format!("{}.environment", service.name)).join("\n");
        let key = (handed.contains("OMNI_SERVICE_ACCOUNT_KEY=of-the-page"), handed.contains("of-the-image"));
        assert_eq!(key, (service.name == "provider", false), "{handed}");
    }
    // What can't be read leaves the flags as they were.
    fs::write(running.path("data/pilotlight/settings/flags"), [0xff; 9]).unwrap();
    let before = running.written("log").iter().filter(|line| **line == anew("tftp")).count();
    assert_eq!(ask(&socket(), Request::Restart(Services::of(["tftp"]))), Reply::Accepted);
    wait_until("tftp runs anew", || {
        running.written("log").iter().filter(|line| **line == anew("tftp")).count() > before
    });
    running.end(nix::sys::signal::Signal::SIGTERM);
}
