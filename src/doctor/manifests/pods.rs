//! Are the servers' Pods there, on a machine, started, and alike?

use super::super::finding::{Finding, Report, Unseen};
use super::super::objects::{Objects, Server, containers, list, number, text, why_unseen};
use super::probes::condition;
use crate::api::kube::Timestamp;
use serde_json::Value;

/// How long a Pod may be not Ready until that is worth a word, in seconds: a start takes less, and so does a rollout's step.
const PATIENCE: i64 = 120;
/// How long a Pod may outlive its own end, in seconds.
const OVERDUE: i64 = 60;
/// Reasons of a container that waits which do not end by themselves.
const STUCK: [&str; 8] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

pub(super) fn check(objects: &Objects, report: &mut Report) {
    for server in &objects.servers {
        match &server.pod {
            Err(error) => report.unseen.push(Unseen { what: "the servers' Pods", why: why_unseen(error) }),
            Ok(seen) => {
                report.looked.extend(["image-skew", "pod-missing", "pod-unscheduled", "pod-not-started"]);
                report.looked.extend(["pod-not-ready", "pod-terminating"]);
                report.findings.extend(match seen {
                    None => Some(missing(objects, server)),
                    Some(pod) => wrong(objects, server, pod),
                });
            }
        }
    }
    report.findings.extend(skew(objects));
}

fn found(objects: &Objects, server: &Server, check: &'static str, what: String, why: &str, mend: String) -> Finding {
    Finding { check, subject: objects.subject("Pod", &server.name), what, why: why.to_owned(), mend }
}

fn missing(objects: &Objects, server: &Server) -> Finding {
    let why = "the StatefulSet could not make it, by a quota, an admission rule or a missing service account";
    let mend = objects.kubectl(&format!("describe statefulset {}", objects.name));
    found(objects, server, "pod-missing", "there is no such Pod".to_owned(), why, mend)
}

/// The first thing that is wrong with a Pod: the others follow from it.
fn wrong(objects: &Objects, server: &Server, pod: &Value) -> Option<Finding> {
    let since = |then: &str| {
        let then: Timestamp = then.parse().ok()?;
        Some(objects.seen_at.duration_since(then).as_secs())
    };
    let describe = objects.kubectl(&format!("describe pod {}", server.name));
    if let Some(over) = since(text(pod, "/metadata/deletionTimestamp")) {
        let why = "Kubernetes makes no new Pod of this name before the old one is known to be gone; usually its machine is lost";
        let name = &server.name;
        let mend = format!(
            "{}\n# Only when that machine is off for good, or was made anew:\n{}",
            objects.kubectl(&format!("get pod {name} -o wide")),
            objects.kubectl(&format!("delete pod {name} --force --grace-period=0"))
        );
        let what = format!("it should have been gone for {over} s");
        return (over > OVERDUE).then(|| found(objects, server, "pod-terminating", what, why, mend));
    }
    let unscheduled = condition(pod, "PodScheduled").filter(|one| text(one, "/reason") == "Unschedulable");
    if let Some(condition) = unscheduled {
        let why = "this server is away until a machine with room for it, and with its volume, is there";
        let what = format!("no machine takes it: {}", text(condition, "/message"));
        return Some(found(objects, server, "pod-unscheduled", what, why, format!("{describe}\nkubectl get nodes")));
    }
    if let Some(finding) = not_started(objects, server, pod) {
        return Some(finding);
    }
    let ready = condition(pod, "Ready").filter(|one| text(one, "/status") != "True")?;
    let waited = since(text(ready, "/lastTransitionTime"))?;
    if waited < PATIENCE {
        return None;
    }
    let begins = list(pod, "/status/initContainerStatuses")
        .find(|one| one.pointer("/state/running").is_some() && one.get("started") != Some(&Value::Bool(true)));
    let at = begins.map_or(objects.agent_name(), |one| text(one, "/name"));
    let why = "what convene or Consul waits for stands in its log, every 10 s; a rollout does not go on before this Pod is Ready";
    let mend = objects.kubectl(&format!("logs {} -c {at} --tail=20", server.name));
    let what = format!("it is not Ready for {waited} s (container {at})");
    Some(found(objects, server, "pod-not-ready", what, why, mend))
}

fn not_started(objects: &Objects, server: &Server, pod: &Value) -> Option<Finding> {
    let mut statuses = list(pod, "/status/initContainerStatuses").chain(list(pod, "/status/containerStatuses"));
    let status = statuses.find(|one| STUCK.contains(&text(one, "/state/waiting/reason")))?;
    let (name, reason) = (text(status, "/name"), text(status, "/state/waiting/reason"));
    let restarts = number(status, "/restartCount").unwrap_or(0);
    let last = text(status, "/lastState/terminated/message").trim();
    let said = if last.is_empty() { text(status, "/state/waiting/message").trim() } else { last };
    let what = match reason {
        "CrashLoopBackOff" => format!("container {name} ended {restarts} times; its last words: {said}"),
        reason => format!("container {name} does not start: {reason}: {said}"),
    };
    let mend = match reason {
        "CrashLoopBackOff" => objects.kubectl(&format!("logs {} -c {name} --previous --tail=20", server.name)),
        _ => objects.kubectl(&format!("describe pod {}", server.name)),
    };
    let why = "this server is away until that is mended; README has each message of convene with its cure. After a change of the \
               StatefulSet delete the Pod, since a rollout waits for it to be Ready";
    Some(found(objects, server, "pod-not-started", what, why, mend))
}

fn skew(objects: &Objects) -> Vec<Finding> {
    let names = objects.template().into_iter().flat_map(containers).map(|container| text(container, "/name"));
    names.filter_map(|name| skewed(objects, name)).collect()
}

/// The Pods' images of one container, when they differ.
fn skewed(objects: &Objects, container: &str) -> Option<Finding> {
    let mut images: Vec<(&str, Vec<&str>)> = Vec::new();
    for (server, pod) in objects.pods() {
        let mut all = pod.get("spec").into_iter().flat_map(containers);
        let Some(image) = all.find(|one| text(one, "/name") == container).map(|one| text(one, "/image")) else {
            continue;
        };
        match images.iter_mut().find(|(one, _)| *one == image) {
            Some((_, pods)) => pods.push(&server.name),
            None => images.push((image, vec![&server.name])),
        }
    }
    if images.len() < 2 {
        return None;
    }
    let listed: Vec<String> = images.iter().map(|(image, pods)| format!("{image} in {}", pods.join(", "))).collect();
    Some(Finding {
        check: "image-skew",
        subject: format!("{}, container {container}", objects.subject("StatefulSet", &objects.name)),
        what: listed.join("; "),
        why: "a rollout is under way or stands still: followers of an older Consul may not read what a newer leader writes".to_owned(),
        mend: format!(
            "{}\n# Where it stands still, since the next Pod cannot become Ready before it has the new image:\n{}",
            objects.kubectl(&format!("rollout status statefulset {} --timeout=60s", objects.name)),
            objects.kubectl(&format!("describe statefulset {}", objects.name))
        ),
    })
}
