//! Puts the init script into an iPXE binary that was built with room for it.
//!
//! The room is an embedded script of comment lines between two markers. A binary without markers is served as it is: it asks
//! DHCP again as iPXE and is then given the script's URL.
//!
//! A compressed BIOS binary hides its markers; compressing a patched one again (zbin) is not done here, so BIOS machines
//! take the DHCP way unless the file in the directory is patched already.

use bytes::Bytes;

const START: &[u8] = b"# *PLACEHOLDER START*";
const END: &[u8] = b"# *PLACEHOLDER END*";

/// Why a script could not be put into a binary that has a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// There is an end marker alone.
    #[error("placeholder start not found")]
    StartMissing,
    /// There is a start marker alone.
    #[error("placeholder end not found")]
    EndMissing,
    /// The markers are in the wrong order.
    #[error("placeholder end before start")]
    Order,
    /// The script is longer than the room.
    #[error("the init script has {script} octets, the placeholder holds {room}; use a shorter advertise address")]
    TooLong {
        /// The script's size.
        script: usize,
        /// The room, markers included.
        room: usize,
    },
}

/// The binary with `script` in its placeholder, padded with line feeds: same size. `None` when it has no marker at all.
///
/// # Errors
///
/// [`PatchError`] when a marker is there and the script cannot be.
///
/// Source: contract section 4.4.
pub fn patch(binary: &[u8], script: &str) -> Result<Option<Bytes>, PatchError> {
    let (start, end) = match (find(binary, START), find(binary, END)) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(PatchError::StartMissing),
        (Some(_), None) => return Err(PatchError::EndMissing),
        (Some(start), Some(end)) if end < start => return Err(PatchError::Order),
        (Some(start), Some(end)) => (start, end + END.len()),
    };
    let room = end - start;
    if script.len() > room {
        return Err(PatchError::TooLong { script: script.len(), room });
    }
    let mut patched = binary.to_vec();
    patched[start..end].fill(b'\n');
    patched[start..start + script.len()].copy_from_slice(script.as_bytes());
    Ok(Some(patched.into()))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(filling: &str) -> Vec<u8> {
        [b"MZ\0\x01".as_slice(), START, filling.as_bytes(), END, b"\0tail"].concat()
    }

    #[test]
    fn the_script_takes_the_placeholders_room_and_nothing_else() {
        let original = binary(&"\n# padding".repeat(20));
        let patched = patch(&original, "#!ipxe\nshell\n").unwrap().unwrap();
        assert_eq!(patched.len(), original.len());
        assert!(patched.starts_with(b"MZ\0\x01#!ipxe\nshell\n\n\n") && patched.ends_with(b"\n\n\0tail"));
        assert_eq!(find(&patched, START), None);
    }

    #[test]
    fn each_way_that_markers_can_be_wrong_has_its_name() {
        assert_eq!(patch(b"plain", "x"), Ok(None));
        assert_eq!(patch(END, "x"), Err(PatchError::StartMissing));
        assert_eq!(patch(START, "x"), Err(PatchError::EndMissing));
        assert_eq!(patch(&[END, START].concat(), "x"), Err(PatchError::Order));
        let room = START.len() + END.len();
        assert_eq!(patch(&binary(""), &"x".repeat(room + 1)), Err(PatchError::TooLong { script: room + 1, room }));
    }
}
