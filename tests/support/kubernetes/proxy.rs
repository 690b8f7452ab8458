//! The Kubernetes API as plain HTTP on a Unix socket, by `kubectl proxy`: a question costs a few milliseconds and no process,
//! so that a bench may ask often on a small machine. Takes a folder for the socket; ends with the value.

use super::super::cluster::exchange;
use super::shell;
use serde_json::Value;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A guard against hanging, no measure.
const START: Duration = Duration::from_secs(30);
/// Consul holds a question for 7 s when it has no leader.
pub const ANSWER: Duration = Duration::from_secs(15);

/// A running `kubectl proxy`.
#[derive(Debug)]
pub struct Proxy {
    process: Child,
    socket: PathBuf,
    headers: String,
}

// === impl Proxy ===

impl Proxy {
    /// Starts one; only this user reaches it. Each question has `headers`, which the Kubernetes API hands on to Pods.
    pub fn start(folder: &Path, headers: &str) -> Self {
        let socket = folder.join("api");
        // It ends with its stdin: a test that is killed leaves nobody behind who has its rights. It tells of each request that was
        // given up, as of a fault.
        let mut command = shell("kubectl proxy --unix-socket=\"$SOCKET\" >/dev/null 2>&1 & read -r _; kill $!");
        let process = command.env("SOCKET", &socket).stdin(Stdio::piped()).spawn().expect("sh starts");
        let proxy = Self { process, socket, headers: format!("Host: localhost\r\n{headers}") };
        let begun = Instant::now();
        while UnixStream::connect(&proxy.socket).is_err() {
            assert!(begun.elapsed() < START, "kubectl proxy does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        proxy
    }

    /// One request; `None` when nothing is answered.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        self.request_within(ANSWER, method, path, body)
    }

    /// The same for whoever has less patience.
    pub fn request_within(&self, patience: Duration, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        exchange(stream, &self.headers, method, path, body)
    }

    /// GETs; `None` when nothing or an error is answered.
    pub fn get(&self, path: &str) -> Option<Value> {
        let (status, body) = self.request("GET", path, "")?;
        (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Closes its stdin first.
        let _ = self.process.wait();
    }
}
