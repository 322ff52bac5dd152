//! The `state` partition as a tar archive whose members stand at fixed sectors (see [the module](super)).
//!
//! Source: POSIX.1-1988 ustar; GRUB's `tar` module reads it.

use super::environment::SECTOR;

/// The partition's size, in sectors of 512 octets: 1 MiB.
pub const STATE_SECTORS: usize = 2048;

/// The sectors of the two copies of the commit record.
pub const COMMITS: [u64; 2] = [256, 512];

/// The sectors of the two copies of the try record.
pub const TRIES_AT: [u64; 2] = [768, 1024];

/// A whole partition of [`STATE_SECTORS`] sectors that holds these records.
pub fn partition(commit: &[u8; SECTOR], tries: &[u8; SECTOR]) -> Vec<u8> {
    let members = [
        (COMMITS[0], "commit1", commit),
        (COMMITS[1], "commit2", commit),
        (TRIES_AT[0], "try1", tries),
        (TRIES_AT[1], "try2", tries),
    ];
    let mut archive = Vec::with_capacity(STATE_SECTORS * SECTOR);
    for (index, (sector, name, record)) in members.into_iter().enumerate() {
        // The padding's own header and the record's header stand before the record.
        let at = usize::try_from(sector).unwrap_or(usize::MAX) * SECTOR;
        let padding = at - archive.len() - 2 * SECTOR;
        archive.extend_from_slice(&header(&format!("space{}", index + 1), padding));
        archive.resize(archive.len() + padding, 0);
        archive.extend_from_slice(&header(name, SECTOR));
        archive.extend_from_slice(record);
    }
    archive.resize(STATE_SECTORS * SECTOR, 0);
    archive
}

fn header(name: &str, size: usize) -> [u8; SECTOR] {
    let mut header = [0; SECTOR];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|octet| u32::from(*octet)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stand_at_their_sectors_behind_their_headers() {
        let partition = partition(&[b'c'; SECTOR], &[b't'; SECTOR]);
        assert_eq!(partition.len(), 1 << 20);
        for (sector, octet, name) in
            [(256, b'c', "commit1"), (512, b'c', "commit2"), (768, b't', "try1"), (1024, b't', "try2")]
        {
            let at = sector * SECTOR;
            assert!(partition[at..at + SECTOR].iter().all(|found| *found == octet));
            assert!(partition[at - SECTOR..].starts_with(name.as_bytes()));
        }
    }
}
