//! Does the StatefulSet start, stop and keep its servers in a way that a quorum survives?

use super::super::finding::{Finding, Report};
use super::super::objects::{Objects, flag_of, list, number, text};
use crate::settings::DEFAULT_GRACE;
use crate::time;
use serde_json::Value;
use std::time::Duration;

/// The least grace period: half of it may pass in waiting for another server (README, stopping), a leave takes up to 15 s with Consul's
/// own settings (5 s until it is spread, 5 s for requests under way, 4.5 s for the WAN pool), and 3 s are kept back.
const GRACE: Duration = Duration::from_secs(36);

pub(super) fn check(objects: &Objects, report: &mut Report) {
    let Ok(statefulset) = &objects.statefulset else { return };
    report.looked.extend(["ordered-start", "grace-period", "rollout-takes-several"]);
    report.looked.extend(["replicas-even", "expect", "claims-deleted", "data-volume"]);
    let found = [
        ordered(objects, statefulset),
        grace(objects),
        several(objects, statefulset),
        even(objects),
        expect(objects),
        claims_deleted(objects, statefulset),
        data_volume(objects, statefulset),
    ];
    report.findings.extend(found.into_iter().flatten());
}

fn found(objects: &Objects, check: &'static str, what: String, why: &str, mend: String) -> Option<Finding> {
    let subject = objects.subject("StatefulSet", &objects.name);
    Some(Finding { check, subject, what, why: why.to_owned(), mend })
}

fn ordered(objects: &Objects, statefulset: &Value) -> Option<Finding> {
    if text(statefulset, "/spec/podManagementPolicy") == "Parallel" || objects.replicas() < 2 {
        return None;
    }
    let name = &objects.name;
    let change = r#"[{"op":"replace","path":"/spec/podManagementPolicy","value":"Parallel"},{"op":"remove","path":"/metadata/resourceVersion"}]"#;
    let mend = format!(
        "# The policy cannot be changed: the StatefulSet is made anew, and its Pods and volumes stay meanwhile.\n\
         {} | kubectl patch --local -f - --type=json -p '{change}' -o yaml >{name}.yaml &&\n{} &&\n{}",
        objects.kubectl(&format!("get statefulset {name} -o yaml")),
        objects.kubectl(&format!("delete statefulset {name} --cascade=orphan")),
        objects.kubectl(&format!("create -f {name}.yaml"))
    );
    let why = "the first server waits for a leader, and the others that could elect one are not started before it is Ready; after the \
               loss of all Pods the cluster never comes back";
    found(objects, "ordered-start", "podManagementPolicy is OrderedReady".to_owned(), why, mend)
}

