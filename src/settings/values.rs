//! The single values of the settings: where each may come from, and which place wins.
//!
//! Takes the command line, the environment and what CMD says, gives one typed value each. The order is always the same: our own
//! flag or variable, CMD, the Pod's facts, a default; two that contradict each other are refused.

use super::command::{AgentCommand, Facts, Place, Said};
use super::http::{Endpoint, HTTP_PORT, HTTPS_PORT};
use super::read::{Reader, SettingsError, number};
use super::resolv::{DNS_PORT, RESOLV_CONF, Resolving};
use super::source::{Source, dns_name};
use super::{DEFAULT_DATA_DIR, Local, MAX_SERVERS, PeerPorts, Role, SERF_PORT, SERVER_PORT, Stable};
use crate::api::kube::Access;
use crate::cli::{CommonArgs, NodeArgs, SurveyArgs};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the rendered file goes.
///
/// # Errors
/// [`SettingsError::Conflict`]: two data folders.
pub fn config_out(
    reader: Reader<'_>,
    common: &CommonArgs,
    node: &NodeArgs,
    command: Option<&AgentCommand>,
) -> Result<PathBuf, SettingsError> {
    match reader.text(&node.config_out) {
        Some(given) => Ok(given.into()),
        None => Ok(default_config_out(&data_dir(reader, common, command)?)),
    }
}

/// Where convene renders when nobody says otherwise.
pub fn default_config_out(data_dir: &Path) -> PathBuf {
    data_dir.join("convene/agent.json")
}

pub(super) fn missing(what: &str, mend: &str) -> SettingsError {
    SettingsError::Missing { what: what.to_owned(), mend: mend.to_owned() }
}

pub(super) fn value<T: Clone>(said: &Option<Said<T>>) -> Option<T> {
    said.as_ref().map(|said| said.value.clone())
}

pub(super) fn role_of(said: &Facts) -> Role {
    if value(&said.server) == Some(true) { Role::Server } else { Role::Client }
}

pub(super) fn pod_name(reader: Reader<'_>) -> Result<Option<String>, SettingsError> {
    reader.env.get("POD_NAME").map(|name| dns_name("POD_NAME", name, name)).transpose()
}

pub(super) fn machine(reader: Reader<'_>) -> Result<Option<String>, SettingsError> {
    reader.env.get("NODE_NAME").map(|name| dns_name("NODE_NAME", name, name)).transpose()
}

pub(super) fn node_name(
    reader: Reader<'_>,
    args: &CommonArgs,
    said: Option<&Facts>,
    pod: Option<&str>,
    machine: Option<&str>,
) -> Result<String, SettingsError> {
    let given = reader.text(&args.node_name).map(str::to_owned);
    let given = given.or_else(|| said.and_then(|said| value(&said.node_name))).or_else(|| pod.map(str::to_owned));
    // A client without a Pod's name of its own is its machine's.
    let given = given.or_else(|| machine.map(str::to_owned));
    let host_name = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    given
        .or_else(host_name)
        .ok_or_else(|| missing("this node's name", "give --node-name or set POD_NAME by the downward API"))
}

pub(super) fn data_dir(
    reader: Reader<'_>,
    args: &CommonArgs,
    command: Option<&AgentCommand>,
) -> Result<PathBuf, SettingsError> {
    let own = reader.text(&args.data_dir).map(PathBuf::from);
    let said = command.and_then(|command| command.facts().data_dir.as_ref());
    match (own, said) {
        (Some(own), Some(said)) if own != said.value => Err(SettingsError::Conflict {
            what: format!(
                "{} is {} but CMD\'s {} is {}",
                reader.places.of("data_dir"),
                own.display(),
                said.place,
                said.value.display()
            ),
            mend: "give the data folder once".to_owned(),
        }),
        (Some(own), _) => Ok(own),
        (None, Some(said)) => Ok(said.value.clone()),
        (None, None) => Ok(DEFAULT_DATA_DIR.into()),
    }
}

pub(super) fn pod_ips(reader: Reader<'_>) -> Result<Vec<IpAddr>, SettingsError> {
    let mut ips = Vec::new();
    for variable in ["POD_IP", "POD_IPS"] {
        for text in
            reader.env.get(variable).unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty())
        {
            ips.push(address(variable, text)?);
        }
    }
    Ok(ips)
}

