//! The half that runs in the machine: does what is recorded, and says what it finds on a disk after a cut. It writes with
//! the code that the box writes with; each step is a number, told when it is begun and when it is done.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use nix::libc::O_NONBLOCK;
use pilotlight::net::trial::Record;
use pilotlight::secret::Secret;
use pilotlight::settings::disk::{self as settings_disk, Directory, Files as _};
use pilotlight::settings::{Answers, Kept, Settings};
use pilotlight::slots::device::{Device, Sectors, load, store_commit};
use pilotlight::slots::{Booted, Commit, Needs, Version, change};
use pilotlight::store::sled_store::SledStore;
use pilotlight::store::{Batch, Store as _, Tree};
use pilotlight::sys::{block, mount};
use pilotlight::update::{Manifest, SlotDevice, Source, write as write_slot};
use serde::{Deserialize, Serialize};

use super::disk::Mark;
use crate::power_cuts::{Dice, Step, step};

/// Set in the machine alone.
pub const GUEST: &str = "PILOTLIGHT_TEST_CUTS_GUEST";
pub const DISK: &str = "/dev/vda";
const DATA: &str = "/data";
const STORE: &str = "/data/pilotlight/store";
const NETWORK: &str = "/data/pilotlight/net/network.json";
pub const STATE: u32 = 3;
pub const SLOT_B: u32 = 5;
/// What lies in the data partition that grows, or is forgotten.
pub const OLD_FILES: u32 = 40;
pub const OLD_TEXT: &str = "known before the cut ";

/// What is found after a cut, by a boot that the real `init prepare` prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The file system at /data: `ext4`, `tmpfs`, or nothing.
    pub mounted: String,
    /// What its warnings and errors say.
    pub said: Vec<String>,
    /// Up to which step each thing that was done is there.
    pub steps: Vec<u32>,
    /// What is neither before nor after any step.
    pub mixed: Option<String>,
    /// What refuses to work, so that there is no page that does.
    pub trouble: Option<String>,
    /// Octets of the data partition's file system.
    pub octets: u64,
}

/// Why no step can be told.
enum Amiss {
    Mixed(String),
    Broken(String),
}

/// The other end of this program's serial line.
struct Host {
    reads: BufReader<File>,
    writes: File,
}

impl Host {
    fn say(&mut self, line: &str) {
        self.writes.write_all(format!("{line}\n").as_bytes()).expect("the line to the host holds");
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.reads.read_line(&mut line).expect("the line to the host holds");
        line.trim().to_owned()
    }

    /// Returns when the host has written it into its record.
    fn mark(&mut self, mark: Mark) {
        match mark {
            Mark::Begun(step) => self.say(&format!("begun {step}")),
            Mark::Acknowledged(step) => self.say(&format!("acknowledged {step}")),
        }
        self.hear();
    }
}

#[test]
fn in_the_machine() {
    if std::env::var_os(GUEST).is_none() {
        return;
    }
    let line = || OpenOptions::new().read(true).write(true).open("/dev/ttyS1").expect("the second serial port");
    let mut host = Host { reads: BufReader::new(line()), writes: line() };
    host.say("ready");
    loop {
        let line = host.hear();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("fresh", _) => fresh(),
            ("record", what) => record(what, &mut host),
            ("check", what) => {
                let found = serde_json::to_string(&check(what)).expect("it is text");
                host.say(&format!("found {found}"));
            }
            _ => return,
        }
        host.say("done");
    }
}

/// Leaves the disk alone, with nothing of it in memory.
fn fresh() {
    while !mounted().is_empty() {
        mount::unmount(Path::new(DATA)).expect("nobody uses it");
    }
    let _ = fs::remove_dir_all("/dev/pilotlight");
    let _ = fs::remove_file("/run/pilotlight-prepared");
    block::drop_cache(&File::open(DISK).expect("the disk")).expect("the disk is there");
}

fn mounted() -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let of = |line: &str| {
        let mut words = line.split(' ').skip(1);
        (words.next() == Some(DATA)).then(|| words.next().unwrap_or_default().to_owned())
    };
    mounts.lines().rev().find_map(of).unwrap_or_default()
}

