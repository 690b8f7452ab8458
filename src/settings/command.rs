//! What CMD says to Consul: its flags, and the files that they name.
//!
//! Takes CMD's words, gives an [`AgentCommand`] when it is a Consul agent: the facts that matter to convene with where each
//! was said, CMD without the flags that convene takes over, and what contradicts convene's decision. CMD's own arguments win
//! over any file, so what is not taken out or refused here would win over the rendered file. Reads files, writes none; one
//! that it cannot read is a warning, since Consul itself will judge it. No message shows a secret.

pub mod facts;
pub mod flags;
pub mod hcl;

use super::read::Env;
pub use facts::{Address, Facts, Layer, Place, Said};
use flags::Flag;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why CMD cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CommandError {
    /// A shell hides the agent's arguments.
    #[error(
        "CMD is {shell} -c, whose arguments convene cannot see; write the agent itself: convene run -- consul agent … (Kubernetes fills $(POD_IP) in without a shell)"
    )]
    Shell {
        /// The shell.
        shell: String,
    },
    /// A value that Consul would refuse as well.
    #[error("{place}: {value:?} is not allowed; allowed: {allowed}")]
    Value {
        /// Where.
        place: String,
        /// What.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// A Consul agent's command line.
#[derive(Debug, Clone)]
pub struct AgentCommand {
    words: Vec<OsString>,
    /// Where the agent's own arguments begin.
    begins: usize,
    flags: Vec<Flag>,
    facts: Facts,
    warnings: Vec<String>,
}

/// What convene will have the agent be.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// A server.
    pub server: bool,
    /// What it advertises, if that is ours to say.
    pub advertise: Option<IpAddr>,
    /// Its name.
    pub node_name: &'a str,
}

/// Something that CMD says and that would win over the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    place: Place,
    why: String,
    mend: String,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.place, self.why, self.mend)
    }
}

/// Flags that convene reads and takes out of CMD.
const TAKEN: &[&str] = &["bootstrap-expect", "retry-join", "join"];

// === impl AgentCommand ===

