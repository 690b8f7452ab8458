//! A node ID, as Consul keeps it in `<data-dir>/node-id`.
//!
//! Takes the file's bytes, gives an ID or what is wrong with it, by Consul's own rule (agent/nodeid.go): 36 characters of a
//! UUID of any version, a newline after them allowed. New ones are random for servers, because an ID that came from a name
//! would let a server with an empty disk pass for its predecessor; a client's comes from its name.

use std::fmt;
use thiserror::Error;
use uuid::Uuid;

/// A valid node ID, spelled as it was found.
#[derive(Debug, Clone)]
pub struct NodeId(String);

/// What is wrong with a node-id file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Wrong {
    /// No byte in it.
    #[error("it is empty")]
    Empty,
    /// Not a UUID.
    #[error("it holds {0:?}, which is not a UUID of 36 characters")]
    NotAUuid(String),
}

// === impl NodeId ===

impl NodeId {
    /// A new, random one.
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string())
    }

    /// A client's, which has no disk to lose: the same for the same name, so that an agent that returns without a volume is no other
    /// node ("Node name … is reserved"). Names that differ give IDs that differ, on one machine too. Consul compares names without
    /// regard to case.
    pub fn of_client(datacenter: &str, namespace: &str, node: &str) -> Self {
        // Of our own making: no other names are hashed below it.
        let ours = Uuid::from_u128(0x6f1c_83d2_5b0e_4c7a_9d43_27be_51f0_8ac6);
        Self(Uuid::new_v5(&ours, format!("{datacenter}/{namespace}/{node}").to_lowercase().as_bytes()).to_string())
    }

    /// Reads text.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 36 && Uuid::try_parse(text).is_ok()).then(|| Self(text.to_owned()))
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn from_file(bytes: &[u8]) -> Result<Self, Wrong> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim();
        if text.is_empty() {
            return Err(Wrong::Empty);
        }
        Self::parse(text).ok_or_else(|| Wrong::NotAUuid(text.chars().take(60).collect()))
    }
}

/// Upper and lower case are one ID, as for Consul.
impl PartialEq for NodeId {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for NodeId {}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_id_is_the_same_for_the_same_name_and_another_s_for_any_other() {
        let id = |datacenter, namespace, node| NodeId::of_client(datacenter, namespace, node).to_string();
        let one = id("dc1", "apps", "machine-1");
        assert!(NodeId::parse(&one).is_some());
        assert_eq!(one, id("dc1", "apps", "Machine-1"));
        for other in [("dc2", "apps", "machine-1"), ("dc1", "other", "machine-1"), ("dc1", "apps", "web-7c9f-x2x4p")] {
            assert_ne!(one, id(other.0, other.1, other.2), "{other:?}");
        }
        // An upgrade of convene must not make every client another node.
        assert_eq!(one, "275054f9-defb-5115-81d5-73f3baaed6af");
    }
}
