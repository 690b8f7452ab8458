//! An init: starts one program, hands signals on, reaps, and ends with the program's exit code.
//!
//! Takes CMD and the signals, gives [`Happened`]. All signals are blocked and read from a signalfd, none is handled: so the
//! dispositions stay what they were, a signal is kept even for PID 1 (which the kernel otherwise spares every signal without a
//! handler), and none is lost between fork and exec. The child gets the original mask back, SIGPIPE's default (Rust's runtime
//! ignores it) and a process group of its own. One owner of `waitpid(-1)`: this. Cannot panic. Real-time signals are not
//! handed on: nothing that runs under an init uses them on it.

use crate::exit::Code;
use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};
use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::io::{IsTerminal, stdin};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

/// What went wrong with the signals.
#[derive(Debug, Error)]
pub enum Pid1Error {
    /// The mask or the signalfd.
    #[error("could not take over the signals: {0}")]
    Signals(#[source] Errno),
}

/// Why CMD does not run.
#[derive(Debug, Error)]
pub enum StartError {
    /// No such program.
    #[error("could not start {program:?}: not found; look at CMD's spelling and at PATH")]
    NotFound {
        /// CMD's first word.
        program: OsString,
    },
    /// It is there but is no program for us.
    #[error("could not start {program:?}: {cause}; it must be an executable file for this machine")]
    NotExecutable {
        /// CMD's first word.
        program: OsString,
        /// The kernel's word for it.
        #[source]
        cause: Errno,
    },
    /// The kernel would not.
    #[error("could not start {program:?}: {cause}")]
    Spawn {
        /// CMD's first word.
        program: OsString,
        /// The kernel's word for it.
        #[source]
        cause: Errno,
    },
}

/// All signals of this process, blocked and readable.
#[derive(Debug)]
pub struct Signals {
    original: SigSet,
    waiting: Source,
}

/// A signalfd, registered with the event loop once there is one.
#[derive(Debug)]
enum Source {
    Plain(SignalFd),
    Registered(AsyncFd<SignalFd>),
    /// The event loop refused it, so it is polled.
    Polled(SignalFd),
    Gone,
}

/// What happened next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// CMD ended: its own exit code, or 128+n.
    Ended(u8),
    /// We got a signal, which is not handed on yet.
    Signalled(Signal),
}

/// One program under supervision.
#[derive(Debug)]
pub struct Supervisor {
    signals: Signals,
    child: Pid,
    ended: Option<u8>,
}

// === impl StartError ===

impl StartError {
    fn new(program: &OsString, cause: Errno) -> Self {
        let program = program.clone();
        match cause {
            Errno::ENOENT | Errno::ENOTDIR => Self::NotFound { program },
            Errno::EACCES | Errno::ENOEXEC | Errno::EISDIR | Errno::ELIBBAD | Errno::ETXTBSY | Errno::EPERM => {
                Self::NotExecutable { program, cause }
            }
            _ => Self::Spawn { program, cause },
        }
    }

    /// The exit code that tells this, as shells use it.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::NotExecutable { .. } => Code::NotExecutable,
            Self::Spawn { .. } => Code::Spawn,
        }
    }
}

/// The exit code of a process that a signal ended.
pub fn killed_by(signal: Signal) -> u8 {
    u8::try_from(signal as i32).unwrap_or(0).saturating_add(128)
}

// === impl Signals ===

impl Signals {
    /// Blocks every signal that can be blocked. Must be called before any thread is started, since threads inherit the mask.
    ///
    /// # Errors
    /// [`Pid1Error`].
    pub fn block() -> Result<Self, Pid1Error> {
        let all = handed_on(true);
        let original = all.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(Pid1Error::Signals)?;
        let fd =
            SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(Pid1Error::Signals)?;
        Ok(Self { original, waiting: Source::Plain(fd) })
    }

    /// The next signal. Nothing is lost when this is dropped before it is done.
    pub async fn next(&mut self) -> Signal {
        if let Source::Plain(_) = self.waiting {
            self.register();
        }
        loop {
            if let Some(signal) = self.read() {
                return signal;
            }
            match &self.waiting {
                Source::Registered(fd) => match fd.readable().await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                },
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// A TERM, INT or QUIT that is waiting already.
    pub fn pending_stop(&mut self) -> Option<Signal> {
        std::iter::from_fn(|| self.read())
            .find(|signal| matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT))
    }

    fn register(&mut self) {
        let Source::Plain(fd) = std::mem::replace(&mut self.waiting, Source::Gone) else { return };
        // Its successor is an unsafe function, whose condition (the descriptor is ours and stays open) a SignalFd fulfils.
        #[expect(deprecated, reason = "the safe form of AsyncFd::register; sound for an owned descriptor")]
        let registered = AsyncFd::try_new(fd);
        self.waiting = match registered {
            Ok(registered) => Source::Registered(registered),
            Err(refused) => Source::Polled(refused.into_parts().0),
        };
    }

    fn read(&self) -> Option<Signal> {
        let fd = match &self.waiting {
            Source::Plain(fd) | Source::Polled(fd) => fd,
            Source::Registered(fd) => fd.get_ref(),
            Source::Gone => return None,
        };
        let info = fd.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }

    /// Gives the original mask back.
    fn restore(self) {
        let original = self.original;
        drop(self.waiting);
        // It was the mask of this thread before, so the kernel takes it.
        let _ = original.thread_set_mask();
    }
}

/// Every signal 1 to 31 that can be blocked; CHLD only on demand, as it is ours.
fn handed_on(with_chld: bool) -> SigSet {
    Signal::iterator()
        .filter(|signal| {
            !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) && (with_chld || *signal != Signal::SIGCHLD)
        })
        .collect()
}

