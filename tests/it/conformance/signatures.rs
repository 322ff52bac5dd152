//! Section 2.3: what a signature must say.

use pilotlight::proto::cosi;
use pilotlight::time::UnixTime;
use tonic::Request;

use super::{Row, row};
use crate::raw_state::{At, Signing, said};

const GET: &str = "/cosi.resource.State/Get";

fn get(at: &At) -> cosi::GetRequest {
    cosi::GetRequest {
        namespace: at.kind.namespace.clone(),
        r#type: at.kind.r#type.clone(),
        id: "a".into(),
        options: None,
    }
}

async fn with(at: At, signing: Signing) -> String {
    send(&at, at.raw.sign(&signing, get(&at))).await
}

async fn send(at: &At, request: Request<cosi::GetRequest>) -> String {
    said(&at.raw.rpc().get(request).await)
}

fn now() -> UnixTime {
    UnixTime::now()
}

fn off(seconds: i64) -> UnixTime {
    UnixTime::from_secs(now().as_secs().saturating_add_signed(seconds))
}

pub fn rows() -> Vec<Row> {
    // A resource that is absent tells that the call came through.
    vec![
        row("a payload with the timestamp and the method alone is enough", "NotFound", |at| {
            with(at, Signing::minimal(GET, now()))
        }),
        row("headers that are null count as absent", "NotFound", |at| {
            let minimal = Signing::minimal(GET, now());
            let payload = minimal.payload.replace(r#"{"x-sidero"#, r#"{"nodes":null,"uid":null,"x-sidero"#);
            with(at, Signing { payload, ..minimal })
        }),
        row("headers that are [] do not count as absent", "Unauthenticated", |at| {
            let minimal = Signing::minimal(GET, now());
            let payload = minimal.payload.replace(r#"{"x-sidero"#, r#"{"nodes":[],"x-sidero"#);
            with(at, Signing { payload, ..minimal })
        }),
        row("the method must be the one called", "Unauthenticated", |at| {
            with(at, Signing::minimal("/cosi.resource.State/Update", now()))
        }),
        row("covered metadata must be in the payload", "Unauthenticated", |at| async move {
            let mut request = at.raw.sign(&Signing::minimal(GET, now()), get(&at));
            request.metadata_mut().insert("nodes", "a".parse().unwrap());
            send(&at, request).await
        }),
        row("other metadata is free", "NotFound", |at| async move {
            let mut request = at.raw.sign(&Signing::minimal(GET, now()), get(&at));
            request.metadata_mut().insert("providerid", "a".parse().unwrap());
            send(&at, request).await
        }),
        row("a clock 4 minutes behind is forgiven", "NotFound", |at| with(at, Signing::minimal(GET, off(-240)))),
        row("a clock 4 minutes ahead is forgiven", "NotFound", |at| with(at, Signing::minimal(GET, off(240)))),
        row("a clock 6 minutes behind is not", "Unauthenticated", |at| with(at, Signing::minimal(GET, off(-360)))),
        row("a clock 6 minutes ahead is not", "Unauthenticated", |at| with(at, Signing::minimal(GET, off(360)))),
        row("a signature older than its key is refused", "Unauthenticated", |at| {
            with(at, Signing { created: UnixTime::from_secs(1_600_000_000), ..Signing::minimal(GET, now()) })
        }),
        row("a signature made an hour ahead is refused", "Unauthenticated", |at| {
            with(at, Signing { created: off(3600), ..Signing::minimal(GET, now()) })
        }),
        row("the timestamp sent must be the one signed", "Unauthenticated", |at| {
            with(at, Signing { timestamp: off(1).as_secs().to_string(), ..Signing::minimal(GET, now()) })
        }),
        row(
            "an unsigned call is refused",
            "Unauthenticated",
            |at| async move { send(&at, Request::new(get(&at))).await },
        ),
        row("a payload that was changed is refused", "Unauthenticated", |at| async move {
            let mut request = at.raw.sign(&Signing::minimal(GET, now()), get(&at));
            let payload = format!("{} ", Signing::minimal(GET, now()).payload.replace('{', "{ "));
            request.metadata_mut().insert("x-sidero-payload", payload.trim().parse().unwrap());
            send(&at, request).await
        }),
    ]
}
