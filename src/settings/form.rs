//! The configuration as a form: what a page shows for every field of the schema, and what a browser sends back.

use super::schema::{FIELDS, Field, Kind, MOST_ROWS, ROW, ROWS, TABLES, row_path};
use super::{Answers, Fault, Kept, Unusable};
use crate::secret::Secret;

/// A group of fields under one heading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its heading.
    pub title: String,
    /// Its fields, in the schema's order.
    pub inputs: Vec<Input>,
    /// Whether it may be folded away: nothing is written in it and nothing is wrong.
    pub folded: bool,
}

/// One field of the form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name in the form: the path.
    pub name: String,
    /// What people call it.
    pub label: String,
    /// What it is for.
    pub help: &'static str,
    /// What is filled in; empty for secrets.
    pub value: String,
    /// What stands there while nothing is filled in.
    pub placeholder: String,
    /// The words to choose from; empty where anything can be written.
    pub choices: Vec<&'static str>,
    /// Whether it is never shown again.
    pub secret: bool,
    /// Whether a secret is kept already.
    pub kept: bool,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

/// The form that shows `answers` and what is wrong with them. Faults that belong to no field are left to the page:
/// [`elsewhere`].
pub fn groups(answers: &Answers, kept: Kept, faults: &[Fault]) -> Vec<Group> {
    let mut all = Vec::new();
    for (table, title) in TABLES {
        let of = |field: &&Field| field.path.rsplit_once('.').map_or("", |(table, _)| table) == *table;
        let inputs: Vec<_> =
            FIELDS.iter().filter(of).map(|field| input(field, field.path, answers, kept, faults)).collect();
        all.push(Group { title: (*title).to_owned(), inputs, folded: false });
        if *table == "network" {
            let written = |row: usize| ROW.iter().any(|field| answers.text(&row_path(row, field.path)).is_some());
            // One more than there are, to write in; a gap stays where it is.
            let rows = (0..MOST_ROWS).rev().find(|row| written(*row)).map_or(1, |row| (row + 2).min(MOST_ROWS - 1));
            for row in 0..rows {
                let input = |field: &Field| input(field, &row_path(row, field.path), answers, kept, faults);
                let inputs: Vec<_> = ROW.iter().map(input).collect();
                let folded = !written(row) && inputs.iter().all(|input| input.faults.is_empty());
                all.push(Group { title: format!("Interface {}", row + 1), inputs, folded });
            }
        }
    }
    all
}

/// The faults that [`groups`] shows beside no field.
pub fn elsewhere(faults: &[Fault]) -> impl Iterator<Item = &Fault> {
    faults.iter().filter(|fault| super::schema::field(base(&fault.at)).is_none())
}

/// The path of the field that a fault is about: that of an item is its list's.
fn base(at: &str) -> &str {
    match at.rfind('[') {
        Some(bracket) if at.ends_with(']') && at != ROWS => &at[..bracket],
        Some(_) | None => at,
    }
}

fn input(field: &Field, path: &str, answers: &Answers, kept: Kept, faults: &[Fault]) -> Input {
    let secret = field.kind.is_secret();
    let choices = match field.kind {
        Kind::Switch => vec!["true", "false"],
        Kind::Choice(words) => words.to_vec(),
        _ => Vec::new(),
    };
    let what = |fault: &Fault| match fault.hint.as_str() {
        "" => fault.what.clone(),
        // The help stands beside it anyway.
        hint if hint == field.help => fault.what.clone(),
        hint => format!("{}; {hint}", fault.what),
    };
    Input {
        name: path.to_owned(),
        label: field.label(),
        help: field.help,
        value: if secret { String::new() } else { answers.text(path).unwrap_or_default().to_owned() },
        placeholder: match (field.example, field.default.trim_matches(['[', ']'])) {
            (_, default) if !field.default.starts_with('[') && !default.is_empty() => default.to_owned(),
            ("", default) => default.to_owned(),
            (example, _) => format!("such as {example}"),
        },
        choices,
        secret,
        kept: match field.kind {
            Kind::Key => kept.key,
            Kind::Code => true,
            _ => false,
        },
        faults: faults.iter().filter(|fault| base(&fault.at) == path).map(what).collect(),
    }
}

/// The pairs of a form as browsers send it (`application/x-www-form-urlencoded`, WHATWG URL section 5.1), in its order.
///
/// # Errors
///
/// [`Unusable::NoText`]; how much it may be is for who reads the body and for [`Answers::new`].
pub fn decode(body: &[u8]) -> Result<Vec<(String, Secret<String>)>, Unusable> {
    let pairs = body.split(|octet| *octet == b'&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let at = pair.iter().position(|octet| *octet == b'=').unwrap_or(pair.len());
            Ok((unescape(&pair[..at])?, Secret::new(unescape(pair.get(at + 1..).unwrap_or_default())?)))
        })
        .collect()
}

fn unescape(text: &[u8]) -> Result<String, Unusable> {
    let digit = |octet: Option<&u8>| char::from(*octet?).to_digit(16);
    let mut octets = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(octet) = text.get(at) {
        let escaped = digit(text.get(at + 1)).zip(digit(text.get(at + 2)));
        match (octet, escaped) {
            (b'%', Some((high, low))) => {
                octets.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _) => octets.push(b' '),
            (octet, _) => octets.push(*octet),
        }
        at += 1;
    }
    String::from_utf8(octets).map_err(|_| Unusable::NoText)
}
