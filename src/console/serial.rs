//! The console on a serial line: a line when something has changed, everything on Enter, forms field by field.
//!
//! Nothing but text, carriage return and line feed: whatever listens there, a terminal, a log or a person, can read it.

use super::dialogue::{Dialogue, State};
use super::qr::{self, Ink};
use super::screen::MENU;
use super::text::ascii;
use super::view::{Row, View, rows};

/// Of a line that is written over.
const WIDTH: usize = 78;

/// What a serial line was told.
#[derive(Clone, Debug, Default)]
pub struct Serial {
    begun: bool,
    rows: Vec<Row>,
    dialogue: Option<Dialogue>,
}

impl Serial {
    /// What the line is sent now; empty when there is nothing to say. With `redraw` everything is said anew.
    pub fn update(&mut self, view: &View, state: &State, redraw: bool) -> String {
        let dialogue = state.dialogue(view);
        let before = std::mem::replace(&mut self.dialogue, dialogue.clone());
        let mut lines = Vec::new();
        match (before, dialogue) {
            // While a form is open, news would tear it apart.
            (before, Some(dialogue)) => return told(before.filter(|_| !redraw).as_ref(), &dialogue),
            (before, None) => {
                let rows = rows(view);
                if redraw || !self.begun {
                    lines = overview(view, &rows);
                } else {
                    if before.is_some() {
                        lines.push(String::new());
                        lines.push(format!("{MENU}   Enter: everything"));
                    }
                    lines.extend(news(&self.rows, &rows));
                }
                (self.begun, self.rows) = (true, rows);
            }
        }
        lines.iter().map(|line| format!("\r{}\r\n", ascii(line))).collect()
    }
}

fn overview(view: &View, rows: &[Row]) -> Vec<String> {
    let mut lines = vec![String::new(), format!("Pilotlight {}  {}", view.version, view.hostname()), String::new()];
    lines.extend(rows.iter().flat_map(|row| {
        let label = |index| if index == 0 { row.label } else { "" };
        row.lines.iter().enumerate().map(move |(index, line)| format!("{:12}{line}", label(index)))
    }));
    lines.push(String::new());
    lines.extend(view.page().and_then(|page| qr::lines(&page, Ink::Hashes)).into_iter().flatten());
    lines.extend([String::new(), format!("{MENU}   Enter: everything"), String::new()]);
    lines
}

/// A line for each row that is new or other than before, and for each that is gone.
fn news(before: &[Row], now: &[Row]) -> Vec<String> {
    let same = |a: &Row, b: &Row| a.label == b.label && (a.lines == b.lines || !b.steady);
    let changed = now.iter().filter(|row| !before.iter().any(|old| same(old, row)));
    let gone = before.iter().filter(|old| !now.iter().any(|row| row.label == old.label));
    changed
        .map(|row| format!("pilotlight: {}: {}", row.label, row.lines.join("; ")))
        .chain(gone.map(|old| format!("pilotlight: {}: no more", old.label)))
        .collect()
}

/// What a form looks like after `before`: as little as possible of it anew.
fn told(before: Option<&Dialogue>, now: &Dialogue) -> String {
    let focused = |dialogue: &Dialogue| dialogue.fields.iter().find(|field| field.focused).cloned();
    let field = focused(now);
    let prompt = field.as_ref().map(|field| {
        let line = format!("{}: {}", field.label, field.value);
        // The end of what is typed is what matters.
        let skip = line.chars().count().saturating_sub(WIDTH);
        ascii(&line.chars().skip(skip).collect::<String>())
    });
    let heading = |dialogue: &Dialogue| (dialogue.title, dialogue.body.clone(), dialogue.keys);
    let mut lines = Vec::new();
    match before {
        Some(before) if heading(before) == heading(now) => {
            let fresh = if before.faults == now.faults { &[][..] } else { &now.faults };
            lines.extend(fresh.iter().cloned());
            let same_field = focused(before).map(|field| field.label) == field.map(|field| field.label);
            if same_field && lines.is_empty() {
                if focused(before) == focused(now) {
                    return String::new();
                }
                // Over what stands there, with what is left of it wiped.
                return prompt.map(|prompt| format!("\r{prompt:WIDTH$}\r{prompt}")).unwrap_or_default();
            }
            lines.insert(0, String::new());
        }
        Some(_) | None => {
            lines.extend([String::new(), String::new(), now.title.to_owned()]);
            lines.extend(now.body.iter().cloned());
            lines.extend(now.faults.iter().cloned());
            lines.extend(Some(now.keys.to_owned()).filter(|keys| !keys.is_empty()));
        }
    }
    let text: String = lines.iter().map(|line| format!("{}\r\n", ascii(line))).collect();
    format!("{text}{}", prompt.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::console::golden::{typed, well};

    #[test]
    fn only_what_has_changed_is_told() {
        let mut serial = Serial::default();
        let mut view = well();
        assert!(serial.update(&view, &State::Overview, false).contains("State       all 2 services run"));
        // Clocks always change.
        view.init.as_mut().unwrap().uptime += 61;
        assert_eq!(serial.update(&view, &State::Overview, false), "");
        view.init.as_mut().unwrap().services[1].degraded = true;
        let told = serial.update(&view, &State::Overview, false);
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(
            told.starts_with("\rpilotlight: State: degraded: web\r\n\rpilotlight: Services: web degraded"),
            "{told}"
        );
        view.init.as_mut().unwrap().services[1].degraded = false;
        let told = serial.update(&view, &State::Overview, false);
        assert!(told.ends_with("\rpilotlight: Services: no more\r\n"), "{told}");
        assert!(serial.update(&view, &State::Overview, true).contains("##"));
    }

    proptest! {
        #[test]
        fn a_serial_line_gets_text_alone(octets in proptest::collection::vec(any::<u8>(), 0..60), name: String) {
            let mut view = well();
            view.network.as_mut().unwrap().hostname = name;
            let mut serial = Serial::default();
            let mut state = State::Overview;
            for octet in octets {
                state = typed(state, &[octet], &view).0;
                let told = serial.update(&view, &state, octet == b'\r');
                prop_assert!(told.bytes().all(|octet| matches!(octet, b'\r' | b'\n' | b' '..=b'~')), "{told:?}");
            }
        }
    }
}
