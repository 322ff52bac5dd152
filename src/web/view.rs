//! What the page says: a snapshot and a moment in, HTML out. Pure.

use std::fmt::Write;
use std::time::Duration;

use askama::Template;
use sha2::{Digest, Sha256};

use crate::status::{Machine, Snapshot, Stage};
use crate::time::UnixTime;

/// The rack: every machine, those that do not match hidden, so that a script can show them again.
#[derive(Template)]
#[template(path = "page.html", config = "src/web/askama.toml")]
pub(super) struct Rack<'a> {
    provider: &'a str,
    version: &'a str,
    started: UnixTime,
    seen: String,
    attention: usize,
    find: &'a str,
    summary: Summary<'a>,
    chips: Chips<'a>,
    rows: Vec<Row<'a>>,
    any: bool,
}

impl<'a> Rack<'a> {
    /// The rack at `now`, narrowed to `stage` and to the machines that `find` is part of.
    pub(super) fn new(snapshot: &'a Snapshot, now: UnixTime, stage: Option<Stage>, find: &'a str) -> Self {
        let find = find.trim();
        let sought = find.to_lowercase();
        let rows: Vec<Row<'a>> = snapshot
            .machines
            .iter()
            .map(|machine| {
                let mut row = Row { machine, now, hidden: false };
                row.hidden = stage.is_some_and(|stage| stage != machine.stage)
                    || !(sought.is_empty() || row.haystack().contains(&sought));
                row
            })
            .collect();
        Self {
            provider: &snapshot.provider_id,
            version: &snapshot.version,
            started: snapshot.started,
            seen: seen(snapshot),
            attention: snapshot.machines.iter().filter(|machine| machine.stage == Stage::Stuck).count(),
            find,
            summary: Summary { snapshot, now },
            chips: Chips::new(snapshot, stage, find),
            any: rows.iter().any(|row| !row.hidden),
            rows,
        }
    }
}

/// Header, trouble and services.
#[derive(Template)]
#[template(path = "summary.html", config = "src/web/askama.toml")]
pub(super) struct Summary<'a> {
    pub snapshot: &'a Snapshot,
    pub now: UnixTime,
}

impl Summary<'_> {
    /// How the box's memory is used, in a sentence; empty where nobody says.
    fn memory(&self) -> String {
        let Some((box_, memory)) = self.snapshot.appliance.as_ref().and_then(|it| Some((it, it.memory?))) else {
            return String::new();
        };
        let own = box_.services.iter().filter_map(|of| Some(format!("{} {}", of.name, megabytes(of.anonymous?))));
        format!(
            "Programs hold {} of {} MB of memory, {} MB are free. Of their own: {} MB",
            megabytes(memory.programs()),
            megabytes(memory.total),
            megabytes(memory.available),
            own.collect::<Vec<_>>().join(", "),
        )
    }

    fn ago(&self, at: &UnixTime) -> String {
        ago(self.now, *at)
    }
}

/// Stage counts that filter.
#[derive(Template)]
#[template(path = "chips.html", config = "src/web/askama.toml")]
pub(super) struct Chips<'a> {
    current: Option<Stage>,
    find: &'a str,
    total: usize,
    counts: Vec<(Stage, usize)>,
}

impl<'a> Chips<'a> {
    /// Chips for the stages that some machine is in, and for the current one.
    pub(super) fn new(snapshot: &Snapshot, current: Option<Stage>, find: &'a str) -> Self {
        let count = |stage| snapshot.machines.iter().filter(|machine| machine.stage == stage).count();
        let counts = Stage::ALL.into_iter().map(|stage| (stage, count(stage)));
        let counts = counts.filter(|(stage, count)| *count > 0 || current == Some(*stage)).collect();
        Self { current, find, total: snapshot.machines.len(), counts }
    }

    fn is(&self, stage: Option<&Stage>) -> bool {
        self.current.as_ref() == stage
    }

    fn href(&self, stage: Option<&Stage>) -> String {
        let mut query = Vec::new();
        if let Some(stage) = stage {
            query.push(format!("stage={}", stage.slug()));
        }
        if !self.find.is_empty() {
            query.push(format!("find={}", escape_query(self.find)));
        }
        if query.is_empty() { "/".into() } else { format!("/?{}", query.join("&")) }
    }
}

