//! Installation on the page: the box's other disks, a name that is typed out, and how the copy goes. Works without a script.
//!
//! An edge: HTTP on one side, PID 1's control socket on the other. All of it stands behind the guard, the list of disks, too.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::guard::{self, Guard};
use super::html;
use super::update::fields;
use crate::ipc;
use crate::supervise::control::{Reply, Request};
use crate::supervise::install::{Installation, Job, Phase, Progress};

/// The most octets of the form.
const LARGEST_FORM: usize = 1 << 10;
/// How often the page is asked for anew while it is written, in seconds.
const REFRESH: HeaderValue = HeaderValue::from_static("2");

/// Behind `guard`, with PID 1 at the socket `init`:
///
/// - `GET /install` looks which disks are there;
/// - `POST /install` with a form of `name`, `octets`, and `typed`, the name once more, copies the system to that disk;
/// - `POST /install/restart` starts the box anew.
pub fn routes(init: PathBuf, guard: Arc<dyn Guard>) -> Router {
    let init = Init(init.into());
    let routes = Router::new()
        .route("/install", get(page).post(install))
        .route("/install/restart", post(restart))
        .layer(DefaultBodyLimit::max(LARGEST_FORM))
        .with_state(init);
    guard::behind(guard, routes)
}

/// PID 1.
#[derive(Clone, Debug)]
struct Init(Arc<std::path::Path>);

impl Init {
    /// Why not, in words.
    async fn ask(&self, request: Request) -> Result<Reply, String> {
        let path = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || ipc::init::ask_at(&path, &request)).await;
        match asked.map_err(io::Error::other).flatten() {
            Ok(Reply::Refused(why) | Reply::Failed(why)) => Err(why),
            Ok(Reply::Denied) => Err("PID 1 denies it".to_owned()),
            Ok(reply) => Ok(reply),
            Err(error) => Err(format!("PID 1 does not answer: {error}")),
        }
    }

    async fn installation(&self) -> Result<Installation, String> {
        match self.ask(Request::Status).await? {
            Reply::Status(status) => Ok(status.installation),
            _ => Err("PID 1 answers another question".to_owned()),
        }
    }
}

#[derive(Deserialize)]
struct Form {
    name: String,
    octets: u64,
    #[serde(default)]
    typed: String,
}

/// What the page shows.
#[derive(Template)]
#[template(path = "install.html", config = "src/web/askama.toml")]
struct Page {
    shown: Installation,
    /// Why the last wish is not done.
    refused: String,
}

impl Page {
    fn says(&self, job: &Job) -> String {
        let mut text = job.to_string();
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        format!("{text}.")
    }

    fn progress(&self, job: &Job) -> Option<Progress> {
        match job.phase {
            Phase::Running(progress) => Some(progress),
            Phase::Done | Phase::Failed(_) | Phase::Unfinished => None,
        }
    }

    fn failed(&self, job: &Job) -> bool {
        matches!(job.phase, Phase::Failed(_) | Phase::Unfinished)
    }

    fn done(&self, job: &Job) -> bool {
        matches!(job.phase, Phase::Done)
    }
}

async fn page(State(init): State<Init>) -> Response {
    shown(&init, StatusCode::OK, String::new()).await
}

/// The page, with the disks that are there now; while something is written it asks for itself again.
async fn shown(init: &Init, status: StatusCode, refused: String) -> Response {
    let found = async {
        let before = init.installation().await?;
        if before.running() {
            return Ok(before);
        }
        // One that somebody else's look is under way for answers as well.
        let looked = init.ask(Request::Survey).await;
        match (looked, init.installation().await?) {
            (Err(why), now) if now.disks.is_empty() && !now.running() => Err(why),
            (_, now) => Ok(now),
        }
    };
    let (shown, refused) = match found.await {
        Ok(shown) => (shown, refused),
        Err(why) if refused.is_empty() => (Installation::default(), why),
        Err(_) => (Installation::default(), refused),
    };
    let page = Page { shown, refused };
    let mut response = html(status, &page);
    if page.shown.running() && status == StatusCode::OK {
        response.headers_mut().insert(header::REFRESH, REFRESH);
    }
    response
}

async fn install(State(init): State<Init>, form: String) -> Response {
    let Some(Form { name, octets, typed }) = fields::<Form>(&form) else {
        return shown(&init, StatusCode::BAD_REQUEST, "no disk was named".to_owned()).await;
    };
    if typed.trim() != name || name.is_empty() {
        return shown(&init, StatusCode::UNPROCESSABLE_ENTITY, "the disk's name was not typed out".to_owned()).await;
    }
    tracing::info!(disk = name, "an installation is asked for on the page");
    match init.ask(Request::Install { name, octets }).await {
        Ok(_) => Redirect::to("/install").into_response(),
        Err(why) => shown(&init, StatusCode::CONFLICT, why).await,
    }
}

