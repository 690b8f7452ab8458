//! The entrypoint: prepare as `init` does, start CMD, supervise it as PID 1, and stop well.
//!
//! Takes the settings and the signals, gives the exit code. TERM while preparing ends at once with 143. Afterwards TERM
//! begins the stop: leave first if ordered, then one TERM to the agent, and KILL when the deadline is over. Every other
//! signal is handed on. A stop that went as planned is 0, although Consul itself ends with 1.

pub mod pid1;
pub mod watch;

use crate::api::consul::Agent;
use crate::events::Events;
use crate::exit::{Code, Failure, chain};
use crate::init::{How, Prepared, claims, prepare, settings_failure, volume_failure};
use crate::record::Volume;
use crate::settings::{Leave, Local, Node, Role, Stop, Survey};
use crate::stop::deadline;
use crate::stop::leave::{LeaveError, Leaver, Left, leave_once, told};
use crate::survey::Surveyor;
use crate::survey::dns::Dns;
use nix::sys::signal::Signal;
use pid1::{Happened, STRAGGLERS, Signals, StartError, Supervisor};
use std::ffi::OsString;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};
use watch::Watch;

/// How long an agent takes that is told to end, less in almost every case.
pub const ENDING: Duration = Duration::from_secs(1);

/// What to run once all is prepared.
#[derive(Debug)]
pub struct Task {
    /// CMD, with what convene adds and takes out.
    pub command: Vec<OsString>,
    /// Replace convene by CMD.
    pub exec: bool,
    /// Whether CMD binds an address itself.
    pub binds: bool,
}

/// What a CMD that cannot be started ends in.
///
/// # Errors
/// All but a signal that came first, whose exit code is given.
pub fn not_started(error: &StartError) -> Result<u8, Failure> {
    match error {
        StartError::Stopped { signal } => Ok(pid1::exit_code_of(*signal)),
        other => Err(Failure::from_error(other.code().unwrap_or(Code::Spawn), other)),
    }
}

/// Prepares, unless a signal ends it first.
///
/// # Errors
/// The failures of [`prepare`].
pub async fn prepare_or_stop(signals: &mut Signals, node: &Node, how: How) -> Result<Result<Prepared, u8>, Failure> {
    let preparing = prepare(node, how);
    tokio::pin!(preparing);
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => {
                    info!(signal = signal.as_str(), "stopped before the agent was started");
                    return Ok(Err(pid1::exit_code_of(signal)));
                }
                _ => {}
            },
            done = &mut preparing => return done.map(Ok),
        }
    }
}

/// Runs CMD to its end; gives the exit code.
///
/// # Errors
/// [`Failure`]: those of [`prepare`], and 71, 126 or 127 when CMD cannot be started.
pub async fn run(mut signals: Signals, node: &Node, stop: Stop, task: Task) -> Result<u8, Failure> {
    let agent = Agent::own(&node.local.http).map_err(|error| settings_failure(&error))?;
    let how = How { binds: task.binds, joins_later: !task.exec, leave: stop.leave };
    let prepared = match prepare_or_stop(&mut signals, node, how).await? {
        Ok(prepared) => prepared,
        Err(code) => return Ok(code),
    };
    if task.exec {
        // Our locks end with the exec: from then on the volume is the agent's.
        return not_started(&pid1::exec(signals, &task.command));
    }
    let supervisor = match Supervisor::start(signals, &task.command) {
        Ok(supervisor) => supervisor,
        Err(error) => return not_started(&error),
    };
    info!(pid = supervisor.child().as_raw(), "started the agent");
    let node = &prepared.node.clone();
    let leaver = Leaver {
        agent: agent.clone(),
        peers: prepared.surveyor.peers().clone(),
        node: node.local.node_name.clone(),
        addresses: node.local.own_addresses.iter().copied().collect(),
        role: node.role,
    };
    supervise(supervisor, node, stop, agent, leaver, prepared).await
}

/// Watches beside an agent that somebody else started, until a signal ends it; gives the exit code.
///
/// # Errors
/// [`Failure`]: 73 and 78 of the volume, 64 when TLS cannot be prepared, 75 when `init` was not there before.
pub async fn watch(mut signals: Signals, local: &Local, role: Role, survey: &Survey) -> Result<u8, Failure> {
    let volume = Volume::open(&local.data_dir, false).map_err(|error| volume_failure(&error))?;
    let record = volume.read().map_err(|error| volume_failure(&error))?.record;
    let record = record.ok_or_else(|| {
        let file = local.data_dir.join("convene/record.json");
        let mend = "convene init must run before it, as an init container on the same volume";
        Failure::new(Code::NotNow, format!("there is no {} to watch by: {mend}", file.display()))
    })?;
    let (mut local, mut survey) = (local.clone(), survey.clone());
    local.own_addresses.extend(record.advertise);
    local.advertise = record.advertise.or(local.advertise);
    survey.stable = record.stable;
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let surveyor =
        Surveyor::new(&local, &survey, Dns::new(&survey), survey.kube()).map_err(|error| settings_failure(&error))?;
    info!(role = %role, node = local.node_name, "watching beside the agent");
    let claims = claims(&local, &survey, surveyor.kube());
    let watching = Watch::new(&local, role, agent, volume, surveyor, claims).watch(None);
    tokio::pin!(watching);
    loop {
        tokio::select! {
            signal = signals.next() => if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
                info!(signal = signal.as_str(), "the watch ends");
                return Ok(0);
            },
            () = &mut watching => {},
        }
    }
}

