//! Power cuts, by the block writes of the real thing: a disk that remembers them is under a machine in which the box's own
//! code stores slot records, streams updates, makes and grows the data partition, commits, saves and forgets. Every state
//! that a cut may have left is then booted as far as the disk is concerned, by the real `init prepare` on the real kernel's
//! ext4, and what is there is compared with what had been acknowledged.
//!
//! With flushes honoured nothing acknowledged may be lost; with flushes ignored, as by sticks that lie, the box must come up
//! all the same, and what became of the rest is counted. Where sectors tell all, thousands of states are looked at; CI boots
//! from some of the others, `PILOTLIGHT_SOAK=1` from a thousand, and has the whole image serve its page on a few:
//! `PILOTLIGHT_SOAK=1 cargo test --test it cuts:: -- --nocapture`.

pub mod disk;
mod guest;
mod machine;
pub mod nbd;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use pilotlight::slots::device::load;
use pilotlight::slots::{COMMITS, Choice, Commit, Hand, Records, Slot, TRIES_AT, decide};
use pilotlight::wire::gpt::{Header, Partition, Table};

use self::disk::{Pages, Recording, SECTOR, State};
use self::guest::{Found, OLD_FILES, OLD_TEXT, STATE, UPDATES, image, life, old_file};
use self::machine::Machine;
use crate::appliance::rack::{Bus, Firmware, Rack, Setup};
use crate::peers;
use crate::power_cuts::{Dice, Recorder};

/// Larger than the image, so that the first boot and the growth have room to take.
const OCTETS: u64 = 960 << 20;
const SLOT_A: u32 = 4;
const DATA: u32 = 8;

/// How a box fares after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It serves its page, and all that was acknowledged is there.
    Kept,
    /// It serves its page; what was acknowledged is not all there.
    Lost,
    /// It serves its page, keeps nothing and says so; at the next boot the file system is repaired and all is well.
    Heals,
    /// It serves its page from memory, and says so.
    Memory,
    /// The system on trial is torn: three tries at most, then the committed one.
    Rollback,
    /// It does not come up.
    Dead,
}

/// One line of the table.
struct Row {
    name: &'static str,
    honoured: bool,
    states: usize,
    outcomes: BTreeMap<Outcome, usize>,
    /// The first few that are not kept, in words.
    examples: Vec<String>,
}

impl Row {
    fn new(name: &'static str, honoured: bool) -> Self {
        Self { name, honoured, states: 0, outcomes: BTreeMap::new(), examples: Vec::new() }
    }

    fn count(&mut self, outcome: Outcome, words: impl FnOnce() -> String) {
        self.states += 1;
        *self.outcomes.entry(outcome).or_default() += 1;
        if outcome != Outcome::Kept && self.examples.len() < 3 {
            self.examples.push(words());
        }
    }

    fn of(&self, outcome: Outcome) -> usize {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    fn line(&self) -> String {
        format!(
            "{:<26} {:>8} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>8} {:>5}",
            self.name,
            if self.honoured { "honoured" } else { "ignored" },
            self.states,
            self.states - self.of(Outcome::Dead),
            self.of(Outcome::Kept),
            self.of(Outcome::Lost),
            self.of(Outcome::Heals),
            self.of(Outcome::Memory),
            self.of(Outcome::Rollback),
            self.of(Outcome::Dead)
        )
    }
}

fn soak() -> bool {
    std::env::var_os("PILOTLIGHT_SOAK").is_some_and(|value| value == "1")
}

/// The partitions as GRUB reads them: by the primary table, whatever its sums say.
fn partitions(pages: &Pages) -> Option<Vec<Partition>> {
    let header = Header::decode(&pages.octets(SECTOR as u64, SECTOR), 1).ok()?;
    let entries = pages.octets(header.entries * SECTOR as u64, header.table_octets());
    Some(Table { header, entries }.partitions())
}

/// What is known of the disk that the image was written to.
struct Site {
    image: Pages,
    partitions: Vec<Partition>,
}

impl Site {
    fn place(&self, number: u32) -> (u64, u64) {
        let one = self.partitions.iter().find(|partition| partition.number == number).expect("the image has it");
        (one.first * SECTOR as u64, (one.last + 1 - one.first) * SECTOR as u64)
    }

