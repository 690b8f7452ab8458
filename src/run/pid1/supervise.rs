//! Is CMD still alive, and which signals are for it? Takes the blocked signals and CMD's words, and gives
//! what happens, one event at a time. It is the only one that waits for children.
//!
//! It never sends a signal by itself while CMD lives. It fails only to start.

use std::ffi::OsString;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::time::{Instant, timeout_at};

use super::spawn::{hand_terminal_over, spawn, take_terminal_back};
use super::stragglers::{Stragglers, stat};
use super::{Signals, StartError, exit_code_of};

/// How long killed processes may take to be gone; one that hangs in the kernel must not keep us.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// The exit code of a child whose end somebody else saw: 71, as when it could not be started.
const UNSEEN: u8 = 71;

/// What a supervisor has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The child ended with this code, or 128 and the number of the signal that killed it.
    Ended(u8),
    /// This signal came to us; never SIGCHLD.
    Signalled(Signal),
}

/// One running CMD, and all orphans of its making.
#[derive(Debug)]
pub struct Supervisor {
    signals: Signals,
    child: Pid,
    ended: Option<u8>,
    has_terminal: bool,
}

impl Supervisor {
    /// Starts `command`, in its own process group, and adopts what it will orphan. Signals that came before
    /// are still in `signals` and the first things that [`Supervisor::next`] gives.
    ///
    /// # Errors
    ///
    /// When `command` is empty or could not be started. Must be called within a runtime.
    pub fn start(signals: Signals, command: &[OsString]) -> Result<Self, StartError> {
        see_children_end();
        if getpid().as_raw() != 1
            && let Err(error) = set_child_subreaper(true)
        {
            tracing::warn!(%error, "could not become a subreaper: orphans go to another process");
        }
        let child = spawn(command, &signals.original())?;
        let mut supervisor = Self { signals, child, ended: None, has_terminal: hand_terminal_over(child) };
        // Zombies that we were born with have no signal to announce them.
        supervisor.reap();
        Ok(supervisor)
    }

    /// The child's process ID, which is its process group's too.
    pub fn child(&self) -> Pid {
        self.child
    }

    /// Waits until the child has ended or a signal has come. Cancel-safe. Once the child has ended, every
    /// call says so again at once: go on with [`Supervisor::finish`].
    pub async fn next(&mut self) -> Happened {
        loop {
            if let Some(code) = self.ended {
                return Happened::Ended(code);
            }
            match self.signals.next().await {
                Signal::SIGCHLD => {
                    self.reap();
                }
                signal => return Happened::Signalled(signal),
            }
        }
    }

    /// Sends `signal` to the child, and to nothing else. Nothing happens when it has ended.
    pub fn forward(&self, signal: Signal) {
        if self.ended.is_none() {
            // Its pid is ours to name until we reap it, so this reaches no stranger.
            let _ = kill(self.child, signal);
        }
    }

    /// Ends what is left when the child has ended: TERM to all, then KILL at `deadline` to what remains.
    /// All: as PID 1 every other process of the namespace; else our children, which orphans become,
    /// and the child's process group. Returns when none of our descendants is left, 2 s after the KILL at
    /// the latest. Signals that come meanwhile are dropped.
    pub async fn finish(mut self, deadline: Instant) {
        let mut stragglers = Stragglers::of(self.child);
        let now = Instant::now();
        let gone_by = deadline.max(now).checked_add(KILLED_WITHIN).unwrap_or(deadline);
        for (signal, until) in [(Signal::SIGTERM, deadline), (Signal::SIGKILL, gone_by)] {
            loop {
                if !self.reap() {
                    return;
                }
                stragglers.send(signal);
                // Each round waits for one SIGCHLD: more may be orphans, ours only now.
                if !self.child_changed_before(until).await {
                    break;
                }
            }
        }
    }

    /// False when `until` came first.
    async fn child_changed_before(&mut self, until: Instant) -> bool {
        loop {
            match timeout_at(until, self.signals.next()).await {
                Ok(Signal::SIGCHLD) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Reaps every zombie. True when children are left.
    fn reap(&mut self) -> bool {
        loop {
            self.look_for_real_time_death();
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(WaitStatus::Exited(pid, code)) if pid == self.child => {
                    self.end(u8::try_from(code & 0xff).unwrap_or(UNSEEN));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.child => {
                    self.end(exit_code_of(signal));
                }
                // Somebody was reaped whose signal nix has no name for.
                Err(Errno::EINVAL) => {
                    if self.ended.is_none() && kill(self.child, None) == Err(Errno::ESRCH) {
                        self.end(UNSEEN);
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    // ECHILD: nobody is left, and if that is news about our child, we missed it.
                    if self.ended.is_none() {
                        self.end(UNSEEN);
                    }
                    return false;
                }
            }
        }
    }

    /// A real-time signal has no `Signal`, so nix reaps a child that one killed and forgets which signal it
    /// was. While it is a zombie, its stat file still knows.
    fn look_for_real_time_death(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if waitid(Id::Pid(self.child), look) == Err(Errno::EINVAL)
            && let Some(stat) = stat(self.child)
            && let Ok(number) = u8::try_from(stat.exit_code & 0x7f)
        {
            self.end(128_u8.saturating_add(number));
        }
    }

    fn end(&mut self, code: u8) {
        self.ended = Some(code);
        if self.has_terminal {
            take_terminal_back();
        }
    }
}

/// A parent that ignored SIGCHLD hands that on to us, and then the kernel reaps our children by itself and their exit codes
/// are lost. Any handler ends that; the signal stays blocked, and comes by the signalfd all the same.
fn see_children_end() {
    if let Err(error) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) {
        tracing::warn!(%error, "could not make sure that the end of a child is seen");
    }
}
