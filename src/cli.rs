//! What can be said on the command line: clap types and nothing else.
//!
//! Every value is a string here; [`crate::settings`] reads, bounds and cross-checks them. Every flag has an environment
//! twin `CONVENE_…`. A usage error is one line and exit code 64.

use crate::exit::{Code, Failure};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// Brings a Consul cluster together and takes it apart well.
#[derive(Debug, Parser)]
#[command(name = "convene", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Discover, decide, persist and render; exit 0 when the agent may start (init container)
    Init(InitArgs),
    /// The same, then start CMD and supervise it as PID 1 (entrypoint)
    Run(RunArgs),
    /// Do beside an agent that is PID 1 itself what run does beside its own (native sidecar)
    Watch(WatchArgs),
    /// Stop well: leave the cluster or not, as --leave says (preStop hook)
    Leave(LeaveArgs),
    /// Exit 0 or 1 with one line that says why (probe)
    Check(CheckArgs),
    /// Show who is there: a table, JSON or bare addresses
    Discover(DiscoverArgs),
    /// Remove clients whose machine is gone; without --yes say which (CronJob)
    Reap(ReapArgs),
    /// Look at everything, and say what is wrong and how it is mended (by hand, in a pipeline)
    Doctor(DoctorArgs),
    /// Bring a server back that has lost its quorum (peers.json); without --yes say what would be done
    Recover(RecoverArgs),
    /// Copy this program into a folder (init container; its image has no cp)
    Install(InstallArgs),
}

/// Settings of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Who is asked, and how.
    #[command(flatten)]
    pub survey: SurveyArgs,
    /// What this server is to become.
    #[command(flatten)]
    pub node: NodeArgs,
    /// What was ordered about leaving.
    #[command(flatten)]
    pub leave: LeaveArg,
    /// Copy this program into a folder first, as install does: one init container less
    #[arg(long, env = "CONVENE_INSTALL", value_name = "DIR")]
    pub install: Option<String>,
    /// The file with the gossip key that the agent gets, which is only checked: Consul's configuration (.json, .hcl) or the key alone (run reads CMD's)
    #[arg(long, env = "CONVENE_GOSSIP_KEY_FILE", value_name = "FILE")]
    pub gossip_key_file: Option<String>,
    /// When the address of the Pod's own Service is tried: before it is chosen, or, at a server's first start, beside the agent by watch, which must run then; that is a second or two faster
    #[arg(long, env = "CONVENE_HAIRPIN", value_name = "WHEN")]
    pub hairpin: Option<String>,
}

/// Settings of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Who is asked, and how.
    #[command(flatten)]
    pub survey: SurveyArgs,
    /// What this server is to become.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How it ends.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Replace convene by CMD once it may start; a preStop hook does the stopping then
    #[arg(long, env = "CONVENE_EXEC", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub exec: Option<String>,
    /// With --exec: init has prepared the start, so only wait until the Pod reaches its own Service, a second at most
    #[arg(long, env = "CONVENE_PREPARED", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub prepared: Option<String>,
    /// Be an init and nothing else: no survey, no files
    #[arg(long, env = "CONVENE_PLAIN", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub plain: Option<String>,
    /// How CMD is supervised.
    #[command(flatten)]
    pub supervise: SuperviseArgs,
    /// The program and its arguments, after `--`
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Settings of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Who is asked, and how.
    #[command(flatten)]
    pub survey: SurveyArgs,
}

/// Settings of `leave`.
#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// How it ends.
    #[command(flatten)]
    pub stop: StopArgs,
}

/// Settings of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// ready, live or joined
    #[arg(value_name = "WHAT")]
    pub what: String,
    /// Ask again until the answer is yes, for as long as this (default 0s: once)
    #[arg(long, env = "CONVENE_CHECK_WAIT", value_name = "DURATION")]
    pub wait: Option<String>,
}

/// Settings of `discover`.
#[derive(Debug, Args)]
pub struct DiscoverArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Who is asked, and how.
    #[command(flatten)]
    pub survey: SurveyArgs,
    /// table, json, or netaddrs (bare addresses, for Consul's exec= discovery)
    #[arg(long, env = "CONVENE_FORMAT", value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Settings of `reap`.
#[derive(Debug, Args)]
pub struct ReapArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Do it; without it reap and recover only say what they would do
    #[arg(long, env = "CONVENE_YES", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub yes: Option<String>,
    /// How many clients one reap removes at most (1 to 1000; default 20)
    #[arg(long, env = "CONVENE_AT_MOST", value_name = "N")]
    pub at_most: Option<String>,
    /// Only clients with this node meta are reap's: for a datacenter whose clients run in several Kubernetes clusters
    #[arg(long, env = "CONVENE_NODE_META", value_name = "KEY=VALUE")]
    pub node_meta: Option<String>,
    /// Remove although more than half of the clients would go, or one is alive on a machine that has no Node object
    #[arg(long, env = "CONVENE_FORCE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub force: Option<String>,
}