    /// The slot records' sectors.
    fn sectors(&self, pages: &Pages) -> Recorder<SECTOR> {
        let (start, _) = self.place(STATE);
        let read = |sector: u64| {
            let mut octets = [0; SECTOR];
            pages.read(start + sector * SECTOR as u64, &mut octets);
            (sector, octets)
        };
        Recorder { now: COMMITS.into_iter().chain(TRIES_AT).map(read).collect(), log: Vec::new() }
    }

    fn records(&self, pages: &Pages) -> Records {
        load(&mut self.sectors(pages))
    }

    /// What GRUB would boot, one after the other as long as it does not load; nothing when it would not get that far.
    fn boots(&self, pages: &Pages) -> Vec<Choice> {
        let found = partitions(pages).unwrap_or_default();
        let same =
            |wanted: &Partition| found.iter().any(|one| one.number == wanted.number && one.first == wanted.first);
        let intact = |number| {
            let (start, length) = self.place(number);
            pages.same(&self.image, start, length)
        };
        if self.partitions.iter().all(same) && intact(SLOT_A) && intact(2) && pages.same(&self.image, 0, SECTOR as u64)
        {
            decide(&self.records(pages), Hand::Away, [true, true]).order
        } else {
            Vec::new()
        }
    }

    /// The image's disk, with a file system that people have used in its data partition.
    fn used(&self) -> Pages {
        let dir = tempfile::tempdir().unwrap();
        let (content, made) = (dir.path().join("content"), dir.path().join("made"));
        fs::create_dir(&content).unwrap();
        (0..OLD_FILES).map(old_file).for_each(|(name, text)| fs::write(content.join(name), text).unwrap());
        let (start, length) = self.place(DATA);
        fs::File::create(&made).unwrap().set_len(length).unwrap();
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "pilotlight-data", "-m", "1", "-E", "lazy_itable_init=1", "-d"]);
        mke2fs.arg(&content).arg(&made).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        assert!(mke2fs.status().unwrap().success());
        let mut pages = self.image.clone();
        pages.put(start, &Pages::of_file(&made));
        pages
    }
}

/// Judges one state by what a boot from it found.
fn judge(site: &Site, what: &str, state: &State, found: &Found, after: &Pages) -> Outcome {
    if site.boots(&state.pages).is_empty() || found.trouble.is_some() || found.mounted.is_empty() {
        return Outcome::Dead;
    }
    if found.mounted != "ext4" {
        return Outcome::Memory;
    }
    let (start, _) = site.place(DATA);
    let right = match what {
        // Whoever asked for a reset has nothing of the old on the disk, not even where no file is.
        "reset" if found.steps == [1] => !after.holds(start, OCTETS - start, OLD_TEXT),
        // The next boot takes up the growth.
        "growth" => found.octets > 500 << 20,
        _ => true,
    };
    let within = |step: &u32| match what {
        // The files were there before anything began.
        "growth" => *step == 1,
        _ => (state.acknowledged..=state.begun).contains(step),
    };
    if right && found.mixed.is_none() && !found.steps.is_empty() && found.steps.iter().all(within) {
        Outcome::Kept
    } else {
        Outcome::Lost
    }
}

/// How many states of a procedure are looked at, with flushes honoured and with flushes ignored.
type Most = [usize; 2];

/// The rows, and the last state of each procedure with flushes honoured.
struct Report {
    rows: Vec<Row>,
    samples: Vec<(&'static str, Pages)>,
}

impl Report {
    fn add(
        &mut self,
        name: &'static str,
        recording: &Recording,
        most: Most,
        judge: &mut dyn FnMut(&State) -> (Outcome, String),
    ) {
        let mut dice = Dice(0x1dea_5eed_0c0f_fee5);
        for (honoured, most) in [true, false].into_iter().zip(most) {
            let mut row = Row::new(name, honoured);
            let mut last = None;
            for state in recording.states(honoured, most, &mut dice) {
                let (outcome, words) = judge(&state);
                let steps = (state.acknowledged, state.begun);
                row.count(outcome, || format!("{name}, honoured {honoured}, steps {steps:?}: {outcome:?}: {words}"));
                last = Some(state.pages);
            }
            self.samples.extend(last.filter(|_| honoured).map(|pages| (name, pages)));
            peers::say(&row.line());
            self.rows.push(row);
        }
    }

