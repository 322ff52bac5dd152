//! Resources off the wire: what is read is written and read again the same, by the client and by the double alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::lab::omni::wire;
use pilotlight::omni::provider::decode_join_config;
use pilotlight::proto::{cosi, specs};
use pilotlight::resource::Resource;
use prost::Message as _;

fn judge(message: cosi::Resource) {
    let double = wire::stored(message.clone());
    if let Ok(stored) = &double {
        let _ = (wire::check_limits(stored, None), wire::message(stored));
    }
    let Ok(resource) = Resource::from_wire(message.clone()) else { return };
    let again = Resource::from_wire(resource.to_wire()).expect("what we write, we read");
    assert_eq!(resource, again);
    // The double wants a spec, which a tombstone has not, and knows the rest of the rules as the client does.
    if message.spec.is_some() {
        assert_eq!(double.as_deref(), Ok(&resource));
    }
    if let Ok(spec) = resource.decode::<specs::InfraMachineSpec>() {
        let mut written = resource.clone();
        written.encode(&spec);
        assert_eq!(written.decode::<specs::InfraMachineSpec>(), Ok(spec));
    }
    let _ = resource.decode::<specs::InfraMachineStatusSpec>();
    let _ = (decode_join_config(&resource), format!("{resource:?}"));
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let Ok(mut message) = cosi::Resource::decode(rest) else { return };
    // Most messages of a fuzzer fail at the two texts that have but a few forms.
    if mode % 2 == 1 {
        let metadata = message.metadata.get_or_insert_default();
        metadata.version = if mode & 2 == 0 { "undefined".to_owned() } else { u64::from(*mode).to_string() };
        metadata.phase = if mode & 4 == 0 { "running".to_owned() } else { "tearingDown".to_owned() };
    }
    judge(message);
});
