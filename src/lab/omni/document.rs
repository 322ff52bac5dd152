//! YAML as people write it, read into JSON's values.
//!
//! Pure, and bounded in length, depth and number of values, aliases counted as what they stand for. Source: YAML 1.2.2,
//! core schema.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

/// The longest text, in octets: what Omni allows a schema.
const LONGEST: usize = 1_000_000;
/// Collections within collections.
const DEEPEST: usize = 64;
/// Values of all documents together.
const MOST: usize = 100_000;

/// Why a text is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadYaml {
    /// It is no YAML.
    #[error("line {line}: {what}")]
    Syntax {
        /// From 1.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// It is longer, deeper, or has more values than anybody needs.
    #[error("the document is too large")]
    TooLarge,
    /// A key stands twice in a map.
    #[error("key {0:?} stands twice")]
    Twice(String),
    /// It has something that JSON has not: a tag of its own, a collection as a key, a merged map, infinity.
    #[error("{0} is not understood")]
    Foreign(String),
}

/// The documents of `text`; an empty one is null.
///
/// # Errors
///
/// [`BadYaml`].
pub fn parse(text: &str) -> Result<Vec<Value>, BadYaml> {
    if text.len() > LONGEST {
        return Err(BadYaml::TooLarge);
    }
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, _) =
            event.map_err(|error| BadYaml::Syntax { line: error.marker().line(), what: error.info().to_owned() })?;
        reader.take(event)?;
    }
    Ok(reader.documents)
}

/// A collection that is not closed yet, and its anchor.
enum Open {
    List(usize, Vec<Value>),
    Map(usize, Map<String, Value>, Option<String>),
}

#[derive(Default)]
struct Reader {
    documents: Vec<Value>,
    open: Vec<Open>,
    /// By anchor: the value, and of how many it consists.
    anchors: BTreeMap<usize, (Value, usize)>,
    values: usize,
}

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), BadYaml> {
        match event {
            Event::DocumentStart(_) => self.anchors.clear(),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())?;
                self.count(1)?;
                self.close(anchor, value)?;
            }
            Event::SequenceStart(anchor, tag) => self.begin(Open::List(anchor, Vec::new()), tag.as_deref())?,
            Event::MappingStart(anchor, tag) => self.begin(Open::Map(anchor, Map::new(), None), tag.as_deref())?,
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(anchor, items)) => self.close(anchor, Value::Array(items))?,
                Some(Open::Map(anchor, fields, _)) => self.close(anchor, Value::Object(fields))?,
                None => (),
            },
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned();
                let (value, size) =
                    known.ok_or_else(|| BadYaml::Foreign("an alias of what is not closed".to_owned()))?;
                self.count(size)?;
                self.place(value)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => (),
        }
        Ok(())
    }

    fn begin(&mut self, collection: Open, tag: Option<&Tag>) -> Result<(), BadYaml> {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "map" | "seq"))
        {
            return Err(BadYaml::Foreign(format!("tag {tag}")));
        }
        if self.open.len() == DEEPEST {
            return Err(BadYaml::TooLarge);
        }
        self.count(1)?;
        self.open.push(collection);
        Ok(())
    }

    fn count(&mut self, values: usize) -> Result<(), BadYaml> {
        self.values += values;
        if self.values > MOST { Err(BadYaml::TooLarge) } else { Ok(()) }
    }

    fn close(&mut self, anchor: usize, value: Value) -> Result<(), BadYaml> {
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), size(&value)));
        }
        self.place(value)
    }

    fn place(&mut self, value: Value) -> Result<(), BadYaml> {
        match self.open.last_mut() {
            None => self.documents.push(value),
            Some(Open::List(_, items)) => items.push(value),
            Some(Open::Map(_, fields, key @ None)) => {
                let name = match value {
                    Value::String(text) => text,
                    Value::Array(_) | Value::Object(_) => return Err(BadYaml::Foreign("a collection as a key".into())),
                    scalar => scalar.to_string(),
                };
                if name == "<<" {
                    return Err(BadYaml::Foreign("a merged map".into()));
                }
                if fields.contains_key(&name) {
                    return Err(BadYaml::Twice(name));
                }
                *key = Some(name);
            }
            Some(Open::Map(_, fields, key)) => {
                if let Some(name) = key.take() {
                    fields.insert(name, value);
                }
            }
        }
        Ok(())
    }
}

fn size(value: &Value) -> usize {
    // No deeper than what was read, which is bounded.
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum(),
        _ => 0,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, BadYaml> {
    match tag {
        None if style == ScalarStyle::Plain => plain(text),
        None => Ok(Value::from(text)),
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => Ok(Value::from(text)),
            "null" | "bool" | "int" | "float" => plain(text),
            _ => Err(BadYaml::Foreign(format!("tag {tag}"))),
        },
        Some(tag) => Err(BadYaml::Foreign(format!("tag {tag}"))),
    }
}

