//! The console behind real terminals: tmux shows its screen and types its keys, zbar reads its code, and a pseudo-terminal
//! sends it whatever it likes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::pty::{OpenptyResult, openpty};
use pilotlight::console::screen::{Size, draw};
use pilotlight::console::terminal::{self, Asked};
use pilotlight::console::view::Setup;
use pilotlight::console::{Request, State, View};
use pilotlight::net::port::Source;
use pilotlight::net::status::{AddressStatus, LinkStatus, NetworkStatus};
use pilotlight::secret::Secret;
use pilotlight::supervise::control::{ServiceStatus, Status};
use pilotlight::supervise::terminals::Kind;
use pilotlight::time::Uptime;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::peers;

const PAGE: &str = "http://192.168.100.100/";
const SOON: Duration = Duration::from_secs(30);

fn view() -> View {
    let web = ServiceStatus { name: "web".into(), ready: true, ..ServiceStatus::default() };
    let address = AddressStatus { address: "192.168.100.100/24".parse().unwrap(), source: Source::Dhcp };
    let link = LinkStatus {
        name: "eno1".into(),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        driver: "igc".into(),
        carrier: true,
        mtu: 1500,
        role: None,
        addresses: vec![address],
        gateway: None,
        dns: Vec::new(),
        detail: String::new(),
    };
    View {
        version: "1.2.3".into(),
        port: 80,
        init: Some(Status { uptime: 100, services: vec![web], ..Status::default() }),
        network: Some(NetworkStatus { links: vec![link], hostname: "büro".into(), ..NetworkStatus::default() }),
        provider: None,
        setup: Setup::Code(Secret::new("4821-9930".to_owned())),
        certificate: None,
    }
}

/// The console on one terminal, and what it asks for.
struct Console {
    views: watch::Sender<Arc<View>>,
    asked: mpsc::Receiver<Asked>,
    cancel: CancellationToken,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Console {
    fn on(path: &Path, kind: Kind) -> Self {
        let (views, shown) = watch::channel(Arc::new(view()));
        let (asker, asked) = mpsc::channel(4);
        let cancel = CancellationToken::new();
        tokio::spawn(terminal::run(path.to_str().unwrap().to_owned(), kind, shown, asker, cancel.clone()));
        Self { views, asked, cancel }
    }

    async fn next(&mut self) -> Asked {
        tokio::time::timeout(SOON, self.asked.recv()).await.expect("a request in time").expect("the console runs")
    }
}

/// A terminal of 80 columns and 25 lines that somebody else made.
struct Tmux {
    dir: TempDir,
}

impl Tmux {
    fn start() -> Self {
        let tmux = Self { dir: tempfile::tempdir().unwrap() };
        let file = |name: &str| tmux.dir.path().join(name).display().to_string();
        fs::write(file("conf"), "set -g status off\nset -g escape-time 0\n").unwrap();
        let keep = format!("tty >{0}.new && mv {0}.new {0}; exec sleep 600", file("tty"));
        let args = ["-f", &file("conf"), "new-session", "-d", "-x", "80", "-y", "25", &keep];
        tmux.run(&args);
        tmux
    }

