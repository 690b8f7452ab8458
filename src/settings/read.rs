//! Reads one value: which text was given, where, and whether it is allowed.
//!
//! Takes what clap or the environment holds, gives typed values. An empty value counts as not given, because a manifest's
//! `value: ""` means that. Fails with [`SettingsError`]: place, value, what is allowed, the nearest right spelling.

use super::gossip::Mistake;
use crate::cli::Places;
use crate::time;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;
use thiserror::Error;

/// What is wrong with the settings. Always exit code 64.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingsError {
    /// A value that is not allowed.
    #[error("{place}: {value:?} is not allowed; allowed: {allowed}{nearest}")]
    Value {
        /// The flag, variable or file it came from.
        place: String,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: String,
        /// `; did you mean "x"?`, or nothing.
        nearest: String,
    },
    /// Something that must be given was not.
    #[error("{what} is not known: {mend}")]
    Missing {
        /// What is missing.
        what: String,
        /// How to give it.
        mend: String,
    },
    /// Two values that do not fit each other.
    #[error("{what}; {mend}")]
    Conflict {
        /// The two, with their places.
        what: String,
        /// What to do.
        mend: String,
    },
    /// A gossip key that Consul would refuse. Never the key.
    #[error("{place} is no gossip key, which is base64 of 16, 24 or 32 bytes: {mistake}")]
    GossipKey {
        /// The flag, or the file with its key.
        place: String,
        /// What is wrong with it, and the mend.
        mistake: Mistake,
    },
    /// CMD's own arguments say something else than convene must.
    #[error("{0}")]
    Command(String),
}

/// The environment, taken once.
#[derive(Debug, Clone, Default)]
pub struct Env(BTreeMap<String, String>);

/// Reads values of one command line.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// Where each argument was given.
    pub places: &'a Places,
    /// The environment.
    pub env: &'a Env,
}

// === impl Env ===

impl Env {
    /// The process's environment. A variable that is not UTF-8 is left out.
    pub fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        )
    }

    /// The variable, unless it is empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// Every variable's name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }
}

// === impl Reader ===

impl Reader<'_> {
    /// The text, unless it is empty.
    pub fn text<'v>(&self, value: &'v Option<String>) -> Option<&'v str> {
        value.as_deref().map(str::trim).filter(|text| !text.is_empty())
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn number(
        &self,
        id: &str,
        value: &Option<String>,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, SettingsError> {
        let Some(text) = self.text(value) else { return Ok(None) };
        number(&self.places.of(id), text, range).map(Some)
    }

    /// A port.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn port(&self, id: &str, value: &Option<String>) -> Result<Option<u16>, SettingsError> {
        let port = self.number(id, value, 1..=65_535)?;
        Ok(port.and_then(|port| u16::try_from(port).ok()))
    }

    /// A duration within `range`.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn duration(
        &self,
        id: &str,
        value: &Option<String>,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>, SettingsError> {
        let Some(text) = self.text(value) else { return Ok(None) };
        time::parse(text).filter(|duration| range.contains(duration)).map(Some).ok_or_else(|| SettingsError::Value {
            place: self.places.of(id),
            value: text.to_owned(),
            allowed: format!(
                "a duration with its unit (ms, s, m, h) from {} to {}",
                time::text(*range.start()),
                time::text(*range.end())
            ),
            nearest: text.parse::<u64>().map(|number| format!("; did you mean \"{number}s\"?")).unwrap_or_default(),
        })
    }

    /// One of several words.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn choice<T: Copy>(
        &self,
        id: &str,
        value: &Option<String>,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, SettingsError> {
        let Some(text) = self.text(value) else { return Ok(None) };
        choice(&self.places.of(id), text, choices).map(Some)
    }

    /// true or false; not given is false.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn boolean(&self, id: &str, value: &Option<String>) -> Result<bool, SettingsError> {
        Ok(self.choice(id, value, BOOLEANS)?.unwrap_or(false))
    }
}

/// The words for true and false, as Consul's CLI reads them too.
pub const BOOLEANS: &[(&str, bool)] = &[("true", true), ("false", false), ("1", true), ("0", false)];

/// A whole number within `range`.
///
/// # Errors
/// [`SettingsError::Value`].
pub fn number(place: &str, text: &str, range: RangeInclusive<u32>) -> Result<u32, SettingsError> {
    text.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| SettingsError::Value {
        place: place.to_owned(),
        value: text.to_owned(),
        allowed: format!("a whole number from {} to {}", range.start(), range.end()),
        nearest: String::new(),
    })
}

/// One of several words, whatever its case.
///
/// # Errors
/// [`SettingsError::Value`], with the nearest right spelling.
pub fn choice<T: Copy>(place: &str, text: &str, choices: &[(&str, T)]) -> Result<T, SettingsError> {
    let found = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| SettingsError::Value {
        place: place.to_owned(),
        value: text.to_owned(),
        allowed: choices.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "),
        nearest: nearest(text, choices.iter().map(|(word, _)| *word)),
    })
}

/// `; did you mean "x"?` for the word that is closest to `text`, or nothing when none is close.
pub fn nearest<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    const CLOSE: f64 = 0.75;
    let scored = words.into_iter().map(|word| (strsim::jaro_winkler(&text.to_lowercase(), word), word));
    let best = scored.filter(|(score, _)| *score >= CLOSE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, word)| format!("; did you mean {word:?}?")).unwrap_or_default()
}
