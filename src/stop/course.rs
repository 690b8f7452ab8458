//! A stop, from the order to it up to the moment at which the agent may be ended.
//!
//! Takes the own agent, the Kubernetes API and the volume, gives a [`Course`]: what was done and by when the rest must be. Asks
//! for the cause, then either leaves behind the gates, or waits for who is away and hands leadership over. One stop at a time
//! on a volume: a hook and a supervisor do it one after the other. Never signals the agent.

use super::cause::{Action, Cause, Facts, Known};
use super::guard::Us;
use super::handover::{HandedOver, hand_over};
use super::lag::Lag;
use super::leave::{LeaveError, Leaver, leave, leave_gossip, stopping};
use super::look::{CALL, Looker};
use super::steps::{Steps, Wait};
use super::turn::Turn;
use super::voters::{Asker, View};
use super::{AFTER_HOOK, ENDING, RESERVE, gates, guard};
use crate::api::consul::{Agent, Peers};
use crate::api::kube::{Event, Kube, Timestamp};
use crate::exit::{Code, Failure, chain};
use crate::record::Volume;
use crate::settings::{Leave, Local, Role, Stop};
use crate::time;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

/// How often a wait looks again.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// What kubelet, a machine that shuts down or an eviction gives without saying so.
const CONTAINER: Duration = Duration::from_secs(10);
/// With less than this a leave, or a wait for another server, does not fit.
const ENOUGH: Duration = Duration::from_secs(20);

/// Who stops.
#[derive(Debug, Clone)]
pub struct Stopper {
    /// Asks how the others are.
    pub asker: Asker,
    /// Leaves.
    pub leaver: Leaver,
    /// Asks for the cause.
    pub looker: Looker,
    /// The volume.
    pub volume: Volume,
    /// Where our server port is reached, if that address outlives the Pod.
    pub stable: Option<SocketAddr>,
    /// What was ordered by a flag.
    pub order: Option<Leave>,
    /// The Pod's grace period.
    pub grace: Duration,
    /// When the agent was started that is supervised; `None` for a hook.
    pub started: Option<Instant>,
}

/// What came of it.
#[derive(Debug)]
pub struct Course {
    /// When all must be over, the agent's end too.
    pub deadline: Instant,
    /// What was done, or why it failed; the agent is to be ended in either case.
    pub done: Result<(), Failure>,
    /// For a person; `None`: another convene did this stop, and told it.
    pub event: Option<Event>,
    /// What the agent is ended by. A client leaves at a TERM by itself, and stays at an INT (as it is rendered for `run`).
    pub signal: Signal,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Left the cluster.
    Left,
    /// Stops without a leave.
    Stayed,
    /// A client whose agent leaves by itself.
    LeavesItself,
    /// A hook or a supervisor did it already.
    Already,
}

// === impl Stopper ===

impl Stopper {
    /// Who stops, with what is needed for it. The Kubernetes API gets less time at a stop than at a start.
    pub fn new(local: &Local, role: Role, agent: Agent, peers: Peers, volume: Volume, stop: Stop) -> Self {
        // Of a short grace period something must be left.
        let call = CALL.min(stop.grace.saturating_sub(RESERVE + ENDING));
        let kube = stop.kubernetes.map(|access| Kube::new(access, call)).zip(local.owner.namespace.clone());
        let record = volume.read().ok().and_then(|holding| holding.record);
        let addresses: BTreeSet<IpAddr> =
            local.own_addresses.iter().copied().chain(record.as_ref().and_then(|record| record.advertise)).collect();
        Self {
            asker: Asker::new(agent.clone(), peers.clone(), kube.clone(), local.seat.clone(), addresses.clone()),
            leaver: Leaver { agent, peers, node: local.node_name.clone(), addresses, role },
            looker: Looker::new(kube, local.owner.clone(), local.pod_uid.clone(), local.seat.clone()),
            volume,
            stable: record
                .filter(|record| record.stable)
                .and_then(|record| record.advertise)
                .map(|address| SocketAddr::new(address, local.peer.server)),
            order: stop.leave,
            grace: stop.grace,
            started: None,
        }
    }

