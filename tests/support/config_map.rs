//! What does the Kubernetes API keep? One ConfigMap, as the real API keeps it: it is made once, and replaced only by who has
//! read its newest version. Takes a server of HTTP and the ConfigMap's path; gives what is kept, and everything that was ever
//! accepted. It judges nothing that it keeps.

use super::accept::lock;
use super::http::{Call, Reply, Request, ScriptedHttp};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A ConfigMap that is kept for a test.
#[derive(Clone)]
pub struct KeptConfigMap {
    accepted: Arc<Mutex<Vec<Value>>>,
}

// === impl KeptConfigMap ===

impl KeptConfigMap {
    /// Kept behind `api` from now on, at `<folder>/<name>`; there is none yet.
    pub fn at(api: &ScriptedHttp, folder: &str, name: &str) -> Self {
        let kept = Self { accepted: Arc::default() };
        let path = format!("{folder}/{name}");
        let replies = |reply: fn(&Self, &Request) -> Reply| {
            let kept = kept.clone();
            Reply::by(move |request| reply(&kept, request))
        };
        api.always(Call::get(&path, replies(|kept, _| kept.shown())));
        api.always(Call::post(folder, replies(Self::kept)));
        api.always(Call::put(&path, replies(Self::kept)));
        kept
    }

    /// What is kept now.
    pub fn now(&self) -> Option<Value> {
        self.accepted().pop()
    }

    /// All that was ever kept, in order.
    pub fn accepted(&self) -> Vec<Value> {
        lock(&self.accepted).clone()
    }

    /// It is gone, and was never there.
    pub fn forget(&self) {
        lock(&self.accepted).clear();
    }

    fn shown(&self) -> Reply {
        self.now().map_or_else(|| status(404), |map| Reply::ok(&map.to_string()))
    }

    fn kept(&self, request: &Request) -> Reply {
        let mut map: Value = serde_json::from_str(&request.body).unwrap();
        let mut accepted = lock(&self.accepted);
        let newest = accepted.last().map(|map| map["metadata"]["resourceVersion"].clone());
        let fits = match &newest {
            None => request.method == "POST",
            Some(newest) => request.method == "PUT" && map["metadata"]["resourceVersion"] == *newest,
        };
        if !fits {
            return status(409);
        }
        map["metadata"]["resourceVersion"] = json!((accepted.len() + 1).to_string());
        accepted.push(map);
        Reply::Json(201, "{}".to_owned())
    }
}

/// A failure as the API server tells it.
pub fn status(code: u16) -> Reply {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code});
    Reply::Json(code, status.to_string())
}
