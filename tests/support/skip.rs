//! What this machine cannot run is named with its reason, and never passes silently.
use std::io::Write;
/// Notes it.
#[track_caller]
pub fn skip(test: &str, reason: &str) {
    assert!(std::env::var("CONVENE_STRICT").as_deref() != Ok("1"), "{test} may not be skipped here: {reason}");
    match std::env::var_os("CONVENE_SKIPPED") {
        Some(file) => writeln!(std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap(), "{test}: {reason}").unwrap(),
        None => eprintln!("skipped: {test}: {reason}"),
    }
}
/// Whether a mount namespace can be made.
pub fn can_mount() -> bool {
    std::process::Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success())
}
