//! What is typed: [`State::on`] makes of a state and a key the next state and at most one [`Request`].
//!
//! The requests are all that a person at the console can do. What loses data or ends the run wants a word typed out, so
//! that neither a cat on the keyboard nor noise on a serial line does it.

use super::install;
use super::keys::Key;
use super::network::{Item, NetworkForm};
use super::text::plain;
use super::view::View;
use crate::net::config::Network;
use crate::net::trial::Ending;

/// Most characters of a field.
const LONGEST: usize = 64;

/// All that a person at the console can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start the box anew.
    Reboot,
    /// Switch the box off.
    PowerOff,
    /// Start the box anew, once, as the recovery system, which serves no machines.
    Recovery,
    /// Start the box anew and forget everything on the way.
    FactoryReset,
    /// Try this network configuration; it returns by itself unless it is kept.
    Try(Network),
    /// Make the configuration that is tried count.
    Keep(Network),
    /// Go back to the configuration before the one that is tried.
    Return,
    /// Look which disks the system may be copied to.
    Survey,
    /// Copy the system that runs to this disk, of so many octets.
    Install(String, u64),
}

impl Request {
    /// What is asked for, without what goes with it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::PowerOff => "power off",
            Self::Recovery => "recovery",
            Self::FactoryReset => "factory reset",
            Self::Try(_) => "try a network configuration",
            Self::Keep(_) => "keep the network configuration",
            Self::Return => "return to the network configuration before",
            Self::Survey => "look at the disks",
            Self::Install(..) => "install on another disk",
        }
    }
}

/// What wants a word typed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// See [`Request::Reboot`].
    Reboot,
    /// See [`Request::PowerOff`].
    PowerOff,
    /// See [`Request::Recovery`].
    Recovery,
    /// See [`Request::FactoryReset`].
    FactoryReset,
    /// See [`Request::Survey`]: which disk is asked next.
    Install,
}

impl Deed {
    /// What has to be typed.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reboot | Self::PowerOff | Self::Recovery | Self::Install => "yes",
            Self::FactoryReset => "erase",
        }
    }

    const fn request(self) -> Request {
        match self {
            Self::Reboot => Request::Reboot,
            Self::PowerOff => Request::PowerOff,
            Self::Recovery => Request::Recovery,
            Self::FactoryReset => Request::FactoryReset,
            Self::Install => Request::Survey,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Reboot => "Reboot",
            Self::PowerOff => "Power off",
            Self::Recovery => "Recovery",
            Self::FactoryReset => "Factory reset",
            Self::Install => "Install on another disk",
        }
    }

    const fn warning(self) -> &'static str {
        match self {
            Self::Reboot => "The box starts anew. Machines that boot from the network wait meanwhile.",
            Self::PowerOff => "The box switches itself off. Nothing is served until somebody switches it on.",
            Self::Recovery => {
                "The box starts anew as its recovery system: its network and its page work, its machines are not served. \
                 The next reboot leads back."
            }
            Self::Install => "The disks of the box are looked at. Which one the system is copied to is asked next.",
            Self::FactoryReset => {
                "The box starts anew and forgets all settings, keys and records. Machines keep running. \
                 This can't be undone."
            }
        }
    }
}

/// A field that is typed into: printable ASCII, 64 characters at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(String);

impl Line {
    /// A field that holds `text` already.
    pub fn of(text: &str) -> Self {
        Self(text.chars().filter(|c| matches!(c, ' '..='~')).take(LONGEST).collect())
    }

    /// What was typed.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Takes a key; one that edits nothing changes nothing.
    pub fn edit(&mut self, key: Key) {
        match key {
            Key::Char(c) if self.0.len() < LONGEST => self.0.push(c),
            Key::Backspace => drop(self.0.pop()),
            Key::Clear => self.0.clear(),
            _ => {}
        }
    }
}

/// Where a person is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// The box is shown.
    #[default]
    Overview,
    /// A word is typed out; whether a wrong one was.
    Confirm(Deed, Line, bool),
    /// The network form is filled in.
    Network(Box<NetworkForm>),
    /// The answer to a request is awaited.
    Waiting(Request),
    /// A network configuration is tried.
    Trial(Network),
    /// The name of a disk is typed out; what was wrong with the last one.
    Install(Line, String),
    /// Something is said, until a key is pressed.
    Notice(String),
}

