//! One configuration by every way in; sticks of every kind; power cuts at every write.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use base64::Engine as _;
use clap::Parser;
use proptest::prelude::*;
use serde_json::json;

use super::console::Dialogue;
use super::disk::{self, Directory, Files};
use super::schema::{FIELDS, Field, Kind, ROW, field, row_path};
use super::stick::{self, Outcome, Places};
use super::{Answers, Fault, Kept, Settings, file, form, is_flag};
use crate::config::{Config, Flags};
use crate::net::config::Network;
use crate::net::trial::Record;
use crate::secret::Secret;

const KEPT: Kept = Kept { key: false };

fn key(name: &str) -> String {
    let json = json!({ "name": name, "pgp_key": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n".repeat(20) });
    base64::engine::general_purpose::STANDARD.encode(json.to_string())
}

fn answers<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Answers {
    Answers::new(pairs.into_iter().map(|(path, text)| (path.to_owned(), Secret::new(text)))).unwrap()
}

/// What a person writes in `pilotlight.toml` for these pairs; made by another writer than ours.
fn as_toml(pairs: &BTreeMap<String, String>) -> String {
    let mut whole = toml::Table::new();
    let mut rows: BTreeMap<usize, toml::Table> = BTreeMap::new();
    for (path, text) in pairs {
        let (field, row) = field(path).unwrap();
        let value = match field.kind {
            Kind::Switch => toml::Value::Boolean(text == "true"),
            Kind::Number(..) => toml::Value::Integer(text.parse().unwrap()),
            kind if kind.is_list() => toml::Value::Array(text.split(',').map(|item| item.trim().into()).collect()),
            _ => toml::Value::String(text.clone()),
        };
        let table = row.map_or(&mut whole, |row| rows.entry(row).or_default());
        match field.path.split_once('.') {
            Some((outer, name)) => {
                let inner = table.entry(outer).or_insert_with(|| toml::Table::new().into());
                inner.as_table_mut().unwrap().insert(name.to_owned(), value);
            }
            None => drop(table.insert(field.path.to_owned(), value)),
        }
    }
    if let Some((last, _)) = rows.last_key_value() {
        let rows: Vec<toml::Value> = (0..=*last).map(|row| rows.remove(&row).unwrap_or_default().into()).collect();
        let network = whole.entry("network").or_insert_with(|| toml::Table::new().into());
        network.as_table_mut().unwrap().insert("interfaces".to_owned(), rows.into());
    }
    toml::to_string(&whole).unwrap()
}

/// The body that a browser sends for these pairs: every octet escaped that may be.
fn as_form(pairs: &BTreeMap<String, String>) -> String {
    let escape = |text: &str| text.bytes().map(|octet| format!("%{octet:02X}")).collect::<String>();
    let mut inputs: Vec<(String, String)> = pairs.iter().map(|(path, text)| (escape(path), escape(text))).collect();
    // Empty inputs are sent, too.
    let empty = FIELDS.iter().map(|field| field.path).filter(|path| !pairs.contains_key(*path));
    inputs.extend(empty.map(|path| (path.to_owned(), "+".to_owned())));
    inputs.iter().map(|(path, text)| format!("{path}={text}")).collect::<Vec<_>>().join("&")
}

/// What a person answers on the console for these pairs.
fn on_console(pairs: &BTreeMap<String, String>) -> Answers {
    let mut dialogue = Dialogue::new(Answers::default(), KEPT);
    while let Some(question) = dialogue.question() {
        dialogue.answer(pairs.get(&question.path).map_or("", String::as_str));
    }
    dialogue.answers().clone()
}

/// Some text for a field, mostly a right one.
fn text_for(field: &'static Field) -> BoxedStrategy<String> {
    let mac = "52:54:00:00:0[0-9]:[0-9a-f]{2}";
    match field.kind {
        Kind::Text(_) => "[ -~äß😀]{0,40}".boxed(),
        Kind::Label => "[a-zA-Z0-9-]{1,20}".boxed(),
        Kind::Endpoint => prop_oneof![
            Just("https://omni.example".to_owned()),
            Just("omni".to_owned()),
            "[a-z]{1,5}://[a-z.:0-9]{0,9}"
        ]
        .boxed(),
        Kind::Url => prop_oneof![Just("https://factory.example/x".to_owned()), "http://[a-z /?]{0,9}"].boxed(),
        Kind::Host => "[a-z0-9.:-]{1,12}".boxed(),
        Kind::Version => "v[0-9]\\.[0-9]{1,2}\\.[0-9](-beta\\.1)?".boxed(),
        Kind::Switch => prop_oneof![Just("true".to_owned()), Just("false".to_owned())].boxed(),
        Kind::Choice(words) => proptest::sample::select(words.to_vec()).prop_map(str::to_owned).boxed(),
        Kind::Number(least, most) => (least..=most.min(10_000)).prop_map(|number| number.to_string()).boxed(),
        Kind::Duration(_) => "[0-9]{1,3}(s|m|h|ms)".boxed(),
        Kind::Labels => "[a-z]{1,5}(=[a-z0-9 ]{0,5})?(, ?[a-z]{1,3}(=x)?){0,2}".boxed(),
        Kind::Hosts(_) => "[a-z]{1,5}\\.org(, 192\\.0\\.2\\.[1-9])?".boxed(),
        Kind::Addresses(_) => "192\\.0\\.2\\.[1-9](, 2001:DB8::[1-9])?".boxed(),
        Kind::Ipv4 => "10\\.[0-9]\\.0\\.[0-9]{1,2}".boxed(),
        Kind::Prefix => "10\\.[0-9]\\.0\\.[0-9]{1,2}/(8|24)".boxed(),
        Kind::Port => prop_oneof![Just("any".to_owned()), mac].boxed(),
        Kind::Macs(_) => format!("{mac}(, {mac})?").prop_regex(),
        Kind::Key => "[a-z]{1,9}".prop_map(|name| key(&name)).boxed(),
        Kind::Code => "[a-zA-Z0-9]{8,12}".boxed(),
    }
}

trait PropRegex {
    fn prop_regex(&self) -> BoxedStrategy<String>;
}

impl PropRegex for String {
    fn prop_regex(&self) -> BoxedStrategy<String> {
        proptest::string::string_regex(self).unwrap().boxed()
    }
}

/// Pairs of path and text, rows without gaps that begin with a role: what all three ways can say.
fn filled_in() -> impl Strategy<Value = BTreeMap<String, String>> {
    let fields: Vec<_> = FIELDS
        .iter()
        .map(|field| (Just(field.path.to_owned()), proptest::option::weighted(0.3, text_for(field))))
        .collect();
    let row = |row: usize| {
        let of = move |field: &'static Field| {
            let text = text_for(field);
            let text = if field.path == "role" {
                text.prop_map(Some).boxed()
            } else {
                proptest::option::weighted(0.3, text).boxed()
            };
            (Just(row_path(row, field.path)), text)
        };
        ROW.iter().map(of).collect::<Vec<_>>()
    };
    let rows = (0_usize..3).prop_flat_map(move |count| (0..count).flat_map(row).collect::<Vec<_>>());
    (fields, rows).prop_map(|(fields, rows)| {
        let pairs = fields.into_iter().chain(rows).filter_map(|(path, text)| Some((path, text?)));
        pairs.filter(|(_, text)| !text.trim().is_empty() && text.trim() != super::console::NOTHING).collect()
    })
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The same answers make the same object or the same faults, whichever way they come.
    #[test]
    fn every_way_in_makes_the_same_settings(pairs in filled_in()) {
        let direct = answers(pairs.iter().map(|(path, text)| (path.as_str(), text.clone())));
        let wanted = Settings::read(&direct, KEPT);
        let parsed = file::parse(as_toml(&pairs).as_bytes());
        prop_assert_eq!(&parsed.faults, &[]);
        prop_assert_eq!(&Settings::read(&parsed.answers, KEPT), &wanted, "pilotlight.toml");
        let sent = Answers::new(form::decode(as_form(&pairs).as_bytes()).unwrap()).unwrap();
        prop_assert_eq!(&Settings::read(&sent, KEPT), &wanted, "the page");
        prop_assert_eq!(&Settings::read(&on_console(&pairs), KEPT), &wanted, "the console");
        if let Ok(settings) = wanted {
            let again = Settings::read(&settings.answers(), KEPT);
            prop_assert_eq!(again, Ok(settings.clone()), "what it answers itself");
            let written = file::write(&settings);
            let parsed = file::parse(written.as_bytes());
            prop_assert_eq!(&parsed.faults, &[]);
            let again = Settings::read(&parsed.answers, Kept { key: true });
            prop_assert_eq!(again, Ok(settings.clone().without_secrets()), "{}", written);
            prop_assert!(parsed.secrets.is_empty());
        }
    }

    /// What is accepted here starts every service.
    #[test]
    fn the_services_take_what_the_settings_say(pairs in filled_in()) {
        let read = Settings::read(&answers(pairs.iter().map(|(path, text)| (path.as_str(), text.clone()))), KEPT);
        let Ok(settings) = read else { return Ok(()) };
        let flags = settings.flags();
        prop_assert!(flags.iter().all(|flag| is_flag(flag)));
        let text = format!("{}\n", flags.join("\n"));
        prop_assert_eq!(&crate::supervise::flags::parse(text.as_bytes()).unwrap(), &flags);
        let flags = Cli::try_parse_from(std::iter::once("service".to_owned()).chain(flags)).map(|cli| cli.flags);
        let flags = flags.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(Config::without_omni(&flags).is_ok(), "{:?}", Config::without_omni(&flags));
    }

    #[test]
    fn any_octets_are_answers_and_faults(octets in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
        for octets in [octets.as_slice(), text.as_bytes()] {
            let parsed = file::parse(octets);
            let _ = Settings::read(&parsed.answers, KEPT);
            if let Ok(pairs) = form::decode(octets) {
                let _ = Answers::new(pairs).map(|answers| Settings::read(&answers, KEPT));
            }
        }
    }

    /// Wherever a secret stands and however it is spelled, it is found.
    #[test]
    fn no_secret_stays_in_a_scrubbed_file(spelling in 0_usize..6, before in "( |\n|# x\n){0,3}", bom: bool) {
        let secret = key("x");
        let line = match spelling {
            0 => format!("omni.key = \"{secret}\""),
            1 => format!("[omni]\nkey='{secret}' # kept"),
            2 => format!("omni = {{ key = \"{secret}\" }}"),
            3 => format!("[omni]\nkey = \"\"\"\n{}\n{}\"\"\"", &secret[..64], &secret[64..]),
            4 => format!("[\"omni\"]\n\"k\\u0065y\" = '''{secret}'''"),
            _ => format!("hostname = 7\nomni . key = \"{secret}\"\ncolour = ["),
        };
        let text = format!("{}{before}{line}\n", if bom { "\u{feff}" } else { "" });
        let parsed = file::parse(text.as_bytes());
        prop_assert_eq!(parsed.secrets.len(), 1, "{}", text);
        let range = parsed.secrets[0].clone();
        let found: String = text[range].chars().filter(|c| !c.is_whitespace()).collect();
        prop_assert_eq!(found.trim_matches(['"', '\'']), secret);
    }
}

#[test]
fn all_faults_are_named_at_once_with_their_place() {
    let text = format!(
        "hostname = 7\ncolour = \"red\"\n[omni]\nendpont = \"x\"\nkey = \"{}\"\n[provider]\nid = \"UPPER case\"\n\
         poll-interval = \"1ms\"\nmachine-labels = \"a=b\"\nwipe-with-zeroes = \"yes\"\n[setup]\ncode = \"tiny22\"\n\
         [[network.interfaces]]\n[[network.interfaces]]\nmode = \"static\"\nvlan = 5000\nmac = \"52:54:00:00:00:01\"\n",
        key("a")
    );
    let parsed = file::parse(text.as_bytes());
    let faults: Vec<_> = parsed.faults.into_iter().chain(Settings::read(&parsed.answers, KEPT).unwrap_err()).collect();
    let places: Vec<_> = faults.iter().map(|fault| fault.at.as_str()).collect();
    assert_eq!(
        places,
        [
            "hostname",
            "provider.machine-labels",
            "provider.wipe-with-zeroes",
            "colour",
            "omni.endpont",
            "omni.endpoint",
            "provider.id",
            "provider.poll-interval",
            "setup.code",
            "network.interfaces[1].vlan",
            "network.interfaces[1].address",
        ],
        "{faults:#?}"
    );
    assert_eq!(faults[4].hint, "omni.endpoint is near");
    assert!(!format!("{faults:?}").contains("tiny22"), "a secret is in a fault");
    let syntax = file::parse(b"hostname = \"a\"\nhostname = \"b\"\n[omni\n");
    assert_eq!(syntax.faults.iter().map(|fault| fault.at.as_str()).collect::<Vec<_>>(), ["line 2", "line 3"]);
}

#[test]
fn the_template_is_the_schema_and_says_nothing() {
    let template = file::write(&Settings::default());
    assert!(file::parse(template.as_bytes()).answers.paths().next().is_none());
    for row in FIELDS.iter().chain(ROW) {
        let key = if ROW.contains(row) { row.path } else { row.path.rsplit('.').next().unwrap() };
        assert!(template.contains(&format!("# {key} = ")), "{}", row.path);
    }
    // Every commented setting is TOML when its mark is taken away.
    let settings = template.lines().map(|line| {
        line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with("[[")).unwrap_or(line)
    });
    let open: String = settings.map(|line| format!("{line}\n")).collect();
    let parsed = file::parse(open.as_bytes());
    assert_eq!(parsed.faults, []);
    assert!(parsed.answers.paths().count() > FIELDS.len());
}

