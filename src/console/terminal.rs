//! One terminal: shows the view, takes what is typed, asks for what comes of it.
//!
//! An edge, because it owns a device. What is shown and what a key means decide the other files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::termios::{ControlFlags, SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::dialogue::{Request, State};
use super::keys::{Key, Keyboard};
use super::screen::{self, Size};
use super::serial::Serial;
use super::view::View;
use crate::supervise::terminals::Kind;
use crate::sys;

/// After an escape that nothing follows for so long, it was the key.
const SILENCE: Duration = Duration::from_millis(100);
/// How often a screen is painted though nothing has changed: something else may have written there.
const REPAINT: Duration = Duration::from_secs(10);
/// How long a terminal may take to show something; a serial line at 9600 baud needs two seconds for a screen.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a terminal that can't be used is left alone.
const PAUSE: Duration = Duration::from_secs(10);
/// Octets that are read at a time.
const READ: usize = 64;

/// A request, where it was made, and who waits for its outcome.
#[derive(Debug)]
pub struct Asked {
    /// What is asked for.
    pub request: Request,
    /// The terminal's device.
    pub terminal: String,
    /// Takes the outcome; an error is a reason in words.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Serves the terminal behind the device `path` until `cancel`. One that is not there, or is pulled, is tried again every ten
/// seconds.
pub async fn run(
    path: String,
    kind: Kind,
    views: watch::Receiver<Arc<View>>,
    asker: mpsc::Sender<Asked>,
    cancel: CancellationToken,
) {
    let mut said = String::new();
    loop {
        let error = match open(Path::new(&path)) {
            Ok(device) => {
                let mut session = Session {
                    device,
                    path: path.clone(),
                    face: Face::new(kind),
                    keyboard: Keyboard::default(),
                    state: State::Overview,
                    answer: None,
                    asker: asker.clone(),
                };
                // Cancel-safe: the session ends with it.
                tokio::select! {
                    () = cancel.cancelled() => return,
                    Err(error) = session.serve(views.clone()) => error,
                }
            }
            Err(error) => error,
        };
        // Once a reason: a port without a terminal stays one.
        let reason = error.to_string();
        if said != reason {
            tracing::info!(terminal = path, reason, "console: the terminal can't be used");
            said = reason;
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Opens a terminal and takes all meaning from its octets: no key makes a signal, stops the output or is echoed.
#[allow(deprecated, reason = "its successor is the same as an unsafe function; a File keeps its descriptor")]
fn open(path: &Path) -> io::Result<AsyncFd<File>> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    // Fails for what is no terminal.
    let mut settings = tcgetattr(&device)?;
    cfmakeraw(&mut settings);
    // A cable without modem lines is a cable.
    settings.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
    tcsetattr(&device, SetArg::TCSANOW, &settings)?;
    AsyncFd::new(device)
}

/// How a terminal shows things.
enum Face {
    Screen { begun: bool, painted: String, at: tokio::time::Interval },
    Serial(Serial),
}

impl Face {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Screen => Self::Screen { begun: false, painted: String::new(), at: tokio::time::interval(REPAINT) },
            Kind::Serial => Self::Serial(Serial::default()),
        }
    }

    /// When it is due though nothing has changed.
    async fn due(&mut self) {
        match self {
            Self::Screen { painted, at, .. } => {
                at.tick().await;
                painted.clear();
            }
            Self::Serial(_) => std::future::pending().await,
        }
    }

    /// What to send.
    fn text(&mut self, view: &View, state: &State, size: Size, redraw: bool) -> String {
        match self {
            Self::Screen { begun, painted, .. } => {
                let now = screen::draw(view, state, size).paint();
                if *painted == now && !redraw {
                    return String::new();
                }
                // A reset makes the screen flicker; in between, painting over what is there is enough.
                let begin = if *begun && !redraw { "" } else { screen::BEGIN };
                *begun = true;
                painted.clone_from(&now);
                format!("{begin}{now}")
            }
            Self::Serial(serial) => serial.update(view, state, redraw),
        }
    }
}

type Answer = Option<oneshot::Receiver<Result<(), String>>>;

struct Session {
    device: AsyncFd<File>,
    path: String,
    face: Face,
    keyboard: Keyboard,
    state: State,
    answer: Answer,
    asker: mpsc::Sender<Asked>,
}

impl Session {
    /// Ends only with an error of the device.
    async fn serve(&mut self, mut views: watch::Receiver<Arc<View>>) -> io::Result<()> {
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            self.show(&view, false).await?;
            let mut octets = [0; READ];
            // All are cancel-safe: what is not read stays in the device, what is not answered in its channel.
            tokio::select! {
                Ok(()) = views.changed() => {
                    self.state = std::mem::take(&mut self.state).observed(&views.borrow());
                }
                () = self.face.due() => {}
                answer = answered(&mut self.answer) => {
                    self.answer = None;
                    self.state = std::mem::take(&mut self.state).answered(answer).observed(&views.borrow());
                }
                () = tokio::time::sleep(SILENCE), if self.keyboard.waits() => {
                    let key = self.keyboard.silence();
                    self.press(key, &view).await?;
                }
                length = read(&self.device, &mut octets) => {
                    for octet in &octets[..length?] {
                        let key = self.keyboard.on(*octet);
                        self.press(key, &view).await?;
                    }
                }
            }
        }
    }

    async fn press(&mut self, key: Option<Key>, view: &View) -> io::Result<()> {
        let Some(key) = key else { return Ok(()) };
        let step = std::mem::take(&mut self.state).on(key, view);
        self.state = step.state;
        if let Some(request) = step.request {
            let (answer, waiting) = oneshot::channel();
            self.answer = Some(waiting);
            // A full queue drops the answer's sender, which is an answer too.
            let _ = self.asker.try_send(Asked { request, terminal: self.path.clone(), answer });
        }
        if step.redraw {
            self.show(view, true).await?;
        }
        Ok(())
    }

    async fn show(&mut self, view: &View, redraw: bool) -> io::Result<()> {
        let size = sys::terminal::size(self.device.get_ref()).unwrap_or_default();
        let text = self.face.text(view, &self.state, size, redraw);
        let sending = write(&self.device, text.as_bytes());
        tokio::time::timeout(PATIENCE, sending).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The answer, once there is one to wait for.
async fn answered(answer: &mut Answer) -> Result<(), String> {
    match answer {
        Some(waiting) => waiting.await.unwrap_or_else(|_| Err("nobody is there to do it".to_owned())),
        None => std::future::pending().await,
    }
}

async fn read(device: &AsyncFd<File>, octets: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = device.readable().await?;
        match ready.try_io(|device| device.get_ref().read(octets)) {
            // Hung up.
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(other) => return other,
            Err(_would_block) => {}
        }
    }
}

async fn write(device: &AsyncFd<File>, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        let mut ready = device.writable().await?;
        match ready.try_io(|device| device.get_ref().write(octets)) {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(length)) => octets = octets.get(length..).unwrap_or_default(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
