//! The configuration as a file, `pilotlight.toml`: read by the schema, written with its help as comments.

use std::fmt::Write as _;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::schema::{FIELDS, Field, ROW, ROWS, TABLES, field, row_path};
use super::{Answers, Fault, Faults, MOST_OCTETS, Settings, items};
use crate::secret::Secret;

/// A file that was read.
#[derive(Debug, Default)]
pub struct Parsed {
    /// What it answers.
    pub answers: Answers,
    /// What can't be answers; what the answers mean is another question.
    pub faults: Vec<Fault>,
    /// Where the file's secrets stand, with their quotes: ranges of octets, in their order, apart from each other.
    pub secrets: Vec<Range<usize>>,
}

/// Reads a file; any octets are some answers and some faults.
pub fn parse(octets: &[u8]) -> Parsed {
    let mut reading = Reading::default();
    if octets.len() > MOST_OCTETS {
        reading.faults.add("file", format!("has more than {MOST_OCTETS} octets"), "");
        return reading.done();
    }
    let Ok(text) = std::str::from_utf8(octets) else {
        reading.faults.add("file", "is no UTF-8 text", "save it as UTF-8");
        return reading.done();
    };
    // What some editors put before a text.
    let plain = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (document, mut errors) = DeTable::parse_recoverable(plain);
    errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    for error in errors {
        // The text of the line is left out: it may hold a secret.
        let at = error.span().map_or(0, |span| span.start).min(plain.len());
        let line = 1 + plain.as_bytes()[..at].iter().filter(|octet| **octet == b'\n').count();
        let what = error.message().lines().next().unwrap_or("is no TOML").to_owned();
        reading.faults.add(format!("line {line}"), what, "");
    }
    reading.table("", document.get_ref());
    let before = text.len() - plain.len();
    reading.secrets.iter_mut().for_each(|range| *range = range.start + before..range.end + before);
    reading.done()
}

#[derive(Default)]
struct Reading {
    answers: Vec<(String, Secret<String>)>,
    faults: Faults,
    secrets: Vec<Range<usize>>,
}

impl Reading {
    fn done(mut self) -> Parsed {
        let answers = Answers::new(self.answers).unwrap_or_else(|error| {
            self.faults.add("file", error.to_string(), "");
            Answers::default()
        });
        self.secrets.sort_by_key(|range| range.start);
        Parsed { answers, faults: self.faults.0, secrets: self.secrets }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            self.value(&path, value.get_ref(), value.span());
        }
    }

    fn value(&mut self, path: &str, value: &DeValue<'_>, span: Range<usize>) {
        match (field(path), value) {
            (None, DeValue::Table(table)) => self.table(path, table),
            (None, DeValue::Array(rows)) if path == ROWS => {
                for (row, value) in rows.iter().enumerate() {
                    match value.get_ref() {
                        DeValue::Table(table) => self.table(&format!("{ROWS}[{row}]"), table),
                        _ => self.faults.add(format!("{ROWS}[{row}]"), "is no table", format!("write [[{ROWS}]]")),
                    }
                }
            }
            // Who reads the answers says that there is no such setting.
            (None, _) => self.answers.push((short(path), Secret::new("?".to_owned()))),
            (Some((field, _)), value) => {
                if field.kind.is_secret() {
                    self.secrets.push(span);
                }
                match text(field, value) {
                    Ok(text) => self.answers.push((path.to_owned(), Secret::new(text))),
                    Err(wanted) => self.faults.add(path, format!("is {}, not {wanted}", name(value)), field.help),
                }
            }
        }
    }
}