    /// Does all that comes before the agent's end. `begun` is when the TERM came, or the hook was started.
    pub async fn stop(mut self, begun: Instant) -> Course {
        let mut steps = Steps::default();
        let mut deadline = super::deadline(begun, self.grace);
        let done = self.go(begun, &mut deadline, &mut steps).await;
        if let Err(error) = &done {
            steps.note(chain(error));
        }
        if done.as_ref().is_ok_and(|done| *done == Done::Already) {
            info!("this stop was done already, by the hook or the supervisor beside this one");
            return Course { deadline, done: Ok(()), event: None, signal: Signal::SIGTERM };
        }
        let message = steps.tell(begun.elapsed());
        match &done {
            Ok(_) => info!(cause = steps.word(), took_ms = crate::init::millis(begun.elapsed()), "{message}"),
            Err(_) => warn!(cause = steps.word(), took_ms = crate::init::millis(begun.elapsed()), "{message}"),
        }
        let reason = match &done {
            Ok(Done::Left) => "Left",
            Ok(_) | Err(LeaveError::Lock(_) | LeaveError::Held { .. }) => "Stopping",
            Err(_) => "NotLeft",
        };
        let event = Some(Event { reason, warning: done.is_err(), message });
        let stays = self.leaver.role == Role::Client && matches!(done, Ok(Done::Stayed));
        let signal = if stays { Signal::SIGINT } else { Signal::SIGTERM };
        Course {
            deadline,
            signal,
            done: done.map(drop).map_err(|error| Failure::from_error(error.code(), &error)),
            event,
        }
    }

    async fn go(&mut self, begun: Instant, deadline: &mut Instant, steps: &mut Steps) -> Result<Done, LeaveError> {
        let _stopping = stopping(&self.volume, *deadline - ENDING).await?;
        let this = self.since(begun).elapsed();
        if self.volume.stopped_ago().is_some_and(|ago| ago < this) {
            return Ok(Done::Already);
        }
        let facts = self.looker.look(&self.volume, self.order).await;
        let known = facts.cause();
        *deadline = self.deadline(begun, &facts, &known);
        steps.cause = Some(known.clone());
        info!(cause = %known.cause, by_s = deadline.saturating_duration_since(Instant::now()).as_secs(), "stopping: {}", known.how);
        self.say_when_short(begun, *deadline, &known);
        let done = self.act(begun, *deadline, &facts, &known, steps).await;
        // Whoever else stops here would find the time used up, or nothing to do; after another failure it may try.
        if matches!(done, Ok(_) | Err(LeaveError::Shut { .. } | LeaveError::Unconfirmed { .. }))
            && let Err(error) = self.volume.note_stop()
        {
            warn!("{}", chain(&error));
        }
        done
    }

    async fn act(
        &mut self,
        begun: Instant,
        deadline: Instant,
        facts: &Facts,
        known: &Known,
        steps: &mut Steps,
    ) -> Result<Done, LeaveError> {
        if self.leaver.role == Role::Client {
            return self.act_as_client(deadline, known, steps).await;
        }
        match known.cause.action(self.stable.is_some()) {
            Action::Leave { gated: false } => self.leave(deadline, steps).await,
            Action::Leave { gated: true } => self.leave_gated(begun, deadline, facts, known, steps).await,
            Action::AtOnce | Action::Stay { returns: false } => Ok(Done::Stayed),
            Action::Stay { returns: true } => {
                let first = half(begun, deadline);
                if timeout_at(deadline - ENDING, Turn::new(self, steps, first, deadline).wait()).await.is_err() {
                    steps.note("there was no time for more".to_owned());
                }
                Ok(Done::Stayed)
            }
        }
    }

