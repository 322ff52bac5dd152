//! What the lab tells the person at the terminal.

use std::collections::BTreeMap;
use std::fmt::{Arguments, Write};
use std::path::Path;

use anyhow::anyhow;

use super::omni::script::{Progress, Step};
use super::provider::Provider;
use super::rack::Rack;
use crate::status::Snapshot;
use crate::time::Uptime;

/// Events of a stuck machine that are shown.
const JOURNAL: usize = 12;

/// A line on standard output. Whoever listened may have gone, as `head` does: the rack goes on and is put away in order.
fn say(line: Arguments<'_>) {
    let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{line}\n"));
}

/// The terminal: a line whenever something moved.
pub(super) struct Terminal {
    machines: u16,
    started: Uptime,
    last: String,
}

impl Terminal {
    pub(super) fn new(machines: u16, started: Uptime) -> Self {
        Self { machines, started, last: String::new() }
    }

    pub(super) fn welcome(&self, provider: &Provider, directory: &Path, omni: &str, admin_key: &Path) {
        say(format_args!("pilotlight lab: {} machines", self.machines));
        say(format_args!("  page      {}", provider.page()));
        say(format_args!("  log       {}", provider.log().display()));
        say(format_args!("  state     {}", directory.display()));
        say(format_args!("  Omni      {omni}"));
        say(format_args!("  admin key {}", admin_key.display()));
        say(format_args!(
            "  omnictl   OMNI_ENDPOINT={omni} OMNI_SERVICE_ACCOUNT_KEY=$(cat {}) omnictl get inframachines",
            admin_key.display()
        ));
    }

    pub(super) fn line(&self, what: &str) {
        say(format_args!("{:>7.1} s  {what}", Uptime::now().since(self.started).as_secs_f64()));
    }

    /// Shows how many machines are at which step, when that changed.
    pub(super) fn show(&mut self, progress: &[Progress], now: Uptime) {
        let mut steps: BTreeMap<Step, usize> = BTreeMap::new();
        for life in progress {
            *steps.entry(life.step).or_default() += 1;
        }
        let mut text = String::new();
        for (step, count) in &steps {
            let _ = write!(text, "{}{step} {count}", if text.is_empty() { "" } else { "  " });
        }
        if text != self.last {
            say(format_args!("{:>7.1} s  {text}", now.since(self.started).as_secs_f64()));
            self.last = text;
        }
    }

    pub(super) fn all_done(&self, progress: &[Progress]) -> bool {
        progress.len() == usize::from(self.machines) && progress.iter().all(|life| life.step == Step::Done)
    }

    pub(super) fn farewell(&self, rack: &Rack, memory: Option<(u64, u64)>, now: Uptime) {
        let totals = rack.totals();
        say(format_args!(
            "{} machines in {:.1} s: {} agent boots, {} Talos boots from the network and {} from disk, {} installs, {} wipes, \
             {} power-ons, {} power-offs, {} IPMI sessions",
            self.machines,
            now.since(self.started).as_secs_f64(),
            totals.boots_agent,
            totals.boots_talos_net,
            totals.boots_talos_disk,
            totals.installs,
            totals.wipes,
            totals.power_ons,
            totals.power_offs,
            rack.ipmi_sessions(),
        ));
        if let Some((peak, present)) = memory {
            say(format_args!(
                "provider memory: {:.1} MiB now, {:.1} MiB at most",
                present as f64 / 1024.0,
                peak as f64 / 1024.0
            ));
        }
    }
}

/// Which machines did not get through, where each stands, and why.
pub(super) fn stuck(progress: &[Progress], status: Option<&Snapshot>, rack: &Rack) -> anyhow::Error {
    let stuck: Vec<_> = progress.iter().filter(|life| life.step != Step::Done).collect();
    let mut text = format!("{} of {} machines are stuck", stuck.len(), progress.len());
    if status.is_none() {
        text.push_str("; the provider does not answer");
    }
    for life in stuck.iter().take(10) {
        let _ = write!(text, "\n{}: {}, waits for {}", life.uuid, life.step, life.waiting_for);
        let machine = status.and_then(|status| status.machines.iter().find(|machine| machine.id.as_str() == life.uuid));
        if let Some(machine) = machine {
            let _ = write!(
                text,
                "\n  provider: {} ({}); power {}, agent {}{}",
                machine.verdict,
                machine.decided_at,
                machine.power,
                if machine.agent { "connected" } else { "away" },
                if machine.trouble.is_empty() { String::new() } else { format!("; trouble: {}", machine.trouble) },
            );
        }
        for event in rack.journal(&life.uuid, JOURNAL) {
            let _ = write!(text, "\n  machine: {event}");
        }
    }
    anyhow!(text)
}
