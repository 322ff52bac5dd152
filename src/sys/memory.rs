//! Gives back memory that is mapped and not used.

use std::ffi::c_void;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::sys::mman::{MmapAdvise, madvise};

use super::mount;

/// The kernel maps what lies around a page of code that runs, up to 64 KiB, but nothing beyond the end of its mapping. Code is
/// one mapping of many MiB; split into mappings this long, less is resident of it that nobody asked for.
const STRIPE: usize = 16 << 10;
/// Most second stripes of a range, far below the 65530 mappings that a process may have: a debug build has 40 MiB of code.
const MOST_STRIPES: usize = 4096;

/// The program's code and its libraries', as it was when it was looked for first.
static CODE: OnceLock<Vec<(usize, usize)>> = OnceLock::new();

/// Gives back what the allocator keeps of freed memory, and the pages of code that are not running; returns how many octets
/// of code there are, zero when they could not be found.
///
/// Code that is needed again comes back from the page cache without a read.
pub fn release() -> usize {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` may be called at any time from any thread (malloc_trim(3), attribute MT-Safe).
    unsafe {
        nix::libc::malloc_trim(0);
    }
    release_code()
}

fn release_code() -> usize {
    let code = CODE.get_or_init(|| {
        let Ok(program) = std::env::current_exe() else { return Vec::new() };
        let code = find_code(&program).unwrap_or_default();
        // Where the program lies in memory, as in the image, its pages are there whether they are mapped or not, and mappings
        // cost the kernel.
        if mount::lasts(&program).unwrap_or(false) {
            code.iter().for_each(|range| split(*range));
        }
        code
    });
    code.iter().filter(|range| advise(**range, MmapAdvise::MADV_DONTNEED)).map(|(start, end)| end - start).sum()
}

fn find_code(program: &Path) -> std::io::Result<Vec<(usize, usize)>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let program = program.to_string_lossy();
    Ok(maps.lines().filter_map(|line| code_range(line, &program)).collect())
}

/// Has the kernel take the range for many mappings: it tells them apart by their advice, and every second one gets one that
/// means nothing for code, which is in no core dump anyway.
fn split((start, end): (usize, usize)) {
    for stripe in (start..end).step_by(STRIPE).skip(1).step_by(2).take(MOST_STRIPES) {
        if !advise((stripe, (stripe + STRIPE).min(end)), MmapAdvise::MADV_DONTDUMP) {
            return;
        }
    }
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

/// Whether the kernel took it.
fn advise((start, end): (usize, usize), advice: MmapAdvise) -> bool {
    let Some(address) = NonNull::new(std::ptr::with_exposed_provenance_mut::<c_void>(start)) else { return false };
    // SAFETY: the range is a private mapping of a file, code or the program's first segment, position-independent and never
    // writable, so that no page of it differs from the file. A page that is touched again is mapped from the file again.
    unsafe { madvise(address, end.saturating_sub(start), advice) }.is_ok()
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
    fn the_program_runs_on_afterwards_in_short_mappings() {
        assert!(release_code() > 0);
        let program = std::env::current_exe().unwrap();
        let code = find_code(&program).unwrap();
        let short = code.iter().filter(|(start, end)| end - start <= STRIPE).count();
        assert!(!mount::lasts(&program).unwrap() || short * 10 > code.len() * 9, "{short} of {}", code.len());
        assert_eq!("still here".chars().rev().collect::<String>(), "ereh llits");
    }
}
