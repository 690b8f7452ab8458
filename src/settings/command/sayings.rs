//! What does one flag, or one key of a file, say? Takes its text or its value, gives a [`Saying`] of the right kind.
//!
//! Only the keys that convene needs are read; a gossip key is hidden at once. It fails for a value that is no number,
//! truth value, address or text where Consul wants one, as Consul would.

use std::net::IpAddr;

use serde_json::Value;

use super::CommandError;
use super::facts::{Place, Said};
use crate::settings::http::Secret;

/// The keys that convene reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    AclEnabled,
    AdvertiseAddr,
    BindAddr,
    Bootstrap,
    BootstrapExpect,
    ClientAddr,
    DataDir,
    Datacenter,
    Dev,
    DisableKeyringFile,
    Domain,
    Encrypt,
    HttpAddr,
    HttpPort,
    HttpsAddr,
    HttpsPort,
    LeaveOnTerminate,
    MinQuorum,
    NodeId,
    NodeName,
    RejoinAfterLeave,
    RejoinAgeMax,
    RetryJoin,
    SerfLanPort,
    SerfWanPort,
    Server,
    ServerPort,
    SkipLeaveOnInterrupt,
    StartJoin,
}

/// The keys that may stand in a file, as Consul writes them. `-dev` is a flag only.
const IN_FILES: [Key; 28] = [
    Key::AclEnabled,
    Key::AdvertiseAddr,
    Key::BindAddr,
    Key::Bootstrap,
    Key::BootstrapExpect,
    Key::ClientAddr,
    Key::DataDir,
    Key::Datacenter,
    Key::DisableKeyringFile,
    Key::Domain,
    Key::Encrypt,
    Key::HttpAddr,
    Key::HttpPort,
    Key::HttpsAddr,
    Key::HttpsPort,
    Key::LeaveOnTerminate,
    Key::MinQuorum,
    Key::NodeId,
    Key::NodeName,
    Key::RejoinAfterLeave,
    Key::RejoinAgeMax,
    Key::RetryJoin,
    Key::SerfLanPort,
    Key::SerfWanPort,
    Key::Server,
    Key::ServerPort,
    Key::SkipLeaveOnInterrupt,
    Key::StartJoin,
];

/// What kind of value a key has.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    Whole,
    Port,
    Address,
    Text,
    Texts,
    Secret,
}

impl Key {
    /// The key in a file, with dots.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AclEnabled => "acl.enabled",
            Self::AdvertiseAddr => "advertise_addr",
            Self::BindAddr => "bind_addr",
            Self::Bootstrap => "bootstrap",
            Self::BootstrapExpect => "bootstrap_expect",
            Self::ClientAddr => "client_addr",
            Self::DataDir => "data_dir",
            Self::Datacenter => "datacenter",
            Self::Dev => "dev",
            Self::DisableKeyringFile => "disable_keyring_file",
            Self::Domain => "domain",
            Self::Encrypt => "encrypt",
            Self::HttpAddr => "addresses.http",
            Self::HttpPort => "ports.http",
            Self::HttpsAddr => "addresses.https",
            Self::HttpsPort => "ports.https",
            Self::LeaveOnTerminate => "leave_on_terminate",
            Self::MinQuorum => "autopilot.min_quorum",
            Self::NodeId => "node_id",
            Self::NodeName => "node_name",
            Self::RejoinAfterLeave => "rejoin_after_leave",
            Self::RejoinAgeMax => "server_rejoin_age_max",
            Self::RetryJoin => "retry_join",
            Self::SerfLanPort => "ports.serf_lan",
            Self::SerfWanPort => "ports.serf_wan",
            Self::Server => "server",
            Self::ServerPort => "ports.server",
            Self::SkipLeaveOnInterrupt => "skip_leave_on_interrupt",
            Self::StartJoin => "start_join",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::AclEnabled
            | Self::Bootstrap
            | Self::Dev
            | Self::DisableKeyringFile
            | Self::LeaveOnTerminate
            | Self::RejoinAfterLeave
            | Self::Server
            | Self::SkipLeaveOnInterrupt => Kind::Bool,
            Self::BootstrapExpect | Self::MinQuorum => Kind::Whole,
            Self::HttpPort | Self::HttpsPort | Self::SerfLanPort | Self::SerfWanPort | Self::ServerPort => Kind::Port,
            Self::AdvertiseAddr | Self::BindAddr => Kind::Address,
            Self::ClientAddr
            | Self::DataDir
            | Self::Datacenter
            | Self::Domain
            | Self::HttpAddr
            | Self::HttpsAddr
            | Self::NodeId
            | Self::NodeName
            | Self::RejoinAgeMax => Kind::Text,
            Self::RetryJoin | Self::StartJoin => Kind::Texts,
            Self::Encrypt => Kind::Secret,
        }
    }
}

/// A value that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spoken {
    Bool(bool),
    Whole(i64),
    Port(i32),
    /// `None` is a template.
    Address(Option<IpAddr>),
    Text(String),
    Texts(Vec<String>),
    /// An empty text: it takes away what was said before.
    Nothing,
    Secret(Secret),
}

/// One value at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saying {
    pub(super) key: Key,
    spoken: Spoken,
    pub(super) place: Place,
}

