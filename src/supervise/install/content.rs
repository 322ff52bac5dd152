//! What a disk holds before something is installed on it, in words for who is asked whether it may be lost.

use super::plain;
use crate::wire::gpt::Partition;

/// Octets of the beginning that [`of`] looks at: the magic number that stands furthest behind, btrfs', ends before.
pub const LOOKED_AT: usize = 68 << 10;
/// Partitions that are named.
const NAMED: usize = 4;

/// What stands at which octet: the magic numbers of libblkid, of what is met on disks.
const KNOWN: [(usize, &[u8], &str); 12] = [
    (1024 + 56, &[0x53, 0xef], "an ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65_536 + 64, b"_BHRfS_M", "a btrfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512 + 24, b"LVM2 001", "a volume of LVM"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a RAID"),
    (4086, b"SWAPSPACE2", "swap space"),
    (32_769, b"CD001", "the image of a CD"),
];

/// In words, by the first octets of a disk and the partitions of its GPT, where it has one.
pub fn of(beginning: &[u8], partitions: Option<&[Partition]>) -> String {
    if let Some(partitions) = partitions {
        return named(partitions);
    }
    let known = KNOWN.iter().find(|(at, magic, _)| beginning.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    if let Some((_, _, name)) = known {
        return (*name).to_owned();
    }
    match mbr(beginning) {
        Some(1) => "a partition table with 1 partition".to_owned(),
        Some(count) => format!("a partition table with {count} partitions"),
        None if beginning.iter().all(|octet| *octet == 0) || beginning.iter().all(|octet| *octet == 0xff) => {
            "nothing: it begins blank".to_owned()
        }
        None => "something that is not known".to_owned(),
    }
}

fn named(partitions: &[Partition]) -> String {
    let names: Vec<_> = partitions.iter().map(|one| plain(&one.name)).filter(|name| !name.is_empty()).collect();
    let is_ours = ["state", "slot-a", "slot-b"].iter().all(|name| names.iter().any(|found| found == name));
    if is_ours {
        return "a Pilotlight".to_owned();
    }
    let count = match partitions.len() {
        1 => "1 partition".to_owned(),
        count => format!("{count} partitions"),
    };
    let more = if names.len() > NAMED { " and more" } else { "" };
    let listed = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let listed = if listed.is_empty() { String::new() } else { format!(": {listed}{more}") };
    format!("a partition table with {count}{listed}")
}

/// How many entries an MBR has that are in use; nothing where there is none.
fn mbr(beginning: &[u8]) -> Option<usize> {
    let sector = beginning.get(..512).filter(|sector| sector.ends_with(&[0x55, 0xaa]))?;
    let used = sector[446..510].chunks_exact(16).filter(|entry| entry[4] != 0).count();
    (used > 0).then_some(used)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::gpt::Guid;

    fn partition(number: u32, name: &str) -> Partition {
        Partition { number, guid: Guid::default(), first: 1, last: 2, name: name.into() }
    }

    #[test]
    fn what_is_there_is_said_in_words() {
        let mut octets = vec![0; LOOKED_AT];
        assert_eq!(of(&octets, None), "nothing: it begins blank");
        octets[99] = 1;
        assert_eq!(of(&octets, None), "something that is not known");
        for (at, magic, name) in KNOWN {
            let mut octets = vec![0; LOOKED_AT];
            octets[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(of(&octets, None), name);
        }
        octets[510..512].copy_from_slice(&[0x55, 0xaa]);
        octets[446 + 4] = 0x83;
        assert_eq!(of(&octets, None), "a partition table with 1 partition");
        assert_eq!(of(&[], Some(&[])), "a partition table with 0 partitions");
        let some: Vec<_> =
            ["EFI System", "root", "a", "b", "c"].iter().zip(1..).map(|(n, i)| partition(i, n)).collect();
        assert_eq!(of(&[], Some(&some[..1])), "a partition table with 1 partition: EFI System");
        assert_eq!(of(&[], Some(&some)), "a partition table with 5 partitions: EFI System, root, a, b and more");
        let ours: Vec<_> = ["state", "slot-a", "slot-b"].iter().zip(1..).map(|(n, i)| partition(i, n)).collect();
        assert_eq!(of(&[], Some(&ours)), "a Pilotlight");
    }

    proptest! {
        #[test]
        fn any_octets_are_something(octets in proptest::collection::vec(any::<u8>(), 0..2000), name in ".{0,80}") {
            prop_assert!(!of(&octets, None).is_empty());
            prop_assert!(of(&octets, Some(&[partition(1, &name)])).len() < 200);
        }
    }
}
