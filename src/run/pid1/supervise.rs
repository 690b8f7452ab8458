//! Is CMD still alive, and which signals are for it? Takes the blocked signals and CMD's words, and gives
//! what happens, one event at a time. It is the only one that waits for children.
//!
//! It never sends a signal by itself while CMD lives, but CONT when CMD gets the terminal. It fails only to start.

use std::ffi::OsString;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::spawn::spawn;
use super::stragglers::{Stragglers, stat};
use super::terminal::Terminal;
use super::{Signals, StartError, exit_code_of};
use crate::settings::supervision::{Supervision, stops_a_job};

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
    supervision: Supervision,
    /// None when there is none that CMD could have.
    terminal: Option<Terminal>,
}

impl Supervisor {
    /// Starts `command`, in its own process group, and adopts what it will orphan. Signals that came before
    /// are still in `signals` and the first things that [`Supervisor::next`] gives.
    ///
    /// # Errors
    ///
    /// When `command` is empty or could not be started. Must be called within a runtime.
    pub fn start(signals: Signals, command: &[OsString], supervision: Supervision) -> Result<Self, StartError> {
        see_children_end();
        if getpid().as_raw() != 1
            && let Err(error) = set_child_subreaper(true)
        {
            warn!(%error, "could not become a subreaper: orphans go to another process");
        }
        let child = spawn(command, &signals.original(), supervision.session)?;
        debug!(pid = child.as_raw(), "started CMD");
        // Another session cannot have the terminal of ours.
        let terminal = Terminal::on_stdin(child).filter(|_| !supervision.session);
        let mut supervisor = Self { signals, child, ended: None, supervision, terminal };
        supervisor.terminal.as_mut().map(Terminal::give);
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
                    self.follow();
                }
                signal => return Happened::Signalled(signal),
            }
        }
    }

    /// Hands `signal` on, as it is to be rewritten: to the child, or to all of its process group. By TSTP, TTIN and TTOU we are
    /// then suspended too, until a CONT: whoever wants the job to stop means both. Nothing happens when the child has ended.
    pub fn forward(&mut self, signal: Signal) {
        if self.ended.is_some() {
            return;
        }
        let Some(given) = self.supervision.given_for(signal) else {
            return debug!(signal = signal.as_str(), "dropped");
        };
        if signal == Signal::SIGCONT {
            // First: it reads as soon as it goes on.
            self.terminal.as_mut().map(Terminal::give);
        }
        debug!(signal = signal.as_str(), given = given.as_str(), "handed on");
        // Its pid is ours to name until we reap it, so this reaches no stranger. Whom a terminal stopped is all of the group.
        let _ = match self.supervision.group || (given == Signal::SIGCONT && self.terminal.is_some()) {
            true => killpg(self.child, given),
            false => kill(self.child, given),
        };
        if stops_a_job(signal) {
            self.suspend();
        }
    }

    /// The kernel keeps PID 1 from stopping itself (pid_namespaces(7)).
    fn suspend(&mut self) {
        if getpid().as_raw() == 1 {
            return;
        }
        let _ = raise(Signal::SIGSTOP);
        self.terminal.as_mut().map(Terminal::forget);
        // That the child stopped as well is no news.
        self.stopped_by();
    }

    /// What the terminal did to CMD it would have done to us: the shell that waits for us must see us stop, to take the terminal
    /// back, and later to give it again with a CONT.
    fn follow(&mut self) {
        if self.ended.is_some() || self.terminal.is_none() {
            return;
        }
        let stopped_by = self.stopped_by().filter(|signal| stops_a_job(*signal));
        let (Some(signal), Some(terminal)) = (stopped_by, &mut self.terminal) else { return };
        let goes_on = match signal {
            // Nobody would continue it; without us TSTP is ignored then.
            Signal::SIGTSTP => !self.signals.stop_with_group(signal),
            // It asked for the terminal before it had it.
            _ if terminal.give() => true,
            _ => {
                self.signals.stop_with_group(signal);
                false
            }
        };
        if goes_on {
            let _ = killpg(self.child, Signal::SIGCONT);
        } else {
            terminal.forget();
        }
    }

    /// What the child was stopped by since this was last asked.
    fn stopped_by(&self) -> Option<Signal> {
        match waitid(Id::Pid(self.child), WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            _ => None,
        }
    }

    /// Ends what is left when the child has ended: TERM to all, then KILL at `deadline` to what remains.
    /// All: as PID 1 every other process of the namespace; else our children, which orphans become,
    /// and the child's process group. Returns when none of our descendants is left, 2 s after the KILL at
    /// the latest. Signals that come meanwhile are dropped. Gives the signals back, for another CMD.
    pub async fn finish(mut self, deadline: Instant) -> Signals {
        let mut stragglers = Stragglers::of(self.child);
        let now = Instant::now();
        let gone_by = deadline.max(now).checked_add(KILLED_WITHIN).unwrap_or(deadline);
        for (signal, until) in [(Signal::SIGTERM, deadline), (Signal::SIGKILL, gone_by)] {
            loop {
                if !self.reap() {
                    return self.signals;
                }
                stragglers.send(signal);
                // Each round waits for one SIGCHLD: more may be orphans, ours only now.
                if !self.child_changed_before(until).await {
                    break;
                }
            }
        }
        self.signals
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
        debug!(code, "CMD ended");
        self.ended = Some(if self.supervision.success.contains(&code) { 0 } else { code });
        self.terminal.as_mut().map(Terminal::take_back);
    }
}

/// A parent that ignored SIGCHLD hands that on to us, and then the kernel reaps our children by itself and their exit codes
/// are lost. Any handler ends that; the signal stays blocked, and comes by the signalfd all the same.
fn see_children_end() {
    if let Err(error) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) {
        warn!(%error, "could not make sure that the end of a child is seen");
    }
}