pub(super) fn address(place: &str, text: &str) -> Result<IpAddr, SettingsError> {
    text.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast()).ok_or_else(|| {
        SettingsError::Value {
            place: place.to_owned(),
            value: text.to_owned(),
            allowed: "one IPv4 or IPv6 address that others can reach; for --advertise also auto, service, pod or host"
                .to_owned(),
            nearest: String::new(),
        }
    })
}

pub(super) fn advertise(
    reader: Reader<'_>,
    args: &CommonArgs,
    said: Option<&Facts>,
    pod_ips: &[IpAddr],
    in_a_seat: bool,
) -> Result<(Option<IpAddr>, Stable), SettingsError> {
    let of_pod = pod_ips.first().copied();
    let without_stable = || said.and_then(bind_address).or(of_pod);
    match reader.text(&args.advertise) {
        Some("pod") => {
            let mend = "--advertise=pod needs it: set POD_IP by the downward API";
            return of_pod.map(|ip| (Some(ip), Stable::Never)).ok_or_else(|| missing("the Pod's address", mend));
        }
        Some("host") => {
            let mend = "--advertise=host needs it: set HOST_IP by the downward API (status.hostIP)";
            let host = reader.env.get("HOST_IP").ok_or_else(|| missing("the machine's address", mend))?;
            return Ok((Some(address("HOST_IP", host)?), Stable::Never));
        }
        Some("service") if in_a_seat => return Ok((without_stable(), Stable::Always)),
        Some("service") => {
            return Err(missing(
                "the Pod's own Service",
                "it is named as the Pod: set POD_NAME by the downward API, or give --advertise ADDRESS",
            ));
        }
        None | Some("auto") => {}
        Some(text) => return Ok((Some(address(&reader.places.of("advertise"), text)?), Stable::Never)),
    }
    if let Some(theirs) = said.and_then(|said| said.advertise_addr.as_ref()) {
        // A go-sockaddr template is Consul's to work out, but a server must know whether the others list it.
        if theirs.value.is_none() && said.is_some_and(|said| role_of(said) == Role::Server) {
            let mend = "CMD's -advertise is a template, which only Consul fills in: give --advertise ADDRESS instead (in a Pod $(POD_IP))";
            return Err(missing("this server's own address", mend));
        }
        return Ok((theirs.value, Stable::Never));
    }
    let is_client = said.is_some_and(|said| role_of(said) == Role::Client);
    let stable = if in_a_seat && !is_client { Stable::IfThere } else { Stable::Never };
    Ok((without_stable(), stable))
}

pub(super) fn bind_address(said: &Facts) -> Option<IpAddr> {
    value(&said.bind_addr)?.filter(|bind| !bind.is_unspecified())
}

