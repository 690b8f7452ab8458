//! Does a person keep this agent from starting? The volume is mounted meanwhile, so that they can look at it.
//!
//! Takes the annotation `convene.dev/hold` of the own Pod, where the Kubernetes API may be asked, and the file `hold` in convene's
//! folder; waits for as long as either is there. The annotation with the value `false` lets it start in spite of the file, for
//! containers without a shell. An API that does not tell neither begins a hold nor ends one. Looks before anything is decided, and again right before the start when that took a while. Fails as every wait does.

use super::waiting::Waiting;
use crate::api::kube::{Event, HOLD, Kube};
use crate::exit::Failure;
use crate::record::Volume;
use crate::settings::Node;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// An answer that is older than this is asked for again before the start.
const OLD: Duration = Duration::from_secs(1);

/// Looks for a hold.
pub(super) struct Hold {
    /// The API and the namespace.
    kube: Option<(Kube, String)>,
    pod: String,
    volume: Volume,
    /// The last answer of the API.
    annotated: Option<bool>,
    looked: Instant,
}

// === impl Hold ===

impl Hold {
    /// Prepares to look; `kube` is what the survey asks.
    pub(super) fn new(node: &Node, kube: Option<&Kube>, volume: &Volume) -> Self {
        let own = || node.pod.clone().map(|access| Kube::new(access, node.survey.timeout));
        let kube = node.local.owner.namespace.clone().and_then(|place| Some((kube.cloned().or_else(own)?, place)));
        let pod = node.local.owner.pod.clone();
        Self { kube, pod, volume: volume.clone(), annotated: None, looked: Instant::now() }
    }

    /// Waits until nothing holds.
    ///
    /// # Errors
    /// [`Failure`]: `--wait` ran out.
    pub(super) async fn wait(&mut self, waiting: &mut Waiting) -> Result<bool, Failure> {
        let mut held = false;
        while let Some(why) = self.why().await {
            if !held {
                self.volume.note_held(Some(&why));
                waiting.events.tell(Event { reason: "Held", warning: true, message: why.clone() });
                held = true;
            }
            waiting.held(why).await?;
        }
        self.volume.note_held(None);
        if held {
            info!("not held any more: the start goes on");
        }
        Ok(held)
    }

    /// The same right before the start; whether it was held.
    ///
    /// # Errors
    /// [`Failure`]: `--wait` ran out.
    pub(super) async fn wait_again(&mut self, waiting: &mut Waiting) -> Result<bool, Failure> {
        if self.looked.elapsed() < OLD { Ok(false) } else { self.wait(waiting).await }
    }

    /// What holds, and how to go on.
    async fn why(&mut self) -> Option<String> {
        self.looked = Instant::now();
        if let Some((kube, namespace)) = &self.kube {
            match kube.pod(namespace, &self.pod).await {
                Ok(found) => self.annotated = found.and_then(|pod| pod.held),
                Err(error) => tracing::debug!("whether the agent is held cannot be told by the annotation: {error}"),
            }
        }
        let (pod, file) = (&self.pod, self.volume.hold_file());
        match self.annotated {
            Some(true) => Some(format!(
                "held: the annotation {HOLD} of Pod {pod} keeps the agent from starting; to go on: kubectl annotate pod {pod} {HOLD}-"
            )),
            None if file.exists() => {
                let by_api = self.kube.as_ref().map(|_| format!(", or: kubectl annotate pod {pod} {HOLD}=false"));
                let by_api = by_api.unwrap_or_default();
                Some(format!(
                    "held: {} keeps the agent from starting; to go on: remove that file{by_api}",
                    file.display()
                ))
            }
            _ => None,
        }
    }
}