impl AgentCommand {
    /// Reads CMD; `None` when it is no Consul agent.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn read(words: &[OsString], env: &Env) -> Result<Option<Self>, CommandError> {
        let Some(Agent { begins, by_entrypoint }) = find_agent(words)? else { return Ok(None) };
        let mut warnings = Vec::new();
        let flags = flags::parse(words.get(begins..).unwrap_or_default(), &mut warnings);
        let mut layers = if by_entrypoint { entrypoint_layers(env, &mut warnings) } else { Vec::new() };
        layers.extend(flags.iter().flat_map(|flag| file_layers(flag, &mut warnings)));
        layers.extend(flags.iter().filter(|flag| flag.name == "hcl").filter_map(|flag| fragment(flag, &mut warnings)));
        let mut facts = Facts::read(&flags, &layers)?;
        if by_entrypoint && facts.data_dir.is_none() {
            let folder = env.get("CONSUL_DATA_DIR").unwrap_or(super::DEFAULT_DATA_DIR);
            facts.data_dir = Some(Said { value: folder.into(), place: Place::Entrypoint });
        }
        Ok(Some(Self { words: words.to_vec(), begins, flags, facts, warnings }))
    }

    /// What it says.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What could not be read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// CMD without the flags that convene takes over, and with the rendered file as the last one, so that it wins over the
    /// other files.
    pub fn with_config_file(&self, rendered: &Path) -> Vec<OsString> {
        let (before, arguments) = self.words.split_at_checked(self.begins).unwrap_or((&self.words, &[]));
        let mut command = before.to_vec();
        let mut next = 0;
        for flag in &self.flags {
            if !TAKEN.contains(&flag.name.as_str()) {
                command.extend(arguments.get(flag.words.clone()).unwrap_or_default().iter().cloned());
            }
            next = flag.words.end;
        }
        let mut file = OsString::from("-config-file=");
        file.push(rendered);
        command.push(file);
        command.extend(arguments.get(next..).unwrap_or_default().iter().cloned());
        command
    }

    /// What CMD says and would win over the decision.
    pub fn contradictions(&self, wanted: &Wanted<'_>) -> Vec<Contradiction> {
        let facts = &self.facts;
        let mut all = Vec::new();
        let mut say = |place: &Place, why: String, mend: &str| {
            all.push(Contradiction { place: place.clone(), why, mend: mend.to_owned() })
        };
        for (said, what) in [
            (&facts.bootstrap, "elects this server without asking any other"),
            (&facts.dev, "keeps nothing and joins nobody"),
        ] {
            if let Some(said) = said.as_ref().filter(|said| said.value) {
                say(&said.place, what.to_owned(), "take it out");
            }
        }
        if let Some(said) = facts.leave_on_terminate.as_ref().filter(|said| said.value && wanted.server) {
            say(
                &said.place,
                "removes a voter at every stop".to_owned(),
                "take it out, and give --leave=always if that is what you want",
            );
        }
        if let Some(said) = &facts.node_id {
            say(
                &said.place,
                format!("is {:?}, but the node ID stands in the data folder's node-id", said.value),
                "take it out; a valid ID that is there is never changed",
            );
        }
        if let Some(said) = facts.bootstrap_expect.as_ref().filter(|said| said.place.is_file()) {
            say(
                &said.place,
                format!("is {} for every start, also one that must not found", said.value),
                &format!("take it out and give --expect {}", said.value),
            );
        }
        for said in facts.retry_join.iter().filter(|said| said.place.is_file()) {
            say(
                &said.place,
                format!("is {:?}, which may be this server itself", said.value),
                &format!("take it out and give --discover dns:{}", said.value),
            );
        }
        if let Some(said) = facts.server.as_ref().filter(|said| said.value != wanted.server) {
            let role = if wanted.server { "server" } else { "client" };
            say(&said.place, format!("is {} but --role is {role}", said.value), "say the role once");
        }
        if let (Some(said), Some(ours)) = (&facts.advertise_addr, wanted.advertise)
            && said.value.ip().is_some_and(|theirs| theirs != ours)
        {
            say(&said.place, format!("is {} but --advertise is {ours}", said.value), "say the address once");
        }
        if let Some(said) = facts.node_name.as_ref().filter(|said| said.value != wanted.node_name) {
            say(
                &said.place,
                format!("is {:?} but --node-name is {:?}", said.value, wanted.node_name),
                "say the name once",
            );
        }
        if let Some(contradiction) = self.hidden(wanted) {
            all.push(contradiction);
        }
        all
    }

    /// A server whose API listens on loopback alone cannot be asked by the others, which then wait for it.
    fn hidden(&self, wanted: &Wanted<'_>) -> Option<Contradiction> {
        let facts = &self.facts;
        let advertise = wanted.advertise.filter(|ip| wanted.server && !ip.is_loopback())?;
        let said = facts.addresses_http.as_ref().or(facts.client_addr.as_ref());
        let listens = said.map_or("127.0.0.1", |said| said.value.as_str());
        let loopback = |one: &str| {
            one.starts_with("unix:") || one == "localhost" || one.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        listens.split_ascii_whitespace().all(loopback).then(|| Contradiction {
            place: said.map_or(Place::Default("client_addr".to_owned()), |said| said.place.clone()),
            why: format!("is {listens}, where no other server can ask this one (it advertises {advertise})"),
            mend: "give CMD -client=0.0.0.0".to_owned(),
        })
    }
}

/// Where in CMD the agent is.
struct Agent {
    begins: usize,
    by_entrypoint: bool,
}

const SHELLS: &[&str] = &["sh", "bash", "dash", "ash", "zsh", "ksh"];
const INITS: &[&str] = &["dumb-init", "tini", "tini-static", "catatonit"];