/// What a key leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The next state.
    pub state: State,
    /// What is asked for. The state is [`State::Waiting`] then.
    pub request: Option<Request>,
    /// Whether everything is shown anew.
    pub redraw: bool,
}

impl State {
    /// Takes a key. `view` is what is known of the box.
    #[must_use]
    pub fn on(self, key: Key, view: &View) -> Step {
        let to = |state| Step { state, request: None, redraw: false };
        if key == Key::Redraw {
            return Step { state: self, request: None, redraw: true };
        }
        match (self, key) {
            (Self::Overview, key) => match key {
                Key::Char('n' | 'N') => match &view.network {
                    Some(network) => to(Self::Network(Box::new(NetworkForm::of(network)))),
                    None => to(Self::Notice("The network service does not answer; try again in a moment.".to_owned())),
                },
                Key::Char('i' | 'I') => to(Self::Confirm(Deed::Install, Line::default(), false)),
                Key::Char('r' | 'R') => to(Self::Confirm(Deed::Reboot, Line::default(), false)),
                Key::Char('p' | 'P') => to(Self::Confirm(Deed::PowerOff, Line::default(), false)),
                Key::Char('v' | 'V') => to(Self::Confirm(Deed::Recovery, Line::default(), false)),
                Key::Char('f' | 'F') => to(Self::Confirm(Deed::FactoryReset, Line::default(), false)),
                Key::Enter => Step { state: Self::Overview, request: None, redraw: true },
                _ => to(Self::Overview),
            },
            // What was asked for can't be taken back; its answer comes.
            (state @ Self::Waiting(_), _) => to(state),
            (Self::Trial(network), Key::Char('k' | 'K')) => ask(Request::Keep(network)),
            (Self::Trial(_), Key::Char('b' | 'B')) => ask(Request::Return),
            (state @ Self::Trial(_), _) => to(state),
            (Self::Confirm(..) | Self::Network(_) | Self::Install(..), Key::Cancel) | (Self::Notice(_), _) => {
                to(Self::Overview)
            }
            (Self::Install(line, _), Key::Enter) => match install::chosen(view, line.text()) {
                Ok(request) => ask(request),
                Err(fault) => to(Self::Install(Line::default(), fault)),
            },
            (Self::Install(mut line, _), key) => {
                line.edit(key);
                to(Self::Install(line, String::new()))
            }
            (Self::Confirm(deed, line, _), Key::Enter) if line.text() == deed.word() => ask(deed.request()),
            (Self::Confirm(deed, _, _), Key::Enter) => to(Self::Confirm(deed, Line::default(), true)),
            (Self::Confirm(deed, mut line, _), key) => {
                line.edit(key);
                to(Self::Confirm(deed, line, false))
            }
            (Self::Network(mut form), key) => match form.on(key) {
                Some(network) => ask(Request::Try(network)),
                None => to(Self::Network(form)),
            },
        }
    }

    /// The answer to the request that is awaited.
    #[must_use]
    pub fn answered(self, answer: Result<(), String>) -> Self {
        match (self, answer) {
            (Self::Waiting(request), Err(reason)) => {
                Self::Notice(format!("Not done ({}): {}.", request.as_str(), plain(&reason)))
            }
            (Self::Waiting(Request::Try(network)), Ok(())) => Self::Trial(network),
            (Self::Waiting(Request::Survey), Ok(())) => Self::Install(Line::default(), String::new()),
            (Self::Waiting(request), Ok(())) => Self::Notice(
                match request {
                    Request::Reboot => "The box starts anew.",
                    Request::PowerOff => "The box switches itself off.",
                    Request::Recovery => "The box starts anew as its recovery system.",
                    Request::FactoryReset => "The box starts anew and forgets everything on the way.",
                    Request::Try(_) => "The network configuration is tried.",
                    Request::Keep(_) => "The network configuration is kept.",
                    Request::Return => "The network configuration before is back.",
                    Request::Survey => "The disks were looked at.",
                    Request::Install(..) => "The installation has begun; the overview says how far it is.",
                }
                .to_owned(),
            ),
            (state, _) => state,
        }
    }

    /// The box has changed: a trial may be over.
    #[must_use]
    pub fn observed(self, view: &View) -> Self {
        match (self, &view.network) {
            (Self::Trial(tried), Some(network)) if network.trial.is_none() => Self::Notice(match network.ended {
                Some(Ending::Confirmed) if network.network == tried => {
                    "The network configuration is kept: somebody confirmed it on the page.".to_owned()
                }
                _ => "Nobody kept the network configuration; the one before is back.".to_owned(),
            }),
            (state, _) => state,
        }
    }

