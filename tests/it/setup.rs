//! The configuration on the page: three services as processes of their own, and a real browser before them.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use base64::Engine;
use http_body_util::BodyExt;
use pilotlight::ipc::ask_at;
use pilotlight::secret::Secret;
use pilotlight::settings::Answers;
use pilotlight::settings::Fault;
use pilotlight::settings::desk::{Answer, Applied, Ask, Refusal, Shown};
use pilotlight::web::session::Sessions;
use pilotlight::web::settings::{Backend, router};
use tower::ServiceExt;

use super::page::browser::Browser;

/// The services `net`, `settings` and `web`; killed when dropped.
struct Services {
    root: tempfile::TempDir,
    children: Vec<Child>,
    url: String,
}

impl Services {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut all = Self { root, children: Vec::new(), url: String::new() };
        for name in ["net", "settings", "web"] {
            all.run(name);
        }
        all
    }

    fn run(&mut self, name: &str) {
        let (run, state) = (self.root.path().join("run"), self.root.path().join("state"));
        std::fs::create_dir_all(run.join(name)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pilotlight"))
            .args(["service", name, "--web-listen-address=127.0.0.1:0"])
            .arg(format!("--run-dir={}", run.display()))
            .arg(format!("--state-dir={}", state.display()))
            .arg(format!("--update-stick-path={}", self.stick().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        self.children.push(child);
        if name == "web" {
            let mut said = String::new();
            while !said.contains("listening") {
                said.clear();
                assert_ne!(log.read_line(&mut said).unwrap(), 0, "web ended");
            }
            let port: String =
                said.split("127.0.0.1:").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
            self.url = format!("http://127.0.0.1:{port}");
        }
        // What it says further must not stop it.
        std::thread::spawn(move || drop(std::io::copy(&mut log.by_ref(), &mut std::io::sink())));
    }

    /// Where a stick is mounted.
    fn stick(&self) -> PathBuf {
        self.root.path().join("stick")
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.root.path().join("state/settings").join(name)
    }

    /// The code on the screen.
    fn code(&self) -> String {
        let kept: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.kept("access.json")).unwrap()).unwrap();
        kept["shown"].as_str().unwrap().to_owned()
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn key() -> String {
    let json = serde_json::json!({ "name": "infra", "pgp_key": "-----BEGIN PGP PRIVATE KEY BLOCK-----" });
    base64::engine::general_purpose::STANDARD.encode(json.to_string())
}

fn fill(browser: &mut Browser, name: &str, text: &str) {
    browser.evaluate(&format!("document.getElementsByName({name:?})[0].value = {text:?}"));
}

#[test]
fn a_stick_is_taken_in_by_the_service_that_runs() {
    if !nix::unistd::geteuid().is_root() {
        super::peers::say("skipped: only root may say that there is a stick");
        return;
    }
    let services = Services::start();
    let stick = services.stick();
    std::fs::create_dir(&stick).unwrap();
    let key = key();
    let wrong = "hostname = \"-\"\n[omni]\nendpoint = 7\n";
    let right = format!("hostname = \"rack7\"\n[omni]\nendpoint = \"https://omni.example.org\"\nkey = \"{key}\"\n");
    let socket = services.root.path().join("run/settings/settings.sock");
    let report = || std::fs::read_to_string(stick.join("pilotlight-report.txt")).unwrap();
    for (text, said) in [(wrong, "NOTHING of it counts"), (right.as_str(), "- hostname = rack7\n")] {
        std::fs::write(stick.join("pilotlight.toml"), text).unwrap();
        // The second time it is known.
        for _ in 0..2 {
            let answer = ask_at::<Ask, Answer>(&socket, &Ask::Stick, Duration::from_secs(100));
            assert!(matches!(answer, Ok(Answer::Looked)));
            assert!(report().contains(said), "{}", report());
        }
        assert_eq!(services.kept("settings.toml").exists(), text == right);
    }
    assert_eq!(std::fs::read_to_string(services.kept("key")).unwrap(), key);
    let left = std::fs::read_to_string(stick.join("pilotlight.toml")).unwrap();
    assert!(!left.contains(&key) && left.len() == right.len(), "{left}");
    let (flags, settings) = (services.kept("flags"), services.kept("settings.toml"));
    assert!(std::fs::read_to_string(flags).unwrap().contains("--omni-api-endpoint=https://omni.example.org"));
    assert!(std::fs::read_to_string(settings).unwrap().contains("rack7"));
    // A stick that was pulled is no fault of the service.
    std::fs::remove_dir_all(&stick).unwrap();
    let answer = ask_at::<Ask, Answer>(&socket, &Ask::Stick, Duration::from_secs(100));
    assert!(matches!(answer, Ok(Answer::Looked)));
}

#[test]
fn a_browser_sets_the_box_up_without_a_script_of_ours() {
    if !super::peers::require("chromium", "chromium") {
        return;
    }
    let services = Services::start();
    let mut browser = Browser::start();
    browser.without_scripts();
    browser.view(1000, 900, "light");
    let setup = format!("{}/setup", services.url);
    browser.open(&setup);
    let code = services.code();
    fill(&mut browser, "code", "wrong-code");
    browser.click("form.setup button");
    assert!(text(&mut browser, "[role=alert]").starts_with("This is not the setup code"));
    assert_eq!(services.code(), code, "it is still the box's own");
    fill(&mut browser, "code", &code.to_lowercase());
    browser.click("form.setup button");
    assert_eq!(text(&mut browser, "h2"), "Setup");
    assert!(!std::fs::read_to_string(services.kept("access.json")).unwrap().contains(&code), "its hash alone is kept");
    assert_eq!(browser.evaluate("document.cookie"), "", "no script reads the session");

    fill(&mut browser, "omni.endpoint", "omni.example");
    fill(&mut browser, "provider.poll-interval", "soon");
    fill(&mut browser, "network.interfaces[0].mode", "static");
    fill(&mut browser, "setup.code", "new-code-2026");
    browser.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("setup-filled.png"));
    browser.click("form.setup > button");
    let wrong = "[...document.querySelectorAll('[aria-invalid]')].map((input) => input.name).join()";
    assert_eq!(
        browser.evaluate(wrong),
        "omni.endpoint,omni.key,provider.poll-interval,network.interfaces[0].mac,network.interfaces[0].address"
    );
    assert!(
        text(&mut browser, "[role=alert]")
            .starts_with("Nothing was changed. 5 answers are wrong. Type secrets once more")
    );
    let beside = "document.getElementById('omni.endpoint-help').textContent.includes('write https://omni.example')";
    assert_eq!(browser.evaluate(beside), true);
    assert_eq!(browser.evaluate("document.getElementsByName('setup.code')[0].value"), "", "a secret is not sent back");
    assert!(!services.kept("settings.toml").exists());
    browser.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("setup-faults.png"));

    fill(&mut browser, "omni.endpoint", "https://omni.example");
    fill(&mut browser, "omni.key", &key());
    fill(&mut browser, "setup.code", "new-code-2026");
    fill(&mut browser, "provider.poll-interval", "45s");
    fill(&mut browser, "network.interfaces[0].mode", "");
    fill(&mut browser, "hostname", "Rack7");
    browser.click("form.setup > button");
    let notes = "[...document.querySelectorAll('.note')].map((note) => note.textContent).join(' ')";
    let notes = browser.evaluate(notes);
    assert_eq!(notes, "Saved. It counts when these start anew: dhcp, net, provider.");
    assert_eq!(browser.evaluate("document.getElementsByName('hostname')[0].value"), "rack7");
    assert_eq!(browser.evaluate(&format!("document.documentElement.outerHTML.includes({:?})", key())), false);
    assert_eq!(std::fs::read_to_string(services.kept("key")).unwrap(), key());
    let flags = std::fs::read_to_string(services.kept("flags")).unwrap();
    let flags: Vec<_> = flags.lines().filter(|line| line.starts_with("--")).collect();
    assert_eq!(flags, ["--hostname=rack7", "--omni-api-endpoint=https://omni.example", "--poll-interval=45s"]);
    assert!(!std::fs::read_to_string(services.kept("settings.toml")).unwrap().contains(&key()));

    for (width, scheme) in [(360, "light"), (1280, "dark")] {
        browser.view(width, 800, scheme);
        browser.open(&setup);
        let sideways = browser.evaluate("document.scrollingElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(sideways, 0, "{width}");
        browser.screenshot(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("setup-{width}-{scheme}.png")));
    }
    browser.click("form[action='/setup/leave'] button");
    browser.open(&setup);
    assert_eq!(text(&mut browser, "h2"), "Setup code");
    fill(&mut browser, "code", &code);
    browser.click("form.setup button");
    assert!(text(&mut browser, "[role=alert]").starts_with("This is not"), "the code was changed with the rest");
    fill(&mut browser, "code", "new code 2026");
    browser.click("form.setup button");
    assert_eq!(text(&mut browser, "h2"), "Setup");
    // The browser itself logs answers from 400 on.
    let complaints = browser.complaints();
    let ours: Vec<_> =
        complaints.iter().filter(|entry| !entry["text"].as_str().unwrap_or_default().contains("status of 4")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    browser.close();
}

fn text(browser: &mut Browser, selector: &str) -> String {
    let text = browser.evaluate(&format!("document.querySelector({selector:?})?.textContent.trim() ?? 'nothing'"));
    text.as_str().unwrap().to_owned()
}

/// Counts what reaches it; its code is `right`.
#[derive(Debug, Default)]
struct Counting {
    applied: Mutex<Vec<Answers>>,
}

#[async_trait]
impl Backend for Counting {
    async fn show(&self) -> Result<Shown, String> {
        let answers =
            vec![("hostname".to_owned(), "<b>\"x\"".to_owned()), ("omni.key".to_owned(), "SECRET".to_owned())];
        Ok(Shown { answers, ..Shown::default() })
    }

    async fn enter(&self, code: Secret<String>) -> Result<Result<(), Refusal>, String> {
        Ok(match code.reveal().as_str() {
            "right" => Ok(()),
            "late" => Err(Refusal::Wait(7)),
            _ => Err(Refusal::Wrong),
        })
    }

    async fn apply(&self, answers: Answers) -> Result<Result<Applied, Vec<Fault>>, String> {
        self.applied.lock().unwrap().push(answers);
        Ok(Ok(Applied::default()))
    }

    async fn keep(&self, _: u64, _: std::net::IpAddr) -> Result<(), String> {
        Err("no".to_owned())
    }

    async fn go_back(&self) -> Result<(), String> {
        Err("no".to_owned())
    }
}

#[tokio::test]
async fn nothing_changes_without_session_form_and_origin() {
    let backend = Arc::new(Counting::default());
    let router = router(backend.clone(), Sessions::default());
    let send = async |path: &str, headers: &[(&str, &str)], body: String| {
        let mut request = Request::post(path).header("host", "box.local");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let cookie = response.headers().get(header::SET_COOKIE).map(|cookie| cookie.to_str().unwrap().to_owned());
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, cookie, String::from_utf8(body.to_vec()).unwrap())
    };
    let (status, cookie, _) = send("/setup/enter", &[], "code=wrong".into()).await;
    assert_eq!((status, cookie), (StatusCode::FORBIDDEN, None));
    let (status, _, page) = send("/setup/enter", &[], "code=late".into()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(page.contains("wait 7 seconds"));
    let elsewhere = [("origin", "http://evil.example")];
    assert_eq!(send("/setup/enter", &elsewhere, "code=right".into()).await.0, StatusCode::FORBIDDEN);
    let (status, cookie, _) = send("/setup/enter", &[], "code=right".into()).await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let cookie = cookie.unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap().to_owned();

    let page = Request::get("/setup").header("cookie", &cookie).body(Body::empty()).unwrap();
    let page = router.clone().oneshot(page).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(page.contains("&#60;b&#62;&#34;x&#34;") && !page.contains("SECRET"));
    let token = page.split("name=\"token\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let form = format!("token={token}&hostname=a");
    let with = [("cookie", cookie.as_str())];
    let hostile = [("cookie", cookie.as_str()), ("origin", "http://evil.example")];
    let cross = [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site")];
    for path in ["/setup", "/setup/keep", "/setup/return", "/setup/leave"] {
        for (headers, body) in [
            (&[] as &[(&str, &str)], form.clone()),
            (&[("cookie", "pilotlight=00")], form.clone()),
            (&with, "hostname=a".into()),
            (&with, "token=&hostname=a".into()),
            (&hostile, form.clone()),
            (&cross, form.clone()),
        ] {
            assert_eq!(send(path, headers, body).await.0, StatusCode::FORBIDDEN, "{path} {headers:?}");
        }
    }
    assert_eq!(send("/setup", &with, format!("{form}&x={}", "a".repeat(300_000))).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(send("/setup", &with, format!("{form}&hostname=b")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(send("/setup", &with, format!("{form}&%FF=b")).await.0, StatusCode::BAD_REQUEST);
    assert!(backend.applied.lock().unwrap().is_empty());
    assert_eq!(send("/setup", &with, form.clone()).await.0, StatusCode::SEE_OTHER);
    let applied = backend.applied.lock().unwrap().pop().unwrap();
    assert_eq!(applied.reveal(), [("hostname".to_owned(), "a".to_owned())], "the form's token is no answer");
    assert_eq!(send("/setup/leave", &with, form.clone()).await.0, StatusCode::SEE_OTHER);
    assert_eq!(send("/setup", &with, form).await.0, StatusCode::FORBIDDEN);
}
