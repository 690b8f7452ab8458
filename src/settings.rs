//! What convene was told: parsed, bounded, defaulted and cross-checked, in this one place.
//!
//! Takes the command line, the environment (`CONVENE_…`, Consul's own `CONSUL_…`, the Pod's facts by the downward API),
//! resolv.conf, and what CMD's own arguments say to Consul. Gives [`Node`] for `init`, `run` and `discover`, [`Local`] for
//! `check` and `leave`. No raw string goes past this point. Fails with [`SettingsError`], always exit code 64.

pub mod command;
pub mod doctoring;
pub mod gossip;
pub mod http;
pub mod read;
pub mod reaping;
pub mod recovering;
pub mod resolv;
pub mod source;
pub mod supervision;
mod values;

use crate::api::kube::{Access, Kube};
use crate::cli::{CommonArgs, LeaveArg, NodeArgs, StopArgs, SurveyArgs, environment_twins};
use crate::log;
use command::{AgentCommand, Facts, Wanted};
use gossip::GossipKey;
use http::Http;
use read::{Reader, SettingsError, nearest};
use resolv::{DEFAULT_CLUSTER_DOMAIN, Resolving};
use serde::{Deserialize, Serialize};
use source::Source;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use values::{
    advertise, bind_address, claim_wanted, data_dir, forced, given_access, listening, machine, missing, node_name,
    numbers, peer_ports, pod_ips, pod_name, resolving, role_of, sources, value,
};
pub use values::{config_out, default_config_out, kubernetes, needed_kubernetes};

/// Consul's image keeps its data here.
pub const DEFAULT_DATA_DIR: &str = "/consul/data";
/// Kubernetes' default for terminationGracePeriodSeconds.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Long enough for a nameserver's second try, short enough for a start with data to go on without DNS.
pub const DEFAULT_DISCOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Consul's port for raft and RPC between servers.
pub const SERVER_PORT: u16 = 8300;
/// Consul's port for gossip in the LAN.
pub const SERF_PORT: u16 = 8301;
/// How long others remember a client that is gone: Consul's own 72 h is a long list of the dead in a cluster whose Pods come
/// and go, and an evening's outage must not make a machine's agent unknown.
pub const DEFAULT_RECONNECT_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// Consul's default.
pub const DEFAULT_DATACENTER: &str = "dc1";
/// More servers than this are no Consul cluster but a typing error.
pub const MAX_SERVERS: u32 = 99;

/// Server or client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Holds raft data and votes.
    Server,
    /// Forwards to servers.
    Client,
}

/// Whether a stop leaves the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Every TERM is a graceful leave.
    Always,
    /// Stop without leaving.
    Never,
    /// Consul leaves by itself when it gets a signal.
    Signal,
}

/// Whose volume this is. Written into the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The Pod's namespace, if there is one.
    pub namespace: Option<String>,
    /// The StatefulSet, from the Pod's name.
    pub statefulset: Option<String>,
    /// The Pod's name, else the node's.
    pub pod: String,
}

// === impl Owner ===

impl Owner {
    /// The same, in the namespace that is looked in where the Pod does not say its own.
    pub fn or_in(self, namespace: Option<&String>) -> Self {
        Self { namespace: self.namespace.or_else(|| namespace.cloned()), ..self }
    }
}

/// Whether the address of the Pod's own Service is advertised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stable {
    /// No.
    Never,
    /// If there is such a Service, and this Pod reaches it.
    IfThere,
    /// Yes; it is waited for.
    Always,
}

/// What is done with a volume that belongs to another Pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    /// It was restored or renamed, all servers alike: go on with its data.
    Keep,
    /// Go on without its data, as a new server.
    Fresh,
}

/// A server's place in its StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The StatefulSet's name.
    pub statefulset: String,
    /// Our ordinal.
    pub ordinal: u32,
}

