//! A simulated BMC: a UDP server that speaks IPMI 2.0 over LAN, in front of a [`Chassis`] that someone else simulates.
//!
//! An edge. `firmware` decides what each datagram is answered with; this file receives, sends, and misbehaves when
//! [`Faults`] say so. `ipmitool` is the control: it drives this BMC as it drives real ones.

mod boot_options;
mod faults;
mod firmware;

pub use faults::Faults;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use self::boot_options::BootOptions;
use self::firmware::Firmware;
use crate::machine::PowerState;
use crate::secret::Secret;
use crate::time::Uptime;
use crate::wire::ipmi::MAX_DATAGRAM;
use crate::wire::ipmi::command::{BootOverride, ChassisControl};
use crate::wire::ipmi::rakp::Username;

/// The machine that a simulated BMC powers. Called from the BMC's task: it must not block.
pub trait Chassis: Send + Sync + 'static {
    /// Whether the machine is on; [`PowerState::Unknown`] is reported as off.
    fn power(&self) -> PowerState;
    /// Does what the console asked for.
    fn control(&self, control: ChassisControl);
    /// The console set these boot flags; they hold until [`SimulatedBmc::clear_boot_override`] or the next flags.
    fn boot_override(&self, boot_override: BootOverride);
}

/// A running BMC. It stops when it is dropped.
pub struct SimulatedBmc {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// How many users a BMC keeps.
const MAX_USERS: usize = 16;
/// How many delayed replies a BMC keeps.
const MAX_DELAYED: usize = 64;

/// Why a user was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserRefused {
    /// The name is empty or longer than 16 octets.
    #[error("a user name has 1 to 16 octets")]
    Name,
    /// The password is longer than 20 octets.
    #[error("a password has at most 20 octets")]
    Password,
    /// All user slots are taken.
    #[error("all user slots are taken")]
    Full,
}

/// What the server's task shares with the in-band side. Each lock is held for one statement, never over a call out.
#[derive(Default)]
struct State {
    users: Mutex<Vec<User>>,
    options: Mutex<BootOptions>,
    faults: Faults,
    sessions_opened: AtomicU32,
}

struct User {
    name: Username,
    password: Secret<String>,
}

impl State {
    fn password_of(&self, name: &Username) -> Option<Secret<String>> {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.iter().find(|user| user.name == *name).map(|user| user.password.clone())
    }

    fn with_options<T>(&self, run: impl FnOnce(&mut BootOptions) -> T) -> T {
        run(&mut self.options.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SimulatedBmc {
    /// Binds `bind`, port 0 for any, and serves `chassis` from it. It has no users yet, so nobody can log in.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn start(bind: SocketAddr, chassis: Arc<dyn Chassis>) -> io::Result<Self> {
        let socket = UdpSocket::bind(bind).await?;
        let address = socket.local_addr()?;
        let state = Arc::new(State::default());
        let task = tokio::spawn(serve(socket, chassis, state.clone()));
        Ok(Self { address, state, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds an administrator, or gives an existing one a new password: what the agent does in-band.
    ///
    /// Sessions that are open stay so.
    ///
    /// # Errors
    ///
    /// [`UserRefused`].
    pub fn set_user(&self, name: &str, password: &Secret<String>) -> Result<(), UserRefused> {
        let name =
            Username::new(name.as_bytes()).filter(|name| !name.as_bytes().is_empty()).ok_or(UserRefused::Name)?;
        if password.reveal().len() > 20 {
            return Err(UserRefused::Password);
        }
        let password = password.clone();
        let mut users = self.state.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.iter_mut().find(|user| user.name == name) {
            user.password = password;
        } else if users.len() < MAX_USERS {
            users.push(User { name, password });
        } else {
            return Err(UserRefused::Full);
        }
        Ok(())
    }

    /// Names of its users, in the order they were added.
    pub fn users(&self) -> Vec<String> {
        let users = self.state.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.iter().map(|user| String::from_utf8_lossy(user.name.as_bytes()).into_owned()).collect()
    }

    /// The boot flags as the firmware of the machine reads them, in-band.
    pub fn boot_override(&self) -> BootOverride {
        self.state.with_options(|options| options.boot_override())
    }

    /// Forgets the boot flags, unless they are persistent: what a machine's firmware does once it has followed them.
    pub fn clear_boot_override(&self) {
        self.state.with_options(BootOptions::consume);
    }

    /// How it misbehaves.
    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// How many sessions were opened so far, RAKP message 4 included.
    pub fn sessions_opened(&self) -> u32 {
        self.state.sessions_opened.load(Ordering::Relaxed)
    }
}

impl Drop for SimulatedBmc {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Receives, decides, sends, for ever.
async fn serve(socket: UdpSocket, chassis: Arc<dyn Chassis>, state: Arc<State>) {
    let socket = Arc::new(socket);
    let mut firmware = Firmware::new();
    let mut delayed = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error of the socket is an ICMP report about some console that left; it concerns nobody.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        while delayed.try_join_next().is_some() {}
        let Some(datagram) = buffer.get(..len) else { continue };
        let reply = match firmware.on(Uptime::now(), datagram, &*chassis, &state) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::debug!(%from, %error, "ignored a datagram");
                continue;
            }
        };
        let fate = state.faults.next_fate();
        let Some(reply) = fate.apply(reply) else { continue };
        match fate.delay {
            None => send(&socket, from, &reply, fate.copies).await,
            Some(delay) if delayed.len() < MAX_DELAYED => {
                let socket = socket.clone();
                delayed.spawn(async move {
                    sleep(delay).await;
                    send(&socket, from, &reply, fate.copies).await;
                });
            }
            Some(_) => {}
        }
    }
}

async fn send(socket: &UdpSocket, to: SocketAddr, reply: &[u8], copies: u32) {
    for _ in 0..copies {
        if let Err(error) = socket.send_to(reply, to).await {
            tracing::debug!(%to, %error, "reply was not sent");
        }
    }
}
