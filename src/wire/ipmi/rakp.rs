//! RAKP messages 1 to 4: both ends prove that they know the user's password, and agree on the session's keys.
//!
//! Source: IPMI 2.0 13.20 to 13.23 (messages), 13.31 (what is hashed into which code).

use zeroize::Zeroizing;

use super::Malformed;
use super::octets::Octets;
use super::open_session::Status;
use super::session::SessionKeys;
use super::suite::CipherSuite;

/// A user's name, at most 16 octets; the empty name is IPMI's null user.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Username(Vec<u8>);

impl Username {
    /// The longest name that IPMI carries.
    pub const MAX: usize = 16;

    /// `name`, unless it is longer than [`Self::MAX`] octets.
    pub fn new(name: &[u8]) -> Option<Self> {
        (name.len() <= Self::MAX).then(|| Self(name.to_vec()))
    }

    /// The name's octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn len(&self) -> u8 {
        self.0.len() as u8
    }
}

/// The role octet of RAKP message 1: look the user up by name only, at this privilege level.
///
/// With the other kind of lookup a BMC takes the first user of that name that has this very level.
pub const fn name_only_role(privilege: u8) -> u8 {
    0x10 | (privilege & 0x0f)
}

/// RAKP Message 1 (table 13-11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp1 {
    /// Message tag.
    pub tag: u8,
    /// The BMC's ID of the session.
    pub bmc_id: u32,
    /// The console's random number.
    pub console_random: [u8; 16],
    /// Lookup kind and requested privilege level, see [`name_only_role`].
    pub role: u8,
    /// Who logs in.
    pub username: Username,
}

impl Rakp1 {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = vec![self.tag, 0, 0, 0];
        payload.extend_from_slice(&self.bmc_id.to_le_bytes());
        payload.extend_from_slice(&self.console_random);
        payload.extend_from_slice(&[self.role, 0, 0, self.username.len()]);
        payload.extend_from_slice(self.username.as_bytes());
        payload
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a short one or a name beyond 16 octets.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut octets = Octets::new(payload);
        let [tag, _, _, _] = octets.array()?;
        let bmc_id = octets.u32()?;
        let console_random = octets.array()?;
        let [role, _, _, len] = octets.array()?;
        let username = Username::new(octets.take(usize::from(len))?)
            .ok_or(Malformed::Field { field: "user name length", value: len })?;
        Ok(Self { tag, bmc_id, console_random, role, username })
    }
}

/// RAKP Message 2 (table 13-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp2 {
    /// Tag of message 1.
    pub tag: u8,
    /// The console's ID of the session; 0 in an error that was cut short.
    pub console_id: u32,
    /// The BMC's proof, or why there is none.
    pub proof: Result<BmcProof, Status>,
}

/// The body of a successful RAKP Message 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcProof {
    /// The BMC's random number.
    pub bmc_random: [u8; 16],
    /// The BMC's GUID.
    pub guid: [u8; 16],
    /// Key exchange authentication code, for [`Exchange::verify_rakp2`].
    pub code: Vec<u8>,
}

impl Rakp2 {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let status = self.proof.as_ref().err().map_or(0, |status| status.0);
        let mut payload = vec![self.tag, status, 0, 0];
        payload.extend_from_slice(&self.console_id.to_le_bytes());
        if let Ok(proof) = &self.proof {
            payload.extend_from_slice(&proof.bmc_random);
            payload.extend_from_slice(&proof.guid);
            payload.extend_from_slice(&proof.code);
        }
        payload
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a success that is too short.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let (tag, status, console_id, mut octets) = open_reply(payload)?;
        if status != Status::OK {
            return Ok(Self { tag, console_id, proof: Err(status) });
        }
        let (bmc_random, guid) = (octets.array()?, octets.array()?);
        Ok(Self { tag, console_id, proof: Ok(BmcProof { bmc_random, guid, code: octets.rest().to_vec() }) })
    }
}

/// RAKP Message 3 (table 13-13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp3 {
    /// Message tag.
    pub tag: u8,
    /// The console's status; not 0 abandons the session.
    pub status: Status,
    /// The BMC's ID of the session.
    pub bmc_id: u32,
    /// Key exchange authentication code, for [`Exchange::verify_rakp3`].
    pub code: Vec<u8>,
}

impl Rakp3 {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = vec![self.tag, self.status.0, 0, 0];
        payload.extend_from_slice(&self.bmc_id.to_le_bytes());
        payload.extend_from_slice(&self.code);
        payload
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a short one.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut octets = Octets::new(payload);
        let [tag, status, _, _] = octets.array()?;
        let bmc_id = octets.u32()?;
        Ok(Self { tag, status: Status(status), bmc_id, code: octets.rest().to_vec() })
    }
}

/// RAKP Message 4 (table 13-14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rakp4 {
    /// Tag of message 3.
    pub tag: u8,
    /// The console's ID of the session; 0 in an error that was cut short.
    pub console_id: u32,
    /// Integrity check value, for [`Exchange::verify_rakp4`], or why there is none.
    pub proof: Result<Vec<u8>, Status>,
}

