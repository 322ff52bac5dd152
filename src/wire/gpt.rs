//! GUID partition tables: the octets of a disk's first and last sectors to values and back (UEFI 2.10, section 5.3).
//!
//! Sectors have 512 octets: the image is laid out so.

/// Octets of a sector.
pub const SECTOR: usize = 512;
/// Octets of an entry of the tables that are understood.
pub const ENTRY: usize = 128;
/// Most entries.
pub const MAX_ENTRIES: u32 = 1024;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER: usize = 92;

/// A GUID in the order of its octets on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Reads the usual text form, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        let groups: Vec<_> = text.split('-').collect();
        let lengths: Vec<_> = groups.iter().map(|group| group.len()).collect();
        if lengths != [8, 4, 4, 4, 12] || !text.bytes().all(|octet| octet.is_ascii_hexdigit() || octet == b'-') {
            return None;
        }
        let digits = groups.concat();
        let mut octets = [0; 16];
        for (octet, pair) in octets.iter_mut().zip(digits.as_bytes().chunks(2)) {
            *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        // The first three groups are little-endian numbers.
        octets[..4].reverse();
        octets[4..6].reverse();
        octets[6..8].reverse();
        Some(Self(octets))
    }

    /// The GUID of these random octets (RFC 9562, section 5.4).
    pub fn random(mut octets: [u8; 16]) -> Self {
        // Of a number that lies little-endian, and of octets.
        octets[7] = octets[7] & 0x0f | 0x40;
        octets[8] = octets[8] & 0x3f | 0x80;
        Self(octets)
    }
}

/// Why a sector is no header that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Fewer octets than one needs.
    #[error("too short")]
    Short,
    /// Another signature, such as zeroes.
    #[error("no partition table")]
    Signature,
    /// A revision or a size that is not understood.
    #[error("unknown form")]
    Form,
    /// The header's checksum is wrong.
    #[error("header damaged")]
    Header,
    /// The entries' checksum is wrong.
    #[error("entries damaged")]
    Entries,
    /// Its own place, or that of the entries, can't be.
    #[error("impossible places")]
    Places,
}

/// A header, primary or backup. Places are sector numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where it lies itself.
    pub own: u64,
    /// Where its peer lies.
    pub peer: u64,
    /// First sector for partitions.
    pub first_usable: u64,
    /// Last sector for partitions.
    pub last_usable: u64,
    /// The disk's GUID.
    pub disk: Guid,
    /// Where the entries begin.
    pub entries: u64,
    /// How many there are.
    pub count: u32,
    /// Their checksum.
    pub entries_crc: u32,
}

impl Header {
    /// Reads the header that lies at sector `own`.
    ///
    /// # Errors
    ///
    /// [`Invalid`].
    pub fn decode(sector: &[u8], own: u64) -> Result<Self, Invalid> {
        let header = sector.get(..HEADER).ok_or(Invalid::Short)?;
        if &header[..8] != SIGNATURE {
            return Err(Invalid::Signature);
        }
        let (u32_at, u64_at) = (|at| u32_at(header, at), |at| u64_at(header, at));
        let mut guid = Guid::default();
        guid.0.copy_from_slice(&header[56..72]);
        let count = u32_at(80);
        if u32_at(8) != REVISION || u32_at(12) as usize != HEADER || u32_at(84) as usize != ENTRY {
            return Err(Invalid::Form);
        }
        if count == 0 || count > MAX_ENTRIES {
            return Err(Invalid::Form);
        }
        let mut unsigned = [0; HEADER];
        unsigned.copy_from_slice(header);
        unsigned[16..20].fill(0);
        if crc32(&unsigned) != u32_at(16) {
            return Err(Invalid::Header);
        }
        let header = Self {
            own: u64_at(24),
            peer: u64_at(32),
            first_usable: u64_at(40),
            last_usable: u64_at(48),
            disk: guid,
            entries: u64_at(72),
            count,
            entries_crc: u32_at(88),
        };
        let sane = header.own == own
            && header.peer != own
            && header.entries >= 2
            && header.first_usable <= header.last_usable
            && header.last_usable < u64::MAX / 1024
            && header.entries < u64::MAX / 1024;
        if sane { Ok(header) } else { Err(Invalid::Places) }
    }

