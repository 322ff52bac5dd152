//! Generates the protobuf messages and gRPC services from `src/proto`, without a protoc binary, and the list of keys that
//! updates are signed by from `board/keys`.

use std::error::Error;
use std::path::Path;
use std::{fs, io};

use protox::prost::Message as _;

#[allow(clippy::disallowed_methods, reason = "cargo tells build scripts where to write by environment")]
fn main() -> Result<(), Box<dyn Error>> {
    let protos = [
        "resource.proto",
        "meta.proto",
        "specs.proto",
        "omni.proto",
        "provider.proto",
        "management.proto",
        "auth.proto",
        "tunnel.proto",
        "agent.proto",
        "siderolink.proto",
        "lab.proto",
    ];
    println!("cargo:rerun-if-changed=src/proto");
    let files = protox::compile(protos, ["src/proto"])?;
    // The lab's Omni renders specs as YAML by their descriptors.
    let out = std::env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("update_keys.rs"), update_keys(Path::new("board/keys"))?)?;
    let descriptors = Path::new(&out).join("descriptors.binpb");
    fs::write(descriptors, files.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".cosi.resource.Spec.proto_spec")
        .bytes(".grpctunnel.v1.MessageData.data")
        .compile_fds(files)?;
    Ok(())
}

/// A Rust array of the public keys in `directory`, in the order of their files' names.
fn update_keys(directory: &Path) -> Result<String, Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", directory.display());
    let mut files: Vec<_> = match fs::read_dir(directory) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    files.retain(|path| path.extension().is_some_and(|extension| extension == "pub"));
    files.sort();
    let mut keys = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path)?;
        let text = text.trim();
        if text.len() != 64 || !text.bytes().all(|octet| octet.is_ascii_hexdigit()) {
            return Err(format!("{} holds no ed25519 public key", path.display()).into());
        }
        keys.push(text.to_owned());
    }
    Ok(format!("&{keys:?}"))
}
