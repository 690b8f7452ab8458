//! The built program, run as a user runs it: with an environment of its own, nothing inherited but PATH.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A call of `convene`.
pub struct Convene(Command);

/// What a call ended in.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; 128+n when a signal ended it.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it wrote.
    pub stderr: String,
}

// === impl Convene ===

impl Convene {
    /// `convene WORDS…`, logging plainly.
    pub fn new<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Self {
        Self::of(Command::new(env!("CARGO_BIN_EXE_convene"))).words(words)
    }

    /// Another program that calls it at last, such as `unshare`.
    pub fn behind<S: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = S>) -> Self {
        Self::of(Command::new(program)).words(words)
    }

    fn of(mut command: Command) -> Self {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CONVENE_LOG_FORMAT", "plain");
        command.stdin(Stdio::null());
        Self(command)
    }

    /// More words.
    pub fn words<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.0.args(words);
        self
    }

    /// A variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    /// Several variables, written `A=b C=d`.
    pub fn envs(mut self, all: &str) -> Self {
        for (key, value) in all.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            self.0.env(key, value);
        }
        self
    }

    /// Called in that folder.
    pub fn within(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    /// The same call made by another program, which execs what its words end with.
    pub fn after<S: AsRef<OsStr>>(self, program: &str, words: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        command.args(words).arg(self.0.get_program()).args(self.0.get_args());
        command.env_clear().envs(self.0.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(Stdio::null());
        Self(command)
    }

    /// Runs to the end.
    pub fn run(mut self) -> Ended {
        Ended::of(self.0.output().expect("the program starts"))
    }

    /// Starts, and leaves what it writes to be read by `Child::wait_with_output`.
    pub fn spawn(mut self) -> Child {
        self.0.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    /// Starts, and nobody hears what it says.
    pub fn spawn_unheard(mut self) -> Child {
        self.0.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
    }

    /// Starts, and writes both streams into a file.
    pub fn spawn_into(mut self, file: &Path) -> Child {
        let file = std::fs::File::create(file).expect("a log file");
        let again = file.try_clone().expect("a log file");
        self.0.stdout(file).stderr(again).spawn().expect("the program starts")
    }
}

// === impl Ended ===

impl Ended {
    /// What a finished call gave.
    pub fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The last line of stderr.
    pub fn last_line(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }

    /// Asserts the exit code and that the last line has each part.
    #[track_caller]
    pub fn ends(&self, code: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.code, code, "{}", self.stderr);
        for part in parts {
            assert!(self.last_line().contains(part), "{part:?} is not in: {}", self.last_line());
        }
        self
    }
}
