//! The entrypoint: prepare as `init` does, start CMD, supervise it as PID 1, and stop well.
//!
//! Takes the settings and the signals, gives the exit code. TERM while preparing ends at once with 143. Afterwards TERM
//! begins the stop: its course first, then one TERM to the agent, and KILL when the deadline is over. Every other
//! signal is handed on. A stop that went as planned is 0, although Consul itself ends with 1.

mod election;
mod overlooked;
pub mod pid1;
pub mod rejoin;
mod untried;
pub mod watch;

use crate::api::consul::Agent;
use crate::api::kube::Event;
use crate::events::Events;
use crate::exit::{Code, Failure, chain};
use crate::init::{Prepared, claims, millis, prepare, settings_failure, volume_failure};
use crate::record::lock::Held;
use crate::record::{self, Record, Volume};
use crate::render::How;
use crate::settings::supervision::Supervision;
use crate::settings::{Leave, Local, Node, Role, Stop, Survey, default_config_out};
use crate::stop::course::{Course, Stopper};
use crate::stop::{ENDING, deadline};
use crate::survey::dns::Dns;
use crate::survey::{Memory, Surveyor, own};
use crate::time::{self, SAY_EVERY};
use election::Election;
use nix::sys::signal::Signal;
use overlooked::Overlooked;
use pid1::{Happened, STRAGGLERS, Signals, StartError, Supervisor};
use rejoin::Rejoin;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{info, warn};
use untried::Untried;
use watch::{Watch, Young};

/// How long after a TERM an agent may still answer, which closes its API at once.
const HEARD: Duration = Duration::from_millis(500);
/// How long the agent may take for an answer that it has in memory.
const IN_MEMORY: Duration = Duration::from_millis(300);
/// How long a leave may take to answer whose agent has ended as one that has left.
const ANSWERED: Duration = Duration::from_secs(2);
/// How long a stop may go on whose agent has ended by itself.
const WITHOUT_AGENT: Duration = Duration::from_secs(5);

/// And one whose agent ended as one that has left: a leader to which gossip did not carry the leave takes it out when it sees the
/// agent's end (1.22.6: seen after 15 s), and one that knows a member as leaving only when it reconciles the next time, since serf says
/// nothing of what becomes of such a member (60 s, `ReconcileInterval`).
const RECONCILED: Duration = Duration::from_secs(65);

/// How long Consul has to end once it was told to, unless it leaves by itself. It needs less than a second (1.22.6), but when its raft
/// copies to a server that does not answer it waits for that, 10 s at most or for ever, and its heartbeats go on meanwhile, so that the
/// others take it for their leader still. Nothing on its disk minds a KILL.
const HUNG: Duration = Duration::from_secs(3);

/// And one that has not answered yet, since it drops a TERM that comes before.
const STARTS: Duration = Duration::from_secs(10);

/// How long the leave of a server may take that has no vote: Consul's drain, which a user may lengthen, and what gossip needs.
const LEAVES: Duration = Duration::from_secs(20);

/// How often the known servers are noted once a leader is known.
const NOTE_EVERY: Duration = Duration::from_secs(30);

/// What to run once all is prepared.
#[derive(Debug)]
pub struct Task {
    /// CMD, with what convene adds and takes out.
    pub command: Vec<OsString>,
    /// Replace convene by CMD.
    pub exec: bool,
    /// Whether CMD binds an address itself.
    pub binds: bool,
    /// Whether CMD is Consul, whose end takes no longer than it must.
    pub consul: bool,
    /// Whether the agent left already because its leader does not take it in.
    pub told: bool,
}

/// That the agent is of no use any more as it is.
struct Again {
    why: String,
    /// It leaves the cluster, and joins it at its next start.
    leaves: bool,
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
    unless_stopped(signals, prepare(node, how)).await.map_or_else(|code| Ok(Err(code)), |done| done.map(Ok))
}

