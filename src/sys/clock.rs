//! Sets and steers the wall clock (clock_settime(2), adjtimex(2)).

use std::io;
use std::time::Duration;

use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::time::UnixTime;

/// Sets the wall clock.
///
/// # Errors
///
/// The kernel's: without CAP_SYS_TIME.
pub fn step(to: UnixTime) -> io::Result<()> {
    let since_epoch = to.since(UnixTime::default());
    Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(since_epoch))?)
}

/// Lets the kernel bring the clock forward (or back, when negative) by `micros`, at most half a second, slowly, and learn
/// the oscillator's rate from it. The clock counts as synchronised to within `error` from then on, so that the kernel
/// copies it to the RTC every 11 minutes.
///
/// # Errors
///
/// The kernel's: without CAP_SYS_TIME.
pub fn slew(micros: i64, error: Duration) -> io::Result<()> {
    // SAFETY: timex is a plain structure for which all zeroes are valid.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET | libc::ADJ_STATUS | libc::ADJ_TIMECONST | libc::ADJ_MAXERROR | libc::ADJ_ESTERROR;
    timex.status = libc::STA_PLL;
    timex.offset = micros;
    // The loop's time constant: as for a poll of about a minute (RFC 5905 section 11.3).
    timex.constant = 6;
    let error = i64::try_from(error.as_micros()).unwrap_or(i64::MAX);
    (timex.maxerror, timex.esterror) = (error, error);
    // SAFETY: the structure lives during the call.
    let result = unsafe { libc::adjtimex(&raw mut timex) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
