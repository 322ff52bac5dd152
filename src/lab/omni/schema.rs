//! JSON schemas, in which a provider says what may stand in `provider_data`, and what does not agree with them.
//!
//! Pure: a schema names nothing outside itself and the drafts. Source: JSON Schema 2020-12 and the drafts before it;
//! contract omni-wire.md sections 4.2 and 4.4.

use std::error::Error;
use std::fmt;

use boon::{CompileError, Compiler, ErrorKind, SchemaIndex, Schemas, UrlLoader, ValidationError};
use serde_json::{Map, Value};

use super::document::{self, BadYaml};

/// The longest schema, in octets.
const LONGEST: usize = 1_000_000;
/// More faults than this are not told.
const MOST_FAULTS: usize = 256;
/// What a schema is called while it is compiled.
const LOCATION: &str = "file:///untitled-schema.json";

/// Why a schema is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchema {
    /// It is longer than Omni takes.
    #[error("json schema can not be bigger than 1MB")]
    TooLarge,
    /// It is no JSON.
    #[error("the schema is no JSON: {0}")]
    Json(String),
    /// It is no schema.
    #[error("the schema is not valid: {0}")]
    Compile(String),
}

/// Where data and schema do not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// URL of the rule, its place as a fragment.
    pub schema_path: String,
    /// Place in the data, as a path.
    pub data_path: String,
    /// What is wrong.
    pub cause: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.data_path, self.cause)
    }
}

/// A compiled schema.
pub struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

/// Lets no schema read files.
struct Nowhere;

impl UrlLoader for Nowhere {
    fn load(&self, url: &str) -> Result<Value, Box<dyn Error>> {
        Err(format!("{url} is elsewhere").into())
    }
}

impl Schema {
    /// The schema in `text`.
    ///
    /// # Errors
    ///
    /// [`BadSchema`].
    pub fn parse(text: &str) -> Result<Self, BadSchema> {
        if text.len() > LONGEST {
            return Err(BadSchema::TooLarge);
        }
        let value = serde_json::from_str(text).map_err(|error| BadSchema::Json(error.to_string()))?;
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.use_loader(Box::new(Nowhere));
        let bad = |error: CompileError| BadSchema::Compile(error.to_string());
        compiler.add_resource(LOCATION, value).map_err(bad)?;
        let index = compiler.compile(LOCATION, &mut schemas).map_err(bad)?;
        Ok(Self { schemas, index })
    }

    /// What is wrong with `data`, a YAML document; nothing stands for an empty map.
    ///
    /// # Errors
    ///
    /// [`BadYaml`].
    pub fn check(&self, data: &str) -> Result<Vec<Fault>, BadYaml> {
        let first = document::parse(data)?.into_iter().next().filter(|value| !value.is_null());
        let value = first.unwrap_or_else(|| Value::Object(Map::new()));
        let mut faults = Vec::new();
        if let Err(error) = self.schemas.validate(&value, self.index) {
            collect(&error, &mut faults);
        }
        Ok(faults)
    }
}

/// Adds what is below `error`: each absent property by itself.
fn collect(error: &ValidationError<'_, '_>, faults: &mut Vec<Fault>) {
    for nested in &error.causes {
        if faults.len() >= MOST_FAULTS {
            return;
        }
        let place = nested.instance_location.to_string();
        let fault = |data_path: String, cause: String| Fault {
            schema_path: nested.schema_url.to_owned(),
            data_path: if data_path.is_empty() { "/".to_owned() } else { data_path },
            cause,
        };
        match &nested.kind {
            ErrorKind::Required { want } => faults.extend(
                want.iter().map(|property| fault(format!("{place}/{property}"), "property is required".to_owned())),
            ),
            kind => faults.push(fault(place, kind.to_string())),
        }
        collect(nested, faults);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = r##"{
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "cores": { "type": "integer", "minimum": 1 },
            "disk": { "$ref": "#/$defs/disk" }
        },
        "required": ["cores", "disk"],
        "additionalProperties": false,
        "$defs": { "disk": { "type": "object", "required": ["size"], "properties": { "size": { "type": "string" } } } }
    }"##;

    fn told(data: &str) -> Vec<String> {
        Schema::parse(MACHINE).unwrap().check(data).unwrap().iter().map(Fault::to_string).collect()
    }

    #[test]
    fn data_are_checked_and_every_fault_has_its_place() {
        assert!(told("cores: 4\ndisk: {size: 10G}").is_empty());
        assert_eq!(told(""), ["/cores: property is required", "/disk: property is required"]);
        assert_eq!(told("cores: 0\ndisk: {size: 1G}"), ["/cores: must be >=1, but got 0"]);
        let nested = told("cores: 1\ndisk: {}\n");
        assert!(nested.contains(&"/disk/size: property is required".to_owned()), "{nested:?}");
        assert_eq!(told("cores: 1\ndisk: {size: 1G}\nram: 2"), ["/: additionalProperties 'ram' not allowed"]);
        let fault = Schema::parse(MACHINE).unwrap().check("cores: many\ndisk: {size: 1G}").unwrap().remove(0);
        assert!(fault.schema_path.ends_with("#/properties/cores"), "{}", fault.schema_path);
        assert!(Schema::parse(MACHINE).unwrap().check("cores: [").is_err());
        assert!(Schema::parse("{}").unwrap().check("a: [1, 2]").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_schema_is_refused_and_none_reads_a_file() {
        assert!(matches!(Schema::parse("{"), Err(BadSchema::Json(_))));
        for text in [
            r#"{"type": 7}"#,
            r#"{"pattern": "("}"#,
            r#"{"$ref": "file:///etc/hostname"}"#,
            r#"{"$ref": "https://example.com/schema.json"}"#,
            r#"{"$schema": "file:///etc/hostname"}"#,
        ] {
            assert!(matches!(Schema::parse(text), Err(BadSchema::Compile(_))), "{text}");
        }
        assert_eq!(Schema::parse(&" ".repeat(LONGEST + 1)).err(), Some(BadSchema::TooLarge));
        let loop_of_itself = Schema::parse(r##"{"$ref": "#"}"##);
        assert!(loop_of_itself.is_err() || loop_of_itself.is_ok_and(|schema| schema.check("a: 1").is_ok()));
    }

    proptest::proptest! {
        #[test]
        fn no_schema_and_no_data_make_it_panic(schema in "[a-c0-2:{}\\[\\],\"$#/ ]{0,60}", data in ".{0,40}") {
            if let Ok(schema) = Schema::parse(&schema) {
                let _ = schema.check(&data);
            }
            let _ = Schema::parse(MACHINE).map(|schema| schema.check(&data));
        }
    }
}
