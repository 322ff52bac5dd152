//! The configuration on the page: the setup code, one plain form over the schema, and the button that keeps a network.
//!
//! An edge: HTTP. What fields there are and what is wrong with them is decided in [`crate::settings`]; who keeps it all is
//! behind [`Backend`]. Works without a script. Where the box serves TLS, the form is shown there alone; see [`super::encrypted`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use askama::Template;
use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use tonic::transport::server::TcpConnectInfo;

use super::session::{SIGN_IN, Sessions, Token, is_same_origin};
use super::{encrypted, html, view};
use crate::netboot::serve::OverTls;
use crate::secret::Secret;
use crate::settings::desk::{Applied, Refusal, Shown};
use crate::settings::form::{self, Group};
use crate::settings::{Answers, Fault, MOST_OCTETS, Settings, file};
use crate::time::Uptime;

/// Most octets of a form: each octet of an answer may be written as three.
const MOST_OF_FORM: usize = 4 * MOST_OCTETS;
/// What the form's own token is called in it.
const TOKEN: &str = "token";

/// Who keeps the configuration and the network.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What the box is set to.
    ///
    /// # Errors
    ///
    /// A sentence: who keeps it does not answer.
    async fn show(&self) -> Result<Shown, String>;

    /// Whether this is the setup code.
    ///
    /// # Errors
    ///
    /// As [`Backend::show`].
    async fn enter(&self, code: Secret<String>) -> Result<Result<(), Refusal>, String>;

    /// Takes these answers as the whole configuration, or names every fault.
    ///
    /// # Errors
    ///
    /// As [`Backend::show`], or why it can't be kept.
    async fn apply(&self, answers: Answers) -> Result<Result<Applied, Vec<Fault>>, String>;

    /// Keeps the network that is tried: the browser reached the box at `at`.
    ///
    /// # Errors
    ///
    /// Why not, in a sentence.
    async fn keep(&self, trial: u64, at: IpAddr) -> Result<(), String>;

    /// Returns to the network before.
    ///
    /// # Errors
    ///
    /// Why not, in a sentence.
    async fn go_back(&self) -> Result<(), String>;
}

#[derive(Clone, Debug)]
struct Setup {
    backend: Arc<dyn Backend>,
    sessions: Sessions,
}

/// The routes below `/setup`, each of which looks itself at who asks.
pub fn router(backend: Arc<dyn Backend>, sessions: Sessions) -> Router {
    Router::new()
        .route(SIGN_IN, get(show).post(apply))
        .route("/setup/enter", post(enter))
        .route("/setup/leave", post(leave))
        .route("/setup/keep", post(keep))
        .route("/setup/return", post(go_back))
        .route("/setup/pilotlight.toml", get(template))
        .with_state(Setup { backend, sessions })
}

#[derive(Template)]
#[template(path = "enter.html", config = "src/web/askama.toml")]
struct Enter<'a> {
    trouble: &'a str,
    /// The certificate's that the page came under; empty in the clear.
    fingerprint: String,
}

#[derive(Template)]
#[template(path = "setup.html", config = "src/web/askama.toml")]
struct Form<'a> {
    token: String,
    groups: Vec<Group>,
    notes: Vec<String>,
    trouble: Vec<String>,
    faults: usize,
    elsewhere: Vec<String>,
    shown: &'a Shown,
    retype: bool,
    /// As that of [`Enter`].
    fingerprint: String,
}

async fn show(State(setup): State<Setup>, over: Option<Extension<OverTls>>, headers: HeaderMap) -> Response {
    let fingerprint = encrypted::fingerprint(over.as_ref());
    let Some(token) = setup.sessions.of(&headers, Uptime::now()) else {
        return html(StatusCode::OK, &Enter { trouble: "", fingerprint });
    };
    let notes = setup.sessions.notes(&token);
    page(&setup, (&token, fingerprint), StatusCode::OK, notes, None).await
}

