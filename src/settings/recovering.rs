//! What may `recover` do? Its own flags.
//!
//! Takes the flags, gives [`Recovery`]. Asks nobody. Fails with [`SettingsError`].

use super::SERVER_PORT;
use super::read::{Reader, SettingsError};
use crate::cli::RecoverArgs;
use serde_json::{Value, json};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use uuid::Uuid;

/// A voter as Consul's peers.json names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The node ID, in lower case as Consul has it.
    pub id: String,
    /// Address and server port.
    pub address: SocketAddr,
}

// === impl Peer ===

impl Peer {
    /// A voter.
    pub fn voter(id: &str, address: SocketAddr) -> Self {
        Self { id: id.to_lowercase(), address }
    }

    /// These in the form of peers.json, since raft protocol 3.
    pub fn json(peers: &[Self]) -> Value {
        let one = |peer: &Self| json!({"id": peer.id, "address": peer.address.to_string(), "non_voter": false});
        peers.iter().map(one).collect()
    }

    /// Reads that form; `None`: something else.
    pub fn from_json(peers: &Value) -> Option<Vec<Self>> {
        let one =
            |peer: &Value| Some(Self::voter(peer.get("id")?.as_str()?, peer.get("address")?.as_str()?.parse().ok()?));
        peers.as_array()?.iter().map(one).collect()
    }

    /// Reads `ID@ADDRESS` or `ID@ADDRESS:PORT`.
    fn parse(text: &str) -> Option<Self> {
        let (id, address) = text.split_once('@')?;
        let with_port = || address.trim_matches(['[', ']']).parse().ok().map(|ip: IpAddr| (ip, SERVER_PORT).into());
        let address = address.parse().ok().or_else(with_port)?;
        (id.len() == 36 && Uuid::try_parse(id).is_ok()).then(|| Self::voter(id, address))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.address)
    }
}

/// What `recover` may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Do it, and do not only say so.
    pub yes: bool,
    /// The raft configuration from then on, sorted; none: this server alone.
    pub peers: Vec<Peer>,
    /// The names and addresses of servers that are silent, and that a person knows to be stopped.
    pub stopped: Vec<String>,
    /// A voter to remove by name or node ID; then nothing is recovered.
    pub remove: Option<String>,
}

// === impl Recovery ===

impl Recovery {
    /// Reads what it may do.
    ///
    /// # Errors
    /// [`SettingsError::Value`], [`SettingsError::Conflict`].
    pub fn read(reader: Reader<'_>, args: &RecoverArgs) -> Result<Self, SettingsError> {
        let RecoverArgs { common: _, survey: _, yes, peer, stopped, remove } = args;
        let words = |many: &[String]| -> Vec<String> {
            let all = many.iter().flat_map(|one| one.split(',')).map(str::trim);
            all.filter(|one| !one.is_empty()).map(str::to_owned).collect()
        };
        let parse = |text: String| {
            Peer::parse(&text).ok_or_else(|| SettingsError::Value {
                place: reader.places.of("peer"),
                value: text,
                allowed: "ID@ADDRESS or ID@ADDRESS:PORT, as convene recover shows it on each server".to_owned(),
                nearest: String::new(),
            })
        };
        let mut peers = words(peer).into_iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        peers.sort();
        let twice = |pair: &[Peer]| matches!(pair, [one, other] if one.id == other.id || one.address == other.address);
        let same_address = |one: &Peer| peers.iter().filter(|other| other.address == one.address).count() > 1;
        if peers.windows(2).any(twice) || peers.iter().any(same_address) {
            return Err(SettingsError::Conflict {
                what: format!("{} names an ID or an address twice", reader.places.of("peer")),
                mend: "each server has one of its own: see what convene recover shows on each".to_owned(),
            });
        }
        let remove = reader.text(remove).map(str::to_owned);
        if remove.is_some() && !peers.is_empty() {
            return Err(SettingsError::Conflict {
                what: "--remove and --peer contradict each other".to_owned(),
                mend: "--remove is for a cluster that has a leader, --peer for one that has lost it: give one"
                    .to_owned(),
            });
        }
        Ok(Self { yes: reader.boolean("yes", yes)?, peers, stopped: words(stopped), remove })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_id_and_an_address_with_or_without_its_port() {
        let id = "68AF913C-e0bd-dbaf-b45e-1706f3382a69";
        for (text, read) in [
            ("@10.0.0.1:8310", "68af913c-e0bd-dbaf-b45e-1706f3382a69@10.0.0.1:8310"),
            ("@10.0.0.1", "68af913c-e0bd-dbaf-b45e-1706f3382a69@10.0.0.1:8300"),
            ("@fd00::1", "68af913c-e0bd-dbaf-b45e-1706f3382a69@[fd00::1]:8300"),
            ("@[fd00::1]:8300", "68af913c-e0bd-dbaf-b45e-1706f3382a69@[fd00::1]:8300"),
        ] {
            assert_eq!(Peer::parse(&format!("{id}{text}")).unwrap().to_string(), read);
        }
        for text in ["10.0.0.1:8300", "consul-server-0@10.0.0.1:8300", "@10.0.0.1", &format!("{id}@consul-server-0")] {
            assert_eq!(Peer::parse(text), None, "{text}");
        }
    }
}