fn grace(objects: &Objects) -> Option<Finding> {
    let template = objects.template()?;
    let given = number(template, "/terminationGracePeriodSeconds").map_or(DEFAULT_GRACE, Duration::from_secs);
    let said = objects.setting("grace-period", "CONVENE_GRACE_PERIOD").and_then(|said| time::parse(&said));
    let unsaid = (objects.has_convene() && objects.unseen_settings().is_none()).then_some(DEFAULT_GRACE);
    let told = said.or(unsaid);
    let what = match told {
        _ if given < GRACE => format!("terminationGracePeriodSeconds is {}", given.as_secs()),
        Some(told) if told > given => format!(
            "convene was told a grace period of {} s, and terminationGracePeriodSeconds is {}",
            told.as_secs(),
            given.as_secs()
        ),
        Some(told) if told < GRACE => format!(
            "terminationGracePeriodSeconds is {}, and convene was told {} s (CONVENE_GRACE_PERIOD; its default is 30s)",
            given.as_secs(),
            told.as_secs()
        ),
        _ => return None,
    };
    let seconds = given.max(Duration::from_secs(120)).as_secs();
    let mut mend = objects.patch_template(&format!(r#"{{"terminationGracePeriodSeconds":{seconds}}}"#));
    if told.is_some_and(|told| told.as_secs() != seconds) {
        let set = format!("set env statefulset/{} CONVENE_GRACE_PERIOD={seconds}s", objects.name);
        mend = format!("{mend}\n{}", objects.kubectl(&set));
    }
    let why = "a stop waits up to half of it for another server, and a leave takes up to 15 s: what does not fit is cut off, and a server \
               that was to leave stays behind as failed";
    found(objects, "grace-period", what, why, mend)
}

fn several(objects: &Objects, statefulset: &Value) -> Option<Finding> {
    let replicas = objects.replicas();
    let most = portion(statefulset.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable")?, replicas)?;
    if most < 2 || replicas.saturating_sub(most) > replicas / 2 {
        return None;
    }
    let change = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxUnavailable":1}}}}"#;
    let mend = objects.patch("statefulset", &objects.name, change);
    let what =
        format!("a rollout stops {most} of {replicas} servers at once (updateStrategy.rollingUpdate.maxUnavailable)");
    found(objects, "rollout-takes-several", what, "those that are left are no majority, and nobody can write", mend)
}

/// A number of Pods, or a percentage of them, rounded up.
pub(super) fn portion(value: &Value, of: u64) -> Option<u64> {
    match value {
        Value::String(text) => match text.strip_suffix('%') {
            Some(percent) => Some(percent.parse::<u64>().ok()?.checked_mul(of)?.div_ceil(100)),
            None => text.parse().ok(),
        },
        value => value.as_u64(),
    }
}

fn even(objects: &Objects) -> Option<Finding> {
    let replicas = objects.replicas();
    if replicas == 0 || replicas % 2 == 1 {
        return None;
    }
    let mend = format!(
        "# Each server needs a Service of its own first.\n{}",
        objects.kubectl(&format!("scale statefulset {} --replicas={}", objects.name, replicas + 1))
    );
    let why = "the quorum is as large as that of one server more, and is lost as soon as with one server less";
    found(objects, "replicas-even", format!("it has {replicas} replicas"), why, mend)
}

fn expect(objects: &Objects) -> Option<Finding> {
    let said = objects.setting("expect", "CONVENE_EXPECT").or_else(|| objects.setting("bootstrap-expect", ""));
    let (expect, replicas) = (said?.parse::<u64>().ok()?, objects.replicas());
    let (what, why) = match expect {
        _ if replicas == 0 => return None,
        expect if expect > replicas => ("more servers than will ever come", "a new cluster never forms"),
        expect if expect * 2 <= replicas => {
            ("no majority of them", "both sides of a cut could found a cluster, and one of them loses its data later")
        }
        _ => return None,
    };
    let what = format!("the expect is {expect} and it has {replicas} replicas: {what}");
    let mend = match objects.has_convene() {
        true => format!(
            "# And take --expect and -bootstrap-expect out of the containers' arguments.\n{}",
            objects.kubectl(&format!("set env statefulset/{} CONVENE_EXPECT={replicas}", objects.name))
        ),
        false => format!(
            "# Give -bootstrap-expect={replicas} here.\n{}",
            objects.kubectl(&format!("edit statefulset {}", objects.name))
        ),
    };
    found(objects, "expect", what, why, mend)
}

fn claims_deleted(objects: &Objects, statefulset: &Value) -> Option<Finding> {
    let policy =
        |when: &str| text(statefulset, &format!("/spec/persistentVolumeClaimRetentionPolicy/{when}")) == "Delete";
    let when = match (policy("whenScaled"), policy("whenDeleted")) {
        (false, false) => return None,
        (true, false) => "whenScaled",
        (false, true) => "whenDeleted",
        (true, true) => "whenScaled and whenDeleted",
    };
    let change = r#"{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenScaled":"Retain","whenDeleted":"Retain"}}}"#;
    let mend = objects.patch("statefulset", &objects.name, change);
    let what = format!("persistentVolumeClaimRetentionPolicy says Delete ({when})");
    let why = "0 replicas for a night, or a StatefulSet that is deleted to be applied again, deletes the cluster's data for good";
    found(objects, "claims-deleted", what, why, mend)
}

fn data_volume(objects: &Objects, statefulset: &Value) -> Option<Finding> {
    let agent = objects.agent()?;
    let said =
        flag_of(agent, "data-dir").map(str::to_owned).or_else(|| objects.setting("data-dir", "CONVENE_DATA_DIR"));
    let folder = said.unwrap_or_else(|| crate::settings::DEFAULT_DATA_DIR.to_owned());
    let holds = |mount: &&Value| {
        let path = text(mount, "/mountPath").trim_end_matches('/');
        folder.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mount = list(agent, "/volumeMounts").filter(holds).max_by_key(|mount| text(mount, "/mountPath").len());
    let name = mount.map(|mount| text(mount, "/name")).unwrap_or_default();
    let lost = "whoever loses its Pod loses its data: a majority of restarts at once is the end of the cluster's";
    let (what, why) = match list(statefulset, "/spec/volumeClaimTemplates")
        .find(|one| text(one, "/metadata/name") == name)
    {
        Some(claim) => {
            let mut modes = list(claim, "/spec/accessModes").filter_map(Value::as_str);
            if !modes.any(|mode| mode == "ReadWriteMany") {
                return None;
            }
            let why = "such a volume is a network file system as a rule, where raft's fsync is slow or no promise, and a second Pod \
                       may write to it";
            (
                format!(
                    "the volume {name} of the data folder {folder} may be mounted by several machines at once (ReadWriteMany)"
                ),
                why,
            )
        }
        None => match objects.template().and_then(|spec| list(spec, "/volumes").find(|one| text(one, "/name") == name))
        {
            None => (format!("the data folder {folder} is on no volume"), lost),
            Some(volume) if volume.get("persistentVolumeClaim").is_some() => (
                format!("the data folder {folder} is on one volume ({name}) for all servers"),
                "two servers that write to the same raft log destroy it",
            ),
            // What a machine or a driver of its own keeps is the user's to judge.
            Some(volume) if volume.get("emptyDir").is_none() => return None,
            Some(_) => (format!("the data folder {folder} is on an emptyDir ({name})"), lost),
        },
    };
    let (agent, first) = (objects.agent_name(), objects.servers.first().map_or("POD", |server| &server.name));
    // Without a leader too; the data folder can be written, whatever else cannot.
    let save = format!("consul snapshot save -stale {folder}/doctor.snap >&2 && cat {folder}/doctor.snap");
    let mend = format!(
        "# volumeClaimTemplates cannot be changed: save the data first, then delete the StatefulSet and apply it with\n\
         #   volumeClaimTemplates:\n#     - metadata: {{name: data}}\n#       spec: {{accessModes: [ReadWriteOnce], resources: {{requests: \
         {{storage: 1Gi}}}}}}\n# and in container {agent}: volumeMounts: [{{name: data, mountPath: {folder}}}]\n{}",
        objects.kubectl(&format!("exec {first} -c {agent} -- sh -c '{save}' >{}.snap", objects.name))
    );
    found(objects, "data-volume", what, why, mend)
}
