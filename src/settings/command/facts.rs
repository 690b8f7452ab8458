//! The facts in CMD that matter to convene, merged as Consul merges them.
//!
//! Takes flags and configuration trees, gives [`Facts`]: for scalars the last file wins and a flag wins over every file; lists
//! append, flags first. Secrets are not among them. Fails on a number or a boolean that Consul would refuse as well.

use super::CommandError;
use super::flags::Flag;
use serde_json::Value;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where something was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// CMD's flag.
    Flag(String),
    /// A key in a file; without a file: in `-hcl`.
    Key {
        /// The file.
        file: Option<PathBuf>,
        /// The key, nested ones with dots.
        key: String,
    },
    /// Consul's docker-entrypoint.sh adds it.
    Entrypoint,
    /// Nowhere: Consul's own default.
    Default(String),
}

/// A value and where it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// An address, or a go-sockaddr template that only Consul can fill in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address.
    Ip(IpAddr),
    /// Something else.
    Template(String),
}

/// One configuration, read.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The file; `None` for `-hcl`.
    pub file: Option<PathBuf>,
    /// Its content.
    pub tree: Value,
}

/// What CMD says.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// `-server`.
    pub server: Option<Said<bool>>,
    /// `-bootstrap`.
    pub bootstrap: Option<Said<bool>>,
    /// `-dev`.
    pub dev: Option<Said<bool>>,
    /// `leave_on_terminate`.
    pub leave_on_terminate: Option<Said<bool>>,
    /// `-bootstrap-expect`.
    pub bootstrap_expect: Option<Said<i64>>,
    /// `-retry-join`, and `-join`, its older name.
    pub retry_join: Vec<Said<String>>,
    /// `-advertise`.
    pub advertise_addr: Option<Said<Address>>,
    /// `-bind`.
    pub bind_addr: Option<Said<String>>,
    /// `-client`.
    pub client_addr: Option<Said<String>>,
    /// `addresses.http`.
    pub addresses_http: Option<Said<String>>,
    /// `-http-port`.
    pub port_http: Option<Said<i64>>,
    /// `-https-port`.
    pub port_https: Option<Said<i64>>,
    /// `-server-port`.
    pub port_server: Option<Said<i64>>,
    /// `-serf-lan-port`.
    pub port_serf_lan: Option<Said<i64>>,
    /// `-node`.
    pub node_name: Option<Said<String>>,
    /// `-node-id`.
    pub node_id: Option<Said<String>>,
    /// `-data-dir`.
    pub data_dir: Option<Said<PathBuf>>,
    /// `-datacenter`.
    pub datacenter: Option<Said<String>>,
    /// `-domain`.
    pub domain: Option<Said<String>>,
}

// === impl Place ===

impl Place {
    /// In a file, where convene cannot take it out.
    pub fn is_file(&self) -> bool {
        matches!(self, Self::Key { .. })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "CMD's -{name}"),
            Self::Key { file: Some(file), key } => write!(f, "{key} in {}", file.display()),
            Self::Key { file: None, key } => write!(f, "{key} in CMD's -hcl"),
            Self::Entrypoint => f.write_str("the data folder of docker-entrypoint.sh"),
            Self::Default(key) => write!(f, "{key}, which CMD does not set,"),
        }
    }
}

// === impl Address ===

impl Address {
    /// The address, unless it is a template.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Template(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Template(text) => f.write_str(text),
        }
    }
}

// === impl Facts ===