/// A path that someone else made up, no longer than people read.
fn short(path: &str) -> String {
    path.chars().take(100).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The answer that a value is; else what is wanted.
fn text(field: &Field, value: &DeValue<'_>) -> Result<String, &'static str> {
    use super::schema::Kind;
    match (field.kind, value) {
        (Kind::Switch, DeValue::Boolean(value)) => Ok(value.to_string()),
        (Kind::Switch, _) => Err("true or false"),
        (Kind::Number(..), DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        (Kind::Number(..), _) => Err("a whole number without quotes"),
        (kind, DeValue::Array(array)) if kind.is_list() => {
            let item = |value: &DeValue<'_>| match value {
                DeValue::String(text) if !text.contains([',', '\n', '\r']) => Some(text.trim().to_owned()),
                _ => None,
            };
            let all: Option<Vec<_>> = array.iter().map(|value| item(value.get_ref())).collect();
            all.map(|items| items.join(", ")).ok_or("an array of texts without commas")
        }
        (kind, _) if kind.is_list() => Err("an array of texts"),
        (_, DeValue::String(text)) => Ok(text.to_string()),
        (_, _) => Err("a text in quotes"),
    }
}

fn name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The file that makes `settings`, with every setting that there is: those that have their default as a comment, and no
/// secret. Of [`Settings::default`] it is the template.
pub fn write(settings: &Settings) -> String {
    let mut text = String::from(
        "# The configuration of a Pilotlight box, whole: what is not written has its default, which stands here as a comment.\n",
    );
    let answers = settings.answers().without_secrets();
    for (table, title) in TABLES {
        let of = |field: &&Field| field.path.rsplit_once('.').map_or("", |(table, _)| table) == *table;
        // Writing into a String cannot fail.
        let _ = if table.is_empty() { writeln!(text) } else { writeln!(text, "\n# {title}\n[{table}]") };
        for field in FIELDS.iter().filter(of) {
            line(&mut text, field, field.path, answers.text(field.path));
        }
        if *table != "network" {
            continue;
        }
        let rows = settings.network().interfaces.len();
        for row in 0..rows {
            let _ = writeln!(text, "\n[[{ROWS}]]");
            for field in ROW {
                line(&mut text, field, &row_path(row, field.path), answers.text(&row_path(row, field.path)));
            }
        }
        if rows == 0 {
            let _ = writeln!(
                text,
                "\n# One such table an interface; without any: DHCP on every Ethernet port.\n# [[{ROWS}]]"
            );
            for field in ROW {
                line(&mut text, field, field.path, None);
            }
        }
    }
    text
}

/// One setting: its help, and its value or its default as a comment.
fn line(text: &mut String, field: &Field, path: &str, answer: Option<&str>) {
    let key = path.strip_prefix(ROWS).and_then(|rest| rest.split_once("].")).map_or_else(
        || if ROW.contains(field) { path } else { path.rsplit('.').next().unwrap_or(path) },
        |(_, key)| key,
    );
    let _ = writeln!(text, "# {}", field.help);
    let _ = match (answer, field.default.starts_with('['), field.default) {
        (Some(answer), _, _) => writeln!(text, "{key} = {}", literal(field, answer)),
        (None, false, default) if !default.is_empty() => writeln!(text, "# {key} = {}", literal(field, default)),
        (None, bracketed, default) => {
            let example = if field.example.is_empty() && field.kind.is_list() {
                "[]".to_owned()
            } else if let super::schema::Kind::Number(least, _) = field.kind {
                least.to_string()
            } else {
                literal(field, field.example)
            };
            let default =
                if bracketed { format!("   # default: {}", default.trim_matches(['[', ']'])) } else { String::new() };
            writeln!(text, "# {key} = {example}{default}")
        }
    };
}

/// An answer as TOML writes it.
fn literal(field: &Field, answer: &str) -> String {
    use super::schema::Kind;
    match field.kind {
        Kind::Switch | Kind::Number(..) => answer.to_owned(),
        kind if kind.is_list() => format!("[{}]", items(answer).map(quoted).collect::<Vec<_>>().join(", ")),
        _ => quoted(answer),
    }
}

/// A basic string (TOML 1.0): quotes and backslashes escaped, and what is no plain character.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            c if c.is_control() => write!(quoted, "\\u{:04X}", u32::from(c)),
            c => write!(quoted, "{c}"),
        };
    }
    quoted.push('"');
    quoted
}
