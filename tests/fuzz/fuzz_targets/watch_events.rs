//! A watch by any events: the state machine never panics, and resumes at nothing that it was not given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::omni::watch::{Delivered, Item, Start, WatchState};
use pilotlight::proto::cosi;
use pilotlight::resource::Kind;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let kind = Kind::omni("InfraMachines");
    let mut machine = WatchState::default();
    let mut rest = data;
    let mut given: Vec<Vec<u8>> = Vec::new();
    while let Ok(batch) = cosi::WatchResponse::decode_length_delimited(&mut rest) {
        for event in batch.event {
            // Most events of a fuzzer are of no kind; this one's resources are all of ours.
            let event = cosi::Event {
                resource: event.resource.map(|mut resource| {
                    if let Some(metadata) = &mut resource.metadata {
                        (metadata.namespace, metadata.r#type) = (kind.namespace.clone(), kind.r#type.clone());
                    }
                    resource
                }),
                ..event
            };
            let Ok(item) = Item::decode(event, &kind) else { continue };
            given.extend(item.bookmark.iter().map(|bookmark| bookmark.to_vec()));
            if let Delivered::Relist(_) = machine.on(item) {
                assert_eq!(machine.restart(), Start::Bootstrap);
            }
        }
        if let Start::Resume(bookmark) = machine.restart() {
            assert!(given.iter().any(|known| *known == bookmark));
        }
        if rest.is_empty() {
            break;
        }
    }
});