impl Facts {
    /// Merges.
    ///
    /// # Errors
    /// [`CommandError::Value`].
    pub fn read(flags: &[Flag], layers: &[Layer]) -> Result<Self, CommandError> {
        let all = Merged { flags, layers };
        Ok(Self {
            server: all.boolean("server", "server")?,
            bootstrap: all.boolean("bootstrap", "bootstrap")?,
            dev: all.boolean("dev", "dev")?,
            leave_on_terminate: all.boolean("", "leave_on_terminate")?,
            bootstrap_expect: all.number("bootstrap-expect", "bootstrap_expect")?,
            retry_join: all.list(&["retry-join", "join"], &["retry_join", "start_join"]),
            advertise_addr: all.text("advertise", "advertise_addr").map(address),
            bind_addr: all.text("bind", "bind_addr"),
            client_addr: all.text("client", "client_addr"),
            addresses_http: all.text("", "addresses.http"),
            port_http: all.number("http-port", "ports.http")?,
            port_https: all.number("https-port", "ports.https")?,
            port_server: all.number("server-port", "ports.server")?,
            port_serf_lan: all.number("serf-lan-port", "ports.serf_lan")?,
            node_name: all.text("node", "node_name"),
            node_id: all.text("node-id", "node_id"),
            data_dir: all.text("data-dir", "data_dir").map(|said| Said { value: said.value.into(), place: said.place }),
            datacenter: all.text("datacenter", "datacenter"),
            domain: all.text("domain", "domain"),
        })
    }

    /// Whom CMD's flags join. What a file joins is a contradiction, and not taken over.
    pub fn joins(&self) -> Vec<Said<String>> {
        self.retry_join.iter().filter(|said| !said.place.is_file()).cloned().collect()
    }
}

fn address(said: Said<String>) -> Said<Address> {
    let value = said.value.parse().map_or_else(|_| Address::Template(said.value.clone()), Address::Ip);
    Said { value, place: said.place }
}

struct Merged<'a> {
    flags: &'a [Flag],
    layers: &'a [Layer],
}

// === impl Merged ===

impl Merged<'_> {
    /// The value that wins.
    fn scalar(&self, flag: &str, key: &str) -> Option<Said<Value>> {
        let said = self.flags.iter().rev().find(|given| !flag.is_empty() && given.name == flag);
        if let Some(given) = said {
            return Some(Said { value: Value::String(given.value.clone()), place: Place::Flag(given.name.clone()) });
        }
        self.layers.iter().rev().find_map(|layer| {
            let value = find(&layer.tree, key)?;
            Some(Said { value, place: Place::Key { file: layer.file.clone(), key: key.to_owned() } })
        })
    }

    fn text(&self, flag: &str, key: &str) -> Option<Said<String>> {
        let Said { value, place } = self.scalar(flag, key)?;
        Some(Said { value: text(&value), place }).filter(|said| !said.value.is_empty())
    }

    fn number(&self, flag: &str, key: &str) -> Result<Option<Said<i64>>, CommandError> {
        self.parsed(flag, key, "a whole number", |text| text.parse().ok())
    }

    fn boolean(&self, flag: &str, key: &str) -> Result<Option<Said<bool>>, CommandError> {
        // strconv.ParseBool's words.
        self.parsed(flag, key, "true or false", |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    fn parsed<T>(
        &self,
        flag: &str,
        key: &str,
        allowed: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Result<Option<Said<T>>, CommandError> {
        let Some(Said { value, place }) = self.scalar(flag, key) else { return Ok(None) };
        let text = text(&value);
        match parse(&text) {
            Some(value) => Ok(Some(Said { value, place })),
            None => Err(CommandError::Value { place: place.to_string(), value: text, allowed }),
        }
    }

    fn list(&self, flags: &[&str], keys: &[&str]) -> Vec<Said<String>> {
        let given = self.flags.iter().filter(|given| flags.contains(&given.name.as_str()));
        let mut all: Vec<_> =
            given.map(|given| Said { value: given.value.clone(), place: Place::Flag(given.name.clone()) }).collect();
        for layer in self.layers {
            for key in keys {
                let values = match find(&layer.tree, key) {
                    Some(Value::Array(values)) => values,
                    Some(one) => vec![one],
                    None => continue,
                };
                let place = Place::Key { file: layer.file.clone(), key: (*key).to_owned() };
                all.extend(values.iter().map(|value| Said { value: text(value), place: place.clone() }));
            }
        }
        all
    }
}

/// A key's value; `a.b` is nested. A block that stands several times is a list of objects: the last one that has the key wins.
fn find(tree: &Value, key: &str) -> Option<Value> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let value = match tree {
        Value::Object(all) => all.get(first)?.clone(),
        Value::Array(all) => return all.iter().rev().find_map(|one| find(one, key)),
        _ => return None,
    };
    match rest {
        Some(rest) => find(&value, rest),
        None => Some(value),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
