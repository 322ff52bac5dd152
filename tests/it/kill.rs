//! kill -9 at many moments of a life: nothing is wiped twice, nothing is power-cycled twice, and the life goes on.
//!
//! CI plays six lives at once, with 36 kills at chosen events and at moments drawn from a seed. `PILOTLIGHT_SOAK=1` plays
//! forty rounds, four at once, of three machines and six kills each, 720 kills of a machine's life in all:
//! `PILOTLIGHT_SOAK=1 cargo test --test it kill:: -- --nocapture`.

use std::time::Duration;

use pilotlight::lab::machine::{Counts, Event};
use pilotlight::lab::omni::controller::Controller;
use pilotlight::lab::omni::lifecycle::OmniMachine;
use pilotlight::lab::os::Patience;
use pilotlight::time::Uptime;

use crate::site::Site;

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the life before it began, or after the last kill.
    After(Duration),
    /// So long after the `nth` line of the first machine's log that begins like this.
    On(&'static str, usize, Duration),
}

/// A wipe takes long enough to be hit.
fn patience() -> Patience {
    Patience { wipe: Duration::from_millis(400), install: Duration::from_millis(200), ..Patience::short() }
}

/// The next number of a sequence that is the same in each run (SplitMix64).
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn starting<'a>(events: &'a [Event], what: &'static str) -> impl Iterator<Item = &'a Event> {
    events.iter().filter(move |event| event.what.starts_with(what))
}

/// From when to when Omni held the machine to be ready for the wipe ID that it asked for: there must be no wipe then.
async fn ready_spans(controller: Controller, id: String) -> Vec<(Uptime, Uptime)> {
    let id = id.as_str();
    let ready = |machine: &OmniMachine| machine.status.as_ref().is_some_and(|status| status.ready_to_use);
    let mut spans = Vec::new();
    let mut wipe_id = String::new();
    loop {
        let next = controller
            .wait(id, |machine| match machine {
                Some(machine) => ready(machine).then_some(true),
                None => (!spans.is_empty()).then_some(false),
            })
            .await;
        if !next {
            return spans;
        }
        let from = Uptime::now();
        let changed = controller
            .wait(id, |machine| match machine {
                Some(machine) => (machine.wipe_id != wipe_id).then(|| Some(machine.wipe_id.clone())),
                None => Some(None),
            })
            .await;
        spans.push((from, Uptime::now()));
        let Some(new) = changed else { return spans };
        wipe_id = new;
        // What is said now is about the wipe before this one.
        controller.wait(id, |machine| machine.is_none_or(|machine| !ready(machine)).then_some(())).await;
    }
}

/// Plays the lives of `machines` machines while the provider is killed at each of `moments`, and checks them against
/// `control`, the counts of lives without a kill.
async fn disturbed(machines: u16, moments: &[Moment], control: &[Counts]) -> usize {
    let mut site = Site::with(machines, patience()).await;
    site.provider.start().await.unwrap();
    let ids = site.rack.ids();
    let begun = Uptime::now();
    let spans: Vec<_> =
        ids.iter().map(|id| tokio::spawn(ready_spans(site.omni.controller().clone(), id.clone()))).collect();
    site.live().await;
    let mut kills = Vec::new();
    for moment in moments {
        let first = site.rack.machines().next().unwrap().clone();
        let reached = async {
            match *moment {
                Moment::After(pause) => tokio::time::sleep(pause).await,
                Moment::On(what, nth, later) => {
                    first.until(|machine| starting(&machine.events(), what).count() >= nth).await;
                    tokio::time::sleep(later).await;
                }
            }
        };
        tokio::select! {
            () = reached => {}
            // The life ended sooner.
            () = site.see("every life is done", Site::is_done) => break,
        }
        let killing = Uptime::now();
        site.provider.kill().await.unwrap();
        kills.push((killing, Uptime::now()));
        site.provider.start().await.unwrap();
    }
    site.see("every life is done", Site::is_done).await;
    for (index, (machine, spans)) in site.rack.machines().zip(spans).enumerate() {
        let spans = spans.await.unwrap();
        let (counts, control, events) = (machine.counts(), control[index], machine.events());
        let told = || {
            let lines = events.iter().map(|event| format!("{:?} {}", event.at.since(begun), event.what));
            let kills: Vec<_> = kills.iter().map(|(at, _)| at.since(begun)).collect();
            format!(
                "{}\nkills {kills:?} of {moments:?}\n{counts:#?}\n{}\n{}",
                ids[index],
                lines.collect::<Vec<_>>().join("\n"),
                site.log()
            )
        };
        // A kill while the firmware fetches what it boots sends it to its disk, and then the agent is needed once more.
        let strayed = counts.boots_talos_disk - control.boots_talos_disk.min(counts.boots_talos_disk);
        assert!(strayed <= kills.len() as u64, "{}", told());
        let power = (counts.power_ons, counts.power_offs, counts.power_cycles);
        let wanted = (control.power_ons + strayed, control.power_offs + strayed, 0);
        assert_eq!(power, wanted, "{}", told());
        // The only wipe that may be done again is one that ended when nobody was left to record it.
        let unrecorded = starting(&events, "disk wiped")
            .filter(|wiped| {
                let near = |(killing, killed): &(Uptime, Uptime)| {
                    *killed >= wiped.at && killing.since(wiped.at) < Duration::from_millis(200)
                };
                kills.iter().any(near)
            })
            .count() as u64;
        assert!((2..=2 + unrecorded).contains(&counts.wipes), "{}", told());
        assert_eq!(spans.len(), 2, "{spans:?} {}", told());
        for event in starting(&events, "agent wipes") {
            let while_ready = spans.iter().any(|(from, to)| event.at >= *from && event.at <= *to);
            assert!(!while_ready, "{event:?} {spans:?} {}", told());
        }
        assert_eq!(counts.installs, 1, "{}", told());
        assert!(machine.disk().is_blank(), "{}", told());
    }
    kills.len()
}