    /// The sector, checksum and all.
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        let mut put = |at: usize, octets: &[u8]| sector[at..at + octets.len()].copy_from_slice(octets);
        put(0, SIGNATURE);
        put(8, &REVISION.to_le_bytes());
        put(12, &92_u32.to_le_bytes());
        put(24, &self.own.to_le_bytes());
        put(32, &self.peer.to_le_bytes());
        put(40, &self.first_usable.to_le_bytes());
        put(48, &self.last_usable.to_le_bytes());
        put(56, &self.disk.0);
        put(72, &self.entries.to_le_bytes());
        put(80, &self.count.to_le_bytes());
        put(84, &128_u32.to_le_bytes());
        put(88, &self.entries_crc.to_le_bytes());
        let crc = crc32(&sector[..HEADER]);
        sector[16..20].copy_from_slice(&crc.to_le_bytes());
        sector
    }

    /// How many octets the entries take, in whole sectors.
    pub fn table_octets(&self) -> usize {
        (self.count as usize * ENTRY).next_multiple_of(SECTOR)
    }
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its own GUID: what Linux calls PARTUUID.
    pub guid: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector.
    pub last: u64,
    /// Its name.
    pub name: String,
}

/// A header with its entries, as octets: what is not understood stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The header.
    pub header: Header,
    /// The entries.
    pub entries: Vec<u8>,
}

impl Table {
    /// Puts a header and its entries together.
    ///
    /// # Errors
    ///
    /// When there are too few, or their checksum is wrong.
    pub fn new(header: Header, mut entries: Vec<u8>) -> Result<Self, Invalid> {
        if entries.len() < header.table_octets() {
            return Err(Invalid::Short);
        }
        entries.truncate(header.table_octets());
        if crc32(&entries[..header.count as usize * ENTRY]) != header.entries_crc {
            return Err(Invalid::Entries);
        }
        Ok(Self { header, entries })
    }

    /// The partitions, in the order of their numbers. Such that end before they begin are left out.
    pub fn partitions(&self) -> Vec<Partition> {
        let used = self.entries.chunks_exact(ENTRY).zip(1..).filter(|(entry, _)| entry[..16] != [0; 16]);
        let partition = |(entry, number): (&[u8], u32)| {
            let mut guid = Guid::default();
            guid.0.copy_from_slice(&entry[16..32]);
            let units = entry[56..ENTRY].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let name = char::decode_utf16(units.take_while(|unit| *unit != 0))
                .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect();
            Partition { number, guid, first: u64_at(entry, 32), last: u64_at(entry, 40), name }
        };
        used.map(partition).filter(|partition| partition.first <= partition.last).collect()
    }

    /// The same table with partition `number` ending at sector `last`.
    pub fn ending(mut self, number: u32, last: u64) -> Self {
        let at = (number as usize).wrapping_sub(1).saturating_mul(ENTRY);
        if let Some(field) = self.entries.get_mut(at..).and_then(|entry| entry.get_mut(40..48)) {
            field.copy_from_slice(&last.to_le_bytes());
        }
        self.header.entries_crc = crc32(&self.entries[..self.header.count as usize * ENTRY]);
        self
    }

    /// The same table with other identifiers, of the disk and of each partition, that `next` gives.
    pub fn renamed(mut self, mut next: impl FnMut() -> Guid) -> Self {
        self.header.disk = next();
        for entry in self.entries.chunks_exact_mut(ENTRY).filter(|entry| entry[..16] != [0; 16]) {
            entry[16..32].copy_from_slice(&next().0);
        }
        self.header.entries_crc = crc32(&self.entries[..self.header.count as usize * ENTRY]);
        self
    }

    /// The primary table of a disk of `sectors`: at its beginning, with its backup at the end. Usable ends before that.
    pub fn primary(mut self, sectors: u64) -> Self {
        self.header.own = 1;
        self.header.peer = sectors - 1;
        self.header.entries = 2;
        self.header.last_usable = last_usable(&self.header, sectors);
        self
    }

    /// The backup of [`Self::primary`].
    pub fn backup(mut self, sectors: u64) -> Self {
        self.header.own = sectors - 1;
        self.header.peer = 1;
        self.header.entries = sectors - 1 - (self.header.table_octets() / SECTOR) as u64;
        self.header.last_usable = last_usable(&self.header, sectors);
        self
    }
}

/// The last sector for partitions of a disk of `sectors` with such a table at its end.
pub fn last_usable(header: &Header, sectors: u64) -> u64 {
    sectors.saturating_sub(2 + (header.table_octets() / SECTOR) as u64)
}

/// The checksum of IEEE 802.3, bit by bit: a table has a few thousand octets.
fn crc32(octets: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !octets.iter().fold(u32::MAX, |crc, octet| (0..8).fold(crc ^ u32::from(*octet), step))
}

