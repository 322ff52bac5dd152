//! What is left of machines that Omni has forgotten while this provider was away: Omni strips a removed provider's
//! finalizers, and then nobody has told us to clean up.
//!
//! Pure.

use std::collections::BTreeSet;

use crate::machine::MachineId;

/// The machines whose resources are to be collected: those that own some, that Omni does not know, and that nobody here
/// works on.
///
/// `confirmed` says that the view is Omni's, whole and of this moment. In any other view a machine may be missing because
/// it was not read yet, so then there are none.
pub fn orphans(
    confirmed: bool,
    known: &BTreeSet<MachineId>,
    owners: &BTreeSet<MachineId>,
    running: impl Fn(&MachineId) -> bool,
) -> Vec<MachineId> {
    if !confirmed {
        return Vec::new();
    }
    owners.difference(known).filter(|id| !running(id)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u32]) -> BTreeSet<MachineId> {
        numbers.iter().map(|number| format!("4c4c4544-0042-3510-8054-{number:012x}").parse().unwrap()).collect()
    }

    #[test]
    fn only_what_omni_surely_forgot_and_nobody_works_on_is_collected() {
        let (known, owners) = (ids(&[1, 2]), ids(&[2, 3, 4]));
        let busy = ids(&[4]);
        let running = |id: &MachineId| busy.contains(id);
        assert_eq!(orphans(true, &known, &owners, running), ids(&[3]).into_iter().collect::<Vec<_>>());
        assert_eq!(orphans(false, &known, &owners, running), []);
        assert_eq!(orphans(true, &ids(&[2, 3, 4]), &owners, running), []);
    }

    #[test]
    fn an_omni_that_forgot_everything_is_believed_once_it_is_confirmed() {
        let owners = ids(&[1, 2]);
        assert_eq!(orphans(true, &BTreeSet::new(), &owners, |_| false).len(), 2);
    }
}
