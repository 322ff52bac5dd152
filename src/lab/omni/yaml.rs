//! Specs as YAML, as COSI's clients show them: names in lower case without underscores, enums as numbers, timestamps as
//! seconds and nanoseconds, every field present.
//!
//! Pure. Source: contract omni-wire.md section 6.3.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Messages within messages that are shown; a spec has three.
const DEPTH: usize = 16;

/// Every message of the crate's protobuf files by full name, with a dot in front: `.specs.InfraMachineSpec`.
static MESSAGES: LazyLock<BTreeMap<String, DescriptorProto>> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(crate::proto::DESCRIPTORS).expect("written by the build");
    let mut messages = BTreeMap::new();
    for file in files.file {
        for message in &file.message_type {
            collect(&mut messages, &format!(".{}", file.package()), message);
        }
    }
    messages
});

fn collect(messages: &mut BTreeMap<String, DescriptorProto>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(messages, &name, nested);
    }
    messages.insert(name, message.clone());
}

/// The octets are no such message, or the name names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this type")]
pub struct NotThis;

/// One value.
enum Value {
    Text(String),
    Map(Vec<(String, Value)>),
    List(Vec<Value>),
}

/// The YAML of `octets`, an encoded message of this full name, such as `specs.InfraMachineSpec`. Unknown fields are left
/// out, since nobody knows their names.
///
/// # Errors
///
/// [`NotThis`].
pub fn render(message: &str, octets: &[u8]) -> Result<String, NotThis> {
    let value = decode(&format!(".{message}"), octets, 0)?;
    let mut text = String::new();
    match value {
        Value::Map(fields) if fields.is_empty() => text.push_str("{}\n"),
        value => write(&mut text, &value, 0),
    }
    Ok(text)
}

fn decode(message: &str, octets: &[u8], depth: usize) -> Result<Value, NotThis> {
    let descriptor = MESSAGES.get(message).filter(|_| depth < DEPTH).ok_or(NotThis)?;
    let mut seen: BTreeMap<i32, Vec<Value>> = BTreeMap::new();
    let mut rest = octets;
    while rest.has_remaining() {
        let (number, wire) = decode_key(&mut rest).map_err(|_| NotThis)?;
        let raw = raw(wire, &mut rest)?;
        let number = i32::try_from(number).map_err(|_| NotThis)?;
        let Some(field) = descriptor.field.iter().find(|field| field.number() == number) else { continue };
        values(field, raw, depth, seen.entry(number).or_default())?;
    }
    let fields = descriptor.field.iter().map(|field| {
        let found = seen.remove(&field.number()).unwrap_or_default();
        (field.name().replace('_', "").to_lowercase(), shown(field, found))
    });
    Ok(Value::Map(fields.collect()))
}

/// A field as it stands on the wire.
enum Raw {
    Number(u64),
    Octets(Bytes),
}

fn raw(wire: WireType, rest: &mut &[u8]) -> Result<Raw, NotThis> {
    match wire {
        WireType::Varint => Ok(Raw::Number(decode_varint(rest).map_err(|_| NotThis)?)),
        WireType::SixtyFourBit if rest.len() >= 8 => Ok(Raw::Number(rest.get_u64_le())),
        WireType::ThirtyTwoBit if rest.len() >= 4 => Ok(Raw::Number(rest.get_u32_le().into())),
        WireType::LengthDelimited => {
            let length = decode_varint(rest).ok().and_then(|length| usize::try_from(length).ok()).ok_or(NotThis)?;
            if length > rest.len() {
                return Err(NotThis);
            }
            Ok(Raw::Octets(rest.copy_to_bytes(length)))
        }
        _ => Err(NotThis),
    }
}