/// Where CMD makes the own agent's HTTP API listen, if that is one plain address.
pub(super) fn listening(said: &Facts) -> Option<Endpoint> {
    // Consul's defaults: HTTP on 8500, HTTPS off.
    let http = value(&said.ports.http).unwrap_or(i32::from(HTTP_PORT));
    let https = value(&said.ports.https).unwrap_or(-1);
    let (tls, port, own) = if http > 0 { (false, http, &said.http_addr) } else { (true, https, &said.https_addr) };
    let addresses = value(own).or_else(|| value(&said.client_addr)).unwrap_or_else(|| "127.0.0.1".to_owned());
    let first = addresses.split_ascii_whitespace().next()?;
    if let Some(path) = first.strip_prefix("unix://") {
        return Some(Endpoint::Unix(path.into()));
    }
    let ip = match first.parse().ok()? {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    u16::try_from(port).ok().filter(|port| *port > 0).map(|port| Endpoint::tcp(tls, ip, port))
}

pub(super) fn peer_ports(
    reader: Reader<'_>,
    args: &CommonArgs,
    said: Option<&Facts>,
    tls: bool,
) -> Result<PeerPorts, SettingsError> {
    let of = |said: Option<i32>, default: u16| {
        said.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(default)
    };
    let http = match (tls, said) {
        (false, said) => of(said.and_then(|said| value(&said.ports.http)), HTTP_PORT),
        (true, said) => of(said.and_then(|said| value(&said.ports.https)), HTTPS_PORT),
    };
    Ok(PeerPorts {
        http: reader.port("peer_http_port", &args.peer_http_port)?.unwrap_or(http),
        server: reader
            .port("server_port", &args.server_port)?
            .unwrap_or_else(|| of(said.and_then(|said| value(&said.ports.server)), SERVER_PORT)),
        serf: of(said.and_then(|said| value(&said.ports.serf_lan)), SERF_PORT),
    })
}

pub(super) fn resolving(reader: Reader<'_>, args: &SurveyArgs) -> Result<Resolving, SettingsError> {
    let path = reader.text(&args.resolv_conf).unwrap_or(RESOLV_CONF);
    let mut resolving = Resolving::from_file(path.as_ref());
    let given: Vec<&str> =
        args.nameserver.iter().flat_map(|many| many.split(',')).map(str::trim).filter(|one| !one.is_empty()).collect();
    if given.is_empty() {
        return Ok(resolving);
    }
    let place = reader.places.of("nameserver");
    let parse = |text: &&str| {
        let address = text
            .parse::<SocketAddr>()
            .ok()
            .or_else(|| text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT)));
        address.filter(|address| address.port() > 0).ok_or_else(|| SettingsError::Value {
            place: place.clone(),
            value: (*text).to_owned(),
            allowed: "ADDR:PORT or ADDR, for IPv6 [ADDR]:PORT".to_owned(),
            nearest: String::new(),
        })
    };
    resolving.nameservers = given.iter().map(parse).collect::<Result<_, _>>()?;
    resolving.problem = None;
    Ok(resolving)
}

