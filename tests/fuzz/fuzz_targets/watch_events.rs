//! A watch by any events and breaks: readers see whole sets and single changes, nothing after the thread was lost, and
//! the watch resumes at nothing but the last event's bookmark.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use pilotlight::omni::watch::{Delivered, Event, Item, Start, WatchState};
use pilotlight::proto::cosi;
use pilotlight::resource::{Kind, Resource};
use prost::Message as _;

/// What a watch should be at, told more simply than [`WatchState`] does.
#[derive(Default)]
struct Model {
    /// IDs that the bootstrap has brought so far.
    buffered: BTreeSet<String>,
    live: bool,
    lost: bool,
    bookmark: Option<Vec<u8>>,
}

struct Run {
    machine: WatchState,
    model: Model,
    kind: Kind,
}

impl Run {
    fn new() -> Self {
        Self { machine: WatchState::default(), model: Model::default(), kind: Kind::omni("InfraMachines") }
    }

    fn event(&mut self, event: cosi::Event) {
        let Ok(item) = Item::decode(event, &self.kind) else { return };
        let (model, event, bookmark) =
            (&mut self.model, item.event.clone(), item.bookmark.as_deref().map(<[u8]>::to_vec));
        let delivered = self.machine.on(item);
        if model.lost {
            assert_eq!(delivered, Delivered::Nothing);
            return;
        }
        if !matches!(event, Event::Errored(_)) && (model.live || event == Event::Bootstrapped) {
            model.bookmark = bookmark;
        }
        match (event, model.live) {
            (Event::Errored(_), _) => {
                assert!(matches!(delivered, Delivered::Relist(_)));
                *model = Model { lost: true, ..Model::default() };
            }
            (Event::Created(resource) | Event::Updated(resource), true) => {
                assert_eq!(delivered, Delivered::Put(resource.into()));
            }
            (Event::Destroyed(resource), true) => assert_eq!(delivered, Delivered::Remove(resource.into())),
            (Event::Bootstrapped, false) => {
                let Delivered::Replace(contents) = delivered else { panic!("{delivered:?}") };
                assert!(contents.keys().map(AsRef::as_ref).eq(model.buffered.iter().map(String::as_str)));
                model.buffered.clear();
                model.live = true;
            }
            (event, _) => {
                assert_eq!(delivered, Delivered::Nothing);
                match event {
                    Event::Created(resource) | Event::Updated(resource) => drop(model.buffered.insert(resource.id)),
                    Event::Destroyed(resource) => drop(model.buffered.remove(&resource.id)),
                    _ => {}
                }
            }
        }
        assert_eq!(self.machine.is_live(), self.model.live);
    }

    /// The stream breaks, and is opened anew unless Omni refuses the bookmark.
    fn restart(&mut self, refused: bool) {
        let start = self.machine.restart();
        let resumes = self.model.live.then(|| self.model.bookmark.clone()).flatten();
        match (start, resumes) {
            (Start::Resume(bookmark), Some(last)) => assert_eq!(bookmark, last),
            (Start::Bootstrap, None) => self.model = Model::default(),
            (start, last) => panic!("{start:?} after bookmark {last:?}"),
        }
        if refused {
            self.machine.refused();
            assert_eq!(self.machine.restart(), Start::Bootstrap);
            self.model = Model::default();
        }
    }
}

fn scripted(input: &mut Unstructured<'_>) -> Result<()> {
    let mut run = Run::new();
    while !input.is_empty() {
        let step = input.int_in_range(0..=12)?;
        if step >= 11 {
            run.restart(step == 12);
            continue;
        }
        let mut resource = Resource::new(run.kind.clone(), *input.choose(&["a", "b", "c", ""])?, &());
        resource.version = Some(input.arbitrary::<u8>()?.into());
        let bookmark = match input.int_in_range(0..=5)? {
            0 => None,
            1 => Some(vec![0; input.int_in_range(1020..=1030)?]),
            _ => Some(input.arbitrary::<[u8; 2]>()?.to_vec()),
        };
        let event_type = match step {
            0..=2 => 0,
            3 | 4 => 1,
            5 | 6 => 2,
            7 | 8 => 3,
            9 => 5,
            _ => input.int_in_range(4..=6)?,
        };
        let resource = (!input.ratio(1, 12)?).then(|| resource.to_wire());
        run.event(cosi::Event { resource, event_type, bookmark, ..Default::default() });
    }
    Ok(())
}

fn raw(mut rest: &[u8]) {
    let mut run = Run::new();
    while let Ok(batch) = cosi::WatchResponse::decode_length_delimited(&mut rest) {
        for mut event in batch.event {
            // Most resources of a fuzzer are of no kind; these are all of ours.
            if let Some(metadata) = event.resource.as_mut().and_then(|resource| resource.metadata.as_mut()) {
                (metadata.namespace, metadata.r#type) = (run.kind.namespace.clone(), run.kind.r#type.clone());
            }
            run.event(event);
        }
        if rest.is_empty() {
            break;
        }
        run.restart(false);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 2 {
        0 => raw(rest),
        _ => drop(scripted(&mut Unstructured::new(rest))),
    }
});
