//! The decision tables of contract bare-metal-provider.md, sections 7.2 to 7.7, as tests.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::machine::{Acceptance, BmcRecord, Desired, PowerRecord, PowerState, Recorded, WipeRecord};
use crate::secret::Secret;
use crate::time::UnixTime;

const RULES: Rules = Rules { min_reboot_interval: Duration::from_secs(900), agent_wait: Duration::from_secs(300) };
const LONG: Duration = Duration::from_secs(86_400);

/// A machine that was accepted, set up, wiped and is idle; each test changes what it is about.
#[derive(Debug)]
struct Case {
    desired: Desired,
    recorded: Recorded,
    user_bmc: Option<UserBmc>,
    intent: Option<Intent>,
    confirmed: bool,
    first_word_due: Duration,
    password_form_is_wrong: bool,
    finalizers_missing: bool,
    power: PowerState,
    agent: bool,
    agent_missing_for: Duration,
    since_power_action: Option<Duration>,
    failures: Failures,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            desired: Desired { acceptance: Acceptance::Accepted, ..Desired::default() },
            recorded: Recorded {
                bmc: Some(bmc(false)),
                wipe: WipeRecord { initial_wipe_done: true, ..WipeRecord::default() },
                initialized: true,
                ..Recorded::default()
            },
            user_bmc: None,
            intent: None,
            confirmed: true,
            first_word_due: Duration::ZERO,
            password_form_is_wrong: false,
            finalizers_missing: false,
            power: PowerState::Off,
            agent: false,
            agent_missing_for: LONG,
            since_power_action: None,
            failures: Failures::new(),
        }
    }
}

impl Case {
    fn plan(&self) -> Outcome {
        plan(&View {
            desired: Some(&self.desired),
            recorded: &self.recorded,
            user_bmc: self.user_bmc.as_ref(),
            intent: self.intent.as_ref(),
            password_form_is_wrong: self.password_form_is_wrong,
            finalizers_missing: self.finalizers_missing,
            confirmed: self.confirmed,
            first_word_due: self.first_word_due,
            power: self.power,
            agent: self.agent,
            agent_missing_for: self.agent_missing_for,
            since_power_action: self.since_power_action,
            failures: &self.failures,
            rules: RULES,
        })
    }

    #[track_caller]
    fn expect(&self, verdict: Verdict, reason: Reason) {
        let outcome = self.plan();
        assert_eq!((outcome.verdict, outcome.reason), (verdict, reason), "decided at {}", outcome.decided_at);
    }
}

fn bmc(manual: bool) -> BmcRecord {
    BmcRecord {
        address: "127.0.0.1".into(),
        port: 623,
        username: "talos-agent".into(),
        password: Secret::new("x".into()),
        manual,
    }
}

fn act(action: Action) -> Verdict {
    Verdict::Act(action)
}

fn reboot(cause: RebootCause, pxe: bool) -> Verdict {
    act(Action::Reboot { cause, pxe })
}

fn power_on(pxe: bool) -> Verdict {
    act(Action::PowerOn { pxe, reboot_id: None })
}

#[test]
fn nothing_is_done_to_a_machine_that_is_not_accepted_or_is_cordoned() {
    for (acceptance, cordoned, reason) in [
        (Acceptance::Pending, false, Reason::PendingAcceptance),
        (Acceptance::Pending, true, Reason::PendingAcceptance),
        (Acceptance::Rejected, false, Reason::Rejected),
        (Acceptance::Accepted, true, Reason::Cordoned),
    ] {
        let mut case = Case { agent: true, power: PowerState::On, ..Case::default() };
        case.desired = Desired { acceptance, cordoned, requested_reboot_id: "r".into(), ..Desired::default() };
        case.recorded.wipe.initial_wipe_done = false;
        case.expect(Verdict::Settled, reason);
    }
}

#[test]
fn a_machine_that_omni_does_not_know_is_left_alone() {
    let recorded = Recorded::default();
    let outcome = plan(&View {
        desired: None,
        recorded: &recorded,
        user_bmc: None,
        intent: None,
        password_form_is_wrong: false,
        finalizers_missing: true,
        confirmed: true,
        first_word_due: Duration::ZERO,
        power: PowerState::On,
        agent: true,
        agent_missing_for: Duration::ZERO,
        since_power_action: None,
        failures: &Failures::new(),
        rules: RULES,
    });
    assert_eq!((outcome.verdict, outcome.reason), (Verdict::Settled, Reason::NotInOmni));
}

