//! What is applied: a folder of the repository, changed as a user's own kustomization would change it.
//!
//! Takes the folder, components, patches and settings; gives the kustomization's text. Never writes and never applies.

use super::image::Images;
use super::repository;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What is applied.
#[derive(Debug, Clone)]
pub struct Source {
    folder: PathBuf,
    components: Vec<PathBuf>,
    patches: Vec<Value>,
    settings: Vec<String>,
    requests: bool,
}

// === impl Source ===

impl Source {
    /// A folder of the repository that has a kustomization.
    pub fn new(folder: &str) -> Self {
        let folder = repository().join(folder);
        Self { folder, components: Vec::new(), patches: Vec::new(), settings: Vec::new(), requests: false }
    }

    /// With the memory and CPU that the servers request. Else they request none: a kubelet without cgroups of its Pods' own, as
    /// that of a cluster on one machine, panics over a container with requests whose Pod was deleted by force
    /// (doPodResizeAction in <https://github.com/kubernetes/kubernetes/blob/v1.34.4/pkg/kubelet/kuberuntime/kuberuntime_manager.go>).
    pub fn requesting(mut self) -> Self {
        self.requests = true;
        self
    }

    /// With a component, also a folder of the repository.
    pub fn component(mut self, folder: &str) -> Self {
        self.components.push(repository().join(folder));
        self
    }

    /// The same, changed: one of [`patch`] or [`json_patch`].
    pub fn with(mut self, patch: Value) -> Self {
        self.patches.push(patch);
        self
    }

    /// With one of convene's settings, as its environment variable, for every container that runs it.
    pub fn setting(mut self, variable: &str, value: &str) -> Self {
        self.settings.push(format!("{variable}={value}"));
        self
    }

    /// What a kustomization says for it that lies in `folder`.
    pub fn overlay(&self, folder: &Path, namespace: &str, images: &Images) -> Value {
        let image = |name: &str, to: &(String, String)| json!({"name": name, "newName": to.0, "newTag": to.1});
        let none = json!({"spec": {"template": {"spec": {"containers": [{"name": "consul", "resources": null}]}}}});
        let none = (!self.requests).then(|| patch("StatefulSet", "consul-server", none));
        let patches: Vec<Value> = none.into_iter().chain(self.patches.iter().cloned()).collect();
        let mut overlay = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            // Kustomize refuses an absolute path.
            "resources": [relative(folder, &self.folder)],
            "components": self.components.iter().map(|component| relative(folder, component)).collect::<Vec<_>>(),
            "images": [image("convene", &images.convene), image("hashicorp/consul", &images.consul)],
            "patches": patches,
        });
        if !self.settings.is_empty() {
            let role = if ["client", "sidecar"].iter().any(|of_clients| self.folder.ends_with(of_clients)) {
                "client"
            } else {
                "server"
            };
            let name = format!("consul-{role}-convene");
            let settings = json!({"name": name, "behavior": "merge", "literals": self.settings});
            overlay["configMapGenerator"] = json!([settings]);
        }
        overlay
    }
}

/// A strategic merge patch for every object of a kind whose name fits a regular expression.
pub fn patch(kind: &str, name: &str, mut body: Value) -> Value {
    // Kustomize wants both, and takes neither of them over.
    body["kind"] = json!(kind);
    body["metadata"]["name"] = json!("any");
    json!({"target": {"kind": kind, "name": name}, "patch": body.to_string()})
}

/// A JSON patch (RFC 6902), where a list is to be changed or something removed.
pub fn json_patch(kind: &str, name: &str, steps: Value) -> Value {
    json!({"target": {"kind": kind, "name": name}, "patch": steps.to_string()})
}

/// The way from one folder to another, both of which exist.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (from, to) = (from.canonicalize().unwrap(), to.canonicalize().unwrap());
    let shared = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
    let up = from.components().skip(shared).map(|_| "..");
    up.map(PathBuf::from).chain(to.components().skip(shared).map(|one| PathBuf::from(one.as_os_str()))).collect()
}
