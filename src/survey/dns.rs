//! Names to addresses, asked by ourselves.
//!
//! Takes a name, gives its addresses; an empty answer (NXDOMAIN, no data) and an error (SERVFAIL, REFUSED, silence, garbage)
//! are different things. All nameservers are asked, TCP when UDP was truncated. Never reads /etc/hosts, never caches: each
//! survey sees what DNS says now.

use crate::settings::resolv::{DEFAULT_CLUSTER_DOMAIN, RESOLV_CONF, Resolving};
use crate::settings::{DEFAULT_DISCOVER_TIMEOUT, Survey};
use crate::time;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// A headless Service of Consul servers has a handful of addresses; more than this is the wrong name.
pub const MAX_ADDRESSES: usize = 256;

/// Why a name has no answer.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum LookupError {
    /// There is nobody to ask.
    #[error("could not resolve {name}: {why}; give --nameserver ADDR:PORT")]
    NoNameserver {
        /// The name.
        name: String,
        /// Why.
        why: String,
    },
    /// No nameserver answered.
    #[error("could not resolve {name}: no answer from {servers} within {}", time::text(*.waited))]
    Silent {
        /// The name.
        name: String,
        /// Who was asked.
        servers: String,
        /// The deadline.
        waited: Duration,
    },
    /// A nameserver answered with an error.
    #[error("could not resolve {name}: {servers} answered {code}")]
    Code {
        /// The name.
        name: String,
        /// Who was asked.
        servers: String,
        /// DNS's word for it.
        code: String,
    },
    /// Too many addresses.
    #[error(
        "{name} has {count} addresses, and at most {MAX_ADDRESSES} are allowed: this is no headless Service of Consul servers"
    )]
    TooMany {
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
    /// Something else: garbage, a broken connection.
    #[error("could not resolve {name}: {servers} gave no usable answer ({reason})")]
    Unusable {
        /// The name.
        name: String,
        /// Who was asked.
        servers: String,
        /// What was wrong.
        reason: String,
    },
    /// An alias without an address behind it.
    #[error("could not resolve {name}: it is an alias that leads to no address (a loop, perhaps)")]
    Alias {
        /// The name.
        name: String,
    },
    /// Not a name.
    #[error("{name} is not a DNS name")]
    NotAName {
        /// The text.
        name: String,
    },
}

/// Asks the nameservers.
#[derive(Debug, Clone)]
pub struct Dns {
    resolver: Option<TokioResolver>,
    problem: String,
    servers: String,
    search: Vec<String>,
    cluster_domain: String,
    timeout: Duration,
}

// === impl Dns ===

impl Dns {
    /// Asks as the settings say.
    pub fn new(settings: &Survey) -> Self {
        Self::of(&settings.resolving, settings.cluster_domain.clone(), settings.timeout)
    }

    /// Asks as resolv.conf says.
    pub fn of_system() -> Self {
        let resolving = Resolving::from_file(Path::new(RESOLV_CONF));
        let domain = resolving.cluster().0.unwrap_or(DEFAULT_CLUSTER_DOMAIN).to_owned();
        Self::of(&resolving, domain, DEFAULT_DISCOVER_TIMEOUT)
    }

    fn of(resolving: &Resolving, cluster_domain: String, timeout: Duration) -> Self {
        let servers = resolving.nameservers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let built = build(&resolving.nameservers, timeout);
        let problem = resolving.problem.clone().unwrap_or_else(|| built.as_ref().err().cloned().unwrap_or_default());
        Self {
            resolver: built.ok().filter(|_| resolving.problem.is_none()),
            problem,
            servers,
            search: resolving.search.clone(),
            cluster_domain,
            timeout,
        }
    }

