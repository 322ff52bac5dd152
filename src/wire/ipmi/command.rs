//! The data of the commands spoken here, requests and responses.
//!
//! Source: IPMI 2.0 chapters 22 (sessions) and 28 (chassis), appendix G (command numbers).

use super::Malformed;
use super::octets::Octets;
use super::suite::CipherSuite;

/// Get Chassis Status (`Chassis` 01h).
pub const GET_CHASSIS_STATUS: u8 = 0x01;
/// Chassis Control (`Chassis` 02h).
pub const CHASSIS_CONTROL: u8 = 0x02;
/// Set System Boot Options (`Chassis` 08h).
pub const SET_BOOT_OPTIONS: u8 = 0x08;
/// Get System Boot Options (`Chassis` 09h).
pub const GET_BOOT_OPTIONS: u8 = 0x09;
/// Get Device ID (`App` 01h).
pub const GET_DEVICE_ID: u8 = 0x01;
/// Get System GUID (`App` 37h).
pub const GET_SYSTEM_GUID: u8 = 0x37;
/// Get Channel Authentication Capabilities (`App` 38h).
pub const GET_CHANNEL_AUTHENTICATION_CAPABILITIES: u8 = 0x38;
/// Set Session Privilege Level (`App` 3Bh).
pub const SET_SESSION_PRIVILEGE: u8 = 0x3b;
/// Close Session (`App` 3Ch).
pub const CLOSE_SESSION: u8 = 0x3c;
/// Get Channel Cipher Suites (`App` 54h).
pub const GET_CHANNEL_CIPHER_SUITES: u8 = 0x54;

/// Privilege level of a session (table 22-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Privilege {
    /// Reads.
    User = 2,
    /// Powers the chassis and sets boot options: all that this project does.
    Operator = 3,
    /// Everything.
    Administrator = 4,
}

impl Privilege {
    /// The level's number.
    pub const fn level(self) -> u8 {
        self as u8
    }

    /// From the low four bits of a level or role octet; 1 (callback) and OEM levels are none of ours.
    pub const fn from_level(level: u8) -> Option<Self> {
        match level & 0x0f {
            2 => Some(Self::User),
            3 => Some(Self::Operator),
            4 => Some(Self::Administrator),
            _ => None,
        }
    }
}

/// Data of a Get Chassis Status response (table 28-3), of which only power is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChassisStatus {
    /// System power is on.
    pub power_on: bool,
}

impl ChassisStatus {
    /// Three octets: power state, last power event, miscellaneous state.
    pub fn encode(self) -> Vec<u8> {
        vec![u8::from(self.power_on), 0, 0]
    }

    /// Reads the first octet; some BMCs send fewer than the three that they should.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for no octet at all.
    pub fn decode(data: &[u8]) -> Result<Self, Malformed> {
        Ok(Self { power_on: Octets::new(data).u8()? & 1 != 0 })
    }
}

/// What Chassis Control can do (table 28-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChassisControl {
    /// Hard off.
    PowerDown = 0,
    /// On.
    PowerUp = 1,
    /// Off for a while, then on. A chassis that is off may stay off.
    PowerCycle = 2,
    /// Reset without removing power.
    HardReset = 3,
    /// A diagnostic interrupt to the processors.
    DiagnosticInterrupt = 4,
    /// Asks the operating system to shut down, by ACPI.
    SoftShutdown = 5,
}

impl ChassisControl {
    /// The request's one octet.
    pub const fn encode(self) -> [u8; 1] {
        [self as u8]
    }

    /// Reads the request's data.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for no data or a reserved control.
    pub fn decode(data: &[u8]) -> Result<Self, Malformed> {
        Ok(match Octets::new(data).u8()? & 0x0f {
            0 => Self::PowerDown,
            1 => Self::PowerUp,
            2 => Self::PowerCycle,
            3 => Self::HardReset,
            4 => Self::DiagnosticInterrupt,
            5 => Self::SoftShutdown,
            value => return Err(Malformed::Field { field: "chassis control", value }),
        })
    }
}

/// A boot option's number (table 28-14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BootOption {
    /// Parameter 0: one octet, see [`SET_COMPLETE`] and [`SET_IN_PROGRESS`].
    SetInProgress = 0,
    /// Parameter 3: when the BMC must *not* drop the boot flags, see [`KEEP_ON_TIMEOUT`].
    ValidBitClearing = 3,
    /// Parameter 4: write mask and who has handled the boot information, see [`ACKNOWLEDGE_BIOS`].
    InfoAcknowledge = 4,
    /// Parameter 5: [`BootOverride`].
    BootFlags = 5,
}

/// Parameter 0: set complete.
pub const SET_COMPLETE: [u8; 1] = [0];
/// Parameter 0: set in progress.
pub const SET_IN_PROGRESS: [u8; 1] = [1];
/// Parameter 3: keep the boot flags though no Chassis Control came within 60 seconds.
pub const KEEP_ON_TIMEOUT: [u8; 1] = [0x08];
/// Parameter 4: for the BIOS alone, mark the boot information as not handled yet.
pub const ACKNOWLEDGE_BIOS: [u8; 2] = [0x01, 0x01];