/// As the kernel does at its start. Without a table it finds no partitions.
fn read_partitions() {
    // It says so when there is none.
    let _ = block::reread_partitions(&File::open(DISK).expect("the disk"));
}

/// A boot, as far as the disk is concerned: the kernel reads the partition table, `init prepare` does the rest.
fn prepare() -> Found {
    read_partitions();
    let mut kmsg = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg").expect("/dev/kmsg");
    kmsg.seek(io::SeekFrom::End(0)).expect("its end");
    let ended = Command::new("/bin/init").arg("prepare").status().expect("init");
    let mut found = Found { mounted: mounted(), ..Found::default() };
    if !ended.success() {
        found.trouble = Some(format!("init prepare: {ended}"));
    }
    let mut record = [0; 8192];
    while let Ok(count) = kmsg.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..count]).into_owned();
        // "priority,sequence,time,flags;text"; warnings and worse of any facility.
        let Some((head, text)) = text.split_once(';') else { continue };
        let priority: u32 = head.split(',').next().and_then(|number| number.parse().ok()).unwrap_or(7);
        if let Some(text) = text.strip_prefix("pilotlight-init: ")
            && priority % 8 <= 4
            && found.said.len() < 40
        {
            found.said.push(text.lines().next().unwrap_or_default().to_owned());
        }
    }
    if let Ok(data) = nix::sys::statvfs::statvfs(DATA) {
        found.octets = data.blocks() * data.fragment_size();
    }
    found
}

fn record(what: &str, host: &mut Host) {
    read_partitions();
    match what {
        "slots" => {
            let mut device = Device::open(&partition(STATE)).expect("the state partition");
            life(&mut device, &mut |mark, _| host.mark(mark));
        }
        "update" => updates(host),
        "format" | "growth" => {
            host.mark(Mark::Begun(1));
            let found = prepare();
            assert_eq!((found.mounted.as_str(), found.trouble), ("ext4", None), "{:?}", found.said);
            if what == "format" {
                write_file(Path::new("/data/first"), "kept", true);
            }
            host.mark(Mark::Acknowledged(1));
        }
        "reset" => {
            host.mark(Mark::Begun(1));
            let mut device = Device::open(&partition(STATE)).expect("the state partition");
            let records = load(&mut device);
            let commit = change::reset(records.commit().expect("a record").1, true).expect("it can be counted");
            store_commit(&mut device, &records, &commit).expect("the disk is well");
            drop(device);
            // From here on the old must not come back.
            host.mark(Mark::Acknowledged(1));
            let found = prepare();
            assert_eq!((found.mounted.as_str(), found.trouble), ("ext4", None), "{:?}", found.said);
        }
        _ => {
            let found = prepare();
            assert_eq!((found.mounted.as_str(), found.trouble), ("ext4", None), "{:?}", found.said);
            nix::unistd::sync();
            // What was written until now is no part of the record.
            host.mark(Mark::Begun(0));
            match what {
                "store" => store(host),
                "settings" => settings(host),
                "careless" => careless(host),
                _ => panic!("{what} is no procedure"),
            }
        }
    }
    nix::unistd::sync();
    fresh();
}

