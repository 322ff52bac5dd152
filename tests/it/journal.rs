//! The journal of a box, written to by the programs that others write to journald with, and by hostile ones.

use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::{ftruncate, mkfifo};
use pilotlight::ipc::journal::ask;
use pilotlight::journal::chunk;
use pilotlight::journal::query::{Answer, Line, Query};
use pilotlight::time::Uptime;
use pilotlight::wire::journal::native::MAX_MESSAGE;

use crate::init::{Program, Running, Setup, service};
use crate::peers;

const SOON: Duration = Duration::from_secs(30);
/// Says something on its output, as a panic would.
const LAST_WORDS: &str = r#"
syswrite(STDERR, "last words of $name\n");
syswrite(STDOUT, "<4>$name is connected\n") if $ENV{JOURNAL_STREAM};
"#;

struct TheBox(Running);

impl TheBox {
    fn start() -> Option<Self> {
        // In the test's own network: names of sockets without a file belong to it, and so an answer finds its way back.
        let script = service(LAST_WORDS);
        let program = Program::Script(&script);
        let setup = Setup { program, flags: "", arguments: &[], own_network: false, environment: &[] };
        let running = Running::start(&setup, |_| {})?;
        running.wait_for_log("journal: runs as ");
        Some(Self(running))
    }

    fn path(&self, inner: &str) -> PathBuf {
        Path::new("/proc").join(self.0.init().to_string()).join("root").join(inner.trim_start_matches('/'))
    }

    fn answer(&self) -> Option<Answer> {
        let query = Query { service: None, priority: 7, before: None, lines: 500 };
        ask(&self.path("/run/pilotlight/journal.sock"), &query, Duration::from_secs(5)).ok()
    }

