//! What is asked of the update service over its socket, and what it answers.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;
use crate::slots::{Slot, Version};

/// Most octets of [`Request::Part`].
pub const LARGEST_PART: usize = 256 << 10;

/// What a person asks for besides the update itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Take it though it is older than what runs.
    pub downgrade: bool,
    /// Take it though it failed its trial here, or runs.
    pub again: bool,
    /// Restart the box at once when the slot is written; otherwise whoever asked does.
    pub restart: bool,
}

/// A URL that may hold a password or a token.
#[derive(Clone)]
pub struct Url(Secret<String>);

impl Url {
    /// Takes any text; that it is a URL is found out by fetching from it.
    pub fn new(text: String) -> Self {
        Self(Secret::new(text))
    }

    /// All of it, for the server alone.
    pub fn reveal(&self) -> &str {
        self.0.reveal()
    }
}

impl fmt::Display for Url {
    /// Scheme, host and path: user, query and fragment may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.reveal().split(['?', '#']).next().unwrap_or_default();
        match text.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                write!(f, "{scheme}://{host}{path}")
            }
            None => f.write_str("no URL"),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Url {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.reveal())
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// How things are.
    State,
    /// Fetch the bundle at this URL, and go on with it after a restart of the service or the box.
    Fetch(Url, Asked),
    /// Take the bundle of this name from the stick.
    Stick(String, Asked),
    /// Take the bundle that the next parts bring.
    Begin(Asked),
    /// The next octets of an upload, at most [`LARGEST_PART`].
    Part(u64, Bytes),
    /// The upload is whole.
    End(u64),
    /// Stop writing. The slot stays as it is, and does not load.
    Cancel,
    /// Start the box anew, which tries what was written.
    Restart,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::State`].
    State(State),
    /// To [`Request::Begin`]: the upload's number.
    Upload(u64),
    /// It is taken, or being done.
    Accepted,
    /// No more of this upload is needed: the job has its verdict.
    Ended,
    /// It can't be done now, and why.
    Refused(String),
}

/// How things are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The latest job since the service started.
    pub job: Option<Job>,
    /// What lies on the stick.
    pub stick: Vec<Found>,
    /// How many keys are trusted.
    pub keys: usize,
}

/// A bundle on the stick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its file's name.
    pub name: String,
    /// Its octets.
    pub octets: u64,
}

/// An update under way, or its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Where it comes from, to show.
    pub from: String,
    /// What it brings, once its signature was verified.
    pub version: Option<Version>,
    /// Octets of the image that the slot holds.
    pub held: u64,
    /// Octets of the image; 0 until they are known.
    pub total: u64,
    /// How far it is.
    pub phase: Phase,
}

/// How far an update is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Reads what the bundle says of itself.
    Opening,
    /// Fetches, verifies, writes, reads back.
    Writing,
    /// The source fails; it is asked again.
    Waiting {
        /// Why, in words.
        trouble: String,
        /// Which attempt comes next, from 2.
        attempt: u32,
    },
    /// It is in the slot and read back: the next start tries it.
    Written(Slot),
    /// It was refused or failed, and why. What runs stays as it is.
    Failed(String),
    /// Somebody stopped it.
    Cancelled,
}

impl Job {
    /// Whether nothing more will happen to it.
    pub fn ended(&self) -> bool {
        matches!(self.phase, Phase::Written(_) | Phase::Failed(_) | Phase::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_shows_neither_password_nor_token() {
        let shown = |text: &str| Url::new(text.into()).to_string();
        assert_eq!(shown("https://bob:hunter2@example.org:8443/a/b?token=x#y"), "https://example.org:8443/a/b");
        assert_eq!(shown("http://example.org"), "http://example.org");
        assert_eq!(shown("hunter2"), "no URL");
        let request = Request::Fetch(Url::new("http://a:hunter2@b/?hunter2".into()), Asked::default());
        assert!(!format!("{request:?}").contains("hunter2"), "{request:?}");
    }

    proptest! {
        #[test]
        fn any_text_shows_as_something(text in ".{0,60}") {
            let _ = Url::new(text).to_string();
        }
    }
}
