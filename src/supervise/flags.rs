//! The box's flags: what every service is started with.

/// Most bytes of the file.
pub const MAX_FILE: usize = 64 * 1024;
/// Most flags.
pub const MAX_FLAGS: usize = 256;
/// Why a file of flags does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// More than [`MAX_FILE`] bytes.
    #[error("has more than {MAX_FILE} bytes")]
    TooLong,
    /// More than [`MAX_FLAGS`] flags.
    #[error("has more than {MAX_FLAGS} flags")]
    TooMany,
    /// An octet that no argument can have, or no UTF-8.
    #[error("is no text")]
    NoText,
}

/// The flags of a file: one per line, taken as it is; blank lines and lines that begin with `#` are left out, and so is
/// white space around a flag.
///
/// # Errors
///
/// [`Invalid`]; half a file of flags is worse than none.
pub fn parse(file: &[u8]) -> Result<Vec<String>, Invalid> {
    if file.len() > MAX_FILE {
        return Err(Invalid::TooLong);
    }
    let text = std::str::from_utf8(file).ok().filter(|text| !text.contains('\0')).ok_or(Invalid::NoText)?;
    let lines = text.lines().map(str::trim);
    let flags: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    if flags.len() > MAX_FLAGS { Err(Invalid::TooMany) } else { Ok(flags) }
}

/// The image's flags and those that the box is `set` to; of a name in both the latter counts, and only those that
/// `may_be_set` are taken. A flag without a value is one of its name.
pub fn merge(image: &[String], set: &[String], may_be_set: impl Fn(&str) -> bool) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().unwrap_or_default().to_owned();
    let set: Vec<_> = set.iter().filter(|flag| may_be_set(flag)).cloned().collect();
    let covered = |flag: &&String| set.iter().any(|other| name(other) == name(flag));
    image.iter().filter(|flag| !covered(flag)).cloned().chain(set.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flags_are_lines() {
        let file = b"# where Omni is\n--omni-api-endpoint=https://omni.example\n\n  --debug\r\n#--tls-enabled\n";
        assert_eq!(parse(file).unwrap(), ["--omni-api-endpoint=https://omni.example", "--debug"]);
        assert_eq!(parse(b"a\0b"), Err(Invalid::NoText));
        assert_eq!(parse(&[b'\n'; MAX_FILE + 1]), Err(Invalid::TooLong));
        assert_eq!(parse("--a\n".repeat(MAX_FLAGS + 1).as_bytes()), Err(Invalid::TooMany));
    }

    #[test]
    fn what_the_box_is_set_to_counts_and_nothing_else_passes() {
        let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let (image, set) = (
            owned(&["--id=a", "--debug", "--run-dir=/r"]),
            owned(&["--id=b", "--state-dir=/etc", "--poll-interval=1s"]),
        );
        let merged = merge(&image, &set, |flag| !flag.starts_with("--state-dir"));
        assert_eq!(merged, ["--debug", "--run-dir=/r", "--id=b", "--poll-interval=1s"]);
    }

    proptest! {
        #[test]
        fn any_octets_are_flags_or_an_error(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(flags) = parse(&octets) {
                prop_assert!(flags.iter().all(|flag| !flag.is_empty() && !flag.contains('\n')));
            }
        }
    }
}
