//! `pilotlight bundle`: makes keys and bundles, and shows what a bundle says.
//!
//! An edge, because it reads and writes files.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use ed25519_dalek::{SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::{KeyId, LARGEST_IMAGE, Manifest, open, sign};
use crate::slots::{Commit, Try, Version, partition};

/// Arguments of `pilotlight bundle`.
#[derive(Args)]
pub struct BundleArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key pair: PRIVATE for whoever signs, PRIVATE.pub for the boxes
    Keygen {
        /// Where the private key goes; it must not be there yet
        private: PathBuf,
    },
    /// Sign a slot image
    #[command(disable_version_flag = true)]
    Sign {
        /// The private key
        #[arg(long)]
        key: PathBuf,
        /// The kind of box it is for
        #[arg(long)]
        compatible: String,
        /// Its version (SemVer)
        #[arg(long)]
        version: String,
        /// The oldest version that may be updated to it
        #[arg(long)]
        minimum: Option<String>,
        /// The raw slot image
        image: PathBuf,
        /// Where the bundle goes
        bundle: PathBuf,
    },
    /// Verify a bundle and show what it says
    Inspect {
        /// The public key that it must be signed by
        #[arg(long)]
        key: PathBuf,
        /// The bundle
        bundle: PathBuf,
    },
    /// Write the state partition of a new disk: both slots hold the same system, A is committed
    #[command(disable_version_flag = true)]
    State {
        /// The version of both slots (SemVer)
        #[arg(long)]
        version: String,
        /// Where the 1 MiB go
        image: PathBuf,
    },
}

/// Runs it.
///
/// # Errors
///
/// What could not be read, written or verified.
pub fn run(args: BundleArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Keygen { private } => keygen(&private),
        Command::Sign { key, compatible, version, minimum, image, bundle } => {
            let minimum = minimum.as_deref().map(parse).transpose()?;
            let octets = fs::read(&image).with_context(|| format!("can't read {}", image.display()))?;
            anyhow::ensure!(
                !octets.is_empty() && octets.len() as u64 <= LARGEST_IMAGE,
                "an image has 1 to {LARGEST_IMAGE} octets"
            );
            let manifest = Manifest::of(&compatible, parse(&version)?, minimum, &octets, 1 << 20);
            let mut file = File::create(&bundle).with_context(|| format!("can't write {}", bundle.display()))?;
            file.write_all(&sign(&manifest, &private_key(&key)?))?;
            file.write_all(&octets)?;
            Ok(file.sync_all()?)
        }
        Command::Inspect { key, bundle } => inspect(&key, &bundle),
        Command::State { version, image } => {
            let version = parse(&version)?;
            // The salt is a box's own: init draws it at the first boot.
            let octets = partition(&Commit::first(Some(version)).encode(), &Try::first(String::new()).encode());
            fs::write(&image, octets).with_context(|| format!("can't write {}", image.display()))
        }
    }
}

fn keygen(private: &Path) -> anyhow::Result<()> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).context("no randomness")?;
    let key = SigningKey::from_bytes(&seed);
    let mut public = private.as_os_str().to_owned();
    public.push(".pub");
    // Neither takes the place of another: who has lost a private key still has boxes that trust the public one.
    let make = |path: &Path, mode, text: &str| -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let mut file = file.with_context(|| format!("can't make {}", path.display()))?;
        writeln!(file, "{text}")?;
        Ok(file.sync_all()?)
    };
    make(Path::new(&public), 0o644, &hex::encode(key.verifying_key().as_bytes()))?;
    if let Err(error) = make(private, 0o600, &Zeroizing::new(hex::encode(*seed))) {
        // Its other half is nowhere.
        fs::remove_file(&public)?;
        return Err(error);
    }
    Ok(writeln!(std::io::stdout(), "key {}", KeyId::of(&key.verifying_key()))?)
}

fn inspect(key: &Path, bundle: &Path) -> anyhow::Result<()> {
    let key = VerifyingKey::from_bytes(&*octets(key)?).context("this is no ed25519 public key")?;
    let file = File::open(bundle).with_context(|| format!("can't read {}", bundle.display()))?;
    let length = file.metadata()?.len();
    let opened = open(&mut BufReader::new(file), &[key])?;
    let manifest = opened.manifest;
    anyhow::ensure!(
        length == opened.image_at + manifest.size,
        "the bundle has {length} octets, not {}",
        opened.image_at + manifest.size
    );
    let mut out = std::io::stdout();
    writeln!(out, "compatible {}\nversion    {}", manifest.compatible, manifest.version)?;
    if let Some(minimum) = manifest.minimum {
        writeln!(out, "minimum    {minimum}")?;
    }
    Ok(writeln!(
        out,
        "image      {} octets in {} chunks\nkey        {}",
        manifest.size,
        manifest.hashes.len(),
        opened.key
    )?)
}

fn parse(text: &str) -> anyhow::Result<Version> {
    Version::parse(text).with_context(|| format!("{text} is no SemVer version of at most {} octets", Version::LONGEST))
}

fn private_key(path: &Path) -> anyhow::Result<SigningKey> {
    Ok(SigningKey::from_bytes(&*octets(path)?))
}

/// The 32 octets that a key file holds in hexadecimal digits.
fn octets(path: &Path) -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let text = Zeroizing::new(fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?);
    let mut octets = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), octets.as_mut()).with_context(|| format!("{} holds no key", path.display()))?;
    Ok(octets)
}
