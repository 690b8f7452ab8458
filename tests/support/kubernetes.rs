//! A real Kubernetes cluster, driven by `kubectl` as a person would: for `make e2e` and `make bench-cluster`.
//!
//! Takes what tests/e2e/with-cluster gives in the environment, and from [`namespace`] on a test's name and what it applies.
//! Gives a namespace that goes away by itself and leaves its logs behind when the test failed. [`image`] builds both images
//! once a process. It never touches anything outside the namespaces that it made, and fails by panicking.

pub mod breaking;
pub mod followed;
pub mod image;
pub mod machine;
pub mod namespace;
pub mod proxy;
pub mod secured;
pub mod source;
pub mod turn;
pub mod watcher;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What tests/e2e/with-cluster and the Makefile give.
#[derive(Debug, Clone)]
pub struct Given {
    /// The static release binary (`CONVENE_E2E_BINARY`).
    pub binary: PathBuf,
    /// Where results and temporary files go (`CONVENE_E2E_TARGET`): cargo's target folder.
    pub target: PathBuf,
    /// Makes an image available on every node (`CONVENE_E2E_LOAD`): a line for sh, with the image's name in `REF` and a
    /// docker-archive in `ARCHIVE`.
    pub load: String,
    /// Empties the volumes whose claim is gone (`CONVENE_E2E_VOLUMES`): a line for sh. Without it the cluster does so.
    pub volumes: Option<String>,
}

// === impl Given ===

impl Given {
    /// What the environment says.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let needed = |name: &str| set(name).unwrap_or_else(|| panic!("{name} is not set: call `make e2e`"));
        needed("KUBECONFIG");
        let target = PathBuf::from(needed("CONVENE_E2E_TARGET"));
        std::fs::create_dir_all(target.join("e2e")).unwrap();
        Self {
            binary: needed("CONVENE_E2E_BINARY").into(),
            target: target.canonicalize().unwrap(),
            load: needed("CONVENE_E2E_LOAD"),
            volumes: set("CONVENE_E2E_VOLUMES"),
        }
    }

    /// Empties the volumes whose claim is gone, where the cluster does not do so.
    pub fn empty_volumes(&self) -> Result<(), String> {
        let _kept = Self::keep_volumes();
        self.volumes.iter().try_for_each(|line| run(&mut shell(line)).map(|_| ()))
    }

    /// Nobody empties volumes meanwhile. Whoever does looks first which are free, and so must be alone in it.
    pub fn keep_volumes() -> MutexGuard<'static, ()> {
        static VOLUMES: Mutex<()> = Mutex::new(());
        VOLUMES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A folder for temporary files, which goes away by itself.
    pub fn scratch(&self, prefix: &str) -> tempfile::TempDir {
        tempfile::Builder::new().prefix(prefix).tempdir_in(self.target.join("e2e")).unwrap()
    }
}

/// A call of kubectl; nothing is read from stdin.
pub fn kubectl<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("kubectl");
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs to the end; stdout, or what went wrong.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("could not start {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} ended with {}: {}", output.status, said.trim()))
}

/// A line for sh, as the variables above hold it.
pub fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null());
    command
}

/// The names of the cluster's nodes.
pub fn nodes() -> Vec<String> {
    let listed = run(&mut kubectl(["get", "nodes", "-o", "name"])).unwrap_or_else(|why| panic!("{why}"));
    listed.lines().map(|line| line.trim_start_matches("node/").to_owned()).collect()
}

/// Of Kubernetes and Consul, for the head of a table.
pub fn versions() -> String {
    let kubernetes = run(&mut kubectl(["version", "-o", "json"])).unwrap_or_else(|why| panic!("{why}"));
    let kubernetes: Value = serde_json::from_str(&kubernetes).unwrap();
    let consul = super::consul::find().unwrap();
    let consul = run(Command::new(consul).arg("version")).unwrap_or_else(|why| panic!("{why}"));
    let kubernetes = kubernetes["serverVersion"]["gitVersion"].as_str().unwrap_or("?");
    format!("Kubernetes {kubernetes}, {}", consul.lines().next().unwrap_or("Consul ?"))
}

/// The security contexts of a Pod and of its container that the restricted Pod Security level asks for, with the user of both images.
pub fn restricted() -> (Value, Value) {
    (
        json!({"runAsNonRoot": true, "runAsUser": 100, "runAsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}),
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
    )
}

/// The repository's own folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
