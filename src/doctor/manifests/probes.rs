//! Do the probes of the agent's container ask the right question, and leave time for the answer?

use super::super::finding::{Finding, Report};
use super::super::objects::{Objects, list, number, text};
use serde_json::Value;

/// The least time until liveness counts, in seconds: images are pulled, volumes attached, snapshots restored meanwhile.
const START: u64 = 300;
/// Where convene is in the agent's container, as README has it.
const CONVENE: &str = "/convene/convene";

pub(super) fn check(objects: &Objects, report: &mut Report) {
    let Some(agent) = objects.agent() else { return };
    report.looked.extend(["startup-probe", "liveness-probe", "readiness-probe", "probe-timeout"]);
    let found = [startup(objects, agent), liveness(objects, agent), readiness(objects, agent), timeout(objects, agent)];
    report.findings.extend(found.into_iter().flatten());
}

fn found(objects: &Objects, check: &'static str, what: String, why: &str, fields: &str) -> Option<Finding> {
    let subject = format!("{}, container {}", objects.subject("StatefulSet", &objects.name), objects.agent_name());
    Some(Finding { check, subject, what, why: why.to_owned(), mend: objects.patch_agent(fields) })
}

/// What convene is asked by a probe: `live`, `ready` or `joined`.
fn asked(probe: &Value) -> Option<&str> {
    let mut words = list(probe, "/exec/command").filter_map(Value::as_str);
    words.find(|word| *word == "convene" || word.ends_with("/convene"))?;
    words.find(|word| *word == "check")?;
    words.next()
}

/// What a probe runs.
fn words(probe: &Value) -> String {
    list(probe, "/exec/command").filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

/// It depends on a leader, or on others.
fn needs_others(probe: &Value) -> bool {
    match asked(probe) {
        Some(what) => what != "live",
        None => {
            let said = words(probe);
            ["status/leader", "consul members", "operator raft", "catalog", "health"]
                .iter()
                .any(|call| said.contains(call))
        }
    }
}

fn startup(objects: &Objects, agent: &Value) -> Option<Finding> {
    let liveness = agent.get("livenessProbe")?;
    // `check live` is content with whatever waits or starts; where another liveness is found, the mend of that is this one's too.
    let is_content = asked(liveness) == Some("live") || objects.has_convene() && needs_others(liveness);
    if agent.get("startupProbe").is_none() && is_content {
        return None;
    }
    let probe = agent.get("startupProbe").unwrap_or(liveness);
    let every = number(probe, "/periodSeconds").unwrap_or(10);
    let given =
        number(probe, "/initialDelaySeconds").unwrap_or(0) + every * number(probe, "/failureThreshold").unwrap_or(3);
    if given >= START {
        return None;
    }
    let asks = match objects.has_convene() {
        true => format!(r#""exec":{{"command":["{CONVENE}","check","live"]}},"httpGet":null,"tcpSocket":null"#),
        // As liveness asks it.
        false => ["exec", "httpGet", "tcpSocket"]
            .map(|kind| format!(r#""{kind}":{}"#, liveness.get(kind).unwrap_or(&Value::Null)))
            .join(","),
    };
    let change = format!(r#""startupProbe":{{{asks},"periodSeconds":1,"timeoutSeconds":5,"failureThreshold":900}}"#);
    let what = match agent.get("startupProbe") {
        Some(_) => format!("its startupProbe gives up after {given} s"),
        None => format!("it has no startupProbe, and liveness counts after {given} s"),
    };
    let why = "a server that restores a large snapshot, or waits for others, is ended before it is done, and begins again from the start";
    found(objects, "startup-probe", what, why, &change)
}

fn liveness(objects: &Objects, agent: &Value) -> Option<Finding> {
    let probe = agent.get("livenessProbe").filter(|probe| needs_others(probe))?;
    let why = "without a leader every server is ended again and again, and none lives long enough to be elected";
    let asks = match objects.has_convene() {
        true => format!(r#""exec":{{"command":["{CONVENE}","check","live"]}}"#),
        // It answers without a leader too.
        false => r#""exec":null,"httpGet":{"path":"/v1/status/leader","port":8500}"#.to_owned(),
    };
    let change = format!(r#""livenessProbe":{{{asks},"timeoutSeconds":5,"failureThreshold":6}}"#);
    found(objects, "liveness-probe", format!("its livenessProbe is {}", words(probe)), why, &change)
}

fn readiness(objects: &Objects, agent: &Value) -> Option<Finding> {
    let what = match agent.get("readinessProbe") {
        None => "it has no readinessProbe".to_owned(),
        Some(probe) if objects.has_convene() && asked(probe) != Some("ready") => {
            "its readinessProbe is not convene check ready".to_owned()
        }
        Some(_) => return None,
    };
    let why = "a rollout or a drain goes on to the next server before this one votes again: two at once may be away, which is the quorum";
    let command = match objects.has_convene() {
        true => format!(r#"["{CONVENE}","check","ready","--wait=1900ms"]"#),
        false => r#"["consul","operator","raft","list-peers"]"#.to_owned(),
    };
    let change = format!(
        r#""readinessProbe":{{"exec":{{"command":{command}}},"httpGet":null,"tcpSocket":null,"periodSeconds":2,"timeoutSeconds":5,"failureThreshold":3}}"#
    );
    found(objects, "readiness-probe", what, why, &change)
}

fn timeout(objects: &Objects, agent: &Value) -> Option<Finding> {
    let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
    let short = |name: &&str| {
        agent
            .get(*name)
            .is_some_and(|probe| asked(probe).is_some() && number(probe, "/timeoutSeconds").unwrap_or(1) < 2)
    };
    let short: Vec<&str> = probes.into_iter().filter(|name| short(name)).collect();
    if short.is_empty() {
        return None;
    }
    let change: Vec<String> = short.iter().map(|name| format!(r#""{name}":{{"timeoutSeconds":5}}"#)).collect();
    let what = format!("timeoutSeconds is 1 ({})", short.join(", "));
    let why = "an agent under load takes longer than 1 s for an answer, and counts as dead or not Ready just then";
    found(objects, "probe-timeout", what, why, &change.join(","))
}

/// Whether a Pod's condition holds.
pub(super) fn condition<'v>(pod: &'v Value, kind: &str) -> Option<&'v Value> {
    list(pod, "/status/conditions").find(|one| text(one, "/type") == kind)
}
