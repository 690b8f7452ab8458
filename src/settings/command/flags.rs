//! Which flags of `consul agent` stand in CMD? Takes the words after `agent`, gives each flag with its value and its
//! place, by the rules of Go's `flag` package (<https://pkg.go.dev/flag#hdr-Command_line_flag_syntax>).
//!
//! It judges no value. It fails where Go fails: a flag without its value, and a word such as `-=x`. A flag that it does
//! not know (a newer Consul) is read as well as can be, and marked.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

use super::CommandError;
use super::sayings::Key;

/// Flags that take a value only after `=`. From `consul agent -h` of 1.22.6; `h` and `help` are Go's own.
const BOOLEAN: [&str; 16] = [
    "auto-reload-config",
    "bootstrap",
    "dev",
    "disable-host-node-id",
    "disable-keyring-file",
    "enable-local-script-checks",
    "enable-script-checks",
    "h",
    "help",
    "log-json",
    "non-voting-server",
    "read-replica",
    "rejoin",
    "server",
    "syslog",
    "ui",
];

/// Flags that take the next word when they have no `=`. From `consul agent -h` of 1.22.6.
const VALUED: [&str; 54] = [
    "advertise",
    "advertise-wan",
    "allow-write-http-from",
    "alt-domain",
    "bind",
    "bootstrap-expect",
    "check_output_max_size",
    "client",
    "config-dir",
    "config-file",
    "config-format",
    "data-dir",
    "datacenter",
    "default-query-time",
    "dns-port",
    "domain",
    "encrypt",
    "grpc-port",
    "grpc-tls-port",
    "hcl",
    "http-port",
    "https-port",
    "join",
    "join-wan",
    "log-file",
    "log-level",
    "log-rotate-bytes",
    "log-rotate-duration",
    "log-rotate-max-files",
    "max-query-time",
    "node",
    "node-id",
    "node-meta",
    "pid-file",
    "primary-gateway",
    "protocol",
    "raft-protocol",
    "recursor",
    "retry-interval",
    "retry-interval-wan",
    "retry-join",
    "retry-join-wan",
    "retry-max",
    "retry-max-wan",
    "segment",
    "serf-lan-allowed-cidrs",
    "serf-lan-bind",
    "serf-lan-port",
    "serf-wan-allowed-cidrs",
    "serf-wan-bind",
    "serf-wan-port",
    "server-port",
    "ui-content-path",
    "ui-dir",
];

/// What a flag says, when convene wants to know it.
fn key(name: &str) -> Option<Key> {
    Some(match name {
        "advertise" => Key::AdvertiseAddr,
        "bind" => Key::BindAddr,
        "bootstrap" => Key::Bootstrap,
        "bootstrap-expect" => Key::BootstrapExpect,
        "client" => Key::ClientAddr,
        "data-dir" => Key::DataDir,
        "datacenter" => Key::Datacenter,
        "dev" => Key::Dev,
        "disable-keyring-file" => Key::DisableKeyringFile,
        "domain" => Key::Domain,
        "encrypt" => Key::Encrypt,
        "http-port" => Key::HttpPort,
        "https-port" => Key::HttpsPort,
        "join" => Key::StartJoin,
        "node" => Key::NodeName,
        "node-id" => Key::NodeId,
        "rejoin" => Key::RejoinAfterLeave,
        "retry-join" => Key::RetryJoin,
        "serf-lan-port" => Key::SerfLanPort,
        "serf-wan-port" => Key::SerfWanPort,
        "server" => Key::Server,
        "server-port" => Key::ServerPort,
        _ => return None,
    })
}

/// One flag as it stands in CMD.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Flag {
    /// The name without dashes.
    pub(super) name: String,
    /// What it says, when convene wants to know it.
    pub(super) key: Option<Key>,
    /// The value; `true` for a boolean flag that stands alone. Never printed as it is: it may be a key.
    pub(super) value: OsString,
    /// Its words, counted from the first word after `agent`.
    pub(super) words: Range<usize>,
    /// False for a flag that Consul 1.22 does not have.
    pub(super) known: bool,
}

/// All flags, in order.
pub(super) struct Flags {
    pub(super) flags: Vec<Flag>,
    /// How many words the flags take: here stands `--`, the first word that is no flag, or the end.
    pub(super) end: usize,
    /// How many words come after the flags, without a `--`. Consul refuses any.
    pub(super) rest: usize,
}

/// Reads the words after `agent`.
pub(super) fn parse(words: &[OsString]) -> Result<Flags, CommandError> {
    let mut flags = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            return Ok(Flags { flags, end: at, rest: words.len() - at - 1 });
        }
        let Some(dashed) = bytes.strip_prefix(b"-").filter(|dashed| !dashed.is_empty()) else {
            return Ok(Flags { flags, end: at, rest: words.len() - at });
        };
        let named = dashed.strip_prefix(b"-").unwrap_or(dashed);
        if named.starts_with(b"-") || named.starts_with(b"=") {
            return Err(CommandError::NoFlag { word: at + 1 });
        }
        let mut parts = named.splitn(2, |byte| *byte == b'=');
        let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let given = parts.next().map(|value| OsStr::from_bytes(value).to_owned());
        let flag = one(name, given, words.get(at + 1), at)?;
        at = flag.words.end;
        flags.push(flag);
    }
    Ok(Flags { flags, end: at, rest: 0 })
}

