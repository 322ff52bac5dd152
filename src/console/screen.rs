//! The console on a screen: all of it, drawn anew whenever something changes.

use super::dialogue::{Dialogue, State};
use super::qr::{self, Ink};
use super::text::{ascii, fit, wrap};
use super::view::{Row, Tone, View, rows};

/// The least and the most that is drawn; what the terminal says may be anything.
const COLUMNS: std::ops::RangeInclusive<usize> = 40..=200;
const LINES: std::ops::RangeInclusive<usize> = 10..=80;
/// Of labels, with the space after them.
const LABEL: usize = 12;
/// What rows need beside a code.
const LEAST_TEXT: usize = 44;
/// Which keys do what.
pub const MENU: &str = "N: network  I: install  R: reboot  P: power off  V: recovery  F: factory reset";

/// What a screen can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// In characters.
    pub columns: u16,
    /// In lines.
    pub lines: u16,
}

impl Default for Size {
    /// That of VGA's text mode.
    fn default() -> Self {
        Self { columns: 80, lines: 25 }
    }
}

/// How a span looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    Strong,
    Good,
    Bad,
    Inverse,
    Code,
}

impl Style {
    /// Select Graphic Rendition (ECMA-48 section 8.3.117), after a reset.
    const fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[1;31m",
            Self::Inverse => "\x1b[7m",
            Self::Code => "\x1b[1;37;40m",
        }
    }
}

/// A screen's lines, each of spans from left to right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Screen {
    columns: usize,
    lines: Vec<Vec<(Style, String)>>,
}

impl Screen {
    /// Its characters, without their looks and without spaces at the ends of lines.
    pub fn text(&self) -> String {
        let line = |line: &Vec<(Style, String)>| line.iter().map(|(_, text)| text.as_str()).collect::<String>();
        self.lines.iter().map(|spans| format!("{}\n", line(spans).trim_end())).collect()
    }

    /// What the terminal is sent: each line over the one that is there, so that nothing flickers.
    pub fn paint(&self) -> String {
        let mut out = String::from("\x1b[H");
        for (index, line) in self.lines.iter().enumerate() {
            out.push_str(if index == 0 { "" } else { "\r\n" });
            for (style, text) in line {
                out.push_str("\x1b[0m");
                out.push_str(style.sgr());
                out.push_str(text);
            }
            out.push_str("\x1b[0m");
            // A line that is full leaves the cursor on its last character, which would be erased.
            let used: usize = line.iter().map(|(_, text)| text.chars().count()).sum();
            out.push_str(if used < self.columns { "\x1b[K" } else { "" });
        }
        out
    }
}

/// What a terminal is sent first: a reset, UTF-8, no cursor, no line wrap.
///
/// Source: console_codes(4).
pub const BEGIN: &str = "\x1bc\x1b%G\x1b[?25l\x1b[?7l\x1b[2J";

/// The screen of that size, which is taken as 40 by 10 at least and 200 by 80 at most.
pub fn draw(view: &View, state: &State, size: Size) -> Screen {
    let columns = usize::from(size.columns).clamp(*COLUMNS.start(), *COLUMNS.end());
    let height = usize::from(size.lines).clamp(*LINES.start(), *LINES.end());
    let version = ascii(&view.version);
    let title = format!(" Pilotlight {version}");
    let right = format!("{} ", view.hostname());
    let gap = columns.saturating_sub(title.chars().count() + right.chars().count());
    let mut lines = vec![vec![(Style::Inverse, fit(&format!("{title}{}{right}", " ".repeat(gap)), columns))]];
    lines.push(Vec::new());
    let room = height - 4;
    let (body, keys) = match state.dialogue(view) {
        None => (overview(view, columns, room), MENU),
        Some(dialogue) => (form(&dialogue, columns), dialogue.keys),
    };
    lines.extend(body.into_iter().take(room));
    lines.resize(height - 1, Vec::new());
    lines.push(vec![(Style::Inverse, fit(&format!(" {keys}"), columns))]);
    Screen { columns, lines }
}

/// The rows on the left, the code on the right where both fit.
fn overview(view: &View, columns: usize, room: usize) -> Vec<Vec<(Style, String)>> {
    let code = view.page().and_then(|page| qr::lines(&page, Ink::HalfBlocks)).unwrap_or_default();
    let code_width = code.first().map_or(0, |line| line.chars().count());
    let fits = code_width > 0 && code.len() <= room && columns > LEAST_TEXT + code_width;
    let width = if fits { columns - code_width - 1 } else { columns };
    let mut lines: Vec<_> = rows(view).iter().flat_map(|row| row_lines(row, width)).collect();
    if lines.len() > room {
        let more = lines.len() - room + 1;
        lines.truncate(room - 1);
        lines.push(vec![(Style::Plain, format!(" {:LABEL$}and {more} more lines; see the page", ""))]);
    }
    if fits {
        lines.resize(lines.len().max(code.len()), Vec::new());
        for (line, modules) in lines.iter_mut().zip(code) {
            let used: usize = line.iter().map(|(_, text)| text.chars().count()).sum();
            line.push((Style::Plain, " ".repeat(columns - code_width - used)));
            line.push((Style::Code, modules));
        }
    }
    lines
}

