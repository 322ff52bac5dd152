//! GRUB's environment block: the text that `load_env` reads and `save_env` writes.
//!
//! Source: GRUB manual, "The GRUB environment block"; what the manual leaves open was tried with GRUB 2.06 and 2.12.

use std::collections::BTreeMap;

/// One sector, which holds one record.
pub const SECTOR: usize = 512;

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// The variables of a block, or nothing when GRUB would call it invalid.
///
/// Total: any octets are read as GRUB reads them. A later value of a name stands for an earlier one; a backslash keeps
/// the next octet; a name runs to the next `=`, over line ends too; a value ends with its line, and one whose line does
/// not end is left out. Values are cut at a NUL, as C does.
pub fn parse(block: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut rest = block.strip_prefix(SIGNATURE)?;
    let mut variables = BTreeMap::new();
    while let Some(first) = rest.first() {
        if *first == b'#' {
            rest = after_line(rest);
            continue;
        }
        let Some(equals) = rest.iter().position(|octet| *octet == b'=') else { break };
        let (name, value) = (&rest[..equals], &rest[equals + 1..]);
        let Some((text, left)) = value_of(value) else { break };
        variables.insert(until_nul(name.to_vec()), until_nul(text));
        rest = left;
    }
    Some(variables)
}

/// A block of one sector with these variables in this order, or nothing when they do not fit.
///
/// Names and values must be printable and free of `=`, `\` and line ends, which all of ours are.
pub fn format(variables: &[(&str, String)]) -> Option<[u8; SECTOR]> {
    let mut text = SIGNATURE.to_vec();
    for (name, value) in variables {
        text.extend_from_slice(format!("{name}={value}\n").as_bytes());
    }
    let mut block = [b'#'; SECTOR];
    block.get_mut(..text.len())?.copy_from_slice(&text);
    Some(block)
}

/// The value up to the end of its line, unescaped, and what follows that line.
fn value_of(octets: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut text = Vec::new();
    let mut at = 0;
    loop {
        match octets.get(at)? {
            b'\n' => return Some((text, &octets[at + 1..])),
            b'\\' => {
                text.push(*octets.get(at + 1)?);
                at += 2;
            }
            octet => {
                text.push(*octet);
                at += 1;
            }
        }
    }
}

fn after_line(octets: &[u8]) -> &[u8] {
    match octets.iter().position(|octet| *octet == b'\n') {
        Some(end) => &octets[end + 1..],
        None => &[],
    }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|octet| *octet == 0) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let block = format(&[("n", "5".into()), ("e", "5".into())]).expect("it fits");
        let read = parse(&block).expect("it is a block");
        assert_eq!(read.get(b"n".as_slice()), Some(&b"5".to_vec()));
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn more_than_a_sector_is_refused() {
        assert_eq!(format(&[("n", "5".repeat(500))]), None);
    }

    #[test]
    fn a_value_without_a_line_end_does_not_count() {
        let mut block = SIGNATURE.to_vec();
        block.extend_from_slice(b"n=5\ne=5");
        assert_eq!(parse(&block).expect("it is a block").len(), 1);
    }

    proptest! {
        #[test]
        fn any_octets_are_read(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut block = SIGNATURE.to_vec();
            block.extend_from_slice(&octets);
            prop_assert!(parse(&block).expect("it is a block").len() <= octets.len());
            let _ = parse(&octets);
        }
    }
}
