//! Whose is the terminal? CMD has a process group of its own, as a shell's job has, so what a shell does for a job is ours
//! to do: give it the terminal, and take it back.
//!
//! It never takes the terminal from anybody else's group: only ours gives it up, and only CMD's gets it. It does not fail:
//! a terminal that is gone needs nothing.

use std::io::stdin;

use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The terminal of our session, on stdin.
#[derive(Debug)]
pub(super) struct Terminal {
    /// CMD's process group.
    group: Pid,
    given: bool,
}

impl Terminal {
    /// None when stdin is no terminal, or not the one of our session.
    pub(super) fn on_stdin(group: Pid) -> Option<Self> {
        tcgetpgrp(stdin()).ok().map(|_| Self { group, given: false })
    }

    /// Makes CMD's group the foreground one when ours is. True when it is the foreground one.
    pub(super) fn give(&mut self) -> bool {
        self.given = match tcgetpgrp(stdin()) {
            Ok(foreground) if foreground == self.group => true,
            Ok(foreground) if foreground == getpgrp() => tcsetpgrp(stdin(), self.group).is_ok(),
            _ => false,
        };
        self.given
    }

    /// After a suspension: whoever continues us has said whose it is.
    pub(super) fn forget(&mut self) {
        self.given = false;
    }

    /// Makes our group the foreground one again, if CMD's was: so that a script's next command can read.
    pub(super) fn take_back(&mut self) {
        if std::mem::take(&mut self.given) {
            // SIGTTOU is blocked, so this cannot stop us.
            let _ = tcsetpgrp(stdin(), getpgrp());
        }
    }
}