fn row_lines(row: &Row, width: usize) -> Vec<Vec<(Style, String)>> {
    let style = match row.tone {
        Tone::Good => Style::Good,
        Tone::Plain => Style::Plain,
        Tone::Bad => Style::Bad,
    };
    let texts = row.lines.iter().flat_map(|line| wrap(line, width - LABEL - 2));
    let label = |index| if index == 0 { row.label } else { "" };
    texts
        .enumerate()
        .map(|(index, text)| vec![(Style::Strong, format!(" {:LABEL$}", label(index))), (style, text)])
        .collect()
}

fn form(dialogue: &Dialogue, columns: usize) -> Vec<Vec<(Style, String)>> {
    let width = columns - 4;
    let mut lines = vec![vec![(Style::Strong, format!("  {}", dialogue.title))], Vec::new()];
    let paragraph =
        |style, text: &str| wrap(text, width).into_iter().map(move |line| vec![(style, format!("  {line}"))]);
    for text in &dialogue.body {
        lines.extend(paragraph(Style::Plain, text));
    }
    lines.push(Vec::new());
    let labels = dialogue.fields.iter().map(|field| field.label.len()).max().unwrap_or(0);
    for field in &dialogue.fields {
        let (mark, style) = if field.focused { (">", Style::Inverse) } else { (" ", Style::Plain) };
        let cursor = if field.focused { "_" } else { "" };
        let label = format!(" {mark}{:labels$}  ", field.label);
        let value = format!("{}{cursor}", field.value);
        // The end of what is typed is what matters.
        let skip = value.chars().count().saturating_sub(columns.saturating_sub(labels + 4));
        lines.push(vec![(Style::Plain, label), (style, value.chars().skip(skip).collect())]);
    }
    for text in &dialogue.faults {
        lines.extend(paragraph(Style::Bad, text));
    }
    if let Some(text) = &dialogue.clock {
        lines.extend(paragraph(Style::Strong, text));
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::console::golden::{typed, well};

    /// The octets between control sequences that the console itself makes.
    fn without_own_sequences(painted: &str) -> String {
        let mut text = String::new();
        let mut rest = painted;
        while let Some(at) = rest.find("\x1b[") {
            text.push_str(&rest[..at]);
            let sequence = &rest[at + 2..];
            let end = sequence.find(|c: char| c.is_ascii_alphabetic()).expect("every sequence ends");
            assert!(matches!(&sequence[end..=end], "H" | "m" | "K"), "{sequence}");
            rest = &sequence[end + 1..];
        }
        text.push_str(rest);
        text
    }

    proptest! {
        #[test]
        fn any_size_is_filled_and_never_left(columns: u16, lines: u16, octets in proptest::collection::vec(any::<u8>(), 0..30)) {
            let view = well();
            let (state, _) = typed(State::Overview, &octets, &view);
            let screen = draw(&view, &state, Size { columns, lines });
            let columns = usize::from(columns).clamp(40, 200);
            prop_assert_eq!(screen.lines.len(), usize::from(lines).clamp(10, 80));
            prop_assert!(screen.text().lines().all(|line| line.chars().count() <= columns), "{}", screen.text());
        }

        #[test]
        fn no_text_from_elsewhere_reaches_the_terminal_as_a_control(text: String) {
            let mut view = well();
            let init = view.init.as_mut().unwrap();
            init.services[0].degraded = true;
            (init.services[0].says, init.services[0].last_exit) = (text.clone(), text.clone());
            (init.slot.name, init.slot.why, init.previous) = (text.clone(), text.clone(), text.clone());
            init.faults = vec![text.clone()];
            let network = view.network.as_mut().unwrap();
            (network.hostname, network.trouble) = (text.clone(), vec![text.clone()]);
            network.clock.source.clone_from(&text);
            (network.links[0].name, network.links[0].detail) = (text.clone(), text.clone());
            view.provider.as_mut().unwrap().omni.endpoint.clone_from(&text);
            view.version.clone_from(&text);
            for state in [State::Overview, State::Waiting(super::super::Request::Reboot).answered(Err(text.clone()))] {
                let painted = draw(&view, &state, Size::default()).paint();
                let plain = without_own_sequences(&painted);
                prop_assert!(plain.replace("\r\n", "").chars().all(|c| !c.is_control()), "{plain:?}");
            }
        }
    }
}
