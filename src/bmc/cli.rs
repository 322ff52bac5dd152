//! `pilotlight bmc`: speaks to one BMC as the provider would, for whoever wires a new rack.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::ipmi::{IpmiBmc, Timing};
use super::{Bmc, Credentials, Retry};
use crate::machine::PxeBootMode;
use crate::secret::Secret;
use crate::wire::ipmi::PORT;

/// The environment variable that holds the password when no file does.
const PASSWORD_VARIABLE: &str = "PILOTLIGHT_BMC_PASSWORD";

/// Asks one BMC one thing, over IPMI 2.0 LAN (RMCP+, cipher suite 17 or 3), and prints one line.
///
/// The answer is what the provider itself would get: when `status` works here, the provider can manage the machine.
/// IPMI over LAN must be enabled in the BMC, UDP port 623 open on the way, and the user needs privilege level
/// administrator or operator on the LAN channel.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    pilotlight bmc --address 10.0.0.9 --username admin --password-file bmc.txt status\n  \
    PILOTLIGHT_BMC_PASSWORD=… pilotlight bmc --address '[fd00::9]:623' --username admin pxe")]
pub struct BmcArgs {
    /// Address of the BMC: a host name or IP address, and a port if it is not 623. IPv6 with a port takes brackets.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = parse_address)]
    address: (String, u16),

    /// User of the BMC, at most 16 octets.
    #[arg(long, value_name = "NAME")]
    username: String,

    /// File whose first line is the user's password, at most 20 octets. Without it, PILOTLIGHT_BMC_PASSWORD in the
    /// environment is the password; there is no flag for it, since everyone on this host sees flags.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Firmware whose next boot `pxe` sends to the network.
    #[arg(long, value_name = "MODE", default_value = "uefi")]
    pxe_boot_mode: Mode,

    /// What to do.
    operation: Operation,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Mode {
    /// UEFI.
    Uefi,
    /// Legacy BIOS.
    Bios,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Operation {
    /// Say whether the machine is on or off.
    Status,
    /// Turn it on.
    On,
    /// Turn it off at once, without asking its operating system.
    Off,
    /// Turn it off and on again.
    Cycle,
    /// Boot from the network once, at the next start.
    Pxe,
}

/// Runs the command and prints its one line to standard output.
///
/// # Errors
///
/// The password cannot be read, or the BMC's [`super::Error`] with a hint at what helps.
pub async fn run(args: BmcArgs) -> anyhow::Result<()> {
    let (address, port) = args.address.clone();
    let password = read_password(args.password_file.as_deref())?;
    let bmc = IpmiBmc::new(Credentials { address, port, username: args.username, password }, Timing::default());
    let outcome = match args.operation {
        Operation::Status => bmc.power_state().await.map(|state| format!("power is {state}")),
        Operation::On => bmc.power_on().await.map(|()| "power on accepted".to_owned()),
        Operation::Off => bmc.power_off().await.map(|()| "power off accepted".to_owned()),
        Operation::Cycle => bmc.power_cycle().await.map(|()| "power cycle accepted".to_owned()),
        Operation::Pxe => {
            let mode = match args.pxe_boot_mode {
                Mode::Uefi => PxeBootMode::Uefi,
                Mode::Bios => PxeBootMode::Bios,
            };
            bmc.set_pxe_once(mode).await.map(|()| "the next boot is from the network".to_owned())
        }
    };
    bmc.close().await;
    let line = outcome.map_err(|error| {
        let hint = match error.retry() {
            Retry::Soon => "try again in a few seconds",
            Retry::Later => "check the address, the network and the BMC's IPMI over LAN setting",
            Retry::Never => "trying again will not help, and may lock the account",
        };
        anyhow::anyhow!("{:#}; {hint}", anyhow::Error::new(error))
    })?;
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}

fn read_password(file: Option<&Path>) -> anyhow::Result<Secret<String>> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => std::env::var_os(PASSWORD_VARIABLE)
            .with_context(|| format!("no password: give --password-file or set {PASSWORD_VARIABLE}"))?
            .into_string()
            .map_err(|_| anyhow::anyhow!("{PASSWORD_VARIABLE} is not UTF-8"))?,
    };
    let text = Secret::new(text);
    Ok(Secret::new(text.reveal().lines().next().unwrap_or_default().to_owned()))
}

fn parse_address(text: &str) -> Result<(String, u16), String> {
    let port_of =
        |port: &str| port.parse().map_err(|_| format!("{port:?} is not a port, which is a number up to 65535"));
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, "")) => (host, PORT),
            Some((host, rest)) => (host, port_of(rest.strip_prefix(':').unwrap_or(rest))?),
            None => return Err("want ] after the IPv6 address".to_owned()),
        },
        // More than one colon without brackets is an IPv6 address.
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, port_of(port)?),
            _ => (text, PORT),
        },
    };
    if host.is_empty() {
        return Err("want a host name or an IP address".to_owned());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BmcArgs,
    }

    #[test]
    fn an_address_may_name_a_port_and_be_ipv6() {
        for (text, host, port) in [
            ("10.0.0.9", "10.0.0.9", 623),
            ("bmc-9.rack:6230", "bmc-9.rack", 6230),
            ("fd00::9", "fd00::9", 623),
            ("[fd00::9]", "fd00::9", 623),
            ("[fd00::9]:6230", "fd00::9", 6230),
        ] {
            assert_eq!(parse_address(text), Ok((host.to_owned(), port)), "{text}");
        }
        for bad in ["", ":623", "bmc:", "bmc:70000", "[fd00::9", "[fd00::9]x", "[]:623"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_password_is_a_files_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "secret\nnot this\n").unwrap();
        assert_eq!(read_password(Some(&path)).unwrap().reveal(), "secret");
        let error = read_password(Some(&dir.path().join("absent"))).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn the_command_line_is_read_and_its_help_names_the_password_variable() {
        let line = ["bmc", "--address", "10.0.0.9", "--username", "admin", "--password-file", "f", "status"];
        let args = Line::try_parse_from(line).unwrap().args;
        assert_eq!(args.address, ("10.0.0.9".to_owned(), 623));
        let help = Line::try_parse_from(["bmc", "--help"]).unwrap_err().to_string();
        assert!(help.contains(PASSWORD_VARIABLE), "{help}");
    }
}
