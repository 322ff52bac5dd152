//! Section 3.4: watches.

use pilotlight::proto::cosi::label_term::Operation;
use pilotlight::proto::cosi::{self, IdQuery, LabelQuery, LabelTerm, WatchOptions};
use tonic::Status;

use super::{Row, row};
use crate::raw_state::{At, Watching, id_of, refusal};

/// One event in a few characters: `CREATED a1`, with `*` for a bookmark and `<-1` for the version before.
fn shown(event: &Result<cosi::Event, Status>) -> String {
    let event = match event {
        Ok(event) => event,
        Err(status) => return refusal(status),
    };
    let version = |resource: &cosi::Resource| match resource.metadata.as_ref().unwrap().version.as_str() {
        "undefined" => "?".to_owned(),
        version => version.to_owned(),
    };
    let mut text = event.event_type().as_str_name().to_owned();
    if let Some(resource) = event.resource.as_ref().filter(|resource| !id_of(resource).is_empty()) {
        text.push_str(&format!(" {}{}", id_of(resource), version(resource)));
    }
    if let Some(old) = &event.old {
        text.push_str(&format!("<-{}", version(old)));
    }
    if event.bookmark.is_some() {
        text.push('*');
    }
    text
}

async fn next(watching: &mut Watching, count: usize) -> String {
    watching.events(count).await.iter().map(shown).collect::<Vec<_>>().join(", ")
}

async fn opened(at: &At, id: Option<&str>, options: WatchOptions, count: usize) -> String {
    match at.watch(id, options, 1).await {
        Ok(mut watching) => next(&mut watching, count).await,
        Err(status) => refusal(&status),
    }
}

/// Bumps the version of `id`.
async fn touch(at: &At, id: &str) {
    at.edit(id, |_| ()).await.unwrap();
}

async fn stock(at: &At) {
    for id in ["b", "a"] {
        at.create(at.fresh(id), "").await.unwrap();
    }
}

fn bootstrap() -> WatchOptions {
    WatchOptions { bootstrap_contents: true, ..Default::default() }
}

fn labelled(key: &str) -> WatchOptions {
    let term = LabelTerm { key: key.into(), op: Operation::Exists.into(), value: vec![], invert: false };
    WatchOptions { label_query: vec![LabelQuery { terms: vec![term] }], ..Default::default() }
}

/// The bookmark of the latest event of a watch that sees `a` touched.
async fn bookmark(at: &At) -> Vec<u8> {
    let mut watching = at.follow().await;
    touch(at, "a").await;
    let event = watching.events(1).await.remove(0).unwrap();
    event.bookmark.unwrap()
}

