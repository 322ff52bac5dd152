//! The verdict of a plan: settled, act or wait, with the reason and the line that decided.

use std::panic::Location;
use std::time::Duration;

use super::{Action, Reason};

/// What a plan comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What is to be done now.
    pub verdict: Verdict,
    /// Why. The same words are the log line, the counter and the text on the page.
    pub reason: Reason,
    /// The line of the plan that decided.
    pub decided_at: &'static Location<'static>,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing, until something changes.
    Settled,
    /// One side effect, after which the plan is asked again.
    Act(Action),
    /// Nothing yet: ask again after this long, or when something changes.
    Wait(Duration),
}

impl Outcome {
    /// Nothing to do until something changes.
    #[track_caller]
    pub fn settled(reason: Reason) -> Self {
        Self { verdict: Verdict::Settled, reason, decided_at: Location::caller() }
    }

    /// Do `action` now.
    #[track_caller]
    pub fn act(action: Action, reason: Reason) -> Self {
        Self { verdict: Verdict::Act(action), reason, decided_at: Location::caller() }
    }

    /// Ask again after `retry_in`.
    #[track_caller]
    pub fn wait(reason: Reason, retry_in: Duration) -> Self {
        Self { verdict: Verdict::Wait(retry_in), reason, decided_at: Location::caller() }
    }
}