/// What comes before the agent's start, or the exit code of a signal that ends it first.
async fn unless_stopped<T>(signals: &mut Signals, before: impl Future<Output = T>) -> Result<T, u8> {
    tokio::pin!(before);
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => {
                    info!(signal = signal.as_str(), "stopped before the agent was started");
                    return Err(pid1::exit_code_of(signal));
                }
                _ => {}
            },
            done = &mut before => return Ok(done),
        }
    }
}

/// Becomes CMD, whose start `convene init` has prepared, as soon as the Pod reaches its own Service, and within a second in any case.
///
/// # Errors
/// [`Failure`]: 73 and 78 of the volume, 75 when `init` was not there before, and 71, 126 or 127 when CMD cannot be started.
pub async fn exec_prepared(mut signals: Signals, local: &Local, command: &[OsString]) -> Result<u8, Failure> {
    let volume = Volume::open(&local.data_dir, false).map_err(|error| volume_failure(&error))?;
    let record = prepared_by_init(&volume, local)?;
    if let Some(ip) = record.advertise.filter(|_| record.stable) {
        let begun = Instant::now();
        let reached = own::reached(ip, local.peer.server);
        match unless_stopped(&mut signals, reached).await {
            Ok(reached) => {
                info!(advertise = %ip, reached, took_ms = millis(begun.elapsed()), "tried this Pod's own Service")
            }
            Err(code) => return Ok(code),
        }
    }
    not_started(&pid1::exec(signals, command))
}

/// What `convene init` wrote for this start.
fn prepared_by_init(volume: &Volume, local: &Local) -> Result<Record, Failure> {
    let record = volume.read().map_err(|error| volume_failure(&error))?.record;
    record.ok_or_else(|| {
        let file = record::path(&local.data_dir);
        let mend = "convene init must run before it, as an init container on the same volume";
        Failure::new(Code::NotNow, format!("there is no {}: {mend}", file.display()))
    })
}

/// Runs CMD to its end; gives the exit code. An agent that is of no use any more is started again: a client's that lost its servers, and
/// a server's that its leader does not take in.
///
/// # Errors
/// [`Failure`]: those of [`prepare`], and 71, 126 or 127 when CMD cannot be started.
pub async fn run(
    mut signals: Signals,
    node: &Node,
    stop: Stop,
    mut task: Task,
    supervision: Supervision,
) -> Result<u8, Failure> {
    let mut node = node.clone();
    loop {
        match run_once(signals, &node, stop.clone(), &task, supervision.clone()).await? {
            Over::Code(code) => return Ok(code),
            Over::Again { signals: again, told } => {
                signals = again;
                task.told |= told;
            }
        }
        // Only a start needs it.
        node.jitter = Duration::ZERO;
    }
}

/// How one life of CMD ended.
enum Over {
    /// With it all ends.
    Code(u8),
    /// It is to have another.
    Again {
        /// For it.
        signals: Signals,
        /// It left because its leader does not take it in.
        told: bool,
    },
}

async fn run_once(
    mut signals: Signals,
    node: &Node,
    stop: Stop,
    task: &Task,
    supervision: Supervision,
) -> Result<Over, Failure> {
    let agent = Agent::own(&node.local.http).map_err(|error| settings_failure(&error))?;
    let how = How { binds: task.binds, supervised: !task.exec, leave: stop.leave, tried_later: false };
    let prepared = match prepare_or_stop(&mut signals, node, how).await? {
        Ok(prepared) => prepared,
        Err(code) => return Ok(Over::Code(code)),
    };
    if task.exec {
        // Our locks end with the exec: from then on the volume is the agent's.
        return not_started(&pid1::exec(signals, &task.command)).map(Over::Code);
    }
    let supervisor = match Supervisor::start(signals, &task.command, supervision) {
        Ok(supervisor) => supervisor,
        Err(error) => return not_started(&error).map(Over::Code),
    };
    info!(pid = supervisor.child().as_raw(), "started the agent");
    let node = &prepared.node.clone();
    let peers = prepared.surveyor.peers().clone();
    let mut local = node.local.clone();
    local.owner = local.owner.or_in(node.survey.namespace.as_ref());
    let mut stopper = Stopper::new(&local, node.role, agent.clone(), peers, prepared.volume.clone(), stop);
    stopper.started = Some(Instant::now());
    supervise(supervisor, node, agent, stopper, prepared, task).await
}

