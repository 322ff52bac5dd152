//! The real GRUB runs `board/grub.cfg` over prepared disks and must boot, and count, what `slots::decide` says.
//!
//! GRUB's own emulator has the script engine, the environment blocks and the disk access of the real one, but no
//! `linux` command; ours in its place says what it was given and whether it loads.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pilotlight::slots::{
    Booted, COMMITS, Choice, Commit, Copy, Decision, Hand, Records, SECTOR, Slot, TRIES_AT, Target, Try, Version, Why,
    decide, partition,
};
use pilotlight::supervise::disk::Origin;

use super::peers;
use super::power_cuts::Dice;

/// The first sector of the `state` partition.
const STATE: u64 = 8192;

const LAYOUT: &str = "label: gpt\nstart=2048,size=2048\nsize=4096\nsize=2048\nsize=2048\nsize=2048\nsize=2048\n";

struct Case {
    sectors: [[u8; SECTOR]; 4],
    loads: [bool; 3],
}

impl Case {
    fn records(&self) -> Records {
        let [c1, c2, t1, t2] = &self.sectors;
        Records::decode([c1, c2], [t1, t2])
    }

    fn loads(&self, target: Target) -> bool {
        self.loads[usize::try_from(partition_of(target) - 4).expect("4 to 6")]
    }
}

fn partition_of(target: Target) -> u32 {
    target.slot().map_or(6, Slot::partition)
}

/// The partition that was loaded, and the words for the kernel.
type Loaded = (u32, Vec<String>);

/// A disk and what GRUB needs beside it.
struct Bench {
    dir: tempfile::TempDir,
    script: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = dir.path().join("disk.img");
        fs::File::create(&disk).and_then(|file| file.set_len(16 << 20)).expect("a disk");
        let mut sfdisk =
            Command::new("sfdisk").arg("-q").arg(&disk).stdin(Stdio::piped()).spawn().expect("sfdisk starts");
        std::io::Write::write_all(&mut sfdisk.stdin.take().expect("its input"), LAYOUT.as_bytes()).expect("the layout");
        assert!(sfdisk.wait().expect("sfdisk ends").success());
        fs::write(dir.path().join("device.map"), format!("(hd0) {}\n", disk.display())).expect("the device map");
        // GRUB's emulator has commands of these names since 2.12, and takes them before functions.
        let mut script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("board/grub.cfg")).unwrap();
        for (command, function) in [("if linux ", "if take_kernel "), ("if initrd ", "if take_initramfs ")] {
            assert_eq!(script.matches(command).count(), 1);
            script = script.replace(command, function);
        }
        let path = dir.path().join("board.cfg");
        fs::write(&path, script).expect("the script");
        Self { dir, script: path }
    }

    /// Boots a disk; returns what was loaded, if anything, and the try records afterwards.
    fn boot(&self, case: &Case) -> (Option<Loaded>, [Copy<Try>; 2]) {
        let disk =
            fs::OpenOptions::new().read(true).write(true).open(self.dir.path().join("disk.img")).expect("the disk");
        let state = partition(&case.sectors[0], &case.sectors[2]);
        disk.write_all_at(&state, STATE * SECTOR as u64).expect("the state partition");
        for (sector, octets) in COMMITS.iter().chain(&TRIES_AT).zip(&case.sectors) {
            disk.write_all_at(octets, (STATE + sector) * SECTOR as u64).expect("a record");
        }
        let loading: String =
            (0..3u8).filter(|at| case.loads[usize::from(*at)]).map(|at| char::from(b'4' + at)).collect();
        let harness = format!(
            "set patience=0\n\
             function take_kernel {{\n  if regexp 'gpt[{loading}x]' \"$1\"; then\n    echo \"LOADS $1\"\n    \
             for word in $*; do echo \"WORD $word\"; done\n    true\n  else\n    false\n  fi\n}}\n\
             function take_initramfs {{ echo BOOTS; exit; }}\n\
             set prefix=(hd0,gpt2)/grub\n\
             source (host){}\n",
            self.script.display()
        );
        fs::write(self.dir.path().join("grub.cfg"), harness).expect("the harness");
        let mut grub = Command::new("timeout")
            .args(["60", "grub-emu", "-d"])
            .arg(self.dir.path())
            .arg("-m")
            .arg(self.dir.path().join("device.map"))
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("grub-emu starts");
        let mut text = String::new();
        for line in BufReader::new(grub.stdout.take().expect("a pipe")).split(b'\n').map_while(Result::ok) {
            text.push_str(&String::from_utf8_lossy(&line));
            text.push('\n');
            if text.contains("nothing on this disk can be booted") {
                // It waits ten seconds for a person to read that, and begins anew.
                kill(Pid::from_raw(grub.id() as i32), Signal::SIGTERM).expect("it is ours");
                break;
            }
        }
        grub.wait().expect("it ends");
        let told = |prefix: &'static str| {
            text.lines().filter_map(move |line| line.trim().strip_prefix(prefix).map(str::to_owned))
        };
        let loaded = told("LOADS (hd0,gpt").next().and_then(|rest| rest.split(')').next()?.parse().ok());
        let words = told("WORD ").collect();
        assert!(loaded.is_none() || text.contains("BOOTS"), "{text}");
        let read = |sector| {
            let mut octets = [0; SECTOR];
            disk.read_exact_at(&mut octets, (STATE + sector) * SECTOR as u64).expect("a record");
            Try::decode(&octets)
        };
        (loaded.map(|part| (part, words)), TRIES_AT.map(read))
    }
}

