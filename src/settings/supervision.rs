//! How is CMD supervised? What users of tini (`-g`, `-e`, `-p`) and dumb-init (`--rewrite`, its session) can say.
//!
//! Takes the flags, gives a [`Supervision`]. Never touches a process. Fails with [`SettingsError`]: a wrong signal or exit
//! code, or a flag that `--exec` leaves without meaning.

use super::read::{Reader, SettingsError, number};
use crate::cli::SuperviseArgs;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};

/// How CMD is supervised. The default: signals go to CMD alone, as they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Supervision {
    /// Signals go to CMD's whole process group.
    pub group: bool,
    /// CMD leads a session of its own.
    pub session: bool,
    /// CMD's exit codes that count as 0.
    pub success: BTreeSet<u8>,
    /// What we get when our parent ends.
    pub parent_death: Option<Signal>,
    /// What CMD gets for a signal that comes to us; `None`: nothing.
    rewritten: BTreeMap<Signal, Option<Signal>>,
}

/// What becomes of CMD and who looks after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// We are an init and nothing else.
    Plain,
    /// We supervise an agent, and TERM begins its stop.
    Agent,
    /// CMD replaces us.
    Exec,
}

/// The three signals by which a terminal stops a job.
pub fn stops_a_job(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU)
}

// === impl Supervision ===

impl Supervision {
    /// Reads how CMD is supervised.
    ///
    /// # Errors
    /// [`SettingsError::Value`]; [`SettingsError::Conflict`] when a flag cannot mean anything in this mode.
    pub fn read(reader: Reader<'_>, args: &SuperviseArgs, mode: Mode) -> Result<Self, SettingsError> {
        let SuperviseArgs { group, session, rewrite, success, parent_death } = args;
        let read = Self {
            group: reader.boolean("group", group)?,
            session: reader.boolean("session", session)?,
            success: exit_codes(&reader.places.of("success"), success)?,
            parent_death: reader
                .text(parent_death)
                .map(|text| signal(text).ok_or_else(|| not_a_signal(&reader.places.of("parent_death"), text)))
                .transpose()?,
            rewritten: rewrites(&reader.places.of("rewrite"), rewrite)?,
        };
        let given = [
            ("group", read.group),
            ("session", read.session),
            ("success", !read.success.is_empty()),
            ("rewrite", !read.rewritten.is_empty()),
        ];
        if mode == Mode::Exec
            && let Some((id, _)) = given.iter().find(|(_, given)| *given)
        {
            return Err(SettingsError::Conflict {
                what: format!("{} and --exec contradict each other", reader.places.of(id)),
                mend: "CMD replaces convene by --exec, and nobody is left to do it; give one".to_owned(),
            });
        }
        if mode == Mode::Agent && read.given_for(Signal::SIGTERM).is_none() {
            return Err(SettingsError::Conflict {
                what: format!("{} drops TERM, and the agent would never be told to end", reader.places.of("rewrite")),
                mend: "leave it out, or give --plain for another program".to_owned(),
            });
        }
        Ok(read)
    }

    /// What CMD gets when `signal` has come to us; `None`: nothing.
    pub fn given_for(&self, signal: Signal) -> Option<Signal> {
        match self.rewritten.get(&signal) {
            Some(given) => *given,
            // The group of a session's leader is orphaned, and there these three do nothing by default (POSIX, XSH 2.4.3).
            None if self.session && stops_a_job(signal) => Some(Signal::SIGSTOP),
            None => Some(signal),
        }
    }
}

/// Every word of a flag that may be given often, or of its variable.
fn words(given: &[String]) -> impl Iterator<Item = &str> {
    given.iter().flat_map(|many| many.split(',')).map(str::trim).filter(|one| !one.is_empty())
}

fn exit_codes(place: &str, given: &[String]) -> Result<BTreeSet<u8>, SettingsError> {
    let code = |text| Ok(u8::try_from(number(place, text, 0..=255)?).unwrap_or(u8::MAX));
    words(given).map(code).collect()
}

fn rewrites(place: &str, given: &[String]) -> Result<BTreeMap<Signal, Option<Signal>>, SettingsError> {
    let mut all = BTreeMap::new();
    for text in words(given) {
        let (from, to) = rewrite(text).ok_or_else(|| SettingsError::Value {
            place: place.to_owned(),
            value: text.to_owned(),
            allowed:
                "FROM:TO, each a signal by number (1 to 31) or name (TERM); TO may be 0, and FROM not be KILL, STOP \
                      or CHLD, which are never handed on"
                    .to_owned(),
            nearest: String::new(),
        })?;
        if all.insert(from, to).is_some_and(|before| before != to) {
            return Err(SettingsError::Conflict {
                what: format!("{place} rewrites {from} twice"),
                mend: "give it once".to_owned(),
            });
        }
    }
    Ok(all)
}

