//! The lab in a storm: every fault at random, the provider killed among them, and every machine right in the end.

use std::process::Command;

#[test]
fn five_machines_live_through_a_storm() {
    let lab = Command::new(env!("CARGO_BIN_EXE_pilotlight"))
        .args(["lab", "--machines", "5", "--once", "--chaos", "11", "--timeout", "45s"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&lab.stdout);
    assert!(lab.status.success(), "{told}\n{}", String::from_utf8_lossy(&lab.stderr));
    assert!(told.contains("chaos with seed 11") && told.contains(" faults: "), "{told}");
    assert!(told.contains("5 machines in "), "{told}");
}
