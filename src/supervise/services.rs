//! The service table: who runs, as whom, with which capabilities and limits, after whom.

use std::time::Duration;

use super::cgroup::Limits;
use super::seccomp::Filter;

/// The group that may connect to the services' sockets; who is let in decides each server by user.
pub const SOCKETS_GID: u32 = 900;

/// A capability that a service keeps. Numbers as in `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Listens on ports below 1024.
    NetBindService = 10,
    /// Changes addresses and links.
    NetAdmin = 12,
    /// Opens raw and packet sockets.
    NetRaw = 13,
    /// Sets the clock.
    SysTime = 25,
}

impl Capability {
    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetBindService => "NET_BIND_SERVICE",
            Self::NetAdmin => "NET_ADMIN",
            Self::NetRaw => "NET_RAW",
            Self::SysTime => "SYS_TIME",
        }
    }
}

/// One service: a process `pilotlight service <name>`, followed by the box's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name on the command line, in logs and in paths.
    pub name: &'static str,
    /// Its user and primary group; never 0.
    pub uid: u32,
    /// What it keeps of root's powers.
    pub capabilities: &'static [Capability],
    /// Which variables of init's environment it gets, where init has them. All other services start without them: a secret
    /// goes to the one process that uses it. Init's comes from who starts it: the kernel, which hands over the
    /// `NAME=value` of its command line, or a container.
    pub environment: &'static [&'static str],
    /// Which services are ready, or have had their chance, before it is started; it is stopped before them.
    pub depends_on: &'static [&'static str],
    /// Its memory and threads.
    pub limits: Limits,
    /// Files that it may hold open.
    pub files: u64,
    /// How long it may be silent once it is ready.
    pub watchdog: Duration,
    /// Whether the box is of no use without it: nobody could see or change anything.
    pub critical: bool,
    /// Whether the machine's terminals are its own.
    pub terminals: bool,
    /// Whether it runs in recovery, too, where the box does nothing for its machines.
    pub in_recovery: bool,
}

impl Service {
    /// Its arguments, without the program and the box's flags.
    pub const fn args(&self) -> [&'static str; 2] {
        ["service", self.name]
    }

    /// The directory of its sockets.
    pub fn runtime_dir(&self) -> String {
        format!("/run/pilotlight/{}", self.name)
    }

    /// Its socket for the other services.
    pub fn socket(&self) -> String {
        format!("/run/pilotlight/{0}/{0}.sock", self.name)
    }

    /// The socket on which PID 1 listens to it; one each, so that a flood costs its sender alone.
    pub fn notify_socket(&self) -> String {
        format!("/run/pilotlight/notify/{}.sock", self.name)
    }

    /// The directory of what it keeps.
    pub fn state_dir(&self) -> String {
        format!("/data/pilotlight/{}", self.name)
    }

    /// What it may ask of the kernel when it starts.
    pub fn filter(&self) -> Filter {
        let keeps = |capability| self.capabilities.contains(&capability);
        Filter { exec: true, packets: keeps(Capability::NetRaw), clock: keeps(Capability::SysTime) }
    }
}

use Capability::{NetAdmin, NetBindService, NetRaw, SysTime};

/// The variables that hold Omni's service account key, the first that is set wins.
pub const KEY_VARIABLES: [&str; 2] = ["SIDERO_SERVICE_ACCOUNT_KEY", "OMNI_SERVICE_ACCOUNT_KEY"];

/// The variables that name the way out; the proxy's may hold a password.
pub const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"];

/// What most services have.
const ORDINARY: Service = Service {
    name: "",
    uid: 0,
    capabilities: &[],
    environment: &[],
    depends_on: &[],
    limits: Limits::new(64, 64),
    files: 4096,
    watchdog: Duration::from_secs(30),
    critical: false,
    terminals: false,
    in_recovery: false,
};

/// Every service, each after those that it depends on.
pub const SERVICES: &[Service] = &[
    Service {
        name: "net",
        uid: 901,
        capabilities: &[NetAdmin, NetRaw, SysTime],
        critical: true,
        in_recovery: true,
        ..ORDINARY
    },
    Service { name: "store", uid: 902, limits: Limits::new(96, 128), in_recovery: true, ..ORDINARY },
    Service { name: "images", uid: 903, depends_on: &["store"], limits: Limits::new(160, 256), ..ORDINARY },
    Service {
        name: "provider",
        uid: 904,
        environment: &KEY_VARIABLES,
        depends_on: &["store", "images"],
        limits: Limits::new(192, 256),
        // A tunnel a machine.
        files: 65_536,
        ..ORDINARY
    },
    Service { name: "dhcp", uid: 905, capabilities: &[NetRaw, NetBindService], ..ORDINARY },
    Service { name: "tftp", uid: 906, capabilities: &[NetBindService], ..ORDINARY },
    Service { name: "settings", uid: 910, in_recovery: true, ..ORDINARY },
    Service {
        name: "web",
        uid: 907,
        capabilities: &[NetBindService],
        depends_on: &["store"],
        critical: true,
        in_recovery: true,
        ..ORDINARY
    },
    Service {
        name: "console",
        uid: 909,
        limits: Limits::new(48, 64),
        files: 256,
        terminals: true,
        in_recovery: true,
        ..ORDINARY
    },
    // Recovery is where a box is that needs an update most.
    Service { name: "update", uid: 911, environment: &PROXY_VARIABLES, in_recovery: true, ..ORDINARY },
];

/// The service of that name.
pub fn service(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|service| service.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_service_stands_after_those_it_depends_on() {
        for (index, service) in SERVICES.iter().enumerate() {
            for name in service.depends_on {
                assert!(SERVICES[..index].iter().any(|earlier| earlier.name == *name), "{} needs {name}", service.name);
            }
        }
    }

    #[test]
    fn no_service_is_root_or_shares_its_user() {
        let uids: HashSet<_> = SERVICES.iter().map(|service| service.uid).collect();
        assert_eq!(uids.len(), SERVICES.len());
        assert!([0, SOCKETS_GID, crate::journal::UID].iter().all(|other| !uids.contains(other)));
    }

    #[test]
    fn only_the_provider_gets_omnis_key() {
        let with_key = |service: &&Service| service.environment.iter().any(|name| KEY_VARIABLES.contains(name));
        let names: Vec<_> = SERVICES.iter().filter(with_key).map(|service| service.name).collect();
        assert_eq!(names, ["provider"]);
    }
}