/// What machines count in lives without a kill.
async fn undisturbed(machines: u16) -> Vec<Counts> {
    let mut site = Site::with(machines, patience()).await;
    site.provider.start().await.unwrap();
    site.live().await;
    site.done().await;
    site.rack.machines().map(|machine| machine.counts()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_life_goes_on_after_kill_9_and_nothing_is_done_twice() {
    let ms = Duration::from_millis;
    let lives: [&[Moment]; 6] = [
        // Each half of the BMC's set-up and of both wipes.
        &[
            Moment::On("agent makes", 1, ms(0)),
            Moment::On("agent wipes", 1, ms(0)),
            Moment::On("agent wipes", 2, ms(200)),
            Moment::On("disk wiped", 1, ms(3)),
            Moment::On("power off", 1, ms(0)),
            Moment::On("agent wipes", 4, ms(0)),
        ],
        // Power on, and the power cycle into the agent.
        &[
            Moment::On("power off", 1, ms(60)),
            Moment::On("next boot", 1, ms(0)),
            Moment::On("power on", 2, ms(0)),
            Moment::On("power off", 2, ms(0)),
            Moment::On("next boot", 3, ms(0)),
            Moment::On("power on", 4, ms(2)),
        ],
        &[
            Moment::On("power on", 2, ms(5)),
            Moment::On("power off", 2, ms(70)),
            Moment::On("next boot", 2, ms(100)),
            Moment::On("power on", 4, ms(20)),
            Moment::On("disk wiped", 2, ms(0)),
            Moment::On("power off", 3, ms(0)),
        ],
        &[Moment::After(ms(200)); 6],
        &[Moment::After(ms(700)); 6],
        &[Moment::After(ms(1_300)); 6],
    ];
    let control = undisturbed(1).await;
    let rounds = lives.map(|moments| disturbed(1, moments, &control));
    let kills: usize = futures_util::future::join_all(rounds).await.into_iter().sum();
    assert!(kills >= 30, "{kills} kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_sweep_of_kills() {
    if std::env::var_os("PILOTLIGHT_SOAK").is_none_or(|value| value != "1") {
        crate::peers::say("skipped: a long sweep (PILOTLIGHT_SOAK=1)");
        return;
    }
    let control = undisturbed(3).await;
    let mut seed = 2026;
    for batch in 0..10 {
        let rounds: Vec<Vec<_>> = (0..4)
            .map(|_| (0..6).map(|_| Moment::After(Duration::from_millis(next(&mut seed) % 2_500))).collect())
            .collect();
        let played = rounds.iter().map(|moments| disturbed(3, moments, &control));
        let kills: usize = futures_util::future::join_all(played).await.into_iter().sum();
        println!("batch {batch}: {kills} kills, {rounds:?}");
    }
}