type Leaving = Pin<Box<dyn Future<Output = Result<Left, LeaveError>>>>;

/// A stop under way.
struct Stopping {
    deadline: Instant,
    /// Runs until the leave is over.
    leaving: Option<Leaving>,
    /// What went wrong.
    failed: Option<Failure>,
    /// The deadline was over and the agent was killed.
    killed: bool,
}

async fn supervise(
    mut supervisor: Supervisor,
    node: &Node,
    stop: Stop,
    agent: Agent,
    leaver: Leaver,
    prepared: Prepared,
) -> Result<u8, Failure> {
    let Prepared { node: _, volume, surveyor, waiting, agent_lock: _agent_lock, mut events } = prepared;
    let claims = claims(&node.local, &node.survey, surveyor.kube());
    let watch = Watch::new(&node.local, node.role, agent, volume.clone(), surveyor, claims);
    let mut watching: Pin<Box<dyn Future<Output = ()>>> = Box::pin(watch.watch(waiting));
    let mut stopping: Option<Stopping> = None;
    let code = loop {
        let until = stopping.as_ref().map_or_else(far, |stopping| stopping.deadline);
        let may_kill = stopping.as_ref().is_some_and(|stopping| !stopping.killed);
        tokio::select! {
            biased;
            happened = supervisor.next() => match happened {
                Happened::Ended(code) => break code,
                Happened::Signalled(Signal::SIGTERM) => match &stopping {
                    None => {
                        watching = Box::pin(std::future::pending());
                        stopping = Some(begin(&supervisor, &volume, stop, leaver.clone()));
                    }
                    // A second signal would abort Consul's leave.
                    Some(_) => info!("TERM again: the stop is under way already"),
                },
                // Nor may INT or QUIT, which a terminal or a person sends meanwhile.
                Happened::Signalled(signal @ (Signal::SIGINT | Signal::SIGQUIT)) if stopping.is_some() => {
                    info!(signal = signal.as_str(), "not handed on: the stop is under way already");
                }
                Happened::Signalled(signal) => supervisor.forward(signal),
            },
            result = left(&mut stopping) => {
                // The one signal that the agent gets.
                if let Some(stopping) = &mut stopping {
                    stopping.leaving = None;
                    events.tell(told(&result));
                    note(result, &mut stopping.failed);
                }
                supervisor.forward(Signal::SIGTERM);
            },
            () = &mut watching => {},
            () = sleep_until(until), if may_kill => {
                warn!("the deadline is over: killing the agent");
                supervisor.forward(Signal::SIGKILL);
                if let Some(stopping) = &mut stopping {
                    stopping.killed = true;
                    stopping.leaving = None;
                }
            }
        }
    };
    finish(supervisor, stopping, code, events).await
}

/// Begins the stop: a leave if it was ordered, else the agent's TERM at once.
fn begin(supervisor: &Supervisor, volume: &Volume, stop: Stop, leaver: Leaver) -> Stopping {
    let deadline = deadline(Instant::now(), stop.grace);
    let always = stop.leave == Some(Leave::Always);
    info!(leave = if always { "always" } else { "never" }, grace_s = stop.grace.as_secs(), "TERM: stopping");
    if !always {
        supervisor.forward(Signal::SIGTERM);
        return Stopping { deadline, leaving: None, failed: None, killed: false };
    }
    // What the leave may take is less than what there is, since the agent must be ended after it.
    let until = deadline - ENDING;
    let volume = volume.clone();
    let leaving: Leaving = Box::pin(async move { leave_once(&volume, leaver, until).await });
    Stopping { deadline, leaving: Some(leaving), failed: None, killed: false }
}

/// The end of the leave, for as long as there is one.
async fn left(stopping: &mut Option<Stopping>) -> Result<Left, LeaveError> {
    match stopping.as_mut().and_then(|stopping| stopping.leaving.as_mut()) {
        Some(leaving) => leaving.await,
        None => std::future::pending().await,
    }
}

fn note(result: Result<Left, LeaveError>, failed: &mut Option<Failure>) {
    if let Err(error) = result {
        error!("{}; stopping without", chain(&error));
        *failed = Some(Failure::from_error(Code::Unavailable, &error));
    }
}

/// The agent has ended: see the leave through, then the stragglers, and judge.
async fn finish(
    supervisor: Supervisor,
    stopping: Option<Stopping>,
    code: u8,
    mut events: Events,
) -> Result<u8, Failure> {
    let Some(mut stopping) = stopping else {
        info!(code, "the agent ended by itself");
        supervisor.finish(Instant::now() + STRAGGLERS).await;
        return Ok(code);
    };
    if let Some(leaving) = stopping.leaving.take() {
        let result = leaving.await;
        events.tell(told(&result));
        note(result, &mut stopping.failed);
    }
    tokio::join!(supervisor.finish(stopping.deadline), events.finish());
    info!(code, killed = stopping.killed, "the agent ended");
    match stopping.failed {
        Some(failure) => Err(failure),
        None if stopping.killed => Ok(code),
        None => Ok(0),
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
