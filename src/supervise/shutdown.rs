//! The order in which services stop, and how long each step may take.

use std::time::Duration;

use super::services::Service;

/// How long services have to end after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long a killed process may take to vanish; longer means that the kernel holds it.
pub const VANISH: Duration = Duration::from_secs(2);
/// Longer than all steps of an end together; beyond it the hardware watchdog is not fed any more.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Those of `alive` on which no other of `alive` depends: they stop together, before the rest.
///
/// Never empty when `alive` is not, since dependencies have no cycles.
pub fn wave(services: &[Service], alive: &[&'static str]) -> Vec<&'static str> {
    let needed =
        |name: &str| services.iter().any(|other| alive.contains(&other.name) && other.depends_on.contains(&name));
    alive.iter().copied().filter(|name| !needed(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::services::SERVICES;
    use super::*;

    #[test]
    fn services_stop_before_what_they_depend_on() {
        let mut alive: Vec<_> = SERVICES.iter().map(|service| service.name).collect();
        let mut waves = Vec::new();
        while !alive.is_empty() {
            let stopping = wave(SERVICES, &alive);
            alive.retain(|name| !stopping.contains(name));
            waves.push(stopping);
        }
        let first = vec!["net", "provider", "dhcp", "tftp", "settings", "web", "console", "update"];
        assert_eq!(waves, [first, vec!["images"], vec!["store"]]);
    }
}
