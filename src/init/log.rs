//! Init's log: the kernel's, so that it is on the screen, in `dmesg` and in a crash dump.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write;

/// How grave a line is, as in syslog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// The run ends over it.
    Emergency = 0,
    /// Something that was asked for did not happen.
    Error = 3,
    /// Wrong, but healing.
    Warning = 4,
    /// A state changed.
    Info = 6,
    /// For those who look for a fault.
    Debug = 7,
}

/// Most bytes of a line; the kernel cuts at about 1,000.
const LONGEST: usize = 900;

/// Where lines go: /dev/kmsg as soon as it is there, stderr until then.
pub(super) struct Log(RefCell<Option<File>>);

impl Log {
    pub(super) fn open() -> Self {
        Self(RefCell::new(open()))
    }

    pub(super) fn line(&self, level: Level, text: &str) {
        let mut kmsg = self.0.borrow_mut();
        if kmsg.is_none() {
            // It appears with /dev.
            *kmsg = open();
        }
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = &text[..text.floor_char_boundary(LONGEST)];
        let line = format!("<{}>pilotlight-init: {text}\n", level as u8);
        // One write is one record. When the kernel refuses, nobody else could be told.
        let _ = match kmsg.as_mut() {
            Some(file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

fn open() -> Option<File> {
    OpenOptions::new().write(true).open("/dev/kmsg").ok()
}

/// Sends the text of panics where the log goes.
pub(super) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| Log::open().line(Level::Emergency, &panic.to_string())));
}