/// What every command needs.
#[derive(Debug, Clone)]
pub struct Local {
    /// Consul's data folder.
    pub data_dir: PathBuf,
    /// Server or client; `None` when nobody said.
    pub role: Option<Role>,
    /// The node's name in Consul.
    pub node_name: String,
    /// The Kubernetes Node that it runs on, where the downward API gives it (`NODE_NAME`).
    pub machine: Option<String>,
    /// Whose volume this is.
    pub owner: Owner,
    /// Our Pod's UID, where the downward API gives it.
    pub pod_uid: Option<String>,
    /// Our place in the StatefulSet, if the Pod's name has one.
    pub seat: Option<Seat>,
    /// The address to advertise where there is no stable one; `None` leaves it to Consul.
    pub advertise: Option<IpAddr>,
    /// Whether the ClusterIP of a Service named as the Pod is advertised instead.
    pub stable: Stable,
    /// Every address that is known to be ours.
    pub own_addresses: Vec<IpAddr>,
    /// How agents are asked.
    pub http: Http,
    /// The ports of the other servers.
    pub peer: PeerPorts,
    /// Our datacenter, where it was given or CMD's own arguments are known.
    pub datacenter: Option<String>,
    /// `server.<datacenter>.<domain>`, the name in every server's certificate.
    pub server_tls_name: String,
}

/// The ports that the other servers listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPorts {
    /// The HTTP API.
    pub http: u16,
    /// Raft and RPC.
    pub server: u16,
    /// Gossip.
    pub serf: u16,
}

/// Who is asked for the other servers, and how.
#[derive(Debug, Clone)]
pub struct Survey {
    /// In the order given.
    pub sources: Vec<Source>,
    /// The deadline of each source.
    pub timeout: Duration,
    /// Names are resolved by this.
    pub resolving: Resolving,
    /// The cluster's domain, without dots at its ends.
    pub cluster_domain: String,
    /// The Pod's namespace.
    pub namespace: Option<String>,
    /// The headless Service of the StatefulSet, if it was given.
    pub service: Option<String>,
    /// How many servers form the cluster; `None`: what the Kubernetes API says of the StatefulSet.
    pub expect: Option<u32>,
    /// How many servers there are, if that was given.
    pub replicas: Option<u32>,
    /// The StatefulSet's first ordinal, if it was given.
    pub ordinals_start: Option<u32>,
    /// How the Kubernetes API is asked, if at all.
    pub kubernetes: Option<Access>,
    /// Whether a claim is kept there.
    pub claims: bool,
    /// The other Pods' own Services are asked for before the headless one.
    pub stable: bool,
}

/// All that `init`, `run` and `discover` need.
#[derive(Debug, Clone)]
pub struct Node {
    /// What every command needs.
    pub local: Local,
    /// The role, now certain.
    pub role: Role,
    /// Who is asked.
    pub survey: Survey,
    /// Where the rendered file goes.
    pub config_out: PathBuf,
    /// Whether a missing data folder is made.
    pub create_data_dir: bool,
    /// How long to wait; `None`: without limit.
    pub wait: Option<Duration>,
    /// What is done with another Pod's volume; `None`: it is refused.
    pub adopt: Option<Adopt>,
    /// The ID of a claim that may be given up for a new cluster.
    pub force: Option<String>,
    /// The start is put off by a part of this.
    pub jitter: Duration,
    /// How long the others remember a client that has failed or left.
    pub reconnect_timeout: Duration,
    /// The gossip key that the agent is given, where that can be seen.
    pub gossip_key: Option<GossipKey>,
    /// How the own Pod's annotations are asked for, where there is a Pod.
    pub pod: Option<Access>,
}

/// How it ends.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Whether a stop leaves, if that was said. A server that was told nothing does not leave; a client then does what
    /// Consul does by default.
    pub leave: Option<Leave>,
    /// The Pod's grace period.
    pub grace: Duration,
    /// Who is asked for the cause. A client's own Pod is nobody else's business while it runs.
    pub kubernetes: Option<Access>,
}

/// How convene speaks, known before anything else.
#[derive(Debug, Clone)]
pub struct Speech {
    /// The log's format.
    pub format: log::Format,
    /// The least level shown.
    pub level: tracing::Level,
    /// The termination log.
    pub termination_log: PathBuf,
}