    fn run(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.env("LANG", "C.UTF-8").env("LC_ALL", "C.UTF-8").env("TERM", "xterm").env_remove("TMUX");
        let output = tmux.arg("-u").arg("-S").arg(self.dir.path().join("socket")).args(args).output().unwrap();
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn terminal(&self) -> PathBuf {
        let path = self.dir.path().join("tty");
        until("tmux has a terminal", || path.exists()).await;
        PathBuf::from(fs::read_to_string(path).unwrap().trim())
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"]).lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    async fn shows(&self, expected: &str) {
        let end = Uptime::now() + SOON;
        while self.screen() != expected {
            assert!(Uptime::now() < end, "it shows\n{}\ninstead of\n{expected}", self.screen());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn shows_line(&self, text: &str) {
        until(text, || self.screen().lines().any(|line| line.contains(text))).await;
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Uptime::now() + SOON;
    while !condition() {
        assert!(Uptime::now() < end, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_terminal_shows_the_screen_and_its_keys_are_understood() {
    if !peers::require("tmux", "tmux") {
        return;
    }
    let tmux = Tmux::start();
    let mut console = Console::on(&tmux.terminal().await, Kind::Screen);
    let shown = |state: &State| draw(&view(), state, Size::default()).text();
    tmux.shows(&shown(&State::Overview)).await;
    the_code_is_read(&tmux.screen());

    // A form is left by escape, and its keys are those of a keyboard.
    tmux.press(&["n"]);
    tmux.shows_line(">Port         any_").await;
    tmux.press(&["Down", "Right"]);
    tmux.shows_line(">Address by   hand_").await;
    tmux.press(&["Up", "Right", "Tab", "Down", "1", "9", "2", ".", "BSpace"]);
    tmux.shows_line(">Address/len  192_").await;
    tmux.shows_line("Port         eno1 52:54:00:00:00:01").await;
    tmux.press(&["Escape"]);
    tmux.shows(&shown(&State::Overview)).await;

    // What loses data wants its word.
    tmux.press(&["f", "y", "e", "s", "Enter"]);
    tmux.shows_line("That was not erase.").await;
    tmux.press(&["e", "r", "a", "s", "e", "Enter"]);
    let asked = console.next().await;
    assert_eq!(asked.request, Request::FactoryReset);
    tmux.shows_line("One moment").await;
    asked.answer.send(Err("the disk is\u{1b}[2J gone".to_owned())).unwrap();
    tmux.shows_line("Not done (factory reset): the disk is?[2J gone.").await;
    tmux.press(&["x"]);
    tmux.shows(&shown(&State::Overview)).await;

    // What changes is shown, and what something else wrote there is painted over.
    let mut changed = view();
    changed.init.as_mut().unwrap().services[0].degraded = true;
    console.views.send_replace(Arc::new(changed.clone()));
    tmux.shows(&draw(&changed, &State::Overview, Size::default()).text()).await;
    fs::write(tmux.terminal().await, "\r\n\r\nnoise from elsewhere\r\n").unwrap();
    tmux.press(&["C-l"]);
    tmux.shows(&draw(&changed, &State::Overview, Size::default()).text()).await;
}

/// Has zbar look at the code on the screen, four pixels a module.
fn the_code_is_read(screen: &str) {
    if !peers::require("zbarimg", "zbar-tools") {
        return;
    }
    const SCALE: usize = 4;
    let rows: Vec<Vec<char>> = screen.lines().map(|line| line.chars().collect()).collect();
    let width = rows.iter().map(Vec::len).max().unwrap();
    let mut image = format!("P5 {} {} 255\n", width * SCALE, rows.len() * 2 * SCALE).into_bytes();
    for y in 0..rows.len() * 2 * SCALE {
        let row = &rows[y / (2 * SCALE)];
        let upper = (y / SCALE).is_multiple_of(2);
        for x in 0..width * SCALE {
            let light = match row.get(x / SCALE) {
                Some('█') => true,
                Some('▀') => upper,
                Some('▄') => !upper,
                Some(_) | None => false,
            };
            image.push(if light { 255 } else { 0 });
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("screen.pgm");
    fs::write(&path, image).unwrap();
    let output = Command::new("zbarimg").args(["--quiet", "--raw"]).arg(&path).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), PAGE, "{screen}");
}

/// A line at whose far end the test sits, without an echo.
fn line() -> (File, PathBuf, File) {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&slave).unwrap();
    // The near end is kept open, so that the line does not hang up.
    (File::from(master), path, File::from(slave))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_serial_line_sends_the_console_stays_a_console() {
    let (mut far, path, _near) = line();
    let mut console = Console::on(&path, Kind::Serial);
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut from = far.try_clone().unwrap();
    let listening = std::thread::spawn(move || {
        let mut octets = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut octets) {
            if told.send(octets[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut all = Vec::new();
    let mut hear = async |text: &str| {
        while !String::from_utf8_lossy(&all).contains(text) {
            let octets = tokio::time::timeout(SOON, heard.recv()).await;
            all.extend(
                octets.unwrap_or_else(|_| panic!("{text:?} is not in {}", String::from_utf8_lossy(&all))).unwrap(),
            );
        }
        std::mem::take(&mut all)
    };
    let first = hear("F: factory reset   Enter: everything").await;
    assert!(String::from_utf8_lossy(&first).contains("Page        http://192.168.100.100/"));

    for attempt in [
        &b"root\r\n\r\nsh\r\nexec /bin/sh\r\n"[..],
        b"\x03\x04\x1a\x1c\x11\x13",
        b"~.\x1d\x1b[21~\x1b]0;sh\x07\x1bP|sh\x1b\\",
        b"!sh\r:!sh\r|sh\r$(sh)\r`sh`\r;sh\r",
    ] {
        far.write_all(attempt).unwrap();
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(64 * 1024)
    .collect();
    for part in noise.chunks(512) {
        // While nobody takes what the console says, it takes nothing either.
        far.write_all(part).unwrap();
    }
    // Out of whatever form the noise led into, and through a whole one.
    far.write_all(b"\x03\x03ryes\r").unwrap();
    let asked = console.next().await;
    assert_eq!(asked.request, Request::Reboot, "noise asks for nothing");
    asked.answer.send(Ok(())).unwrap();
    let said = hear("The box starts anew.").await;
    let strange = |octet: &&u8| !matches!(octet, b'\r' | b'\n' | b' '..=b'~');
    assert_eq!(said.iter().find(strange), None, "{}", String::from_utf8_lossy(&said));
    drop((console, far));
    drop(_near);
    listening.join().unwrap();
}