/// One machine in the rack.
#[derive(Template)]
#[template(path = "row.html", config = "src/web/askama.toml")]
pub(super) struct Row<'a> {
    pub machine: &'a Machine,
    pub now: UnixTime,
    pub hidden: bool,
}

impl Row<'_> {
    fn short_id(&self) -> String {
        short_id(self.machine)
    }

    fn ago(&self, at: &UnixTime) -> String {
        ago(self.now, *at)
    }

    fn until(&self, at: &UnixTime) -> String {
        until(self.now, *at)
    }

    /// What the search field looks in, lower case.
    fn haystack(&self) -> String {
        let Machine { id, mac, address, bmc, cluster, verdict, trouble, .. } = self.machine;
        format!("{id} {mac} {address} {bmc} {cluster} {verdict} {trouble}").to_lowercase()
    }
}

/// One machine, with all that is known about it.
#[derive(Template)]
#[template(path = "machine.html", config = "src/web/askama.toml")]
pub(super) struct One<'a> {
    machine: &'a Machine,
    now: UnixTime,
    seen: String,
    summary: Summary<'a>,
}

impl<'a> One<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, machine: &'a Machine, now: UnixTime) -> Self {
        Self { machine, now, seen: seen(snapshot), summary: Summary { snapshot, now } }
    }

    fn short_id(&self) -> String {
        short_id(self.machine)
    }

    fn ago(&self, at: &UnixTime) -> String {
        ago(self.now, *at)
    }

    fn until(&self, at: &UnixTime) -> String {
        until(self.now, *at)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let machine = self.machine;
        let said = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        vec![
            ("UUID", machine.id.to_string()),
            ("stage", machine.stage.as_str().into()),
            ("power", machine.power.to_string()),
            ("agent", if machine.agent { "connected" } else { "none" }.into()),
            ("boots", said(&machine.boot_mode)),
            ("cluster", said(&machine.cluster)),
            ("MAC", said(&machine.mac)),
            ("address", said(&machine.address)),
            ("BMC", said(&machine.bmc)),
            ("next attempt", machine.next_attempt.map_or_else(|| "on the next change".into(), |at| at.to_string())),
            ("decided at", said(&machine.decided_at)),
        ]
    }
}

/// What is shown in place of a page that is not there.
#[derive(Template)]
#[template(path = "missing.html", config = "src/web/askama.toml")]
pub(super) struct Missing {
    pub what: &'static str,
    pub hint: &'static str,
}

/// What is shown in place of a change that was not made.
#[derive(Template)]
#[template(path = "refused.html", config = "src/web/askama.toml")]
pub(super) struct Refused<'a> {
    pub why: &'a str,
    pub sign_in: Option<&'a str>,
}

