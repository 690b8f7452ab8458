//! How does convene behave as PID 1? It takes the process's signals and a command line and gives the
//! command's exit code, having forwarded signals, reaped every zombie and ended what the command left behind.
//!
//! The order of use is: [`Signals::block`] first thing in `main`; [`Supervisor`] or [`plain`] inside the runtime, or
//! [`exec`] without one.
//!
//! Signals are blocked and read from a signalfd, never handled. So the dispositions that convene was
//! started with are the ones that CMD gets, and a signal that comes before anybody looks stays pending,
//! for PID 1 too (the kernel drops only what is neither blocked nor handled: signal(7), pid_namespaces(7)).
//! Two dispositions cannot be kept: Rust's start-up code ignores SIGPIPE, so CMD gets the default; and an
//! ignored SIGCHLD becomes the default, since the end of a child could not be seen otherwise.
//!
//! It never reads settings, writes files, or panics. It fails with [`BlockError`] or [`StartError`].

mod signals;
mod spawn;
mod stragglers;
mod supervise;
mod terminal;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::settings::supervision::Supervision;
use crate::stop::deadline;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use signals::{BlockError, Signals};
pub use spawn::StartError;
pub use supervise::{Happened, Supervisor};

/// How long stragglers may take when CMD ended by itself: a container that restarts should be back soon.
pub const STRAGGLERS: Duration = Duration::from_secs(10);

/// What a process that `signal` killed exits with, by the convention of shells: 128 and its number.
pub fn exit_code_of(signal: Signal) -> u8 {
    128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0))
}

/// Asks the kernel for `signal` when the thread that started us has ended (PR_SET_PDEATHSIG(2const)). One that has ended
/// before is not noticed.
pub fn signal_at_parents_end(signal: Signal) {
    if let Err(error) = set_pdeathsig(signal) {
        warn!(%error, "the end of the process that started convene will not be seen");
    }
}

/// Is an init for `command` and nothing else: starts it, forwards every signal from 1 to 31 but KILL,
/// STOP and CHLD, and gives its exit code, or 128 and the number of the signal that killed it. What it left
/// behind gets TERM, and KILL at the deadline: that of the stop when there was a TERM, else [`STRAGGLERS`].
///
/// # Errors
///
/// When `command` could not be started.
pub async fn plain(
    signals: Signals,
    command: &[OsString],
    grace: Duration,
    supervision: Supervision,
) -> Result<u8, StartError> {
    let mut supervisor = Supervisor::start(signals, command, supervision)?;
    // CMD has its folder; ours must not keep a file system from being unmounted.
    if let Err(error) = std::env::set_current_dir("/") {
        debug!(%error, "could not leave the working folder");
    }
    let mut stop_by = None;
    let code = loop {
        match supervisor.next().await {
            Happened::Ended(code) => break code,
            Happened::Signalled(signal) => {
                if signal == Signal::SIGTERM && stop_by.is_none() {
                    stop_by = Some(deadline(Instant::now(), grace));
                }
                supervisor.forward(signal);
            }
        }
    };
    let by_itself = || deadline(Instant::now(), grace).min(Instant::now() + STRAGGLERS);
    supervisor.finish(stop_by.unwrap_or_else(by_itself)).await;
    Ok(code)
}

/// Replaces this process by `command`, with the mask and the dispositions that convene was started with
/// (but SIGPIPE, which is back to its default). Returns only when that was not possible, or when a TERM, INT
/// or QUIT was already waiting: [`StartError::Stopped`], whose exit code is 128 and its number.
pub fn exec(mut signals: Signals, command: &[OsString]) -> StartError {
    if let Some(signal) = signals.pending_stop() {
        return StartError::Stopped { signal };
    }
    let Some((program, arguments)) = command.split_first() else {
        return StartError::NoCommand;
    };
    signals.restore();
    let cause = Command::new(program).args(arguments).exec();
    StartError::refused(program, cause)
}
