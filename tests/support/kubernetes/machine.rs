//! Which processes run in the Pods? For a cluster whose nodes are all on this machine, as those are that a test may break.
//!
//! Takes a namespace and what is asked of each process; gives their numbers, as this machine counts them. A process that ends
//! while it is looked at is none.

use nix::unistd::Pid;
use std::fs;

/// A process of a Pod.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    environ: Vec<u8>,
}

/// Those of a namespace's Pods that fit.
pub fn processes(namespace: &str, fits: impl Fn(&Process) -> bool) -> Vec<Pid> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let process = |pid| Some(Process { pid, environ: fs::read(format!("/proc/{pid}/environ")).ok()? });
    let ours = |process: &Process| process.has("POD_NAMESPACE", namespace) && fits(process);
    all.filter_map(process).filter(ours).map(|process| Pid::from_raw(process.pid)).collect()
}

// === impl Process ===

impl Process {
    /// Whether it is the first process of its container.
    pub fn is_first(&self) -> bool {
        let status = self.read("status");
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        inside.split_whitespace().nth(1) == Some("1")
    }

    /// Whether it is a Pod's agent.
    pub fn is_agent_of(&self, pod: &str) -> bool {
        self.has("POD_NAME", pod) && self.read("comm").trim() == "consul"
    }

    /// Whether it has a file open below a folder of this name.
    pub fn has_open(&self, folder: &str) -> bool {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        open.filter_map(|one| fs::read_link(one.path()).ok())
            .any(|path| path.components().any(|part| part.as_os_str() == folder))
    }

    /// Whether it was started with this variable.
    pub fn has(&self, variable: &str, value: &str) -> bool {
        let wanted = format!("{variable}={value}");
        self.environ.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default()
    }
}
