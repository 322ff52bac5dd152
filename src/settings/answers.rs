//! [`Answers`]: what a person filled in, path and text, whichever way.

use std::collections::BTreeMap;

use crate::secret::Secret;

/// Most answers of one configuration.
pub const MOST_ANSWERS: usize = 512;
/// Most octets of all of them.
pub const MOST_OCTETS: usize = 64 * 1024;

/// What was filled in. A path has one answer; an answer of nothing but white space is none. All of it is held as a secret,
/// since some of it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers(BTreeMap<String, Secret<String>>);

/// Why answers do not count at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// More than [`MOST_ANSWERS`] or [`MOST_OCTETS`].
    #[error("there are more than {MOST_ANSWERS} answers or {MOST_OCTETS} octets")]
    TooMuch,
    /// A path twice.
    #[error("a field is answered twice")]
    Twice,
    /// Octets that are no text.
    #[error("it is no UTF-8 text")]
    NoText,
}

impl Answers {
    /// The answers of these pairs.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub fn new(pairs: impl IntoIterator<Item = (String, Secret<String>)>) -> Result<Self, Unusable> {
        let (mut all, mut octets) = (BTreeMap::new(), 0);
        for (path, text) in pairs {
            octets += path.len() + text.reveal().len();
            if octets > MOST_OCTETS || all.len() == MOST_ANSWERS {
                return Err(Unusable::TooMuch);
            }
            if all.insert(path, text).is_some() {
                return Err(Unusable::Twice);
            }
        }
        all.retain(|_, text| !text.reveal().trim().is_empty());
        Ok(Self(all))
    }

    /// The answer at `path`, trimmed; `None` when nothing is written.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(|text| text.reveal().trim())
    }

    /// Answers `path`; nothing but white space takes the answer away.
    pub fn put(&mut self, path: &str, text: &str) {
        if text.trim().is_empty() {
            self.0.remove(path);
        } else {
            self.0.insert(path.to_owned(), Secret::new(text.to_owned()));
        }
    }

    /// The paths that are answered, in the order of their octets.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// All of it in clear: for the service that keeps it, and nobody else.
    pub fn reveal(&self) -> Vec<(String, String)> {
        self.0.iter().map(|(path, text)| (path.clone(), text.reveal().clone())).collect()
    }

    /// The same without what secret fields are answered with.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        self.0.retain(|path, _| super::schema::field(path).is_none_or(|(field, _)| !field.kind.is_secret()));
        self
    }
}
