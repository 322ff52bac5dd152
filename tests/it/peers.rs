//! Real peers: programs that this project did not write.

use std::io::Write;

/// A line on the test run's own output, which the harness does not keep back when the test passes.
pub fn say(line: &str) {
    // A closed stderr is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Whether `tool` is on the PATH. Without it the test says so in one line and passes, unless PILOTLIGHT_REQUIRE_PEERS=1.
pub fn require(tool: &str, package: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(tool).is_file())
    });
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(found || !required, "{tool} is required (apt-get install {package})");
    if !found {
        say(&format!("skipped: {tool} is missing (apt-get install {package})"));
    }
    found
}
