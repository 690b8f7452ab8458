//! May one server go at a time, and only one?

use super::super::finding::{Finding, Report, Unseen};
use super::super::objects::{Objects, text, why_unseen};
use super::mend::selects;
use super::statefulset::portion;
use serde_json::Value;

pub(super) fn check(objects: &Objects, report: &mut Report) {
    let budgets = match &objects.budgets {
        Ok(budgets) => budgets,
        Err(error) => {
            return report.unseen.push(Unseen { what: "the PodDisruptionBudget", why: why_unseen(error) });
        }
    };
    if objects.template().is_none() || objects.replicas() == 0 {
        return;
    }
    report.looked.extend(["budget-missing", "budget-several", "budget-loose", "budget-closed", "budget-unhealthy"]);
    let labels = objects.labels();
    let ours: Vec<&Value> = budgets.iter().filter(|budget| matches(budget, &labels)).collect();
    match ours.as_slice() {
        [] if objects.replicas() > 1 => report.findings.push(missing(objects)),
        [] => {}
        [one] => {
            report.findings.extend([room(objects, one), unhealthy(objects, one)].into_iter().flatten());
        }
        several => report.findings.push(too_many(objects, several)),
    }
}

/// By its labels alone: an expression counts as one that fits, so that nobody is told to make a budget that is there.
fn matches(budget: &Value, labels: &Value) -> bool {
    let Some(selector) = budget.pointer("/spec/selector") else { return false };
    let expressions =
        selector.pointer("/matchExpressions").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    match selector.get("matchLabels").filter(|wanted| wanted.as_object().is_some_and(|wanted| !wanted.is_empty())) {
        Some(wanted) => selects(wanted, labels),
        // An empty selector is one for all Pods of the namespace.
        None => expressions || selector.is_object(),
    }
}

fn missing(objects: &Objects) -> Finding {
    let name = &objects.name;
    let selector = objects.selector();
    Finding {
        check: "budget-missing",
        subject: objects.subject("StatefulSet", name),
        what: "no PodDisruptionBudget selects its Pods".to_owned(),
        why: "a drain of several machines, as for an upgrade of Kubernetes, may take so many servers at once that the quorum is lost"
            .to_owned(),
        mend: objects.apply(&format!(
            "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata:\n  name: {name}\nspec:\n  maxUnavailable: 1\n  \
             unhealthyPodEvictionPolicy: AlwaysAllow\n  selector:\n    matchLabels: {selector}"
        )),
    }
}

fn too_many(objects: &Objects, several: &[&Value]) -> Finding {
    let names: Vec<&str> = several.iter().map(|budget| text(budget, "/metadata/name")).collect();
    let lines: Vec<String> =
        names.iter().skip(1).map(|name| objects.kubectl(&format!("delete poddisruptionbudget {name}"))).collect();
    Finding {
        check: "budget-several",
        subject: objects.subject("StatefulSet", &objects.name),
        what: format!("{} PodDisruptionBudgets select its Pods: {}", names.len(), names.join(", ")),
        why: "Kubernetes evicts no Pod that has more than one, and no machine with a server can be drained".to_owned(),
        mend: format!("# Keep one with maxUnavailable: 1, here the first.\n{}", lines.join("\n")),
    }
}

fn room(objects: &Objects, budget: &Value) -> Option<Finding> {
    let replicas = objects.replicas();
    let spec = budget.get("spec")?;
    let (said, may_go) = match (spec.get("maxUnavailable"), spec.get("minAvailable")) {
        (Some(most), _) => (format!("maxUnavailable is {}", shown(most)), portion(most, replicas)?),
        (None, Some(least)) => {
            (format!("minAvailable is {}", shown(least)), replicas.saturating_sub(portion(least, replicas)?))
        }
        (None, None) => return None,
    };
    let (stay, quorum) = (replicas.saturating_sub(may_go), replicas / 2 + 1);
    let (check, what, why) = match may_go {
        0 => (
            "budget-closed",
            format!("{said}, and nobody of {replicas} may go"),
            "no machine with a server can be drained: upgrades of Kubernetes hang until somebody deletes the Pod by hand",
        ),
        1 => return None,
        _ if stay < quorum => (
            "budget-loose",
            format!("{said}: {may_go} of {replicas} may go at once, and {stay} are no majority"),
            "a drain of several machines takes the quorum: nobody can write, and nobody can be elected",
        ),
        _ if stay == quorum => (
            "budget-loose",
            format!("{said}: {may_go} of {replicas} may go at once"),
            "those that stay are just a majority: with the first failure meanwhile the quorum is lost",
        ),
        _ => return None,
    };
    // One that is removed by null, since both together are refused.
    Some(found(objects, budget, check, what, why, r#"{"spec":{"maxUnavailable":1,"minAvailable":null}}"#))
}

fn unhealthy(objects: &Objects, budget: &Value) -> Option<Finding> {
    if text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return None;
    }
    let change = r#"{"spec":{"unhealthyPodEvictionPolicy":"AlwaysAllow"}}"#;
    let why =
        "a server that is not Ready does not vote, and yet keeps its machine from being drained as long as it is so";
    let what = "unhealthyPodEvictionPolicy is not AlwaysAllow".to_owned();
    Some(found(objects, budget, "budget-unhealthy", what, why, change))
}

fn found(objects: &Objects, budget: &Value, check: &'static str, what: String, why: &str, change: &str) -> Finding {
    let name = text(budget, "/metadata/name");
    let mend = objects.kubectl(&format!("patch poddisruptionbudget {name} --type=merge -p '{change}'"));
    Finding { check, subject: objects.subject("PodDisruptionBudget", name), what, why: why.to_owned(), mend }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
