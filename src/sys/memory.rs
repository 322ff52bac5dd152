//! Gives back memory that is mapped and not used.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Gives back what the allocator keeps of freed memory, and the pages of code that are not running: see
/// `release_code`, whose answer it returns.
pub fn release() -> usize {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` may be called at any time from any thread (malloc_trim(3), attribute MT-Safe).
    unsafe {
        nix::libc::malloc_trim(0);
    }
    release_code()
}

/// Unmaps the pages of the program's code and its libraries'; returns how many octets it covers, zero when they could not
/// be found.
///
/// The kernel maps 64 KiB around each page of code that runs, so that starting up leaves most of the program resident.
/// What is needed again comes back from the page cache without a read; an idle provider needs a few of its 16 MiB.
fn release_code() -> usize {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return 0 };
    let Ok(program) = std::env::current_exe() else { return 0 };
    let program = program.to_string_lossy();
    maps.lines().filter_map(|line| code_range(line, &program)).map(unmap).sum()
}

/// The range of a line of `/proc/<pid>/maps` that is code of a file, or the first segment of the file `program`: constants,
/// unwind tables and relocations. Other read-only data is left alone: the loader writes to it before it is made read-only,
/// and those pages are not the file's.
fn code_range(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let file = fields.nth(2)?;
    let code = permissions == "r-xp" && file.starts_with('/');
    let first = permissions == "r--p" && offset.bytes().all(|digit| digit == b'0') && file == program;
    if !code && !first {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

fn unmap((start, end): (usize, usize)) -> usize {
    let length = end.saturating_sub(start);
    let Some(address) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(start)) else { return 0 };
    // SAFETY: the range is a private mapping of a file, code or the program's first segment, position-independent and never
    // writable, so that no page of it differs from the file. A page that is touched again is mapped from the file again.
    match unsafe { madvise(address, length, MmapAdvise::MADV_DONTNEED) } {
        Ok(()) => length,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_taken() {
        let line = |permissions| format!("5649000-564a000 {permissions} 00001000 08:01 42    /usr/bin/pilotlight");
        assert_eq!(code_range(&line("r-xp"), "/usr/bin/pilotlight"), Some((0x0564_9000, 0x0564_a000)));
        assert_eq!(code_range(&line("rw-p"), "/usr/bin/pilotlight"), None);
        assert_eq!(code_range(&line("r--p"), "/usr/bin/pilotlight"), None);
        assert!(code_range(&line("r-xp"), "/usr/bin/other").is_some(), "a library's");
        assert_eq!(code_range("7ffd000-7ffe000 r-xp 00000000 00:00 0    [vdso]", "/usr/bin/other"), None);
        assert!(
            code_range("5649000-564a000 r--p 00000000 08:01 42 /usr/bin/pilotlight", "/usr/bin/pilotlight").is_some()
        );
        assert_eq!(code_range("5649000-564a000 r-xp 00000000 00:00 0", "/usr/bin/pilotlight"), None);
    }

    #[test]
    fn the_program_runs_on_afterwards() {
        assert!(release_code() > 0);
        assert_eq!("still here".chars().rev().collect::<String>(), "ereh llits");
    }
}