/// What a scalar without quotes means.
fn plain(text: &str) -> Result<Value, BadYaml> {
    match text {
        // What is not a number is nothing, as Omni has it.
        "" | "~" | "null" | "Null" | "NULL" | ".nan" | ".NaN" | ".NAN" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => (),
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Err(BadYaml::Foreign(text.to_owned()));
    }
    let based = |prefix: &str, base: u32| u64::from_str_radix(text.strip_prefix(prefix)?, base).ok();
    if let Some(number) = based("0x", 16).or_else(|| based("0o", 8)) {
        return Ok(Value::from(number));
    }
    let starts_as_a_number = unsigned.trim_start_matches('.').starts_with(|first: char| first.is_ascii_digit());
    let has_its_letters =
        unsigned.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+'));
    if starts_as_a_number && has_its_letters {
        if let Ok(number) = text.parse::<i64>() {
            return Ok(Value::from(number));
        }
        if let Ok(number) = text.parse::<u64>() {
            return Ok(Value::from(number));
        }
        if let Some(number) = text.parse().ok().and_then(serde_json::Number::from_f64) {
            return Ok(Value::Number(number));
        }
    }
    Ok(Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_read_as_the_core_schema_has_them() {
        for (text, expected) in [
            ("a: 1\nb: [x, 'y', \"z\"]\n", vec![json!({"a": 1, "b": ["x", "y", "z"]})]),
            (
                "a: -7\nb: 0x1F\nc: 0o17\nd: 1.5\ne: 1e3\n",
                vec![json!({"a": -7, "b": 31, "c": 15, "d": 1.5, "e": 1000.0})],
            ),
            (
                "a: '1'\nb: !!str 1\nc: 1.2.3\nd: 10.0.0.1\ne:\n-\n",
                vec![json!({"a": "1", "b": "1", "c": "1.2.3", "d": "10.0.0.1", "e": [null]})],
            ),
            (
                "a: ~\nb: true\nc: yes\nd: .nan\n1: x\n",
                vec![json!({"a": null, "b": true, "c": "yes", "d": null, "1": "x"})],
            ),
            ("a: |\n  two\n  lines\n", vec![json!({"a": "two\nlines\n"})]),
            ("a: &x {k: v}\nb: *x\n", vec![json!({"a": {"k": "v"}, "b": {"k": "v"}})]),
            ("a: 1\n---\nb: 2\n", vec![json!({"a": 1}), json!({"b": 2})]),
            ("", vec![]),
            ("---\n", vec![json!(null)]),
            ("18446744073709551615", vec![json!(u64::MAX)]),
        ] {
            assert_eq!(parse(text).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn what_json_has_not_is_refused_by_name() {
        let foreign =
            |text: &str| assert!(matches!(parse(text), Err(BadYaml::Foreign(_))), "{text}: {:?}", parse(text));
        for text in ["a: .inf", "? [a]\n: b", "a: !mine b", "a: !mine [b]", "b: {<<: {a: 1}}", "a: &x [*x]"] {
            foreign(text);
        }
        assert_eq!(parse("a: 1\na: 2"), Err(BadYaml::Twice("a".into())));
        assert!(matches!(parse("a: 1\nb: [\n"), Err(BadYaml::Syntax { line: 2.., .. })), "{:?}", parse("a: 1\nb: [\n"));
        assert!(matches!(parse("a: *nobody"), Err(BadYaml::Syntax { .. })));
    }

    #[test]
    fn no_document_costs_more_than_its_share() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = level - 1;
            let many = format!("*a{before}, ").repeat(10);
            laughs.push_str(&format!("a{level}: &a{level} [{many}]\n"));
        }
        let deep = "[".repeat(DEEPEST + 1) + &"]".repeat(DEEPEST + 1);
        for text in [laughs, deep, "x".repeat(LONGEST + 1), "- x\n".repeat(MOST + 1)] {
            assert_eq!(parse(&text), Err(BadYaml::TooLarge), "{text:.20}");
        }
        assert!(parse(&"[".repeat(LONGEST)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a-c0-2:{}\\[\\],&*!|>'\"# \n\t?%.~<]{0,60}", any in ".{0,60}") {
            let _ = (parse(&text), parse(&any));
        }

        #[test]
        fn what_is_json_is_read_as_such(number in proptest::num::i64::ANY, text in "[ -~]{0,20}", flag in proptest::bool::ANY) {
            let value = json!({"n": number, "t": text, "f": flag, "l": [number, {"t": text}]});
            proptest::prop_assert_eq!(parse(&value.to_string()), Ok(vec![value]));
        }
    }
}