// === impl PeerPorts ===

impl PeerPorts {
    /// Serf's port in a target to join, where no source gives one; `None`: the usual one, which is not written.
    pub fn serf_of_a_target(self) -> Option<u16> {
        (self.serf != SERF_PORT).then_some(self.serf)
    }
}

// === impl Speech ===

impl Speech {
    /// Reads how to speak.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn read(reader: Reader<'_>, args: &CommonArgs) -> Result<Self, SettingsError> {
        use tracing::Level;
        let formats = &[("auto", log::Format::Auto), ("json", log::Format::Json), ("plain", log::Format::Plain)];
        let levels = &[
            ("error", Level::ERROR),
            ("warn", Level::WARN),
            ("info", Level::INFO),
            ("debug", Level::DEBUG),
            ("trace", Level::TRACE),
        ];
        Ok(Self {
            format: reader.choice("log_format", &args.log_format, formats)?.unwrap_or_default(),
            level: reader.choice("log_level", &args.log_level, levels)?.unwrap_or(Level::INFO),
            termination_log: reader.text(&args.termination_log).unwrap_or(DEFAULT_TERMINATION_LOG).into(),
        })
    }
}

/// Where kubelet reads a container's last words.
pub const DEFAULT_TERMINATION_LOG: &str = "/dev/termination-log";

/// Variables that begin as ours do and are none of ours, each with the nearest right spelling: a warning, no error, since
/// Kubernetes itself makes `CONVENE_SERVICE_HOST` when a Service has our name.
pub fn unknown_variables(reader: Reader<'_>) -> Vec<String> {
    let kubernetes = |name: &str| name.starts_with("CONVENE_SERVICE_") || name.starts_with("CONVENE_PORT");
    let ours: Vec<&str> = reader.env.names().filter(|name| name.starts_with("CONVENE_") && !kubernetes(name)).collect();
    if ours.is_empty() {
        return Vec::new();
    }
    let known = environment_twins();
    let unknown = ours.into_iter().filter(|name| !known.iter().any(|twin| twin == name));
    unknown.map(|name| format!("the variable {name} is none of convene's{}", nearest_variable(name, &known))).collect()
}

fn nearest_variable(name: &str, known: &[String]) -> String {
    let lower = known.iter().map(|twin| twin.to_lowercase()).collect::<Vec<_>>();
    nearest(name, lower.iter().map(String::as_str)).to_uppercase().replace("; DID YOU MEAN", "; did you mean")
}

// === impl Local ===

impl Local {
    /// Reads what every command needs. `command` is CMD, when it is a Consul agent.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(reader: Reader<'_>, args: &CommonArgs, command: Option<&AgentCommand>) -> Result<Self, SettingsError> {
        let said = command.map(AgentCommand::facts);
        let name = pod_name(reader)?;
        let role = reader.choice("role", &args.role, &[("server", Role::Server), ("client", Role::Client)])?;
        let role = role.or_else(|| said.map(role_of));
        // What looks like an ordinal in a client's Pod's name may be chance.
        let seat = name.as_deref().and_then(Seat::of_pod).filter(|_| role != Some(Role::Client));
        let machine = machine(reader)?;
        let node_name = node_name(reader, args, said, name.as_deref(), machine.as_deref())?;
        let mut http = Http::read(reader.env, said.and_then(listening))?;
        if let Some(wanted) = reader.choice("peer_tls", &args.peer_tls, read::BOOLEANS)? {
            http.peers_tls = wanted;
        }
        let pod_ips = pod_ips(reader)?;
        let (advertise, stable) = advertise(reader, args, said, &pod_ips, seat.is_some())?;
        let mut own_addresses: Vec<IpAddr> =
            advertise.into_iter().chain(pod_ips).chain(said.and_then(bind_address)).collect();
        own_addresses.sort();
        own_addresses.dedup();
        let datacenter = reader.text(&args.datacenter).map(str::to_lowercase);
        let datacenter = datacenter
            .or_else(|| said.map(|said| value(&said.datacenter).unwrap_or_else(|| DEFAULT_DATACENTER.to_owned())));
        let domain = reader.text(&args.domain).map(str::to_owned).or(said.and_then(|said| value(&said.domain)));
        Ok(Self {
            data_dir: data_dir(reader, args, command)?,
            role,
            node_name: node_name.clone(),
            machine,
            owner: Owner {
                namespace: reader.env.get("POD_NAMESPACE").map(str::to_owned),
                statefulset: seat.as_ref().map(|seat| seat.statefulset.clone()),
                pod: name.unwrap_or(node_name),
            },
            pod_uid: reader.env.get("POD_UID").map(str::to_owned),
            seat,
            advertise,
            stable,
            own_addresses,
            peer: peer_ports(reader, args, said, http.peers_tls)?,
            http,
            server_tls_name: format!(
                "server.{}.{}",
                datacenter.as_deref().unwrap_or(DEFAULT_DATACENTER),
                domain.unwrap_or_else(|| "consul".to_owned()).trim_matches('.')
            ),
            datacenter,
        })
    }
}

