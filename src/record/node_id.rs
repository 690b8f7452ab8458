//! A node ID, as Consul keeps it in `<data-dir>/node-id`.
//!
//! Takes the file's bytes, gives an ID or what is wrong with it, by Consul's own rule (agent/nodeid.go): 36 characters of a
//! UUID of any version, a newline after them allowed. New ones are random, because an ID that came from a name would let a
//! server with an empty disk pass for its predecessor.

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
