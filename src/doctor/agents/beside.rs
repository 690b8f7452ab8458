//! What can only be told beside an agent, in its own Pod: who the other servers are without asking Kubernetes, what CMD and its files
//! say, whether addresses answer from here, and for how long this volume has seen no agent.
//!
//! Takes the settings, asks the own agent, reads the volume and the words of the processes that we may see (`/proc`), dials and hangs
//! up. Never shows a key. A process that cannot be seen, as in another container, is no finding.

use super::raft::ago;
use super::{Seen, Way, about, text};
use crate::api::consul::{Agent, ApiError, Member, Peers};
use crate::check::go_duration;
use crate::doctor::finding::Report;
use crate::record::{Record, Volume};
use crate::settings::command::{AgentCommand, Contradiction, Wanted};
use crate::settings::gossip::GossipKey;
use crate::settings::{Local, Role};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) const HAIRPIN: &str = "hairpin";
pub(super) const PORTS: &str = "server-ports";
pub(super) const REJOIN_AGE: &str = "rejoin-age";

/// How long a connection may take within one cluster.
const DIAL: Duration = Duration::from_millis(500);
/// Consul's default of `server_rejoin_age_max`.
const DEFAULT_AGE: Duration = Duration::from_secs(168 * 3600);

/// What was seen from here.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// The own server's name.
    pub name: String,
    /// What CMD and its files say that contradicts convene; `None`: no such process can be seen.
    pub contradictions: Option<Vec<Contradiction>>,
    /// What is wrong with the gossip key, each with its mend in it.
    pub gossip: Vec<String>,
    /// The rendered file has Consul leave at a signal, since somebody ordered it.
    pub leaves_by_signal: bool,
    /// The addresses that were dialled, by the server's name, and why one did not answer.
    pub dialled: Vec<Dialled>,
    /// When an agent wrote last that it runs on this volume, in seconds since 1970.
    pub last_seen: Option<i64>,
    /// `server_rejoin_age_max`, where CMD's files say one.
    pub rejoin_age: Option<Duration>,
    /// The other servers, by name and address.
    pub others: Vec<(String, IpAddr)>,
    /// The own agent answers.
    pub runs: bool,
}

/// A connection that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialled {
    /// Whose address it is.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// It is our own.
    pub own: bool,
    /// Why it failed.
    pub failed: Option<String>,
}

