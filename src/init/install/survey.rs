//! Which disks are there besides the one that the box runs from.
//!
//! An edge, because it reads sysfs and disks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::flash::{judge, target};
use crate::init::disks;
use crate::supervise::install::content::{self, LOOKED_AT};
use crate::supervise::install::{Bus, Disk, MOST, plain};
use crate::sys::block;
use crate::wire::gpt::{Partition, SECTOR};

/// All of them, by name, each with why nothing that needs `needs` octets can be installed on it. Never the `own` disk.
pub(super) fn disks(own: &str, needs: u64) -> Vec<Disk> {
    let others = disks::names().into_iter().filter(|name| name != own);
    others.filter_map(|name| disk(name, needs)).take(MOST).collect()
}

/// `None` for what is no disk that one could boot from, such as memory, a loop, or a drive for discs.
fn disk(name: String, needs: u64) -> Option<Disk> {
    let directory = fs::canonicalize(Path::new("/sys/class/block").join(&name)).ok()?;
    if !directory.join("device").exists() || name.starts_with("sr") {
        return None;
    }
    let text = |file: &str| plain(&fs::read_to_string(directory.join("device").join(file)).unwrap_or_default());
    // What speaks ATA has its maker in its model. A card has a name.
    let parts = [text("vendor"), text("model"), text("name")];
    let said = parts.into_iter().filter(|part| !part.is_empty() && part != "ATA" && !part.starts_with("0x"));
    let model = plain(&said.collect::<Vec<_>>().join(" "));
    let path = Path::new("/dev").join(&name);
    let looked = target::inspect(&path).ok()?;
    let (holds, sector) = look(&path);
    let unfit = match judge(&looked, needs) {
        Err(refusal) => Some(refusal.to_string()),
        Ok(()) if sector.is_some_and(|octets| octets != SECTOR) => Some("its sectors are not of 512 octets".to_owned()),
        Ok(()) => None,
    };
    let bus = Bus::of(&directory.to_string_lossy());
    Some(Disk { name, model, bus, octets: looked.octets, holds, unfit })
}

/// What a disk holds, and how many octets its sectors have.
fn look(path: &Path) -> (String, Option<usize>) {
    let Ok(file) = File::open(path) else { return ("it can't be read".to_owned(), None) };
    let mut beginning = vec![0; LOOKED_AT];
    if let Err(error) = file.read_exact_at(&mut beginning, 0) {
        return (format!("it can't be read: {error}"), None);
    }
    let tables = disks::read_tables(&file).ok();
    let partitions: Option<Vec<Partition>> = tables.and_then(|tables| Some(tables.valid().ok()?.partitions()));
    (content::of(&beginning, partitions.as_deref()), block::octets_of_sector(&file).ok())
}
