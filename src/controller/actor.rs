//! One task a machine: observe, plan, act, record, again. Nothing else touches the machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::act::{self, ActError};
use super::publish;
use super::rack::{Rack, Report};
use super::records::{Record, Records, chain, confirmed};
use crate::agent::Tunnels;
use crate::bmc::ipmi::IpmiBmc;
use crate::bmc::{Bmc, Credentials};
use crate::config::Timing;
use crate::machine::{
    Acceptance, BmcRecord, Desired, MachineId, PowerState, PxeBootMode, Recorded, allocated, boot_mode, installed,
    ready_to_use,
};
use crate::reconcile::{ActionKind, Failures, Intent, Outcome, Reason, Rules, Verdict, View, plan};
use crate::resource::Kind;
use crate::status::Stage;
use crate::telemetry::Counters;
use crate::time::{UnixTime, Uptime};

/// A BMC is called unreachable after this many polls in a row without an answer: one lost datagram is no power state.
const MISSES: u32 = 3;
/// The first pause after a failure; it grows by half each time, up to [`BACKOFF_CAP`].
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(60);
/// How long a process that has just started waits for Omni before it acts on the stored view.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// A plan that acts this often without a pause is made to pause: it would be a defect, and must not become a storm.
const ACTS_WITHOUT_PAUSE: u32 = 32;

/// What every machine's task shares.
pub(super) struct Site {
    pub records: Records,
    pub rack: Rack,
    pub tunnels: Tunnels,
    pub counters: Counters,
    pub timing: Timing,
    pub wipe_with_zeroes: bool,
    pub pxe_mode: PxeBootMode,
    pub labels: BTreeMap<String, String>,
    pub started: Uptime,
}

struct Failure {
    count: u32,
    until: Uptime,
    what: String,
}

/// One machine's task.
pub(super) struct Actor {
    pub(super) id: MachineId,
    pub(super) site: Arc<Site>,
    pub(super) intent: Option<Intent>,
    pub(super) power: PowerState,
    /// When this process last powered the machine on.
    pub(super) power_action: Option<Uptime>,
    bmc: Option<(BmcRecord, Arc<IpmiBmc>)>,
    misses: u32,
    bmc_trouble: String,
    agent_answers: bool,
    next_poll: Uptime,
    failures: BTreeMap<ActionKind, Failure>,
}

impl Actor {
    pub(super) fn new(id: MachineId, site: Arc<Site>) -> Self {
        Self {
            id,
            site,
            intent: None,
            power: PowerState::Unknown,
            power_action: None,
            bmc: None,
            misses: 0,
            bmc_trouble: String::new(),
            agent_answers: true,
            next_poll: Uptime::default(),
            failures: BTreeMap::new(),
        }
    }