impl Saying {
    /// Reads a flag's text as Go's `strconv` does.
    pub(super) fn of_flag(key: Key, text: &str, place: Place) -> Result<Self, CommandError> {
        let value = match key.kind() {
            Kind::Bool => match text {
                "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(Value::Bool(true)),
                "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::Whole | Kind::Port => text.parse::<i64>().ok().map(Value::from),
            Kind::Address | Kind::Text | Kind::Texts | Kind::Secret => Some(Value::from(text)),
        };
        let bad = || bad_value(key, &place, text);
        let spoken = spoken(key, &value.ok_or_else(bad)?).ok_or_else(bad)?;
        Ok(Self { key, spoken, place })
    }

    /// Reads all keys of a file or fragment; `place` makes a place of a key.
    pub(super) fn of_tree(root: &Value, place: impl Fn(&'static str) -> Place) -> Result<Vec<Self>, CommandError> {
        let mut sayings = Vec::new();
        for key in IN_FILES {
            let value = key.name().split('.').try_fold(root, |value, part| member(value, part));
            if let Some(value) = value.filter(|value| !value.is_null()) {
                let place = place(key.name());
                let spoken = spoken(key, value).ok_or_else(|| bad_value(key, &place, &value.to_string()))?;
                sayings.push(Self { key, spoken, place });
            }
        }
        Ok(sayings)
    }
}

/// A member by its name. Consul does not care for upper and lower case, and takes a list of one for its only entry.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let map = alone(value).as_object()?;
    map.get(name).or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

fn alone(value: &Value) -> &Value {
    match value.as_array().map(Vec::as_slice) {
        Some([only]) => only,
        _ => value,
    }
}

/// Reads a value as its key wants it; `None` when it is of another kind.
fn spoken(key: Key, value: &Value) -> Option<Spoken> {
    if let Kind::Texts = key.kind() {
        let texts = match value {
            Value::Array(list) => list.iter().map(|entry| entry.as_str().map(str::to_owned)).collect::<Option<_>>()?,
            other => vec![other.as_str()?.to_owned()],
        };
        return Some(Spoken::Texts(texts));
    }
    let value = alone(value);
    if value.as_str() == Some("") && matches!(key.kind(), Kind::Address | Kind::Text) {
        return Some(Spoken::Nothing);
    }
    match key.kind() {
        Kind::Bool => value.as_bool().map(Spoken::Bool),
        Kind::Whole => whole(value).map(Spoken::Whole),
        Kind::Port => {
            whole(value).filter(|port| *port <= 65535).and_then(|port| i32::try_from(port).ok()).map(Spoken::Port)
        }
        Kind::Address => match value.as_str()?.trim() {
            template if template.contains("{{") => Some(Spoken::Address(None)),
            address => address.parse().ok().map(|address| Spoken::Address(Some(address))),
        },
        Kind::Text => value.as_str().map(|text| Spoken::Text(text.to_owned())),
        Kind::Secret => value.as_str().map(|text| Spoken::Secret(Secret::new(text))),
        Kind::Texts => None,
    }
}

/// A whole number; a fraction of JSON counts without its fraction, as for Consul's decoder.
fn whole(value: &Value) -> Option<i64> {
    // `as` keeps within i64 by itself.
    value.as_i64().or_else(|| value.as_f64().map(|fraction| fraction as i64))
}

/// A gossip key and the join lists, which may hold a secret, are not quoted.
fn bad_value(key: Key, place: &Place, value: &str) -> CommandError {
    let allowed = match key.kind() {
        Kind::Bool => "true or false",
        Kind::Whole => "a whole number",
        Kind::Port => "a port up to 65535, or -1 for none",
        Kind::Address => {
            "an IP address or a go-sockaddr template; a $(NAME) that is left means that the Pod lacks that variable"
        }
        Kind::Text | Kind::Secret => "a text",
        Kind::Texts => "a list of texts",
    };
    let value = match key.kind() {
        Kind::Texts | Kind::Secret => "…".to_owned(),
        _ if value.starts_with(['{', '[']) || value.chars().count() > 100 => "…".to_owned(),
        _ => value.to_owned(),
    };
    CommandError::BadValue { place: place.clone(), value, allowed }
}

/// The value as its key's kind, which is the kind that [`spoken`] gave it; `None` after an empty text.
impl Saying {
    fn said<T>(&self, value: T) -> Option<Said<T>> {
        Some(Said { value, place: self.place.clone() })
    }

    pub(super) fn bool(&self) -> Option<Said<bool>> {
        let Spoken::Bool(value) = self.spoken else {
            return None;
        };
        self.said(value)
    }

    pub(super) fn whole(&self) -> Option<Said<i64>> {
        let Spoken::Whole(value) = self.spoken else {
            return None;
        };
        self.said(value)
    }

    pub(super) fn port(&self) -> Option<Said<i32>> {
        let Spoken::Port(value) = self.spoken else {
            return None;
        };
        self.said(value)
    }

    pub(super) fn address(&self) -> Option<Said<Option<IpAddr>>> {
        let Spoken::Address(value) = self.spoken else {
            return None;
        };
        self.said(value)
    }

    pub(super) fn text<T>(&self, make: impl Fn(&str) -> T) -> Option<Said<T>> {
        let Spoken::Text(value) = &self.spoken else {
            return None;
        };
        self.said(make(value))
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = Said<String>> {
        let texts = match &self.spoken {
            Spoken::Texts(texts) => texts.as_slice(),
            _ => &[],
        };
        texts.iter().map(|text| Said { value: text.clone(), place: self.place.clone() })
    }

    /// Also an empty one.
    pub(super) fn secret(&self) -> Option<Said<Secret>> {
        let Spoken::Secret(secret) = &self.spoken else {
            return None;
        };
        self.said(secret.clone())
    }
}
