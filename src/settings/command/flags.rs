//! CMD's flags, read exactly as Go's flag package reads them (<https://pkg.go.dev/flag#hdr-Command_line_flag_syntax>).
//!
//! Takes words, gives flags with the words that each one spans. Stops where Go stops: at `--` or the first word that is no
//! flag. Pure; an unknown flag is a warning, because a newer Consul may know it.

use std::ffi::OsString;
use std::ops::Range;

/// One flag as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Without dashes.
    pub name: String,
    /// `true` for a boolean without a value.
    pub value: String,
    /// The words it spans, counted from the first one that was parsed.
    pub words: Range<usize>,
}

/// Consul 1.22's boolean flags, which take a value only by `=` (agent/config/flags.go).
const BOOLEANS: &[&str] = &[
    "auto-reload-config",
    "bootstrap",
    "dev",
    "disable-host-node-id",
    "disable-keyring-file",
    "enable-local-script-checks",
    "enable-script-checks",
    "log-json",
    "non-voting-server",
    "read-replica",
    "rejoin",
    "server",
    "syslog",
    "ui",
];

/// Its other flags.
const VALUES: &[&str] = &[
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

/// Reads the flags.
pub fn parse(words: &[OsString], warnings: &mut Vec<String>) -> Vec<Flag> {
    let text = |at: usize| words.get(at).map(|word| word.to_string_lossy().into_owned());
    let mut flags = Vec::new();
    let mut at = 0;
    while let Some(word) = text(at) {
        let Some(body) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|body| !body.is_empty())
        else {
            break;
        };
        let begins = at;
        at += 1;
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None if BOOLEANS.contains(&body) => (body.to_owned(), "true".to_owned()),
            None if VALUES.contains(&body) => {
                let value = text(at).unwrap_or_default();
                at = (at + 1).min(words.len());
                (body.to_owned(), value)
            }
            None => {
                // Whether it takes a value cannot be known; a word that follows and is no flag is taken for one.
                let value = text(at).filter(|next| !next.starts_with('-'));
                at += usize::from(value.is_some());
                (body.to_owned(), value.unwrap_or_else(|| "true".to_owned()))
            }
        };
        if !BOOLEANS.contains(&name.as_str()) && !VALUES.contains(&name.as_str()) {
            warnings.push(format!("CMD's flag -{name} is not known to convene and is handed on as it stands"));
        }
        flags.push(Flag { name, value, words: begins..at });
    }
    flags
}
