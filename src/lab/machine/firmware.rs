//! The firmware of a machine: from power to an operating system, over real sockets on the machine's own address.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::dhcp::{self, Ask, Client, Rom, Verdict};
use super::http::{self, FetchError, Fetched, Keep};
use super::script::{Ipxe, Outcome, World, chain_of, embedded, is_script};
use super::tftp::{self, TftpError};
use super::{Firmware, Machine};

/// DISCOVERs and REQUESTs that a ROM sends before it gives up.
const TRIES: u32 = 4;
/// The biggest boot program that is kept while it is looked into.
const PROGRAM: usize = 16 * 1024 * 1024;
/// Boot programs that load one another before the machine gives up.
const PROGRAMS: u32 = 4;

/// Why the network did not boot.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error("no socket on the machine's address")]
    Bind(#[source] std::io::Error),
    #[error("the kernel refuses packets to {server}")]
    Send {
        server: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("no randomness for a transaction ID")]
    Randomness,
    #[error("the request cannot be encoded")]
    Encode,
    #[error("PXE-E16: no valid offer received")]
    NoOffer,
    #[error("PXE-E55: proxyDHCP service did not reply to request on port 4011")]
    NoBinl,
    #[error("boot program did not arrive over TFTP")]
    Tftp(#[source] TftpError),
    #[error("boot program did not arrive over HTTP")]
    Http(#[source] FetchError),
    #[error("boot programs load one another without end")]
    Endless,
}

/// What a network boot came to.
#[derive(Debug)]
pub(super) enum NetworkBoot {
    /// A kernel was loaded; its command line.
    Kernel(String),
    /// The disk is to be started.
    Disk,
    /// The next device's turn.
    Next,
    /// The program asks for a reset.
    Reboot,
    /// The program turns the machine off.
    PowerOff,
    /// The program waits for a person.
    Hang,
}

/// Boots `machine` from the network once. What happens goes to the machine's event log; failure is [`NetworkBoot::Next`].
pub(super) async fn boot(machine: &Machine) -> NetworkBoot {
    let outcome = match load(machine).await {
        Ok((program, url)) => run(machine, program, url).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(boot) => boot,
        Err(error) => {
            machine.note(format!("network boot failed: {}", chain_of(&error)));
            NetworkBoot::Next
        }
    }
}

/// The boot program that the firmware's own DHCP leads to, and its URL if it has one.
async fn load(machine: &Machine) -> Result<(Vec<u8>, Option<String>), NetworkError> {
    let spec = &machine.spec;
    let rom = if spec.firmware == Firmware::UefiHttp { Rom::Http } else { Rom::Pxe };
    let file = ask(machine, rom).await?;
    if rom == Rom::Http {
        let size = http::head(spec.address, &file).await.map_err(NetworkError::Http)?;
        machine.note(format!("HEAD {file}{}", size.map_or_else(String::new, |size| format!(" {size} octets"))));
        let fetched = http::get(spec.address, &file, Keep::UpTo(PROGRAM)).await.map_err(NetworkError::Http)?;
        machine.note(format!("GET {file} {} octets", fetched.octets));
        return Ok((fetched.body, Some(file)));
    }
    let probe = spec.firmware == Firmware::Uefi;
    let octets = tftp::fetch(spec.address, machine.network.tftp, &file, probe, spec.timing.tftp_wait)
        .await
        .map_err(NetworkError::Tftp)?;
    machine.note(format!("TFTP {file} {} octets", octets.len()));
    Ok((octets, None))
}

/// Asks for a boot file: DISCOVER, and a REQUEST to port 4011 where the offer calls for it.
async fn ask(machine: &Machine, rom: Rom) -> Result<String, NetworkError> {
    match exchange(machine, rom, Ask::Discover, machine.network.dhcp).await? {
        None => Err(NetworkError::NoOffer),
        Some(Verdict::Boot { file }) => Ok(file),
        Some(_) => {
            let ask = Ask::Binl { ciaddr: machine.spec.address };
            match exchange(machine, rom, ask, machine.network.binl).await? {
                Some(Verdict::Boot { file }) => Ok(file),
                _ => Err(NetworkError::NoBinl),
            }
        }
    }
}

/// Sends `ask` up to four times, waiting twice as long each time; returns the first verdict that is no refusal.
async fn exchange(machine: &Machine, rom: Rom, ask: Ask, server: SocketAddr) -> Result<Option<Verdict>, NetworkError> {
    let spec = &machine.spec;
    let client = Client { rom, arch: spec.arch_option(), mac: spec.mac, id: spec.id.clone() };
    let socket = UdpSocket::bind((IpAddr::V4(spec.address), 0)).await.map_err(NetworkError::Bind)?;
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|_| NetworkError::Randomness)?;
    let xid = u32::from_be_bytes(random);
    let mut buffer = [0; dhcp::LONGEST + 1];
    let (mut wait, mut secs) = (spec.timing.dhcp_wait, Duration::ZERO);
    for _ in 0..TRIES {
        let seconds = u16::try_from(secs.as_secs()).unwrap_or(u16::MAX);
        let request = dhcp::encode(&client, ask, xid, seconds).ok_or(NetworkError::Encode)?;
        machine.note(match ask {
            Ask::Discover if rom == Rom::Ipxe => "DISCOVER (iPXE)".into(),
            Ask::Discover => "DISCOVER".into(),
            Ask::Binl { .. } => format!("REQUEST to {server}"),
        });
        socket.send_to(&request, server).await.map_err(|source| NetworkError::Send { server, source })?;
        let deadline = Instant::now() + wait;
        loop {
            let (length, from) = match timeout_at(deadline, socket.recv_from(&mut buffer)).await {
                Err(_) => break,
                Ok(Ok(received)) => received,
                // A closed port comes back as an error on loopback; a ROM on a wire would hear nothing.
                Ok(Err(_)) => {
                    sleep_until(deadline).await;
                    break;
                }
            };
            let name = if ask == Ask::Discover { "OFFER" } else { "ACK" };
            match dhcp::decode(&buffer[..length]) {
                Err(malformed) => machine.note(format!("packet from {from} ignored: {malformed}")),
                Ok(reply) => match dhcp::decide(&client, ask, xid, &reply) {
                    Verdict::Ignore(reason) => machine.note(format!("{name} from {from} ignored: {reason}")),
                    verdict => {
                        machine.note(format!("{name} from {from} {}", reply.file));
                        return Ok(Some(verdict));
                    }
                },
            }
        }
        secs += wait;
        wait *= 2;
    }
    Ok(None)
}

/// Runs a boot program: its embedded script, else as plain iPXE does.
async fn run(machine: &Machine, program: Vec<u8>, url: Option<String>) -> Result<NetworkBoot, NetworkError> {
    let mut next = (program, url);
    for _ in 0..PROGRAMS {
        let (program, url) = next;
        let script = embedded(&program).map(<[u8]>::to_vec);
        drop(program);
        let mut screen = Screen { machine };
        let mut ipxe = Ipxe::new(&mut screen, settings(machine));
        let outcome = match script {
            Some(script) => {
                machine.note(format!("iPXE starts, embedded script of {} octets", script.len()));
                ipxe.run(&script, url.as_deref()).await
            }
            None => {
                machine.note("iPXE starts".into());
                let file = ask(machine, Rom::Ipxe).await?;
                ipxe.set("filename", file.clone());
                let url = match ipxe.expand(&file) {
                    // A bare file name is fetched from the TFTP server that the offer names.
                    Ok(file) if !file.contains("://") => format!("tftp://{}/{file}", machine.network.tftp),
                    Ok(url) => url,
                    Err(reason) => {
                        machine.note(format!("iPXE: {reason}"));
                        return Ok(NetworkBoot::Next);
                    }
                };
                match fetch_program(machine, &url).await {
                    Ok(body) if is_script(&body) => ipxe.run(&body, Some(&url)).await,
                    Ok(octets) => Outcome::Program { url, octets },
                    Err(error) => Outcome::Failed(chain_of(&error)),
                }
            }
        };
        return Ok(match outcome {
            Outcome::Program { url, octets } => {
                next = (octets, Some(url));
                continue;
            }
            Outcome::Boot { kernel, cmdline, octets, initrds } => {
                let initrd: u64 = initrds.iter().sum();
                machine.note(format!("kernel {kernel} {octets} octets, initrd {initrd} octets"));
                NetworkBoot::Kernel(cmdline)
            }
            Outcome::Disk => NetworkBoot::Disk,
            Outcome::Exit => {
                machine.note("iPXE exits".into());
                NetworkBoot::Next
            }
            Outcome::Failed(reason) => {
                machine.note(format!("iPXE gives up: {reason}"));
                NetworkBoot::Next
            }
            Outcome::Reboot => NetworkBoot::Reboot,
            Outcome::PowerOff => NetworkBoot::PowerOff,
            Outcome::Shell => NetworkBoot::Hang,
        });
    }
    Err(NetworkError::Endless)
}

/// The settings that iPXE finds on this machine.
fn settings(machine: &Machine) -> BTreeMap<String, String> {
    let spec = &machine.spec;
    let mac: Vec<String> = spec.mac.iter().map(|octet| format!("{octet:02x}")).collect();
    [
        ("uuid", spec.id.to_string()),
        ("serial", format!("LAB{}", spec.id.as_str().rsplit('-').next().unwrap_or_default())),
        ("manufacturer", "Pilotlight".into()),
        ("product", "Simulated machine".into()),
        ("platform", if spec.firmware == Firmware::Bios { "pcbios" } else { "efi" }.into()),
        ("buildarch", spec.buildarch().into()),
        ("version", "1.21.1".into()),
        ("next-server", machine.network.dhcp.ip().to_string()),
        ("net0/mac", mac.join(":")),
        ("net0/ip", spec.address.to_string()),
        ("net0/netmask", "255.0.0.0".into()),
        ("net0/ifname", "net0".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// A script or a boot program, over HTTP or TFTP.
async fn fetch_program(machine: &Machine, url: &str) -> Result<Vec<u8>, FetchError> {
    let address = machine.spec.address;
    let fetched = if let Some(rest) = url.strip_prefix("tftp://") {
        let bad = || FetchError::Url { url: url.into() };
        let (host, file) = rest.split_once('/').ok_or_else(bad)?;
        // Without root no server has port 69, so the lab's port stands for a URL's missing one.
        let (host, port) = match host.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
            None => (host, machine.network.tftp.port()),
        };
        let server = http::lookup(host, port).await?;
        tftp::fetch(address, server, file, false, machine.spec.timing.tftp_wait).await.map_err(FetchError::Tftp)
    } else {
        http::get(address, url, Keep::UpTo(PROGRAM)).await.map(|fetched| fetched.body)
    };
    match &fetched {
        Ok(body) => machine.note(format!("GET {url} {} octets", body.len())),
        Err(error) => machine.note(format!("GET {url} failed: {}", chain_of(error))),
    }
    fetched
}

/// The world of a running iPXE: its machine.
struct Screen<'m> {
    machine: &'m Machine,
}

#[async_trait]
impl World for Screen<'_> {
    async fn program(&mut self, url: &str) -> Result<Vec<u8>, FetchError> {
        fetch_program(self.machine, url).await
    }

    async fn image(&mut self, url: &str) -> Result<Fetched, FetchError> {
        let fetched = http::get(self.machine.spec.address, url, Keep::Digest).await;
        match &fetched {
            Ok(fetched) => self.machine.note(format!("GET {url} {} octets", fetched.octets)),
            Err(error) => self.machine.note(format!("GET {url} failed: {}", chain_of(error))),
        }
        fetched
    }

    async fn sleep(&mut self, time: Duration) {
        sleep(time.min(self.machine.spec.timing.script_sleep)).await;
    }

    fn print(&mut self, line: String) {
        self.machine.note(format!("iPXE: {}", line.chars().take(200).collect::<String>()));
    }

    fn disk_starts(&self) -> bool {
        self.machine.disk.holds_talos()
    }
}
