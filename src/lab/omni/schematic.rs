//! What a schematic may say: the factory takes no key that it does not know.
//!
//! Pure. Source: contract omni-wire.md section 4.6.

use std::sync::LazyLock;

use super::schema::Schema;

/// The form of a schematic, as a JSON schema; ours, the factory has none.
const FORM: &str = r#"{
    "type": "object",
    "additionalProperties": false,
    "properties": {
        "owner": { "type": "string" },
        "overlay": {
            "type": ["object", "null"],
            "additionalProperties": false,
            "properties": { "image": { "type": "string" }, "name": { "type": "string" }, "options": {} }
        },
        "customization": {
            "type": ["object", "null"],
            "additionalProperties": false,
            "properties": {
                "embeddedMachineConfiguration": { "type": "string" },
                "extraKernelArgs": { "type": ["array", "null"], "items": { "type": "string" } },
                "meta": {
                    "type": ["array", "null"],
                    "items": {
                        "type": "object",
                        "additionalProperties": false,
                        "properties": {
                            "key": { "type": "integer", "minimum": 0, "maximum": 255 },
                            "value": { "type": "string" }
                        }
                    }
                },
                "systemExtensions": {
                    "type": ["object", "null"],
                    "additionalProperties": false,
                    "properties": { "officialExtensions": { "type": ["array", "null"], "items": { "type": "string" } } }
                },
                "bootloader": { "type": "string" },
                "secureboot": {
                    "type": ["object", "null"],
                    "additionalProperties": false,
                    "properties": {
                        "enrollKeys": { "type": "string" },
                        "includeWellKnownCertificates": { "type": "boolean" }
                    }
                },
                "diskImage": {
                    "type": ["object", "null"],
                    "additionalProperties": false,
                    "properties": { "sectorSize": { "type": "integer" } }
                }
            }
        }
    }
}"#;

/// What is wrong with a schematic; `None` when nothing is.
pub fn fault(yaml: &str) -> Option<String> {
    static SCHEMA: LazyLock<Schema> =
        LazyLock::new(|| Schema::parse(FORM).expect("the form is a schema, as its test says"));
    match SCHEMA.check(yaml) {
        Ok(faults) => faults.first().map(ToString::to_string),
        Err(bad) => Some(bad.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_contract_is_taken_and_no_other() {
        let all = "owner: me\noverlay: {image: i, name: n, options: {a: [1]}}\ncustomization:\n  \
                   embeddedMachineConfiguration: x\n  extraKernelArgs: [a=b]\n  meta: [{key: 10, value: v}]\n  \
                   systemExtensions: {officialExtensions: [siderolabs/metal-agent]}\n  bootloader: auto\n  \
                   secureboot: {enrollKeys: if-safe, includeWellKnownCertificates: true}\n  diskImage: {sectorSize: 4096}\n";
        for good in [all, "", "{}", "customization: {}\n"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (bad, told) in [
            ("customisation: {}", "'customisation'"),
            ("customization: {kernelArgs: [a]}", "/customization"),
            ("customization: {systemExtensions: {extensions: []}}", "'extensions'"),
            ("customization: {meta: [{key: 256, value: v}]}", "/customization/meta/0/key"),
            ("customization: {extraKernelArgs: a}", "/customization/extraKernelArgs"),
            ("a: [", "line"),
        ] {
            assert!(fault(bad).is_some_and(|fault| fault.contains(told)), "{bad}: {:?}", fault(bad));
        }
    }
}
