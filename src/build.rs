//! Generates the protobuf messages and gRPC services from `src/proto`, without a protoc binary.

use protox::prost::Message as _;

#[allow(clippy::disallowed_methods, reason = "cargo tells build scripts where to write by environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
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
    let descriptors = std::path::Path::new(&std::env::var("OUT_DIR")?).join("descriptors.binpb");
    std::fs::write(descriptors, files.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".cosi.resource.Spec.proto_spec")
        .bytes(".grpctunnel.v1.MessageData.data")
        .compile_fds(files)?;
    Ok(())
}
