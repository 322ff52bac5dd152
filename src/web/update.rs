//! Updates on the page: how far one is, and three ways to ask for one. Works without a script.
//!
//! An edge: HTTP on one side, the update service's socket on the other. Whatever is sent passes through in parts.

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Redirect, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::guard::{self, Guard};
use super::html;
use super::multipart::{Form as Multipart, Piece};
use crate::ipc;
use crate::update::protocol::{self, Asked, Job, LARGEST_PART, Phase, Request, Url};
use crate::update::{LARGEST_IMAGE, service};

type Service = ipc::Client<Request, protocol::Response>;

/// The most octets of an upload: the largest image, and what stands around it.
const LARGEST_UPLOAD: usize = LARGEST_IMAGE as usize + (1 << 20);
/// The most octets of a form without a file.
const LARGEST_FORM: usize = 16 << 10;
/// How often the page is asked for anew while an update is under way, in seconds.
const REFRESH: HeaderValue = HeaderValue::from_static("2");

/// `/update`, `/api/update` and, behind `guard`, what changes the box:
///
/// - `POST /update/url` with a form of `url`, and `restart`, `downgrade`, `again` where they are wanted;
/// - `POST /update/stick` with a form of `name`, and the same;
/// - `POST /update/file` with a form that holds a file named `bundle` after those, or `PUT /update/file?restart=on` with the
///   bundle as its body;
/// - `POST /update/cancel`, `POST /update/restart`.
pub fn routes(service: Service, guard: Arc<dyn Guard>) -> Router {
    let changes = Router::new()
        .route("/update/url", post(url))
        .route("/update/stick", post(stick))
        .route("/update/file", post(file).put(body))
        .route("/update/cancel", post(|State(service): State<Service>| ask(service, Request::Cancel)))
        .route("/update/restart", post(|State(service): State<Service>| ask(service, Request::Restart)))
        .layer(DefaultBodyLimit::max(LARGEST_FORM))
        .with_state(service.clone());
    Router::new()
        .route("/update", get(page))
        .route("/api/update", get(api))
        .with_state(service)
        .merge(guard::behind(guard, changes))
}

/// The boxes of the forms; a box that is not ticked is not sent.
#[derive(Debug, Default, Deserialize)]
struct Ticked {
    restart: Option<String>,
    downgrade: Option<String>,
    again: Option<String>,
}

impl Ticked {
    fn asked(&self) -> Asked {
        let Self { restart, downgrade, again } = self;
        Asked { restart: restart.is_some(), downgrade: downgrade.is_some(), again: again.is_some() }
    }
}

#[derive(Deserialize)]
struct FromUrl {
    url: String,
    #[serde(flatten)]
    ticked: Ticked,
}

#[derive(Deserialize)]
struct FromStick {
    name: String,
    #[serde(flatten)]
    ticked: Ticked,
}

/// What the page shows.
#[derive(Template)]
#[template(path = "update.html", config = "src/web/askama.toml")]
struct Page {
    state: protocol::State,
    /// Why the last wish is not done.
    refused: String,
}

impl Page {
    fn busy(&self) -> bool {
        self.state.job.as_ref().is_some_and(|job| !job.ended())
    }

    /// What becomes of the job, in a sentence.
    fn says(&self, job: &Job) -> String {
        match &job.phase {
            Phase::Opening => "Reads what the bundle says of itself.".to_owned(),
            Phase::Writing => "Verifies and writes it into the slot that does not run.".to_owned(),
            Phase::Waiting { trouble, attempt } => format!("Waits for attempt {attempt}: {trouble}."),
            Phase::Written(slot) => format!(
                "It is in slot {} and was read back. The next start tries it; what runs now stays until it proved itself.",
                slot.letter().to_uppercase()
            ),
            Phase::Failed(why) => format!("Not installed: {why}. What runs stays as it is."),
            Phase::Cancelled => "Stopped. What runs stays as it is.".to_owned(),
        }
    }

    fn written(&self, job: &Job) -> bool {
        matches!(job.phase, Phase::Written(_))
    }

    fn failed(&self, job: &Job) -> bool {
        matches!(job.phase, Phase::Failed(_))
    }
}

async fn state(service: &Service) -> Result<protocol::State, String> {
    match service.call(&Request::State).await {
        Ok(protocol::Response::State(state)) => Ok(state),
        Ok(other) => Err(format!("the update service answers {other:?}")),
        Err(error) => Err(format!("the update service does not answer: {error}")),
    }
}

async fn page(State(service): State<Service>) -> Response {
    shown(&service, StatusCode::OK, String::new()).await
}

/// The page; while something is under way it asks for itself again.
async fn shown(service: &Service, status: StatusCode, refused: String) -> Response {
    let (state, refused) = match state(service).await {
        Ok(state) => (state, refused),
        Err(why) => (protocol::State::default(), why),
    };
    let page = Page { state, refused };
    let mut response = html(status, &page);
    if page.busy() && status == StatusCode::OK {
        response.headers_mut().insert(header::REFRESH, REFRESH);
    }
    response
}