/// Watches beside an agent that somebody else started, until a signal ends it; gives the exit code.
///
/// # Errors
/// [`Failure`]: 73 and 78 of the volume, 64 when TLS cannot be prepared, 75 when `init` was not there before, or when the agent starts
/// again at another address.
pub async fn watch(mut signals: Signals, local: &Local, role: Role, survey: &Survey) -> Result<u8, Failure> {
    let volume = Volume::open(&local.data_dir, false).map_err(|error| volume_failure(&error))?;
    let record = prepared_by_init(&volume, local)?;
    let (mut local, mut survey) = (local.clone(), survey.clone());
    let pod = local.advertise;
    local.own_addresses.extend(record.advertise);
    local.advertise = record.advertise.or(local.advertise);
    survey.stable = record.stable;
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let mut surveyor =
        Surveyor::new(&local, &survey, Dns::new(&survey), survey.kube()).map_err(|error| settings_failure(&error))?;
    surveyor.remember(record.memory());
    info!(role = %role, node = local.node_name, "watching beside the agent");
    let owner = local.owner.clone().or_in(survey.namespace.as_ref());
    let mut events = Events::on(survey.kube().filter(|_| role == Role::Server), &owner);
    let untried = Untried::of(&record, pod, local.peer.server, &agent, &volume);
    let election = Election::new(default_config_out(&local.data_dir));
    let young = Young { overlooked: Overlooked::default(), election };
    let mut beside = Beside::new(&local, &survey, role, agent.clone(), volume, surveyor, young);
    let watching = async {
        // Who does not reach itself is not to have others join it.
        if let Some(untried) = untried
            && let Some(event) = untried.settle().await?
        {
            events.tell(away_from_there(&agent, &local.owner.pod, event).await);
            events.finish().await;
            // What was read from the record is old.
            let why = "the agent starts again at another address, and so does the watch";
            return Err::<Infallible, _>(Failure::new(Code::NotNow, why));
        }
        loop {
            match beside.watch(None).await {
                // Then it ends, and kubelet starts it again.
                Again { why, leaves: true } => events.tell(announce(&agent, &why).await.1),
                // The liveness probe sees the same, and kubelet starts the agent again.
                Again { why, leaves: false } => warn!("{why}: its container must be started again"),
            }
            sleep(SAY_EVERY).await;
        }
    };
    tokio::pin!(watching);
    loop {
        tokio::select! {
            signal = signals.next() => if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
                info!(signal = signal.as_str(), "the watch ends");
                return Ok(0);
            },
            over = &mut watching => match over? {},
        }
    }
}

/// Has an agent leave that is to start at another address; gives the Event, with what that needs when it may not.
async fn away_from_there(agent: &Agent, pod: &str, mut event: Event) -> Event {
    // It ends, whatever else it answers, and kubelet starts it again.
    if let Err(error) = agent.leave(LEAVES).await
        && error.is_denied()
    {
        event.message = format!("{}; it may not leave for that, so kubectl delete pod {pod} ({error})", event.message);
        warn!("{}", event.message);
    }
    event
}

/// What is done beside an agent.
enum Beside {
    Server(Box<Watch>),
    Client(Box<Rejoin>),
}