#[test]
fn the_defaults_are_those_of_the_flags() {
    let defaults = Cli::try_parse_from(["service"]).unwrap().flags;
    let shown = FIELDS.iter().filter(|field| field.flag.is_some() && !field.default.starts_with('['));
    let flags = shown.map(|field| format!("--{}={}", field.flag.unwrap(), field.default));
    let written = Cli::try_parse_from(std::iter::once("service".to_owned()).chain(flags)).unwrap().flags;
    assert_eq!(format!("{written:?}"), format!("{defaults:?}"));
}

#[test]
fn only_the_services_concerned_start_anew() {
    let read = |pairs: &[(&'static str, &str)]| {
        Settings::read(&answers(pairs.iter().map(|(path, text)| (*path, (*text).to_owned()))), Kept { key: true })
            .unwrap()
    };
    let before = read(&[("omni.endpoint", "https://a.example"), ("provider.id", "x")]);
    let names = |after: &Settings| after.concerned(&before).into_iter().collect::<Vec<_>>();
    assert_eq!(names(&before), [""; 0]);
    assert_eq!(
        names(&read(&[("omni.endpoint", "https://a.example"), ("provider.id", "x"), ("network.ntp", "n.example")])),
        [""; 0]
    );
    assert_eq!(
        names(&read(&[("omni.endpoint", "https://a.example"), ("provider.id", "x"), ("hostname", "h")])),
        ["net"]
    );
    assert_eq!(names(&read(&[("provider.id", "x")])), ["dhcp", "net", "provider"]);
    assert_eq!(
        names(&read(&[("omni.endpoint", "https://a.example"), ("provider.id", "x"), ("omni.key", &key("n"))])),
        ["provider"]
    );
}

/// One directory's number, and its files.
type State = (usize, BTreeMap<String, Vec<u8>>);

/// A disk that remembers what each operation left: what a power cut after it finds.
#[derive(Clone, Debug, Default)]
struct Recorder {
    files: BTreeMap<String, Vec<u8>>,
    /// All operations so far, of this and the other recorders of one box, with everything as it was after each.
    states: Rc<RefCell<Vec<State>>>,
    number: usize,
}

impl Recorder {
    fn put(&mut self, name: &str, octets: &[u8]) {
        self.files.insert(name.to_owned(), octets.to_vec());
        self.states.borrow_mut().push((self.number, self.files.clone()));
    }
}

impl Files for Recorder {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files.get(name).cloned())
    }

    fn replace(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        self.put(name, octets);
        Ok(())
    }

    fn overwrite(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        let before = self.files[name].clone();
        assert_eq!(before.len(), octets.len(), "in place");
        // Every set of sectors may be on the disk; the last one is all of them.
        let sectors: Vec<_> =
            (0..octets.len().div_ceil(512)).filter(|at| sector(&before, *at) != sector(octets, *at)).collect();
        for kept in 1..1_usize << sectors.len() {
            let mut torn = before.clone();
            for (bit, at) in sectors.iter().enumerate().filter(|(bit, _)| kept >> bit & 1 == 1) {
                let _ = bit;
                let range = at * 512..((at + 1) * 512).min(octets.len());
                torn[range.clone()].copy_from_slice(&octets[range]);
            }
            self.put(name, &torn);
        }
        Ok(())
    }

    fn write(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        self.put(name, &octets[..octets.len() / 2]);
        self.put(name, octets);
        Ok(())
    }
}