async fn api(State(service): State<Service>) -> Response {
    match state(&service).await {
        Ok(state) => Json(state).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Asks, and leads back to the page.
async fn ask(service: Service, request: Request) -> Response {
    match service.call(&request).await {
        Ok(protocol::Response::Refused(why)) => shown(&service, StatusCode::CONFLICT, why).await,
        Ok(_) => Redirect::to("/update").into_response(),
        Err(error) => shown(&service, StatusCode::SERVICE_UNAVAILABLE, error.to_string()).await,
    }
}

async fn url(State(service): State<Service>, form: String) -> Response {
    match fields::<FromUrl>(&form) {
        Some(form) => ask(service, Request::Fetch(Url::new(form.url.trim().to_owned()), form.ticked.asked())).await,
        None => shown(&service, StatusCode::BAD_REQUEST, "no URL was sent".to_owned()).await,
    }
}

async fn stick(State(service): State<Service>, form: String) -> Response {
    match fields::<FromStick>(&form) {
        Some(form) => ask(service, Request::Stick(form.name, form.ticked.asked())).await,
        None => shown(&service, StatusCode::BAD_REQUEST, "no bundle was named".to_owned()).await,
    }
}

/// The fields of a form without a file, which are written as those of a URL are.
pub(super) fn fields<T: DeserializeOwned>(form: &str) -> Option<T> {
    let uri: Uri = format!("/?{form}").parse().ok()?;
    Query::try_from_uri(&uri).ok().map(|Query(fields)| fields)
}

/// A bundle as the whole body: for programs.
async fn body(State(service): State<Service>, Query(ticked): Query<Ticked>, request: HttpRequest) -> Response {
    let mut arriving = Arriving { body: Limited::new(request.into_body(), LARGEST_UPLOAD), form: None };
    taken(&service, ticked.asked(), &mut arriving).await
}

/// A bundle in a form: for browsers.
async fn file(State(service): State<Service>, headers: HeaderMap, request: HttpRequest) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(form) = Multipart::of(kind) else {
        return shown(&service, StatusCode::BAD_REQUEST, "this is no form with a file in it".to_owned()).await;
    };
    let mut arriving = Arriving { body: Limited::new(request.into_body(), LARGEST_UPLOAD), form: Some(form) };
    let mut asked = Asked::default();
    loop {
        match arriving.piece().await {
            Ok(Some(Piece::Field(name))) => match name.as_str() {
                "restart" => asked.restart = true,
                "downgrade" => asked.downgrade = true,
                "again" => asked.again = true,
                "bundle" => return taken(&service, asked, &mut arriving).await,
                _ => {}
            },
            // What a box holds does not matter.
            Ok(Some(Piece::Octets(_))) => {}
            Ok(Some(Piece::End) | None) | Err(Broken) => {
                return shown(&service, StatusCode::BAD_REQUEST, "no bundle was sent".to_owned()).await;
            }
        }
    }
}

/// The upload broke off or makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("the upload broke off")]
struct Broken;

/// A body under way, of a form or of a bundle alone.
struct Arriving {
    body: Limited<Body>,
    form: Option<Multipart>,
}

impl Arriving {
    async fn octets(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(_)) => return Err(Broken),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(octets) => return Ok(Some(octets)),
                    // Trailers.
                    Err(_) => continue,
                },
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Piece>, Broken> {
        loop {
            let Some(form) = &mut self.form else { return Ok(None) };
            if let Some(piece) = form.next().map_err(|_| Broken)? {
                return Ok(Some(piece));
            }
            // A form says itself where it ends.
            let octets = self.octets().await?.ok_or(Broken)?;
            if let Some(form) = &mut self.form {
                form.push(&octets);
            }
        }
    }

    /// The next octets of the bundle.
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        if self.form.is_none() {
            return self.octets().await.transpose();
        }
        match self.piece().await {
            Ok(Some(Piece::Octets(octets))) => Some(Ok(octets.into())),
            // The file is the last field, or the only one that counts.
            Ok(Some(Piece::Field(_) | Piece::End) | None) => None,
            Err(Broken) => Some(Err(Broken)),
        }
    }
}

/// Hands a bundle to the service while it arrives.
async fn taken(service: &Service, asked: Asked, arriving: &mut Arriving) -> Response {
    let upload = service::Upload::begin(service, asked).await;
    let outcome = match upload {
        Ok(upload) => pass(upload, arriving).await,
        Err(why) => Err(why),
    };
    // A browser that is still sending shows no answer: it may send all, for nothing.
    while let Ok(Some(_)) = arriving.octets().await {}
    match outcome {
        Ok(()) => Redirect::to("/update").into_response(),
        Err(why) => shown(service, StatusCode::CONFLICT, why).await,
    }
}

async fn pass(mut upload: service::Upload<'_>, arriving: &mut Arriving) -> Result<(), String> {
    while let Some(octets) = arriving.next().await {
        let Ok(mut octets) = octets else {
            upload.abandon().await;
            return Err(Broken.to_string());
        };
        while !octets.is_empty() {
            if !upload.part(octets.split_to(octets.len().min(LARGEST_PART))).await? {
                return Ok(());
            }
        }
    }
    upload.end().await
}