/// The form, filled in with what the box is set to, or with what was sent and is wrong.
async fn page(
    setup: &Setup,
    (token, fingerprint): (&Token, String),
    status: StatusCode,
    notes: Vec<String>,
    wrong: Option<(Answers, Vec<Fault>)>,
) -> Response {
    let (shown, away) = match setup.backend.show().await {
        Ok(shown) => (shown, None),
        Err(away) => (Shown::default(), Some(away)),
    };
    let retype = wrong
        .as_ref()
        .is_some_and(|(answers, _)| ["omni.key", "setup.code"].iter().any(|path| answers.text(path).is_some()));
    let (answers, faults) = wrong.unwrap_or_else(|| (shown.answers(), Vec::new()));
    let elsewhere = form::elsewhere(&faults).map(ToString::to_string).collect();
    let form = Form {
        token: token.form_token(),
        groups: form::groups(&answers, shown.kept, &faults),
        notes,
        trouble: shown.trouble.iter().cloned().chain(away).collect(),
        faults: faults.len(),
        elsewhere,
        shown: &shown,
        retype,
        fingerprint,
    };
    html(status, &form)
}

async fn enter(State(setup): State<Setup>, over: Option<Extension<OverTls>>, request: Request) -> Response {
    let refuse =
        |status, trouble: &str| html(status, &Enter { trouble, fingerprint: encrypted::fingerprint(over.as_ref()) });
    if !is_same_origin(request.headers()) {
        return refuse(StatusCode::FORBIDDEN, "The request came from another site.");
    }
    let Ok(pairs) = read_form(request.into_body()).await else {
        return refuse(StatusCode::BAD_REQUEST, "That was no form.");
    };
    let code = pairs.into_iter().find_map(|(name, text)| (name == "code").then_some(text)).unwrap_or_default();
    match setup.backend.enter(code).await {
        Ok(Ok(())) => {
            let mut random = [0; 32];
            if getrandom::fill(&mut random).is_err() {
                return refuse(StatusCode::SERVICE_UNAVAILABLE, "There are no random numbers yet.");
            }
            let token = setup.sessions.begin(Uptime::now(), random);
            tracing::info!("the setup code was entered on the page");
            ([(header::SET_COOKIE, token.cookie(over.is_some()))], Redirect::to(SIGN_IN)).into_response()
        }
        Ok(Err(refusal)) => {
            let status = match refusal {
                Refusal::Wrong => StatusCode::FORBIDDEN,
                Refusal::Wait(_) => StatusCode::TOO_MANY_REQUESTS,
            };
            refuse(status, &sentence(&refusal.to_string()))
        }
        Err(away) => refuse(StatusCode::SERVICE_UNAVAILABLE, &sentence(&away)),
    }
}

async fn apply(State(setup): State<Setup>, over: Option<Extension<OverTls>>, request: Request) -> Response {
    let fingerprint = encrypted::fingerprint(over.as_ref());
    let (token, pairs) = match admitted(&setup, request).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let answers = match Answers::new(pairs) {
        Ok(answers) => answers,
        Err(error) => {
            return page(
                &setup,
                (&token, fingerprint),
                StatusCode::BAD_REQUEST,
                vec![sentence(&error.to_string())],
                None,
            )
            .await;
        }
    };
    match setup.backend.apply(answers.clone()).await {
        Ok(Ok(applied)) => {
            setup.sessions.note(&token, words(&applied));
            Redirect::to(SIGN_IN).into_response()
        }
        Ok(Err(faults)) => {
            page(&setup, (&token, fingerprint), StatusCode::UNPROCESSABLE_ENTITY, Vec::new(), Some((answers, faults)))
                .await
        }
        Err(away) => {
            page(
                &setup,
                (&token, fingerprint),
                StatusCode::SERVICE_UNAVAILABLE,
                vec![sentence(&away)],
                Some((answers, Vec::new())),
            )
            .await
        }
    }
}

