//! What the agent says of its own raft, to whom may ask it (`agent:read`): in touch with a leader, caught up, and a voter or not.
//!
//! Takes `/v1/agent/self`, gives [`Own`] or the reason why it is not well. Asks nobody.

use super::{LAST_CONTACT, MAX_TRAILING_LOGS};
use crate::api::consul::AgentSelf;
use std::time::Duration;

/// A server that is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    /// It leads.
    pub leads: bool,
    /// It votes; `None` when that was not said.
    pub voter: Option<bool>,
}

impl Own {
    /// Reads what the agent says.
    pub(super) fn read(described: &AgentSelf) -> Result<Self, String> {
        let raft = described.stats.get("raft");
        let stat = |key: &str| raft.and_then(|raft| raft.get(key)).map(String::as_str).unwrap_or_default();
        let voter = is_voter(stat("latest_configuration"), &described.config.node_id);
        match stat("state") {
            "Leader" => return Ok(Self { leads: true, voter }),
            "Follower" => {}
            other => return Err(format!("raft state is {other:?}, neither leader nor follower")),
        }
        let contact = go_duration(stat("last_contact"))
            .ok_or_else(|| format!("the leader was never heard of (last contact {:?})", stat("last_contact")))?;
        in_touch(contact)?;
        let index = |key: &str| stat(key).parse::<u64>().unwrap_or(0);
        let (applied, committed) = (index("applied_index"), index("commit_index"));
        if applied + MAX_TRAILING_LOGS < committed || committed == 0 {
            return Err(format!("not caught up: applied {applied} of {committed}"));
        }
        if voter == Some(false) {
            return Err("the own raft configuration has us as a non-voter".to_owned());
        }
        Ok(Self { leads: false, voter })
    }
}

/// Whether the leader was heard of lately enough.
pub(super) fn in_touch(contact: Duration) -> Result<(), String> {
    if contact > LAST_CONTACT {
        return Err(format!(
            "the leader was last heard of {} ago, and at most {} is allowed",
            crate::time::text(contact),
            crate::time::text(LAST_CONTACT)
        ));
    }
    Ok(())
}

/// How raft prints a configuration: `[{Suffrage:Voter ID:79bf… Address:10.0.0.1:8300} {…}]`.
fn is_voter(configuration: &str, id: &str) -> Option<bool> {
    let ours = |server: &&str| server.split_whitespace().any(|word| word.strip_prefix("ID:") == Some(id));
    let us = configuration.split(['{', '}']).find(ours)?;
    let suffrage = us.split_whitespace().find_map(|word| word.strip_prefix("Suffrage:"))?;
    Some(suffrage == "Voter")
}

/// Go's way to write a duration, as in raft's `last_contact`: `0`, `15.2ms`, `1.5s`, `1m2s`, `never`.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(digits)?;
        let units = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(units)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" | "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffrage_is_read_from_the_configuration_as_raft_prints_it() {
        let configuration =
            "[{Suffrage:Voter ID:a-1 Address:10.0.0.1:8300} {Suffrage:Nonvoter ID:a-2 Address:10.0.0.2:8300}]";
        assert_eq!(is_voter(configuration, "a-1"), Some(true));
        assert_eq!(is_voter(configuration, "a-2"), Some(false));
        assert_eq!(is_voter(configuration, "a-"), None);
        assert_eq!(is_voter("", "a-1"), None);
    }

    #[test]
    fn gos_durations_are_read() {
        for (text, micros) in [
            ("0", 0),
            ("15.2ms", 15_200),
            ("1.5s", 1_500_000),
            ("1m2s", 62_000_000),
            ("80µs", 80),
            ("1h", 3_600_000_000),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["never", "", "5", "1x", "s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