    /// What is shown of the state; `None` while only the box is shown.
    pub fn dialogue(&self, view: &View) -> Option<Dialogue> {
        let keys = |keys| Dialogue { keys, ..Dialogue::default() };
        Some(match self {
            Self::Overview => return None,
            Self::Confirm(deed, line, wrong) => {
                let label = format!("Type {} and press Enter", deed.word());
                let fault = wrong.then(|| format!("That was not {}.", deed.word()));
                Dialogue {
                    title: deed.title(),
                    body: vec![deed.warning().to_owned()],
                    fields: vec![Field { label, value: line.text().to_owned(), focused: true }],
                    faults: fault.into_iter().collect(),
                    ..keys("Esc: cancel")
                }
            }
            Self::Network(form) => Dialogue {
                title: "Network",
                body: vec!["How the box reaches Omni. What is set is tried for a minute first.".to_owned()],
                fields: form
                    .items()
                    .map(|(item, focused)| Field { label: label(item), value: form.value(item), focused })
                    .collect(),
                faults: form.faults.iter().map(|fault| plain(fault)).collect(),
                ..keys("Enter, Tab, arrows: next field   Space: other choice   Esc: cancel")
            },
            Self::Install(line, fault) => Dialogue {
                title: "Install on another disk",
                body: install::body(view),
                fields: vec![Field {
                    label: "Type the disk's name and press Enter".to_owned(),
                    value: line.text().to_owned(),
                    focused: true,
                }],
                faults: Some(fault.clone()).filter(|fault| !fault.is_empty()).into_iter().collect(),
                ..keys("Esc: cancel")
            },
            Self::Waiting(request) => {
                Dialogue { title: "One moment", body: vec![format!("Asked for: {}.", request.as_str())], ..keys("") }
            }
            Self::Trial(_) => {
                let page = view.page().unwrap_or_else(|| "none yet".to_owned());
                let left = view.network.as_ref().and_then(|network| network.trial.as_ref());
                Dialogue {
                    title: "Network configuration on trial",
                    body: vec![
                        format!("The page is now at: {page}"),
                        "Unless it is kept, here or on the page, the configuration before returns.".to_owned(),
                    ],
                    clock: left.map(|trial| format!("{} s left", trial.seconds)),
                    ..keys("K: keep   B: go back")
                }
            }
            Self::Notice(text) => {
                Dialogue { title: "Note", body: vec![text.clone()], ..keys("Any key: back to the overview") }
            }
        })
    }
}

fn ask(request: Request) -> Step {
    Step { state: State::Waiting(request.clone()), request: Some(request), redraw: false }
}

fn label(item: Item) -> String {
    item.as_str().to_owned()
}