/// Notes the raft peers but ourselves, and the cluster's ID, for a start or a stop at which nobody tells.
async fn note_servers(agent: &Agent, own: &BTreeSet<IpAddr>, volume: &Volume, surveyor: &mut Surveyor) {
    let Ok(peers) = agent.peers().await else { return };
    let servers: Vec<IpAddr> = peers.iter().map(SocketAddr::ip).filter(|ip| !own.contains(ip)).collect();
    // Anybody may ask, and a token that Consul does not know may not.
    let cluster = agent.without_token().cluster().await.ok();
    let noted = volume.change_record(|record| {
        if !servers.is_empty() {
            record.servers.clone_from(&servers);
        }
        record.cluster = cluster.clone().or(record.cluster.take());
    });
    surveyor.remember(Memory { cluster, servers });
    if let Err(error) = noted {
        warn!("{}", chain(&error));
    }
}

/// A stop under way.
struct Stopping {
    deadline: Instant,
    /// Runs until the agent may be ended.
    course: Option<Pin<Box<dyn Future<Output = Course>>>>,
    /// What went wrong.
    failed: Option<Failure>,
    /// When the agent was told to end.
    ending: Option<Instant>,
    /// When it is taken for hung, if it may be: it must not keep its Pod until the grace period is over.
    hung: Option<Instant>,
    /// It may be starting, and have dropped its signal. One that answered before has not, whatever it answers while it ends.
    may_start: bool,
    /// The deadline was over and the agent was killed.
    killed: bool,
    /// Then the agent is started anew.
    again: bool,
    /// It left because its leader does not take it in.
    told: bool,
}

/// The watch beside an agent; gives who watched, and why the agent is of no use any more.
type Watching = Pin<Box<dyn Future<Output = (Beside, Again)>>>;

/// A leave of a server that its leader overlooks; gives who watched, what came of it, and an Event.
type Leaving = Pin<Box<dyn Future<Output = (Beside, (Gone, Event))>>>;

fn watching_by(mut beside: Beside, waiting: Option<Held>) -> Watching {
    Box::pin(async move {
        let again = beside.watch(waiting).await;
        (beside, again)
    })
}

