//! Who is left when CMD has ended? Takes CMD's former process ID, and signals each process that it left
//! behind.
//!
//! It never signals a process that is neither of our namespace as PID 1, nor our child, nor of CMD's group. Without
//! a /proc of this namespace it reaches, when not PID 1, CMD's group alone.

use std::collections::HashSet;
use std::fs;

use crate::process::field;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpid};

/// The processes that CMD left, and who was told what.
#[derive(Debug)]
pub(super) struct Stragglers {
    group: Pid,
    group_told: Option<Signal>,
    told: HashSet<(Pid, Signal)>,
}

impl Stragglers {
    /// Those that `child`, leader of its own process group, left behind.
    pub(super) fn of(child: Pid) -> Self {
        Self { group: child, group_told: None, told: HashSet::new() }
    }

    /// Sends `signal` to each that has not had it from us: a handler that works must not be disturbed by
    /// a second one. Whoever is forked later is left to the KILL.
    pub(super) fn send(&mut self, signal: Signal) {
        let group_is_new = self.group_told.replace(signal) != Some(signal);
        if getpid().as_raw() == 1 {
            if group_is_new || signal == Signal::SIGKILL {
                // As PID 1 this is everybody else in the namespace (kill(2)).
                let _ = kill(Pid::from_raw(-1), signal);
            }
            return;
        }
        if group_is_new || signal == Signal::SIGKILL {
            let _ = killpg(self.group, signal);
        }
        let children: Vec<Pid> = children_outside(self.group);
        // A reaped child's number may come back for another one.
        self.told.retain(|(pid, _)| children.contains(pid));
        for pid in children {
            if self.told.insert((pid, signal)) {
                let _ = kill(pid, signal);
            }
        }
    }
}

/// Our living children that are not in `group`.
fn children_outside(group: Pid) -> Vec<Pid> {
    let me = getpid();
    // Another namespace's /proc has other numbers, which would name strangers.
    if fs::read_link("/proc/self").ok() != Some(me.to_string().into()) {
        return Vec::new();
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|process| process.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == me && stat.group != group))
        .collect()
}

/// What /proc says of one process (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// Field 4.
    parent: Pid,
    /// Field 5.
    group: Pid,
    /// Field 52, in the form of waitpid(2).
    pub(super) exit_code: i32,
}

/// None when there is no such process, or no /proc.
pub(super) fn stat(pid: Pid) -> Option<Stat> {
    read_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn read_stat(line: &[u8]) -> Option<Stat> {
    let parent = Pid::from_raw(field(line, 4)?);
    Some(Stat { parent, group: Pid::from_raw(field(line, 5)?), exit_code: field(line, 52)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let mut line = b"12 (a) S 1 (b) Z 7 8".to_vec();
        line.extend(" 0".repeat(46).bytes());
        line.extend(b" 34\n");
        let expected = Stat { parent: Pid::from_raw(7), group: Pid::from_raw(8), exit_code: 34 };
        assert_eq!(read_stat(&line), Some(expected));
        assert_eq!(read_stat(b"12 (a) S 1"), None);
        assert_eq!(read_stat(b""), None);
    }
}