/// What `save_env` makes of a block whose variable `name` is set; nothing when it refuses. It goes by lines, `load_env` by
/// equals signs, so that they do not see the same in a damaged block. Source: `grub_envblk_set` of GRUB 2.06.
fn set(block: &[u8], name: &str, value: &str) -> Option<Vec<u8>> {
    let free = block.len() - block.iter().rev().take_while(|octet| **octet == b'#').count();
    (block[..free].last() == Some(&b'\n')).then_some(())?;
    // Where the line ends that begins here, escaped octets apart.
    let line_end = |mut at: usize| {
        while *block.get(at)? != b'\n' {
            at += if block[at] == b'\\' { 2 } else { 1 };
        }
        Some(at)
    };
    let start = format!("{name}=");
    let mut at = 25;
    let (from, to, text) = loop {
        if at >= free {
            break (free, free, format!("{start}{value}\n"));
        }
        if block[at..].starts_with(start.as_bytes()) {
            break (at + start.len(), line_end(at + start.len())?, value.to_owned());
        }
        at = line_end(at)? + 1;
    };
    let mut changed = [&block[..from], text.as_bytes(), &block[to..free]].concat();
    (changed.len() <= block.len()).then(|| {
        changed.resize(block.len(), b'#');
        changed
    })
}

/// Whether what GRUB saves into this copy of the try record is what it reads there afterwards.
fn reads_back(sector: &[u8; SECTOR]) -> bool {
    let written = Try { count: 55, of: Some(77), tries: 2, boots: 6, last: Some(Slot::B), ..Try::first(String::new()) };
    let values = [("c", "55"), ("q", "77"), ("t", "2"), ("k", "6"), ("l", "b"), ("stamp", "2026"), ("d", "55")];
    let saved = values.iter().try_fold(sector.to_vec(), |block, (name, value)| set(&block, name, value));
    saved.is_some_and(|block| plain(Try::decode(&block)) == Copy::Valid(written))
}

/// What `decide` leaves of the try records, without salt and stamp, which it does not know.
fn expected(records: &Records, decision: &Decision) -> [Copy<Try>; 2] {
    let mut tries = records.tries.clone();
    for (copy, record) in &decision.writes {
        tries[*copy] = Copy::Valid(record.clone());
    }
    tries.map(plain)
}

