//! Changes as they happen: server-sent events, `machine` and `gone` per machine, `summary` last.
//!
//! A listener reads the newest snapshot, never a queue, so a slow one misses steps and not the state.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde::Deserialize;

use super::{Web, view};
use crate::status::Snapshot;
use crate::time::UnixTime;

/// At most four updates a second.
const PACE: Duration = Duration::from_millis(250);
/// A comment keeps proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
pub(super) struct Listen {
    /// The name of the snapshot that the page was made of.
    seen: Option<String>,
}

pub(super) async fn events(State(web): State<Web>, Query(listen): Query<Listen>, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&web.listeners).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], "too many pages listen\n")
            .into_response();
    };
    // A browser that comes back tells the last event's name, which is newer than its page's.
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned).or(listen.seen);
    let mut status = web.status.clone();
    let now = status.borrow_and_update().clone();
    let opening = match seen {
        Some(seen) if seen == view::seen(&now) => Vec::new(),
        // What the page shows is unknown: a snapshot without machines differs in all of them.
        _ => changes(&Snapshot::default(), &now, UnixTime::now()),
    };
    let first = stream::iter([opening]);
    let rest = stream::unfold((status, now, place), async |(mut status, shown, place)| {
        loop {
            // What changes within the pause is seen as one change.
            tokio::time::sleep(PACE).await;
            // Ends when the snapshot's maker is gone.
            status.changed().await.ok()?;
            let now = status.borrow_and_update().clone();
            let events = changes(&shown, &now, UnixTime::now());
            if !events.is_empty() {
                return Some((events, (status, now, place)));
            }
        }
    });
    let events = first.chain(rest).flat_map(|events| stream::iter(events.into_iter().map(Ok::<_, Infallible>)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// What a page that shows `shown` needs to show `now`: nothing when both show the same.
fn changes(shown: &Snapshot, now: &Snapshot, at: UnixTime) -> Vec<Event> {
    let before: HashMap<_, _> = shown.machines.iter().map(|machine| (&machine.id, machine)).collect();
    let after: HashMap<_, _> = now.machines.iter().map(|machine| (&machine.id, machine)).collect();
    let mut events = Vec::new();
    for machine in now.machines.iter().filter(|machine| before.get(&machine.id) != Some(machine)) {
        let Ok(html) = (view::Row { machine, now: at, hidden: false }).render() else { continue };
        let data = serde_json::json!({ "id": machine.id, "html": html });
        events.push(Event::default().event("machine").data(data.to_string()));
    }
    for machine in shown.machines.iter().filter(|machine| !after.contains_key(&machine.id)) {
        events.push(Event::default().event("gone").data(machine.id.as_str()));
    }
    let header = |snapshot: &Snapshot| (snapshot.provider_id.clone(), snapshot.omni.clone(), snapshot.services.clone());
    if events.is_empty() && header(shown) == header(now) {
        return events;
    }
    let summary = view::Summary { snapshot: now, now: at }.render();
    let chips = view::Chips::new(now, None, "").render();
    if let (Ok(html), Ok(chips)) = (summary, chips) {
        let data = serde_json::json!({ "now": at.as_millis(), "html": html, "chips": chips });
        events.push(Event::default().event("summary").id(view::seen(now)).data(data.to_string()));
    }
    events
}
