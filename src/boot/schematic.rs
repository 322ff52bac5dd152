//! Schematics: what an Image Factory is asked to build.

use std::fmt::Write as _;

use crate::machine::Arch;

/// A factory build: system extensions, and for sealed images the kernel arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schematic {
    /// Official extensions such as `siderolabs/metal-agent`, in the order given.
    pub extensions: Vec<String>,
    /// Kernel arguments inside the image. Empty but for secure boot, whose UKI seals its command line.
    ///
    /// Everywhere else the arguments go into our own iPXE script. Inside a schematic they would be posted to a factory,
    /// public by default, and with an inline machine configuration among them the join token would be too; and each
    /// change of them would be another image to build, fetch and keep.
    pub sealed_args: Vec<String>,
}

impl Schematic {
    /// The agent's image for one architecture: hardware support and the agent itself.
    ///
    /// ARM64 goes without x86 microcode and the Intel graphics' firmware.
    ///
    /// Source: contract section 6.6.
    pub fn agent(arch: Arch) -> Self {
        let all = [
            ("siderolabs/amd-ucode", true),
            ("siderolabs/amdgpu-firmware", false),
            ("siderolabs/bnx2-bnx2x", false),
            ("siderolabs/chelsio-firmware", false),
            ("siderolabs/i915-ucode", true),
            ("siderolabs/intel-ice-firmware", false),
            ("siderolabs/intel-ucode", true),
            ("siderolabs/qlogic-firmware", false),
            ("siderolabs/realtek-firmware", false),
            ("siderolabs/metal-agent", false),
        ];
        let wanted = |x86_only: bool| arch == Arch::Amd64 || !x86_only;
        let extensions = all.iter().filter(|(_, x86)| wanted(*x86)).map(|(name, _)| (*name).to_owned()).collect();
        Self { extensions, sealed_args: Vec::new() }
    }

    /// The schematic as YAML. Equal schematics render to equal text, which is what a content hash needs.
    pub fn to_yaml(&self) -> String {
        let mut yaml = String::from("customization:");
        if self.extensions.is_empty() && self.sealed_args.is_empty() {
            yaml.push_str(" {}\n");
            return yaml;
        }
        yaml.push('\n');
        if !self.sealed_args.is_empty() {
            yaml.push_str("  extraKernelArgs:\n");
            items(&mut yaml, "    ", &self.sealed_args);
        }
        if !self.extensions.is_empty() {
            yaml.push_str("  systemExtensions:\n    officialExtensions:\n");
            items(&mut yaml, "      ", &self.extensions);
        }
        yaml
    }
}

/// A block list of double-quoted scalars; JSON's escapes are a subset of YAML's.
fn items(yaml: &mut String, indent: &str, values: &[String]) {
    for value in values {
        let quoted = serde_json::Value::String(value.clone());
        writeln!(yaml, "{indent}- {quoted}").expect("writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_extensions_fit_the_architecture() {
        let amd64 = Schematic::agent(Arch::Amd64);
        assert_eq!(amd64.extensions.len(), 10);
        assert_eq!(amd64.extensions.last().map(String::as_str), Some("siderolabs/metal-agent"));
        let arm64 = Schematic::agent(Arch::Arm64);
        assert!(!arm64.extensions.iter().any(|name| name.ends_with("-ucode")));
        assert_eq!(arm64.extensions.len(), 7);
    }

    #[test]
    fn yaml_keeps_the_order_and_quotes_what_it_must() {
        let schematic = Schematic {
            extensions: vec!["siderolabs/b".into(), "siderolabs/a".into()],
            sealed_args: vec!["talos.config=http://x/config?u=${uuid}".into(), "a=\"b: #c\"".into()],
        };
        assert_eq!(
            schematic.to_yaml(),
            "customization:\n  extraKernelArgs:\n    - \"talos.config=http://x/config?u=${uuid}\"\n    \
             - \"a=\\\"b: #c\\\"\"\n  systemExtensions:\n    officialExtensions:\n      - \"siderolabs/b\"\n      \
             - \"siderolabs/a\"\n"
        );
        assert_eq!(Schematic::default().to_yaml(), "customization: {}\n");
    }
}
