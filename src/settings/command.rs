//! What does the user's CMD (`convene run -- CMD…`) say to Consul? Takes CMD's words and the environment, gives an
//! [`AgentCommand`] when CMD is a Consul agent: its flags, what the files say that it names, and what of it
//! contradicts convene's decision.
//!
//! It is here because Consul's flags win over any file and lists append (`consul-facts.md` §H), so a rendered file
//! alone cannot change what CMD says. It reads the files that CMD names and does nothing else. Of the secrets it keeps
//! the gossip key alone, which is checked before the start, and hides it. It fails, with a line for the user, for a shell that hides the words,
//! for flags that Go's parser refuses, and for a value that is of the wrong kind; what it merely cannot read is a
//! warning, because Consul judges the same words itself.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

mod contradictions;
mod facts;
mod files;
mod flags;
mod hcl;
mod sayings;
#[cfg(test)]
mod tests;
mod words;

pub use contradictions::{Contradiction, Wanted};
pub use facts::{Facts, Place, Ports, Said, shown};

use files::{Files, Format, LocalConfig};
use flags::{Flag, Flags};
use sayings::Saying;

/// The flags that convene reads and takes out of CMD, so that people's command lines work as they are. `-join` is an
/// alias of `-retry-join` since Consul 1.15.
pub const TAKEN_OUT: [&str; 3] = ["bootstrap-expect", "retry-join", "join"];

/// Why CMD could not be read. All are the user's to mend: exit code 64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A shell gets its command as a string.
    #[error(
        "could not read CMD's arguments: `{shell} -c` hides them in a string; write the words themselves: `convene run -- consul agent -server …` (in a Pod, $(NAME) stands for a variable)"
    )]
    HiddenInShell {
        /// The shell's name.
        shell: String,
    },
    /// A word such as `-=x` or `---x`.
    #[error("could not read CMD's arguments: word {word} after `agent` starts like a flag and is none")]
    NoFlag {
        /// Counted from 1. The word itself may hold a secret.
        word: usize,
    },
    /// The last word is a flag that wants a value.
    #[error("could not read CMD's flag -{flag}: it has no value")]
    NoValue {
        /// The name without dashes.
        flag: String,
    },
    /// A value is not UTF-8.
    #[error("could not read CMD's flag -{flag}: its value is not UTF-8")]
    NotUtf8 {
        /// The name without dashes.
        flag: String,
    },
    /// A line end that a template or a Secret brought into a string.
    #[error(
        "could not read {}, line {line}, as JSON: {}, and Consul refuses it: take it away (what `echo` and editors write ends with one)",
        .path.display(), hcl::LINE_END
    )]
    LineEnd {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A value is of the wrong kind.
    #[error("could not read {place}: {value:?} is not {allowed}")]
    BadValue {
        /// Where it stands.
        place: Place,
        /// As it stands there, or `…` when it may hold a secret.
        value: String,
        /// What may stand there.
        allowed: &'static str,
    },
}

/// Something that convene could not read in CMD.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Warning {
    /// The file, if it is about one.
    path: Option<PathBuf>,
    text: String,
}

/// A CMD that is a Consul agent.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentCommand {
    words: Vec<OsString>,
    agent_at: usize,
    flags: Vec<Flag>,
    /// The first word that is no flag and no value of one.
    flags_end: usize,
    /// In Consul's order: files, flags, fragments.
    sayings: Vec<Saying>,
    facts: Facts,
    warnings: Vec<Warning>,
}

/// Without the words: they may hold a gossip key.
impl fmt::Debug for AgentCommand {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { words, agent_at, flags, flags_end, sayings: _, facts, warnings } = self;
        let flags: Vec<_> = flags.iter().map(|flag| flag.name.as_str()).collect();
        out.debug_struct("AgentCommand")
            .field("words", &words.len())
            .field("agent_at", agent_at)
            .field("flags", &flags)
            .field("flags_end", flags_end)
            .field("facts", facts)
            .field("warnings", warnings)
            .finish_non_exhaustive()
    }
}

impl AgentCommand {
    /// Reads CMD and the files that it names. `None`: CMD is another program. `variable` gives a variable of the
    /// environment; only those that the image's `docker-entrypoint.sh` turns into flags are asked for.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn read(
        words: Vec<OsString>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, CommandError> {
        Self::read_by(words, &variable)
    }