/// Section 7.4, rows 3 to 9, with row 3's [FIX]: a person's credentials are taken with the agent away.
#[test]
fn bmc_access_comes_from_a_person_or_from_the_agent() {
    let user =
        UserBmc { address: "127.0.0.9".into(), port: 623, username: "root".into(), password: Secret::new("p".into()) };
    let recorded_user = BmcRecord {
        address: user.address.clone(),
        port: user.port,
        username: user.username.clone(),
        password: user.password.clone(),
        manual: true,
    };
    let mut rotated = recorded_user.clone();
    rotated.password = Secret::new("old".into());
    type Row = (Option<UserBmc>, Option<BmcRecord>, bool, Option<(Action, Reason)>);
    let rows: [Row; 8] = [
        (None, None, false, None),
        (None, None, true, Some((Action::SetUpBmc, Reason::BmcSetUp))),
        (Some(user.clone()), None, false, Some((Action::RecordBmc, Reason::BmcGiven))),
        (Some(user.clone()), Some(bmc(false)), false, Some((Action::RecordBmc, Reason::BmcGiven))),
        (Some(user.clone()), Some(rotated), false, Some((Action::RecordBmc, Reason::BmcGiven))),
        (Some(user.clone()), Some(recorded_user.clone()), true, None),
        (None, Some(bmc(false)), true, None),
        (None, Some(recorded_user), true, Some((Action::SetUpBmc, Reason::BmcSetUp))),
    ];
    for (user_bmc, recorded, agent, want) in rows {
        let mut case = Case { user_bmc, agent, ..Case::default() };
        case.recorded.bmc = recorded;
        let outcome = case.plan();
        match want {
            Some((action, reason)) => assert_eq!((outcome.verdict, outcome.reason), (act(action), reason)),
            None => {
                assert!(!matches!(outcome.verdict, Verdict::Act(Action::SetUpBmc | Action::RecordBmc)), "{outcome:?}")
            }
        }
    }
}

#[test]
fn a_password_that_a_go_provider_left_in_clear_is_sealed_with_the_agent_away() {
    let case = Case { password_form_is_wrong: true, ..Case::default() };
    case.expect(act(Action::RecordBmc), Reason::BmcResealed);
}

#[test]
fn a_failing_bmc_set_up_does_not_hold_up_the_wipe() {
    let mut case = Case { agent: true, power: PowerState::Unknown, ..Case::default() };
    case.recorded.bmc = None;
    case.recorded.wipe.initial_wipe_done = false;
    case.failures.insert(ActionKind::SetUpBmc, Duration::from_secs(7));
    case.expect(act(Action::Wipe), Reason::Wiping);
    case.recorded.wipe.initial_wipe_done = true;
    case.expect(Verdict::Wait(Duration::from_secs(7)), Reason::LastAttemptFailed);
}

/// Section 7.5, every row of its table.
#[test]
fn power_agrees_with_the_table() {
    for power_off_active in [false, true] {
        for required in [false, true] {
            for prefers_on in [false, true] {
                for power in [PowerState::Off, PowerState::On] {
                    let mut case = Case { power, ..Case::default() };
                    case.desired.prefers_on = prefers_on;
                    if required {
                        case.desired.cluster_talos_version = "1.13.0".into();
                        case.desired.install_event_id = 1;
                    }
                    if power_off_active {
                        case.desired.power_off_request_id = "p".into();
                        case.recorded.power.power_off_id = "p".into();
                    }
                    match (power, power_off_active, required, prefers_on) {
                        (PowerState::Off, true, ..) => case.expect(Verdict::Settled, Reason::PoweredOffOnRequest),
                        (PowerState::Off, false, true, _) => case.expect(power_on(false), Reason::Needed),
                        (PowerState::Off, false, false, true) => case.expect(power_on(true), Reason::PrefersOn),
                        (PowerState::Off, false, false, false) => case.expect(Verdict::Settled, Reason::IdleOff),
                        (_, _, true, _) => case.expect(Verdict::Settled, Reason::Running),
                        (_, _, false, true) => case.expect(Verdict::Settled, Reason::IdleOn),
                        (_, _, false, false) => case.expect(act(Action::PowerOff), Reason::NotNeeded),
                    }
                }
            }
        }
    }
}

#[test]
fn a_power_off_waits_for_the_cooldown_and_a_power_on_does_not() {
    let mut case =
        Case { power: PowerState::On, since_power_action: Some(Duration::from_secs(600)), ..Case::default() };
    case.expect(Verdict::Wait(Duration::from_secs(301)), Reason::Cooldown);
    case.since_power_action = Some(Duration::from_secs(900));
    case.expect(act(Action::PowerOff), Reason::NotNeeded);
    case.power = PowerState::Off;
    case.since_power_action = Some(Duration::ZERO);
    case.desired.cluster_talos_version = "1.13.0".into();
    case.expect(power_on(true), Reason::Needed);
}