    fn until(&self, what: &str, condition: impl Fn(&Answer) -> bool) -> Answer {
        let end = Uptime::now() + SOON;
        loop {
            let answer = self.answer();
            match answer {
                Some(answer) if condition(&answer) => return answer,
                _ => assert!(Uptime::now() < end, "{what}: {answer:#?}\n{}", self.0.log().join("\n")),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_line(&self, message: &str) -> Line {
        let has = |line: &&Line| line.message == message;
        let answer = self.until(message, |answer| answer.lines.iter().any(|line| has(&line)));
        answer.lines.iter().find(has).unwrap().clone()
    }

    /// Runs a program within the box.
    fn run(&self, command: &[&str], input: &[u8]) {
        let mut child = Command::new("nsenter")
            .args(["--mount", "--pid", "--root", "--wd", "--target", &self.0.init().to_string(), "--"])
            .args(command)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        assert!(child.wait().unwrap().success(), "{command:?}");
    }

    fn native(&self) -> UnixDatagram {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(self.path("/run/systemd/journal/socket")).unwrap();
        socket
    }

    /// The journal's process, as it is called out here.
    fn journal(&self) -> nix::unistd::Pid {
        self.0.pid("journal")
    }
}

fn pass(socket: &UnixDatagram, octets: &[u8], descriptors: &[i32]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(octets)], &rights, MsgFlags::empty(), None).unwrap();
}

fn memory(contents: &[u8], sealed: bool) -> File {
    let mut file = File::from(memfd_create("message", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.write_all(contents).unwrap();
    if sealed {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    }
    file
}

#[test]
fn real_clients_log_and_what_they_logged_outlives_the_journal() {
    let Some(mut the_box) = TheBox::start() else { return };
    // A panic's text goes to the output of its service.
    let line = the_box.until_line("last words of web");
    assert_eq!((line.service.as_str(), line.identifier.as_str(), line.priority), ("web", "web", 6));
    assert_eq!(the_box.until_line("store is connected").priority, 4);

    if peers::require("nsenter", "util-linux") && peers::require("logger", "bsdutils") {
        the_box.run(&["logger", "--journald"], b"MESSAGE=from logger\nPRIORITY=2\nSYSLOG_IDENTIFIER=script\nX=1\n");
        let line = the_box.until_line("from logger");
        assert_eq!((line.service.as_str(), line.identifier.as_str(), line.priority), ("init", "script", 2));
        the_box.run(&["logger", "-p", "daemon.warning", "-t", "old", "by syslog"], b"");
        let line = the_box.until_line("by syslog");
        assert_eq!((line.identifier.as_str(), line.priority), ("old", 4));
    }
    if peers::require("systemd-cat", "systemd") && peers::require("nsenter", "util-linux") {
        the_box.run(&["systemd-cat", "-t", "cat", "-p", "notice"], b"from a pipe\n<3>with a level\nwithout an end");
        for (message, priority) in [("from a pipe", 5), ("with a level", 3), ("without an end", 5)] {
            let line = the_box.until_line(message);
            assert_eq!((line.identifier.as_str(), line.priority), ("cat", priority), "{message}");
        }
    }

    // Grave entries are on disk soon; the rest is when the run ends, and then all of it can be read again.
    let ended = the_box.journal();
    kill(ended, Signal::SIGTERM).unwrap();
    let kept = |answer: &Answer| answer.lines.iter().any(|line| line.message == "last words of web");
    // Until it ends, the first one answers, too.
    the_box.until("the journal is back", |answer| the_box.journal() != ended && kept(answer));
    let directory = the_box.path("/data/pilotlight/journal");
    let chunks: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let entries: usize = chunks
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "chunk"))
        .map(|path| chunk::decode(&fs::read(path).unwrap()).unwrap().len())
        .sum();
    assert!(entries >= 12, "{entries} entries in {chunks:?}");
    the_box.0.end(Signal::SIGTERM);
}

#[test]
fn hostile_clients_cost_nothing_but_their_own_entries() {
    let Some(mut the_box) = TheBox::start() else { return };
    the_box.until_line("last words of web");
    let (journal, native) = (the_box.journal(), the_box.native());
    let descriptors = || fs::read_dir(format!("/proc/{journal}/fd")).unwrap().count();
    let before = descriptors();

    let dir = tempfile::tempdir().unwrap();
    mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let fifo = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(dir.path().join("fifo")).unwrap();
    let on_disk = dir.path().join("file");
    fs::write(&on_disk, "MESSAGE=no\n").unwrap();
    let writable = File::options().write(true).open(&on_disk).unwrap();
    let holes = memory(b"MESSAGE=no\n", false);
    ftruncate(&holes, 1 << 40).unwrap();
    let truncated = memory(b"MESSAGE=no\n", false);
    ftruncate(&truncated, 3).unwrap();
    let (end, _other) = UnixStream::pair().unwrap();
    let (zero, full) = (File::open("/dev/zero").unwrap(), File::open("/dev/full").unwrap());
    let root = File::open("/").unwrap();
    let files = [&zero, &full, &fifo, &root, &writable, &holes, &truncated];
    for hostile in files.iter().map(|file| file.as_raw_fd()).chain([end.as_raw_fd()]) {
        pass(&native, b"", &[hostile]);
    }
    let good = memory(b"MESSAGE=no\n", true);
    pass(&native, b"MESSAGE=both\n", &[good.as_raw_fd()]);
    pass(&native, b"", &[good.as_raw_fd(), good.as_raw_fd()]);
    for _ in 0..40 {
        pass(&native, b"", &[good.as_raw_fd(); 253]);
    }
    for octets in [
        &b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\x7fno\n"[..],
        b"MESSAGE=no end",
        b"\xff\xfe\x00\n\n\n",
        b"_UID=0\n_PID=1\nlower=x\n",
        &[0; 4096],
    ] {
        native.send(octets).unwrap();
    }
    // A client that never ends its line, and one that is no client.
    let stream = the_box.path("/run/systemd/journal/stdout");
    let mut endless = UnixStream::connect(&stream).unwrap();
    endless.write_all(b"endless\n\n6\n0\n0\n0\n0\n").unwrap();
    endless.write_all(&[b'x'; 40_000]).unwrap();
    let mut foreign = UnixStream::connect(&stream).unwrap();
    // It may be closed before all is written.
    let _ = foreign.write_all(&[b'G'; 100_000]);
    let connections: Vec<_> = (0..100).map(|_| UnixStream::connect(&stream)).collect();

    // Two ways to pass a long message, and one that is too long.
    let long = "l".repeat(MAX_MESSAGE - 100);
    pass(&native, b"", &[memory(format!("X={long}\nMESSAGE=sealed\n").as_bytes(), true).as_raw_fd()]);
    pass(&native, b"", &[memory(b"MESSAGE=unsealed\n", false).as_raw_fd()]);
    pass(&native, b"", &[memory(format!("MESSAGE=no\nX={long}{long}\n").as_bytes(), true).as_raw_fd()]);
    the_box.until_line("sealed");
    the_box.until_line("unsealed");

    for number in 0..20_000 {
        native.send(format!("MESSAGE=flood {number}\n").as_bytes()).unwrap();
    }
    let answer = the_box.until("the flood is told", |answer| answer.health.dropped > 0);
    assert!(answer.lines.iter().any(|line| line.message.contains("it logs too much")), "{:?}", answer.health);
    // A grave line of the same sender still gets through.
    native.send(b"PRIORITY=2\nMESSAGE=grave\n").unwrap();
    the_box.until_line("grave");
    let answer = the_box.answer().unwrap();
    assert!(answer.health.refused >= 15, "{:?}", answer.health);
    assert!(!answer.lines.iter().any(|line| line.message.starts_with("no") || line.message == "both"));
    drop((endless, foreign, connections));
    the_box.until("all connections are closed", |_| descriptors() <= before + 1);

    assert_eq!(the_box.journal(), journal, "it never ended:\n{}", the_box.0.log().join("\n"));
    // Killed, it comes back; what is sent meanwhile waits for it.
    kill(journal, Signal::SIGKILL).unwrap();
    native.send(b"MESSAGE=meanwhile\n").unwrap();
    the_box.until_line("meanwhile");
    assert_ne!(the_box.journal(), journal);
    the_box.0.end(Signal::SIGTERM);
}