async fn supervise(
    mut supervisor: Supervisor,
    node: &Node,
    agent: Agent,
    stopper: Stopper,
    prepared: Prepared,
    task: &Task,
) -> Result<Over, Failure> {
    let Prepared { node: _, volume, surveyor, waiting, agent_lock: _agent_lock, mut events } = prepared;
    let (begun, on) = (SystemTime::now(), volume.clone());
    let overlooked = if task.told { Overlooked::told_before() } else { Overlooked::default() };
    let young = Young { overlooked, election: Election::new(node.config_out.clone()) };
    let beside = Beside::new(&node.local, &node.survey, node.role, agent.clone(), volume, surveyor, young);
    let mut watching = Some(watching_by(beside, waiting));
    let mut leaving: Option<Leaving> = None;
    // When a TERM came while it left to join anew.
    let mut for_good: Option<Instant> = None;
    let mut stopping: Option<Stopping> = None;
    // A client leaves at a TERM, and so does a server that was ordered to; another one would abort that.
    let leaves_at_term = node.role == Role::Client || stopper.order == Some(Leave::Signal);
    let code = loop {
        let until = stopping.as_ref().map_or_else(far, Stopping::until);
        let may_kill = stopping.as_ref().is_some_and(|stopping| !stopping.killed);
        let may_repeat = !leaves_at_term
            && stopping.as_ref().is_some_and(|stopping| stopping.ending.is_some() && stopping.may_start);
        tokio::select! {
            biased;
            happened = supervisor.next() => match happened {
                Happened::Ended(code) => break code,
                Happened::Signalled(Signal::SIGTERM) => match &mut stopping {
                    Some(stopping) if stopping.again => {
                        let message = "TERM: the agent ended already, to be started again, and is not";
                        info!("{message}");
                        events.tell(Event { reason: "Stopping", warning: false, message: message.to_owned() });
                        stopping.again = false;
                    }
                    // Another leave beside it would wait for what is done already.
                    None if leaving.is_some() => {
                        info!("TERM: the agent leaves already, to join anew; now it leaves for good");
                        for_good.get_or_insert_with(Instant::now);
                    }
                    None => {
                        watching = None;
                        stopping = Some(begin(stopper.clone(), Instant::now()));
                    }
                    // A second signal would abort Consul's leave.
                    Some(_) => info!("TERM again: the stop is under way already"),
                },
                // Nor may INT or QUIT, which a terminal or a person sends meanwhile.
                Happened::Signalled(signal @ (Signal::SIGINT | Signal::SIGQUIT)) if stopping.is_some() || for_good.is_some() => {
                    info!(signal = signal.as_str(), "not handed on: the stop is under way already");
                }
                Happened::Signalled(signal) => {
                    if matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
                        // It ends, and is not to come back.
                        leaving = None;
                    }
                    supervisor.forward(signal);
                }
            },
            course = over(&mut stopping) => {
                let signal = course.signal;
                let answers = if task.consul && !leaves_at_term { Some(answers(&agent).await) } else { None };
                if let Some(stopping) = &mut stopping {
                    stopping.follow(course, &mut events);
                    if let Some(answers) = answers {
                        stopping.hurry(answers);
                    }
                }
                // The one signal that the agent gets.
                supervisor.forward(signal);
            },
            (beside, Again { why, leaves }) = within(&mut watching) => {
                watching = None;
                if leaves {
                    let agent = agent.clone();
                    leaving = Some(Box::pin(async move { (beside, announce(&agent, &why).await) }));
                } else {
                    warn!("{why}: the agent is ended, and started again");
                    // It is to stay in the cluster, and at TERM it would leave.
                    supervisor.forward(Signal::SIGINT);
                    stopping = Some(Stopping::to_start_again());
                }
            },
            (beside, (gone, event)) = within(&mut leaving) => {
                leaving = None;
                events.tell(event);
                match (gone, for_good) {
                    (Gone::No, None) => watching = Some(watching_by(beside, None)),
                    (Gone::No, Some(term)) => stopping = Some(begin(stopper.clone(), term)),
                    (gone, _) => {
                        supervisor.forward(Signal::SIGINT);
                        stopping = Some(Stopping::of_overlooked(gone, for_good.is_some(), &mut events));
                    }
                }
            },
            () = sleep_until(leave_until(for_good, stopper.grace)), if leaving.is_some() => {
                leaving = None;
                supervisor.forward(Signal::SIGINT);
                stopping = Some(Stopping::of_overlooked(Gone::Unsaid, true, &mut events));
            },
            () = still_answers(&agent), if may_repeat => {
                info!("the agent goes on, since a TERM that comes while it starts is lost: TERM again");
                supervisor.forward(Signal::SIGTERM);
                if let Some(stopping) = &mut stopping {
                    stopping.told_again();
                }
            },
            () = sleep_until(until), if may_kill => if let Some(stopping) = &mut stopping {
                supervisor.forward(stopping.late());
            },
        }
    };
    // `recover` ended it, so that its next life takes peers.json. One that does not take it is not started for it again.
    if stopping.is_none() && for_good.is_none() && on.has_peers_since(begun) {
        info!(code, "the agent was ended for its recovery: it is started again");
        return Ok(Over::Again { signals: supervisor.finish(Instant::now() + STRAGGLERS).await, told: task.told });
    }
    // One that has left ends with 0, and may do so before it answers.
    if let Some(leaving) = leaving.filter(|_| code == 0 || for_good.is_some()) {
        if let Ok((_, (_, event))) = timeout(ANSWERED, leaving).await {
            events.tell(event);
        }
        let gone = if code == 0 { Gone::Left } else { Gone::Unsaid };
        stopping = Some(Stopping::of_overlooked(gone, for_good.is_some(), &mut events));
    }
    finish(supervisor, stopping, code, events).await
}

/// What came of a leave of a server that its leader overlooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// It has left.
    Left,
    /// It ends or hangs, and has left for the others in either case.
    Unsaid,
    /// It may not leave.
    No,
}

