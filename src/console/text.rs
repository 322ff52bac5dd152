//! Text that a terminal may be given: no control octets, nothing that is wider than a cell.

/// Most characters of one text from elsewhere.
const LONGEST: usize = 400;

/// `text` in printable ASCII and Latin-1, at most 400 characters. All else, from escape to marks that turn the direction of
/// writing, becomes a question mark.
pub fn plain(text: &str) -> String {
    text.chars().take(LONGEST).map(|c| if is_plain(c) { c } else { '?' }).collect()
}

/// `text` in printable ASCII alone.
pub fn ascii(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}

/// Whether a console font of 256 glyphs has `c`, in one cell. The soft hyphen, U+00AD, is not seen everywhere.
const fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}')
}

/// `text` in lines of at most `width` characters, broken at spaces where there are some; at least one line.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let mut rest: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + rest.len() > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        while rest.len() > width {
            let tail = rest.split_off(width);
            lines.push(rest.into_iter().collect());
            rest = tail;
        }
        used += rest.len();
        line.extend(rest);
    }
    if used > 0 || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// `text` cut or filled up with spaces to `width` characters.
pub fn fit(text: &str, width: usize) -> String {
    let mut line: String = text.chars().take(width).collect();
    line.extend(std::iter::repeat_n(' ', width - line.chars().count()));
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_move_the_cursor_or_turn_the_line_is_no_text() {
        assert_eq!(plain("a\u{1b}[2Jb\r\n\u{9b}c\u{202e}d\u{7f}\u{ad}"), "a?[2Jb???c?d??");
        assert_eq!(plain("Zürich · 12 µs"), "Zürich · 12 µs");
        assert_eq!(ascii("Zürich"), "Z?rich");
        assert_eq!(plain(&"x".repeat(5000)).len(), LONGEST);
    }

    #[test]
    fn lines_break_at_spaces_and_long_words_anywhere() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("ab abcdefgh", 4), ["ab", "abcd", "efgh"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("abc", 0), ["a", "b", "c"]);
    }

    proptest! {
        #[test]
        fn lines_fit_and_lose_nothing(text in "[a-z ü]{0,80}", width in 1_usize..20) {
            let lines = wrap(&text, width);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            let solid = |text: &str| text.replace(' ', "");
            prop_assert_eq!(solid(&lines.concat()), solid(&text));
            prop_assert_eq!(fit(&text, width).chars().count(), width);
        }

        #[test]
        fn any_text_becomes_plain(text: String) {
            prop_assert!(plain(&text).chars().all(|c| !c.is_control() && (c as u32) < 256));
        }
    }
}