    /// The rows of what a boot has to look at.
    fn boot(
        &mut self,
        (machine, site): (&mut Machine, &Site),
        (name, what): (&'static str, &str),
        recording: &Recording,
        most: Most,
    ) {
        self.add(name, recording, most, &mut |state| {
            let found = machine.check(what, &state.pages);
            let after = machine.disk.pages();
            let first = judge(site, what, state, &found, &after);
            if first != Outcome::Dead || found.mounted != "ext4" || site.boots(&after).is_empty() {
                return (first, format!("{found:?}"));
            }
            // ext4 noticed only now that it is damaged, and takes no more writes.
            let again = machine.check(what, &after);
            let second = judge(site, what, state, &again, &machine.disk.pages());
            let outcome = if second == Outcome::Dead { Outcome::Dead } else { Outcome::Heals };
            (outcome, format!("{found:?}, then {again:?}"))
        });
    }
}

/// The rows of the slot records, which are sectors by themselves.
fn slot_rows(report: &mut Report, site: &Site, recording: &Recording, most: Most) {
    let mut stored: BTreeMap<u32, Commit> = BTreeMap::new();
    let mut played = site.sectors(&site.image);
    stored.insert(0, load(&mut played).commit().expect("the image has one").1.clone());
    life(&mut played, &mut |mark, commit| {
        if let disk::Mark::Begun(step) = mark {
            stored.insert(step, commit.clone());
        }
    });
    report.add("slot commit", recording, most, &mut |state| {
        let records = site.records(&state.pages);
        let found = records.commit().map(|(_, commit)| commit.clone());
        let one_of =
            |range: std::ops::RangeInclusive<u32>| stored.range(range).any(|(_, one)| Some(one) == found.as_ref());
        let outcome = match () {
            () if site.boots(&state.pages).is_empty() || records.tried().is_none() => Outcome::Dead,
            () if one_of(state.acknowledged..=state.begun) => Outcome::Kept,
            () if one_of(0..=state.begun) => Outcome::Lost,
            () => Outcome::Dead,
        };
        (outcome, format!("{records:?}"))
    });
}

/// The rows of slot B, while updates are written into it and put on trial.
fn update_rows(report: &mut Report, site: &Site, recording: &Recording, most: Most) {
    let (start, length) = site.place(guest::SLOT_B);
    let images: Vec<Vec<u8>> = (1..=UPDATES).map(image).collect();
    let whole = |pages: &Pages, image: &[u8]| pages.octets(start, image.len()) == image;
    report.add("update streaming", recording, most, &mut |state| {
        let pages = &state.pages;
        let head = pages.octets(start, SECTOR);
        let loads = if head == site.image.octets(start, SECTOR) {
            // What the slot held at first.
            Some(pages.same(&site.image, start, length))
        } else {
            images.iter().find(|image| image[..SECTOR] == head).map(|image| whole(pages, image))
        };
        let records = site.records(pages);
        let commit = records.commit().map(|(_, commit)| commit.clone());
        let (pending, step) = commit.as_ref().map_or((false, 0), |commit| {
            let version = commit.version(Slot::B).map(ToString::to_string).unwrap_or_default();
            (commit.pending, (1..=UPDATES).find(|step| version == format!("1.{step}.0")).unwrap_or(0))
        });
        let on_trial = pending.then(|| whole(pages, &images[step.max(1) as usize - 1]));
        let outcome = match (loads, on_trial) {
            _ if site.boots(pages).is_empty() || commit.is_none() => Outcome::Dead,
            // It does not load, and the boot goes on with slot A.
            (_, Some(false)) => Outcome::Rollback,
            _ if step < state.acknowledged => Outcome::Lost,
            // Nothing boots it by itself, but it must not look like a system either.
            (Some(false), _) => Outcome::Rollback,
            _ => Outcome::Kept,
        };
        (outcome, format!("loads whole {loads:?}, on trial whole {on_trial:?}, {commit:?}"))
    });
}

#[test]
fn a_cut_at_any_block_write_leaves_a_page_and_what_was_acknowledged() {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/image/pilotlight.img");
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(built.is_file() || !required, "{} is required (just image-dev)", built.display());
    if !built.is_file() || !machine::ready() {
        peers::say("skipped: power cuts by block writes need an image (just image-dev) and QEMU");
        return;
    }
    let image = Pages::of_file(&built);
    let site = Site { partitions: partitions(&image).expect("the image has a table"), image };
    let mut machine = Machine::start(OCTETS);
    // What the host alone can judge is cheap.
    let (sectors, boots): (Most, Most) = ([1500, 1000], if soak() { [150, 60] } else { [12, 5] });
    // One in a hundred tears the superblock in its middle, one in five hundred its first copy, too.
    let grown = if soak() { [500, 60] } else { [40, 5] };
    peers::say("power cuts by block writes  flushes states  boots   kept  older  heals memory rollback  dead");
    let mut report = Report { rows: Vec::new(), samples: Vec::new() };
    let mut recorded = Vec::new();
    let mut record = |machine: &mut Machine, what: &'static str, before: &Pages| {
        let recording = machine.record(what, before);
        recorded.push(format!("{what} {} and {}", recording.writes(), recording.flushes()));
        recording
    };