/// Has a server that its leader overlooks leave, so that its next start tells of it. Gives what came of it, and an Event.
async fn announce(agent: &Agent, why: &str) -> (Gone, Event) {
    let message = format!("{why}: it leaves, and joins anew");
    warn!("{message}");
    let event = |warning, message| Event { reason: "Overlooked", warning, message };
    match agent.leave(LEAVES).await {
        Err(error) if error.is_denied() => {
            let waits = "so it waits for the leader to reconcile, which takes up to a minute";
            warn!("it may not leave, {waits}: {}", chain(&error));
            (Gone::No, event(true, format!("{why}, and it may not leave to join anew, {waits}: {error}")))
        }
        Ok(()) => (Gone::Left, event(false, message)),
        Err(error) => {
            warn!("of its leave: {}", chain(&error));
            (Gone::Unsaid, event(false, message))
        }
    }
}

/// Begins the stop that was ordered at `begun`.
fn begin(stopper: Stopper, begun: Instant) -> Stopping {
    info!(grace_s = stopper.grace.as_secs(), "TERM: stopping");
    let deadline = deadline(begun, stopper.grace);
    Stopping::new(deadline, Some(Box::pin(stopper.stop(begun))))
}

/// Whether the agent answers from memory.
async fn answers(agent: &Agent) -> bool {
    timeout(IN_MEMORY, agent.leader()).await.is_ok_and(|answer| answer.is_ok())
}

/// Until when a leave may go on after a TERM, and the agent has time to end after it.
fn leave_until(term: Option<Instant>, grace: Duration) -> Instant {
    term.map_or_else(far, |term| deadline(term, grace) - ENDING)
}

/// Ends when the agent answers long after it was told to end. Consul takes a TERM from the moment on when its API begins to
/// answer, and drops one that comes before (1.22.6: "Caught: signal=terminated", and on it goes).
async fn still_answers(agent: &Agent) {
    loop {
        sleep(HEARD).await;
        if agent.leader().await.is_ok() {
            return;
        }
    }
}

/// What comes of something that may be under way; never, when nothing is.
async fn within<T>(going: &mut Option<Pin<Box<dyn Future<Output = T>>>>) -> T {
    match going {
        Some(going) => going.await,
        None => std::future::pending().await,
    }
}

/// The end of the course, for as long as there is one.
async fn over(stopping: &mut Option<Stopping>) -> Course {
    match stopping {
        Some(stopping) => within(&mut stopping.course).await,
        None => std::future::pending().await,
    }
}

// === impl Beside ===

impl Beside {
    fn new(
        local: &Local,
        survey: &Survey,
        role: Role,
        agent: Agent,
        volume: Volume,
        surveyor: Surveyor,
        young: Young,
    ) -> Self {
        match role {
            Role::Server => {
                let claims = claims(local, survey, surveyor.kube());
                Self::Server(Box::new(Watch::new(local, agent, volume, surveyor, claims, young)))
            }
            Role::Client => Self::Client(Box::new(Rejoin::new(local, agent, volume, surveyor))),
        }
    }

    /// For as long as it is polled, or until the agent must be started again.
    async fn watch(&mut self, waiting: Option<Held>) -> Again {
        match self {
            Self::Server(watch) => Again { why: watch.watch(waiting).await, leaves: true },
            Self::Client(rejoin) => Again { why: rejoin.watch(waiting).await, leaves: false },
        }
    }
}

// === impl Stopping ===

impl Stopping {
    fn new(deadline: Instant, course: Option<Pin<Box<dyn Future<Output = Course>>>>) -> Self {
        Self {
            deadline,
            course,
            failed: None,
            ending: None,
            hung: None,
            may_start: true,
            killed: false,
            again: false,
            told: false,
        }
    }