/// Adds what one occurrence of `field` holds: one value, or several where numbers are packed.
fn values(field: &FieldDescriptorProto, raw: Raw, depth: usize, into: &mut Vec<Value>) -> Result<(), NotThis> {
    match (field.r#type(), raw) {
        (Type::String, Raw::Octets(text)) => {
            into.push(Value::Text(quoted(std::str::from_utf8(&text).map_err(|_| NotThis)?)));
        }
        (Type::Bytes, Raw::Octets(octets)) => {
            into.push(Value::List(octets.iter().map(|octet| Value::Text(octet.to_string())).collect()));
        }
        (Type::Message, Raw::Octets(octets)) => into.push(decode(field.type_name(), &octets, depth + 1)?),
        (Type::String | Type::Bytes | Type::Message, Raw::Number(_)) => return Err(NotThis),
        (_, Raw::Number(number)) => into.push(Value::Text(scalar(field.r#type(), number))),
        (kind, Raw::Octets(mut packed)) => {
            while packed.has_remaining() {
                let number = decode_varint(&mut packed).map_err(|_| NotThis)?;
                into.push(Value::Text(scalar(kind, number)));
            }
        }
    }
    Ok(())
}

fn scalar(kind: Type, number: u64) -> String {
    match kind {
        Type::Bool => (number != 0).to_string(),
        Type::Uint32 | Type::Uint64 | Type::Fixed32 | Type::Fixed64 => number.to_string(),
        // Negative numbers of every width are ten octets long.
        _ => number.cast_signed().to_string(),
    }
}

/// A field's value, or what stands where it is absent.
fn shown(field: &FieldDescriptorProto, mut found: Vec<Value>) -> Value {
    if field.label() == Label::Repeated {
        return Value::List(found);
    }
    found.pop().unwrap_or_else(|| match field.r#type() {
        Type::String => Value::Text("\"\"".to_owned()),
        Type::Bool => Value::Text("false".to_owned()),
        Type::Message => Value::Text("null".to_owned()),
        Type::Bytes => Value::List(Vec::new()),
        _ => Value::Text("0".to_owned()),
    })
}

/// A double-quoted scalar. JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn write(text: &mut String, value: &Value, indent: usize) {
    let pad = "    ".repeat(indent);
    match value {
        Value::Text(scalar) => text.push_str(scalar),
        Value::Map(fields) => {
            for (name, value) in fields {
                let _ = write!(text, "{pad}{name}:");
                write_nested(text, value, indent);
            }
        }
        Value::List(items) => {
            for item in items {
                let _ = write!(text, "{pad}-");
                match item {
                    Value::Text(scalar) => {
                        let _ = writeln!(text, " {scalar}");
                    }
                    item => {
                        text.push('\n');
                        write(text, item, indent + 1);
                    }
                }
            }
        }
    }
}

fn write_nested(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Text(scalar) => {
            let _ = writeln!(text, " {scalar}");
        }
        Value::Map(fields) if fields.is_empty() => text.push_str(" {}\n"),
        Value::List(items) if items.is_empty() => text.push_str(" []\n"),
        value => {
            text.push('\n');
            write(text, value, indent + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::specs;

    #[test]
    fn a_spec_is_shown_as_the_contract_says() {
        let status = specs::InfraMachineStatusSpec {
            power_state: 2,
            ready_to_use: true,
            last_reboot_timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 }),
            wiped_node_unique_token: "a \"b\"\n".into(),
            ..specs::InfraMachineStatusSpec::default()
        };
        assert_eq!(
            render("specs.InfraMachineStatusSpec", &status.encode_to_vec()).unwrap(),
            "powerstate: 2\nreadytouse: true\nlastrebootid: \"\"\nlastreboottimestamp:\n    seconds: 1700000000\n    \
             nanos: 5\ninstalled: false\nwipednodeuniquetoken: \"a \\\"b\\\"\\n\"\nlastpoweroffid: \"\"\n"
        );
        let request = specs::MachineRequestSpec {
            talos_version: "1.11.0".into(),
            kernel_args: vec!["a".into(), "b: c".into()],
            meta_values: vec![specs::MetaValue { key: 12, value: "x".into() }],
            ..specs::MachineRequestSpec::default()
        };
        assert_eq!(
            render("specs.MachineRequestSpec", &request.encode_to_vec()).unwrap(),
            "talosversion: \"1.11.0\"\noverlay: null\nextensions: []\nkernelargs:\n    - \"a\"\n    - \"b: c\"\n\
             metavalues:\n    -\n        key: 12\n        value: \"x\"\nproviderdata: \"\"\ngrpctunnel: 0\n"
        );
        assert_eq!(render("specs.InfraProviderSpec", b"").unwrap(), "{}\n");
    }

    #[test]
    fn what_is_no_such_message_is_not_shown() {
        assert_eq!(render("specs.Nonsense", b""), Err(NotThis));
        for octets in [&b"\x0a"[..], b"\x0a\xff\xff\xff\xff\x0f", b"\xff", b"\x0b", b"\x0a\x01\xff"] {
            assert_eq!(render("specs.MachineRequestSpec", octets), Err(NotThis), "{octets:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_octets_make_it_panic(octets in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = render("specs.MachineRequestSpec", &octets);
            let _ = render("specs.BMCConfigSpec", &octets);
        }
    }
}
