//! Who of the servers is there, by which version, and what is registered at it? Pure: takes what the servers say, gives findings.

use super::raft::{since, stale};
use super::{Lack, Said, Seen, about, about_all, text, waits};
use crate::api::consul::Member;
use crate::doctor::finding::{Report, Unseen};
use serde_json::Value;

pub(super) const SILENT: &str = "agent-silent";
pub(super) const FAILED: &str = "failed-servers";
pub(super) const VERSION: &str = "consul-version";
pub(super) const SERVICES: &str = "services-at-servers";

/// README's first supported Consul: what hands leadership over by name.
const OLDEST: (u32, u32) = (1, 15);

pub(super) fn check(seen: &Seen, report: &mut Report) {
    silent(seen, report);
    if !seen.members().is_empty() {
        report.looked.push(FAILED);
        failed(seen, report);
    }
    version(seen, report);
    services(seen, report);
}

/// Whether gossip has a server for failed, or nobody expects it any more: a finding of its own.
fn is_told(seen: &Seen, name: &str) -> bool {
    seen.member(name).is_some_and(|member| !member.is_alive())
}

fn silent(seen: &Seen, report: &mut Report) {
    let mut no_way: Vec<(&str, String)> = Vec::new();
    for server in &seen.servers {
        let name = &server.name;
        let why = match &server.said {
            Ok(_) => None,
            Err(Lack::NoWay(why)) => {
                match no_way.iter_mut().find(|(other, _)| other == why) {
                    Some((_, names)) => names.extend([", ", name]),
                    None => no_way.push((why, name.clone())),
                }
                continue;
            }
            Err(Lack::Failed(why)) => Some(why.as_str()),
            Err(Lack::Denied | Lack::UnknownToken) => Some("it refuses what it tells everybody"),
        };
        report.looked.push(SILENT);
        if let Some(why) = why.filter(|_| !is_told(seen, name)) {
            let what = format!("its agent does not answer: {why}");
            let logs = waits(name, 20);
            let mend = format!("kubectl get pod {name} -o wide\n{logs}    # convene says every 10 s what it waits for");
            report.findings.push(about(
                SILENT,
                name,
                what,
                "nobody can tell whether it votes, and no other check sees it",
                mend,
            ));
        }
    }
    for (why, names) in no_way {
        report.unseen.push(Unseen { what: "the agents", why: format!("{names}: {why}") });
    }
}

fn failed(seen: &Seen, report: &mut Report) {
    let raft = seen.raft().unwrap_or_default();
    for member in seen.members().iter().filter(|member| member.has_failed()) {
        let name = &member.name;
        if raft.iter().any(|server| server.node == *name && stale(seen, server).is_some()) {
            continue;
        }
        let state = seen.state.as_ref().ok().and_then(|state| state.get("Servers")?.as_object());
        let piloted = state.and_then(|state| state.values().find(|server| text(server, "/Name") == Some(name)));
        let since = piloted.map(|server| since(seen, server)).unwrap_or_default();
        let votes = raft.iter().any(|server| server.node == *name && server.voter);
        let what = format!(
            "gossip has it for failed{since}: {} does not answer{}",
            member.addr,
            if votes { ", and it is a voter" } else { "" }
        );
        let why = "the cluster survives the loss of one server fewer until it is back";
        let mend = format!(
            "kubectl describe pod {name}          # it comes back by itself, with its data, once its Pod runs\n\
             consul force-leave {name}            # only when it never comes back"
        );
        report.findings.push(about(FAILED, name, what, why, mend));
    }
}

fn version(seen: &Seen, report: &mut Report) {
    // `1.22.6:5a3c0d2e`, with `+ent` at Enterprise.
    let of_member = |member: &Member| {
        let build = member.tags.get("build")?.split(':').next()?.to_owned();
        Some((member.name.clone(), build, member.tags.get("raft_vsn").cloned()))
    };
    let of_self = |name: &str, said: &Said| {
        let described = said.described.as_ref().ok()?;
        Some((name.to_owned(), text(described, "/Config/Version")?.to_owned(), None))
    };
    let mut all: Vec<(String, String, Option<String>)> =
        seen.members().iter().filter(|member| member.is_alive()).filter_map(of_member).collect();
    if all.is_empty() {
        all = seen.said().filter_map(|(name, said)| of_self(name, said)).collect();
    }
    if all.is_empty() {
        return;
    }
    report.looked.push(VERSION);
    if all.windows(2).any(|pair| matches!(pair, [(_, one, _), (_, other, _)] if one != other)) {
        let list = all.iter().map(|(name, version, _)| format!("{name} {version}")).collect::<Vec<_>>().join(", ");
        let what = format!("they run different versions of Consul: {list}");
        let why =
            "during an upgrade that is as it should be; afterwards an old server may not read what a new leader writes";
        let statefulset = seen.wanted.as_ref().map_or("consul-server", |wanted| wanted.statefulset.as_str());
        let mend = format!("kubectl rollout status statefulset {statefulset}");
        report.findings.push(about_all(VERSION, what, why, mend));
    }
    for (name, version, raft) in &all {
        let mut numbers = version.split(['.', '+', '-']).map(|part| part.parse::<u32>().ok());
        if let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next())
            && (major, minor) < OLDEST
        {
            let what = format!("it runs Consul {version}, and convene supports {}.{} and newer", OLDEST.0, OLDEST.1);
            let why = "leadership cannot be handed over by name, so each restart of a leader costs an election";
            let mend = "# upgrade one server after the other, the leader last: https://developer.hashicorp.com/consul/docs/upgrade";
            report.findings.push(about(VERSION, name, what, why, mend.to_owned()));
        }
        if let Some(raft) = raft.as_deref().filter(|raft| *raft != "3") {
            let what = format!("it speaks raft protocol {raft}");
            let why = "node IDs do not count then, and autopilot cannot tell a server from its successor";
            report.findings.push(about(
                VERSION,
                name,
                what,
                why,
                "raft_protocol = 3    # or remove it: 3 is Consul's default".to_owned(),
            ));
        }
    }
}

fn services(seen: &Seen, report: &mut Report) {
    let mut blind: Vec<&str> = Vec::new();
    for (name, said) in seen.said() {
        let Ok(described) = &said.described else { continue };
        let flag = |pointer: &str| described.pointer(pointer).and_then(Value::as_bool);
        let is_server = flag("/Config/Server") == Some(true);
        let Some(services) = said.services.as_ref().ok().filter(|_| is_server) else { continue };
        if services.is_empty() && !seen.sees_services && flag("/DebugConfig/ACLsEnabled") != Some(false) {
            blind.push(name);
            continue;
        }
        report.looked.push(SERVICES);
        if services.is_empty() {
            continue;
        }
        let what = format!("services are registered at its agent: {}", services.join(", "));
        let why = "they are critical while it restarts, and stay when their application is gone; a client takes its services along";
        let mend = services.iter().map(|id| format!("kubectl exec {name} -- consul services deregister -id={id}\n"));
        let mend = format!("{}# and register them at a client's agent", mend.collect::<String>());
        report.findings.push(about(SERVICES, name, what, why, mend));
    }
    if !blind.is_empty() {
        let why =
            format!("{}: shown with the policy service_prefix \"\" {{ policy = \"read\" }} only", blind.join(", "));
        report.unseen.push(Unseen { what: "services at servers", why });
    }
}