async fn leave(State(setup): State<Setup>, request: Request) -> Response {
    match admitted(&setup, request).await {
        Ok((token, _)) => {
            setup.sessions.end(&token);
            Redirect::to("/").into_response()
        }
        Err(refused) => refused,
    }
}

async fn keep(State(setup): State<Setup>, connection: Option<Extension<TcpConnectInfo>>, request: Request) -> Response {
    let (token, pairs) = match admitted(&setup, request).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let trial = pairs.iter().find_map(|(name, text)| (name == "trial").then(|| text.reveal().parse().ok())?);
    // An IPv4 peer of a socket for both comes with a mapped address.
    let at = connection.and_then(|Extension(info)| info.local_addr).map(|address| address.ip().to_canonical());
    let kept = match (trial, at) {
        (Some(trial), Some(at)) => setup.backend.keep(trial, at).await,
        (None, _) | (_, None) => Err("it is not known which network is to be kept".to_owned()),
    };
    let note =
        kept.map_or_else(|error| format!("The network is not kept: {error}."), |()| "The network is kept.".to_owned());
    setup.sessions.note(&token, vec![note]);
    Redirect::to(SIGN_IN).into_response()
}

async fn go_back(State(setup): State<Setup>, request: Request) -> Response {
    let (token, _) = match admitted(&setup, request).await {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    let gone = setup.backend.go_back().await;
    let note = gone.map_or_else(
        |error| format!("The network stays: {error}."),
        |()| "The network is the one before again.".to_owned(),
    );
    setup.sessions.note(&token, vec![note]);
    Redirect::to(SIGN_IN).into_response()
}

/// The template of the file for sticks: for everyone, since it is the same on every box.
async fn template() -> Response {
    let disposition = "attachment; filename=\"pilotlight.toml\"";
    let headers = [(header::CONTENT_TYPE, "application/toml"), (header::CONTENT_DISPOSITION, disposition)];
    (headers, file::write(&Settings::default())).into_response()
}

/// The session and the form of a request that may change the box; else what is answered.
async fn admitted(setup: &Setup, request: Request) -> Result<(Token, Vec<(String, Secret<String>)>), Response> {
    let refuse = |why| html(StatusCode::FORBIDDEN, &view::Refused { why, sign_in: Some(SIGN_IN) });
    if !is_same_origin(request.headers()) {
        return Err(refuse("The request came from another site."));
    }
    let Some(token) = setup.sessions.of(request.headers(), Uptime::now()) else {
        return Err(refuse("Nobody has entered the setup code here, or it was too long ago."));
    };
    let Ok(mut pairs) = read_form(request.into_body()).await else {
        return Err(html(StatusCode::BAD_REQUEST, &view::Refused { why: "That was no form.", sign_in: Some(SIGN_IN) }));
    };
    let brought = pairs.iter().position(|(name, _)| name == TOKEN).map(|at| pairs.swap_remove(at).1);
    match brought {
        Some(brought) if token.admits(brought.reveal()) => Ok((token, pairs)),
        Some(_) | None => Err(refuse("The form is too old, or not from this page.")),
    }
}

async fn read_form(body: Body) -> Result<Vec<(String, Secret<String>)>, ()> {
    let octets = to_bytes(body, MOST_OF_FORM).await.map_err(drop)?;
    form::decode(&octets).map_err(drop)
}

/// What was done, for people.
fn words(applied: &Applied) -> Vec<String> {
    let mut words = vec!["Saved.".to_owned()];
    if !applied.restarted.is_empty() {
        words.push(format!("Starts anew: {}.", applied.restarted.join(", ")));
    }
    if applied.trial {
        words.push(
            "The new network is being tried: keep it below within a minute, at an address that it gave the box."
                .to_owned(),
        );
    }
    words.extend(applied.notes.iter().cloned());
    words
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let text: String = letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect());
    if text.ends_with('.') { text } else { format!("{text}.") }
}
