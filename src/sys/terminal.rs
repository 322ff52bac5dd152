//! Terminals: how large they are, and which of the kernel's screens gets its messages.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use crate::console::screen::Size;

mod calls {
    use nix::libc;

    nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(linux, libc::TIOCLINUX, [u8; 2]);
}

/// `TIOCL_SETKMSGREDIRECT` of `linux/tiocl.h`: the octet that follows is the number of a screen.
const SET_KMSG_REDIRECT: u8 = 11;

/// How large the terminal is; `None` when it does not know.
pub fn size(terminal: &impl AsFd) -> Option<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the structure lives during the call.
    unsafe { calls::window_size(terminal.as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { columns: size.ws_col, lines: size.ws_row })
}

/// Has the kernel write its messages to the screen `number`, which Alt and a function key show, instead of the one that
/// is seen.
///
/// # Errors
///
/// `NotFound` without screens, else the kernel's.
///
/// Source: ioctl_console(2), TIOCLINUX subcode 11.
pub fn redirect_messages(number: u8) -> io::Result<()> {
    let path = format!("/dev/tty{number}");
    // A screen that was never opened does not exist, and the kernel would go on as before.
    let screen = File::options().write(true).custom_flags(libc::O_NOCTTY).open(Path::new(&path))?;
    let request = [SET_KMSG_REDIRECT, number];
    // SAFETY: the descriptor is open and the octets, which the call reads, live during it.
    unsafe { calls::linux(screen.as_raw_fd(), &raw const request) }?;
    Ok(())
}