/// Settings of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Who is asked, and how.
    #[command(flatten)]
    pub survey: SurveyArgs,
    /// table or json
    #[arg(long, env = "CONVENE_OUTPUT", value_name = "OUTPUT")]
    pub output: Option<String>,
    /// The servers' namespace (default: POD_NAMESPACE, else the kubeconfig's)
    #[arg(long, env = "CONVENE_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// The servers' StatefulSet (default: this Pod's, else the only one whose Pods run convene or Consul)
    #[arg(long, env = "CONVENE_STATEFUL_SET", value_name = "NAME")]
    pub stateful_set: Option<String>,
}

/// Settings of `recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Who is asked, and how.
    #[command(flatten)]
    pub survey: SurveyArgs,
    /// Do it; without it reap and recover only say what they would do
    #[arg(long, env = "CONVENE_YES", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub yes: Option<String>,
    /// One server of the recovered cluster, when several have their data but new addresses: the same list on each, before any of them starts (several allowed; default: this server alone)
    #[arg(long, env = "CONVENE_PEER", value_name = "ID@ADDRESS")]
    pub peer: Vec<String>,
    /// A server that is silent, by name or address, and that you know to be stopped for good (several allowed)
    #[arg(long, env = "CONVENE_STOPPED", value_name = "SERVER")]
    pub stopped: Vec<String>,
    /// Instead, while there is a leader: remove a voter, by name or node ID, whose Pod is gone for good
    #[arg(long, env = "CONVENE_REMOVE", value_name = "SERVER")]
    pub remove: Option<String>,
}

/// Settings of `install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// What all commands share.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The folder; it must exist
    #[arg(value_name = "DIR")]
    pub dir: OsString,
}

/// What all commands share.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Consul's data folder (default: CMD's -data-dir, else /consul/data)
    #[arg(long, env = "CONVENE_DATA_DIR", value_name = "DIR", global = false)]
    pub data_dir: Option<String>,
    /// server or client (default: what CMD says)
    #[arg(long, env = "CONVENE_ROLE", value_name = "ROLE")]
    pub role: Option<String>,
    /// This node's name in Consul (default: CMD's -node, POD_NAME, NODE_NAME, the host name)
    #[arg(long, env = "CONVENE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Consul's datacenter (default: CMD's -datacenter, else dc1); servers' TLS names are server.DATACENTER.DOMAIN
    #[arg(long, env = "CONVENE_DATACENTER", value_name = "NAME")]
    pub datacenter: Option<String>,
    /// Consul's own DNS domain (default: CMD's -domain, else consul)
    #[arg(long, env = "CONVENE_DOMAIN", value_name = "NAME")]
    pub domain: Option<String>,
    /// The HTTP port of the other servers' agents (default: CMD's, else 8500, over TLS 8501)
    #[arg(long, env = "CONVENE_PEER_HTTP_PORT", value_name = "PORT")]
    pub peer_http_port: Option<String>,
    /// Ask the servers over TLS although the own agent is asked without it, as a client is within its Pod (default: as the own agent)
    #[arg(long, env = "CONVENE_PEER_TLS", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub peer_tls: Option<String>,
    /// Consul's server port (default: CMD's -server-port, else 8300)
    #[arg(long, env = "CONVENE_SERVER_PORT", value_name = "PORT")]
    pub server_port: Option<String>,
    /// auto (the ClusterIP of the Service named as the Pod, else the Pod's), service, pod, host, or an address (default: CMD's -advertise, else auto)
    #[arg(long, env = "CONVENE_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// auto (JSON unless stderr is a terminal), json or plain
    #[arg(long, env = "CONVENE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long, env = "CONVENE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Where the last line of a failure goes as well, if that file exists
    #[arg(long, env = "CONVENE_TERMINATION_LOG", value_name = "FILE")]
    pub termination_log: Option<String>,
}

