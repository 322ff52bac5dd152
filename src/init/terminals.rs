//! Hands the terminals to the console.
//!
//! An edge, because it changes devices; which ones says [`crate::supervise::terminals`].

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};

use super::log::{Level, Log};
use crate::supervise::terminals::{ACTIVE, MESSAGES, terminals};
use crate::sys::terminal::redirect_messages;

/// Gives every terminal to `uid` alone, and the kernel's messages a screen of their own.
pub(super) fn hand_over(uid: u32, log: &Log) {
    // Without it there are no lines that the kernel knows of; the screen may be there all the same.
    let active = fs::read_to_string(ACTIVE).unwrap_or_default();
    let give = |path: &str| -> io::Result<()> {
        chown(path, Some(uid), Some(uid))?;
        fs::set_permissions(path, Permissions::from_mode(0o600))
    };
    for terminal in terminals(&active) {
        said(log, &terminal.name, give(&terminal.path()));
    }
    said(log, "the kernel's messages", redirect_messages(MESSAGES));
}

/// A machine without a screen is none to complain about.
fn said(log: &Log, what: &str, result: io::Result<()>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log.line(Level::Warning, &format!("console: {what}: {error}"));
        }
        Ok(()) | Err(_) => {}
    }
}
