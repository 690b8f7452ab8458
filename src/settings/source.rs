//! Where servers are found: the sources of `--discover`, and what CMD's `-retry-join` says.
//!
//! Takes one text a source, gives [`Source`]. Pure. Fails with what is allowed and the nearest right spelling.

use super::command::shown;
use super::read::{SettingsError, nearest};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One way to find servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The other ordinals of the own StatefulSet, by computed names.
    StatefulSet,
    /// All A and AAAA records of a name.
    Dns(String),
    /// The targets of a name's SRV records. Their ports are not used: Consul's own ports are known from the settings.
    Srv(String),
    /// Fixed names or addresses.
    Static(Vec<Host>),
}

/// A name or an address, perhaps with the port of serf.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// Who.
    pub name: HostName,
    /// Serf's LAN port, if it was given.
    pub port: Option<u16>,
}

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostName {
    /// An address.
    Ip(IpAddr),
    /// A DNS name, as given.
    Name(String),
}

const KINDS: &[&str] = &["statefulset", "dns", "srv", "static", "provider"];
const ALLOWED: &str = "statefulset, dns:NAME, srv:NAME, static:HOST,…";
/// The most hosts that one `static:` may have; a list longer than this is a mistake.
const MAX_HOSTS: usize = 99;

// === impl Source ===

impl Source {
    /// Reads one source.
    ///
    /// # Errors
    /// [`SettingsError`]: an unknown kind, a name that is none, an empty list, a go-discover provider that is not ours.
    pub fn parse(place: &str, text: &str) -> Result<Self, SettingsError> {
        let text = text.trim();
        if text.contains("provider=") {
            return Err(go_discover(place, text));
        }
        let wrong = |allowed: &str, nearest: String| SettingsError::Value {
            place: place.to_owned(),
            value: text.to_owned(),
            allowed: allowed.to_owned(),
            nearest,
        };
        match text.split_once(':') {
            None if text == "statefulset" => Ok(Self::StatefulSet),
            Some(("dns", name)) => Ok(Self::Dns(dns_name(place, text, name)?)),
            Some(("srv", name)) => Ok(Self::Srv(dns_name(place, text, name)?)),
            Some(("static", hosts)) => {
                let hosts = hosts
                    .split(',')
                    .map(str::trim)
                    .filter(|host| !host.is_empty())
                    .map(|host| Host::parse(place, host))
                    .collect::<Result<Vec<_>, _>>()?;
                if hosts.is_empty() || hosts.len() > MAX_HOSTS {
                    return Err(wrong(
                        &format!("static: with 1 to {MAX_HOSTS} names or addresses, separated by commas"),
                        String::new(),
                    ));
                }
                Ok(Self::Static(hosts))
            }
            other => {
                let kind = other.map_or(text, |(kind, _)| kind);
                Err(wrong(ALLOWED, nearest(kind, KINDS.iter().copied())))
            }
        }
    }

