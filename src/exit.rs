//! Which exit code means what, and how a failure is told.
//!
//! Takes the errors of every stage, gives a [`Failure`]: one code and one line (its causes behind it). Exit codes are an
//! interface: a hook, a probe or a person's script watches for them. The README's table is checked against [`TABLE`].
//! Never ends the process itself: only `main` does.

use std::error::Error;
use std::fmt;

/// An exit code with a meaning of ours. A started CMD's own code passes through beside these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// `check` says no, or `doctor` found something.
    No = 1,
    /// Usage or settings are wrong.
    Usage = 64,
    /// Something needed did not answer in time.
    Unavailable = 69,
    /// A process could not be spawned or exec'd.
    Spawn = 71,
    /// A file could not be written.
    Write = 73,
    /// Not now: try again.
    NotNow = 75,
    /// What is on disk contradicts the cluster, or itself: a person must look.
    Contradiction = 78,
    /// CMD is there but cannot be executed.
    NotExecutable = 126,
    /// CMD was not found.
    NotFound = 127,
}

/// Every row of the README's table of exit codes: the code as it is written there, and its meaning.
pub const TABLE: &[(&str, &str)] = &[
    ("0", "done; a stop that went as planned is 0 too, although Consul itself ends with 1 (but not for `--plain`)"),
    ("1", "`check` says no, or `doctor` found something"),
    ("64", "usage or settings"),
    ("69", "something needed did not answer in time"),
    ("71", "could not spawn or exec"),
    ("73", "could not write"),
    ("75", "not now, try again (`--wait` ran out, `reap` would rather not, or a gate of `recover` is shut)"),
    ("78", "what is on disk contradicts the cluster or itself, a person must look"),
    ("126", "CMD cannot be executed"),
    ("127", "CMD was not found"),
    ("128+n", "killed by signal n (143: TERM)"),
    ("other", "CMD's own exit code"),
];

/// An end with a code and the sentence for it.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: Code,
    message: String,
}

impl Failure {
    /// A failure told in one sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failure told by an error and its causes, in one line.
    pub fn from_error(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self { code, message: chain(error) }
    }
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error and its causes in one line; a cause that the line above it quotes already is left out.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = next.source();
    }
    line.replace('\n', " ")
}

/// The innermost cause of an error, in one line: of a failed request the others repeat the URL.
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string().replace('\n', " ")
}