    async fn act_as_client(&self, deadline: Instant, known: &Known, steps: &mut Steps) -> Result<Done, LeaveError> {
        match known.cause.action_of_a_client() {
            Action::Leave { .. } => {}
            Action::AtOnce => return Ok(Done::LeavesItself),
            Action::Stay { .. } => return Ok(Done::Stayed),
        }
        match self.leave(deadline, steps).await {
            // Without a token nobody may ask for it, and Consul's own course at TERM asks nobody.
            Err(error @ (LeaveError::Denied { .. } | LeaveError::UnknownToken { .. } | LeaveError::NoAgent(_)))
                if !matches!(known.cause, Cause::Order(_)) =>
            {
                steps.note(format!("{}; the agent leaves by itself at TERM, which nobody confirms", chain(&error)));
                Ok(Done::LeavesItself)
            }
            done => done,
        }
    }

    /// A stop that was done after this moment is the one that begins now.
    fn since(&self, begun: Instant) -> Instant {
        match self.started {
            // A hook comes right before the TERM. Before our agent's start it was another life's.
            Some(started) => begun.checked_sub(AFTER_HOOK).map_or(started, |before| before.max(started)),
            None => begun,
        }
    }

    /// The end of the grace period, whichever way it is known first.
    fn deadline(&self, begun: Instant, facts: &Facts, known: &Known) -> Instant {
        let mut grace = facts.grace.unwrap_or(self.grace).min(self.grace);
        if known.cause == Cause::Container {
            grace = grace.min(CONTAINER);
        }
        if let Some(by) = facts.deleted_by() {
            match Duration::try_from(by.duration_since(Timestamp::now())) {
                Ok(left) => grace = grace.min(begun.elapsed() + left),
                // Kubelet would have killed us by then.
                Err(_) => warn!(
                    "our Pod was to be gone by {by}, which is over: the API server's clock and this machine's differ, so the time \
                     counts from the start of this stop"
                ),
            }
        }
        super::deadline(begun, grace)
    }

    fn say_when_short(&self, begun: Instant, deadline: Instant, known: &Known) {
        let grace = deadline.saturating_duration_since(begun) + RESERVE;
        if grace < ENOUGH && known.cause != Cause::Container {
            warn!(
                "a grace period of {} is too short for a leave or a wait, and only what fits is done: give terminationGracePeriodSeconds: 120, \
                 and --grace-period=120s",
                time::text(grace)
            );
        }
    }

    /// Hands leadership over, if it is ours, and notes what came of it.
    pub(super) async fn hand_over(&self, view: &View, deadline: Instant, steps: &mut Steps) {
        if !view.we_lead() {
            return;
        }
        let begun = Instant::now();
        let handing = hand_over(&self.asker, view, self.looker.revision());
        let no_time = |_| HandedOver::Not("there was no time left for it".to_owned());
        match timeout_at(deadline - ENDING, handing).await.unwrap_or_else(no_time) {
            HandedOver::To(name) => {
                steps.note(format!("handed leadership over to {name} in {}", time::text(begun.elapsed())));
            }
            HandedOver::Not(why) => steps.note(format!("did not hand leadership over: {why}")),
        }
    }