/// Replaces this process by CMD, with the original mask. Returns only if that failed.
pub fn exec(signals: Signals, command: &[OsString]) -> StartError {
    let (program, arguments) = split(command);
    signals.restore();
    // std gives SIGPIPE its default back.
    let error = Command::new(&program).args(arguments).exec();
    StartError::new(&program, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// An init and nothing else: hands every signal on until CMD has ended; gives its exit code.
///
/// # Errors
/// [`StartError`].
pub async fn plain(signals: Signals, command: &[OsString], stragglers: Duration) -> Result<u8, StartError> {
    let mut supervisor = Supervisor::start(signals, command)?;
    loop {
        match supervisor.next().await {
            Happened::Signalled(signal) => supervisor.forward(signal),
            Happened::Ended(code) => {
                supervisor.finish(Instant::now() + stragglers).await;
                return Ok(code);
            }
        }
    }
}

// === impl Supervisor ===

impl Supervisor {
    /// Starts CMD. Must be called within the event loop.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(signals: Signals, command: &[OsString]) -> Result<Self, StartError> {
        let (program, _) = split(command);
        if getpid() != Pid::from_raw(1) {
            // Without it orphans go to another reaper, which is how it was before; nothing of CMD's own is lost.
            let _ = set_child_subreaper(true);
        }
        undo_ignored_chld();
        let child = spawn(&signals.original, command).map_err(|cause| StartError::new(&program, cause))?;
        hand_terminal_to(child, getpgrp());
        Ok(Self { signals, child, ended: None })
    }

    /// CMD's process.
    pub fn child(&self) -> Pid {
        self.child
    }

    /// Reaps whatever has ended, and gives the next thing that matters. Nothing is lost when this is dropped before it is done.
    pub async fn next(&mut self) -> Happened {
        loop {
            self.reap();
            if let Some(code) = self.ended {
                return Happened::Ended(code);
            }
            match self.signals.next().await {
                Signal::SIGCHLD => {}
                signal => return Happened::Signalled(signal),
            }
        }
    }

    /// Hands a signal to CMD. One that has just ended does not need it any more.
    pub fn forward(&self, signal: Signal) {
        if self.ended.is_none() {
            let _ = kill(self.child, signal);
        }
    }

    /// Ends what CMD left behind: TERM to each straggler, KILL to those that are there at the deadline.
    pub async fn finish(mut self, deadline: Instant) {
        hand_terminal_to(getpgrp(), self.child);
        let mut told = BTreeSet::new();
        while self.reap() {
            self.tell_stragglers(&mut told);
            if timeout_at(deadline, self.signals.next()).await.is_err() {
                break;
            }
        }
        // Those that a killed one leaves behind become ours in turn.
        let end = Instant::now() + Duration::from_secs(1);
        while self.reap() && Instant::now() < end {
            for straggler in self.stragglers() {
                let _ = kill(straggler, Signal::SIGKILL);
            }
            let _ = timeout_at(Instant::now() + Duration::from_millis(50), self.signals.next()).await;
        }
    }

    fn tell_stragglers(&self, told: &mut BTreeSet<Pid>) {
        for straggler in self.stragglers() {
            if told.insert(straggler) {
                let _ = kill(straggler, Signal::SIGTERM);
            }
        }
    }

    /// Our remaining children: as PID 1 or subreaper every orphan becomes one.
    fn stragglers(&self) -> Vec<Pid> {
        let Ok(listed) = std::fs::read_to_string(format!("/proc/self/task/{}/children", getpid())) else {
            // A kernel without that file: CMD's process group is what is known.
            return vec![Pid::from_raw(-self.child.as_raw())];
        };
        listed.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    }

    /// Takes every child that has ended; whether any child is left.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, killed_by(signal)),
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return false,
            };
            if pid == self.child {
                self.ended = Some(code);
            }
        }
    }
}

/// CMD's first word and the rest. The settings have refused an empty CMD.
fn split(command: &[OsString]) -> (OsString, &[OsString]) {
    command
        .split_first()
        .map_or_else(|| (OsString::new(), command), |(program, arguments)| (program.clone(), arguments))
}

/// A parent that ignored CHLD hands that on to us, and then the kernel reaps our children itself and their exit codes are
/// lost. Any handler ends that; the signal stays blocked and comes by the signalfd all the same.
fn undo_ignored_chld() {
    // Fails only where signals cannot be registered at all; the exit code is then 0 at worst.
    if let Ok(stream) = signal(SignalKind::child()) {
        drop(stream);
    }
}

fn spawn(original: &SigSet, command: &[OsString]) -> Result<Pid, Errno> {
    let strings = |all: Vec<OsString>| {
        all.into_iter()
            .map(|one| CString::new(one.into_vec()).map_err(|_| Errno::EINVAL))
            .collect::<Result<Vec<_>, _>>()
    };
    let arguments = strings(command.to_vec())?;
    let program = arguments.first().ok_or(Errno::ENOENT)?;
    let environment = std::env::vars_os().map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        key
    });
    let environment = strings(environment.collect())?;
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETPGROUP,
    )?;
    attributes.set_sigmask(original)?;
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    posix_spawnp(program, &PosixSpawnFileActions::init()?, &attributes, &arguments, &environment)
}

/// On a terminal that belongs to the group `from`, another group reads from now on.
fn hand_terminal_to(group: Pid, from: Pid) {
    let terminal = stdin();
    if terminal.is_terminal() && tcgetpgrp(&terminal) == Ok(from) {
        // TTOU is blocked, so this cannot stop us; a terminal that refuses is read by nobody, as before.
        let _ = tcsetpgrp(&terminal, group);
    }
}
