//! What does CMD say to Consul as a whole? Takes the single sayings, gives [`Facts`], each with its place.
//!
//! Consul's order of merging decides what counts (`consul-facts.md` §H): files in the order of the arguments, flags
//! above them, `-hcl` above those; of lists the flags' entries come first. It is pure and never fails.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::sayings::{Key, Saying};
use crate::settings::http::Secret;

/// Where something is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A flag in CMD, by its name without dashes.
    Flag(String),
    /// A flag that the image's `docker-entrypoint.sh` adds, by its name without dashes.
    Entrypoint(String),
    /// A key in a file that CMD names.
    File {
        /// As CMD names it, or as found in a folder that CMD names.
        path: PathBuf,
        /// With dots: `ports.http`.
        key: &'static str,
    },
    /// A key in the environment variable `CONSUL_LOCAL_CONFIG`, which `docker-entrypoint.sh` writes into a file.
    LocalConfig(&'static str),
    /// A key in a `-hcl` fragment.
    Fragment(&'static str),
    /// Nowhere: Consul's default of this key.
    Default(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(out, "-{name}"),
            Self::Entrypoint(name) => write!(out, "-{name} (from docker-entrypoint.sh)"),
            Self::File { path, key } => write!(out, "{key} in {}", path.display()),
            Self::LocalConfig(key) => write!(out, "{key} in $CONSUL_LOCAL_CONFIG"),
            Self::Fragment(key) => write!(out, "{key} in -hcl"),
            Self::Default(key) => write!(out, "{key} (Consul's default)"),
        }
    }
}

/// A value and where it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// What is said.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// What CMD says, as far as convene needs it. `None` and empty mean: not said, or said as an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `-server`.
    pub server: Option<Said<bool>>,
    /// `-bootstrap`.
    pub bootstrap: Option<Said<bool>>,
    /// `-bootstrap-expect`, any whole number: 0 means "not set" to Consul, and it refuses a negative one.
    pub bootstrap_expect: Option<Said<i64>>,
    /// `-dev`.
    pub dev: Option<Said<bool>>,
    /// `-retry-join`, flags first. An entry may be a go-discover string, and that may hold a secret: see [`shown`].
    pub retry_join: Vec<Said<String>>,
    /// `-join` and `start_join`, which Consul 1.15 and newer take for `retry_join`.
    pub start_join: Vec<Said<String>>,
    /// `-advertise`; the address is `None` when it is a go-sockaddr template.
    pub advertise_addr: Option<Said<Option<IpAddr>>>,
    /// `-bind`; the address is `None` when it is a go-sockaddr template.
    pub bind_addr: Option<Said<Option<IpAddr>>>,
    /// `-client`: addresses with spaces between them, or a template.
    pub client_addr: Option<Said<String>>,
    /// `addresses.http`: as `client_addr`, or `unix://…`.
    pub http_addr: Option<Said<String>>,
    /// `addresses.https`: as `client_addr`, or `unix://…`.
    pub https_addr: Option<Said<String>>,
    /// Ports.
    pub ports: Ports,
    /// `-node`.
    pub node_name: Option<Said<String>>,
    /// `-node-id`.
    pub node_id: Option<Said<String>>,
    /// `-data-dir`.
    pub data_dir: Option<Said<PathBuf>>,
    /// `-datacenter`, in small letters as Consul takes it.
    pub datacenter: Option<Said<String>>,
    /// `-domain`.
    pub domain: Option<Said<String>>,
    /// `leave_on_terminate`.
    pub leave_on_terminate: Option<Said<bool>>,
    /// `skip_leave_on_interrupt`.
    pub skip_leave_on_interrupt: Option<Said<bool>>,
    /// `-rejoin`.
    pub rejoin_after_leave: Option<Said<bool>>,
    /// `server_rejoin_age_max`, as Go writes a duration.
    pub rejoin_age_max: Option<Said<String>>,
    /// `-encrypt`, also said as an empty text, which Consul takes for "no encryption".
    pub encrypt: Option<Said<Secret>>,
    /// `-disable-keyring-file`.
    pub disable_keyring_file: Option<Said<bool>>,
    /// `autopilot.min_quorum`.
    pub min_quorum: Option<Said<i64>>,
    /// `acl.enabled`.
    pub acl_enabled: Option<Said<bool>>,
}

