//! Whole objects as JSON, what an account may do, and calls that the API server hands on to a Pod.
//!
//! For `doctor`, which looks at much and keeps little of it. A Pod's own answer is an answer, whatever its status; what the API server
//! itself says instead is a [`KubeError`].

use super::{Asking, Call, Kube, KubeError};
use kube::client::Body;
use kube::core::Request;
use kube::core::params::{GetParams, ListParams};
use serde_json::{Value, json};
use tokio::time::timeout;

/// An API resource: its group (the core group has no name) and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource(pub &'static str, pub &'static str);

/// A GET that the API server hands on to a Pod, which may be out of our reach.
#[derive(Debug, Clone, Copy)]
pub struct ThroughPod<'a> {
    /// The Pod's namespace.
    pub namespace: &'a str,
    /// The Pod.
    pub pod: &'a str,
    /// Its port.
    pub port: u16,
    /// Whether it speaks TLS there. The API server verifies no certificate.
    pub tls: bool,
    /// The path and query, with its first slash.
    pub path: &'a str,
    /// A header of this value `X-Consul-Token`. The API server reads it.
    pub token: Option<&'a str>,
}

/// What the Pod answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, by lower-case names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// For whom a right is asked.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// For ourselves, which everybody may ask.
    Ourselves,
    /// For a service account of the namespace.
    ServiceAccount(&'a str),
}

// === impl Kube ===

impl Kube {
    /// The namespace that the kubeconfig's context, or the service account, names.
    ///
    /// # Errors
    /// [`KubeError::NoAccess`].
    pub async fn default_namespace(&self) -> Result<String, KubeError> {
        Ok(self.client().await?.default_namespace().to_owned())
    }

    /// An object by its name.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn object(&self, of: Resource, namespace: &str, name: &str) -> Result<Option<Value>, KubeError> {
        let asking = Asking { verb: "get", resource: of.1, group: of.0, namespace: Some(namespace), which: name };
        self.get(asking).await
    }

    /// The objects that match a label selector, which may be empty: at most 500.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn objects(&self, of: Resource, namespace: &str, labels: &str) -> Result<Vec<Value>, KubeError> {
        let asking = Asking { verb: "list", resource: of.1, group: of.0, namespace: Some(namespace), which: labels };
        let params = ListParams::default().labels(labels).limit(500);
        let mut found: Value = self.ask(asking, &Call::List(params)).await?;
        match found.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(KubeError::Strange { what: asking.to_string(), reason: "it is no list".to_owned() }),
        }
    }

    /// Whether somebody may do that in the namespace.
    ///
    /// # Errors
    /// [`KubeError`].
    pub async fn may(
        &self,
        who: Who<'_>,
        verb: &str,
        of: Resource,
        namespace: &str,
        name: Option<&str>,
    ) -> Result<bool, KubeError> {
        let right = json!({"namespace": namespace, "verb": verb, "group": of.0, "resource": of.1, "name": name});
        let (resource, kind, within, mut spec) = match who {
            Who::Ourselves => ("selfsubjectaccessreviews", "SelfSubjectAccessReview", None, json!({})),
            Who::ServiceAccount(name) => {
                let groups = [
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ];
                let spec = json!({"user": format!("system:serviceaccount:{namespace}:{name}"), "groups": groups});
                ("localsubjectaccessreviews", "LocalSubjectAccessReview", Some(namespace), spec)
            }
        };
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("resourceAttributes".to_owned(), right);
        }
        let asking = Asking { verb: "create", resource, group: "authorization.k8s.io", namespace: within, which: "" };
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {"namespace": within}, "spec": spec});
        let answer: Value = self.ask(asking, &Call::Create(body.to_string().into_bytes())).await?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or(false))
    }

    /// One GET to a Pod by way of the API server, within the deadline of every call.
    ///
    /// # Errors
    /// [`KubeError`]: the API server does not let us (`pods/proxy: get`), or does not reach the Pod.
    pub async fn through_pod(&self, call: ThroughPod<'_>) -> Result<PodAnswer, KubeError> {
        let asking =
            Asking { verb: "get", resource: "pods/proxy", group: "", namespace: Some(call.namespace), which: call.pod };
        let client = self.client().await?;
        // The request's type is another crate's to name, so one that kube makes is changed here.
        let request = || {
            let ThroughPod { namespace, pod, port, tls, path, token } = call;
            let pods = format!("/api/v1/namespaces/{namespace}/pods");
            let scheme = if tls { "https:" } else { "" };
            let uri = format!("{pods}/{scheme}{pod}:{port}/proxy{path}");
            let mut request = Request::new(&pods).get(pod, &GetParams::default()).map_err(|error| error.to_string())?;
            *request.uri_mut() = uri.parse().map_err(|_| format!("{uri} is no path"))?;
            if let Some(token) = token {
                let value = token.parse().map_err(|_| "the token is no header's value".to_owned())?;
                request.headers_mut().insert("x-consul-token", value);
            }
            Ok::<_, String>(request)
        };
        let request = request().map_err(|reason| KubeError::Strange { what: asking.to_string(), reason })?;
        let answer = async {
            let response = client.send(request.map(Body::from)).await?;
            let (head, body) = response.into_parts();
            let headers = head
                .headers
                .iter()
                .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
            let (status, headers) = (head.status.as_u16(), headers.collect());
            Ok::<_, kube::Error>(PodAnswer { status, headers, body: body.collect_bytes().await?.to_vec() })
        };
        let answer = match timeout(self.deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(asking.failed(error)),
            // A Pod's silence is not the API server's, who is asked again.
            Err(_) => return Err(KubeError::Silent { what: asking.to_string(), waited: self.deadline }),
        };
        match of_the_api_server(&answer) {
            None => Ok(answer),
            Some(_) if answer.status == 401 => Err(KubeError::Unknown {
                verb: "get",
                resource: "pods/proxy",
                namespace: Some(call.namespace.to_owned()),
            }),
            Some(_) if answer.status == 403 => Err(KubeError::Denied {
                status: 403,
                verb: "get",
                resource: "pods/proxy",
                group: "",
                namespace: Some(call.namespace.to_owned()),
            }),
            Some(said) => Err(KubeError::Status { what: asking.to_string(), status: answer.status, said }),
        }
    }
}

/// What the API server itself says: its errors are objects of kind Status, and Consul's are text.
fn of_the_api_server(answer: &PodAnswer) -> Option<String> {
    if answer.status < 400 {
        return None;
    }
    let status: Value = serde_json::from_slice(&answer.body).ok()?;
    (status.get("kind")? == "Status")
        .then(|| status.get("message").and_then(Value::as_str).unwrap_or_default().to_owned())
}