fn resume(bookmark: Vec<u8>) -> WatchOptions {
    WatchOptions { start_from_bookmark: Some(bookmark), ..Default::default() }
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub fn rows() -> Vec<Row> {
    vec![
        row("a watch tells what changes from now on", "UPDATED a2<-1*, CREATED c1*, DESTROYED c1*", |at| async move {
            stock(&at).await;
            let mut watching = at.follow().await;
            touch(&at, "a").await;
            at.create(at.fresh("c"), "").await.unwrap();
            at.destroy("c", "").await.unwrap();
            next(&mut watching, 3).await
        }),
        row("a watch of one resource begins with it", "CREATED a1", |at| async move {
            stock(&at).await;
            opened(&at, Some("a"), WatchOptions::default(), 1).await
        }),
        row("a watch of one absent resource begins with its tombstone", "DESTROYED c?", |at| async move {
            stock(&at).await;
            opened(&at, Some("c"), WatchOptions::default(), 1).await
        }),
        row("a tombstone has an empty spec", "0", |at| async move {
            let mut watching = at.watch(Some("c"), WatchOptions::default(), 1).await.unwrap();
            let event = watching.events(1).await.remove(0).unwrap();
            event.resource.unwrap().spec.unwrap_or_default().proto_spec.len().to_string()
        }),
        row(
            "a watch of one resource tells of no other",
            "CREATED a1, UPDATED a2<-1*, DESTROYED a2*",
            |at| async move {
                stock(&at).await;
                let mut watching = at.watch(Some("a"), WatchOptions::default(), 1).await.unwrap();
                touch(&at, "b").await;
                touch(&at, "a").await;
                at.destroy("a", "").await.unwrap();
                next(&mut watching, 3).await
            },
        ),
        row("a watch of one resource has no bootstrap", "Unimplemented", |at| async move {
            opened(&at, Some("a"), bootstrap(), 1).await
        }),
        row("a watch of one resource has no label query", "Unimplemented", |at| async move {
            opened(&at, Some("a"), labelled("x"), 1).await
        }),
        row("a watch of one resource resumes", "UPDATED a3<-2*", |at| async move {
            stock(&at).await;
            let bookmark = bookmark(&at).await;
            touch(&at, "b").await;
            touch(&at, "a").await;
            opened(&at, Some("a"), resume(bookmark), 1).await
        }),
        row(
            "a bootstrap is in the order of IDs and ends with a bookmark",
            "CREATED a1, CREATED b1, BOOTSTRAPPED*",
            |at| async move {
                stock(&at).await;
                opened(&at, None, bootstrap(), 3).await
            },
        ),
        row("a bootstrap of nothing", "BOOTSTRAPPED*", |at| async move { opened(&at, None, bootstrap(), 1).await }),
        row("an aggregated bootstrap is one message", "3", |at| async move {
            stock(&at).await;
            let options = WatchOptions { aggregated: true, ..bootstrap() };
            let message = at.watch(None, options, 1).await.unwrap().message().await.unwrap();
            message.event.len().to_string()
        }),
        row("an aggregated watch tells the same", "UPDATED a2<-1*, UPDATED a3<-2*", |at| async move {
            stock(&at).await;
            let options = WatchOptions { aggregated: true, ..Default::default() };
            let mut watching = at.watch(None, options, 1).await.unwrap();
            touch(&at, "a").await;
            touch(&at, "a").await;
            next(&mut watching, 2).await
        }),
        row(
            "BOOTSTRAPPED is kept from clients of version 0",
            "CREATED a1, CREATED b1, UPDATED a2<-1*",
            |at| async move {
                stock(&at).await;
                let mut watching = at.watch(None, bootstrap(), 0).await.unwrap();
                let first = next(&mut watching, 2).await;
                touch(&at, "a").await;
                format!("{first}, {}", next(&mut watching, 1).await)
            },
        ),
        row("a bootstrap bookmark comes first", "NOOP*, UPDATED a2<-1*", |at| async move {
            stock(&at).await;
            let options = WatchOptions { bootstrap_bookmark: true, ..Default::default() };
            let mut watching = at.watch(None, options, 1).await.unwrap();
            let first = next(&mut watching, 1).await;
            touch(&at, "a").await;
            format!("{first}, {}", next(&mut watching, 1).await)
        }),
        row(
            "a bootstrap bookmark comes after a bootstrap",
            "CREATED a1, CREATED b1, BOOTSTRAPPED*, NOOP*",
            |at| async move {
                stock(&at).await;
                opened(&at, None, WatchOptions { bootstrap_bookmark: true, ..bootstrap() }, 4).await
            },
        ),
        row("a bookmark has 16 octets", "16", |at| async move {
            stock(&at).await;
            bookmark(&at).await.len().to_string()
        }),
        row("a watch resumes after its bookmark", "UPDATED b2<-1*, UPDATED a3<-2*", |at| async move {
            stock(&at).await;
            let bookmark = bookmark(&at).await;
            touch(&at, "b").await;
            touch(&at, "a").await;
            opened(&at, None, resume(bookmark), 2).await
        }),
        row("a watch resumes at the bookmark of a bootstrap", "UPDATED b2<-1*", |at| async move {
            stock(&at).await;
            let mut watching = at.watch(None, bootstrap(), 1).await.unwrap();
            let bookmark = watching.events(3).await.remove(2).unwrap().bookmark.unwrap();
            touch(&at, "b").await;
            opened(&at, None, resume(bookmark), 1).await
        }),
        row("a watch resumes at the bookmark of an empty bootstrap", "CREATED a1*", |at| async move {
            let mut watching = at.watch(None, bootstrap(), 1).await.unwrap();
            let bookmark = watching.events(1).await.remove(0).unwrap().bookmark.unwrap();
            at.create(at.fresh("a"), "").await.unwrap();
            opened(&at, None, resume(bookmark), 1).await
        }),
        row("an aggregated watch resumes", "UPDATED b2<-1*", |at| async move {
            stock(&at).await;
            let bookmark = bookmark(&at).await;
            touch(&at, "b").await;
            opened(&at, None, WatchOptions { aggregated: true, ..resume(bookmark) }, 1).await
        }),
        row("a watch that resumes at the end waits for what comes", "UPDATED a3<-2*", |at| async move {
            stock(&at).await;
            let bookmark = bookmark(&at).await;
            let mut watching = at.watch(None, resume(bookmark), 1).await.unwrap();
            touch(&at, "a").await;
            next(&mut watching, 1).await
        }),
        row("a bookmark that is none is a failed precondition", "FailedPrecondition", |at| async move {
            stock(&at).await;
            opened(&at, None, resume(b"no bookmark".to_vec()), 1).await
        }),
        row("a bookmark of another process is a failed precondition", "FailedPrecondition", |at| async move {
            stock(&at).await;
            let mut bookmark = bookmark(&at).await;
            bookmark[0] ^= 1;
            opened(&at, None, resume(bookmark), 1).await
        }),
        row("a bookmark of the future is a failed precondition", "FailedPrecondition", |at| async move {
            stock(&at).await;
            let mut bookmark = bookmark(&at).await;
            bookmark[12] ^= 1;
            opened(&at, None, resume(bookmark), 1).await
        }),
        row("a resuming watch has no bootstrap", "Unknown", |at| async move {
            stock(&at).await;
            let bookmark = bookmark(&at).await;
            opened(&at, None, WatchOptions { bootstrap_contents: true, ..resume(bookmark) }, 1).await
        }),
        row("a resuming watch has no tail", "Unknown", |at| async move {
            stock(&at).await;
            let bookmark = bookmark(&at).await;
            opened(&at, None, WatchOptions { tail_events: 1, ..resume(bookmark) }, 1).await
        }),
        row("a tail is the last events", "UPDATED b2<-1*, UPDATED a2<-1*", |at| async move {
            stock(&at).await;
            touch(&at, "b").await;
            touch(&at, "a").await;
            opened(&at, None, WatchOptions { tail_events: 2, ..Default::default() }, 2).await
        }),
        row("a longer tail is all events", "CREATED b1*, CREATED a1*", |at| async move {
            stock(&at).await;
            opened(&at, None, WatchOptions { tail_events: 100, ..Default::default() }, 2).await
        }),
        row(
            "what leaves a label query is destroyed, what enters it created",
            "CREATED a2*, UPDATED a3<-2*, DESTROYED a4*, CREATED c1*",
            |at| async move {
                stock(&at).await;
                let mut watching = at.watch(None, labelled("x"), 1).await.unwrap();
                let label = |resource: &mut cosi::Resource| {
                    resource.metadata.as_mut().unwrap().labels.insert("x".into(), "y".into());
                };
                touch(&at, "b").await;
                at.edit("a", label).await.unwrap();
                touch(&at, "a").await;
                at.edit("a", |resource| resource.metadata.as_mut().unwrap().labels.clear()).await.unwrap();
                at.create(at.labelled("c", &[("x", "y")]), "").await.unwrap();
                next(&mut watching, 4).await
            },
        ),
        row("a destruction counts by the last labels", "DESTROYED c1*", |at| async move {
            stock(&at).await;
            at.create(at.labelled("c", &[("x", "y")]), "").await.unwrap();
            let mut watching = at.watch(None, labelled("x"), 1).await.unwrap();
            at.destroy("a", "").await.unwrap();
            at.destroy("c", "").await.unwrap();
            next(&mut watching, 1).await
        }),
        row("a bootstrap under a label query", "CREATED c1, BOOTSTRAPPED*", |at| async move {
            stock(&at).await;
            at.create(at.labelled("c", &[("x", "y")]), "").await.unwrap();
            opened(&at, None, WatchOptions { bootstrap_contents: true, ..labelled("x") }, 2).await
        }),
        row("a watch under an ID query", "CREATED b1, BOOTSTRAPPED*, UPDATED b2<-1*", |at| async move {
            stock(&at).await;
            let options = WatchOptions { id_query: Some(IdQuery { regexp: "^b".into() }), ..bootstrap() };
            let mut watching = at.watch(None, options, 1).await.unwrap();
            let first = next(&mut watching, 2).await;
            touch(&at, "a").await;
            touch(&at, "b").await;
            format!("{first}, {}", next(&mut watching, 1).await)
        }),
        row("a watch with a bad regular expression", "InvalidArgument", |at| async move {
            opened(&at, None, WatchOptions { id_query: Some(IdQuery { regexp: "(".into() }), ..Default::default() }, 1)
                .await
        }),
        row("an update of the phase is an update", "UPDATED a2<-1* tearingDown", |at| async move {
            stock(&at).await;
            let mut watching = at.follow().await;
            at.teardown("a", "").await.unwrap();
            let event = watching.events(1).await.remove(0);
            let phase = event.as_ref().unwrap().resource.clone().unwrap().metadata.unwrap().phase;
            format!("{} {phase}", shown(&event))
        }),
    ]
}
