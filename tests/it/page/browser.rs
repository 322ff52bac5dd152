//! Chromium over the DevTools protocol's pipe: JSON messages with a NUL behind each, on its descriptors 3 and 4.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::stat::Mode;
use serde_json::{Value, json};

/// How long an answer is waited for; a browser on a busy machine starts slowly.
const PATIENCE: Duration = Duration::from_secs(60);

/// A headless browser with one tab. Killed when dropped.
pub struct Browser {
    child: Child,
    input: File,
    messages: Receiver<Value>,
    session: Option<String>,
    number: u64,
    loaded: bool,
    complaints: Vec<Value>,
    _home: tempfile::TempDir,
}

impl Browser {
    /// Starts Chromium with an empty profile of its own.
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (input, output) = (home.path().join("in"), home.path().join("out"));
        for pipe in [&input, &output] {
            nix::unistd::mkfifo(pipe, Mode::S_IRWXU).unwrap();
        }
        let child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<\"$PIPE_IN\" 4>\"$PIPE_OUT\"", "sh"])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", home.path().join("profile").display()))
            .env("HOME", home.path())
            .env("PIPE_IN", &input)
            .env("PIPE_OUT", &output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // In the shell's order, since opening a pipe waits for its other end.
        let input = File::options().write(true).open(input).unwrap();
        let mut output = BufReader::new(File::open(output).unwrap());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { return };
                if sender.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            input,
            messages,
            session: None,
            number: 0,
            loaded: false,
            complaints: Vec::new(),
            _home: home,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page.enable", "Log.enable", "Runtime.enable"] {
            browser.call(domain, json!({}));
        }
        browser
    }

    /// Sets the tab's size in CSS pixels and its colour scheme.
    pub fn view(&mut self, width: u64, height: u64, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// Opens a URL and waits until it has loaded.
    pub fn open(&mut self, url: &str) {
        self.loaded = false;
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert_eq!(answer["errorText"], Value::Null, "{url}");
        while !self.loaded {
            let message = self.messages.recv_timeout(PATIENCE).expect("the page loads");
            self.notice(message);
        }
    }

    /// Clicks on what a selector names, and waits until the page that follows has loaded.
    pub fn click(&mut self, selector: &str) {
        self.loaded = false;
        self.evaluate(&format!("document.querySelector({selector:?}).click()"));
        while !self.loaded {
            let message = self.messages.recv_timeout(PATIENCE).expect("the page loads");
            self.notice(message);
        }
    }

    /// The value of an expression on the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let arguments = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", arguments);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// Waits in the page until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        let poll = format!(
            "new Promise((done) => {{ const end = Date.now() + 30000; (function look() {{ \
             if ({expression}) done(true); else if (Date.now() > end) done(false); else setTimeout(look, 20); }})(); }})"
        );
        assert_eq!(self.evaluate(&poll), true, "{expression}");
    }

    /// Writes what the tab shows as a PNG.
    pub fn screenshot(&mut self, path: &Path) {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        std::fs::write(path, BASE64_STANDARD.decode(answer["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// Presses and releases the Tab key.
    pub fn tab(&mut self) {
        for kind in ["rawKeyDown", "keyUp"] {
            let key = json!({ "type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 });
            self.call("Input.dispatchKeyEvent", key);
        }
    }

    /// Pages opened from here on run no scripts of their own.
    pub fn without_scripts(&mut self) {
        self.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    }

    /// Errors in the browser's log so far: policy violations, exceptions, failed loads.
    pub fn complaints(&self) -> Vec<Value> {
        self.complaints.clone()
    }

    /// Ends the browser.
    pub fn close(mut self) {
        self.session = None;
        self.call("Browser.close", json!({}));
        let _ = self.child.wait();
    }

    fn call(&mut self, method: &str, arguments: Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": arguments });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let message = self.messages.recv_timeout(PATIENCE).expect("the browser answers");
            if message["id"] == self.number {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].clone();
            }
            self.notice(message);
        }
    }

    fn notice(&mut self, message: Value) {
        match message["method"].as_str() {
            Some("Page.loadEventFired") => self.loaded = true,
            Some("Runtime.exceptionThrown") => self.complaints.push(message["params"].clone()),
            Some("Log.entryAdded") if message["params"]["entry"]["level"] == "error" => {
                self.complaints.push(message["params"]["entry"].clone());
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