/// What is to be asked, and what was seen from here. `rendered` is convene's own file among Consul's.
///
/// # Errors
/// [`ApiError`]: no agent can be asked at all, since a certificate cannot be read.
pub async fn look(local: &Local, rendered: &Path) -> Result<(Vec<(String, Way)>, Option<Beside>), ApiError> {
    let (agent, peers) = (Agent::own(&local.http)?, Peers::new(local)?);
    let volume = Volume::open(&local.data_dir, false).ok();
    let record = volume.as_ref().and_then(|volume| volume.read().ok()?.record);
    let asked = async { tokio::join!(agent.peers(), agent.servers()) };
    let (listed, members) = match timeout(super::way::ANSWER, asked).await {
        Ok((listed, members)) => (listed, members.unwrap_or_default()),
        Err(_) => (Ok(Vec::new()), Vec::new()),
    };
    let mut beside = Beside { name: local.node_name.clone(), runs: listed.is_ok(), ..Beside::default() };
    let own = own_address(local, &members, record.as_ref());
    let known = known(local, listed.unwrap_or_default(), &members, record.as_ref(), own);
    beside.read_processes(local, rendered, volume.as_ref(), record.as_ref());
    beside.leaves_by_signal =
        json(rendered).is_some_and(|file| file.get("leave_on_terminate") == Some(&Value::Bool(true)));
    beside.last_seen =
        json(&local.data_dir.join("server_metadata.json")).and_then(|file| file.get("last_seen_unix")?.as_i64());
    if beside.runs {
        beside.dialled = dial(local, own, &known).await;
    }
    let mut servers = vec![(local.node_name.clone(), Way::Direct(agent))];
    for (ip, name) in known {
        servers.push((name.clone(), Way::Direct(peers.at(ip)?)));
        beside.others.push((name, ip));
    }
    Ok((servers, Some(beside)))
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn own_address(local: &Local, members: &[Member], record: Option<&Record>) -> Option<IpAddr> {
    let member = members.iter().find(|member| member.name == local.node_name);
    let advertised = member.and_then(|member| member.addr.parse().ok());
    advertised.or(record.and_then(|record| record.advertise)).or(local.advertise)
}

/// The other servers by their addresses: those of raft and gossip, else those that the record remembers.
fn known(
    local: &Local,
    listed: Vec<SocketAddr>,
    members: &[Member],
    record: Option<&Record>,
    own: Option<IpAddr>,
) -> BTreeMap<IpAddr, String> {
    let alive = members.iter().filter(|member| member.is_alive() && member.name != local.node_name);
    let named: BTreeMap<IpAddr, String> =
        alive.filter_map(|member| Some((member.addr.parse().ok()?, member.name.clone()))).collect();
    let mut known: BTreeMap<IpAddr, String> = listed.iter().map(|peer| (peer.ip(), peer.ip().to_string())).collect();
    if known.is_empty() && named.is_empty() {
        known.extend(record.into_iter().flat_map(|record| &record.servers).map(|ip| (*ip, ip.to_string())));
    }
    // A peer that has failed is gossip's to tell, by its name.
    let gone =
        members.iter().filter(|member| !member.is_alive()).filter_map(|member| member.addr.parse::<IpAddr>().ok());
    for ip in gone.filter(|ip| !named.contains_key(ip)).collect::<Vec<_>>() {
        known.remove(&ip);
    }
    known.extend(named);
    known.retain(|ip, _| Some(*ip) != own && !local.own_addresses.contains(ip));
    known
}

/// Dials all at once, ourselves too.
async fn dial(local: &Local, own: Option<IpAddr>, known: &BTreeMap<IpAddr, String>) -> Vec<Dialled> {
    let others = known.iter().map(|(ip, name)| (*ip, name.clone(), false));
    let all = others.chain(own.map(|ip| (ip, local.node_name.clone(), true)));
    let ports = [local.peer.server, local.peer.serf];
    let dialling: Vec<_> = all
        .flat_map(|(ip, name, own)| {
            ports.into_iter().take(if own { 1 } else { 2 }).map(move |port| {
                let (name, address) = (name.clone(), SocketAddr::new(ip, port));
                tokio::spawn(async move {
                    let failed = match timeout(DIAL, TcpStream::connect(address)).await {
                        Ok(Ok(_)) => None,
                        Ok(Err(error)) => Some(error.to_string()),
                        Err(_) => Some(format!("no answer within {} ms", DIAL.as_millis())),
                    };
                    Dialled { name, address, own, failed }
                })
            })
        })
        .collect();
    let mut dialled = Vec::new();
    for one in dialling {
        // Nobody panics or is aborted in there, which is all that could fail.
        dialled.extend(one.await.ok());
    }
    dialled
}

// === impl Beside ===

impl Beside {
    /// Reads the words of the agent that has this data folder, else of the convene that will start it.
    fn read_processes(&mut self, local: &Local, rendered: &Path, volume: Option<&Volume>, record: Option<&Record>) {
        let Some(found) = Process::of(&local.data_dir) else { return };
        let Process { mut command, runs, rendered: told } = found;
        let rendered = told.as_deref().unwrap_or(rendered);
        command.forget(rendered);
        let facts = command.facts();
        self.rejoin_age = facts.rejoin_age_max.as_ref().and_then(|said| go_duration(&said.value));
        match GossipKey::said(facts) {
            Err(error) => self.gossip.push(error.to_string()),
            Ok(None) => {}
            Ok(Some(key)) => self.gossip.extend(volume.and_then(|volume| match volume.standing(&key) {
                Ok(standing) => standing.told(&key.place),
                Err(error) => Some(error.to_string()),
            })),
        }
        let node_id = volume.and_then(|volume| volume.read().ok()?.node_id).map(|id| id.to_string());
        let wanted = Wanted {
            server: local.role != Some(Role::Client),
            node_id: node_id.as_deref(),
            advertise: record.and_then(|record| record.advertise).or(local.advertise),
            data_dir: &local.data_dir,
            node_name: Some(&local.node_name),
            rendered,
        };
        self.contradictions = Some(match runs {
            true => command.contradictions_as_it_runs(&wanted),
            false => command.contradictions(&wanted),
        });
    }
}

/// What a process says to Consul.
struct Process {
    command: AgentCommand,
    /// It is the agent itself.
    runs: bool,
    /// The file that convene renders, where its words say so.
    rendered: Option<PathBuf>,
}

// === impl Process ===

impl Process {
    fn of(data_dir: &Path) -> Option<Self> {
        let all: Vec<Vec<OsString>> =
            std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| words(&entry.path())).collect();
        let rendered = all.iter().find_map(|words| config_out(words));
        let found = all.into_iter().filter_map(|words| Self::read(words, data_dir, rendered.clone()));
        found.max_by_key(|process| process.runs)
    }

    fn read(words: Vec<OsString>, data_dir: &Path, rendered: Option<PathBuf>) -> Option<Self> {
        let behind = words.iter().position(|word| word == "--");
        let convene = Path::new(words.first()?).file_name() == Some("convene".as_ref());
        let (words, runs) = match behind.filter(|_| convene) {
            Some(at) => (words.into_iter().skip(at + 1).collect(), false),
            None => (words, true),
        };
        let command = AgentCommand::read(words, |name| std::env::var_os(name)).ok()??;
        let same = command.facts().data_dir.as_ref().is_some_and(|said| said.value == data_dir);
        same.then_some(Self { command, runs, rendered })
    }
}

