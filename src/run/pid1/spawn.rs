//! How is CMD started? Takes its words and the original signal mask and gives its process, in a process
//! group or a session of its own.
//!
//! It never leaves a half-started child behind. It fails with [`StartError`], which knows its exit code.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::exit::Code;
use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

/// nix has no name for it; in glibc and musl it is the same (spawn.h).
const POSIX_SPAWN_SETSID: PosixSpawnFlags = PosixSpawnFlags::from_bits_retain(0x80);

/// Why CMD does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing stood behind `--`.
    #[error("could not start a command: none was given")]
    NoCommand,
    /// No such file, by path or on PATH; or the interpreter of its `#!` line is missing.
    #[error("could not start {command:?}: not found ({cause})")]
    NotFound {
        /// CMD's first word.
        command: OsString,
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
    /// The file is there and the kernel does not run it: its mode, its format, or file capabilities that
    /// this container may not have.
    #[error("could not start {command:?}: not executable ({cause})")]
    NotExecutable {
        /// CMD's first word.
        command: OsString,
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
    /// The system had no process to give.
    #[error("could not start {command:?}: {cause}")]
    Refused {
        /// CMD's first word.
        command: OsString,
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
    /// A signal that means "stop" came before CMD was there.
    #[error("could not start a command: {signal} came first")]
    Stopped {
        /// TERM, INT or QUIT.
        signal: Signal,
    },
}

impl StartError {
    /// The exit code that tells this, as shells use it; `None` when a signal came first, whose own code is 128+n.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::NoCommand => Some(Code::Usage),
            Self::NotFound { .. } => Some(Code::NotFound),
            Self::NotExecutable { .. } => Some(Code::NotExecutable),
            Self::Refused { .. } => Some(Code::Spawn),
            Self::Stopped { .. } => None,
        }
    }

    /// Sorts the kernel's errors as POSIX shells do (XCU 2.8.2), and EPERM with them: exec gives it for
    /// file capabilities outside the bounding set (capabilities(7)), as `setcap`ed Consul images meet it.
    fn of(command: &OsStr, cause: Errno) -> Self {
        let command = command.to_owned();
        match cause {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => Self::NotFound { command, cause },
            Errno::EACCES | Errno::ENOEXEC | Errno::EPERM | Errno::EISDIR => Self::NotExecutable { command, cause },
            _ => Self::Refused { command, cause },
        }
    }

    /// The same for an error of the standard library.
    pub(super) fn refused(command: &OsStr, cause: io::Error) -> Self {
        let errno = cause.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
        Self::of(command, errno)
    }
}

/// Starts `command` with the mask `original`, SIGPIPE at its default, and the environment whole. A word that
/// holds no slash is looked for on PATH. A text file without a `#!` line is not executable: no shell is tried.
/// Its process group bears its own number, and so does its session, when it gets one.
pub(super) fn spawn(command: &[OsString], original: &SigSet, session: bool) -> Result<Pid, StartError> {
    let Some(program) = command.first() else {
        return Err(StartError::NoCommand);
    };
    let words: Vec<CString> = command
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|_| StartError::of(program, Errno::EINVAL))?;
    start(&words, original, session).map_err(|cause| StartError::of(program, cause))
}

fn start(words: &[CString], original: &SigSet, session: bool) -> nix::Result<Pid> {
    let program = words.first().ok_or(Errno::EINVAL)?;
    let mut attributes = PosixSpawnAttr::init()?;
    // The leader of a session leads a group already, and may not ask for one.
    let own = if session { POSIX_SPAWN_SETSID } else { PosixSpawnFlags::POSIX_SPAWN_SETPGROUP };
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | own)?;
    attributes.set_sigmask(original)?;
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    // 0: a new group, named after the child.
    attributes.set_pgroup(Pid::from_raw(0))?;
    let files = PosixSpawnFileActions::init()?;
    posix_spawnp(program, &files, &attributes, words, &environment())
}

/// `NAME=value` for every variable.
fn environment() -> Vec<CString> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend_from_slice(value.as_bytes());
            // A NUL cannot come out of an environment.
            CString::new(entry).ok()
        })
        .collect()
}
