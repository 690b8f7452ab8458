//! What resolv.conf says, and what it means in a Pod.
//!
//! Takes the file's text, gives nameservers, the search list and the cluster's domain. Never resolves anything. A file
//! that is missing or names no nameserver is a fact, not an error: a server with data starts without DNS.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The port of DNS.
pub const DNS_PORT: u16 = 53;

/// Where the resolver's settings are.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The cluster's domain where resolv.conf has no `svc.` entry: Kubernetes' own default.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// Who is asked for names, and how names without a trailing dot are completed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolving {
    /// Asked all; none means that names cannot be resolved.
    pub nameservers: Vec<SocketAddr>,
    /// Search domains, without a trailing dot.
    pub search: Vec<String>,
    /// Why there is no nameserver.
    pub problem: Option<String>,
}

// === impl Resolving ===

impl Resolving {
    /// Reads the file. What cannot be read becomes [`Resolving::problem`].
    pub fn from_file(path: &Path) -> Self {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_text(&text, path),
            Err(error) => {
                Self { problem: Some(format!("could not read {}: {error}", path.display())), ..Self::default() }
            }
        }
    }

    fn from_text(text: &str, path: &Path) -> Self {
        let mut resolving = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => resolving.nameservers.extend(words.next().and_then(nameserver)),
                Some("search" | "domain") => {
                    resolving.search =
                        words.map(|name| name.trim_matches('.').to_owned()).filter(|name| !name.is_empty()).collect()
                }
                _ => {}
            }
        }
        if resolving.nameservers.is_empty() {
            resolving.problem = Some(format!("{} names no nameserver", path.display()));
        }
        resolving
    }

    /// The cluster's domain and our namespace, from the search entry that Kubernetes writes: `<namespace>.svc.<domain>`
    /// (<https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>).
    pub fn cluster(&self) -> (Option<&str>, Option<&str>) {
        let domain = self.search.iter().find_map(|entry| entry.strip_prefix("svc."));
        let namespace = self.search.iter().find_map(|entry| {
            let (namespace, rest) = entry.split_once(".svc.")?;
            (Some(rest) == domain && !namespace.contains('.')).then_some(namespace)
        });
        (domain, namespace)
    }
}

/// An address of a nameserver as resolv.conf writes it: no port, for IPv6 perhaps a zone, which is left out.
fn nameserver(text: &str) -> Option<SocketAddr> {
    let address = text.split('%').next().unwrap_or(text);
    address.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DNS_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Resolving {
        Resolving::from_text(text, Path::new("resolv.conf"))
    }

    #[test]
    fn a_pods_resolv_conf_gives_nameserver_domain_and_namespace() {
        let resolving =
            read("search prod.svc.k8s.example svc.k8s.example k8s.example\nnameserver 10.96.0.10\noptions ndots:5\n");
        assert_eq!(resolving.nameservers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(resolving.cluster(), (Some("k8s.example"), Some("prod")));
        assert_eq!(resolving.problem, None);
    }

    #[test]
    fn all_nameservers_count_also_those_of_ipv6() {
        let resolving =
            read("nameserver 10.0.0.1\n# nameserver 10.0.0.9\nnameserver fd00::1%eth0 ; second\nnameserver nonsense\n");
        assert_eq!(resolving.nameservers, ["10.0.0.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
        assert_eq!(resolving.cluster(), (None, None));
    }

    #[test]
    fn an_empty_or_missing_file_is_a_problem_that_is_named() {
        assert_eq!(read("\n").problem.as_deref(), Some("resolv.conf names no nameserver"));
        let missing = Resolving::from_file(Path::new("/does/not/exist"));
        assert!(missing.problem.unwrap().starts_with("could not read /does/not/exist: "));
    }
}