    slot_rows(&mut report, &site, &record(&mut machine, "slots", &site.image), sectors);
    update_rows(&mut report, &site, &record(&mut machine, "update", &site.image), sectors);
    let format = record(&mut machine, "format", &site.image);
    report.boot((&mut machine, &site), ("first-boot format", "format"), &format, boots);
    let growth = record(&mut machine, "growth", &site.used());
    report.boot((&mut machine, &site), ("growth", "growth"), &growth, grown);
    for (name, what, before) in [
        ("store commit", "store", format.after()),
        ("configuration save", "settings", format.after()),
        ("factory reset", "reset", growth.after()),
    ] {
        let recording = record(&mut machine, what, before);
        report.boot((&mut machine, &site), (name, what), &recording, boots);
    }
    let mut control = Report { rows: Vec::new(), samples: Vec::new() };
    let careless = record(&mut machine, "careless", format.after());
    control.boot((&mut machine, &site), ("(control: no flush)", "careless"), &careless, [boots[0], 1]);
    drop(machine);

    let rows = &report.rows;
    let total: usize = rows.iter().map(|row| row.states).sum();
    peers::say(&format!("power cuts by block writes: {total} states; writes and flushes: {}", recorded.join(", ")));
    rows.iter().flat_map(|row| &row.examples).for_each(|example| peers::say(example));

    for row in rows {
        assert_eq!(row.of(Outcome::Dead), 0, "{}: {:?}", row.name, row.examples);
        assert!(row.states >= 5, "{}: {} states", row.name, row.states);
        if row.honoured {
            assert_eq!(row.of(Outcome::Kept), row.states, "{}: {:?}", row.name, row.examples);
        }
    }
    assert!(total >= 5000, "{total}");
    let control = &control.rows[0];
    assert!(control.of(Outcome::Lost) > 0, "what is never flushed must get lost: {:?}", control.outcomes);
    if soak() {
        serves_its_page(&report.samples);
    }
}

/// The whole box, from its firmware to its page, on what some of the cuts left.
fn serves_its_page(samples: &[(&str, Pages)]) {
    let Some(rack) = Rack::new() else { return };
    for (name, pages) in samples {
        pages.save(&rack.disk(), OCTETS);
        let mut machine = rack.power_on(&Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 256 });
        let after = machine.page();
        peers::say(&format!("power cut, {name}: page after {:.1} s", after.as_secs_f64()));
    }
}