    /// Of an agent that was told to end and is to have another life.
    fn to_start_again() -> Self {
        let now = Instant::now();
        Self { ending: Some(now), again: true, ..Self::new(now + HUNG, None) }
    }

    /// Of one that left because its leader does not take it in: to join anew, unless a TERM came meanwhile.
    fn of_overlooked(gone: Gone, for_good: bool, events: &mut Events) -> Self {
        if for_good {
            let (reason, what) = match gone {
                Gone::Left => ("Left", "it had left already, to join anew, and does not"),
                _ => ("Stopping", "it was leaving already, to join anew, and does not; nobody confirms the leave"),
            };
            events.tell(Event { reason, warning: false, message: format!("TERM: {what}") });
        }
        Self { told: true, again: !for_good, ..Self::to_start_again() }
    }

    /// How long what is done now may take. A course ends in time by itself.
    fn until(&self) -> Instant {
        if self.course.is_some() {
            return self.deadline - ENDING / 2;
        }
        self.hung.map_or(self.deadline, |hung| hung.min(self.deadline))
    }

    /// That time is over: the signal that the agent gets.
    fn late(&mut self) -> Signal {
        if self.course.take().is_some() {
            warn!("the stop took too long: ending the agent without the rest of it");
            self.ending = Some(Instant::now());
            return Signal::SIGTERM;
        }
        let waited = self.ending.map(|ending| ending.elapsed()).unwrap_or_default();
        warn!("the agent has not ended within {} of its signal: killing it", time::text(waited));
        self.killed = true;
        Signal::SIGKILL
    }

    /// Consul ends soon from now on; one that does not answer may be starting, and takes no signal yet.
    fn hurry(&mut self, answers: bool) {
        self.may_start = !answers;
        self.hung = Some(Instant::now() + if answers { HUNG } else { STARTS });
    }

    /// It has answered and was told once more, so that it has its time once more, within that of one that starts.
    fn told_again(&mut self) {
        if let (Some(_), Some(ending)) = (self.hung, self.ending) {
            self.hung = Some((Instant::now() + HUNG).min(ending + STARTS));
            self.may_start = false;
        }
    }

    /// Takes over what came of the course.
    fn follow(&mut self, course: Course, events: &mut Events) {
        self.course = None;
        self.deadline = self.deadline.min(course.deadline);
        self.failed = course.done.err();
        self.ending = Some(Instant::now());
        course.event.into_iter().for_each(|event| events.tell(event));
    }
}

/// The agent has ended: see the course through, then the stragglers, and judge.
async fn finish(
    supervisor: Supervisor,
    stopping: Option<Stopping>,
    code: u8,
    mut events: Events,
) -> Result<Over, Failure> {
    let Some(mut stopping) = stopping else {
        info!(code, "the agent ended by itself");
        supervisor.finish(Instant::now() + STRAGGLERS).await;
        return Ok(Over::Code(code));
    };
    if let Some(course) = stopping.course.take() {
        // What others say of a leave can still be heard, and nothing else is worth a wait.
        let patience = if code == 0 { RECONCILED } else { WITHOUT_AGENT };
        match timeout_at(stopping.deadline.min(Instant::now() + patience), course).await {
            Ok(course) => stopping.follow(course, &mut events),
            Err(_) => {
                let why = "the agent ended by itself before the stop was through";
                events.tell(Event { reason: "NotLeft", warning: true, message: why.to_owned() });
                stopping.failed = Some(Failure::new(Code::Unavailable, why));
            }
        }
    }
    let took_ms = stopping.ending.map(|ending| millis(ending.elapsed()));
    let (signals, ()) = tokio::join!(supervisor.finish(stopping.until()), events.finish());
    info!(code, killed = stopping.killed, took_ms, "the agent ended");
    match stopping.failed {
        Some(failure) => Err(failure),
        None if stopping.again => Ok(Over::Again { signals, told: stopping.told }),
        None if stopping.killed => Ok(Over::Code(code)),
        None => Ok(Over::Code(0)),
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
