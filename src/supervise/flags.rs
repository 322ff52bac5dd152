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

    proptest! {
        #[test]
        fn any_octets_are_flags_or_an_error(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(flags) = parse(&octets) {
                prop_assert!(flags.iter().all(|flag| !flag.is_empty() && !flag.contains('\n')));
            }
        }
    }
}