fn u32_at(octets: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&octets[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(octets: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&octets[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The primary table of a disk of `sectors` with these partitions: name, first and last sector. Its identifiers begin
    /// with `salt`.
    pub(crate) fn table_of(sectors: u64, salt: u8, partitions: &[(&str, u64, u64)]) -> Table {
        let mut entries = vec![0; 128 * ENTRY];
        for ((entry, number), (name, first, last)) in entries.chunks_exact_mut(ENTRY).zip(1..).zip(partitions) {
            entry[..16].fill(7);
            entry[16..32].fill(number);
            entry[16] = salt;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for (unit, letter) in entry[56..].chunks_exact_mut(2).zip(name.bytes()) {
                unit[0] = letter;
            }
        }
        let header = Header {
            own: 1,
            peer: sectors - 1,
            first_usable: 34,
            last_usable: sectors - 34,
            disk: Guid([salt; 16]),
            entries: 2,
            count: 128,
            entries_crc: crc32(&entries),
        };
        Table::new(header, entries).unwrap()
    }

    fn table(sectors: u64) -> Table {
        table_of(sectors, 1, &[("hi", 2048, 4095)])
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_guid_is_written_as_it_lies_on_the_disk() {
        let esp = Guid::parse("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").unwrap();
        assert_eq!(esp.0[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        assert_eq!(esp.0[8..], [0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b]);
        assert_eq!(Guid::parse("c12a7328-f81f-11d2-ba4b-00a0c93ec93"), None);
        assert_eq!(Guid::parse("c12a7328-f81f-11d2-ba4b-00a0c93ec9+b"), None);
    }

    #[test]
    fn a_random_guid_says_so() {
        let text = "ffffffff-ffff-4fff-bfff-ffffffffffff";
        assert_eq!(Some(Guid::random([0xff; 16])), Guid::parse(text));
    }

    #[test]
    fn a_partition_grows_and_both_tables_still_hold() {
        let grown = table(10_000).ending(1, 50_000).primary(100_000);
        assert_eq!(grown.partitions()[0].last, 50_000);
        assert_eq!(grown.partitions()[0].name, "hi");
        let backup = grown.clone().backup(100_000);
        for (table, own) in [(&grown, 1), (&backup, 99_999)] {
            let header = Header::decode(&table.header.encode(), own).unwrap();
            assert_eq!(Table::new(header, table.entries.clone()).unwrap(), *table);
            assert_eq!(header.last_usable, 99_966);
        }
        assert_eq!(backup.header.entries, 99_967);
    }

    #[test]
    fn every_changed_octet_of_a_header_is_noticed() {
        let sector = table(10_000).header.encode();
        for at in 0..HEADER {
            let mut changed = sector;
            changed[at] ^= 0x10;
            assert!(Header::decode(&changed, 1).is_err(), "octet {at}");
        }
        assert_eq!(Header::decode(&sector, 2), Err(Invalid::Places));
        assert_eq!(Header::decode(&[0; SECTOR], 1), Err(Invalid::Signature));
        assert_eq!(Header::decode(&sector[..91], 1), Err(Invalid::Short));
    }

    proptest! {
        #[test]
        fn any_sectors_are_a_table_or_an_error(
            mut sector in proptest::collection::vec(any::<u8>(), 0..600), entries in proptest::collection::vec(any::<u8>(), 0..2048),
            signed in any::<bool>(),
        ) {
            // With a valid frame the rest is reached.
            if signed && sector.len() >= HEADER {
                let frame = table(10_000).header.encode();
                for range in [0..16, 80..88] {
                    sector[range.clone()].copy_from_slice(&frame[range]);
                }
                sector[16..24].fill(0);
                let crc = crc32(&sector[..HEADER]);
                sector[16..20].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(mut header) = Header::decode(&sector, 1) {
                header.count = 16;
                header.entries_crc = crc32(entries.get(..2048).unwrap_or_default());
                if let Ok(table) = Table::new(header, entries) {
                    table.partitions();
                }
            }
        }

        #[test]
        fn a_table_of_any_entries_is_read(entries in proptest::collection::vec(any::<u8>(), 16 * ENTRY..=16 * ENTRY)) {
            let mut header = table(10_000).header;
            header.count = 16;
            header.entries_crc = crc32(&entries);
            let table = Table::new(header, entries).unwrap();
            prop_assert!(table.partitions().iter().all(|partition| partition.first <= partition.last));
        }
    }
}
