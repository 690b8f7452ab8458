//! How convene tells what it does: about ten lines for one start, JSON in a Pod, plain on a terminal, always on stderr.
//!
//! Takes the format and level from the settings. Never writes a token or a gossip key: no field of ours holds one.

use std::io::{IsTerminal, stderr};
use tracing::Level;
use tracing_subscriber::fmt;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Plain when stderr is a terminal, else JSON.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// Time, level, sentence, fields.
    Plain,
}

/// Starts logging; a second call does nothing.
pub fn start(format: Format, level: Level) {
    let json = match format {
        Format::Json => true,
        Format::Plain => false,
        Format::Auto => !stderr().is_terminal(),
    };
    let base = fmt().with_max_level(level).with_writer(stderr).with_target(false);
    // A second subscriber is refused by tracing, and the first one stays: nothing to report.
    let _ = if json {
        tracing::subscriber::set_global_default(
            base.json().flatten_event(true).with_current_span(false).with_span_list(false).finish(),
        )
    } else {
        tracing::subscriber::set_global_default(base.with_ansi(false).finish())
    };
}
