//! Generated messages and services, one module per protobuf package.
#![allow(missing_docs, clippy::all, reason = "generated from src/proto, where the fields are documented")]

/// COSI state: resources, events, the State service.
pub mod cosi {
    tonic::include_proto!("cosi.resource");
}
/// COSI's descriptions of types and namespaces.
pub mod meta {
    tonic::include_proto!("cosi.resource.meta");
}
/// Omni's resource specs.
pub mod specs {
    tonic::include_proto!("specs");
}
/// The provider's own resource specs.
pub mod provider {
    tonic::include_proto!("baremetalproviderspecs");
}
/// Omni's management service.
pub mod management {
    tonic::include_proto!("management");
}
/// How people's keys are registered.
pub mod auth {
    tonic::include_proto!("auth");
}
/// Frames of the agent's reverse tunnel.
pub mod tunnel {
    tonic::include_proto!("grpctunnel.v1");
}
/// The agent's calls.
pub mod agent {
    tonic::include_proto!("management_agent");
}
/// How a machine joins.
pub mod siderolink {
    tonic::include_proto!("sidero.link");
}
/// The lab's stand-in for what SideroLink carries.
pub mod lab {
    tonic::include_proto!("pilotlight.lab");
}
/// The descriptors of all of the above, an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
