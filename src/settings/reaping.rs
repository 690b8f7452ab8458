//! Whom may `reap` remove, and how many? Its own flags.
//!
//! Takes the flags, gives [`Reaping`]. Asks nobody. Fails with [`SettingsError`].

use super::read::{Reader, SettingsError};
use crate::cli::ReapArgs;

/// How many clients one run removes at most: a CronJob comes again, and a mistake should be seen before it is done.
pub const DEFAULT_AT_MOST: usize = 20;

/// What `reap` may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaping {
    /// Remove, and do not only say so.
    pub yes: bool,
    /// How many at most.
    pub at_most: usize,
    /// Only clients with this node meta: key and value.
    pub meta: Option<(String, String)>,
    /// Also against a brake.
    pub force: bool,
}

// === impl Reaping ===

impl Reaping {
    /// Reads what it may do.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn read(reader: Reader<'_>, args: &ReapArgs) -> Result<Self, SettingsError> {
        let ReapArgs { common: _, yes, at_most, node_meta, force } = args;
        let meta = reader.text(node_meta).map(|text| {
            let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
            pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| SettingsError::Value {
                place: reader.places.of("node_meta"),
                value: text.to_owned(),
                allowed: "KEY=VALUE".to_owned(),
                nearest: String::new(),
            })
        });
        let at_most = reader.number("at_most", at_most, 1..=1000)?;
        Ok(Self {
            yes: reader.boolean("yes", yes)?,
            at_most: at_most.and_then(|most| most.try_into().ok()).unwrap_or(DEFAULT_AT_MOST),
            meta: meta.transpose()?,
            force: reader.boolean("force", force)?,
        })
    }
}
