//! The service table: who runs, as whom, with which capabilities, after whom.

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
    /// Which services are started before it and stopped after it. A service is ready when it is started.
    pub depends_on: &'static [&'static str],
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

    /// The directory of what it keeps.
    pub fn state_dir(&self) -> String {
        format!("/data/pilotlight/{}", self.name)
    }
}

use Capability::{NetAdmin, NetBindService, NetRaw, SysTime};

/// The variables that hold Omni's service account key, the first that is set wins.
pub const KEY_VARIABLES: [&str; 2] = ["SIDERO_SERVICE_ACCOUNT_KEY", "OMNI_SERVICE_ACCOUNT_KEY"];

/// Every service, each after those that it depends on.
pub const SERVICES: &[Service] = &[
    Service { name: "net", uid: 901, capabilities: &[NetAdmin, NetRaw, SysTime], environment: &[], depends_on: &[] },
    Service { name: "store", uid: 902, capabilities: &[], environment: &[], depends_on: &[] },
    Service { name: "images", uid: 903, capabilities: &[], environment: &[], depends_on: &["store"] },
    Service {
        name: "provider",
        uid: 904,
        capabilities: &[],
        environment: &KEY_VARIABLES,
        depends_on: &["store", "images"],
    },
    Service { name: "dhcp", uid: 905, capabilities: &[NetRaw, NetBindService], environment: &[], depends_on: &[] },
    Service { name: "tftp", uid: 906, capabilities: &[NetBindService], environment: &[], depends_on: &[] },
    Service { name: "web", uid: 907, capabilities: &[NetBindService], environment: &[], depends_on: &["store"] },
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
        assert!(!uids.contains(&0) && !uids.contains(&SOCKETS_GID));
    }

    #[test]
    fn only_the_provider_gets_omnis_key() {
        let with_key = |service: &&Service| service.environment.iter().any(|name| KEY_VARIABLES.contains(name));
        let names: Vec<_> = SERVICES.iter().filter(with_key).map(|service| service.name).collect();
        assert_eq!(names, ["provider"]);
    }
}
