//! Is CMD a Consul agent, and where do its flags start? Takes CMD's words, gives the place after `agent` and what a
//! wrapper before it adds.
//!
//! It knows the wrappers that people put before Consul in an image (`docker-entrypoint.sh`, `dumb-init`, `tini`,
//! `su-exec`, `gosu`, `env`), each with its own options. It starts nothing and resolves no path. It fails only for a
//! shell that gets its command as one string, because nobody can read the agent's flags in there.

use std::ffi::OsString;
use std::path::Path;

use super::CommandError;

/// Where a Consul agent stands in CMD.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The first word after `agent`.
    pub(super) agent_at: usize,
    /// Whether the image's `docker-entrypoint.sh` puts flags of its own before CMD's: it does so when `agent` is the
    /// word right after it (<https://github.com/hashicorp/consul/blob/v1.22.6/.release/docker/docker-entrypoint.sh>).
    pub(super) entrypoint: bool,
    /// What `env` sets.
    pub(super) variables: Vec<(String, OsString)>,
}

/// Finds the agent, or `None` when CMD is another program.
pub(super) fn find(words: &[OsString]) -> Result<Option<Found>, CommandError> {
    let mut variables = Vec::new();
    let mut entrypoint = false;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let after_entrypoint = std::mem::take(&mut entrypoint);
        at += 1;
        match name(word) {
            "docker-entrypoint.sh" => entrypoint = true,
            "busybox" => {}
            "dumb-init" => at = after_options(words, at, "r", &["--rewrite"]),
            "tini" | "tini-static" | "docker-init" => at = after_options(words, at, "pe", &[]),
            "su-exec" | "gosu" => at += 1,
            "env" => match after_env(words, at, &mut variables) {
                Some(next) => at = next,
                None => return Ok(None),
            },
            shell @ ("sh" | "ash" | "bash" | "dash" | "ksh" | "zsh") if takes_a_string(words, at) => {
                return Err(CommandError::HiddenInShell { shell: shell.to_owned() });
            }
            "consul" if words.get(at).is_some_and(|next| next == "agent") => {
                return Ok(Some(Found { agent_at: at + 1, entrypoint: false, variables }));
            }
            // Only the bare word: `/opt/other/agent` is another program.
            "agent" if word == "agent" => {
                return Ok(Some(Found { agent_at: at, entrypoint: after_entrypoint, variables }));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The program's name without its folder; empty when it is no text.
fn name(word: &OsString) -> &str {
    Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The place after a wrapper's options, read as `getopt` does when it stops at the first other word. `valued` are the
/// short options that take a value, `valued_long` the long ones.
fn after_options(words: &[OsString], mut at: usize, valued: &str, valued_long: &[&str]) -> usize {
    while let Some(option) = words.get(at).and_then(|word| word.to_str()) {
        if option == "--" {
            return at + 1;
        }
        if !option.starts_with('-') || option == "-" {
            return at;
        }
        at += 1;
        if option.starts_with("--") {
            at += usize::from(valued_long.contains(&option));
        } else if option.chars().skip(1).position(|letter| valued.contains(letter)) == Some(option.chars().count() - 2)
        {
            at += 1;
        }
    }
    at
}

/// The place after `env`'s options and variables; `None` for an option that splits or hides words.
fn after_env(words: &[OsString], mut at: usize, variables: &mut Vec<(String, OsString)>) -> Option<usize> {
    while let Some(word) = words.get(at).and_then(|word| word.to_str()) {
        match (word, word.split_once('=')) {
            ("--", _) => return Some(at + 1),
            ("-" | "-i" | "--ignore-environment", _) => at += 1,
            ("-u" | "--unset", _) => at += 2,
            (option, _) if option.starts_with('-') => return None,
            (_, Some((name, value))) => {
                variables.push((name.to_owned(), value.into()));
                at += 1;
            }
            _ => return Some(at),
        }
    }
    Some(at)
}

/// Whether a shell's options hold `c`, alone or among others (`-ec`), also after an option with a value (`-o pipefail`).
fn takes_a_string(words: &[OsString], mut at: usize) -> bool {
    while let Some(option) = words.get(at).and_then(|word| word.to_str()) {
        at += 1;
        match option.strip_prefix(['-', '+']) {
            None | Some("-") => return false,
            Some(long) if long.starts_with('-') => {}
            Some(letters) if letters.contains('c') => return true,
            Some(letters) => at += usize::from(letters.ends_with(['o', 'O'])),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn an_agent_is_found_behind_every_wrapper() {
        for text in [
            "consul agent |",
            "agent |",
            "/bin/consul agent |",
            "/usr/local/bin/docker-entrypoint.sh agent |",
            "docker-entrypoint.sh consul agent |",
            "dumb-init consul agent |",
            "/usr/bin/dumb-init --single-child -- consul agent |",
            "dumb-init -v -r 15:2 --rewrite 1:2 --rewrite=3:4 consul agent |",
            "dumb-init -cr15:2 consul agent |",
            "tini -g -- consul agent |",
            "/sbin/tini -vv -p SIGTERM -e143 -we 1 consul agent |",
            "tini -- docker-entrypoint.sh agent |",
            "su-exec consul:consul consul agent |",
            "env A=b -- consul agent |",
            "/usr/bin/env -i -u X A=b C= gosu 100 consul agent |",
        ] {
            let words = words(text);
            let found = find(&words).unwrap().unwrap_or_else(|| panic!("{text}"));
            assert_eq!(words.get(found.agent_at).unwrap(), "|", "{text}");
        }
    }

    #[test]
    fn another_program_is_no_agent() {
        for text in [
            "",
            "/bin/true",
            "consul",
            "consul validate agent",
            "consul -agent",
            "/opt/other/agent",
            "docker-entrypoint.sh -server",
            "sh start.sh agent",
            "bash -e -- -c",
            "tini --",
            "dumb-init -r",
            "env A=b",
            "env -S consul agent",
            "my-consul agent",
        ] {
            assert_eq!(find(&words(text)).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn a_shell_with_a_command_string_is_refused_with_the_mend() {
        for text in [
            "sh -c x",
            "/bin/sh -ec x",
            "bash -o pipefail -c x",
            "tini -- /bin/dash -e -x -c x",
            "busybox ash -lc x",
            "bash --norc +ec x",
            "bash -eo pipefail -c x",
        ] {
            let error = find(&words(text)).unwrap_err().to_string();
            let mend = " -c` hides them in a string; write the words themselves: `convene run -- consul agent -server …` (in a Pod, $(NAME) stands for a variable)";
            assert!(error.starts_with("could not read CMD's arguments: `") && error.ends_with(mend), "{text}: {error}");
        }
    }

    #[test]
    fn the_entrypoint_adds_flags_only_when_agent_follows_it() {
        let adds = |text| find(&words(text)).unwrap().unwrap().entrypoint;
        assert!(adds("docker-entrypoint.sh agent"));
        assert!(adds("tini -- /x/docker-entrypoint.sh agent"));
        for text in ["docker-entrypoint.sh consul agent", "consul agent", "agent", "docker-entrypoint.sh tini agent"] {
            assert!(!adds(text), "{text}");
        }
    }

    #[test]
    fn what_env_sets_is_kept() {
        let found = find(&words("env A=b=c docker-entrypoint.sh agent")).unwrap().unwrap();
        assert_eq!(found.variables, [("A".to_owned(), OsString::from("b=c"))]);
        assert!(found.entrypoint);
    }
}
