//! What differs between the page in the clear and the page over TLS.
//!
//! The status page, the metrics and what programs ask for stay on the plain port, too. A form that takes the setup code or
//! Omni's key does not: whoever opens one there is sent to the same page over TLS. The header that would have browsers
//! insist on TLS from then on is left out: with a certificate that signed itself, browsers would let nobody in.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request};
use axum::http::{Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;

use crate::netboot::serve::OverTls;

/// Pages that are shown over TLS alone, with all below them.
const FORMS: [&str; 2] = ["/setup", "/install"];
/// Below them, but for everyone.
const PLAIN: &str = "/setup/pilotlight.toml";

/// `router` for the plain port beside one that speaks TLS on `port`.
pub fn beside_tls(router: Router, port: u16) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| async move {
        match elsewhere(&request, port) {
            Some(url) => Redirect::temporary(&url).into_response(),
            None => next.run(request).await,
        }
    }))
}

/// `/certificate.pem`: the certificate `pem`, for who wants to know the box again.
pub fn certificate(pem: String) -> Router {
    let pem: Arc<str> = pem.into();
    let headers = [(header::CONTENT_TYPE, "application/x-pem-file")];
    Router::new().route("/certificate.pem", get(move || std::future::ready((headers, pem.to_string()))))
}

/// The fingerprint of the certificate that a request came under; nothing where it came in the clear.
pub fn fingerprint(over: Option<&Extension<OverTls>>) -> String {
    over.map(|Extension(over)| over.fingerprint.to_string()).unwrap_or_default()
}

/// Where a request belongs, unless it is right where it is.
fn elsewhere(request: &Request, port: u16) -> Option<String> {
    let path = request.uri().path();
    let below = |form: &str| path.strip_prefix(form).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_form = FORMS.into_iter().any(below) && path != PLAIN;
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !is_form || !reads || request.extensions().get::<OverTls>().is_some() {
        return None;
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).and_then(plain_host)?;
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    Some(format!("https://{host}{port}{path}"))
}

/// The host of `Host`, without its port; nothing where it is no name or address.
fn plain_host(text: &str) -> Option<&str> {
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(end);
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '[' | ']' | ':');
    let whole = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    (!host.is_empty() && host.chars().all(known) && whole).then_some(host)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use tower::ServiceExt;

    use super::*;

    fn request(method: &str, path: &str, host: &str) -> Request {
        http::Request::builder().method(method).uri(path).header("host", host).body(Body::empty()).unwrap()
    }

    #[test]
    fn a_form_in_the_clear_is_elsewhere() {
        let at = |method, path, host, port| elsewhere(&request(method, path, host), port);
        assert_eq!(at("GET", "/setup", "10.0.0.5", 443).as_deref(), Some("https://10.0.0.5/setup"));
        assert_eq!(at("GET", "/install?x", "box.local:80", 8443).as_deref(), Some("https://box.local:8443/install"));
        assert_eq!(at("HEAD", "/setup/keep", "[fe80::1]:80", 443).as_deref(), Some("https://[fe80::1]/setup/keep"));
        for (method, path, host) in [
            ("GET", "/", "box"),
            ("GET", "/setups", "box"),
            ("GET", "/setup/pilotlight.toml", "box"),
            ("GET", "/metrics", "box"),
            ("POST", "/setup/enter", "box"),
            ("GET", "/setup", "box/../evil@x"),
            ("GET", "/setup", ""),
        ] {
            assert_eq!(at(method, path, host, 443), None, "{method} {path} {host}");
        }
        let mut over = request("GET", "/setup", "box");
        over.extensions_mut().insert(OverTls { fingerprint: "AB".into() });
        assert_eq!(elsewhere(&over, 443), None);
    }

    #[tokio::test]
    async fn the_plain_port_sends_forms_away_and_serves_the_rest() {
        let routes = Router::new().route("/setup", get(|| async { "form" })).route("/", get(|| async { "page" }));
        let router = beside_tls(routes.merge(certificate("PEM".to_owned())), 443);
        let answer = router.clone().oneshot(request("GET", "/setup", "box")).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["location"]),
            (307, &"https://box/setup".parse().unwrap())
        );
        for (path, wanted) in [("/", "page"), ("/certificate.pem", "PEM")] {
            let answer = router.clone().oneshot(request("GET", path, "box")).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), wanted);
        }
    }

    proptest! {
        #[test]
        fn any_host_is_plain_or_none(host in ".{0,60}") {
            if let Some(plain) = plain_host(&host) {
                prop_assert!(plain.chars().all(|c| !matches!(c, '/' | '@' | '?' | '#' | '\\' | ' ' | '<')));
            }
        }
    }
}
