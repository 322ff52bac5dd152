//! Who may change the box from its page.
//!
//! Every route that changes something stands behind [`behind`], and asks one [`Guard`] before its handler sees a single
//! octet of the body.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::view;

/// Decides whether a request may change the box.
///
/// What tells a person from a stranger lies in the request's head: its session, and where the browser says that it comes
/// from (`Origin`, `Sec-Fetch-Site`), so that no other site can ask in a person's name. The body is not read yet.
pub trait Guard: fmt::Debug + Send + Sync + 'static {
    /// Whether the request with this head may change the box.
    ///
    /// # Errors
    ///
    /// [`Denied`], with what to do about it.
    fn admit(&self, request: &Parts) -> Result<(), Denied>;
}

/// A request that may not change the box.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Denied {
    /// Why, in a sentence for the page.
    pub why: String,
    /// Where a person gets the right to: a path on this origin.
    pub sign_in: Option<&'static str>,
}

/// Nobody may change anything: the guard of a box that has no way to know people.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closed;

impl Guard for Closed {
    fn admit(&self, _request: &Parts) -> Result<(), Denied> {
        let why = "This box can't be changed from its page: nothing here knows who may.".to_owned();
        Err(Denied { why, sign_in: None })
    }
}

/// Puts `routes` behind `guard`.
pub fn behind(guard: Arc<dyn Guard>, routes: Router) -> Router {
    routes.layer(from_fn_with_state(guard, ask))
}

async fn ask(State(guard): State<Arc<dyn Guard>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match guard.admit(&head) {
        Ok(()) => next.run(Request::from_parts(head, body)).await,
        Err(denied) => denied.into_response(),
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        super::html(StatusCode::FORBIDDEN, &view::Refused { why: &self.why, sign_in: self.sign_in })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::post;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[derive(Debug)]
    struct Password;

    impl Guard for Password {
        fn admit(&self, request: &Parts) -> Result<(), Denied> {
            match request.headers.get("authorization") {
                Some(value) if value == "open sesame" => Ok(()),
                _ => Err(Denied { why: "Say <the> word.".into(), sign_in: Some("/enter") }),
            }
        }
    }

    async fn ask_for(guard: impl Guard, word: &str) -> (StatusCode, String) {
        let router = behind(Arc::new(guard), Router::new().route("/change", post(|| async { "changed" })));
        let request = Request::post("/change").header("authorization", word).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_change_is_made_for_who_may_alone() {
        assert_eq!(ask_for(Password, "open sesame").await, (StatusCode::OK, "changed".into()));
        let (status, page) = ask_for(Password, "open").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(page.contains("Say &#60;the&#62; word.") && page.contains("href=\"/enter\""), "{page}");
        let (status, page) = ask_for(Closed, "open sesame").await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(page.contains("can&#39;t be changed from its page"), "{page}");
    }
}