    /// What CMD's `-retry-join` means: an address, a headless name, or a go-discover string.
    ///
    /// # Errors
    /// As [`Source::parse`].
    pub fn from_retry_join(place: &str, text: &str) -> Result<Self, SettingsError> {
        if text.contains("provider=") {
            return Err(go_discover(place, text));
        }
        let host = Host::parse(place, text)?;
        Ok(match host {
            Host { name: HostName::Name(name), port: None } => Self::Dns(name),
            fixed => Self::Static(vec![fixed]),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StatefulSet => f.write_str("statefulset"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Srv(name) => write!(f, "srv:{name}"),
            Self::Static(hosts) => {
                f.write_str("static:")?;
                for (index, host) in hosts.iter().enumerate() {
                    write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

// === impl Host ===

impl Host {
    /// Reads `name`, `name:port`, `10.0.0.1`, `10.0.0.1:8301`, `fd00::1`, `[fd00::1]` or `[fd00::1]:8301`.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn parse(place: &str, text: &str) -> Result<Self, SettingsError> {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(ip) = bracketed.unwrap_or(text).parse::<IpAddr>()
            && (bracketed.is_none() || ip.is_ipv6())
        {
            return Ok(Self { name: HostName::Ip(ip), port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { name: HostName::Ip(address.ip()), port: Some(address.port()) });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse::<u16>().ok().filter(|port| *port > 0))),
            None => (text, None),
        };
        if port == Some(None) {
            return Err(not_a_host(place, text));
        }
        let name = dns_name(place, text, name)?;
        Ok(Self { name: HostName::Name(name), port: port.flatten() })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.port) {
            (HostName::Ip(ip), Some(port)) => SocketAddr::new(*ip, port).fmt(f),
            (HostName::Ip(ip), None) => ip.fmt(f),
            (HostName::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (HostName::Name(name), None) => f.write_str(name),
        }
    }
}

/// Checks a DNS name: RFC 1035's lengths; letters, digits, hyphens, and underscores (SRV names have them).
///
/// # Errors
/// [`SettingsError::Value`].
pub fn dns_name(place: &str, value: &str, name: &str) -> Result<String, SettingsError> {
    let inner = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if !inner.is_empty() && inner.len() <= 253 && inner.split('.').all(label) {
        return Ok(name.to_owned());
    }
    Err(not_a_host(place, value))
}

fn not_a_host(place: &str, value: &str) -> SettingsError {
    SettingsError::Value {
        place: place.to_owned(),
        value: value.to_owned(),
        allowed: "a DNS name (letters, digits, hyphens and dots, no spaces) or an address".to_owned(),
        nearest: if value.parse::<Ipv6Addr>().is_err() && value.matches(':').count() > 1 {
            "; IPv6 with a port needs brackets".to_owned()
        } else {
            String::new()
        },
    }
}

/// The providers of go-discover (<https://github.com/hashicorp/go-discover>), to tell a misspelt one from one that is not ours.
const PROVIDERS: &[&str] = &[
    "aliyun",
    "aws",
    "azure",
    "digitalocean",
    "gce",
    "hcp",
    "k8s",
    "linode",
    "mdns",
    "os",
    "packet",
    "scaleway",
    "softlayer",
    "tencentcloud",
    "triton",
    "vsphere",
];
const K8S_KEYS: &[&str] = &["provider", "kubeconfig", "namespace", "label_selector", "field_selector", "host_network"];

/// Reads a go-discover string far enough to say what is wrong with it. None is answered yet: the Kubernetes API is no
/// source of this version.
fn go_discover(place: &str, text: &str) -> SettingsError {
    let wrong = |allowed: String, nearest: String| SettingsError::Value {
        place: place.to_owned(),
        // The rest of such a string may hold a cloud's keys.
        value: Some(shown(text)).filter(|shown| shown != text).unwrap_or_else(|| "provider=…".to_owned()),
        allowed,
        nearest,
    };
    let Some(pairs) = pairs(text) else {
        return wrong("key=value pairs, values with spaces in double quotes".to_owned(), String::new());
    };
    let provider = pairs.iter().find(|(key, _)| key == "provider").map(|(_, value)| value.as_str()).unwrap_or_default();
    if !PROVIDERS.contains(&provider) {
        return wrong(format!("provider={}", PROVIDERS.join("|")), nearest(provider, PROVIDERS.iter().copied()));
    }
    if provider == "k8s"
        && let Some((key, _)) = pairs.iter().find(|(key, _)| !K8S_KEYS.contains(&key.as_str()))
    {
        return wrong(format!("for provider=k8s: {}", K8S_KEYS.join(", ")), nearest(key, K8S_KEYS.iter().copied()));
    }
    wrong(
        format!("{ALLOWED} (go-discover's providers ask a cloud's or Kubernetes' API, which this version does not)"),
        String::new(),
    )
}

/// Splits `a=b c="d e"` as go-discover does; `None` when a pair or a quote is not closed.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(char::is_whitespace).unwrap_or((after, "")),
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        pairs.push((key.to_owned(), value.to_owned()));
        rest = after.trim_start();
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Source, String> {
        Source::parse("--discover", text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_source_is_read_and_written_alike() {
        for text in [
            "statefulset",
            "dns:consul-server",
            "dns:consul.prod.svc.cluster.local.",
            "srv:_serf._tcp.consul",
            "static:a,b.c:8301,10.0.0.1,[fd00::1]:8301,fd00::2",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_misspelt_source_is_named_with_the_nearest_one() {
        for (text, part) in [
            ("statefullset", "did you mean \"statefulset\"?"),
            ("statc:a", "did you mean \"static\"?"),
            ("dns:two words", "no spaces"),
            ("dns:", "a DNS name"),
            ("static:", "1 to 99"),
            ("static:a:0", "a DNS name"),
            ("static:fd00::1:x", "brackets"),
            ("provider=k9s", "did you mean \"k8s\"?"),
            ("provider=k8s label_selektor=\"app=consul\"", "did you mean \"label_selector\"?"),
            ("provider=k8s label_selector=\"app=consul\" namespace=x", "this version does not"),
            ("provider=aws", "this version does not"),
            ("provider=k8s label_selector=\"app", "double quotes"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("--discover: ") && error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_go_discover_string_is_never_shown_whole() {
        for text in [
            "provider=aws secret_access_key=hunter2",
            "secret_access_key=hunter2 provider=x",
            "a=hunter2;provider=aws",
            "provider=\"aws hunter2",
        ] {
            let by_hand = parse(text).unwrap_err();
            let by_cmd = Source::from_retry_join("-retry-join", text).unwrap_err().to_string();
            assert!(!by_hand.contains("hunter2") && !by_cmd.contains("hunter2"), "{by_hand} {by_cmd}");
        }
    }

    #[test]
    fn a_retry_join_is_a_name_of_many_or_one_host() {
        let from = |text: &str| Source::from_retry_join("-retry-join", text).map(|source| source.to_string());
        assert_eq!(from("consul-server").unwrap(), "dns:consul-server");
        assert_eq!(from("10.0.0.1").unwrap(), "static:10.0.0.1");
        assert_eq!(from("[fd00::1]:8301").unwrap(), "static:[fd00::1]:8301");
        assert_eq!(from("consul-server:8301").unwrap(), "static:consul-server:8301");
        assert!(from("a b").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,80}") {
            let _ = Source::parse("--discover", &text);
            let _ = Source::from_retry_join("-retry-join", &text);
        }

        #[test]
        fn a_host_that_is_read_is_written_so_that_it_reads_alike(name in "[a-z][a-z0-9.-]{0,20}[a-z0-9]", port in proptest::option::of(1u16..)) {
            let text = port.map_or(name.clone(), |port| format!("{name}:{port}"));
            if let Ok(host) = Host::parse("x", &text) {
                prop_assert_eq!(Host::parse("x", &host.to_string()).unwrap(), host);
            }
        }
    }
}
