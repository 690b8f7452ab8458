//! What a person should know of, as Events on our Pod: `kubectl describe pod` shows them.
//!
//! Takes one sentence at a time, writes it in the background, so that no decision waits for the Kubernetes API. Without access
//! to it there are no Events, and that is said once, as a refusal or a failure is. Never the only place that tells something:
//! the log has it all.

use crate::api::kube::{Event, Kube, KubeError};
use crate::settings::Owner;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::warn;

/// How often the same wait is told again: Events are kept for an hour.
const AGAIN: Duration = Duration::from_secs(600);
/// How soon another wait is told.
const SOON: Duration = Duration::from_secs(30);
/// What the end of a process waits for its last Event.
const LAST: Duration = Duration::from_secs(2);

/// Writes Events on our Pod.
#[derive(Debug, Default)]
pub struct Events {
    pod: Option<Arc<OwnPod>>,
    writing: JoinSet<()>,
    /// The wait that was told last.
    waited: Option<(String, Instant)>,
}

#[derive(Debug)]
struct OwnPod {
    kube: Kube,
    namespace: String,
    name: String,
    uid: OnceCell<String>,
    complained: AtomicBool,
}

// === impl Events ===

impl Events {
    /// Events on the owner's Pod; without a way to the API there are none.
    pub fn on(kube: Option<Kube>, owner: &Owner) -> Self {
        let pod = kube.zip(owner.namespace.clone()).map(|(kube, namespace)| {
            let (uid, complained) = (OnceCell::new(), AtomicBool::new(false));
            Arc::new(OwnPod { kube, namespace, name: owner.pod.clone(), uid, complained })
        });
        Self { pod, ..Self::default() }
    }

    /// Tells something in the background.
    pub fn tell(&mut self, event: Event) {
        // What is over is forgotten.
        while self.writing.try_join_next().is_some() {}
        if let Some(pod) = self.pod.clone() {
            self.writing.spawn(async move { pod.write(event).await });
        }
    }

    /// Tells what is waited for, when that is news.
    pub fn tell_wait(&mut self, line: &str) {
        let news = match &self.waited {
            None => true,
            Some((old, at)) => at.elapsed() >= if old == line { AGAIN } else { SOON },
        };
        if news {
            self.waited = Some((line.to_owned(), Instant::now()));
            self.tell(Event { reason: "Waiting", warning: true, message: format!("waiting: {line}") });
        }
    }

    /// Lets what was told be written, for a moment.
    pub async fn finish(mut self) {
        let all = async { while self.writing.join_next().await.is_some() {} };
        let _ = timeout(LAST, all).await;
    }
}

// === impl OwnPod ===

impl OwnPod {
    async fn write(&self, event: Event) {
        if let Err(error) = self.try_write(&event).await
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            warn!("no Event was written: {error}");
        }
    }

    async fn try_write(&self, event: &Event) -> Result<(), KubeError> {
        let uid = self.uid.get_or_try_init(|| self.own_uid()).await?;
        self.kube.event(&self.namespace, &self.name, uid, event).await
    }

    /// `kubectl describe` looks for the UID too.
    async fn own_uid(&self) -> Result<String, KubeError> {
        let pod = self.kube.pod(&self.namespace, &self.name).await?;
        Ok(pod.map(|pod| pod.uid).unwrap_or_default())
    }
}
