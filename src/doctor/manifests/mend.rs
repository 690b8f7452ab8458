//! How is a mend written? As lines that a person copies as they stand: every name is the real one.
//!
//! Takes the objects and what to change, gives the lines. A patch is JSON between single quotes, which it has none of itself.

use super::super::objects::{Objects, text};
use crate::api::kube::REACHABLE;
use serde_json::{Value, json};

// === impl Objects ===

impl Objects {
    /// `Service prod/consul-server-0`.
    pub(super) fn subject(&self, kind: &str, name: &str) -> String {
        format!("{kind} {}/{name}", self.namespace)
    }

    /// `kubectl -n prod WORDS`.
    pub(super) fn kubectl(&self, words: &str) -> String {
        format!("kubectl -n {} {words}", self.namespace)
    }

    /// Makes or changes an object.
    pub(super) fn apply(&self, yaml: &str) -> String {
        format!("{} <<'EOF'\n{}\nEOF", self.kubectl("apply -f -"), yaml.trim_end())
    }

    /// Changes a part of an object, and leaves the rest.
    pub(super) fn patch(&self, kind: &str, name: &str, change: &str) -> String {
        self.kubectl(&format!("patch {kind} {name} -p '{change}'"))
    }

    /// Replaces a part of an object as a whole.
    pub(super) fn replace(&self, kind: &str, name: &str, path: &str, value: &str) -> String {
        let steps = format!(r#"[{{"op":"add","path":"{path}","value":{value}}}]"#);
        self.kubectl(&format!("patch {kind} {name} --type=json -p '{steps}'"))
    }

    /// Changes the Pods' specification in the StatefulSet, which restarts the servers one after the other.
    pub(super) fn patch_template(&self, change: &str) -> String {
        self.patch("statefulset", &self.name, &format!(r#"{{"spec":{{"template":{{"spec":{change}}}}}}}"#))
    }

    /// The same for the fields of the agent's container.
    pub(super) fn patch_agent(&self, fields: &str) -> String {
        self.patch_template(&format!(r#"{{"containers":[{{"name":"{}",{fields}}}]}}"#, self.agent_name()))
    }

    /// The name of the container that runs the agent.
    pub(super) fn agent_name(&self) -> &str {
        self.agent().map(|agent| text(agent, "/name")).filter(|name| !name.is_empty()).unwrap_or("consul")
    }

    /// The Pods' labels in the StatefulSet.
    pub(super) fn labels(&self) -> Value {
        let labels = self.statefulset.as_ref().ok().and_then(|spec| spec.pointer("/spec/template/metadata/labels"));
        labels.cloned().unwrap_or_else(|| json!({}))
    }

    /// Whether the Pods have the label by which a server that stops takes itself out of its own Service.
    pub(super) fn has_reachable(&self) -> bool {
        self.labels().get(REACHABLE).is_some_and(|said| said == "true")
    }

    /// The labels that the StatefulSet itself selects its Pods by.
    pub(super) fn selector(&self) -> Value {
        let labels = self.statefulset.as_ref().ok().and_then(|spec| spec.pointer("/spec/selector/matchLabels"));
        labels.cloned().unwrap_or_else(|| self.labels())
    }
}

/// Whether labels have all that a selector asks for; an empty selector is none.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_object().filter(|wanted| !wanted.is_empty());
    wanted.is_some_and(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
}
