//! Which clients are gone for good with their machine, and out with them: one shot, for a CronJob.
//!
//! Takes the Kubernetes API (`nodes: get, list`) and one agent, whose token may read nodes and raft (`node:read`,
//! `operator:read`) and, to remove, `operator:write`. Names each agent that failed, whether it goes, and why. Removes only
//! when told to, only so many, and none while a [`Brake`] holds. An error is never "gone": what could not be asked ends it before
//! anything is removed. Never touches a server, and never asks a client. Fails with [`ReapError`].

pub mod judge;
mod look;
mod remove;

use crate::api::consul::{Agent, ApiError};
use crate::api::kube::{Kube, KubeError};
use crate::exit::Code;
use crate::settings::reaping::Reaping;
use crate::time;
use judge::{Brake, Case, Judgement, Verdict, judge};
use remove::{Removal, remove};
use std::time::Duration;
use thiserror::Error;

/// How long one call to the Kubernetes API may take: a page of a large cluster's Nodes is some MB.
pub const CALL: Duration = Duration::from_secs(10);

/// Why nothing, or not all, was done.
#[derive(Debug, Error)]
pub enum ReapError {
    /// Kubernetes does not say which machines there are.
    #[error("could not tell which machines are gone: {0}")]
    Kubernetes(#[source] KubeError),
    /// Consul does not say which clients there are.
    #[error("could not tell which clients are gone: {0}; is CONSUL_HTTP_ADDR an agent's address?")]
    Consul(#[source] ApiError),
    /// Nobody knows who is a server.
    #[error(
        "could not tell which clients are gone: the cluster has no leader, and without one nobody says who is a server"
    )]
    NoLeader,
    /// The token does not let us see.
    #[error(
        "could not tell which clients are gone: the token (CONSUL_HTTP_TOKEN_FILE) needs the policy {policy}{}",
        .cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default()
    )]
    Blind {
        /// What it lacks, in Consul's own words.
        policy: &'static str,
        /// What the agent said, if it said so.
        cause: Option<ApiError>,
    },
    /// The token does not let us remove.
    #[error(
        "could not remove {node}: the token (CONSUL_HTTP_TOKEN_FILE) needs the policy operator = \"write\" ({cause})"
    )]
    Denied {
        /// The client.
        node: String,
        /// What the agent said.
        cause: ApiError,
    },
    /// The picture cannot be right.
    #[error(
        "nobody is removed: {0}; are these Node objects (KUBECONFIG) those of these clients? If so, --force removes; if only some are, give --node-meta"
    )]
    Brake(Brake),
    /// Some were not removed.
    #[error("could not remove {failed} of {of} clients; {first}")]
    Unfinished {
        /// How many were not.
        failed: usize,
        /// How many were tried.
        of: usize,
        /// Why the first one was not.
        first: String,
    },
}

/// Says who goes and who stays, line by line, and removes who goes when told to.
///
/// # Errors
/// [`ReapError`].
pub async fn reap(reaping: &Reaping, kube: &Kube, agent: &Agent, mut say: impl FnMut(&str)) -> Result<(), ReapError> {
    let seen = look::look(kube, agent).await?;
    let judgement = judge(&seen, reaping.meta.as_ref());
    let brake = judgement.brake().filter(|_| !reaping.force);
    let columns = Columns::of(&judgement);
    if !judgement.cases.is_empty() {
        say(&columns.line("CLIENT", "MACHINE", "WHAT"));
    }
    let mut done = Done::default();
    for case in &judgement.cases {
        let what = match case.verdict {
            Verdict::Stays(because) => format!("stays: {because}"),
            Verdict::Goes if brake.is_some() => format!("stays by the brake: {GONE}"),
            Verdict::Goes if done.count() >= reaping.at_most => {
                format!("stays for the next run (--at-most={}): {GONE}", reaping.at_most)
            }
            Verdict::Goes if reaping.yes => done.note(case, remove(kube, agent, case).await?),
            Verdict::Goes => done.pretend(),
        };
        say(&columns.line(&case.node, shown(&case.machine), &what));
    }
    if let Some(brake) = brake {
        return Err(ReapError::Brake(brake));
    }
    let removed = if reaping.yes { "removed" } else { "would be removed; --yes removes them" };
    say(&format!("{} clients name their machine; {} {removed}", judgement.clients, done.removed));
    match done.failures.first() {
        None => Ok(()),
        Some(first) => {
            Err(ReapError::Unfinished { failed: done.failures.len(), of: done.count(), first: first.clone() })
        }
    }
}

/// What one run has done.
#[derive(Default)]
struct Done {
    removed: usize,
    failures: Vec<String>,
}

// === impl Done ===

impl Done {
    /// How many were tried.
    fn count(&self) -> usize {
        self.removed + self.failures.len()
    }

    /// Counts a removal; says what came of it.
    fn note(&mut self, case: &Case, removal: Removal) -> String {
        match removal {
            Removal::Removed(took) => {
                self.removed += 1;
                format!("removed in {}: {GONE}", time::text(took))
            }
            Removal::Back(why) => format!("stays: {why}"),
            Removal::Failed(why) => {
                self.failures.push(format!("{}: {why}", case.node));
                format!("not removed: {why}")
            }
        }
    }

    fn pretend(&mut self) -> String {
        self.removed += 1;
        format!("would be removed: {GONE}")
    }
}

/// Why a client goes.
const GONE: &str = "failed, and its machine has no Node object";

fn shown(machine: &str) -> &str {
    if machine.is_empty() { "-" } else { machine }
}

/// How wide the columns are.
struct Columns {
    node: usize,
    machine: usize,
}

// === impl Columns ===

impl Columns {
    fn of(judgement: &Judgement) -> Self {
        let widest = |text: fn(&Case) -> &str, head: &str| {
            judgement.cases.iter().map(|case| text(case).len()).chain([head.len()]).max().unwrap_or(0)
        };
        Self { node: widest(|case| &case.node, "CLIENT"), machine: widest(|case| shown(&case.machine), "MACHINE") }
    }

    fn line(&self, node: &str, machine: &str, what: &str) -> String {
        format!("{node:0$}  {machine:1$}  {what}", self.node, self.machine)
    }
}

// === impl ReapError ===

impl ReapError {
    /// The exit code.
    pub fn code(&self) -> Code {
        match self {
            Self::Brake(_) => Code::NotNow,
            Self::Kubernetes(_)
            | Self::Consul(_)
            | Self::NoLeader
            | Self::Blind { .. }
            | Self::Denied { .. }
            | Self::Unfinished { .. } => Code::Unavailable,
        }
    }
}