async fn restart(State(init): State<Init>) -> Response {
    match init.ask(Request::Reboot).await {
        Ok(_) => Redirect::to("/").into_response(),
        Err(why) => shown(&init, StatusCode::SERVICE_UNAVAILABLE, why).await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::body::Body;
    use http_body_util::BodyExt;
    use socket2::{Domain, SockAddr, Socket, Type};
    use tower::ServiceExt;

    use super::*;
    use crate::supervise::control::{MAX_REQUEST, Status, decode, encode};
    use crate::supervise::install::{Ask, Bus, Disk, Installer, Told};

    #[derive(Debug)]
    struct Open;

    impl Guard for Open {
        fn admit(&self, _: &http::request::Parts) -> Result<(), guard::Denied> {
            Ok(())
        }
    }

    fn disk() -> Disk {
        let (name, model, holds) = ("sdb".to_owned(), "Disk <3000>".to_owned(), "an NTFS file system".to_owned());
        Disk { name, model, bus: Bus::Sata, octets: 256_060_514_304, holds, unfit: None }
    }

    /// A socket with PID 1's rules behind it, and a process that finds two disks and begins; returns what was asked.
    fn play_init(path: &std::path::Path) -> Arc<Mutex<Vec<Request>>> {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        listener.bind(&SockAddr::unix(path).unwrap()).unwrap();
        listener.listen(4).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&asked);
        let mut installer = Installer::default();
        std::thread::spawn(move || {
            while let Ok((one, _)) = listener.accept() {
                let mut octets = [0; MAX_REQUEST];
                let length = io::Read::read(&mut &one, &mut octets).unwrap();
                let request: Request = decode(&octets[..length]).unwrap();
                all.lock().unwrap().push(request.clone());
                let status = Status { installation: installer.shown(), ..Status::default() };
                let mut work = |ask: &Ask, told: Told| {
                    installer.ask(1, ask, &status).unwrap();
                    let reply = installer.told(told).unwrap().1;
                    if *ask == Ask::Survey {
                        installer.ended();
                    }
                    reply
                };
                let unfit = Disk { name: "sdc".into(), unfit: Some("it is write-protected".into()), ..disk() };
                let reply = match request {
                    Request::Status => Reply::Status(status),
                    Request::Survey => work(&Ask::Survey, Told::Disks(vec![disk(), unfit])),
                    Request::Install { name, octets } if name == "sdb" => {
                        work(&Ask::Install { name, octets }, Told::Begun(disk()))
                    }
                    _ => Reply::Refused("there is no such disk now; look again".into()),
                };
                one.send(&encode(&reply)).unwrap();
            }
        });
        asked
    }

    async fn send(router: &Router, request: http::Request<Body>) -> (StatusCode, bool, String) {
        let response = router.clone().oneshot(request).await.unwrap();
        let (status, refresh) = (response.status(), response.headers().contains_key(header::REFRESH));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, refresh, String::from_utf8(body.to_vec()).unwrap())
    }

    fn form(text: &str) -> http::Request<Body> {
        http::Request::post("/install").body(Body::from(text.to_owned())).unwrap()
    }

    #[tokio::test]
    async fn a_disk_is_written_to_when_its_name_was_typed_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init.sock");
        let asked = play_init(&path);
        let router = routes(path, Arc::new(Open));
        let get = || http::Request::get("/install").body(Body::empty()).unwrap();
        let (status, refresh, page) = send(&router, get()).await;
        assert_eq!((status, refresh), (StatusCode::OK, false));
        assert!(page.contains("sdb: 256 GB SATA Disk &#60;3000&#62;") && page.contains("It holds an NTFS"), "{page}");
        assert!(page.contains("it is write-protected") && !page.contains("Erase sdc"), "{page}");
        for (text, wanted) in [
            ("name=sdb&octets=5", StatusCode::UNPROCESSABLE_ENTITY),
            ("name=sdb&octets=5&typed=sda", StatusCode::UNPROCESSABLE_ENTITY),
            ("name=&octets=5&typed=", StatusCode::UNPROCESSABLE_ENTITY),
            ("octets=5&typed=sdb", StatusCode::BAD_REQUEST),
            ("name=sdd&octets=5&typed=sdd", StatusCode::CONFLICT),
        ] {
            assert_eq!(send(&router, form(text)).await.0, wanted, "{text}");
        }
        let begun = |request: &Request| matches!(request, Request::Install { name, .. } if name == "sdb");
        assert!(!asked.lock().unwrap().iter().any(begun));
        let (status, ..) = send(&router, form("name=sdb&octets=256060514304&typed=sdb")).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        let wanted = Request::Install { name: "sdb".into(), octets: 256_060_514_304 };
        assert!(asked.lock().unwrap().contains(&wanted));
        let (_, refresh, page) = send(&router, get()).await;
        assert!(refresh && page.contains("Installs to sdb") && !page.contains("<button>Erase"), "{page}");
    }

    #[tokio::test]
    async fn nobody_gets_past_the_guard_and_a_box_without_pid_1_says_so() {
        let router = routes("/nowhere/init.sock".into(), Arc::new(guard::Closed));
        let (status, _, page) = send(&router, http::Request::get("/install").body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{page}");
        assert_eq!(send(&router, form("name=sdb&octets=5&typed=sdb")).await.0, StatusCode::FORBIDDEN);
        let router = routes("/nowhere/init.sock".into(), Arc::new(Open));
        let (_, _, page) = send(&router, http::Request::get("/install").body(Body::empty()).unwrap()).await;
        assert!(page.contains("PID 1 does not answer"), "{page}");
    }
}