    /// Once in the program, whoever gives the variables.
    fn read_by(
        words: Vec<OsString>,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, CommandError> {
        let Some(found) = words::find(&words)? else {
            return Ok(None);
        };
        let set = |name: &str| {
            let by_env =
                found.variables.iter().rev().find(|(variable, _)| variable == name).map(|(_, value)| value.clone());
            by_env.or_else(|| variable(name)).filter(|value| !value.is_empty())
        };
        let added = if found.entrypoint { added_by_entrypoint(set) } else { Vec::new() };
        let own = flags::parse(words.get(found.agent_at..).unwrap_or_default())?;
        let warnings = odd_words(&own);

        let mut sources = Sources::default();
        sources.take(&flags::parse(&added)?.flags, Place::Entrypoint)?;
        let local = sources.paths.first().cloned().zip(set("CONSUL_LOCAL_CONFIG")).filter(|_| found.entrypoint);
        sources.take(&own.flags, Place::Flag)?;
        let local = local.map(|(folder, text)| LocalConfig { folder, text: text.to_string_lossy().into_owned() });
        let mut files = Files { format: sources.format, local, sayings: Vec::new(), warnings };
        for path in &sources.paths {
            files.read(path)?;
        }
        files.sayings.append(&mut sources.sayings);
        for fragment in &sources.fragments {
            files.fragment(fragment)?;
        }
        let Files { sayings, mut warnings, .. } = files;
        let facts = Facts::of(sayings.iter());
        warnings.extend(about_key(&facts));
        let flags_end = found.agent_at + own.end;
        Ok(Some(Self { words, agent_at: found.agent_at, flags: own.flags, flags_end, sayings, facts, warnings }))
    }

    /// CMD as given.
    pub fn words(&self) -> &[OsString] {
        &self.words
    }

    /// The place in [`Self::words`] of the first argument after `agent`.
    pub fn agent_at(&self) -> usize {
        self.agent_at
    }

    /// What CMD and its files say.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What could not be read and is left to Consul. One line each, without secrets.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(|warning| warning.text.as_str())
    }

    /// Forgets what the file `rendered` says or that it is missing: a CMD that names it already (as beside `init`)
    /// must not make convene believe its own last output.
    pub fn forget(&mut self, rendered: &Path) {
        let same = same_file(rendered);
        self.sayings.retain(|saying| !matches!(&saying.place, Place::File { path, .. } if same(path)));
        self.warnings.retain(|warning| !warning.path.as_deref().is_some_and(&same));
        self.facts = Facts::of(self.sayings.iter());
    }

    /// CMD without `flags` (names without dashes) and with `-config-file=<rendered>` as the last flag, so that the
    /// rendered file wins over the other files; where CMD names that file already, it moves there.
    pub fn without(&self, flags: &[&str], rendered: &Path) -> Vec<OsString> {
        let gone = |at: usize| {
            let at = at.checked_sub(self.agent_at);
            let out = |flag: &&Flag| {
                let named = flag.name == "config-file" && Path::new(&flag.value) == rendered;
                named || flags.contains(&flag.name.as_str())
            };
            at.is_some_and(|at| self.flags.iter().filter(out).any(|flag| flag.words.contains(&at)))
        };
        let mut file = OsString::from("-config-file=");
        file.push(rendered);
        let kept = |(at, word): (usize, &OsString)| (!gone(at)).then(|| word.clone());
        let before = self.words.iter().enumerate().take(self.flags_end).filter_map(kept);
        before.chain([file]).chain(self.words.iter().skip(self.flags_end).cloned()).collect()
    }

    /// What contradicts `wanted` once [`TAKEN_OUT`] are out of CMD.
    pub fn contradictions(&self, wanted: &Wanted<'_>) -> Vec<Contradiction> {
        self.contradictions_without(&TAKEN_OUT, wanted)
    }

    /// What contradicts `wanted` in the words of an agent that runs: of these nothing is taken out any more.
    pub fn contradictions_as_it_runs(&self, wanted: &Wanted<'_>) -> Vec<Contradiction> {
        self.contradictions_without(&[], wanted)
    }

    fn contradictions_without(&self, flags: &[&str], wanted: &Wanted<'_>) -> Vec<Contradiction> {
        let same = same_file(wanted.rendered);
        let stays = |saying: &&Saying| match &saying.place {
            Place::Flag(name) => !flags.contains(&name.as_str()),
            Place::File { path, .. } => !same(path),
            _ => true,
        };
        contradictions::find(&Facts::of(self.sayings.iter().filter(stays)), wanted)
    }
}