pub(super) fn sources(
    reader: Reader<'_>,
    args: &SurveyArgs,
    local: &Local,
    role: Role,
    said: Option<&Facts>,
) -> Result<Vec<Source>, SettingsError> {
    let place = reader.places.of("discover");
    // A source may hold commas, spaces and colons, never a semicolon.
    let given = args.discover.iter().flat_map(|many| many.split(';')).map(str::trim).filter(|one| !one.is_empty());
    let mut sources = given.map(|one| Source::parse(&place, one)).collect::<Result<Vec<_>, _>>()?;
    let computed = local.seat.is_some() && role == Role::Server;
    if sources.is_empty() && computed {
        sources.push(Source::StatefulSet);
    }
    // What a file joins cannot be taken out and is refused later; only CMD's own flags are sources.
    let joins = said.into_iter().flat_map(|said| said.retry_join.iter().chain(&said.start_join));
    for join in joins.filter(|join| matches!(join.place, Place::Flag(_))) {
        let source = Source::from_retry_join(&format!("CMD's {}", join.place), &join.value)?;
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    if sources.contains(&Source::StatefulSet) && local.seat.is_none() {
        return Err(missing(
            "the StatefulSet",
            "its name and ordinal come from POD_NAME (downward API), such as consul-server-0; or give another --discover",
        ));
    }
    if sources.is_empty() {
        let mend = match role {
            Role::Server => {
                "give --discover k8s:SELECTOR, dns:NAME, srv:NAME or static:HOST,…; in a StatefulSet set POD_NAME by the downward API"
            }
            Role::Client => "a client must be told: give --discover k8s:SELECTOR, dns:NAME, srv:NAME or static:HOST,…",
        };
        return Err(missing("where to find the servers", mend));
    }
    Ok(sources)
}

/// The service account's token, where kubelet mounts it
/// (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// How the Kubernetes API is asked: by kubectl's own variable, else by the mounted service account. A server in a StatefulSet
/// asks it where it can, a source that needs it must be able to.
///
/// # Errors
/// [`SettingsError::Missing`]: a source needs it, and there is no way to it.
pub fn kubernetes(
    reader: Reader<'_>,
    local: &Local,
    role: Role,
    sources: &[Source],
) -> Result<Option<Access>, SettingsError> {
    let needed =
        sources.iter().any(|source| matches!(source, Source::Kubernetes(selector) if selector.kubeconfig.is_none()));
    if !needed && (local.seat.is_none() || role == Role::Client) {
        return Ok(None);
    }
    if needed { needed_kubernetes(reader).map(Some) } else { Ok(given_access(reader)) }
}

/// The same for a command that is nothing without it.
///
/// # Errors
/// [`SettingsError::Missing`]: there is no way to it.
pub fn needed_kubernetes(reader: Reader<'_>) -> Result<Access, SettingsError> {
    let at_home = || reader.env.get("HOME").is_some_and(|home| Path::new(home).join(".kube/config").exists());
    let mend = "let a service account token be mounted (automountServiceAccountToken), or set KUBECONFIG";
    given_access(reader)
        .or_else(|| at_home().then_some(Access::Kubeconfig(None)))
        .ok_or_else(|| missing("the way to the Kubernetes API", mend))
}

/// The way to the Kubernetes API that a Pod is given, or that kubectl would go.
pub(super) fn given_access(reader: Reader<'_>) -> Option<Access> {
    if reader.env.get("KUBECONFIG").is_some() {
        return Some(Access::Kubeconfig(None));
    }
    let mounted = reader.env.get("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists();
    mounted.then_some(Access::InCluster)
}

/// Whether a claim is kept where it can be: by the setting alone, never by what a call answers.
pub(super) fn claim_wanted(reader: Reader<'_>, args: &SurveyArgs) -> Result<bool, SettingsError> {
    Ok(reader.choice("claim", &args.claim, &[("auto", true), ("off", false)])?.unwrap_or(true))
}

/// The ID in `--new-cluster=force:ID`.
pub(super) fn forced(reader: Reader<'_>, args: &NodeArgs) -> Result<Option<String>, SettingsError> {
    let Some(given) = reader.text(&args.new_cluster) else { return Ok(None) };
    let id = given.strip_prefix("force:").map(str::trim).filter(|id| !id.is_empty());
    id.map(|id| Some(id.to_owned())).ok_or_else(|| SettingsError::Value {
        place: reader.places.of("new_cluster"),
        value: given.to_owned(),
        allowed: "force:ID with the ID of the claim, as the message of a waiting server has it".to_owned(),
        nearest: String::new(),
    })
}

/// `--expect` and `--replicas`, and whether they fit: two halves of a cut must never both reach the expect.
pub(super) fn numbers(
    reader: Reader<'_>,
    args: &SurveyArgs,
    said: Option<&Facts>,
    api: bool,
) -> Result<(Option<u32>, Option<u32>), SettingsError> {
    let auto = reader.text(&args.expect) == Some("auto");
    if auto && !api {
        let mend = "--expect=auto asks the Kubernetes API for the StatefulSet's replicas: let a service account token be mounted, or give the number";
        return Err(missing("the number of servers", mend));
    }
    let own = if auto { None } else { reader.number("expect", &args.expect, 1..=MAX_SERVERS)? };
    // One in a file cannot be taken out and is refused later.
    let theirs = said.and_then(|said| said.bootstrap_expect.as_ref());
    let theirs = theirs.filter(|said| matches!(said.place, Place::Flag(_)));
    if let Some(theirs) = theirs {
        number(&format!("CMD's {}", theirs.place), &theirs.value.to_string(), 1..=MAX_SERVERS)?;
    }
    let theirs =
        theirs.and_then(|said| u32::try_from(said.value).ok().map(|value| (value, format!("CMD's {}", said.place))));
    let (expect, place) = match (own, theirs) {
        (Some(own), Some((theirs, place))) if own != theirs => {
            return Err(SettingsError::Conflict {
                what: format!("{} is {own} but {place} is {theirs}", reader.places.of("expect")),
                mend: "give the number of servers once".to_owned(),
            });
        }
        (Some(own), _) => (Some(own), reader.places.of("expect")),
        (None, Some((theirs, place))) => (Some(theirs), place),
        (None, None) => (None, reader.places.of("expect")),
    };
    let replicas = reader.number("replicas", &args.replicas, 1..=MAX_SERVERS)?;
    if let (Some(expect), Some(replicas)) = (expect, replicas) {
        let conflict = |why: &str| SettingsError::Conflict {
            what: format!("{place} is {expect} and {} is {replicas}: {why}", reader.places.of("replicas")),
            mend: format!("give an expect from {} to {replicas}; usually {replicas}", replicas / 2 + 1),
        };
        if expect > replicas {
            return Err(conflict("that many servers will never come"));
        }
        if expect * 2 <= replicas {
            return Err(conflict("both sides of a cut could found a cluster"));
        }
    }
    Ok((expect, replicas))
}
