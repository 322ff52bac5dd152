//! Section 3.1: which resources a query matches.

use pilotlight::proto::cosi::label_term::Operation;
use pilotlight::proto::cosi::{LabelQuery, LabelTerm};

use super::{Row, row};
use crate::raw_state::{At, refusal};

fn term(key: &str, op: Operation, values: &[&str], invert: bool) -> LabelTerm {
    LabelTerm { key: key.into(), op: op.into(), value: values.iter().map(|&value| value.into()).collect(), invert }
}

/// Three resources: one with labels that are words, one with numbers, one without.
async fn stock(at: &At) {
    // Not in the order of their IDs.
    for (id, labels) in
        [("number", &[("n", "9")][..]), ("bare", &[]), ("word", &[("n", "x"), ("s", "blue")]), ("zero", &[("n", "0")])]
    {
        at.create(at.labelled(id, labels), "").await.unwrap();
    }
}

async fn ask(at: At, queries: Vec<LabelQuery>, regexp: &'static str) -> String {
    stock(&at).await;
    at.list(queries, regexp).await.map_or_else(|status| refusal(&status), |ids| ids.join(" "))
}

/// A row about one term.
fn one(
    rule: &'static str,
    expected: &'static str,
    key: &'static str,
    op: Operation,
    values: &'static [&str],
    invert: bool,
) -> Row {
    row(rule, expected, move |at| ask(at, vec![LabelQuery { terms: vec![term(key, op, values, invert)] }], ""))
}

pub fn rows() -> Vec<Row> {
    use Operation::{Equal, Exists, In, Lt, LtNumeric, Lte, LteNumeric, NotExists};
    vec![
        row("a list is in the order of IDs", "bare number word zero", |at| ask(at, vec![], "")),
        one("EXISTS", "number word zero", "n", Exists, &[], false),
        one("EXISTS inverted", "bare", "n", Exists, &[], true),
        one("NOT_EXISTS", "bare number zero", "s", NotExists, &[], false),
        one("EQUAL", "word", "s", Equal, &["blue"], false),
        one("EQUAL inverted matches what has no such label", "bare number zero", "s", Equal, &["blue"], true),
        one("EQUAL takes the first value alone", "", "s", Equal, &["red", "blue"], false),
        one("IN", "word zero", "n", In, &["x", "0"], false),
        one("IN inverted", "bare number", "n", In, &["x", "0"], true),
        one("IN of nothing", "", "n", In, &[], false),
        one("LT compares texts", "zero", "n", Lt, &["10"], false),
        one("LT inverted does not match what has no such label", "number word", "n", Lt, &["10"], true),
        one("LTE", "number zero", "n", Lte, &["9"], false),
        one("LTE inverted", "word", "n", Lte, &["9"], true),
        one(
            "LT_NUMERIC compares numbers, and what is none does not match",
            "number zero",
            "n",
            LtNumeric,
            &["10"],
            false,
        ),
        one("LT_NUMERIC inverted: what is no number does not match either", "number", "n", LtNumeric, &["9"], true),
        one("LTE_NUMERIC", "number zero", "n", LteNumeric, &["9"], false),
        one("LTE_NUMERIC with a value that is no number", "", "n", LteNumeric, &["x"], false),
        row("terms of a query must all match", "word", |at| {
            ask(at, vec![LabelQuery { terms: vec![term("n", Exists, &[], false), term("s", Exists, &[], false)] }], "")
        }),
        row("queries are alternatives", "number word", |at| {
            let query = |key, value| LabelQuery { terms: vec![term(key, Equal, value, false)] };
            ask(at, vec![query("s", &["blue"]), query("n", &["9"])], "")
        }),
        row("a query without terms matches all", "bare number word zero", |at| {
            ask(at, vec![LabelQuery { terms: vec![] }], "")
        }),
        row("an unknown operation is unimplemented", "Unimplemented", |at| {
            ask(at, vec![LabelQuery { terms: vec![LabelTerm { key: "n".into(), op: 99, ..Default::default() }] }], "")
        }),
        row("an ID query is searched unanchored", "number word zero", |at| ask(at, vec![], "er|or")),
        row("an ID query may be anchored", "bare", |at| ask(at, vec![], "^ba.e$")),
        row("a bad regular expression is an invalid argument", "InvalidArgument", |at| ask(at, vec![], "(")),
        row("ID and label queries must both match", "zero", |at| {
            ask(at, vec![LabelQuery { terms: vec![term("n", Exists, &[], false)] }], "^z")
        }),
    ]
}
