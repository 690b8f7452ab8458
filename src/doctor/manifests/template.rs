//! Do the servers' Pods get what they need to stay alive, and on machines of their own?

use super::super::finding::{Finding, Report};
use super::super::objects::{Objects, list, text};
use serde_json::Value;

/// Less than this is throttled within a heartbeat's time, in thousandths of a core: with `raft_multiplier` 1 a follower asks for an
/// election after a second.
const CPU: u64 = 500;

pub(super) fn check(objects: &Objects, report: &mut Report) {
    let Some(template) = objects.template() else { return };
    report.looked.extend(["memory-request", "cpu-limit", "anti-affinity", "same-machine"]);
    report.findings.extend([memory(objects), cpu(objects), anti_affinity(objects, template)].into_iter().flatten());
    report.findings.extend(same_machine(objects));
}

fn of_agent(objects: &Objects, check: &'static str, what: String, why: &str, mend: String) -> Option<Finding> {
    let subject = format!("{}, container {}", objects.subject("StatefulSet", &objects.name), objects.agent_name());
    Some(Finding { check, subject, what, why: why.to_owned(), mend })
}

fn memory(objects: &Objects) -> Option<Finding> {
    let agent = objects.agent()?;
    // What is limited and asks for nothing asks for its limit.
    let given = ["requests", "limits"].iter().any(|kind| agent.pointer(&format!("/resources/{kind}/memory")).is_some());
    if given {
        return None;
    }
    let mend = objects.patch_agent(r#""resources":{"requests":{"memory":"256Mi"}}"#);
    let why = "when its machine runs out of memory a server is among the first to be evicted or killed, and all of them may be at once";
    of_agent(objects, "memory-request", "it requests no memory".to_owned(), why, mend)
}

fn cpu(objects: &Objects) -> Option<Finding> {
    let agent = objects.agent()?;
    let limit = agent.pointer("/resources/limits/cpu")?;
    if millicores(limit)? >= CPU {
        return None;
    }
    let said = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
    let path = "/spec/template/spec/containers";
    let at = list(&objects.statefulset.as_ref().ok()?.clone(), path)
        .position(|one| text(one, "/name") == objects.agent_name())?;
    let steps = format!(r#"[{{"op":"remove","path":"{path}/{at}/resources/limits/cpu"}}]"#);
    let mend = objects.kubectl(&format!("patch statefulset {} --type=json -p '{steps}'", objects.name));
    let why = "whoever has used up its share stands still for the rest of each tenth of a second: heartbeats come late, and the others \
               elect another leader";
    of_agent(objects, "cpu-limit", format!("its CPU limit is {said}"), why, mend)
}

/// `500m`, `1`, `0.5` or a number.
fn millicores(quantity: &Value) -> Option<u64> {
    let said = quantity.as_str().map_or_else(|| quantity.to_string(), str::to_owned);
    match said.strip_suffix('m') {
        Some(thousandths) => thousandths.parse().ok(),
        None => {
            let (whole, part) = said.split_once('.').unwrap_or((&said, ""));
            let part: String = part.chars().chain("000".chars()).take(3).collect();
            Some(whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part.parse().ok()?)?)
        }
    }
}

fn anti_affinity(objects: &Objects, template: &Value) -> Option<Finding> {
    const HOST: &str = "kubernetes.io/hostname";
    if objects.replicas() < 2 {
        return None;
    }
    let rules = "/affinity/podAntiAffinity";
    let required = format!("{rules}/requiredDuringSchedulingIgnoredDuringExecution");
    let preferred = format!("{rules}/preferredDuringSchedulingIgnoredDuringExecution");
    let spread = |key: &Value, place: &str| text(key, place) == HOST;
    if list(template, &required).any(|rule| spread(rule, "/topologyKey"))
        || list(template, &preferred).any(|rule| spread(rule, "/podAffinityTerm/topologyKey"))
        || list(template, "/topologySpreadConstraints").any(|rule| spread(rule, "/topologyKey"))
    {
        return None;
    }
    let rule = format!(r#"{{"topologyKey":"{HOST}","labelSelector":{{"matchLabels":{}}}}}"#, objects.selector());
    let rules = format!(r#"{{"requiredDuringSchedulingIgnoredDuringExecution":[{rule}]}}"#);
    let change = format!(r#"{{"affinity":{{"podAntiAffinity":{rules}}}}}"#);
    Some(Finding {
        check: "anti-affinity",
        subject: objects.subject("StatefulSet", &objects.name),
        what: "nothing keeps its Pods on different machines".to_owned(),
        why: "Kubernetes may put all servers on one machine, whose loss or drain is then the loss of the quorum"
            .to_owned(),
        mend: objects.patch_template(&change),
    })
}

fn same_machine(objects: &Objects) -> Vec<Finding> {
    let mut machines: Vec<(&str, Vec<&str>)> = Vec::new();
    for (server, pod) in objects.pods() {
        let machine = text(pod, "/spec/nodeName");
        match machines.iter_mut().find(|(one, _)| *one == machine) {
            Some((_, servers)) => servers.push(&server.name),
            None if machine.is_empty() => {}
            None => machines.push((machine, vec![&server.name])),
        }
    }
    let replicas = objects.replicas();
    let borne = replicas.saturating_sub(1) / 2;
    let too_many = |servers: &Vec<&str>| servers.len() > 1 && servers.len() as u64 > borne;
    let found = machines.into_iter().filter(|(_, servers)| too_many(servers));
    found
        .map(|(machine, servers)| Finding {
            check: "same-machine",
            subject: format!("Node {machine}"),
            what: format!("{} of {replicas} servers run on it: {}", servers.len(), servers.join(", ")),
            why: format!("the cluster bears the loss of {borne}: with this machine the quorum is lost"),
            mend: format!(
                "# Needs another machine with room, and the StatefulSet's anti-affinity.\n{}",
                objects.kubectl(&format!("delete pod {}", servers.last().unwrap_or(&"")))
            ),
        })
        .collect()
}