fn sector(octets: &[u8], at: usize) -> &[u8] {
    &octets[at * 512..((at + 1) * 512).min(octets.len())]
}

/// The three directories of a box with a stick.
fn boxed(files: [BTreeMap<String, Vec<u8>>; 3]) -> [Recorder; 3] {
    let states = Rc::default();
    let mut number = 0;
    files.map(|files| {
        number += 1;
        Recorder { files, states: Rc::clone(&states), number: number - 1 }
    })
}

fn insert(parts: &mut [Recorder; 3]) -> Outcome {
    let [settings, net, stick] = parts;
    stick::take_in(Places { settings, net, stick, lasting: true }, [9; 16])
}

fn site(name: &str) -> String {
    let pad = "# a comment that is long enough to push the key into sectors of its own\n".repeat(6);
    format!(
        "hostname = \"rack7\"\n{pad}[omni]\nendpoint = \"https://omni.example\"\nkey = \"{}\" # kept\n[network]\nntp = [\"ntp.example\"]\n\
         [setup]\ncode = \"abcdefgh22\"\n",
        key(name)
    )
}

#[test]
fn a_power_cut_at_any_write_loses_neither_the_settings_nor_the_secrets() {
    let stick = BTreeMap::from([(stick::NAME.to_owned(), site("a").into_bytes())]);
    let before = [BTreeMap::new(), BTreeMap::new(), stick];
    let mut whole = boxed(before.clone());
    assert!(matches!(insert(&mut whole), Outcome::Applied { lacks, .. } if lacks.is_empty()));
    let states = whole[0].states.borrow().clone();
    let mut now = before;
    let mut checked = 0;
    for (which, files) in states {
        now[which] = files;
        // The power comes back, and with it the stick.
        let mut again = boxed(now.clone());
        let outcome = insert(&mut again);
        assert!(matches!(outcome, Outcome::Applied { .. } | Outcome::Before), "{outcome:?}");
        let loaded = disk::load(&again[0]);
        assert_eq!((loaded.settings.value("hostname"), loaded.kept.key, loaded.trouble), (Some("rack7"), true, None));
        assert_eq!(again[0].files[disk::KEY], key("a").as_bytes());
        assert!(disk::code(&again[0]).unwrap().matches("abcdefgh22"));
        assert!(String::from_utf8_lossy(&again[0].files[disk::FLAGS]).contains("--hostname=rack7\n"));
        let record: Record = serde_json::from_slice(&again[1].files["network.json"]).unwrap();
        assert_eq!(record.good.ntp, ["ntp.example"]);
        for part in &again[2].files {
            let text = String::from_utf8_lossy(part.1);
            assert!(!text.contains(&key("a")[..40]) && !text.contains("abcdefgh22"), "{text}");
        }
        assert_eq!(again[2].files[stick::NAME], whole[2].files[stick::NAME], "scrubbed whole");
        assert!(matches!(insert(&mut again), Outcome::Before));
        checked += 1;
    }
    assert!(checked > 20, "{checked} states");
}

