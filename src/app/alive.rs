//! Tells the supervisor that this process does its work: `READY=1`, `WATCHDOG=1`, `STOPPING=1` (sd_notify(3)).
//!
//! PID 1 of the appliance listens, and so does systemd. Where nobody does, nothing is said. A process is well while every
//! loop of it turns; a bare timer would go on in a process whose work hangs.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::telemetry::Pulse;
use crate::telemetry::pulse::BEAT;
use crate::time::Uptime;

/// A loop that has not turned for so long hangs.
const SILENCE: Duration = Duration::from_secs(BEAT.as_secs() * 5);
/// How often the supervisor is told where it does not say how often it wants to be.
const PACE: Duration = Duration::from_secs(10);

/// A loop by its name, and when it last turned.
pub(super) type Watched = (&'static str, Pulse);

/// Whether the process reaches what it is for, as the provider Omni; `None` where there is nothing to reach.
pub(super) type Reaches = watch::Receiver<Option<bool>>;

/// Says that the process is ready and, until `cancel`, that it is well and whether it reaches what it is for. `status` is a
/// line for people.
pub(super) async fn tell(watched: Vec<Watched>, status: String, mut reaches: Reaches, cancel: CancellationToken) {
    let Some(path) = config::variable("NOTIFY_SOCKET").map(PathBuf::from) else { return cancel.cancelled().await };
    let Ok(socket) = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) else {
        return cancel.cancelled().await;
    };
    let say = |text: &str| {
        // A supervisor that does not listen now will be told again.
        if let Err(error) = socket.send_to(text.as_bytes(), &path) {
            tracing::debug!(%error, "the supervisor can't be told");
        }
    };
    let wanted = config::variable("WATCHDOG_USEC").and_then(|text| text.to_str()?.parse().ok());
    // Twice within the time that is allowed, and once more.
    let pace = wanted.map_or(PACE, |micros| Duration::from_micros(micros) / 3);
    say(&format!("READY=1\nWATCHDOG=1\nSTATUS={status}"));
    loop {
        // Said again and again: who listens may have been started anew.
        if let Some(reached) = *reaches.borrow_and_update() {
            say(&format!("X_PILOTLIGHT_REACHES={}", u8::from(reached)));
        }
        // Cancel-safe: all only wait. What changed is read at the next turn.
        tokio::select! {
            () = cancel.cancelled() => break,
            Ok(()) = reaches.changed() => continue,
            () = tokio::time::sleep(pace) => {}
        }
        match hanging(&watched, Uptime::now()) {
            None => say("WATCHDOG=1"),
            Some(name) => {
                tracing::error!(loop_name = name, "a loop hangs");
                say(&format!("STATUS={name} hangs"));
            }
        }
    }
    say("STOPPING=1");
}

/// Says why this process ends, for who asks the supervisor how it is.
pub(super) fn last_words(error: &anyhow::Error) {
    let Some(path) = config::variable("NOTIFY_SOCKET").map(PathBuf::from) else { return };
    let line: String = format!("{error:#}").chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
    let told = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(format!("STATUS={line}").as_bytes(), path)
    });
    if let Err(error) = told {
        tracing::debug!(%error, "the supervisor can't be told");
    }
}

/// The first loop that does not turn any more.
fn hanging(watched: &[Watched], now: Uptime) -> Option<&'static str> {
    watched.iter().find(|(_, pulse)| pulse.silence(now) > SILENCE).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_hangs_is_a_process_that_hangs() {
        let (now, late) = (Uptime::from_secs(100), Uptime::from_secs(100) + SILENCE + BEAT);
        let watched = [("one", Pulse::new(now)), ("two", Pulse::new(now))];
        assert_eq!(hanging(&watched, now + BEAT), None);
        watched[0].1.beat(late);
        assert_eq!(hanging(&watched, late), Some("two"));
    }
}