/// Who is asked, and how.
#[derive(Debug, Args)]
pub struct SurveyArgs {
    /// Where servers are found: statefulset, k8s:SELECTOR, dns:NAME, srv:NAME, static:HOST,… or provider=k8s … (several allowed; in the environment separated by ;)
    #[arg(long, env = "CONVENE_DISCOVER", value_name = "SOURCE")]
    pub discover: Vec<String>,
    /// How long each source may take (100ms to 60s; default 2s)
    #[arg(long, env = "CONVENE_DISCOVER_TIMEOUT", value_name = "DURATION")]
    pub discover_timeout: Option<String>,
    /// A nameserver to ask instead of those in resolv.conf (several allowed; in the environment separated by ,)
    #[arg(long, env = "CONVENE_NAMESERVER", value_name = "ADDR:PORT")]
    pub nameserver: Vec<String>,
    /// The cluster's DNS domain (default: resolv.conf's svc. search entry, else cluster.local)
    #[arg(long, env = "CONVENE_CLUSTER_DOMAIN", value_name = "NAME")]
    pub cluster_domain: Option<String>,
    /// The resolver's settings (default: /etc/resolv.conf)
    #[arg(long, env = "CONVENE_RESOLV_CONF", value_name = "FILE")]
    pub resolv_conf: Option<String>,
    /// The headless Service of the StatefulSet, where the Kubernetes API does not say (default: the StatefulSet's name)
    #[arg(long, env = "CONVENE_SERVICE", value_name = "NAME")]
    pub service: Option<String>,
    /// How many servers form the cluster: 1 to 99, or auto, the StatefulSet's replicas (default: CMD's -bootstrap-expect, else auto where the Kubernetes API can be asked)
    #[arg(long, env = "CONVENE_EXPECT", value_name = "N")]
    pub expect: Option<String>,
    /// How many servers the StatefulSet has, where the Kubernetes API does not say (1 to 99; default: --expect)
    #[arg(long, env = "CONVENE_REPLICAS", value_name = "N")]
    pub replicas: Option<String>,
    /// auto (a claim on the cluster is kept in Kubernetes where the API can be asked, so that wiped disks found no second one) or off
    #[arg(long, env = "CONVENE_CLAIM", value_name = "WHEN")]
    pub claim: Option<String>,
    /// The StatefulSet's first ordinal, where the Kubernetes API does not say (0 to 9999; default 0)
    #[arg(long, env = "CONVENE_ORDINALS_START", value_name = "N")]
    pub ordinals_start: Option<String>,
}

/// What this server is to become.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Where the rendered configuration goes (default: convene/agent.json in the data folder)
    #[arg(long, env = "CONVENE_CONFIG_OUT", value_name = "FILE")]
    pub config_out: Option<String>,
    /// Make the data folder when it is missing (for a laptop; in a Pod a missing folder is a missing mount)
    #[arg(long, env = "CONVENE_CREATE_DATA_DIR", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub create_data_dir: Option<String>,
    /// What to do with a volume that belongs to another Pod: keep (it was restored or renamed) or fresh (without its data) (default: refuse)
    #[arg(long, env = "CONVENE_ADOPT_VOLUME", value_name = "HOW")]
    pub adopt_volume: Option<String>,
    /// force:ID founds a new cluster although the claim ID says that there was one, once
    #[arg(long, env = "CONVENE_NEW_CLUSTER", value_name = "FORCE")]
    pub new_cluster: Option<String>,
    /// How long to wait before giving up with 75 (default: no limit)
    #[arg(long, env = "CONVENE_WAIT", value_name = "DURATION")]
    pub wait: Option<String>,
    /// Start up to this much later, each Pod by its own part of it and always by the same, so that a fleet does not start at once (0s to 10m; default 0s)
    #[arg(long, env = "CONVENE_JITTER", value_name = "DURATION")]
    pub jitter: Option<String>,
    /// A client: how long the others remember it once it has failed or left (1s to 72h; default 4h, Consul's own is 72h)
    #[arg(long, env = "CONVENE_RECONNECT_TIMEOUT", value_name = "DURATION")]
    pub reconnect_timeout: Option<String>,
}

/// An order about leaving.
#[derive(Debug, Args)]
pub struct LeaveArg {
    /// always: every stop is a graceful leave; never: none is; signal: Consul itself leaves at TERM, which needs no token (default: by the cause of the stop)
    #[arg(long, env = "CONVENE_LEAVE", value_name = "WHEN")]
    pub leave: Option<String>,
}

/// How it ends.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// An order about leaving.
    #[command(flatten)]
    pub leave: LeaveArg,
    /// The Pod's terminationGracePeriodSeconds (5s to 1h; default 30s)
    #[arg(long, env = "CONVENE_GRACE_PERIOD", value_name = "DURATION")]
    pub grace_period: Option<String>,
}

