//! Which signals have come? Takes them all out of delivery by blocking them, and gives them one by one.
//!
//! It never installs a handler. Blocking fails only when the kernel refuses a signalfd.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpgrp;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Between two looks at the signals when the event loop cannot watch them (its epoll refused the signalfd).
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why signals could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The mask of this thread stayed as it was.
    #[error("could not block signals: {cause}")]
    Mask {
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
    /// Nothing to read signals from.
    #[error("could not open a signalfd: {cause}")]
    Open {
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
}

/// All signals of this process, blocked, and read in order of arrival as far as the kernel keeps it: a
/// standard signal that comes twice before it is read is one.
///
/// Real-time signals are blocked too, so that they do not end a supervisor that has a child, and dropped:
/// they cannot be forwarded without unsafe code.
#[derive(Debug)]
pub struct Signals {
    original: SigSet,
    fd: Arc<SignalFd>,
    watched: Option<AsyncFd<Arc<SignalFd>>>,
    /// Read ahead, and not yet given.
    kept: VecDeque<Signal>,
}

impl Signals {
    /// Blocks every signal for this thread and those that it starts from now on. Call it first thing in
    /// `main`, before the runtime: a thread that is there already would still be hit.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, which it does only when out of file descriptors or memory.
    pub fn block() -> Result<Self, BlockError> {
        let all = SigSet::all();
        let original = all.thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(|cause| BlockError::Mask { cause })?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(|cause| BlockError::Open { cause })?;
        Ok(Self { original, fd: Arc::new(fd), watched: None, kept: VecDeque::new() })
    }

    /// Waits for the next signal, SIGCHLD included. Cancel-safe. Must run inside a runtime that has I/O and
    /// time enabled.
    pub async fn next(&mut self) -> Signal {
        loop {
            if let Some(signal) = self.take() {
                return signal;
            }
            self.wait().await;
        }
    }

    /// The first TERM, INT or QUIT that has already come, without waiting. Other signals that are found on
    /// the way are kept for [`Signals::next`].
    pub fn pending_stop(&mut self) -> Option<Signal> {
        self.read_ahead();
        let at =
            self.kept.iter().position(|signal| matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT))?;
        self.kept.remove(at)
    }

    /// Does to us, and to all of our process group, what the terminal does by `signal`, one of TSTP, TTIN and TTOU. Blocks until
    /// we go on. False when we were not stopped: the kernel does not where no shell is left to continue us, nor as PID 1.
    pub(super) fn stop_with_group(&mut self, signal: Signal) -> bool {
        let _ = killpg(getpgrp(), signal);
        let this = SigSet::from(signal);
        let _ = this.thread_unblock();
        // Here we are stopped.
        let _ = this.thread_block();
        self.read_ahead();
        self.kept.contains(&Signal::SIGCONT)
    }

    /// Gives this thread the mask back that it had before [`Signals::block`]. A signal that is pending and
    /// not yet read then acts as it would have without convene.
    pub fn restore(self) {
        // It can only fail for a wrong `how`, which is not ours to choose.
        let _ = self.original.thread_set_mask();
    }

    /// The mask that convene was started with.
    pub(super) fn original(&self) -> SigSet {
        self.original
    }

    /// The next signal that has already come.
    fn take(&mut self) -> Option<Signal> {
        self.kept.pop_front().or_else(|| self.read())
    }

    fn read_ahead(&mut self) {
        while let Some(signal) = self.read() {
            self.kept.push_back(signal);
        }
    }

    fn read(&self) -> Option<Signal> {
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => {
                    let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                    // No `Signal` for a real-time one.
                    if let Ok(signal) = Signal::try_from(number) {
                        return Some(signal);
                    }
                }
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Returns when there may be something to read.
    async fn wait(&mut self) {
        if self.watched.is_none() {
            self.watched = watch(&self.fd);
        }
        let Some(watched) = &self.watched else {
            return tokio::time::sleep(LOOK_EVERY).await;
        };
        match watched.readable().await {
            Ok(mut readable) => match self.fd_is_empty() {
                true => readable.clear_ready(),
                false => readable.retain_ready(),
            },
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }

    /// Asks without reading, so that a wait that is cancelled loses nothing.
    fn fd_is_empty(&self) -> bool {
        use std::os::fd::AsFd;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }
}

/// None when epoll refused.
#[expect(
    deprecated,
    reason = "its successor `register` is unsafe; what it guards against, an fd that closes early, cannot be: \
              the Arc owns it (tokio-rs/tokio#8587)"
)]
fn watch(fd: &Arc<SignalFd>) -> Option<AsyncFd<Arc<SignalFd>>> {
    AsyncFd::with_interest(Arc::clone(fd), Interest::READABLE).ok()
}