fn plain(copy: Copy<Try>) -> Copy<Try> {
    match copy {
        Copy::Valid(record) => Copy::Valid(Try { salt: String::new(), stamp: String::new(), ..record }),
        other => other,
    }
}

fn check(bench: &Bench, case: &Case) {
    let records = case.records();
    let [_, _, try1, try2] = &case.sectors;
    let takes = [try1, try2].map(reads_back);
    let decision = decide(&records, Hand::Away, takes);
    let choice = decision.boots(|target| case.loads(target));
    let (loaded, tries) = bench.boot(case);
    let shown = format!("{records:?} loads {:?}", case.loads);
    let said = loaded.as_ref().map(|(_, words)| words.join(" ")).unwrap_or_default();
    let booted = Booted::parse(&said);
    let found = booted.as_ref().map(|booted| Choice { target: booted.target, why: booted.why, tries: booted.tries });
    assert_eq!(found, choice, "{shown}");
    assert_eq!(loaded.map(|(part, _)| part), choice.map(|choice| partition_of(choice.target)), "{shown}");
    let expected = expected(&records, &decision);
    for (copy, found) in tries.clone().map(plain).into_iter().enumerate().filter(|(copy, _)| takes[*copy]) {
        assert_eq!(found, expected[copy], "copy {copy} of {shown}");
    }
    // The stamp is told exactly when a record has it: by it the box knows its own disk.
    if booted.is_some() {
        let origin = Origin::parse(&said);
        assert!(origin.part.is_some(), "{shown}");
        let stamps = tries.iter().map(|copy| copy.valid().map(|record| record.stamp.clone()));
        match origin.stamp {
            Some(stamp) => assert!(stamps.flatten().any(|kept| kept == stamp), "{shown}: no record has {stamp}"),
            // One that GRUB does not trust may have it all the same.
            None => assert!(
                stamps.zip(takes).all(|(stamp, takes)| !takes || stamp.is_none_or(|stamp| stamp.is_empty())),
                "{shown}"
            ),
        }
    }
}

const GARBAGE: [u8; SECTOR] = [0; SECTOR];

/// The whole table: each commit record × each try record × what loads.
fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in 0..4096u32 {
        let bit = |at: u32| bits >> at & 1 == 1;
        let slot = if bit(0) { Slot::B } else { Slot::A };
        let commit = Commit {
            sequence: 7,
            slot,
            pending: bit(1),
            mark: Some(5),
            peer_good: bit(2),
            want_recovery: bit(3),
            ..Commit::first(Version::parse("1.2.3"))
        };
        let tries = u8::try_from(bits >> 4 & 3).expect("two bits");
        let boots = u8::try_from(bits >> 6 & 7).expect("three bits");
        let record = Try { count: 98, of: Some(5), tries, boots, last: Some(slot), ..Try::first("feed".into()) };
        let [commit, record] = [commit.encode(), record.encode()];
        cases.push(Case { sectors: [commit, commit, record, record], loads: [bit(9), bit(10), bit(11)] });
    }
    cases
}

