//! Looks at a disk before it is written to.
//!
//! An edge, because it reads sysfs, the mount table and the swap table; what follows from them says [`super::judge`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::Target;

/// What there is to know about `path`.
///
/// # Errors
///
/// When it can't be looked at.
pub fn inspect(path: &Path) -> io::Result<Target> {
    let metadata = fs::metadata(path)?;
    if !metadata.file_type().is_block_device() {
        return Ok(Target::default());
    }
    let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    let directory = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default().trim().to_owned();
    let sectors: u64 = text("size").parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Target {
        is_block: true,
        is_partition: directory.join("partition").exists(),
        is_read_only: text("ro") == "1",
        octets: sectors * 512,
        uses: uses(&directory),
        model: text("device/model"),
    })
}

/// Opens the disk for writing. The kernel refuses when something holds it, as a mount does.
///
/// # Errors
///
/// The kernel's.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path)
}

/// What uses the disk with this directory in sysfs, or one of its partitions.
fn uses(directory: &Path) -> Vec<String> {
    let parts = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = parts.filter(|path| path.join("partition").exists()).collect();
    all.push(directory.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut uses = Vec::new();
    for part in &all {
        let number = fs::read_to_string(part.join("dev")).unwrap_or_default();
        uses.extend(mounted_at(&mounts, number.trim()));
        let node = Path::new("/dev").join(part.file_name().unwrap_or_default());
        if swaps.lines().filter_map(|line| line.split_whitespace().next()).any(|swap| Path::new(swap) == node) {
            uses.push(format!("swap on {}", node.display()));
        }
        let holders = fs::read_dir(part.join("holders")).into_iter().flatten().flatten();
        uses.extend(holders.map(|holder| holder.file_name().to_string_lossy().into_owned()));
    }
    uses.sort();
    uses.dedup();
    uses
}

/// Where the device `number` is mounted, by the text of /proc/self/mountinfo (proc(5)).
fn mounted_at<'a>(mounts: &'a str, number: &'a str) -> impl Iterator<Item = String> + 'a {
    mounts.lines().filter_map(move |line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields.get(2) == Some(&number)).then(|| fields.get(4).map(|target| (*target).to_owned())).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_tells_where_a_disk_is_mounted() {
        let table =
            "36 35 98:0 /mnt1 /data rw,noatime master:1 - ext4 /dev/root rw\n37 35 98:1 / /x rw - ext4 a b\nx\n";
        assert_eq!(mounted_at(table, "98:0").collect::<Vec<_>>(), ["/data"]);
        assert_eq!(mounted_at(table, "98:2").count(), 0);
    }

    #[test]
    fn what_is_no_disk_is_seen_to_be_none() {
        assert_eq!(inspect(Path::new("/dev/null")).unwrap(), Target::default());
        assert_eq!(inspect(Path::new("/proc/self/exe")).unwrap(), Target::default());
    }
}