#[test]
fn a_stick_is_taken_in_once_and_again_when_someone_writes_it_anew() {
    let mut parts =
        boxed([BTreeMap::new(), BTreeMap::new(), BTreeMap::from([(stick::NAME.to_owned(), site("aa").into_bytes())])]);
    assert!(matches!(insert(&mut parts), Outcome::Applied { .. }));
    let writes = parts[0].states.borrow().len();
    assert!(matches!(insert(&mut parts), Outcome::Before));
    assert_eq!(parts[0].states.borrow().len(), writes, "nothing is written at each boot");
    let report = String::from_utf8(parts[2].files[stick::REPORT].clone()).unwrap();
    assert!(report.contains("- hostname = rack7\n") && report.contains("- omni.key = (kept by the box)\n"), "{report}");
    // What was set on the page since then is not undone by a copy of the stick, but its secrets go.
    let changed = Settings::read(&answers([("hostname", "page".to_owned())]), KEPT).unwrap();
    disk::save(&mut parts[0], &changed, [1; 16]).unwrap();
    parts[2].files.insert(stick::NAME.to_owned(), site("aa").into_bytes());
    assert!(matches!(insert(&mut parts), Outcome::Before));
    assert_eq!(disk::load(&parts[0]).settings.value("hostname"), Some("page"));
    assert!(!String::from_utf8_lossy(&parts[2].files[stick::NAME]).contains(&key("aa")[..40]));
    // A new key of the same length in the same place is no half-scrubbed file.
    parts[2].files.insert(stick::NAME.to_owned(), site("bb").into_bytes());
    assert!(matches!(insert(&mut parts), Outcome::Applied { .. }));
    assert_eq!(parts[0].files[disk::KEY], key("bb").as_bytes());
    assert_eq!(disk::load(&parts[0]).settings.value("hostname"), Some("rack7"));
    // The file without its secrets, edited: the key that is kept counts on.
    let edited = String::from_utf8(parts[2].files[stick::NAME].clone()).unwrap().replace("rack7", "rack8");
    parts[2].files.insert(stick::NAME.to_owned(), edited.into_bytes());
    assert!(matches!(insert(&mut parts), Outcome::Applied { .. }));
    assert_eq!(
        (disk::load(&parts[0]).settings.value("hostname"), parts[0].files[disk::KEY] == key("bb").as_bytes()),
        (Some("rack8"), true)
    );
}

