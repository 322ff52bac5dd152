//! The rules of COSI's State, one row each, checked on the Go server and on our double alike.
//!
//! A row does something to a server and says in a few words what it saw. Both servers must say what the row expects, but
//! for the differences listed in `KNOWN`.
//!
//! Source: contract omni-wire.md sections 2.3 and 3.

mod queries;
mod signatures;
mod watches;
mod writes;

use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::BoxFuture;
use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::resource::Kind;
use pilotlight::time::UnixTime;

use crate::go::{self, Go};
use crate::omni_script::service_account;
use crate::peers;
use crate::raw_state::{At, Raw};

/// The public half of [`service_account`].
const PUBLIC_KEY_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/omni/service-account.public.asc");

/// One rule.
pub struct Row {
    rule: &'static str,
    expected: &'static str,
    run: Box<dyn Fn(At) -> BoxFuture<'static, String>>,
}

/// The row of `rule`: `run` must see `expected`.
fn row<F, Seen>(rule: &'static str, expected: &'static str, run: F) -> Row
where
    F: Fn(At) -> Seen + 'static,
    Seen: Future<Output = String> + Send + 'static,
{
    Row { rule, expected, run: Box::new(move |at| Box::pin(run(at))) }
}

/// Rules by which the double differs on purpose, and why.
const KNOWN: [(&str, &str); 0] = [];

fn rows() -> Vec<Row> {
    [signatures::rows(), queries::rows(), writes::rows(), watches::rows()].into_iter().flatten().collect()
}

#[tokio::test]
async fn the_double_keeps_every_rule_that_the_go_server_keeps() {
    let Some(program) = go::program("cosi") else { return };
    // Keys that are older than any clock error in the table: a key signs nothing before it is made.
    let mut server = Go::start(&program, &["serve", "-known", PUBLIC_KEY_FILE]);
    let started = server.json().await;
    let go = Raw::connect(&format!("http://{}", started["address"].as_str().unwrap()), &service_account()).await;
    let omni = Omni::start(Options::loopback("metal-1")).await.unwrap();
    let yesterday = UnixTime::from_secs(UnixTime::now().as_secs() - 86_400);
    let account = ServiceAccount::create_at(yesterday, "metal-1", Duration::from_secs(30 * 86_400)).unwrap();
    omni.add_account(&account);
    let double = Raw::connect(&omni.endpoint(), account.key_string.reveal()).await;

    let mut table = String::from("rule | Go | double\n--- | --- | ---\n");
    let mut wrong = Vec::new();
    let rows = rows();
    for (number, row) in rows.iter().enumerate() {
        // A kind of its own for each row, in the provider's private namespace, where it may do everything.
        let kind = Kind::private(&format!("Row{number}"), "metal-1");
        let of_go = (row.run)(At { raw: go.clone(), kind: kind.clone() }).await;
        let of_double = (row.run)(At { raw: double.clone(), kind }).await;
        let _ = writeln!(table, "{} | {of_go} | {of_double}", row.rule);
        if of_go != row.expected {
            wrong.push(format!("{}: expected {:?}, Go has {of_go:?}", row.rule, row.expected));
        }
        let known = KNOWN.iter().find(|(rule, _)| *rule == row.rule);
        if (of_double != row.expected) != known.is_some() {
            wrong.push(format!("{}: expected {:?}, the double has {of_double:?}", row.rule, row.expected));
        }
    }
    println!("{table}");
    for (rule, why) in KNOWN {
        println!("differs on purpose: {rule}: {why}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let same = rows.len() - KNOWN.len();
    peers::say(&format!("peer 1: {same} of {} rules of State hold on the Go server and the double alike", rows.len()));
}