/// Names a snapshot: two with the same name show the same. 16 hex digits.
pub(super) fn seen(snapshot: &Snapshot) -> String {
    struct Sink(Sha256);
    impl std::io::Write for Sink {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.update(octets);
            Ok(octets.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink(Sha256::new());
    let shown = (&snapshot.provider_id, &snapshot.version, &snapshot.omni, &snapshot.services, &snapshot.machines);
    // Such values always serialize into a sink that takes everything; else the name just does not match.
    let _ = serde_json::to_writer(&mut sink, &shown);
    sink.0.finalize()[..8].iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

/// The two ends of the UUID: vendors put their own name in front and count at the back.
fn short_id(machine: &Machine) -> String {
    let id = machine.id.as_str();
    format!("{}…{}", &id[..8], &id[30..])
}

fn ago(now: UnixTime, at: UnixTime) -> String {
    let since = now.since(at);
    if since.as_secs() < 5 { "just now".into() } else { format!("{} ago", words(since)) }
}

fn until(now: UnixTime, at: UnixTime) -> String {
    let left = at.since(now);
    if left.as_secs() == 0 { "now".into() } else { format!("in {}", words(left)) }
}

fn words(time: Duration) -> String {
    match time.as_secs() {
        secs @ 0..60 => format!("{secs} s"),
        secs @ 60..3_600 => format!("{} min", secs / 60),
        secs @ 3_600..172_800 => format!("{} h", secs / 3_600),
        secs => format!("{} days", secs / 86_400),
    }
}

/// With one digit behind the point.
fn megabytes(octets: u64) -> String {
    format!("{}.{}", octets / 1_000_000, octets / 100_000 % 10)
}

fn escape_query(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, octet| {
        match octet {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(octet)),
            octet => {
                let _ = write!(escaped, "%{octet:02X}");
            }
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::PowerState;
    use crate::status::Moment;
    use crate::supervise::control::{ServiceStatus, Status};
    use crate::supervise::memory::Memory;

    fn machine(last: u8, stage: Stage) -> Machine {
        Machine {
            id: format!("4c4c4544-0042-3510-8054-b7c04f3331{last:02x}").parse().unwrap(),
            stage,
            power: PowerState::On,
            agent: true,
            boot_mode: "agent".into(),
            verdict: "<b>waits</b> & sees".into(),
            decided_at: "src/plan.rs:1".into(),
            next_attempt: Some(UnixTime::from_secs(1_100)),
            trouble: String::new(),
            mac: "02:00:00:00:00:01".into(),
            address: "10.0.0.9".into(),
            bmc: String::new(),
            cluster: "edge\" onload=\"x".into(),
            timeline: vec![Moment { at: UnixTime::from_secs(820), what: "booted".into() }],
        }
    }

    fn snapshot() -> Snapshot {
        let machines = vec![machine(1, Stage::Ready), machine(2, Stage::Stuck)];
        Snapshot { provider_id: "rack-7".into(), machines, ..Snapshot::default() }
    }

    #[test]
    fn what_a_machine_says_is_escaped() {
        let snapshot = snapshot();
        let page = Rack::new(&snapshot, UnixTime::from_secs(1_000), None, "").render().unwrap();
        assert!(!page.contains("<b>waits") && !page.contains("edge\" onload"));
        assert!(page.contains("Looks again <time datetime=\"1970-01-01T00:18:20Z\">in 1 min</time>"));
        assert!(page.contains("3 min ago"));
    }

    #[test]
    fn filters_hide_without_a_script() {
        let snapshot = snapshot();
        let hidden = |stage, find| {
            let page = Rack::new(&snapshot, UnixTime::from_secs(1_000), stage, find).render().unwrap();
            page.matches("\" hidden>\n<div class=\"state\"").count()
        };
        assert_eq!(hidden(None, ""), 0);
        assert_eq!(hidden(Some(Stage::Stuck), ""), 1);
        assert_eq!(hidden(Some(Stage::Stuck), "f333101"), 2);
        assert_eq!(hidden(None, "10.0.0.9"), 0);
    }

    #[test]
    fn chips_keep_what_was_sought() {
        let chips = Chips::new(&snapshot(), Some(Stage::Stuck), "a b");
        assert_eq!(chips.href(None), "/?find=a%20b");
        assert_eq!(chips.href(Some(&Stage::PoweredOff)), "/?stage=powered-off&find=a%20b");
    }

    #[test]
    fn the_memory_of_a_box_is_told_where_it_is_known() {
        let mut snapshot = snapshot();
        let page = |snapshot: &Snapshot| Summary { snapshot, now: UnixTime::from_secs(1_000) }.render().unwrap();
        assert!(!page(&snapshot).contains("Programs hold"));
        let memory = Memory { total: 256_000_000, available: 99_950_000, anonymous: 21_000_000, mapped: 9_340_000 };
        let service =
            |name: &str, anonymous| ServiceStatus { name: name.into(), anonymous, ..ServiceStatus::default() };
        let services = vec![service("net", Some(2_040_000)), service("dhcp", None), service("web", Some(900_000))];
        snapshot.appliance = Some(Status { memory: Some(memory), services, ..Status::default() });
        let told = "Programs hold 30.3 of 256.0 MB of memory, 99.9 MB are free. Of their own: net 2.0, web 0.9 MB";
        assert!(page(&snapshot).contains(told));
    }

    #[test]
    fn a_snapshots_name_follows_what_is_shown() {
        let (one, mut other) = (snapshot(), snapshot());
        other.counters.push(("offers".into(), 1));
        assert_eq!(seen(&one), seen(&other), "counters are not shown");
        other.machines[0].verdict.push('!');
        assert_ne!(seen(&one), seen(&other));
    }
}
