//! The status page, live.
//!
//! An edge: HTTP, and the wall clock for "3 min ago". What is shown is decided in `view` and `metrics`, which are
//! functions of a snapshot. The page is whole without a script; the script keeps it current over server-sent events.

pub mod encrypted;
pub mod guard;
pub mod identity;
pub mod install;
mod live;
mod metrics;
mod multipart;
pub mod session;
pub mod settings;
pub mod update;
mod view;

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};

use crate::machine::MachineId;
use crate::status::{Snapshot, Stage};
use crate::time::UnixTime;

/// Pages that may listen for changes at one time.
const LISTENERS: usize = 64;

/// Nothing from elsewhere, nothing inline, no frames: the page needs none of it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What every route shares.
#[derive(Clone, Debug)]
struct Web {
    status: watch::Receiver<Arc<Snapshot>>,
    listeners: Arc<Semaphore>,
}

impl Web {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.status.borrow().clone()
    }
}

/// The status page's routes, read-only: `/`, `/machines/{id}`, `/events`, `/api/status`, `/healthz`, `/readyz`,
/// `/metrics` and its own files under `/ui/`.
///
/// Shows whatever `status` holds; each page follows it with at most four updates a second, 64 pages at most. Every
/// answer carries a content security policy that admits this origin alone.
pub fn router(status: watch::Receiver<Arc<Snapshot>>) -> Router {
    router_with(status, Router::new())
}

/// [`router`], and `more` under the same policy: what changes the box, behind its [`guard`].
pub fn router_with(status: watch::Receiver<Arc<Snapshot>>, more: Router) -> Router {
    let web = Web { status, listeners: Arc::new(Semaphore::new(LISTENERS)) };
    Router::new()
        .route("/", get(rack))
        .route("/machines/{id}", get(machine))
        .route("/events", get(live::events))
        .route("/api/status", get(api))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(prometheus))
        .route("/ui/page.css", get(|| file("text/css; charset=utf-8", include_str!("templates/page.css"))))
        .route("/ui/page.js", get(|| file("text/javascript; charset=utf-8", include_str!("templates/page.js"))))
        .route("/ui/flame.svg", get(|| file("image/svg+xml", include_str!("templates/flame.svg"))))
        .route("/favicon.ico", get(|| file("image/svg+xml", include_str!("templates/flame.svg"))))
        .with_state(web)
        .merge(more)
        .layer(from_fn(guarded))
}

/// How the rack page is narrowed down.
#[derive(Debug, Default, Deserialize)]
struct Narrowed {
    /// A stage's slug; anything else means all.
    stage: Option<String>,
    /// Part of a machine's UUID, MAC, address, cluster or verdict.
    find: Option<String>,
}

async fn rack(State(web): State<Web>, Query(narrowed): Query<Narrowed>) -> Response {
    let snapshot = web.snapshot();
    let stage = narrowed.stage.and_then(|slug| Stage::ALL.into_iter().find(|stage| stage.slug() == slug));
    let find = narrowed.find.unwrap_or_default();
    html(StatusCode::OK, &view::Rack::new(&snapshot, UnixTime::now(), stage, &find))
}

async fn machine(State(web): State<Web>, Path(id): Path<String>) -> Response {
    let snapshot = web.snapshot();
    let id: Option<MachineId> = id.parse().ok();
    match id.and_then(|id| snapshot.machines.iter().find(|machine| machine.id == id)) {
        Some(machine) => html(StatusCode::OK, &view::One::new(&snapshot, machine, UnixTime::now())),
        None => html(
            StatusCode::NOT_FOUND,
            &view::Missing {
                what: "No such machine",
                hint: "It has not booted from this box's network, or it was removed from Omni since.",
            },
        ),
    }
}

async fn api(State(web): State<Web>) -> Response {
    Json(&*web.snapshot()).into_response()
}

/// Whether every service of the box serves. The link to Omni does not count: without it machines still boot.
async fn ready(State(web): State<Web>) -> Response {
    let snapshot = web.snapshot();
    let down: Vec<&str> = snapshot.services.iter().filter(|service| !service.up).map(|s| s.name.as_str()).collect();
    if snapshot.services.is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "no service has reported yet\n").into_response()
    } else if down.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("down: {}\n", down.join(", "))).into_response()
    }
}

async fn prometheus(State(web): State<Web>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::text(&web.snapshot()))
        .into_response()
}

async fn file(kind: &'static str, body: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(page) => (status, Html(page)).into_response(),
        Err(error) => {
            tracing::error!(%error, "page does not render");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Others are told nothing; without this a form of our own would come from the origin "null".
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