/// A process's words; those of one that is not ours may be hidden.
fn words(process: &Path) -> Option<Vec<OsString>> {
    process.file_name()?.to_str()?.parse::<u32>().ok()?;
    let text = std::fs::read(process.join("cmdline")).ok()?;
    let mut words: Vec<OsString> =
        text.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
    words.pop();
    (!words.is_empty()).then_some(words)
}

fn config_out(words: &[OsString]) -> Option<PathBuf> {
    Path::new(words.first()?).file_name().filter(|name| *name == "convene")?;
    let at = words.iter().position(|word| word.to_string_lossy().starts_with("--config-out"))?;
    match words.get(at)?.to_str()?.split_once('=') {
        Some((_, path)) => Some(path.into()),
        None => words.get(at + 1).map(PathBuf::from),
    }
}

/// Judges what was dialled, and for how long servers have been away.
pub(super) fn check(seen: &Seen, beside: &Beside, report: &mut Report) {
    for one in &beside.dialled {
        report.looked.push(if one.own { HAIRPIN } else { PORTS });
        let Some(why) = &one.failed else { continue };
        // Gossip says so already.
        if seen.member(&one.name).is_some_and(|member| !member.is_alive()) {
            continue;
        }
        let (name, address) = (&one.name, one.address);
        report.findings.push(if one.own {
            let what = format!("this Pod does not reach its own address {address} (hairpin): {why}");
            let because = "Consul asks every server at its address, itself too: autopilot has it for unhealthy, and a new cluster does not form";
            let mend = format!(
                "kubectl get service {name} -o yaml    # publishNotReadyAddresses: true, port {}, selector statefulset.kubernetes.io/pod-name: {name}\n\
                 # when it is all right, the network plug-in does not lead a Pod back to itself: turn hairpin mode on, or give --advertise=pod",
                address.port()
            );
            about(HAIRPIN, name, what, because, mend)
        } else {
            let what = format!("from here {address} does not answer: {why}");
            let because = "servers that do not reach each other elect nobody, and gossip takes one for failed that runs";
            let mend = format!(
                "kubectl get service {name} -o yaml    # port {}, and a selector that finds its Pod\nkubectl get networkpolicy             # one that lets servers reach each other",
                address.port()
            );
            about(PORTS, name, what, because, mend)
        });
    }
    rejoin_age(seen, beside, report);
}

/// Whoever was away for longer than that refuses to start, with a hint that would cost its data.
fn rejoin_age(seen: &Seen, beside: &Beside, report: &mut Report) {
    let told = || {
        let described = seen.said().find_map(|(_, said)| said.described.as_ref().ok())?;
        go_duration(text(described, "/DebugConfig/ServerRejoinAgeMax")?)
    };
    let most = beside.rejoin_age.or_else(told).unwrap_or(DEFAULT_AGE).as_secs() as i64;
    let mut away: Vec<(&str, i64)> = Vec::new();
    if let Some(last) = beside.last_seen {
        report.looked.push(REJOIN_AGE);
        if !beside.runs {
            away.push((&beside.name, seen.now - last));
        }
    }
    if let Some(servers) = seen.state.as_ref().ok().and_then(|state| state.get("Servers")?.as_object()) {
        report.looked.push(REJOIN_AGE);
        let failed = |name: &str| seen.member(name).is_some_and(Member::has_failed);
        let names = servers.values().filter_map(|server| Some((text(server, "/Name")?, text(server, "/StableSince")?)));
        away.extend(names.filter(|(name, _)| failed(name)).filter_map(|(name, since)| {
            let since: crate::api::kube::Timestamp = since.parse().ok()?;
            Some((name, seen.now - since.as_second()))
        }));
    }
    // Half of it, so that a person has the other half to do something.
    for (name, away) in away.into_iter().filter(|(_, away)| *away > most / 2) {
        let refuses = if away > most { "refuses" } else { "will refuse" };
        let what = format!(
            "it has been away for {}, and Consul {refuses} to start a server that was away for {} (server_rejoin_age_max)",
            ago(away),
            ago(most)
        );
        let why = "Consul's own hint is to wipe its data, which must not be done with a majority of the servers";
        let mend = format!(
            "server_rejoin_age_max = \"8760h\"     # in the servers' configuration, as in deploy/server/tuning.hcl\nkubectl delete pod {name}             # it starts anew with that"
        );
        report.findings.push(about(REJOIN_AGE, name, what, why, mend));
    }
}