// === impl Node ===

impl Node {
    /// Reads all that a start needs.
    ///
    /// # Errors
    /// [`SettingsError`]: a wrong value, or values that do not fit each other.
    pub fn read(
        reader: Reader<'_>,
        common: &CommonArgs,
        survey: &SurveyArgs,
        node: &NodeArgs,
        command: Option<&AgentCommand>,
    ) -> Result<Self, SettingsError> {
        let local = Local::read(reader, common, command)?;
        let role = local.role.ok_or_else(|| {
            missing("the role", "give --role server or --role client (run reads it from CMD's -server)")
        })?;
        if role == Role::Server && local.own_addresses.is_empty() {
            return Err(missing(
                "this server's own address",
                "set POD_IP by the downward API, or give --advertise ADDRESS",
            ));
        }
        let survey = Survey::read(reader, survey, &local, role, command.map(AgentCommand::facts))?;
        Ok(Self {
            role,
            survey,
            config_out: config_out(reader, common, node, command)?,
            create_data_dir: reader.boolean("create_data_dir", &node.create_data_dir)?,
            wait: reader.duration("wait", &node.wait, Duration::ZERO..=Duration::from_secs(7 * 24 * 3600))?,
            adopt: reader.choice(
                "adopt_volume",
                &node.adopt_volume,
                &[("keep", Adopt::Keep), ("fresh", Adopt::Fresh)],
            )?,
            force: forced(reader, node)?,
            jitter: reader
                .duration("jitter", &node.jitter, Duration::ZERO..=Duration::from_secs(600))?
                .unwrap_or(Duration::ZERO),
            reconnect_timeout: reader
                .duration(
                    "reconnect_timeout",
                    &node.reconnect_timeout,
                    Duration::from_secs(1)..=Duration::from_secs(72 * 3600),
                )?
                .unwrap_or(DEFAULT_RECONNECT_TIMEOUT),
            gossip_key: command.map(|command| GossipKey::said(command.facts())).transpose()?.flatten(),
            pod: given_access(reader).filter(|_| local.owner.namespace.is_some()),
            local,
        })
    }

    /// What CMD must not contradict. `node_id` is the one on the volume, if there is one already.
    pub fn wanted<'a>(&'a self, node_id: Option<&'a str>) -> Wanted<'a> {
        Wanted {
            node_id,
            data_dir: &self.local.data_dir,
            rendered: &self.config_out,
            server: self.role == Role::Server,
            advertise: self.local.advertise,
            node_name: Some(&self.local.node_name),
        }
    }
}

// === impl Survey ===