/// How CMD is supervised.
#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// Hand signals to CMD's whole process group, not to CMD alone
    #[arg(long, env = "CONVENE_GROUP", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub group: Option<String>,
    /// Let CMD lead a session of its own, without our terminal; what would suspend it (TSTP, TTIN, TTOU) is handed on as STOP
    #[arg(long, env = "CONVENE_SESSION", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub session: Option<String>,
    /// Hand signal FROM to CMD as TO, by number or name, or not at all when TO is 0; a TERM stays a stop (several allowed; in the environment separated by ,)
    #[arg(long, env = "CONVENE_REWRITE", value_name = "FROM:TO")]
    pub rewrite: Vec<String>,
    /// An exit code of CMD that counts as 0, such as 143 (0 to 255; several allowed; in the environment separated by ,)
    #[arg(long, env = "CONVENE_SUCCESS", value_name = "CODE")]
    pub success: Vec<String>,
    /// The signal that convene gets when the process that started it ends, by number or name (default: none)
    #[arg(long, env = "CONVENE_PARENT_DEATH", value_name = "SIGNAL")]
    pub parent_death: Option<String>,
}

/// For each argument that was given: where, as a person would name it (`--expect` or `CONVENE_EXPECT`).
#[derive(Debug, Default)]
pub struct Places(BTreeMap<String, String>);

impl Places {
    /// The place that `id` was given at, else its flag.
    pub fn of(&self, id: &str) -> String {
        self.0.get(id).cloned().unwrap_or_else(|| format!("--{}", id.replace('_', "-")))
    }
}

/// What parsing ended in when there is nothing to run: help or version text for stdout.
#[derive(Debug)]
pub enum Stopped {
    /// Text that was asked for; exit 0.
    Shown(String),
    /// A usage error; exit 64.
    Wrong(Failure),
}

/// Reads the command line and the environment twins.
///
/// # Errors
/// [`Stopped`]: help or version was asked for, or usage is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Cli, Places), Stopped> {
    let matches = Cli::command().try_get_matches_from(args).map_err(stopped)?;
    let cli = Cli::from_arg_matches(&matches).map_err(stopped)?;
    let places = matches.subcommand().map(|(_, sub)| places(sub)).unwrap_or_default();
    Ok((cli, places))
}

/// Every environment twin that exists, for spotting a misspelt one.
pub fn environment_twins() -> Vec<String> {
    let mut twins: Vec<String> = Cli::command()
        .get_subcommands()
        .flat_map(|sub| {
            sub.get_arguments()
                .filter_map(|arg| arg.get_env().map(|env| env.to_string_lossy().into_owned()))
                .collect::<Vec<_>>()
        })
        .collect();
    twins.sort();
    twins.dedup();
    twins
}

fn places(matches: &ArgMatches) -> Places {
    let named = matches.ids().filter_map(|id| {
        let id = id.as_str();
        let place = match matches.value_source(id)? {
            ValueSource::EnvVariable => format!("CONVENE_{}", id.to_uppercase()),
            _ => format!("--{}", id.replace('_', "-")),
        };
        Some((id.to_owned(), place))
    });
    Places(named.collect())
}

fn stopped(error: clap::Error) -> Stopped {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stopped::Shown(error.to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Stopped::Wrong(Failure::new(
                Code::Usage,
                "no command was given: one of init, run, watch, leave, check, discover, reap, doctor, recover, install; see convene --help",
            ))
        }
        _ => Stopped::Wrong(Failure::new(Code::Usage, one_line(&error))),
    }
}

/// clap's message without its layout: the first paragraph, the nearest right spelling, and where to read on.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let mut line = said.join(" ").trim_start_matches("error: ").to_owned();
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand] {
        if let Some(nearest) = error.get(kind) {
            line.push_str("; the nearest right spelling is ");
            line.push_str(&spelled(nearest));
        }
    }
    line.push_str("; see convene --help");
    line
}

fn spelled(value: &ContextValue) -> String {
    match value {
        ContextValue::String(one) => one.clone(),
        ContextValue::Strings(many) => many.join(" or "),
        other => other.to_string(),
    }
}

/// Every flag as README's table of settings has it: with its value's name, its environment twin, and its sentence.
pub fn documented() -> Vec<(String, String, String)> {
    let mut all = BTreeMap::new();
    for sub in Cli::command().get_subcommands() {
        for arg in sub.get_arguments() {
            let (Some(long), Some(twin)) = (arg.get_long(), arg.get_env()) else { continue };
            let value = arg.get_value_names().and_then(|names| names.first()).filter(|name| name.as_str() != "BOOL");
            let flag = value.map_or_else(|| format!("--{long}"), |value| format!("--{long} {value}"));
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            all.insert(long.to_owned(), (flag, twin.to_string_lossy().into_owned(), help));
        }
    }
    all.into_values().collect()
}