/// Section 7.6, rows 2 to 7.
#[test]
fn reboots_agree_with_the_table() {
    let on = || Case { power: PowerState::On, ..Case::default() };

    let mut case = on();
    case.recorded.bmc = None;
    case.desired.requested_reboot_id = "r".into();
    case.expect(Verdict::Settled, Reason::BmcAwaitsAgent); // row 2
    case.recorded.initialized = false;
    case.expect(Verdict::Settled, Reason::NeverBooted); // row 3

    let mut case = on();
    case.recorded.wipe.initial_wipe_done = false;
    case.expect(reboot(RebootCause::AgentNeeded, true), Reason::AgentNeeded); // row 4
    case.agent = true;
    case.expect(act(Action::Wipe), Reason::Wiping);

    let mut case = on();
    case.desired.cluster_talos_version = "1.13.0".into();
    case.agent = true;
    case.expect(reboot(RebootCause::TalosNeeded, true), Reason::TalosNeeded); // row 5
    case.agent = false;
    case.expect(Verdict::Settled, Reason::TalosBooting);

    let mut case = on();
    case.desired.cluster_talos_version = "1.13.0".into();
    case.desired.install_event_id = 1;
    case.desired.requested_reboot_id = "r".into();
    case.expect(reboot(RebootCause::Requested("r".into()), false), Reason::RebootRequested); // row 6
    case.since_power_action = Some(Duration::from_secs(1));
    case.expect(Verdict::Wait(Duration::from_secs(900)), Reason::Cooldown);
    case.recorded.reboot.reboot_id = "r".into();
    case.expect(Verdict::Settled, Reason::Running); // row 7
}

#[test]
fn an_agent_that_boots_or_reconnects_gets_its_time() {
    let mut case = Case { power: PowerState::On, agent_missing_for: Duration::from_secs(4), ..Case::default() };
    case.recorded.wipe.initial_wipe_done = false;
    case.expect(Verdict::Wait(Duration::from_secs(296)), Reason::AgentBooting);
    case.agent_missing_for = Duration::from_secs(300);
    case.expect(reboot(RebootCause::AgentNeeded, true), Reason::AgentNeeded);
}

#[test]
fn an_accepted_idle_machine_that_was_powered_off_is_not_rebooted() {
    Case::default().expect(Verdict::Settled, Reason::IdleOff); // upstream regression R7
}

#[test]
fn a_reboot_request_for_a_machine_that_is_off_is_served_by_powering_it_on() {
    let mut case = Case::default();
    case.desired.requested_reboot_id = "r".into();
    case.expect(act(Action::PowerOn { pxe: true, reboot_id: Some("r".into()) }), Reason::RebootRequested);
}

#[test]
fn a_power_off_request_is_acknowledged_once_and_never_turns_a_running_machine_off() {
    let mut case = Case { power: PowerState::On, ..Case::default() };
    case.desired.cluster_talos_version = "1.13.0".into();
    case.desired.install_event_id = 1;
    case.desired.power_off_request_id = "p".into();
    case.expect(act(Action::AcknowledgePowerOff), Reason::PowerOffAcknowledged);
    case.recorded.power = PowerRecord { power_off_id: "p".into(), ..PowerRecord::default() };
    case.expect(Verdict::Settled, Reason::Running);
    case.power = PowerState::Off;
    case.expect(Verdict::Settled, Reason::PoweredOffOnRequest);
    case.desired.power_off_request_id.clear();
    case.expect(power_on(false), Reason::Needed);
}

#[test]
fn a_removed_machine_is_rebooted_into_the_agent_once_and_let_go() {
    let mut case = Case { power: PowerState::On, ..Case::default() };
    case.desired.tearing_down = true;
    case.expect(reboot(RebootCause::Removed, true), Reason::Removing);
    case.agent = true;
    case.expect(act(Action::Release), Reason::Releasing);
    case.agent = false;
    case.failures.insert(ActionKind::Reboot, Duration::from_secs(1));
    case.expect(act(Action::Release), Reason::Releasing);
    case.failures.clear();
    case.power = PowerState::Off;
    case.expect(act(Action::Release), Reason::Releasing);
    case.desired.acceptance = Acceptance::Pending;
    case.recorded.bmc = None;
    case.power = PowerState::Unknown;
    case.expect(act(Action::Release), Reason::Releasing);
}