    /// Leaves as soon as the gates are open; stops without when they stay shut.
    async fn leave_gated(
        &mut self,
        begun: Instant,
        deadline: Instant,
        facts: &Facts,
        known: &Known,
        steps: &mut Steps,
    ) -> Result<Done, LeaveError> {
        let returns = known.cause == Cause::Restart;
        let mut wait: Option<Wait> = None;
        let mut seen = guard::Seen::default();
        let mut looked: Option<Instant> = None;
        let mut lag = Lag::default();
        let mut line = "the own agent does not answer".to_owned();
        loop {
            line = match timeout_at(deadline - ENDING, self.asker.see()).await {
                // What was seen last counts.
                Err(_) => line,
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(view)) if returns && view.we_vote() && view.others.is_empty() => {
                    steps.note("did not leave, since nobody else votes".to_owned());
                    return Ok(Done::Stayed);
                }
                Ok(Ok(view)) => {
                    let waited = looked.get_or_insert_with(Instant::now).elapsed();
                    seen.look(&view, self.us(), waited);
                    // One that comes back looks that nobody else is away, for as long as at any other restart. At another
                    // address a majority needs each other's votes to come back.
                    let waits = || guard::waits_for(&view, self.us(), &seen, waited);
                    let together = returns && guard::majority_goes(&view);
                    let may_wait = returns && !together && Instant::now() < half(begun, deadline);
                    let returning = if may_wait { waits() } else { None };
                    let higher = self.higher(&view, facts, begun).await;
                    let mut shut = gates::shut(&view, &higher).or(returning);
                    if shut.is_none() && may_wait {
                        shut = lag.waits_for(&self.asker, &view).await;
                    }
                    let Some(line) = shut else {
                        wait.into_iter().for_each(|wait| steps.note(wait.tell()));
                        if together {
                            return self.leave_gossip(deadline, steps).await;
                        }
                        self.hand_over(&view, deadline, steps).await;
                        return self.leave(deadline, steps).await;
                    };
                    line
                }
            };
            if Instant::now() >= deadline - ENDING {
                return Err(LeaveError::Shut { gate: line, waited: begun.elapsed() });
            }
            wait.get_or_insert_with(Wait::begin).say("the leave waits", line.clone());
            sleep(LOOK).await;
        }
    }

    /// The Pods of higher ordinals that go for good too, and run.
    async fn higher(&self, view: &View, facts: &Facts, begun: Instant) -> Vec<String> {
        let Some(seat) = &self.asker.seat else { return Vec::new() };
        let mut running = Vec::new();
        for voter in &view.others {
            let (Some(ordinal), Some(pod)) = (voter.ordinal, &voter.pod) else { continue };
            // What runs on a machine that is lost, the Kubernetes API does not know.
            let dead = !voter.is_healthy() && begun.elapsed() >= guard::DEAD;
            // Whom nobody tells about may run.
            if ordinal > seat.ordinal
                && facts.set.drops(ordinal)
                && !dead
                && self.asker.runs(ordinal).await.unwrap_or(true)
            {
                running.push(pod.clone());
            }
        }
        running
    }

    async fn leave(&self, deadline: Instant, steps: &mut Steps) -> Result<Done, LeaveError> {
        // What the leave may take is less than what there is, since the agent must be ended after it.
        let left = match leave(&self.volume, self.leaver.clone(), deadline - ENDING).await {
            Err(error @ LeaveError::Alone) => {
                steps.note(error.to_string());
                return Ok(Done::Stayed);
            }
            left => left?,
        };
        steps.note(format!("left in {}: {}", time::text(left.took), left.confirmed));
        Ok(Done::Left)
    }

    /// Of servers that all leave at once the last one would lead on, forgotten by gossip, until it ends: those that are back by
    /// then join it, and have no leader when it does. So they keep their data, and only free their names.
    async fn leave_gossip(&self, deadline: Instant, steps: &mut Steps) -> Result<Done, LeaveError> {
        match timeout_at(deadline - ENDING, leave_gossip(&self.leaver)).await {
            Ok(left) => {
                left?;
                steps.note("left gossip and keeps its data, since a majority stops at once".to_owned());
            }
            Err(_) => steps.note("there was no time for more".to_owned()),
        }
        Ok(Done::Stayed)
    }

    /// As the guard knows us.
    pub(super) fn us(&self) -> Us {
        Us { ordinal: self.asker.seat.as_ref().map(|seat| seat.ordinal), withdrawn: false }
    }
}

/// Half of the grace period: the first of those that wait for a server waits no longer for it.
fn half(begun: Instant, deadline: Instant) -> Instant {
    begun + (deadline.saturating_duration_since(begun) + RESERVE) / 2
}

impl LeaveError {
    /// The exit code that tells this.
    pub fn code(&self) -> Code {
        match self {
            Self::Held { .. } => Code::NotNow,
            Self::Lock(error) => error.code(),
            Self::NoAddress => Code::Usage,
            _ => Code::Unavailable,
        }
    }
}