/// Copies that differ, are old, torn or garbled.
fn damaged(count: u64) -> Vec<Case> {
    let mut dice = Dice(0x5eed_cafe_f00d_1234);
    let mut cases = Vec::new();
    for _ in 0..count {
        let commit = |dice: &mut Dice| {
            let commit = Commit {
                sequence: [1, 9, 10, 99, 100, Commit::LAST][dice.below(6)],
                slot: if dice.below(2) == 0 { Slot::B } else { Slot::A },
                pending: dice.below(2) == 0,
                mark: [None, Some(5), Some(6)][dice.below(3)],
                peer_good: dice.below(2) == 0,
                want_recovery: dice.below(4) == 0,
                ..Commit::first(Version::parse("1.2.3-rc.1"))
            };
            garbled(dice, commit.encode())
        };
        let (c1, c2) = (commit(&mut dice), commit(&mut dice));
        let record = |dice: &mut Dice| {
            let small = |dice: &mut Dice, end| u8::try_from(dice.below(end)).expect("small");
            let record = Try {
                count: small(dice, 100),
                of: [None, Some(5), Some(6)][usize::from(small(dice, 3))],
                tries: small(dice, 4),
                boots: small(dice, 8),
                last: [None, Some(Slot::A), Some(Slot::B)][usize::from(small(dice, 3))],
                ..Try::first("feed".into())
            };
            garbled(dice, record.encode())
        };
        let (t1, t2) = (record(&mut dice), record(&mut dice));
        let loads = [(); 3].map(|()| dice.below(4) != 0);
        cases.push(Case { sectors: [c1, c2, t1, t2], loads });
    }
    cases
}

fn garbled(dice: &mut Dice, mut sector: [u8; SECTOR]) -> [u8; SECTOR] {
    match dice.below(8) {
        0 => GARBAGE,
        1 => [0xff; SECTOR],
        2 => {
            // Torn within the sector, which no disk should do.
            let from = dice.below(120);
            sector[from..].fill(b'#');
            sector
        }
        3 | 4 => {
            let at = 25 + dice.below(100);
            sector[at] = b"0519ab=\n\\#xz"[dice.below(12)];
            sector
        }
        _ => sector,
    }
}

fn run(cases: &[Case]) {
    if !peers::require("grub-emu", "grub-emu") || !peers::require("sfdisk", "fdisk") {
        return;
    }
    std::thread::scope(|scope| {
        for part in cases.chunks(cases.len().div_ceil(4)) {
            scope.spawn(move || {
                let bench = Bench::new();
                part.iter().for_each(|case| check(&bench, case));
            });
        }
    });
    peers::say(&format!("slots: GRUB and the rule agree on {} disks", cases.len()));
}

fn soak() -> bool {
    std::env::var_os("PILOTLIGHT_SOAK").is_some_and(|value| value == "1")
}

#[test]
fn grub_boots_what_the_rule_says() {
    // A prime step meets every field in every value.
    run(&table().into_iter().step_by(if soak() { 1 } else { 23 }).collect::<Vec<_>>());
}

#[test]
fn grub_and_the_rule_read_damaged_records_alike() {
    run(&damaged(if soak() { 2000 } else { 200 }));
}

#[test]
fn five_boots_of_a_crashing_update_are_three_tries_and_a_fallback() {
    if !peers::require("grub-emu", "grub-emu") || !peers::require("sfdisk", "fdisk") {
        return;
    }
    let bench = Bench::new();
    let commit = Commit { pending: true, mark: Some(1), ..Commit::first(None) };
    let [commit, record] = [commit.encode(), Try::first("feed".into()).encode()];
    let mut case = Case { sectors: [commit, commit, record, record], loads: [true; 3] };
    let mut told = Vec::new();
    let mut stamps = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let (loaded, tries) = bench.boot(&case);
        let (_, words) = loaded.expect("it boots");
        let words = words.join(" ");
        let booted = Booted::parse(&words).expect("GRUB says what");
        told.push((booted.target, booted.why, booted.tries));
        stamps.insert(Origin::parse(&words).stamp.expect("the disk takes it"));
        for (sector, copy) in case.sectors[2..].iter_mut().zip(&tries) {
            *sector = copy.valid().expect("GRUB wrote it").encode();
        }
    }
    let (a, b) = (Target::Slot(Slot::A), Target::Slot(Slot::B));
    let tried = [1, 2, 3].map(|tries| (b, Why::Pending, tries));
    assert_eq!(told, [tried.as_slice(), &[(a, Why::Fallback, 3); 2]].concat());
    assert_eq!(stamps.len(), 5, "no two boots have one stamp");
}
