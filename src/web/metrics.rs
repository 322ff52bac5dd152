//! A snapshot as Prometheus reads it (text format 0.0.4). Pure.

use std::fmt::Write;

use crate::status::{Snapshot, Stage};

/// All of `snapshot`'s numbers. Every stage has a sample, so that a graph does not end when a stage empties.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, String)>| {
        // Writing into a String cannot fail.
        let _ = writeln!(out, "# HELP pilotlight_{name} {help}\n# TYPE pilotlight_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(out, "pilotlight_{name}{labels} {value}");
        }
    };
    let one = |value: u64| vec![(String::new(), value.to_string())];
    let info = format!("{{provider=\"{}\",version=\"{}\"}}", label(&snapshot.provider_id), label(&snapshot.version));
    family("info", "gauge", "What runs.", vec![(info, "1".into())]);
    family("start_time_seconds", "gauge", "When the process started, Unix time.", one(snapshot.started.as_secs()));
    family(
        "omni_connected",
        "gauge",
        "Whether the last exchange with Omni went well.",
        one(snapshot.omni.connected.into()),
    );
    if let Some(synced) = snapshot.omni.synced {
        family(
            "omni_synced_time_seconds",
            "gauge",
            "When Omni's view was last confirmed, Unix time.",
            one(synced.as_secs()),
        );
    }
    if let Some(expires) = snapshot.omni.key_expires {
        let help = "When the service account key expires, Unix time.";
        family("key_expiry_seconds", "gauge", help, one(expires.as_secs()));
    }
    let services = snapshot.services.iter();
    let services = services.map(|s| (format!("{{service=\"{}\"}}", label(&s.name)), u64::from(s.up).to_string()));
    family("service_up", "gauge", "Whether a service of the box serves.", services.collect());
    let machines = Stage::ALL.into_iter().map(|stage| {
        let count = snapshot.machines.iter().filter(|machine| machine.stage == stage).count();
        (format!("{{stage=\"{}\"}}", stage.slug()), count.to_string())
    });
    family("machines", "gauge", "Machines by stage.", machines.collect());
    let agents = snapshot.machines.iter().filter(|machine| machine.agent).count();
    family("agents_connected", "gauge", "Agents with an open tunnel.", one(agents as u64));
    let counters = snapshot.counters.iter();
    let counters = counters.map(|(name, count)| (format!("{{name=\"{}\"}}", label(name)), count.to_string()));
    family("decisions_total", "counter", "Decisions since the start, by reason.", counters.collect());
    out
}

/// A label's value: backslash, quote and newline escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Link;
    use crate::time::UnixTime;

    #[test]
    fn every_stage_has_a_sample_and_labels_are_escaped() {
        let snapshot = Snapshot {
            provider_id: "a\"b\\".into(),
            counters: vec![("dhcp_ignored".into(), 7)],
            omni: Link { key_expires: Some(UnixTime::from_secs(1_800_000_000)), ..Link::default() },
            ..Snapshot::default()
        };
        let text = text(&snapshot);
        assert!(text.contains("pilotlight_key_expiry_seconds 1800000000\n"));
        assert!(text.contains("pilotlight_info{provider=\"a\\\"b\\\\\",version=\"\"} 1\n"));
        assert!(text.contains("pilotlight_machines{stage=\"powered-off\"} 0\n"));
        assert!(text.contains("pilotlight_decisions_total{name=\"dhcp_ignored\"} 7\n"));
        assert!(text.contains("pilotlight_omni_connected 0\n"));
        assert_eq!(text.matches("pilotlight_machines{").count(), Stage::ALL.len());
    }
}
