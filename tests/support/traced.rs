//! What is left behind by a program that is killed between two of its system calls? Takes a call of `convene` and a function
//! that sees each of its first thread's system calls twice, as it begins and as it has ended, and says at which one the kill
//! comes. It fails by panicking where the kernel lets nobody trace.

use super::program::Convene;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A moment of a program's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    call: i64,
    begins: bool,
}

// === impl Moment ===

impl Moment {
    /// A system call begins; else it has ended.
    pub fn begins(self) -> bool {
        self.begins
    }

    /// A file is about to get or lose its name, or something is sent: about to be, or just was, since it may take effect although
    /// nobody hears the answer.
    pub fn is_of_a_deed(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let older = [libc::SYS_rename, libc::SYS_unlink];
        #[cfg(not(target_arch = "x86_64"))]
        let older = [];
        let names = [libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat];
        let sends = [libc::SYS_writev, libc::SYS_sendto, libc::SYS_sendmsg];
        sends.contains(&self.call) || (self.begins && names.iter().chain(&older).any(|call| *call == self.call))
    }
}

impl Moment {
    /// The file system, or what somebody reads of it, is about to change.
    pub fn is_of_a_write(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let older = [libc::SYS_rename, libc::SYS_unlink, libc::SYS_mkdir];
        #[cfg(not(target_arch = "x86_64"))]
        let older = [];
        let names = [libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat, libc::SYS_mkdirat];
        let writes = [libc::SYS_write, libc::SYS_copy_file_range, libc::SYS_fsync];
        self.begins && names.iter().chain(&writes).chain(&older).any(|call| *call == self.call)
    }
}

/// Runs a call until `is_last` says so, and kills it there; whether it came to its end before. One that execs once more has
/// come to its end as convene, and is killed.
pub fn killed_when(convene: Convene, mut is_last: impl FnMut(Moment) -> bool) -> bool {
    let pid = stopped(convene);
    let mut begins = true;
    loop {
        let status = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        let killed = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return true,
            WaitStatus::PtraceSyscall(_) => {
                let moment = Moment { call: call(pid), begins };
                begins = !begins;
                is_last(moment)
            }
            _ => false,
        };
        if killed || is_exec(status) {
            kill(pid, Signal::SIGKILL).unwrap();
            waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
            return !killed;
        }
        let signal = match status {
            WaitStatus::Stopped(_, signal) if signal != Signal::SIGSTOP && signal != Signal::SIGTRAP => Some(signal),
            _ => None,
        };
        ptrace::syscall(pid, signal).unwrap();
    }
}

fn is_exec(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::PtraceEvent(_, _, event) if event == ptrace::Event::PTRACE_EVENT_EXEC as i32)
}

/// The number of the system call in which it is stopped. The registers would need code for each architecture.
fn call(pid: Pid) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no system call: {text}"))
}

/// The call, traced and stopped right after its exec. Whoever traces it waits for it by its number.
#[expect(clippy::zombie_processes, reason = "waitpid takes its end")]
fn stopped(convene: Convene) -> Pid {
    let child = convene.after("sh", ["-c", "kill -STOP $$; exec \"$@\"", "sh"]).spawn_unheard();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    while !matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap(), WaitStatus::Stopped(_, Signal::SIGSTOP)) {}
    ptrace::seize(
        pid,
        ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACEEXEC
            | ptrace::Options::PTRACE_O_EXITKILL,
    )
    .unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    loop {
        let status = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        if is_exec(status) {
            break;
        }
        ptrace::cont(pid, None).unwrap();
    }
    // The exec itself is a system call, and ends after that event.
    ptrace::syscall(pid, None).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    ptrace::syscall(pid, None).unwrap();
    pid
}