#[test]
fn a_box_that_forgets_leaves_the_secrets_where_they_are() {
    let file = site("a").into_bytes();
    let mut parts = boxed([BTreeMap::new(), BTreeMap::new(), BTreeMap::from([(stick::NAME.to_owned(), file.clone())])]);
    let [settings, net, stick] = &mut parts;
    let outcome = stick::take_in(Places { settings, net, stick, lasting: false }, [9; 16]);
    assert!(matches!(outcome, Outcome::Applied { lacks, .. } if lacks.len() == 1));
    assert_eq!((&parts[2].files[stick::NAME], disk::load(&parts[0]).kept.key), (&file, true));
    assert!(!parts[0].files.contains_key(stick::TAKEN));
}

#[test]
fn a_stick_with_faults_changes_nothing_and_says_all_of_them() {
    for (octets, says) in [
        (b"hostname = \"-\"\ncolour = 1\n".to_vec(), vec!["- hostname: ", "- colour: "]),
        (vec![b'#'; super::MOST_OCTETS + 1], vec!["- file: has more than"]),
        (b"\xff\xfeh\0".to_vec(), vec!["- file: is no UTF-8 text; save it as UTF-8"]),
        (b"a = 1\na = 2\n".to_vec(), vec!["- line 2: "]),
        ("[".repeat(60_000).into_bytes(), vec!["- line 1: "]),
    ] {
        let mut parts =
            boxed([BTreeMap::new(), BTreeMap::new(), BTreeMap::from([(stick::NAME.to_owned(), octets.clone())])]);
        assert!(matches!(insert(&mut parts), Outcome::Faults(_)));
        assert!(parts[0].files.is_empty() && parts[1].files.is_empty());
        assert_eq!(parts[2].files[stick::NAME], octets);
        let report = String::from_utf8(parts[2].files[stick::REPORT].clone()).unwrap();
        assert!(says.iter().all(|says| report.contains(says)) && report.contains("NOTHING of it counts"), "{report}");
        let writes = parts[0].states.borrow().len();
        assert!(matches!(insert(&mut parts), Outcome::Faults(_)));
        assert_eq!(parts[0].states.borrow().len(), writes, "the report stands already");
    }
}

