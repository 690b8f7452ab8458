//! What can this machine not run, and why? Takes a test's name and the reason; writes both into the list that
//! `make test` prints at its end (the file that `CONVENE_SKIPPED` names, else stderr). It never lets a test vanish
//! silently, and with `CONVENE_STRICT=1`, as in `.ci/run`, it panics, since nothing may be skipped there.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Notes that `test` was not run on this machine. Panics when `CONVENE_STRICT` is 1, or when the list cannot be written.
pub fn skip(test: &str, reason: &str) {
    let strict = std::env::var_os("CONVENE_STRICT").is_some_and(|v| v == "1");
    note(std::env::var_os("CONVENE_SKIPPED").as_deref(), strict, test, reason);
}

/// The same with the settings given.
pub fn note(list: Option<&OsStr>, strict: bool, test: &str, reason: &str) {
    assert!(!strict, "{test} cannot run here, and CONVENE_STRICT=1 allows no skipping: {reason}");
    let line = format!("{test}: {}\n", reason.trim().replace('\n', " "));
    let Some(list) = list.filter(|l| !l.is_empty()) else {
        // Not eprintln!, which the test harness keeps to itself when a test passes.
        let _ = write!(std::io::stderr(), "skipped {line}");
        return;
    };
    // One write, so that tests that run at once do not mix their lines.
    let opened = std::fs::File::options().create(true).append(true).open(list);
    opened
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|e| panic!("could not note the skipped test in {}: {e}", list.display()));
}

/// Whether `test` can have PID namespaces of its own; if not, that is noted. Tried once for all tests of a binary.
pub fn needs_unshare(test: &str) -> bool {
    static WORKS: OnceLock<Result<(), String>> = OnceLock::new();
    let works = WORKS.get_or_init(|| {
        let mut command = Command::new("unshare");
        command.args(["-pfm", "--mount-proc", "true"]).stdin(Stdio::null());
        match command.output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(format!("`unshare -pfm --mount-proc` does not work here ({said}); as root in a plain VM it does"))
            }
            Err(e) => Err(format!("`unshare` of util-linux cannot be started ({e})")),
        }
    });
    noted(test, works.as_ref().err())
}

/// Whether `test` runs as root; if not, that is noted.
pub fn needs_root(test: &str) -> bool {
    let reason = "it must run as root".to_owned();
    noted(test, (!nix::unistd::geteuid().is_root()).then_some(&reason))
}

/// Whether `test` runs as somebody whom file modes bind; if not (root), that is noted.
pub fn needs_non_root(test: &str) -> bool {
    let reason = "it must not run as root, whom file modes do not bind".to_owned();
    noted(test, nix::unistd::geteuid().is_root().then_some(&reason))
}

/// Whether `program` is on PATH; if not, that is noted.
pub fn needs_program(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = super::consul::on_path(&path, program).is_some();
    noted(test, (!found).then(|| format!("there is no `{program}` on PATH")).as_ref())
}

/// The Consul that `test` runs, or none, and that is noted.
pub fn needs_consul(test: &str) -> Option<std::path::PathBuf> {
    match super::consul::find() {
        Ok(consul) => Some(consul),
        Err(reason) => {
            skip(test, &reason);
            None
        }
    }
}

/// The program that breaks parts of the test cluster (`CONVENE_E2E_CLUSTER`: its `cut`, `heal`, `kill-node`, `stop` and
/// `up`), or none, and that is noted.
pub fn needs_cluster_tool(test: &str) -> Option<std::path::PathBuf> {
    let tool = std::env::var_os("CONVENE_E2E_CLUSTER").filter(|tool| !tool.is_empty());
    noted(test, tool.is_none().then(|| "CONVENE_E2E_CLUSTER names no program that breaks the cluster".into()).as_ref());
    tool.map(Into::into)
}

fn noted(test: &str, reason: Option<&String>) -> bool {
    if let Some(reason) = reason {
        skip(test, reason);
    }
    reason.is_none()
}