/// The device that boot flags force (bits 5 to 2 of their second octet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BootDevice {
    /// No override.
    None,
    /// Network boot by PXE.
    Pxe,
    /// Default hard disk.
    Disk,
    /// Default CD or DVD.
    Cd,
    /// BIOS set-up.
    Setup,
    /// Any other selector, 0 to 15.
    Other(u8),
}

impl BootDevice {
    const fn selector(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Pxe => 1,
            Self::Disk => 2,
            Self::Cd => 5,
            Self::Setup => 6,
            Self::Other(selector) => selector & 0x0f,
        }
    }

    const fn from_selector(selector: u8) -> Self {
        match selector & 0x0f {
            0 => Self::None,
            1 => Self::Pxe,
            2 => Self::Disk,
            5 => Self::Cd,
            6 => Self::Setup,
            other => Self::Other(other),
        }
    }
}

/// Parameter 5, boot flags: what the next boot, or each boot, is to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootOverride {
    /// The flags count; without it the firmware ignores the rest.
    pub valid: bool,
    /// For each boot from now on, not just the next.
    pub persistent: bool,
    /// For UEFI; otherwise for a legacy BIOS.
    pub uefi: bool,
    /// The device.
    pub device: BootDevice,
}

impl BootOverride {
    /// No override at all.
    pub const NONE: Self = Self { valid: false, persistent: false, uefi: false, device: BootDevice::None };

    /// The next boot alone is by PXE.
    pub const fn pxe_once(uefi: bool) -> Self {
        Self { valid: true, persistent: false, uefi, device: BootDevice::Pxe }
    }

    /// The parameter's five octets.
    pub const fn encode(self) -> [u8; 5] {
        let flags = (self.valid as u8) << 7 | (self.persistent as u8) << 6 | (self.uefi as u8) << 5;
        [flags, self.device.selector() << 2, 0, 0, 0]
    }

    /// Reads the first two octets; the others (console, locks, mux) are left alone.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for fewer.
    pub fn decode(data: &[u8]) -> Result<Self, Malformed> {
        let [flags, device] = Octets::new(data).array()?;
        Ok(Self {
            valid: flags & 0x80 != 0,
            persistent: flags & 0x40 != 0,
            uefi: flags & 0x20 != 0,
            device: BootDevice::from_selector(device >> 2),
        })
    }
}

/// Data of a Set System Boot Options request: the parameter, marked valid, and its value.
pub fn encode_set_boot_option(option: BootOption, value: &[u8]) -> Vec<u8> {
    let mut data = vec![option as u8];
    data.extend_from_slice(value);
    data
}

/// Parameter number and value of a Set System Boot Options request; the "mark invalid" bit is ignored.
///
/// # Errors
///
/// [`Malformed`] for no data.
pub fn decode_set_boot_option(data: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let mut octets = Octets::new(data);
    Ok((octets.u8()? & 0x7f, octets.rest()))
}

/// Data of a Get System Boot Options request for a parameter without sets or blocks.
pub const fn encode_get_boot_option(option: BootOption) -> [u8; 3] {
    [option as u8, 0, 0]
}

/// Parameter number of a Get System Boot Options request.
///
/// # Errors
///
/// [`Malformed`] for less than the three octets.
pub fn decode_get_boot_option(data: &[u8]) -> Result<u8, Malformed> {
    Octets::new(data).array().map(|[parameter, _set, _block]| parameter & 0x7f)
}

/// Data of a Get System Boot Options response: version 1, parameter, value.
pub fn encode_boot_option(parameter: u8, value: &[u8]) -> Vec<u8> {
    let mut data = vec![1, parameter & 0x7f];
    data.extend_from_slice(value);
    data
}

/// Parameter number and value of a Get System Boot Options response.
///
/// # Errors
///
/// [`Malformed`] for less than two octets.
pub fn decode_boot_option(data: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let mut octets = Octets::new(data);
    let [_version, parameter] = octets.array()?;
    Ok((parameter & 0x7f, octets.rest()))
}

/// Data of a Get Channel Authentication Capabilities response (table 22-15) of a BMC that wants IPMI 2.0, user names
/// and nothing else, on LAN channel 1.
pub fn encode_authentication_capabilities() -> Vec<u8> {
    // Channel; extended capabilities and no IPMI 1.5 authentication type; non-null user names; IPMI 2.0; no OEM.
    vec![1, 0x80, 0x04, 0x02, 0, 0, 0, 0]
}

/// Data of a Get Channel Cipher Suites response (table 22-17) that lists `suites`; `data` is the request's.
///
/// # Errors
///
/// [`Malformed`] for a request of less than three octets.
pub fn encode_cipher_suites(suites: &[CipherSuite], data: &[u8]) -> Result<Vec<u8>, Malformed> {
    let [_channel, _payload_type, index] = Octets::new(data).array()?;
    let mut records = Vec::new();
    for suite in suites {
        let [authentication, integrity, confidentiality] = suite.algorithms();
        records.extend_from_slice(&[0xc0, suite.id(), authentication, 0x40 | integrity, 0x80 | confidentiality]);
    }
    // Each response carries 16 octets of the list; a shorter one is the last.
    let from = usize::from(index & 0x3f) * 16;
    Ok(std::iter::once(1).chain(records.into_iter().skip(from).take(16)).collect())
}
