//! What to do about one machine: [`plan`], a function of a view.

mod intent;
mod outcome;
mod plan;
mod reason;
#[cfg(test)]
mod tests;

pub use intent::{Intent, RebootCause, Step};
pub use outcome::{Outcome, Verdict};
pub use plan::{Action, ActionKind, Failures, Rules, UserBmc, View, plan};
pub use reason::Reason;
