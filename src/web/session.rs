//! Who has entered the setup code: sessions of the page, in memory alone.
//!
//! A session is a random token in a cookie that scripts can't read and that no other site's request carries; here only its
//! hash is kept. A change needs more than the cookie: the request must come from this very origin, and a form must bring
//! the token that was put into it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::guard::{Denied, Guard};
use crate::time::Uptime;

/// Sessions at a time; one more ends the one that was idle longest.
const MOST: usize = 16;
/// A session ends when it is not used for so long.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// No session lasts longer.
const LONGEST: Duration = Duration::from_secs(8 * 3600);
/// The cookie's name.
const COOKIE: &str = "pilotlight";
/// Where the code is entered.
pub const SIGN_IN: &str = "/setup";

/// All sessions. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<BTreeMap<[u8; 32], Session>>>);

#[derive(Debug)]
struct Session {
    since: Uptime,
    used: Uptime,
    /// What its next page says once.
    notes: Vec<String>,
}

/// The token of a session that stands.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Token {
    fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// What its forms must bring.
    pub fn form_token(&self) -> String {
        hex::encode(Sha256::digest(format!("form {}", self.0)))
    }

    /// Whether `brought` is what its forms must bring. Compared in constant time.
    pub fn admits(&self, brought: &str) -> bool {
        self.form_token().as_bytes().ct_eq(brought.as_bytes()).into()
    }

    /// The value of the `Set-Cookie` header that hands it to a browser. One that was begun over TLS, as `encrypted` says, is
    /// never sent in the clear.
    pub fn cookie(&self, encrypted: bool) -> String {
        let secure = if encrypted { "; Secure" } else { "" };
        format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict{secure}; Max-Age={}", self.0, LONGEST.as_secs())
    }
}

impl Sessions {
    /// Begins a session with these random octets.
    pub fn begin(&self, now: Uptime, random: [u8; 32]) -> Token {
        let token = Token(hex::encode(random));
        self.with(|all| {
            all.retain(|_, session| session.stands(now));
            if all.len() >= MOST
                && let Some(idle) = all.iter().min_by_key(|(_, session)| session.used).map(|(hash, _)| *hash)
            {
                all.remove(&idle);
            }
            all.insert(token.hash(), Session { since: now, used: now, notes: Vec::new() });
        });
        token
    }

    /// The session that a request belongs to. It counts as used.
    pub fn of(&self, headers: &HeaderMap, now: Uptime) -> Option<Token> {
        let token = cookies(headers).find_map(|(name, value)| (name == COOKIE).then(|| Token(value.to_owned())))?;
        self.with(|all| {
            let session = all.get_mut(&token.hash()).filter(|session| session.stands(now))?;
            session.used = now;
            Some(())
        })?;
        Some(token)
    }

    /// Ends a session.
    pub fn end(&self, token: &Token) {
        self.with(|all| all.remove(&token.hash()));
    }

    /// Has the session's next page say this.
    pub fn note(&self, token: &Token, notes: Vec<String>) {
        self.with(|all| all.get_mut(&token.hash()).map(|session| session.notes = notes));
    }

    /// What its page says now, once.
    pub fn notes(&self, token: &Token) -> Vec<String> {
        self.with(|all| all.get_mut(&token.hash()).map(|session| std::mem::take(&mut session.notes)))
            .unwrap_or_default()
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<[u8; 32], Session>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Session {
    fn stands(&self, now: Uptime) -> bool {
        now.since(self.used) < IDLE && now.since(self.since) < LONGEST
    }
}

impl Guard for Sessions {
    fn admit(&self, request: &Parts) -> Result<(), Denied> {
        let denied = |why: &str| Denied { why: why.to_owned(), sign_in: Some(SIGN_IN) };
        if !request.method.is_safe() && !is_same_origin(&request.headers) {
            return Err(denied("The request came from another site."));
        }
        match self.of(&request.headers, Uptime::now()) {
            Some(_) => Ok(()),
            None => Err(denied("Nobody has entered the setup code here, or it was too long ago.")),
        }
    }
}

/// Whether a browser says that the request comes from a page of this origin (Fetch Metadata, RFC 6454). What says neither is
/// no browser, and carries no cookie unless someone gave it one.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let site = text(header::HeaderName::from_static("sec-fetch-site")).is_none_or(|site| site == "same-origin");
    let origin = match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, authority)| authority == host),
        (Some(_), None) => false,
    };
    site && origin
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with_cookie(token: &Token) -> HeaderMap {
        let cookie = token.cookie(false);
        let pair = cookie.split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&format!("a=b; {pair}")).unwrap())])
    }

    #[test]
    fn a_session_ends_by_idleness_by_age_and_by_word() {
        let (sessions, start) = (Sessions::default(), Uptime::from_secs(10));
        let token = sessions.begin(start, [1; 32]);
        let headers = with_cookie(&token);
        assert!(token.cookie(false).contains("HttpOnly; SameSite=Strict;") && token.cookie(true).contains("; Secure;"));
        let at = |secs: u64| start + Duration::from_secs(secs);
        assert_eq!(sessions.of(&headers, at(1_700)), Some(token.clone()));
        assert_eq!(sessions.of(&headers, at(1_700 + 1_801)), None);
        let other = sessions.begin(start, [2; 32]);
        let headers = with_cookie(&other);
        let used = (0..40).filter(|step| sessions.of(&headers, at(step * 1_000)).is_some()).count();
        assert_eq!(used, 29, "eight hours");
        let third = sessions.begin(at(1), [3; 32]);
        sessions.end(&third);
        assert_eq!(sessions.of(&with_cookie(&third), at(2)), None);
        assert_eq!(sessions.of(&HeaderMap::new(), at(2)), None);
        assert!(third.admits(&third.form_token()) && !third.admits(&other.form_token()) && !third.admits(""));
    }

    #[test]
    fn one_too_many_ends_the_idlest() {
        let (sessions, now) = (Sessions::default(), Uptime::from_secs(10));
        let tokens: Vec<_> =
            (0..=MOST as u8).map(|n| sessions.begin(now + Duration::from_secs(n.into()), [n; 32])).collect();
        let standing = tokens.iter().map(|token| sessions.of(&with_cookie(token), now).is_some()).collect::<Vec<_>>();
        assert_eq!(standing.iter().filter(|stands| **stands).count(), MOST);
        assert!(!standing[0]);
    }

    #[test]
    fn another_sites_request_changes_nothing() {
        let sessions = Sessions::default();
        let token = sessions.begin(Uptime::now(), [7; 32]);
        let ask = |method: &str, more: &[(&'static str, &str)]| {
            let mut request = http::Request::builder().method(method).header("host", "box.local");
            for (name, value) in with_cookie(&token)
                .iter()
                .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
                .chain(more.iter().copied())
            {
                request = request.header(name, value);
            }
            sessions.admit(&request.body(()).unwrap().into_parts().0).is_ok()
        };
        assert!(ask("POST", &[]) && ask("GET", &[("sec-fetch-site", "cross-site")]));
        assert!(ask("POST", &[("origin", "http://box.local"), ("sec-fetch-site", "same-origin")]));
        for headers in [
            [("origin", "http://evil.example")],
            [("origin", "null")],
            [("sec-fetch-site", "cross-site")],
            [("sec-fetch-site", "same-site")],
        ] {
            assert!(!ask("POST", &headers), "{headers:?}");
        }
    }
}