#[test]
fn a_real_directory_follows_no_link_and_keeps_what_it_has() {
    let root = tempfile::tempdir().unwrap();
    let mut all = ["settings", "net", "stick"].map(|name| Directory::new(&root.path().join(name), None));
    all.iter().for_each(|directory| directory.make().unwrap());
    let [settings, net, stick] = &mut all;
    let mut insert = || {
        stick::take_in(Places { settings: &mut *settings, net: &mut *net, stick: &mut *stick, lasting: true }, [9; 16])
    };
    assert!(matches!(insert(), Outcome::None));
    let (file, elsewhere) = (root.path().join("stick").join(stick::NAME), root.path().join("elsewhere"));
    std::fs::write(&elsewhere, site("a")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    assert!(matches!(insert(), Outcome::Failed(_)));
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(insert(), Outcome::Failed(_)));
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&elsewhere, &file).unwrap();
    assert!(matches!(insert(), Outcome::Applied { .. }));
    assert!(matches!(insert(), Outcome::Before));
    let mode = |name| {
        std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(root.path().join("settings").join(name)).unwrap().permissions(),
        ) & 0o777
    };
    assert_eq!([disk::KEY, disk::SETTINGS, disk::CODE, stick::TAKEN].map(mode), [0o600; 4]);
}

