//! Which gossip keys does the agent keep on its volume, and is the key that it is given one of them? Takes the volume and the
//! key, gives what a person should know before the start. Reads Consul's `serf/local.keyring` and never writes it. Never shows
//! a key. Fails where Consul will refuse the key.
//!
//! Tried on Consul 1.22.6, an agent with `encrypt` in a file:
//!
//! - the first start writes the key into the keyring (mode 0600), and from then on Consul reads the keyring only, also when
//!   `encrypt` is gone;
//! - a key that is in the keyring, first or later: not a word; the first one is used for sending, and `consul keyring -use` brings
//!   a key there;
//! - a key that is not in it: Consul warns "keyring doesn't include key provided with -encrypt, using keyring", and does so. The
//!   key must be base64 and may be of any length then; without a keyring a wrong length ends the start;
//! - a keyring that is no JSON list of keys, or an empty one: Consul ends with 1;
//! - `disable_keyring_file`: the given key is used, whatever the keyring says.

use super::Volume;
use crate::settings::gossip::GossipKey;
use crate::settings::http::Secret;
use crate::settings::read::SettingsError;
use std::path::PathBuf;
use tracing::{info, warn};

/// Below the data folder: a JSON list of keys, the one that is used for sending first.
const KEYRING: &str = "serf/local.keyring";

/// How the given key stands to the keyring on the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no keyring, or Consul was told to keep none: the given key is used.
    Used,
    /// The first of the keyring is the given key.
    First,
    /// It is in the keyring, and another one is used for sending.
    Later {
        /// The keyring.
        file: PathBuf,
    },
    /// It is not in the keyring, and nobody uses it.
    Ignored {
        /// The keyring.
        file: PathBuf,
    },
    /// The keyring cannot be read, by Consul neither.
    Unreadable {
        /// The keyring.
        file: PathBuf,
        /// Why, without a word of it.
        why: String,
    },
}

// === impl Volume ===

impl Volume {
    /// How `key` stands to the keyring.
    ///
    /// # Errors
    /// [`SettingsError::GossipKey`]: it has a wrong length, and there is no keyring that takes its place.
    pub fn standing(&self, key: &GossipKey) -> Result<Standing, SettingsError> {
        let file = self.dir.join(KEYRING);
        if !key.keeps_keyring || !file.exists() {
            return key.of_right_length().map(|()| Standing::Used);
        }
        let entries: Vec<Secret> = match std::fs::read(&file).map(|bytes| serde_json::from_slice::<Vec<String>>(&bytes))
        {
            Ok(Ok(entries)) => entries.into_iter().map(Secret::new).collect(),
            // serde_json's own sentences may quote a value.
            Ok(Err(_)) => return Ok(Standing::Unreadable { file, why: "it is not a JSON list of texts".to_owned() }),
            Err(error) => return Ok(Standing::Unreadable { file, why: error.to_string() }),
        };
        Ok(match entries.iter().position(|entry| key.is(entry)) {
            Some(0) => Standing::First,
            Some(_) => Standing::Later { file },
            None if entries.is_empty() => Standing::Unreadable { file, why: "it holds no key".to_owned() },
            None => Standing::Ignored { file },
        })
    }
}

// === impl Standing ===

impl Standing {
    /// Says what a person should know of it; `place` is where the key is given.
    pub fn tell(&self, place: &str) {
        match (self, self.told(place)) {
            (_, None) => {}
            (Self::Later { .. }, Some(told)) => info!("{told}"),
            (_, Some(told)) => warn!("{told}"),
        }
    }

    /// What a person should know of it, with what to do; `None`: nothing.
    pub fn told(&self, place: &str) -> Option<String> {
        match self {
            Self::Used | Self::First => None,
            Self::Later { file } => Some(format!(
                "the gossip key of {place} is known to this agent, but it sends by another one, the first in {}: after a rotation by \
                 `consul keyring` give that one as encrypt, before the old one is removed",
                file.display()
            )),
            Self::Ignored { file } => Some(format!(
                "the gossip key of {place} is not in {}, and Consul uses the keys of that file only: if they were rotated by `consul keyring`, \
                 give the first of them as encrypt; if this key is the new one, bring it to all agents by `consul keyring -install` and \
                 `-use`; if this volume is from another cluster, stop the agent and move serf/*.keyring aside",
                file.display()
            )),
            Self::Unreadable { file, why } => Some(format!(
                "could not read {}: {why}; Consul will refuse it: move it aside, and Consul starts with the gossip key of {place}",
                file.display()
            )),
        }
    }
}
