//! The system boot options that a simulated BMC keeps: parameters 0, 3, 4 and 5 of IPMI 2.0 table 28-14.

use crate::wire::ipmi::command::{BootOverride, decode_get_boot_option, decode_set_boot_option, encode_boot_option};
use crate::wire::ipmi::message::CompletionCode;

/// The parameters' values.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BootOptions {
    set_in_progress: [u8; 1],
    valid_bit_clearing: [u8; 1],
    info_acknowledge: [u8; 2],
    boot_flags: [u8; 5],
}

impl BootOptions {
    /// Set System Boot Options; returns the new boot flags when it was they that changed.
    pub(super) fn set(&mut self, data: &[u8]) -> Result<Option<BootOverride>, CompletionCode> {
        let (parameter, value) = decode_set_boot_option(data).map_err(|_| CompletionCode::INVALID_LENGTH)?;
        if parameter == 0 && value == [1] && self.set_in_progress == [1] {
            return Err(CompletionCode::SET_IN_PROGRESS);
        }
        // A request without a value only marks the parameter valid or invalid, which is not kept.
        if !value.is_empty() {
            let slot = self.slot(parameter)?;
            if slot.len() != value.len() {
                return Err(CompletionCode::INVALID_LENGTH);
            }
            slot.copy_from_slice(value);
        }
        Ok((parameter == 5).then(|| self.boot_override()))
    }

    /// Get System Boot Options; returns the response's data.
    pub(super) fn get(&mut self, data: &[u8]) -> Result<Vec<u8>, CompletionCode> {
        let parameter = decode_get_boot_option(data).map_err(|_| CompletionCode::INVALID_LENGTH)?;
        Ok(encode_boot_option(parameter, self.slot(parameter)?))
    }

    pub(super) fn boot_override(&self) -> BootOverride {
        BootOverride::decode(&self.boot_flags).unwrap_or(BootOverride::NONE)
    }

    /// The machine's firmware has followed the flags.
    pub(super) fn consume(&mut self) {
        if !self.boot_override().persistent {
            self.boot_flags = BootOverride::NONE.encode();
        }
    }

    fn slot(&mut self, parameter: u8) -> Result<&mut [u8], CompletionCode> {
        Ok(match parameter {
            0 => &mut self.set_in_progress,
            3 => &mut self.valid_bit_clearing,
            4 => &mut self.info_acknowledge,
            5 => &mut self.boot_flags,
            _ => return Err(CompletionCode::NOT_SUPPORTED),
        })
    }
}