#[test]
fn what_was_begun_is_finished_first() {
    let mut case = Case { power: PowerState::On, ..Case::default() };
    case.intent = Some(Intent { started: UnixTime::default(), step: Step::PowerOff });
    case.desired.tearing_down = true;
    case.expect(act(Action::Resume), Reason::Resuming);
}

#[test]
fn a_failed_action_is_left_alone_for_a_while() {
    let mut case = Case { power: PowerState::On, ..Case::default() };
    case.failures.insert(ActionKind::PowerOff, Duration::from_secs(3));
    case.expect(Verdict::Wait(Duration::from_secs(3)), Reason::LastAttemptFailed);
}

fn any_case() -> impl Strategy<Value = Case> {
    let desired = (any::<[bool; 6]>(), 0..3_u8, any::<[bool; 3]>()).prop_map(|(flags, acceptance, ids)| Desired {
        tearing_down: flags[0],
        cordoned: flags[1],
        prefers_on: flags[2],
        cluster_talos_version: if flags[3] { "1.13.0".into() } else { String::new() },
        install_event_id: u64::from(flags[4]),
        wipe_id: if flags[5] { "w".into() } else { String::new() },
        requested_reboot_id: if ids[0] { "r".into() } else { String::new() },
        power_off_request_id: if ids[1] { "p".into() } else { String::new() },
        acceptance: [Acceptance::Pending, Acceptance::Accepted, Acceptance::Rejected][usize::from(acceptance)],
        ..Desired::default()
    });
    (desired, any::<[bool; 8]>(), 0..3_u8, 0..1_200_u64).prop_map(|(desired, flags, power, since)| {
        let mut case = Case { desired, ..Case::default() };
        case.recorded.bmc = flags[0].then(|| bmc(flags[1]));
        case.recorded.wipe.initial_wipe_done = flags[2];
        case.recorded.wipe.wipe_id = if flags[3] { "w".into() } else { String::new() };
        case.agent = flags[4];
        case.confirmed = flags[5];
        case.finalizers_missing = flags[6];
        case.since_power_action = flags[7].then_some(Duration::from_secs(since));
        case.power = [PowerState::Unknown, PowerState::Off, PowerState::On][usize::from(power)];
        case
    })
}

#[test]
fn a_provider_that_just_started_waits_for_omnis_word_before_it_acts() {
    let due = Duration::from_secs(7);
    let mut case = Case { confirmed: false, first_word_due: due, ..Case::default() };
    case.desired.prefers_on = true;
    case.expect(Verdict::Wait(due), Reason::StaleView);
    case.intent = Some(Intent { started: UnixTime::default(), step: Step::PowerOff });
    case.expect(Verdict::Wait(due), Reason::StaleView);
    case.intent = None;
    case.first_word_due = Duration::ZERO;
    case.expect(power_on(true), Reason::PrefersOn);
}

proptest! {
    #[test]
    fn old_word_never_wipes_never_turns_off_never_lets_go(case in any_case()) {
        let outcome = case.plan();
        let final_act = match outcome.verdict {
            Verdict::Act(action) => {
                matches!(action, Action::Wipe | Action::PowerOff | Action::Reboot { .. } | Action::Release)
            }
            _ => false,
        };
        prop_assert!(case.confirmed || !final_act);
    }

    #[test]
    fn a_machine_that_is_not_accepted_is_never_wiped_or_powered(case in any_case()) {
        let outcome = case.plan();
        if (case.desired.acceptance != Acceptance::Accepted || case.desired.cordoned) && !case.desired.tearing_down {
            prop_assert!(matches!(outcome.verdict, Verdict::Settled | Verdict::Act(Action::AddFinalizers)));
        }
    }

    #[test]
    fn a_wipe_is_only_for_a_machine_that_needs_one_and_answers(case in any_case()) {
        if case.plan().verdict == Verdict::Act(Action::Wipe) {
            prop_assert!(case.agent && crate::machine::requires_wipe(Some(&case.desired), &case.recorded));
        }
    }

    #[test]
    fn power_only_changes_against_what_was_observed(case in any_case()) {
        match case.plan().verdict {
            Verdict::Act(Action::PowerOn { .. }) => prop_assert_eq!(case.power, PowerState::Off),
            Verdict::Act(Action::PowerOff | Action::Reboot { .. }) => prop_assert_eq!(case.power, PowerState::On),
            _ => {}
        }
    }
}