fn check(what: &str) -> Found {
    let mut found = prepare();
    if found.mounted.is_empty() {
        found.trouble = Some("nothing is mounted".to_owned());
        return found;
    }
    let read = match what {
        "format" => Ok(vec![u32::from(fs::read_to_string("/data/first").is_ok_and(|text| text == "kept"))]),
        "growth" => old_files().and_then(|there| match there {
            OLD_FILES => Ok(vec![1]),
            _ => Err(Amiss::Mixed(format!("{there} of {OLD_FILES} files"))),
        }),
        // What is gone is the step that was taken.
        "reset" => old_files().and_then(|there| match there {
            0 => Ok(vec![1]),
            OLD_FILES => Ok(vec![0]),
            _ => Err(Amiss::Mixed(format!("{there} of {OLD_FILES} files"))),
        }),
        "store" => read_store(),
        "settings" => read_settings(),
        "careless" => {
            Ok(vec![fs::read_to_string("/data/careless").ok().and_then(|text| text.parse().ok()).unwrap_or(0)])
        }
        _ => Err(Amiss::Broken(format!("{what} is no procedure"))),
    };
    match read {
        Ok(steps) => found.steps = steps,
        Err(Amiss::Mixed(what)) => found.mixed = Some(what),
        Err(Amiss::Broken(what)) => found.trouble = Some(what),
    }
    // The box goes on with it.
    let goes_on = File::create("/data/probe").and_then(|mut file| file.write_all(b"on").and_then(|()| file.sync_all()));
    if let Err(error) = goes_on {
        found.trouble.get_or_insert(format!("nothing can be written to /data: {error}"));
    }
    found
}

fn partition(number: u32) -> std::path::PathBuf {
    format!("{DISK}{number}").into()
}

fn write_file(path: &Path, text: &str, lasting: bool) {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside).expect("a file system with room");
    file.write_all(text.as_bytes()).expect("a file system with room");
    if lasting {
        file.sync_all().expect("the disk is well");
    }
    fs::rename(&beside, path).expect("a file system with room");
    if lasting {
        File::open(path.parent().expect("a directory")).and_then(|parent| parent.sync_all()).expect("the disk is well");
    }
}