/// One flag: `given` is its value after `=`, `next` the word after it, `at` its own place.
fn one(name: String, given: Option<OsString>, next: Option<&OsString>, at: usize) -> Result<Flag, CommandError> {
    let boolean = BOOLEAN.contains(&name.as_str());
    let known = boolean || VALUED.contains(&name.as_str());
    let (value, words) = match (given, next) {
        (Some(value), _) => (value, at..at + 1),
        (None, _) if boolean => (OsString::from("true"), at..at + 1),
        (None, Some(next)) if known => (next.clone(), at..at + 2),
        (None, None) if known => return Err(CommandError::NoValue { flag: name }),
        // A guess: `consul agent` takes flags only, so a word without a dash can only be this flag's value.
        (None, Some(next)) if !next.as_bytes().starts_with(b"-") => (next.clone(), at..at + 2),
        (None, _) => (OsString::from("true"), at..at + 1),
    };
    Ok(Flag { key: key(&name), name, value, words, known })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    fn seen(text: &str) -> (Vec<(String, String)>, usize, usize) {
        let Flags { flags, end, rest } = parse(&words(text)).unwrap();
        (flags.into_iter().map(|flag| (flag.name, flag.value.into_string().unwrap())).collect(), end, rest)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn one_dash_or_two_and_a_value_by_equals_sign_or_next_word_are_the_same() {
        let wanted = pairs(&[("bootstrap-expect", "3")]);
        for text in ["-bootstrap-expect=3", "--bootstrap-expect=3", "-bootstrap-expect 3", "--bootstrap-expect 3"] {
            assert_eq!(seen(text).0, wanted, "{text}");
        }
    }

    #[test]
    fn a_boolean_flag_takes_a_value_only_by_equals_sign() {
        assert_eq!(seen("-server=false -ui"), (pairs(&[("server", "false"), ("ui", "true")]), 2, 0));
        assert_eq!(seen("-server false -ui"), (pairs(&[("server", "true")]), 1, 2));
    }

    #[test]
    fn a_value_may_start_with_a_dash_or_hold_equals_signs() {
        assert_eq!(seen("-https-port -1 -node-meta=a=b").0, pairs(&[("https-port", "-1"), ("node-meta", "a=b")]));
        assert_eq!(seen("-node -server").0, pairs(&[("node", "-server")]));
        assert_eq!(seen("-node=").0, pairs(&[("node", "")]));
    }

    #[test]
    fn a_lone_double_dash_or_the_first_other_word_ends_the_flags() {
        assert_eq!(seen("-server -- -ui"), (pairs(&[("server", "true")]), 1, 1));
        assert_eq!(seen("-server x -ui"), (pairs(&[("server", "true")]), 1, 2));
        assert_eq!(seen("- -ui"), (vec![], 0, 2));
        assert_eq!(seen(""), (vec![], 0, 0));
    }

    #[test]
    fn what_go_refuses_is_refused_without_quoting_a_value() {
        let error = |text| parse(&words(text)).err().map(|error| error.to_string());
        assert_eq!(error("-server -node").as_deref(), Some("could not read CMD's flag -node: it has no value"));
        for text in ["-ui -=s3cret", "-ui ---x", "-ui --=s3cret"] {
            let wanted = "could not read CMD's arguments: word 2 after `agent` starts like a flag and is none";
            assert_eq!(error(text).as_deref(), Some(wanted), "{text}");
        }
    }

    #[test]
    fn an_unknown_flag_does_not_hide_those_after_it() {
        for text in ["-new -server", "-new=x -server", "-new x -server"] {
            let parsed = parse(&words(text)).unwrap();
            let known: Vec<_> = parsed.flags.iter().map(|flag| (flag.name.as_str(), flag.known)).collect();
            assert_eq!(known, [("new", false), ("server", true)], "{text}");
        }
    }

    #[test]
    fn every_flag_of_the_table_stands_in_one_list_only() {
        let mut all: Vec<_> = BOOLEAN.iter().chain(&VALUED).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    proptest! {
        #[test]
        fn invariant_any_words_are_read_or_refused_and_every_word_is_counted_once(
            raw in prop::collection::vec(prop::collection::vec(prop::sample::select(b"-=ax\xff".to_vec()), 0..5), 0..8),
        ) {
            let words: Vec<OsString> = raw.into_iter().map(OsString::from_vec).collect();
            if let Ok(parsed) = parse(&words) {
                let mut at = 0;
                for flag in &parsed.flags {
                    prop_assert_eq!(flag.words.start, at);
                    at = flag.words.end;
                }
                prop_assert_eq!(at, parsed.end);
                prop_assert!(parsed.end + parsed.rest <= words.len());
            }
        }
    }
}