impl Rakp4 {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let (status, code) = match &self.proof {
            Ok(code) => (0, code.as_slice()),
            Err(status) => (status.0, &[][..]),
        };
        let mut payload = vec![self.tag, status, 0, 0];
        payload.extend_from_slice(&self.console_id.to_le_bytes());
        payload.extend_from_slice(code);
        payload
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a success that is too short.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let (tag, status, console_id, octets) = open_reply(payload)?;
        let proof = if status == Status::OK { Ok(octets.rest().to_vec()) } else { Err(status) };
        Ok(Self { tag, console_id, proof })
    }
}

/// Tag, status and session ID that messages 2 and 4 open with. Some BMCs end an error right after its status.
fn open_reply(payload: &[u8]) -> Result<(u8, Status, u32, Octets<'_>), Malformed> {
    let mut octets = Octets::new(payload);
    let [tag, status] = octets.array()?;
    let console_id = match octets.array::<2>().and_then(|_| octets.u32()) {
        Ok(console_id) => console_id,
        Err(_) if status != 0 => 0,
        Err(short) => return Err(short),
    };
    Ok((tag, Status(status), console_id, octets))
}

/// Everything that one key exchange hashes. Both ends hold the same.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The agreed suite.
    pub suite: CipherSuite,
    /// The console's ID of the session.
    pub console_id: u32,
    /// The BMC's ID of the session.
    pub bmc_id: u32,
    /// The console's random number.
    pub console_random: [u8; 16],
    /// The BMC's random number.
    pub bmc_random: [u8; 16],
    /// The BMC's GUID.
    pub guid: [u8; 16],
    /// The role octet of message 1, lookup bit included.
    pub role: u8,
    /// The user's name.
    pub username: Username,
}

impl Exchange {
    /// The BMC's proof in message 2.
    pub fn rakp2_code(&self, password: &[u8]) -> Vec<u8> {
        self.with_rakp2_parts(|parts| self.suite.hash(password, parts).to_vec())
    }

    /// Checks the BMC's proof in message 2.
    ///
    /// # Errors
    ///
    /// [`Malformed::Integrity`]: the BMC has another password for this user.
    pub fn verify_rakp2(&self, password: &[u8], code: &[u8]) -> Result<(), Malformed> {
        self.with_rakp2_parts(|parts| self.suite.verify(password, parts, self.suite.hash_len(), code))
    }

    /// The console's proof in message 3.
    pub fn rakp3_code(&self, password: &[u8]) -> Vec<u8> {
        self.with_rakp3_parts(|parts| self.suite.hash(password, parts).to_vec())
    }

    /// Checks the console's proof in message 3.
    ///
    /// # Errors
    ///
    /// [`Malformed::Integrity`]: the console has another password for this user.
    pub fn verify_rakp3(&self, password: &[u8], code: &[u8]) -> Result<(), Malformed> {
        self.with_rakp3_parts(|parts| self.suite.verify(password, parts, self.suite.hash_len(), code))
    }

    /// The integrity check value of message 4.
    pub fn rakp4_code(&self, password: &[u8]) -> Vec<u8> {
        let code = self.with_rakp4_parts(|parts| self.suite.hash(&self.sik(password), parts));
        code.iter().copied().take(self.suite.integrity_len()).collect()
    }

    /// Checks the integrity check value of message 4.
    ///
    /// # Errors
    ///
    /// [`Malformed::Integrity`]: the two ends derived different keys, as with a BMC key (K_g) that we do not have.
    pub fn verify_rakp4(&self, password: &[u8], code: &[u8]) -> Result<(), Malformed> {
        self.with_rakp4_parts(|parts| self.suite.verify(&self.sik(password), parts, self.suite.integrity_len(), code))
    }

    /// The keys of the session.
    pub fn keys(&self, password: &[u8]) -> SessionKeys {
        SessionKeys::derive(self.suite, &self.sik(password))
    }

    /// The session integrity key. Without a K_g the user's password is its key.
    fn sik(&self, password: &[u8]) -> Zeroizing<Vec<u8>> {
        self.suite.hash(
            password,
            &[&self.console_random, &self.bmc_random, &[self.role, self.username.len()], self.username.as_bytes()],
        )
    }

    fn with_rakp2_parts<T>(&self, run: impl FnOnce(&[&[u8]]) -> T) -> T {
        run(&[
            &self.console_id.to_le_bytes(),
            &self.bmc_id.to_le_bytes(),
            &self.console_random,
            &self.bmc_random,
            &self.guid,
            &[self.role, self.username.len()],
            self.username.as_bytes(),
        ])
    }

    fn with_rakp3_parts<T>(&self, run: impl FnOnce(&[&[u8]]) -> T) -> T {
        run(&[
            &self.bmc_random,
            &self.console_id.to_le_bytes(),
            &[self.role, self.username.len()],
            self.username.as_bytes(),
        ])
    }

    fn with_rakp4_parts<T>(&self, run: impl FnOnce(&[&[u8]]) -> T) -> T {
        run(&[&self.console_random, &self.bmc_id.to_le_bytes(), &self.guid])
    }
}
