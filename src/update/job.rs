//! One update, from the source to the slot's next try.
//!
//! An edge, because it owns the slot's device. It blocks its thread.

use std::io::{self, Read};
use std::path::Path;

use ed25519_dalek::VerifyingKey;

use super::fetch::Remote;
use super::protocol::Asked;
use super::standing::{NoSlot, Standing};
use super::stick::OnStick;
use super::upload::{Parts, Upload};
use super::{Bundle, Failed, Refused, SlotDevice, Source, Terms, open, write};
use crate::slots::{Slot, Version};
use crate::supervise::control::{Reply, Request};

/// Where a bundle comes from.
pub enum From {
    /// A URL.
    Remote(Box<Remote>),
    /// A file on the stick.
    Stick(std::fs::File),
    /// Somebody sends it.
    Upload(Parts),
}

/// Why there is no update.
#[derive(Debug, thiserror::Error)]
pub enum NoUpdate {
    /// It is none for this box.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It can't be had or written.
    #[error(transparent)]
    Failed(#[from] Failed),
    /// Init can't be asked.
    #[error("init does not answer")]
    Init(#[source] io::Error),
    /// No slot may be written.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    /// Init says no.
    #[error("{0}")]
    Forbidden(String),
    /// The slot can't be opened.
    #[error("slot {} can't be opened", slot.letter())]
    Slot {
        /// Which.
        slot: Slot,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a job tells while it runs.
pub trait Report {
    /// The signature is good, and the box takes it: the version, and octets of the image.
    fn opened(&mut self, version: &Version, total: u64);
    /// Octets of the image that the slot holds.
    fn held(&mut self, octets: u64);
}

/// What a job needs.
pub struct Terminal<'a> {
    /// The keys that are trusted.
    pub keys: &'a [VerifyingKey],
    /// What kind of box this is.
    pub compatible: &'a str,
    /// The version of this very program.
    pub own: &'a Version,
    /// Where the partitions of the box's own disk have their names.
    pub disk: &'a Path,
    /// What a person asked for besides.
    pub asked: Asked,
    /// Asks init.
    pub init: &'a dyn Fn(Request) -> io::Result<Reply>,
}

impl Terminal<'_> {
    /// Writes the bundle that comes from `from` and has init try it at the next start. Returns the slot.
    ///
    /// Nothing is written before signature and terms were checked and init withdrew what the slot held.
    ///
    /// # Errors
    ///
    /// [`NoUpdate`]; what runs and what is committed were not touched.
    pub fn run(&self, from: From, report: &mut dyn Report) -> Result<Slot, NoUpdate> {
        let standing = match (self.init)(Request::Status).map_err(NoUpdate::Init)? {
            Reply::Status(status) => Standing::of(&status, self.own)?,
            other => return Err(forbidden(other)),
        };
        match from {
            From::Remote(mut remote) => {
                let bundle = self.check(&mut remote.beginning(), &standing, report)?;
                remote.skip_to(bundle.image_at);
                self.write(&bundle, &mut *remote, &standing, report)
            }
            From::Stick(mut file) => {
                let bundle = self.check(&mut file, &standing, report)?;
                let image_at = bundle.image_at;
                self.write(&bundle, &mut OnStick { file, image_at }, &standing, report)
            }
            From::Upload(mut parts) => {
                let bundle = self.check(&mut parts, &standing, report)?;
                let keep = bundle.manifest.place(0).1;
                self.write(&bundle, &mut Upload::new(parts, keep), &standing, report)
            }
        }
    }

    fn check(&self, reader: &mut impl Read, standing: &Standing, report: &mut dyn Report) -> Result<Bundle, NoUpdate> {
        let bundle = open(reader, self.keys)?;
        let terms = Terms {
            keys: self.keys,
            compatible: self.compatible,
            running: &standing.running,
            failed: &standing.failed,
            // The device itself says how large it is, once it may be opened.
            slot: u64::MAX,
            downgrade: self.asked.downgrade,
            again: self.asked.again,
        };
        bundle.check(&terms)?;
        report.opened(&bundle.manifest.version, bundle.manifest.size);
        Ok(bundle)
    }

    fn write(
        &self,
        bundle: &Bundle,
        source: &mut impl Source,
        standing: &Standing,
        report: &mut dyn Report,
    ) -> Result<Slot, NoUpdate> {
        let slot = standing.slot;
        self.ask(Request::Withdraw(slot))?;
        let device = SlotDevice::open(&self.disk.join(format!("slot-{}", slot.letter())));
        let mut device = device.map_err(|source| NoUpdate::Slot { slot, source })?;
        write(&bundle.manifest, source, &mut device, &mut |held| report.held(held))?;
        let asked = self.asked.downgrade || self.asked.again;
        self.ask(Request::Try { slot, version: bundle.manifest.version.clone(), asked })?;
        Ok(slot)
    }

    fn ask(&self, request: Request) -> Result<(), NoUpdate> {
        match (self.init)(request).map_err(NoUpdate::Init)? {
            Reply::Done => Ok(()),
            other => Err(forbidden(other)),
        }
    }
}

fn forbidden(reply: Reply) -> NoUpdate {
    NoUpdate::Forbidden(match reply {
        Reply::Refused(why) | Reply::Failed(why) => why,
        Reply::Denied => "init does not let this service change slots".to_owned(),
        Reply::Status(_) | Reply::Accepted | Reply::Done => "init answers another question".to_owned(),
    })
}
