//! [`Pulse`]: whether a loop still turns.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::time::Uptime;

/// How often a loop shows that it turns.
pub const BEAT: Duration = Duration::from_secs(2);

/// The moment when a loop last showed that it turns. Clones share it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A loop that begins at `now`.
    pub fn new(now: Uptime) -> Self {
        Self(Arc::new(AtomicU64::new(millis(now))))
    }

    /// The loop turns at `now`.
    pub fn beat(&self, now: Uptime) {
        self.0.store(millis(now), Ordering::Relaxed);
    }

    /// How long ago it last did.
    pub fn silence(&self, now: Uptime) -> Duration {
        Duration::from_millis(millis(now).saturating_sub(self.0.load(Ordering::Relaxed)))
    }

    /// Runs `work` to its end and beats every [`BEAT`] in the same task: as long as the runtime turns this task and `work`
    /// does not block in it. A loop that blocks, or a runtime that is stuck, falls silent.
    pub async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut tick = tokio::time::interval(BEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel-safe: the work is pinned outside and goes on, a tick is only waited for.
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = tick.tick() => self.beat(Uptime::now()),
            }
        }
    }
}

fn millis(at: Uptime) -> u64 {
    u64::try_from(at.as_duration().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_time_since_the_last_beat() {
        let pulse = Pulse::new(Uptime::from_secs(10));
        assert_eq!(pulse.silence(Uptime::from_secs(13)), Duration::from_secs(3));
        pulse.clone().beat(Uptime::from_secs(12));
        assert_eq!(pulse.silence(Uptime::from_secs(13)), Duration::from_secs(1));
        assert_eq!(pulse.silence(Uptime::from_secs(11)), Duration::ZERO);
    }

    #[tokio::test]
    async fn work_that_waits_beats_and_ends() {
        let old = Uptime::now() - Duration::from_secs(60);
        let pulse = Pulse::new(old);
        let (go, gone) = tokio::sync::oneshot::channel();
        let watched = pulse.clone();
        let task = tokio::spawn(async move { watched.around(gone).await });
        while pulse.silence(Uptime::now()) > Duration::from_secs(30) {
            tokio::task::yield_now().await;
        }
        go.send(7).expect("it waits");
        assert_eq!(task.await.expect("no panic"), Ok(7));
    }
}