fn rewrite(text: &str) -> Option<(Signal, Option<Signal>)> {
    let (from, to) = text.split_once(':')?;
    let from = signal(from).filter(|from| !matches!(from, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCHLD))?;
    match to.trim() {
        "0" => Some((from, None)),
        to => signal(to).map(|to| (from, Some(to))),
    }
}

/// By number, or by name with or without SIG.
fn signal(text: &str) -> Option<Signal> {
    let text = text.trim().to_ascii_uppercase();
    match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number).ok(),
        Err(_) => format!("SIG{}", text.strip_prefix("SIG").unwrap_or(&text)).parse().ok(),
    }
}

fn not_a_signal(place: &str, text: &str) -> SettingsError {
    SettingsError::Value {
        place: place.to_owned(),
        value: text.to_owned(),
        allowed: "a signal by number (1 to 31) or name (TERM)".to_owned(),
        nearest: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Places;
    use crate::settings::read::Env;
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGTTIN, SIGUSR1};

    fn read(rewrite: &[&str], session: bool, mode: Mode) -> Result<Supervision, String> {
        let args = SuperviseArgs {
            group: None,
            session: session.then(|| "true".to_owned()),
            rewrite: rewrite.iter().map(|one| (*one).to_owned()).collect(),
            success: Vec::new(),
            parent_death: None,
        };
        let (places, env) = (Places::default(), Env::default());
        Supervision::read(Reader { places: &places, env: &env }, &args, mode).map_err(|error| error.to_string())
    }

    #[test]
    fn a_signal_is_rewritten_by_number_or_name_and_the_others_stay() {
        for way in [&["15:2", "1:0"][..], &["TERM:INT,HUP:0"], &["sigterm:SIGINT", " hup : 0 "], &["15:2", "15:2,1:0"]]
        {
            let read = read(way, false, Mode::Plain).unwrap();
            let given = [SIGTERM, SIGHUP, SIGINT, SIGQUIT].map(|signal| read.given_for(signal));
            assert_eq!(given, [Some(SIGINT), None, Some(SIGINT), Some(SIGQUIT)], "{way:?}");
        }
        assert_eq!(
            read(&["1:31", "31:9"], false, Mode::Plain).unwrap().given_for(Signal::SIGSYS),
            Some(Signal::SIGKILL)
        );
    }

    #[test]
    fn in_a_session_what_stops_a_job_becomes_stop_unless_it_is_rewritten() {
        let default = read(&["USR1:TSTP"], false, Mode::Plain).unwrap();
        assert_eq!([SIGTSTP, SIGUSR1].map(|signal| default.given_for(signal)), [Some(SIGTSTP); 2]);
        let session = read(&["TTIN:HUP", "USR1:TSTP"], true, Mode::Plain).unwrap();
        let given = [SIGTSTP, Signal::SIGTTOU, SIGTTIN, SIGUSR1].map(|signal| session.given_for(signal));
        assert_eq!(given, [Some(SIGSTOP), Some(SIGSTOP), Some(SIGHUP), Some(SIGTSTP)]);
    }

    #[test]
    fn what_is_no_signal_or_never_comes_is_refused() {
        for wrong in
            ["15", "15:", ":2", "0:2", "15:32", "32:1", "15:-1", "TERM:ITN", "15:2:3", "9:15", "STOP:1", "CHLD:1"]
        {
            let error = read(&[wrong], false, Mode::Plain).unwrap_err();
            assert!(error.starts_with(&format!("--rewrite: {wrong:?} is not allowed")), "{error}");
        }
        assert!(read(&["15:2", "TERM:1"], false, Mode::Plain).unwrap_err().contains("rewrites SIGTERM twice"));
    }

    #[test]
    fn an_agent_must_be_told_to_end() {
        assert!(read(&["15:0"], false, Mode::Plain).is_ok());
        assert!(read(&["15:0"], false, Mode::Agent).unwrap_err().contains("--rewrite drops TERM"));
        assert!(read(&["15:2", "2:0"], false, Mode::Agent).is_ok());
        assert!(read(&["15:2"], false, Mode::Exec).unwrap_err().contains("--rewrite and --exec contradict"));
    }
}
