//! Resources off the wire: what is read is written and read again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::lab::omni::wire;
use pilotlight::omni::provider::decode_join_config;
use pilotlight::proto::{cosi, specs};
use pilotlight::resource::Resource;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = cosi::Resource::decode(data) else { return };
    let _ = wire::resource(message.clone());
    let Ok(resource) = Resource::from_wire(message) else { return };
    let again = Resource::from_wire(resource.to_wire()).expect("what we write, we read");
    assert_eq!(resource, again);
    let _ = (resource.decode::<specs::InfraMachineSpec>(), resource.decode::<specs::InfraMachineStatusSpec>());
    let _ = (decode_join_config(&resource), format!("{resource:?}"));
});