/// Ports, at most 65535. 0 or less means: off (Consul reads both as -1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// `-http-port`; Consul's default is 8500.
    pub http: Option<Said<i32>>,
    /// `-https-port`; Consul's default is off.
    pub https: Option<Said<i32>>,
    /// `-server-port`; Consul's default is 8300.
    pub server: Option<Said<i32>>,
    /// `-serf-lan-port`; Consul's default is 8301.
    pub serf_lan: Option<Said<i32>>,
    /// `-serf-wan-port`; Consul's default is 8302.
    pub serf_wan: Option<Said<i32>>,
}

/// A `retry_join` entry for people: a go-discover string is cut to its provider, because the rest may hold a secret.
pub fn shown(entry: &str) -> String {
    match entry.split_whitespace().find(|word| word.starts_with("provider=")) {
        Some(provider) => format!("{provider} …"),
        None => entry.to_owned(),
    }
}

impl Facts {
    /// Merges `sayings`, which stand in Consul's order: files, flags, fragments.
    pub(super) fn of<'a>(sayings: impl Iterator<Item = &'a Saying> + Clone) -> Self {
        let mut facts = Self::default();
        for saying in sayings.clone() {
            facts.take(saying);
        }
        let flags_first = [true, false].into_iter().flat_map(|wanted| {
            sayings
                .clone()
                .filter(move |saying| matches!(saying.place, Place::Flag(_) | Place::Entrypoint(_)) == wanted)
        });
        for saying in flags_first {
            let list = match saying.key {
                Key::RetryJoin => &mut facts.retry_join,
                Key::StartJoin => &mut facts.start_join,
                _ => continue,
            };
            list.extend(saying.texts());
        }
        facts
    }

    /// Takes one scalar: the last one counts.
    fn take(&mut self, saying: &Saying) {
        match saying.key {
            Key::AclEnabled => self.acl_enabled = saying.bool(),
            Key::AdvertiseAddr => self.advertise_addr = saying.address(),
            Key::BindAddr => self.bind_addr = saying.address(),
            Key::Bootstrap => self.bootstrap = saying.bool(),
            Key::BootstrapExpect => self.bootstrap_expect = saying.whole(),
            Key::ClientAddr => self.client_addr = saying.text(str::to_owned),
            Key::DataDir => self.data_dir = saying.text(|text| PathBuf::from(text)),
            Key::Datacenter => self.datacenter = saying.text(str::to_lowercase),
            Key::Dev => self.dev = saying.bool(),
            Key::DisableKeyringFile => self.disable_keyring_file = saying.bool(),
            Key::Domain => self.domain = saying.text(str::to_owned),
            Key::Encrypt => self.encrypt = saying.secret(),
            Key::HttpAddr => self.http_addr = saying.text(str::to_owned),
            Key::HttpPort => self.ports.http = saying.port(),
            Key::HttpsAddr => self.https_addr = saying.text(str::to_owned),
            Key::HttpsPort => self.ports.https = saying.port(),
            Key::LeaveOnTerminate => self.leave_on_terminate = saying.bool(),
            Key::MinQuorum => self.min_quorum = saying.whole(),
            Key::NodeId => self.node_id = saying.text(str::to_owned),
            Key::NodeName => self.node_name = saying.text(str::to_owned),
            Key::RejoinAfterLeave => self.rejoin_after_leave = saying.bool(),
            Key::RejoinAgeMax => self.rejoin_age_max = saying.text(str::to_owned),
            Key::SerfLanPort => self.ports.serf_lan = saying.port(),
            Key::SerfWanPort => self.ports.serf_wan = saying.port(),
            Key::Server => self.server = saying.bool(),
            Key::ServerPort => self.ports.server = saying.port(),
            Key::SkipLeaveOnInterrupt => self.skip_leave_on_interrupt = saying.bool(),
            Key::RetryJoin | Key::StartJoin => {}
        }
    }
}
