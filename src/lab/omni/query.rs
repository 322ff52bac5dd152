//! Label and ID queries of List and Watch.
//!
//! Source: contract omni-wire.md section 3.1.

use regex::Regex;

use crate::proto::cosi::label_term::Operation;
use crate::proto::cosi::{IdQuery, LabelQuery, LabelTerm};
use crate::resource::Resource;

/// Which resources of a kind are asked for; the default is all.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Alternatives, each a list of terms that must all match.
    labels: Vec<LabelQuery>,
    id: Option<Regex>,
}

/// A query that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// The regular expression does not parse.
    #[error("failed to validate: invalid ID query {0:?}")]
    Regexp(String),
    /// An operation that this protocol version does not have.
    #[error("unsupported label term operation {0}")]
    Operation(i32),
    /// A comparison with nothing, on which the original's call crashes.
    #[error("label term {0:?} compares with no value")]
    NoValue(String),
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    ///
    /// [`BadQuery`].
    pub fn parse(labels: Vec<LabelQuery>, id: Option<IdQuery>) -> Result<Self, BadQuery> {
        for term in labels.iter().flat_map(|query| &query.terms) {
            match Operation::try_from(term.op) {
                Err(_) => return Err(BadQuery::Operation(term.op)),
                Ok(Operation::Exists | Operation::NotExists | Operation::In) => (),
                Ok(_) if term.value.is_empty() => return Err(BadQuery::NoValue(term.key.clone())),
                Ok(_) => (),
            }
        }
        let id = match id {
            Some(IdQuery { regexp }) if !regexp.is_empty() => {
                Some(Regex::new(&regexp).map_err(|_| BadQuery::Regexp(regexp))?)
            }
            _ => None,
        };
        Ok(Self { labels, id })
    }

    /// Whether `resource` is asked for.
    pub fn matches(&self, resource: &Resource) -> bool {
        self.id.as_ref().is_none_or(|id| id.is_match(&resource.id))
            && (self.labels.is_empty()
                || self.labels.iter().any(|query| query.terms.iter().all(|term| term_matches(term, resource))))
    }
}

fn term_matches(term: &LabelTerm, resource: &Resource) -> bool {
    let label = resource.labels.get(&term.key);
    let first = term.value.first().map(String::as_str).unwrap_or_default();
    // A missing or non-numeric label matches no comparison, inverted or not.
    let compared = |order: Option<std::cmp::Ordering>, or_equal: bool| {
        order.is_some_and(|order| (order.is_lt() || (or_equal && order.is_eq())) != term.invert)
    };
    let texts = || label.map(|label| label.as_str().cmp(first));
    let numbers = || Some(label?.parse::<i64>().ok()?.cmp(&first.parse().ok()?));
    match term.op() {
        Operation::Exists => label.is_some() != term.invert,
        Operation::NotExists => label.is_none() != term.invert,
        Operation::Equal => label.is_some_and(|label| label == first) != term.invert,
        Operation::In => label.is_some_and(|label| term.value.contains(label)) != term.invert,
        Operation::Lt => compared(texts(), false),
        Operation::Lte => compared(texts(), true),
        Operation::LtNumeric => compared(numbers(), false),
        Operation::LteNumeric => compared(numbers(), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;

    fn term(key: &str, op: Operation, values: &[&str], invert: bool) -> LabelTerm {
        LabelTerm { key: key.into(), op: op.into(), value: values.iter().map(|&v| v.into()).collect(), invert }
    }

    #[test]
    fn terms_match_as_the_contract_says() {
        let mut resource =
            Resource::new(Kind::omni("InfraMachines"), "abc", &crate::proto::specs::InfraProviderSpec {});
        resource.labels.insert("n".into(), "9".into());
        resource.labels.insert("s".into(), "blue".into());
        for (key, op, values, invert, expected) in [
            ("n", Operation::Exists, &[][..], false, true),
            ("x", Operation::Exists, &[], false, false),
            ("x", Operation::Exists, &[], true, true),
            ("x", Operation::NotExists, &[], false, true),
            ("s", Operation::Equal, &["blue"], false, true),
            ("x", Operation::Equal, &["blue"], true, true),
            ("s", Operation::In, &["red", "blue"], false, true),
            ("s", Operation::In, &[], false, false),
            ("n", Operation::LtNumeric, &["10"], false, true),
            ("n", Operation::Lt, &["10"], false, false),
            ("n", Operation::LteNumeric, &["9"], false, true),
            ("n", Operation::LtNumeric, &["9"], true, true),
            ("x", Operation::LtNumeric, &["9"], true, false),
            ("s", Operation::LtNumeric, &["9"], true, false),
        ] {
            let query = LabelQuery { terms: vec![term(key, op, values, invert)] };
            let query = Query::parse(vec![query], None).unwrap();
            assert_eq!(query.matches(&resource), expected, "{key} {op:?} {values:?} invert {invert}");
        }
    }

    #[test]
    fn queries_are_alternatives_and_ids_are_searched_unanchored() {
        let mut resource =
            Resource::new(Kind::omni("InfraMachines"), "abc", &crate::proto::specs::InfraProviderSpec {});
        resource.labels.insert("s".into(), "blue".into());
        let of = |key| LabelQuery { terms: vec![term(key, Operation::Exists, &[], false)] };
        assert!(Query::parse(vec![of("x"), of("s")], None).unwrap().matches(&resource));
        let id = |regexp: &str| Query::parse(vec![], Some(IdQuery { regexp: regexp.into() }));
        assert!(id("b").unwrap().matches(&resource));
        assert!(!id("^b").unwrap().matches(&resource));
        assert_eq!(id("(").unwrap_err(), BadQuery::Regexp("(".into()));
        let bad = LabelQuery { terms: vec![term("s", Operation::Equal, &[], false)] };
        assert_eq!(Query::parse(vec![bad], None).unwrap_err(), BadQuery::NoValue("s".into()));
        let unknown = LabelQuery { terms: vec![LabelTerm { op: 99, ..LabelTerm::default() }] };
        assert_eq!(Query::parse(vec![unknown], None).unwrap_err(), BadQuery::Operation(99));
    }
}