/// Whether a path names the same file, by its text or after symbolic links.
fn same_file(file: &Path) -> impl Fn(&Path) -> bool {
    let real = file.canonicalize().ok();
    move |path| path == file || (real.is_some() && path.canonicalize().ok() == real)
}

/// Warnings about words that Consul 1.22 would refuse, without the words.
fn odd_words(flags: &Flags) -> Vec<Warning> {
    let unknown = flags.flags.iter().filter(|flag| !flag.known);
    let mut texts: Vec<String> = unknown
        .map(|flag| format!("could not tell what CMD's flag -{} means: it is unknown to convene", flag.name))
        .collect();
    if flags.rest > 0 {
        texts.push(format!(
            "could not read CMD's last words ({}): Consul takes only flags after `agent`, and reads none of these",
            flags.rest
        ));
    }
    texts.into_iter().map(|text| Warning { path: None, text }).collect()
}

/// What Consul takes as a gossip key, and a person hardly means.
fn about_key(facts: &Facts) -> Option<Warning> {
    let said = facts.encrypt.as_ref()?;
    let text = if said.value.reveal().is_empty() {
        format!(
            "{} is empty, which Consul takes for no encryption: give the output of `consul keygen`, or remove it",
            said.place
        )
    } else if matches!(said.place, Place::Flag(_) | Place::Fragment(_)) {
        format!(
            "{} puts the gossip key among CMD's arguments, where everybody on the machine can read it: give it by -config-file, from a mounted Secret",
            said.place
        )
    } else {
        return None;
    };
    Some(Warning { path: None, text })
}

/// The flags that the image's `docker-entrypoint.sh` puts before those of CMD. An interface's address is known to
/// Consul only, so it becomes the template that finds it.
fn added_by_entrypoint(set: impl Fn(&str) -> Option<OsString>) -> Vec<OsString> {
    let flag = |name: &str, value: &OsStr| {
        let mut flag = OsString::from(name);
        flag.push(value);
        flag
    };
    let mut added = vec![
        flag("-data-dir=", &set("CONSUL_DATA_DIR").unwrap_or_else(|| "/consul/data".into())),
        flag("-config-dir=", &set("CONSUL_CONFIG_DIR").unwrap_or_else(|| "/consul/config".into())),
    ];
    for (name, flags, interface) in
        [("-bind=", "CONSUL_BIND", "CONSUL_BIND_INTERFACE"), ("-client=", "CONSUL_CLIENT", "CONSUL_CLIENT_INTERFACE")]
    {
        match (set(flags), set(interface)) {
            (Some(flags), _) => added.extend(flags.to_string_lossy().split_whitespace().map(OsString::from)),
            (None, Some(interface)) => {
                let template = format!("{{{{ GetInterfaceIP {:?} }}}}", interface.to_string_lossy());
                added.push(flag(name, template.as_ref()));
            }
            (None, None) => {}
        }
    }
    added
}

/// What flags say, and what else they name.
#[derive(Default)]
struct Sources {
    sayings: Vec<Saying>,
    paths: Vec<PathBuf>,
    fragments: Vec<String>,
    format: Option<Format>,
}

impl Sources {
    fn take(&mut self, flags: &[Flag], place: impl Fn(String) -> Place) -> Result<(), CommandError> {
        for flag in flags {
            let text = || flag.value.to_str().ok_or_else(|| CommandError::NotUtf8 { flag: flag.name.clone() });
            match (flag.name.as_str(), flag.key) {
                ("config-file" | "config-dir", _) => self.paths.push(PathBuf::from(&flag.value)),
                ("config-format", _) => self.format = format(text()?)?,
                ("hcl", _) => self.fragments.push(text()?.to_owned()),
                (_, Some(key)) => self.sayings.push(Saying::of_flag(key, text()?, place(flag.name.clone()))?),
                (_, None) => {}
            }
        }
        Ok(())
    }
}

fn format(text: &str) -> Result<Option<Format>, CommandError> {
    match text {
        "" => Ok(None),
        "json" => Ok(Some(Format::Json)),
        "hcl" => Ok(Some(Format::Hcl)),
        other => Err(CommandError::BadValue {
            place: Place::Flag("config-format".to_owned()),
            value: other.to_owned(),
            allowed: "hcl or json",
        }),
    }
}