/// Finds `consul agent` or `agent` behind the programs that usually stand before it.
fn find_agent(words: &[OsString]) -> Result<Option<Agent>, CommandError> {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let name = |at: usize| words.get(at).map(|word| word.rsplit('/').next().unwrap_or(word).to_owned());
    let mut at = 0;
    let mut by_entrypoint = false;
    while let Some(program) = name(at) {
        match program.as_str() {
            shell if SHELLS.contains(&shell) => {
                let script = words
                    .iter()
                    .skip(at + 1)
                    .take_while(|word| word.starts_with('-'))
                    .any(|word| !word.starts_with("--") && word.contains('c'));
                return if script { Err(CommandError::Shell { shell: shell.to_owned() }) } else { Ok(None) };
            }
            "docker-entrypoint.sh" => {
                by_entrypoint = true;
                at += 1;
            }
            init if INITS.contains(&init) => at = after_options(&words, at + 1),
            "su-exec" | "gosu" => at += 2,
            "env" => {
                at += 1 + words
                    .iter()
                    .skip(at + 1)
                    .take_while(|word| word.contains('=') && !word.starts_with('-'))
                    .count()
            }
            "consul" if name(at + 1).as_deref() == Some("agent") => {
                return Ok(Some(Agent { begins: at + 2, by_entrypoint: false }));
            }
            "agent" => return Ok(Some(Agent { begins: at + 1, by_entrypoint })),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Skips tini's and dumb-init's own options.
fn after_options(words: &[String], mut at: usize) -> usize {
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        at += match word.as_str() {
            "--" => return at + 1,
            "-p" | "-e" | "-r" | "--rewrite" => 2,
            _ => 1,
        };
    }
    at
}

/// What Consul's docker-entrypoint.sh adds before the arguments of `agent`.
fn entrypoint_layers(env: &Env, warnings: &mut Vec<String>) -> Vec<Layer> {
    let folder = env.get("CONSUL_CONFIG_DIR").unwrap_or("/consul/config");
    let mut layers = if Path::new(folder).is_dir() { path_layers(folder.as_ref(), warnings) } else { Vec::new() };
    if let Some(text) = env.get("CONSUL_LOCAL_CONFIG") {
        layers.extend(layer(&PathBuf::from("CONSUL_LOCAL_CONFIG"), text, warnings));
    }
    layers
}

fn file_layers(flag: &Flag, warnings: &mut Vec<String>) -> Vec<Layer> {
    match flag.name.as_str() {
        "config-file" | "config-dir" => path_layers(Path::new(&flag.value), warnings),
        _ => Vec::new(),
    }
}

fn fragment(flag: &Flag, warnings: &mut Vec<String>) -> Option<Layer> {
    match hcl::parse(&flag.value) {
        Ok(tree) => Some(Layer { file: None, tree }),
        Err(error) => {
            warnings.push(format!("could not read -hcl as HCL: {error}; convene judges without it"));
            None
        }
    }
}

/// A file, or a folder's .json and .hcl files in lexical order, as Consul reads them.
fn path_layers(path: &Path, warnings: &mut Vec<String>) -> Vec<Layer> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        match std::fs::read_dir(path) {
            Ok(entries) => {
                files = entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|file| file.is_file() && has_format(file))
                    .collect()
            }
            Err(error) => {
                warnings.push(format!("could not read {}: {error}; convene judges without it", path.display()))
            }
        }
        files.sort();
    }
    files
        .iter()
        .filter_map(|file| match std::fs::read_to_string(file) {
            Ok(text) => layer(file, &text, warnings),
            Err(error) => {
                warnings.push(format!("could not read {}: {error}; convene judges without it", file.display()));
                None
            }
        })
        .collect()
}

fn has_format(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "json" || extension == "hcl")
}

/// A file's content. The parser's words may quote a secret, so only the place is told.
fn layer(file: &Path, text: &str, warnings: &mut Vec<String>) -> Option<Layer> {
    let json = || serde_json::from_str(text).map_err(|error| format!("JSON (line {})", error.line()));
    let hcl = || hcl::parse(text).map_err(|error| format!("HCL (line {})", error.line));
    let tree = match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => json(),
        Some("hcl") => hcl(),
        _ => json().or_else(|_| hcl()),
    };
    match tree {
        Ok(tree) => Some(Layer { file: Some(file.to_owned()), tree }),
        Err(what) => {
            warnings.push(format!("could not read {} as {what}; convene judges without it", file.display()));
            None
        }
    }
}

#[cfg(test)]
mod tests;
