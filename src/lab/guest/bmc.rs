//! The guest's own BMC, through `/dev/ipmi0` and ipmitool: the commands that the agent gives in-band.
//!
//! Source: contract agent-tunnel.md section 2.3.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::lab::agent::BmcLan;
use crate::lab::os::PlatformError;
use crate::secret::Secret;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// The only LAN channel that the agent knows.
const CHANNEL: &str = "1";
/// Where RMCP is when the BMC does not say.
const RMCP: u16 = 623;

/// LAN interface and users.
pub(super) async fn lan() -> Result<BmcLan, PlatformError> {
    let address = octets(&ipmitool("get BMC address", &["raw", "0x0c", "0x02", CHANNEL, "3", "0", "0"]).await?);
    let [_, a, b, c, d] = address[..] else { return Err(odd("get BMC address")) };
    let port = ipmitool("get RMCP port", &["raw", "0x0c", "0x02", CHANNEL, "8", "0", "0"]).await;
    let port = match octets(&port.unwrap_or_default())[..] {
        [_, low, high] if low != 0 || high != 0 => u16::from_le_bytes([low, high]),
        _ => RMCP,
    };
    Ok(BmcLan {
        address: Ipv4Addr::new(a, b, c, d),
        port,
        users: users().await?.into_iter().map(|user| user.1).collect(),
    })
}

/// Takes over the slot of `name`, or the first free one from slot 2 on, and makes it an administrator.
pub(super) async fn set_user(name: &str, password: &Secret<String>) -> Result<(), PlatformError> {
    let users = users().await?;
    let free = |user: &&(u8, String)| user.0 >= 2 && user.1.is_empty();
    let slot = users.iter().find(|user| user.0 >= 2 && user.1 == name).or_else(|| users.iter().find(free));
    let no_slot = || PlatformError::Bmc { command: "set user", reason: "no slot available for user".into() };
    let (slot, known) = slot.map(|user| (user.0.to_string(), !user.1.is_empty())).ok_or_else(no_slot)?;
    if !known {
        ipmitool("set user name", &["user", "set", "name", &slot, name]).await?;
    }
    ipmitool("set user password", &["user", "set", "password", &slot, password.reveal(), "16"]).await?;
    // Messaging on the channel, privilege 4 (administrator), no session limit.
    ipmitool("set user access", &["raw", "0x06", "0x43", "0x91", &slot, "4", "0"]).await?;
    ipmitool("enable user", &["user", "enable", &slot]).await?;
    Ok(())
}

/// Slots and names; a free slot has an empty name.
async fn users() -> Result<Vec<(u8, String)>, PlatformError> {
    let list = ipmitool("list users", &["-c", "user", "list", CHANNEL]).await?;
    let users: Vec<_> = list.lines().filter_map(user).collect();
    if users.is_empty() { Err(odd("list users")) } else { Ok(users) }
}

/// `2,admin,true,false,true,ADMINISTRATOR`.
fn user(line: &str) -> Option<(u8, String)> {
    let mut fields = line.split(',');
    let slot = fields.next()?.trim().parse().ok()?;
    let name = fields.next()?.trim();
    Some((slot, if name == "(Empty User)" { String::new() } else { name.to_owned() }))
}

/// Octets as ipmitool prints them; none if any is malformed.
fn octets(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<_, _>>().unwrap_or_default()
}

fn odd(command: &'static str) -> PlatformError {
    PlatformError::Bmc { command, reason: "the answer makes no sense".into() }
}

async fn ipmitool(command: &'static str, arguments: &[&str]) -> Result<String, PlatformError> {
    let failed = |reason: String| PlatformError::Bmc { command, reason };
    let run = Command::new("ipmitool").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(PATIENCE, run).await.map_err(|_| failed("no answer".into()))?;
    let output = output.map_err(|error| failed(format!("ipmitool: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    // The last line names the completion code; ipmitool does not repeat its arguments there.
    let words = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("failed").trim().to_owned();
    Err(failed(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ipmitool_prints_is_understood() {
        assert_eq!(octets(" 11 0a 63 00 65\n"), [0x11, 10, 99, 0, 101]);
        assert!(octets("Unable to send").is_empty());
        assert_eq!(user("2,admin,true,false,true,ADMINISTRATOR"), Some((2, "admin".into())));
        assert_eq!(user("3,,true,false,false,Unknown (0x00)"), Some((3, String::new())));
        assert_eq!(user("4,(Empty User),true"), Some((4, String::new())));
        assert_eq!(user("ID,Name"), None);
    }
}
