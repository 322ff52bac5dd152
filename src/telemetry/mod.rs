//! Where log lines go, and what is counted instead of logged.
//!
//! An edge, because it owns the process' log output.

pub mod counters;
pub mod limit;
pub mod pulse;

use std::io::IsTerminal;

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

pub use counters::Counters;
pub use limit::Limit;
pub use pulse::Pulse;

/// What a line on stderr looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For a person, coloured when stderr is a terminal.
    Human,
    /// One JSON object per line, for a collector.
    Json,
}

impl Style {
    /// As the Go provider has it: for a person with `--debug`, JSON otherwise. A terminal gets the human form, too.
    ///
    /// Source: contract of the bare-metal provider, section 1.2, `--debug`.
    pub fn choose(debug: bool) -> Self {
        if debug || std::io::stderr().is_terminal() { Self::Human } else { Self::Json }
    }
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// To stderr, whatever else there is: for commands that a person or a container runs.
    Stderr(Style),
    /// To the journal's socket when someone listens there, else to stderr: for the appliance's services.
    JournalOr(Style),
}

/// Levels by syslog's names, as init writes them, too; the crate would call an info a notice.
const PRIORITIES: PriorityMappings = PriorityMappings {
    error: Priority::Error,
    warn: Priority::Warning,
    info: Priority::Informational,
    debug: Priority::Debug,
    trace: Priority::Debug,
};

/// The process logs already.
#[derive(Debug, thiserror::Error)]
#[error("logging is set up already")]
pub struct AlreadySet(#[source] TryInitError);

/// Begins to log: at level info, or at debug. Other crates' lines are kept one level quieter.
///
/// `identifier` is the program's name in the journal.
///
/// # Errors
///
/// [`AlreadySet`] the second time.
pub fn init(output: Output, debug: bool, identifier: &str) -> Result<(), AlreadySet> {
    let (ours, others) =
        if debug { (LevelFilter::DEBUG, LevelFilter::INFO) } else { (LevelFilter::INFO, LevelFilter::WARN) };
    let filter = Targets::new().with_default(others).with_target(env!("CARGO_PKG_NAME"), ours);
    let sink = match output {
        Output::Stderr(style) => stderr(style),
        Output::JournalOr(style) => match tracing_journald::layer() {
            // Plain field names: the journal's own fields are in capitals without a prefix as well.
            Ok(journal) => journal
                .with_field_prefix(None)
                .with_priority_mappings(PRIORITIES)
                .with_syslog_identifier(identifier.to_owned())
                .boxed(),
            Err(_nobody_listens) => stderr(style),
        },
    };
    tracing_subscriber::registry().with(sink.with_filter(filter)).try_init().map_err(AlreadySet)
}

fn stderr(style: Style) -> Box<dyn Layer<Registry> + Send + Sync> {
    let base = fmt::layer().with_writer(std::io::stderr);
    match style {
        Style::Human => base.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Style::Json => base.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_for_people() {
        assert_eq!(Style::choose(true), Style::Human);
    }
}
