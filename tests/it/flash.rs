//! `pilotlight flash` against loop devices: what it refuses, and what it writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::peers;

const MIB: u64 = 1 << 20;

/// A loop device over a file of zeroes.
struct Disk {
    node: PathBuf,
    file: PathBuf,
}

impl Disk {
    fn new(directory: &TempDir, name: &str, octets: u64, options: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            peers::say("skipped: only root makes loop devices");
            return None;
        }
        if !peers::require("losetup", "mount") {
            return None;
        }
        let file = directory.path().join(name);
        File::create(&file).unwrap().set_len(octets).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).args(options).arg(&file).output().unwrap();
        if !output.status.success() {
            peers::say(&format!("skipped: no loop device: {}", String::from_utf8_lossy(&output.stderr).trim()));
            return None;
        }
        Some(Self { node: String::from_utf8(output.stdout).unwrap().trim().into(), file })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.node).status();
    }
}

fn image(directory: &TempDir, octets: u64) -> PathBuf {
    let path = directory.path().join("image");
    let content: Vec<u8> = (0..octets).map(|at| (at * 31 + at / 4093) as u8).collect();
    fs::write(&path, content).unwrap();
    path
}

fn flash(device: &Path, image: &Path) -> (bool, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_pilotlight"))
        .args(["flash", "--yes"])
        .args([device, image])
        .output()
        .expect("pilotlight starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_free_disk_gets_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(&directory, "disk", 8 * MIB, &[]) else { return };
    let image = image(&directory, 5 * MIB + 512);
    let (success, said) = flash(&disk.node, &image);
    assert!(success, "{said}");
    assert!(said.contains("written and verified"), "{said}");
    let (written, wanted) = (fs::read(&disk.file).unwrap(), fs::read(&image).unwrap());
    assert!(written[..wanted.len()] == wanted && written[wanted.len()..].iter().all(|octet| *octet == 0));
}

#[test]
fn what_is_no_free_disk_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(&directory, 4 * MIB);
    let file = directory.path().join("file");
    fs::write(&file, "mine").unwrap();
    for no_disk in [file.as_path(), Path::new("/dev/null"), directory.path()] {
        let (success, said) = flash(no_disk, &image);
        assert!(!success && said.contains("it is no disk"), "{said}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let Some(small) = Disk::new(&directory, "small", 4 * MIB - 512, &[]) else { return };
    let (success, said) = flash(&small.node, &image);
    assert!(!success && said.contains("the image 4194304"), "{said}");
    let Some(protected) = Disk::new(&directory, "protected", 4 * MIB, &["--read-only"]) else { return };
    let (success, said) = flash(&protected.node, &image);
    assert!(!success && said.contains("write-protected"), "{said}");
}

#[test]
fn a_mounted_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(&directory, "disk", 16 * MIB, &[]) else { return };
    if !peers::require("mkfs.ext4", "e2fsprogs") {
        return;
    }
    let made = Command::new("mkfs.ext4").arg("-q").arg(&disk.node).status().unwrap();
    assert!(made.success());
    let target = directory.path().join("mounted");
    fs::create_dir(&target).unwrap();
    // Mounted for as long as the command runs, in a mount namespace that ends with it.
    let script = "mount \"$0\" \"$1\" && exec \"$2\" flash --yes \"$0\" \"$3\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([&disk.node, &target, Path::new(env!("CARGO_BIN_EXE_pilotlight")), &image(&directory, 4 * MIB)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("it is in use: /"), "{said}");
}
