//! HTTP byte ranges: the one form that firmware and download tools use.

/// Which octets of a body are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// All: no range, several, or one that is not understood, which RFC 9110 lets a server ignore.
    Whole,
    /// From `start`, `len` octets, at least one, all inside the body.
    Part {
        /// The first octet.
        start: u64,
        /// How many.
        len: u64,
    },
    /// None of them is in the body: 416.
    Unsatisfiable,
}

/// Reads a `Range` header for a body of `size` octets.
///
/// Source: RFC 9110 section 14.
pub fn parse(header: Option<&str>, size: u64) -> Range {
    let Some((first, last)) = header.and_then(|text| text.strip_prefix("bytes=")).and_then(|text| text.split_once('-'))
    else {
        return Range::Whole;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            None => Range::Whole,
            Some(0) => Range::Unsatisfiable,
            Some(_) if size == 0 => Range::Unsatisfiable,
            Some(len) => Range::Part { start: size.saturating_sub(len), len: len.min(size) },
        },
        (first, last) => {
            let (Some(start), Some(end)) = (number(first), if last.is_empty() { Some(u64::MAX) } else { number(last) })
            else {
                return Range::Whole;
            };
            match () {
                () if end < start => Range::Whole,
                () if start >= size => Range::Unsatisfiable,
                () => Range::Part { start, len: end.min(size - 1) - start + 1 },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let part = |start, len| Range::Part { start, len };
        for (header, range) in [
            (None, Range::Whole),
            (Some("bytes=0-0"), part(0, 1)),
            (Some("bytes=2-5"), part(2, 4)),
            (Some("bytes=2-"), part(2, 8)),
            (Some("bytes=8-99"), part(8, 2)),
            (Some("bytes=-3"), part(7, 3)),
            (Some("bytes=-99"), part(0, 10)),
            (Some("bytes=-0"), Range::Unsatisfiable),
            (Some("bytes=10-"), Range::Unsatisfiable),
            (Some("bytes=5-2"), Range::Whole),
            (Some("bytes=0-1,3-4"), Range::Whole),
            (Some("bytes=-"), Range::Whole),
            (Some("bytes=+1-2"), Range::Whole),
            (Some("lines=0-1"), Range::Whole),
        ] {
            assert_eq!(parse(header, 10), range, "{header:?}");
        }
        assert_eq!(parse(Some("bytes=0-"), 0), Range::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_lies_inside_the_body(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in any::<u64>()) {
            if let Range::Part { start, len } = parse(Some(&header), size) {
                prop_assert!(len > 0 && start.checked_add(len).is_some_and(|end| end <= size));
            }
        }
    }
}