/// The control: what acknowledges without asking the disk must be caught.
fn careless(host: &mut Host) {
    for step in 1..=20 {
        host.mark(Mark::Begun(step));
        write_file(Path::new("/data/careless"), &step.to_string(), false);
        host.mark(Mark::Acknowledged(step));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One of the files that lie in the data partition beforehand.
pub fn old_file(number: u32) -> (String, Vec<u8>) {
    (format!("old{number}"), OLD_TEXT.repeat(number as usize * 20 + 1).into_bytes())
}

/// How many of the old files are there, whole.
fn old_files() -> Result<u32, Amiss> {
    let mut there = 0;
    for (name, text) in (0..OLD_FILES).map(old_file) {
        match fs::read(Path::new(DATA).join(&name)) {
            Ok(found) if found == text => there += 1,
            Ok(_) => return Err(Amiss::Mixed(format!("{name} is another"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Amiss::Mixed(format!("{name}: {error}"))),
        }
    }
    Ok(there)
}

/// A box's life in its slot records: updates that work and that don't, resets, recovery. The same for each run, so that
/// whoever plays it on other sectors knows what was stored.
pub fn life(sectors: &mut impl Sectors, mark: &mut dyn FnMut(Mark, &Commit)) {
    let mut dice = Dice(0x0ddb_a11f_00d5_4321);
    for number in 1..=120 {
        let Step { found, standing, next } = step(sectors, number, &mut dice);
        let next = next.unwrap_or(standing);
        mark(Mark::Begun(number), &next);
        store_commit(sectors, &found, &next).expect("the disk is well");
        mark(Mark::Acknowledged(number), &next);
    }
}

/// How many updates are written, one over the other.
pub const UPDATES: u32 = 3;

/// The system of one of the updates.
pub fn image(number: u32) -> Vec<u8> {
    let mut dice = Dice(0x5eed_0fa1_10f5_0115 + u64::from(number));
    let mut image: Vec<u8> = (0..3_000_000 / 8).flat_map(|_| (dice.below(usize::MAX) as u64).to_le_bytes()).collect();
    // No two of them are the same in any sector, and none is blank.
    image.chunks_mut(512).for_each(|sector| sector[0] = number as u8);
    image
}

/// A line that breaks once.
struct Line {
    image: Vec<u8>,
    left: usize,
}

impl Source for Line {
    fn open(&mut self, at: u64) -> io::Result<Box<dyn Read + '_>> {
        let left = std::mem::replace(&mut self.left, usize::MAX).min(self.image.len() - at as usize);
        let (now, later) = self.image[at as usize..].split_at(left);
        let broken = if later.is_empty() { None } else { Some(io::ErrorKind::ConnectionReset) };
        Ok(Box::new(now.chain(End(broken))))
    }
}

struct End(Option<io::ErrorKind>);

impl Read for End {
    fn read(&mut self, _octets: &mut [u8]) -> io::Result<usize> {
        self.0.map_or(Ok(0), |kind| Err(kind.into()))
    }
}

/// An update is withdrawn, written with a break, and put on trial; the next goes over it.
fn updates(host: &mut Host) {
    let booted = Booted::parse("pilotlight.slot=a pilotlight.why=committed").expect("GRUB's words");
    let mut device = Device::open(&partition(STATE)).expect("the state partition");
    for step in 1..=UPDATES {
        host.mark(Mark::Begun(step));
        let records = load(&mut device);
        let standing = records.commit().expect("a record").1;
        if let Some(next) = change::withdrawn(standing, &booted).expect("slot A runs") {
            store_commit(&mut device, &records, &next).expect("the disk is well");
        }
        let image = image(step);
        let version = Version::parse(&format!("1.{step}.0")).expect("SemVer");
        let manifest = Manifest::of("pilotlight-x86_64", version.clone(), None, &image, 256 * 1024);
        let mut slot = SlotDevice::open(&partition(SLOT_B)).expect("slot B");
        let mut line = Line { left: 700_000 * step as usize, image };
        assert!(write_slot(&manifest, &mut line, &mut slot, &mut |_| {}).is_err(), "the line breaks");
        write_slot(&manifest, &mut line, &mut slot, &mut |_| {}).expect("the disk is well");
        let records = load(&mut device);
        let standing = records.commit().expect("a record").1;
        let next = change::pending(standing, &booted, &version, Needs::Nothing, false).expect("it is newer");
        store_commit(&mut device, &records, &next).expect("the disk is well");
        host.mark(Mark::Acknowledged(step));
    }
}

type Model = BTreeMap<(Tree, String), Vec<u8>>;

/// How many commits there are.
const COMMITS: u32 = 80;

fn value(step: u32, length: usize) -> Vec<u8> {
    (0..length).map(|at| (step as usize * 31 + at * 7) as u8).collect()
}

/// The changes of one commit: over several trees, short and long.
fn changes(step: u32) -> Vec<(Tree, String, Option<Vec<u8>>)> {
    let length = [100, 5_000, 20_000][step as usize % 3];
    let mut changes = vec![
        (Tree::Meta, "step".to_owned(), Some(step.to_string().into_bytes())),
        (Tree::Intent, format!("machine-{}", step % 5), Some(value(step, 300))),
        (Tree::View, format!("view-{}", step % 11), Some(value(step, length))),
    ];
    if step.is_multiple_of(7) {
        changes.push((Tree::View, format!("view-{}", (step + 3) % 11), None));
    }
    changes
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

fn batch(step: u32) -> Batch {
    changes(step).into_iter().fold(Batch::new(), |batch, (tree, key, value)| match value {
        Some(value) => batch.put(tree, key, value),
        None => batch.remove(tree, key),
    })
}

fn store(host: &mut Host) {
    block_on(async {
        let mut store = SledStore::open(STORE).expect("a new store");
        for step in 1..=COMMITS {
            host.mark(Mark::Begun(step));
            store.commit(batch(step)).await.expect("the disk is well");
            host.mark(Mark::Acknowledged(step));
            if step % 20 == 5 {
                store.export().await.expect("the disk is well");
            }
            if step % 40 == 30 {
                drop(store);
                store = SledStore::open(STORE).expect("the same store");
            }
        }
    });
}

fn read_store() -> Result<Vec<u32>, Amiss> {
    block_on(async {
        let words = |error: pilotlight::store::Error| Amiss::Broken(format!("{error}: {:?}", error.source()));
        let store = SledStore::open(STORE).map_err(words)?;
        let step = store.get(Tree::Meta, "step").await.map_err(words)?;
        let step = step.and_then(|text| String::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
        let mut model = Model::new();
        for (tree, key, value) in (1..=step).flat_map(changes) {
            match value {
                Some(value) => drop(model.insert((tree, key), value)),
                None => drop(model.remove(&(tree, key))),
            }
        }
        let mut found = Model::new();
        for tree in Tree::ALL {
            found.extend(store.list(tree).await.map_err(words)?.into_iter().map(|(key, value)| ((tree, key), value)));
        }
        if found != model {
            let opened = store.health().await.map_err(words)?.opened;
            return Err(Amiss::Mixed(format!("it is not what commit {step} left; opened {opened:?}")));
        }
        store.commit(batch(step + 1)).await.map_err(words)?;
        Ok(vec![step])
    })
}

/// How many configurations there are.
const CONFIGURATIONS: u32 = 40;

/// The configuration of one step. Every third brings another key.
fn configuration(step: u32) -> Settings {
    let key = serde_json::json!({ "name": format!("key-{step}"), "pgp_key": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n".repeat(20) });
    let mut pairs = vec![
        ("hostname", format!("box-{step}")),
        ("omni.endpoint", format!("https://omni-{step}.example")),
        ("provider.provider-description", "text ".repeat(step as usize * 37 % 90 + 1)),
    ];
    if step % 3 == 1 {
        pairs.push(("omni.key", base64::engine::general_purpose::STANDARD.encode(key.to_string())));
    }
    let answers = Answers::new(pairs.into_iter().map(|(path, text)| (path.to_owned(), Secret::new(text))));
    Settings::read(&answers.expect("few"), Kept { key: true }).expect("no faults")
}

fn network(step: u32) -> Record {
    let mut record = Record::default();
    record.good.ntp = vec![format!("clock-{step}.example")];
    record
}

fn settings(host: &mut Host) {
    let mut directory = Directory::new(Path::new(settings_disk::DIRECTORY), None);
    directory.make().expect("a file system with room");
    for step in 1..=CONFIGURATIONS {
        host.mark(Mark::Begun(step));
        settings_disk::save(&mut directory, &configuration(step), [step as u8; 16]).expect("the disk is well");
        pilotlight::net::disk::write(Path::new(NETWORK), &network(step)).expect("the disk is well");
        host.mark(Mark::Acknowledged(step));
    }
}

fn read_settings() -> Result<Vec<u32>, Amiss> {
    let words = |error: io::Error| Amiss::Mixed(error.to_string());
    let mut directory = Directory::new(Path::new(settings_disk::DIRECTORY), None);
    // As the service does when it starts.
    directory.make().map_err(|error| Amiss::Broken(error.to_string()))?;
    let loaded = settings_disk::load(&directory);
    if let Some(trouble) = loaded.trouble {
        return Err(Amiss::Mixed(trouble));
    }
    let step = loaded.settings.value("hostname").and_then(|name| name.strip_prefix("box-")?.parse().ok()).unwrap_or(0);
    if step > 0 && loaded.settings != configuration(step).without_secrets() {
        return Err(Amiss::Mixed(format!("it is not the configuration of step {step}")));
    }
    // The key comes first: never an older one than the configuration was saved with.
    let key = directory.read(settings_disk::KEY).map_err(words)?;
    let key = key.map(|octets| {
        let is =
            |step: &u32| configuration(*step).secret("omni.key").is_some_and(|key| key.reveal().as_bytes() == octets);
        (1..=CONFIGURATIONS).find(is).ok_or_else(|| Amiss::Mixed("the key is none that was saved".to_owned()))
    });
    let key = key.transpose()?.unwrap_or(0);
    if key + 3 <= step || key > step + 1 {
        return Err(Amiss::Mixed(format!("the key is of step {key}, the configuration of step {step}")));
    }
    settings_disk::mend(&mut directory, &loaded.settings).map_err(|error| Amiss::Broken(format!("flags: {error}")))?;
    let record: Option<Record> = pilotlight::net::disk::read(Path::new(NETWORK)).map_err(words)?;
    let record =
        record.and_then(|record| record.good.ntp.first()?.strip_prefix("clock-")?.split('.').next()?.parse().ok());
    Ok(vec![step, record.unwrap_or(0)])
}
