//! Baseboard management controllers: power and one-time PXE boot.
//!
//! An edge: it owns UDP sockets and waits for answers. [`Bmc`] is what the rest of the provider knows of a BMC;
//! [`ipmi::IpmiBmc`] is one that is spoken to in IPMI 2.0 over LAN.

pub mod cli;
pub mod ipmi;

mod error;

pub use error::{Error, Retry, TooLong};

use async_trait::async_trait;

use crate::machine::{PowerState, PxeBootMode};
use crate::secret::Secret;

/// Where a BMC is and how to log in to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Host name or IP address, an IPv6 address with or without brackets.
    pub address: String,
    /// UDP port, usually [`crate::wire::ipmi::PORT`].
    pub port: u16,
    /// User name, at most 16 octets.
    pub username: String,
    /// Password, at most 20 octets.
    pub password: Secret<String>,
}

/// A BMC, one operation at a time: a second caller waits for the first.
///
/// An operation may be dropped at any await; what was already sent may still take effect. A command whose answer was
/// lost is sent again, so it may be done twice: a machine may cycle twice. An operation that changes
/// something is done when the BMC says so, which is before the machine has changed: read [`Bmc::power_state`] until it has.
#[async_trait]
pub trait Bmc: Send + Sync {
    /// Whether the machine is powered; never [`PowerState::Unknown`].
    ///
    /// # Errors
    ///
    /// [`Error`]; its [`Error::retry`] says whether to ask again.
    async fn power_state(&self) -> Result<PowerState, Error>;

    /// Turns the machine on; one that is on stays so.
    ///
    /// # Errors
    ///
    /// [`Error`].
    async fn power_on(&self) -> Result<(), Error>;

    /// Turns the machine off at once, without asking its operating system; one that is off stays so.
    ///
    /// # Errors
    ///
    /// [`Error`].
    async fn power_off(&self) -> Result<(), Error>;

    /// Turns the machine off and on again; one that is off is turned on.
    ///
    /// # Errors
    ///
    /// [`Error`].
    async fn power_cycle(&self) -> Result<(), Error>;

    /// Makes the next boot, and no later one, start from the network with firmware of this mode.
    ///
    /// # Errors
    ///
    /// [`Error`].
    async fn set_pxe_once(&self, mode: PxeBootMode) -> Result<(), Error>;
}