impl Survey {
    /// Reads who is asked.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(
        reader: Reader<'_>,
        args: &SurveyArgs,
        local: &Local,
        role: Role,
        said: Option<&Facts>,
    ) -> Result<Self, SettingsError> {
        let resolving = resolving(reader, args)?;
        let (svc_domain, svc_namespace) = resolving.cluster();
        let cluster_domain = match reader.text(&args.cluster_domain) {
            Some(given) => {
                source::dns_name(&reader.places.of("cluster_domain"), given, given)?.trim_matches('.').to_owned()
            }
            None => svc_domain.unwrap_or(DEFAULT_CLUSTER_DOMAIN).to_owned(),
        };
        let namespace = local.owner.namespace.clone().or_else(|| svc_namespace.map(str::to_owned));
        let service = reader.text(&args.service);
        let service = service.map(|given| source::dns_name(&reader.places.of("service"), given, given)).transpose()?;
        let sources = sources(reader, args, local, role, said)?;
        let kubernetes = kubernetes(reader, local, role, &sources)?;
        if sources.contains(&Source::StatefulSet) && namespace.is_none() {
            return Err(missing("the namespace", "set POD_NAMESPACE by the downward API"));
        }
        let (expect, replicas) = numbers(reader, args, said, kubernetes.is_some())?;
        let ordinals_start = reader.number("ordinals_start", &args.ordinals_start, 0..=9999)?;
        if let (Some(seat), Some(start), Role::Server) = (&local.seat, ordinals_start, role)
            && seat.ordinal < start
        {
            return Err(SettingsError::Conflict {
                what: format!("{} is {start} but our ordinal is {}", reader.places.of("ordinals_start"), seat.ordinal),
                mend: "give the StatefulSet's spec.ordinals.start, or nothing when it has none".to_owned(),
            });
        }
        Ok(Self {
            sources,
            timeout: reader
                .duration(
                    "discover_timeout",
                    &args.discover_timeout,
                    Duration::from_millis(100)..=Duration::from_secs(60),
                )?
                .unwrap_or(DEFAULT_DISCOVER_TIMEOUT),
            resolving,
            cluster_domain,
            namespace,
            service,
            expect,
            replicas,
            ordinals_start,
            claims: kubernetes.is_some() && local.seat.is_some() && role == Role::Server && claim_wanted(reader, args)?,
            kubernetes,
            stable: local.stable != Stable::Never,
        })
    }
}

impl Survey {
    /// The Pod's namespace, else Kubernetes' own default.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// Asks the Kubernetes API, where that was settled on. Nothing is opened yet.
    pub fn kube(&self) -> Option<Kube> {
        self.kubernetes.clone().map(|access| Kube::new(access, self.timeout))
    }
}

// === impl Leave ===

impl Leave {
    /// Reads what was ordered, if anything.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn read(reader: Reader<'_>, args: &LeaveArg) -> Result<Option<Self>, SettingsError> {
        let orders = &[("always", Self::Always), ("never", Self::Never), ("signal", Self::Signal)];
        reader.choice("leave", &args.leave, orders)
    }
}

impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Never => "never",
            Self::Signal => "signal",
        })
    }
}

// === impl Stop ===

impl Stop {
    /// Reads how it ends.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub fn read(reader: Reader<'_>, args: &StopArgs) -> Result<Self, SettingsError> {
        Ok(Self {
            leave: Leave::read(reader, &args.leave)?,
            grace: reader
                .duration("grace_period", &args.grace_period, Duration::from_secs(5)..=Duration::from_secs(3600))?
                .unwrap_or(DEFAULT_GRACE),
            kubernetes: given_access(reader),
        })
    }
}

// === impl Seat ===

impl Seat {
    /// A StatefulSet's Pod is named `<statefulset>-<ordinal>`.
    pub fn of_pod(name: &str) -> Option<Self> {
        let (statefulset, ordinal) = name.rsplit_once('-')?;
        let canonical = !statefulset.is_empty()
            && (ordinal == "0" || !ordinal.starts_with('0'))
            && ordinal.bytes().all(|b| b.is_ascii_digit());
        let ordinal = ordinal.parse().ok().filter(|_| canonical)?;
        Some(Self { statefulset: statefulset.to_owned(), ordinal })
    }

    /// Whether a Pod of that name belongs to the same StatefulSet.
    pub fn is_beside(&self, pod: &str) -> bool {
        Self::of_pod(pod).is_some_and(|other| other.statefulset == self.statefulset)
    }

    /// The Pod's name of an ordinal of this StatefulSet.
    pub fn pod(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.statefulset)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}
