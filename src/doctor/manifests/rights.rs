//! May the servers' service account do what convene asks the Kubernetes API for?
//!
//! Only where its token is mounted: without one convene works by DNS alone, as it was told.

use super::super::finding::{Finding, Report, Unseen};
use super::super::objects::{CHANGE_POD, Objects, Right, Rights, why_unseen};

pub(super) fn check(objects: &Objects, report: &mut Report) {
    let Some(Rights { account, answers }) = &objects.rights else { return };
    if objects.template().is_some() && !objects.has_convene() {
        return;
    }
    let claims = objects.setting("claim", "CONVENE_CLAIM").is_none_or(|said| said != "off");
    // Without any Pod nobody was asked about, and a rule without names would be one for all.
    let labelled = objects.has_reachable() && !objects.servers.is_empty();
    let needed = |right: &Right| (claims || right.resource.1 != "configmaps") && (labelled || *right != CHANGE_POD);
    let mut missing: Vec<&Right> = Vec::new();
    let mut asked = false;
    for (right, answer) in answers.iter().filter(|(right, _)| needed(right)) {
        match answer {
            Ok(allowed) => {
                asked = true;
                missing.extend(Some(right).filter(|_| !allowed));
            }
            Err(error) => {
                report
                    .unseen
                    .push(Unseen { what: "the rights of the servers' service account", why: why_unseen(error) });
            }
        }
    }
    if asked {
        report.looked.push("role");
    }
    if missing.is_empty() {
        return;
    }
    let lacking: Vec<String> = missing.iter().map(|right| format!("{} {}", right.verb, right.resource.1)).collect();
    let mut effects: Vec<&str> = missing.iter().map(|right| right.without).collect();
    effects.dedup();
    report.findings.push(Finding {
        check: "role",
        subject: objects.subject("ServiceAccount", account),
        what: format!("it may not {}", lacking.join(", ")),
        why: effects.join("; "),
        mend: granting(objects, account, claims, labelled),
    });
}

/// A Role of its own with all that is needed: rights add up, and nobody's Role has to be read.
fn granting(objects: &Objects, account: &str, claims: bool, labelled: bool) -> String {
    let claim =
        if claims { "  - {apiGroups: [\"\"], resources: [configmaps], verbs: [get, create, update]}\n" } else { "" };
    let pods: Vec<&str> = objects.servers.iter().map(|server| server.name.as_str()).collect();
    let label = if labelled {
        format!("  - {{apiGroups: [\"\"], resources: [pods], verbs: [patch], resourceNames: [{}]}}\n", pods.join(", "))
    } else {
        String::new()
    };
    let name = format!("{account}-convene");
    objects.apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: {name}\nrules:\n  \
         - {{apiGroups: [\"\"], resources: [pods], verbs: [get, list]}}\n{label}  \
         - {{apiGroups: [apps], resources: [statefulsets], verbs: [get]}}\n  \
         - {{apiGroups: [\"\"], resources: [services], verbs: [get]}}\n{claim}  \
         - {{apiGroups: [\"\"], resources: [events], verbs: [create]}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n  name: {name}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}\n\
         subjects: [{{kind: ServiceAccount, name: {account}}}]"
    ))
}
