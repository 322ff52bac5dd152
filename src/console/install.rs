//! The disks that the system may be copied to, as a person at the console sees and names them.

use super::dialogue::Request;
use super::text::plain;
use super::view::View;
use crate::supervise::install::Disk;

/// What is said above the field.
pub(super) fn body(view: &View) -> Vec<String> {
    let mut lines: Vec<_> = disks(view).iter().map(line).collect();
    if lines.is_empty() {
        lines.push("There is no disk but the one that this box runs from.".to_owned());
    }
    lines
        .push("The system that runs is copied to the disk that you name. All that is on that disk is lost.".to_owned());
    lines
}

fn line(disk: &Disk) -> String {
    let holds = plain(&disk.holds);
    match &disk.unfit {
        None => plain(&format!("{disk}; holds {holds}")),
        Some(why) => plain(&format!("{disk}; not possible: {why}")),
    }
}

/// What is asked for when `name` is typed out.
pub(super) fn chosen(view: &View, name: &str) -> Result<Request, String> {
    match disks(view).iter().find(|disk| disk.name == name) {
        Some(Disk { unfit: None, octets, .. }) => Ok(Request::Install(name.to_owned(), *octets)),
        Some(Disk { unfit: Some(why), .. }) => Err(plain(&format!("Nothing can be installed on {name}: {why}."))),
        None => Err("That is the name of no disk in the list.".to_owned()),
    }
}

fn disks(view: &View) -> &[Disk] {
    view.init.as_ref().map_or(&[], |status| &status.installation.disks)
}