/// What is shown of a state that is not the overview.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dialogue {
    /// Its heading.
    pub title: &'static str,
    /// Paragraphs.
    pub body: Vec<String>,
    /// Fields, at most one of them focused.
    pub fields: Vec<Field>,
    /// What is wrong with what was typed.
    pub faults: Vec<String>,
    /// What changes by itself.
    pub clock: Option<String>,
    /// Which keys do what.
    pub keys: &'static str,
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// What belongs into it.
    pub label: String,
    /// What is in it.
    pub value: String,
    /// Whether keys go to it.
    pub focused: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::console::golden::{typed, well, with_disks};

    fn requests(octets: &[u8]) -> Vec<Request> {
        typed(State::Overview, octets, &well()).1
    }

    #[test]
    fn the_table_of_deeds() {
        let rows: [(&[u8], &[Request]); 14] = [
            (b"ryes\r", &[Request::Reboot]),
            (b"Pyes\n", &[Request::PowerOff]),
            (b"ferase\r", &[Request::FactoryReset]),
            (b"vyes\r", &[Request::Recovery]),
            (b"fyes\r", &[]),
            (b"fERASE\r", &[]),
            (b"r\r\r\r\r", &[]),
            (b"rno\ryes\r", &[Request::Reboot]),
            (b"ryesx\x7f\r", &[Request::Reboot]),
            (b"rxxx\x15yes\r", &[Request::Reboot]),
            (b"ryes\x03\r", &[]),
            // The first escape cancels, so that what follows is typed into the overview.
            (b"fera\x1b\x1bse\r", &[]),
            // Nothing is taken while an answer is awaited.
            (b"ryes\rpyes\rferase\r", &[Request::Reboot]),
            (b"sh\nbash\nlogin: root\n\x1b[15~:!sh\n", &[]),
        ];
        for (octets, expected) in rows {
            assert_eq!(requests(octets), expected, "{:?}", String::from_utf8_lossy(octets));
        }
    }

    #[test]
    fn an_answer_is_said_and_any_key_leads_back() {
        let view = well();
        for (answer, said) in
            [(Ok(()), "The box starts anew."), (Err("a\u{1b}b".to_owned()), "Not done (reboot): a?b.")]
        {
            let (state, _) = typed(State::Overview, b"ryes\r", &view);
            let state = state.answered(answer);
            assert_eq!(state, State::Notice(said.to_owned()));
            assert_eq!(state.on(Key::Char('x'), &view).state, State::Overview);
        }
        // One that nobody waits for changes nothing.
        assert_eq!(State::Overview.answered(Ok(())), State::Overview);
    }

    #[test]
    fn without_the_network_service_there_is_no_network_form() {
        let blind = View::default();
        let (state, requests) = typed(State::Overview, b"n", &blind);
        assert!(matches!(state, State::Notice(_)) && requests.is_empty());
    }

    /// What was typed since the dialogue began, as a person would have typed it.
    fn word_was_typed(octets: &[u8], word: &str) -> bool {
        let text = String::from_utf8_lossy(octets).to_lowercase();
        let mut letters = text.chars();
        word.chars().all(|wanted| letters.any(|letter| letter == wanted))
    }

    proptest! {
        #[test]
        fn any_octets_lead_to_nothing_but_requests_that_were_typed_out(octets in octets()) {
            let view = well();
            let (state, requests) = typed(State::Overview, &octets, &view);
            for request in requests {
                match request {
                    Request::Reboot => prop_assert!(word_was_typed(&octets, "ryes")),
                    Request::PowerOff => prop_assert!(word_was_typed(&octets, "pyes")),
                    Request::Recovery => prop_assert!(word_was_typed(&octets, "vyes")),
                    Request::FactoryReset => prop_assert!(word_was_typed(&octets, "ferase")),
                    Request::Try(network) => prop_assert_eq!(network.faults(), vec![]),
                    // Only a trial leads there, and nobody has answered.
                    Request::Keep(_) | Request::Return => prop_assert!(false, "no trial runs"),
                    Request::Survey => prop_assert!(word_was_typed(&octets, "iyes")),
                    // Nobody has answered with a list of disks.
                    Request::Install(..) => prop_assert!(false, "no disk was shown"),
                }
            }
            let _ = state.dialogue(&view);
        }

        #[test]
        fn a_disk_is_installed_on_only_when_its_name_was_typed_out(octets in octets()) {
            let (_, requests) = typed(State::Install(Line::default(), String::new()), &octets, &with_disks());
            for request in requests {
                if let Request::Install(name, octets_of_it) = request {
                    prop_assert_eq!((name.as_str(), octets_of_it), ("sdb", 256_060_514_304));
                    prop_assert!(word_was_typed(&octets, "sdb\r"));
                }
            }
        }

        #[test]
        fn in_a_trial_any_octets_keep_it_or_go_back(octets in octets()) {
            let network = Network::default();
            let (_, requests) = typed(State::Trial(network.clone()), &octets, &well());
            prop_assert!(requests.len() <= 1);
            prop_assert!(requests.iter().all(|one| *one == Request::Keep(network.clone()) || *one == Request::Return));
        }
    }

    /// Any octets, and such as come near to a form's end.
    fn octets() -> impl Strategy<Value = Vec<u8>> {
        const PARTS: [&str; 21] = [
            "n",
            "r",
            "p",
            "v",
            "f",
            "yes",
            "erase",
            "\r",
            "\t",
            " ",
            "\x7f",
            "\x1b",
            "\x1b[A",
            "10.1.2.3/24",
            "10.1.2.1",
            "7",
            "k",
            "b",
            "i",
            "sdb",
            "sda",
        ];
        let near = proptest::collection::vec(proptest::sample::select(&PARTS[..]), 0..40);
        prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), near.prop_map(|parts| parts.concat().into_bytes())]
    }
}