#[test]
fn a_damaged_file_leaves_the_one_before_it_in_force() {
    let mut files = Recorder::default();
    let named = |name: &str| Settings::read(&answers([("hostname", name.to_owned())]), KEPT).unwrap();
    disk::save(&mut files, &named("one"), [1; 16]).unwrap();
    disk::save(&mut files, &named("two"), [1; 16]).unwrap();
    assert_eq!(disk::load(&files).settings, named("two"));
    files.files.insert(disk::SETTINGS.to_owned(), b"hostname = \"tw".to_vec());
    let loaded = disk::load(&files);
    assert_eq!(loaded.settings, named("one"));
    assert!(loaded.trouble.unwrap().starts_with("settings.toml does not count: line 1"));
    // What is damaged never takes the place of the one before it.
    disk::save(&mut files, &named("three"), [1; 16]).unwrap();
    assert_eq!(disk::load(&files).settings, named("three"));
    assert!(String::from_utf8_lossy(&files.files[disk::PREVIOUS]).contains("\"one\""));
}

#[test]
fn a_form_shows_every_field_and_every_fault() {
    let filled = answers([
        ("hostname", "-x".to_owned()),
        ("network.interfaces[0].mode", "static".to_owned()),
        ("omni.key", "secret".to_owned()),
        ("network.ntp", "a b".to_owned()),
    ]);
    let mut faults = Settings::read(&filled, KEPT).unwrap_err();
    faults.push(Fault { at: "file".to_owned(), what: "x".to_owned(), hint: String::new() });
    let groups = form::groups(&filled, KEPT, &faults);
    let inputs: Vec<_> = groups.iter().flat_map(|group| &group.inputs).collect();
    assert!(FIELDS.iter().all(|field| inputs.iter().any(|input| input.name == field.path)));
    assert!(inputs.iter().all(|input| !input.value.contains("secret")));
    let shown: usize = inputs.iter().map(|input| input.faults.len()).sum();
    assert_eq!((shown, form::elsewhere(&faults).count()), (faults.len() - 1, 1), "{faults:#?}");
    assert_eq!(groups.iter().filter(|group| group.folded).count(), 1, "one row to write in");
    assert_eq!(Settings::default().network(), &Network::default());
}
