//! The Pods of a namespace as they change: Kubernetes tells them. Whoever asks 20 times a second instead takes a tenth of a second or
//! more of a small machine's each second from what is measured (a formation took 0.7 s longer, of 6 s).
//!
//! Takes a namespace and a label selector; gives the Pods as they are. Panics once nobody tells any more. Ends with the value.

use super::kubectl;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Pods that are followed.
#[derive(Debug)]
pub struct Followed {
    process: Child,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

#[derive(Debug, Default)]
struct Seen {
    pods: BTreeMap<String, Value>,
    changes: u64,
    ended: bool,
}

// === impl Followed ===

impl Followed {
    /// Begins.
    pub fn new(namespace: &str, selector: &str) -> Self {
        let mut command = kubectl(["-n", namespace, "get", "pods", "-l", selector, "-o", "json"]);
        command.args(["--watch", "--output-watch-events"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("kubectl starts");
        let told = BufReader::new(process.stdout.take().expect("it is piped"));
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let here = Arc::clone(&seen);
        std::thread::spawn(move || {
            for event in serde_json::Deserializer::from_reader(told).into_iter::<Value>() {
                let Ok(mut event) = event else { break };
                if event["type"] == "ERROR" {
                    break;
                }
                let pod = event["object"].take();
                let mut seen = here.0.lock().unwrap();
                let uid = text(&pod["metadata"]["uid"]);
                if event["type"] == "DELETED" {
                    seen.pods.remove(&uid);
                } else {
                    seen.pods.insert(uid, pod);
                }
                seen.changes += 1;
                here.1.notify_all();
            }
            here.0.lock().unwrap().ended = true;
            here.1.notify_all();
        });
        Self { process, seen }
    }

    /// The Pods now.
    pub fn pods(&self) -> Vec<Value> {
        self.lock().pods.values().cloned().collect()
    }

    /// The UIDs of the Pods now.
    pub fn uids(&self) -> BTreeSet<String> {
        self.lock().pods.keys().cloned().collect()
    }

    /// The address of a Pod now.
    pub fn address(&self, pod: &str) -> Option<IpAddr> {
        let seen = self.lock();
        let mut named = seen.pods.values().filter(|one| one["metadata"]["name"] == pod);
        named.find_map(|one| one["status"]["podIP"].as_str()?.parse().ok())
    }

    /// Waits for a change until the time is over; gives the Pods.
    pub fn changed(&self, within: Duration) -> Vec<Value> {
        let seen = self.lock();
        let before = seen.changes;
        let (seen, _) =
            self.seen.1.wait_timeout_while(seen, within, |seen| seen.changes == before && !seen.ended).unwrap();
        seen.pods.values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        let seen = self.seen.0.lock().unwrap();
        // Pods that stay as they were would be taken for well.
        assert!(!seen.ended, "kubectl's watch of the Pods ended");
        seen
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