    /// Runs until the machine is gone. May be dropped at any await: what was begun is in the store.
    ///
    /// A rack has thousands of these tasks, and nearly all of them wait. What a turn needs, calls to Omni and to a BMC
    /// among it, is thirty times what a waiting machine needs: it is boxed, and freed before the wait. The actor is boxed,
    /// since each future around this one would hold a second copy of it.
    pub(super) async fn run(mut self: Box<Self>) {
        let wake = self.site.rack.wake(&self.id, Uptime::now());
        while let Err(error) = Box::pin(self.load_intent()).await {
            tracing::error!(machine = %self.id, error = %chain(&error), "can't read what was begun; nothing is done");
            tokio::time::sleep(BACKOFF_CAP).await;
        }
        while let Some(pause) = Box::pin(self.turn()).await {
            // Cancel-safe: `notified` keeps its permit, the others hold nothing.
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Observes, plans and acts until there is nothing to be done now. Returns how long to wait for news at most; `None`
    /// when the machine is gone.
    async fn turn(&mut self) -> Option<Duration> {
        let mut acts = 0;
        loop {
            if Uptime::now() >= self.next_poll {
                self.poll().await;
            }
            let (desired, recorded) = (self.site.records.desired(&self.id), self.site.records.recorded(&self.id));
            if desired.is_none() && self.intent.is_none() && confirmed(self.site.records.mirror(), Uptime::now()) {
                self.site.rack.forget(&self.id);
                return None;
            }
            let outcome = self.decide(desired.as_ref(), &recorded);
            self.report(desired.as_ref(), &recorded, &outcome);
            self.publish(desired.as_ref(), &recorded).await;
            let pause = match outcome.verdict {
                Verdict::Act(action) if acts < ACTS_WITHOUT_PAUSE => {
                    acts += 1;
                    let kind = action.kind();
                    tracing::info!(machine = %self.id, action = ?kind, reason = %outcome.reason, "acting");
                    match act::perform(self, &action, desired.as_ref(), &recorded).await {
                        Ok(()) => drop(self.failures.remove(&kind)),
                        Err(error) => self.failed(kind, &error),
                    }
                    continue;
                }
                Verdict::Act(_) => Duration::from_secs(1),
                Verdict::Wait(retry_in) => retry_in,
                Verdict::Settled => Duration::MAX,
            };
            return Some(pause.min(self.next_poll.since(Uptime::now())));
        }
    }

    async fn load_intent(&mut self) -> Result<(), super::records::Error> {
        self.intent = self.site.records.intent(&self.id).await?;
        Ok(())
    }

    fn decide(&self, desired: Option<&Desired>, recorded: &Recorded) -> Outcome {
        let now = Uptime::now();
        let records = &self.site.records;
        let user_bmc = records.user_bmc(&self.id);
        let is_confirmed = confirmed(records.mirror(), now);
        let failures: Failures = self
            .failures
            .iter()
            .map(|(kind, failure)| (*kind, failure.until.since(now)))
            .filter(|(_, left_alone)| !left_alone.is_zero())
            .collect();
        let agent = self.agent();
        let agent_due = self.site.rack.agent_due(&self.id).unwrap_or(self.site.started).max(self.site.started);
        plan(&View {
            desired,
            recorded,
            user_bmc: user_bmc.as_ref(),
            password_form_is_wrong: records.password_form_is_wrong(&self.id),
            intent: self.intent.as_ref(),
            finalizers_missing: records.finalizers_missing(&self.id),
            confirmed: is_confirmed,
            first_word_due: if is_confirmed {
                Duration::ZERO
            } else {
                FIRST_WORD.saturating_sub(now.since(self.site.started))
            },
            power: self.power,
            agent,
            agent_missing_for: if agent { Duration::ZERO } else { now.since(agent_due) },
            since_power_action: self.since_power_action(recorded, now),
            failures: &failures,
            rules: Rules {
                min_reboot_interval: self.site.timing.min_reboot_interval,
                agent_wait: self.site.timing.agent_wait,
            },
        })
    }

    /// Whether the agent can be called. A machine that is off has none, whatever its last connection looks like.
    fn agent(&self) -> bool {
        self.power != PowerState::Off && self.agent_answers && self.site.tunnels.is_open(&self.id)
    }

    /// Time since the machine was last powered on or rebooted by us: by this process's own clock where it did it itself,
    /// else by the recorded wall time. A record from the future counts as now, which errs on the side of waiting.
    fn since_power_action(&self, recorded: &Recorded, now: Uptime) -> Option<Duration> {
        if let Some(at) = self.power_action {
            return Some(now.since(at));
        }
        let at = recorded.power.on_at.max(recorded.reboot.at)?;
        Some(UnixTime::now().since(at))
    }

    /// Looks at power and agent, and tells Omni what it has not been told.
    async fn poll(&mut self) {
        let recorded = self.site.records.recorded(&self.id);
        self.observe_power(&recorded).await;
        if self.power != PowerState::Off && self.site.tunnels.is_open(&self.id) {
            let hello = self.site.tunnels.hello(&self.id, self.site.timing.agent_call).await;
            self.agent_answers = hello.is_ok();
        } else {
            self.agent_answers = true;
        }
        if self.site.records.has_unsent(&self.id)
            && let Err(error) = self.site.records.push(&self.id).await
        {
            tracing::debug!(machine = %self.id, error = %chain(&error), "record still waits for Omni");
        }
        self.next_poll = Uptime::now() + jittered(self.site.timing.poll_interval);
    }

    /// Asks the BMC for the power state; after [`MISSES`] failures in a row it is unknown.
    pub(super) async fn observe_power(&mut self, recorded: &Recorded) {
        let Some(bmc) = self.bmc(recorded) else {
            self.power = PowerState::Unknown;
            return;
        };
        let before = self.power;
        match bmc.power_state().await {
            Ok(power) => {
                self.power = power;
                self.misses = 0;
                self.bmc_trouble.clear();
            }
            Err(error) => {
                self.misses += 1;
                self.bmc_trouble = chain(&error);
                self.site.counters.count("bmc_poll_failed");
                if self.misses >= MISSES {
                    self.power = PowerState::Unknown;
                }
                if self.misses == MISSES {
                    tracing::warn!(machine = %self.id, error = %self.bmc_trouble, "BMC does not answer");
                }
            }
        }
        if before != self.power && before != PowerState::Unknown {
            let what = format!("power is {}", self.power);
            self.site.rack.note(&self.id, what, Uptime::now(), UnixTime::now());
        }
    }

    /// The BMC, with the credentials as recorded.
    pub(super) fn bmc(&mut self, recorded: &Recorded) -> Option<Arc<IpmiBmc>> {
        let record = recorded.bmc.as_ref()?;
        match &self.bmc {
            Some((known, bmc)) if known == record => Some(Arc::clone(bmc)),
            _ => {
                let credentials = Credentials {
                    address: record.address.clone(),
                    port: record.port,
                    username: record.username.clone(),
                    password: record.password.clone(),
                };
                let bmc = Arc::new(IpmiBmc::new(credentials, crate::bmc::ipmi::Timing::default()));
                self.bmc = Some((record.clone(), Arc::clone(&bmc)));
                self.misses = 0;
                Some(bmc)
            }
        }
    }

    /// Why the BMC's last answer is missing; empty when it is not.
    pub(super) fn bmc_trouble(&self) -> &str {
        &self.bmc_trouble
    }

    /// Asks for a poll before the next plan.
    pub(super) fn poll_soon(&mut self) {
        self.next_poll = Uptime::default();
    }

    fn failed(&mut self, kind: ActionKind, error: &ActError) {
        let count = self.failures.get(&kind).map_or(0, |failure| failure.count) + 1;
        let backoff = BACKOFF.mul_f64(1.5_f64.powi(count.min(16) as i32 - 1)).min(BACKOFF_CAP);
        let what = chain(error);
        tracing::warn!(machine = %self.id, action = ?kind, error = %what, attempt = count, "action failed");
        self.site.counters.count("action_failed");
        self.site.rack.note(&self.id, format!("failed: {what}"), Uptime::now(), UnixTime::now());
        self.failures.insert(kind, Failure { count, until: Uptime::now() + jittered(backoff), what });
    }

    fn trouble(&self) -> String {
        let failure = self.failures.values().max_by_key(|failure| failure.until).map(|failure| failure.what.clone());
        failure.unwrap_or_else(|| if self.misses >= MISSES { self.bmc_trouble.clone() } else { String::new() })
    }

    fn report(&self, desired: Option<&Desired>, recorded: &Recorded, outcome: &Outcome) {
        self.site.counters.count(outcome.reason.counter());
        let now = Uptime::now();
        let next = match outcome.verdict {
            Verdict::Wait(retry_in) => Some(UnixTime::now() + retry_in),
            Verdict::Settled | Verdict::Act(_) => None,
        };
        let report = Report {
            stage: desired.map(|desired| self.stage(desired, recorded, outcome)),
            power: self.power,
            agent: self.agent(),
            boot_mode: boot_mode(desired, recorded).as_str(),
            verdict: outcome.reason.as_str(),
            decided_at: Some(outcome.decided_at),
            next_attempt: next,
            trouble: self.trouble(),
            bmc: recorded.bmc.as_ref().map(|bmc| address(&bmc.address, bmc.port)).unwrap_or_default(),
            cluster: desired
                .and_then(|desired| desired.labels.get("omni.sidero.dev/cluster").cloned())
                .unwrap_or_default(),
        };
        self.site.rack.report(&self.id, report, now, UnixTime::now());
    }

    fn stage(&self, desired: &Desired, recorded: &Recorded, outcome: &Outcome) -> Stage {
        let stuck = self.failures.values().any(|failure| failure.count >= MISSES);
        match (desired.acceptance, outcome.reason) {
            _ if desired.tearing_down => Stage::Removing,
            (Acceptance::Pending, _) => Stage::Pending,
            (Acceptance::Rejected, _) => Stage::Rejected,
            _ if desired.cordoned => Stage::Cordoned,
            _ if stuck => Stage::Stuck,
            (_, Reason::Wiping) => Stage::Wiping,
            (_, Reason::PoweredOffOnRequest) => Stage::PoweredOff,
            _ if allocated(desired) && installed(Some(desired), recorded) => Stage::Installed,
            _ if allocated(desired) && ready_to_use(desired, recorded) => Stage::Provisioning,
            _ if ready_to_use(desired, recorded) => Stage::Ready,
            _ => Stage::Preparing,
        }
    }

    /// Tells Omni what is observed. Failures are tried again with the next poll: this is news, not a record.
    async fn publish(&self, desired: Option<&Desired>, recorded: &Recorded) {
        let records = &self.site.records;
        let Some(desired) = desired.filter(|desired| !desired.tearing_down) else { return };
        if !confirmed(self.site.records.mirror(), Uptime::now()) {
            return;
        }
        let initialized = recorded.initialized || !self.site.rack.addresses(&self.id).is_empty() || self.agent();
        if initialized {
            let status = publish::machine_status(self.agent(), self.power, true);
            let octets = prost::Message::encode_to_vec(&status).into();
            let kind = records.kind(Record::MachineStatus);
            let owner = records.owner(Record::MachineStatus);
            self.told(records.publish(kind, &self.id, &owner, octets, |_| ()).await);
        }
        if desired.acceptance == Acceptance::Accepted {
            let status = publish::infra_machine_status(desired, recorded, self.power);
            let octets = prost::Message::encode_to_vec(&status).into();
            let kind = Kind::omni("InfraMachineStatuses");
            let owner = format!("{}.InfraMachineStatusController", records.provider_id());
            let labels = |labels: &mut BTreeMap<String, String>| {
                *labels = publish::status_labels(labels, &self.site.labels, desired);
            };
            self.told(records.publish(kind, &self.id, &owner, octets, labels).await);
        }
    }

    fn told(&self, result: Result<(), super::records::Error>) {
        if let Err(error) = result {
            self.site.counters.count("omni_status_failed");
            tracing::debug!(machine = %self.id, error = %chain(&error), "Omni was not told");
        }
    }
}

fn address(host: &str, port: u16) -> String {
    match host.parse() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

/// `duration` ±10 %, so that machines don't move in step.
fn jittered(duration: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    duration.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_machine_is_small() {
        fn size<F: Future>(_: fn(Box<Actor>) -> F) -> usize {
            size_of::<F>()
        }
        let total = size(Actor::run) + size_of::<Actor>();
        assert!(total < 768, "{total} octets");
    }
}