    /// The addresses of a name, A and AAAA, sorted. A name without a dot at its end is completed as a Pod's resolver would
    /// do it (search list, then as it stands); the first completion that has addresses wins.
    ///
    /// # Errors
    /// [`LookupError`]; never for a name that does not exist.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        let mut problem = None;
        for absolute in self.completions(name) {
            match self.absolute(&absolute).await {
                Ok(found) if found.is_empty() => {}
                Ok(found) => return Ok(found),
                // Who does not answer one name does not answer the next one either.
                Err(error @ (LookupError::Silent { .. } | LookupError::NoNameserver { .. })) => return Err(error),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        problem.map_or(Ok(Vec::new()), Err)
    }

    /// The target names of a name's SRV records.
    ///
    /// # Errors
    /// [`LookupError`]; never for a name that does not exist.
    pub async fn targets(&self, name: &str) -> Result<Vec<String>, LookupError> {
        let mut problem = None;
        for absolute in self.completions(name) {
            match self.records(&absolute, RecordType::SRV).await.map(Option::unwrap_or_default) {
                Ok(found) if found.is_empty() => {}
                Ok(found) if found.len() > MAX_ADDRESSES => {
                    return Err(LookupError::TooMany { name: absolute, count: found.len() });
                }
                Ok(found) => {
                    let targets = found
                        .iter()
                        .filter_map(|data| if let RData::SRV(srv) = data { Some(srv.target.to_ascii()) } else { None });
                    return Ok(targets.collect::<BTreeSet<_>>().into_iter().collect());
                }
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        problem.map_or(Ok(Vec::new()), Err)
    }

    /// The absolute names that `name` may mean, the likeliest first.
    pub fn completions(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        if name.ends_with(&format!(".{}", self.cluster_domain)) {
            return vec![format!("{name}.")];
        }
        if name.ends_with(".svc") {
            return vec![format!("{name}.{}.", self.cluster_domain)];
        }
        let mut names: Vec<String> = self.search.iter().map(|entry| format!("{name}.{entry}.")).collect();
        // A single label is nobody's absolute name, and the root's servers may refuse to say so.
        if names.is_empty() || name.contains('.') {
            names.push(format!("{name}."));
        }
        names
    }

    async fn absolute(&self, name: &str) -> Result<Vec<IpAddr>, LookupError> {
        let (v4, v6) = tokio::join!(self.records(name, RecordType::A), self.records(name, RecordType::AAAA));
        let mut problem = None;
        let mut found = BTreeSet::new();
        let mut exists = false;
        for answer in [v4, v6] {
            match answer {
                Ok(None) => {}
                Ok(Some(records)) => {
                    exists = true;
                    found.extend(records.iter().filter_map(address));
                }
                Err(error) => problem = Some(error),
            }
        }
        if found.len() > MAX_ADDRESSES {
            return Err(LookupError::TooMany { name: name.to_owned(), count: found.len() });
        }
        match problem {
            Some(error) if found.is_empty() => return Err(error),
            _ => {}
        }
        // A name that exists without addresses is empty, but an alias without them is broken.
        if found.is_empty()
            && exists
            && self.records(name, RecordType::CNAME).await?.is_some_and(|aliases| !aliases.is_empty())
        {
            return Err(LookupError::Alias { name: name.trim_end_matches('.').to_owned() });
        }
        Ok(found.into_iter().collect())
    }

    /// The records of a kind; `None` when the name does not exist.
    async fn records(&self, name: &str, kind: RecordType) -> Result<Option<Vec<RData>>, LookupError> {
        let owned = || name.trim_end_matches('.').to_owned();
        let Some(resolver) = &self.resolver else {
            return Err(LookupError::NoNameserver { name: owned(), why: self.problem.clone() });
        };
        let absolute = Name::from_ascii(name).map_err(|_| LookupError::NotAName { name: owned() })?;
        let silent = || LookupError::Silent { name: owned(), servers: self.servers.clone(), waited: self.timeout };
        match tokio::time::timeout(self.timeout, resolver.lookup(absolute, kind)).await {
            Err(_) => Err(silent()),
            Ok(Ok(lookup)) => {
                let all = lookup.answers().iter().map(|record| record.data.clone());
                Ok(Some(all.filter(|data| data.record_type() == kind).collect()))
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => match none.response_code {
                ResponseCode::NXDomain => Ok(None),
                ResponseCode::NoError => Ok(Some(Vec::new())),
                code => Err(LookupError::Code {
                    name: owned(),
                    servers: self.servers.clone(),
                    code: code.to_str().to_owned(),
                }),
            },
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => {
                Err(LookupError::Code { name: owned(), servers: self.servers.clone(), code: code.to_str().to_owned() })
            }
            Ok(Err(NetError::Timeout)) => Err(silent()),
            Ok(Err(error)) => Err(LookupError::Unusable {
                name: owned(),
                servers: self.servers.clone(),
                reason: error.to_string().replace('\n', " "),
            }),
        }
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

fn build(servers: &[SocketAddr], timeout: Duration) -> Result<TokioResolver, String> {
    let nameservers = servers.iter().map(|address| {
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for connection in &mut connections {
            connection.port = address.port();
        }
        // Another nameserver may know the name: NXDOMAIN counts only when all say so.
        NameServerConfig::new(address.ip(), false, connections)
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), nameservers.collect());
    let mut options = ResolverOpts::default();
    options.ndots = 0;
    // Two tries within the source's deadline.
    options.timeout = timeout / 2;
    options.attempts = 1;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.num_concurrent_reqs = servers.len().max(1);
    options.edns0 = true;
    Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| error.to_string())
}
