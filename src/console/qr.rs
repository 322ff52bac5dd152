//! The QR code of the page's address, in characters.
//!
//! On a dark screen the light modules are drawn and the dark ones left out, so that a camera sees dark on light.

use qrcodegen::{QrCode, QrCodeEcc};

/// Modules of light around the code: ISO/IEC 18004 asks for four.
const QUIET: i32 = 4;
/// Longest text: a larger code would not fit a screen of 25 lines.
const LONGEST: usize = 78;

/// How modules are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// Two modules a character, one above the other, as half blocks.
    HalfBlocks,
    /// Two characters a module: `##` is light.
    Hashes,
}

/// The code of `text`, line by line, all of the same width; `None` for a text that is empty or too long.
pub fn lines(text: &str, ink: Ink) -> Option<Vec<String>> {
    if text.is_empty() || text.len() > LONGEST {
        return None;
    }
    let code = QrCode::encode_text(text, QrCodeEcc::Low).ok()?;
    let all = -QUIET..code.size() + QUIET;
    // All is light where there is no module, which is right for the quiet zone.
    let light = |x: i32, y: i32| !code.get_module(x, y);
    let lines = match ink {
        Ink::HalfBlocks => all
            .clone()
            .step_by(2)
            .map(|y| {
                let both = |x| match (light(x, y), light(x, y + 1) && y + 1 < all.end) {
                    (true, true) => '█',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (false, false) => ' ',
                };
                all.clone().map(both).collect()
            })
            .collect(),
        Ink::Hashes => {
            all.clone().map(|y| all.clone().map(|x| if light(x, y) { "##" } else { "  " }).collect()).collect()
        }
    };
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_fits_beside_the_rows_of_a_vga_screen() {
        let lines = lines("http://192.168.100.100/", Ink::HalfBlocks).unwrap();
        assert_eq!((lines.len(), lines[0].chars().count()), (17, 33));
        assert!(lines.iter().all(|line| line.chars().count() == 33));
    }

    #[test]
    fn both_inks_draw_the_same_modules() {
        let (half, hashes) =
            (lines("http://10.0.0.1/", Ink::HalfBlocks).unwrap(), lines("http://10.0.0.1/", Ink::Hashes));
        for (y, row) in hashes.unwrap().iter().enumerate() {
            let light: Vec<bool> = row.as_bytes().chunks(2).map(|two| two == b"##").collect();
            let drawn: Vec<bool> = half[y / 2]
                .chars()
                .map(|c| if y % 2 == 0 { matches!(c, '█' | '▀') } else { matches!(c, '█' | '▄') })
                .collect();
            assert_eq!(light, drawn, "row {y}");
        }
    }

    #[test]
    fn nothing_and_too_much_have_no_code() {
        assert_eq!(lines("", Ink::Hashes), None);
        assert_eq!(lines(&"x".repeat(LONGEST + 1), Ink::Hashes), None);
        assert!(lines(&"x".repeat(LONGEST), Ink::Hashes).is_some());
    }
}
