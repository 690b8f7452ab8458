//! Where servers are found: the sources of `--discover`, and what CMD's `-retry-join` says.
//!
//! Takes one text a source, gives [`Source`]. Pure. Fails with what is allowed and the nearest right spelling.

use super::command::shown;
use super::read::{BOOLEANS, SettingsError, choice, nearest};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

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
    /// The Pods that a selector matches, by the Kubernetes API.
    Kubernetes(Selector),
}

/// Which Pods, and which of their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// Their labels, as Kubernetes writes a label selector; empty: any.
    pub labels: String,
    /// Their fields; empty: any.
    pub fields: String,
    /// Their namespace; `None`: ours.
    pub namespace: Option<String>,
    /// Their machines' addresses instead of their own.
    pub host_network: bool,
    /// A kubeconfig of its own.
    pub kubeconfig: Option<PathBuf>,
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

const KINDS: &[&str] = &["statefulset", "k8s", "dns", "srv", "static", "provider"];
const ALLOWED: &str = "statefulset, k8s:SELECTOR, dns:NAME, srv:NAME, static:HOST,…";
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
            return go_discover(place, text);
        }
        let wrong = |allowed: &str, nearest: String| SettingsError::Value {
            place: place.to_owned(),
            value: text.to_owned(),
            allowed: allowed.to_owned(),
            nearest,
        };
        match text.split_once(':') {
            None if text == "statefulset" => Ok(Self::StatefulSet),
            Some(("k8s", labels)) if !labels.trim().is_empty() => {
                Ok(Self::Kubernetes(Selector { labels: selector(place, labels)?, ..Selector::default() }))
            }
            Some(("k8s", _)) => {
                Err(wrong("a label selector, such as k8s:app.kubernetes.io/name=consul", String::new()))
            }
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
            return go_discover(place, text);
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
            Self::Kubernetes(selector) => selector.fmt(f),
        }
    }
}

// === impl Selector ===

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == (Self { labels: self.labels.clone(), ..Self::default() }) && !self.labels.is_empty() {
            return write!(f, "k8s:{}", self.labels);
        }
        f.write_str("provider=k8s")?;
        for (key, value) in [("label_selector", &self.labels), ("field_selector", &self.fields)] {
            if !value.is_empty() {
                write!(f, " {key}=\"{value}\"")?;
            }
        }
        if let Some(namespace) = &self.namespace {
            write!(f, " namespace={namespace}")?;
        }
        if self.host_network {
            f.write_str(" host_network=true")?;
        }
        if let Some(file) = &self.kubeconfig {
            write!(f, " kubeconfig=\"{}\"", file.display())?;
        }
        Ok(())
    }
}

/// The API server judges a selector; here only what can never be one is refused.
fn selector(place: &str, text: &str) -> Result<String, SettingsError> {
    let text = text.trim();
    let may = |c: char| c.is_ascii_alphanumeric() || "-_./=!,() ".contains(c);
    if text.chars().all(may) {
        return Ok(text.to_owned());
    }
    Err(SettingsError::Value {
        place: place.to_owned(),
        value: text.to_owned(),
        allowed: "a Kubernetes selector, such as app.kubernetes.io/name=consul,component!=client or tier in (a,b)"
            .to_owned(),
        nearest: String::new(),
    })
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

/// Reads a go-discover string. Of its providers only Kubernetes is ours; the namespace is our own unless one is given
/// (go-discover's is then `default`).
fn go_discover(place: &str, text: &str) -> Result<Source, SettingsError> {
    let wrong = |allowed: String, nearest: String| SettingsError::Value {
        place: place.to_owned(),
        // The rest of such a string may hold a cloud's keys.
        value: Some(shown(text)).filter(|shown| shown != text).unwrap_or_else(|| "provider=…".to_owned()),
        allowed,
        nearest,
    };
    let Some(pairs) = pairs(text) else {
        return Err(wrong("key=value pairs, values with spaces in double quotes".to_owned(), String::new()));
    };
    let provider = pairs.iter().find(|(key, _)| key == "provider").map(|(_, value)| value.as_str()).unwrap_or_default();
    if !PROVIDERS.contains(&provider) {
        return Err(wrong(format!("provider={}", PROVIDERS.join("|")), nearest(provider, PROVIDERS.iter().copied())));
    }
    if provider != "k8s" {
        return Err(wrong(format!("{ALLOWED}, provider=k8s … (no cloud's own API is asked)"), String::new()));
    }
    let mut found = Selector::default();
    for (key, value) in &pairs {
        match key.as_str() {
            "provider" => {}
            "label_selector" => found.labels = selector(place, value)?,
            "field_selector" => found.fields = selector(place, value)?,
            "namespace" if value.is_empty() => {}
            "namespace" => found.namespace = Some(dns_name(place, value, value)?),
            "kubeconfig" => found.kubeconfig = Some(value.into()),
            "host_network" => found.host_network = choice(place, value, BOOLEANS)?,
            other => {
                let allowed = format!("for provider=k8s: {}", K8S_KEYS.join(", "));
                return Err(wrong(allowed, nearest(other, K8S_KEYS.iter().copied())));
            }
        }
    }
    Ok(Source::Kubernetes(found))
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
            "k8s:app.kubernetes.io/name=consul,tier in (a, b)",
            "provider=k8s label_selector=\"app=consul\" namespace=x host_network=true",
            "provider=k8s field_selector=\"spec.nodeName=a\" kubeconfig=\"/a b\"",
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
            ("provider=k8s host_network=perhaps", "true, false"),
            ("provider=k8s namespace=\"a b\"", "a DNS name"),
            ("provider=aws", "no cloud's own API"),
            ("k8s:", "a label selector"),
            ("k8s:app=<consul>", "a Kubernetes selector"),
            ("k9s:app=consul", "did you mean \"k8s\"?"),
            ("provider=k8s label_selector=\"app", "double quotes"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("--discover: ") && error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_go_discover_string_means_what_its_short_form_means() {
        assert_eq!(parse("provider=k8s label_selector=\"app=consul\"").unwrap(), parse("k8s:app=consul").unwrap());
        let by_cmd = Source::from_retry_join("-retry-join", "provider=k8s label_selector=app=consul").unwrap();
        assert_eq!(by_cmd, parse("k8s:app=consul").unwrap());
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
