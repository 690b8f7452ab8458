//! Arguments in, exit code out: the only place that ends the process.
//!
//! Blocks the signals before anything else, reads the settings, calls one command, and tells a failure once: on stderr, and
//! in the termination log where there is one, so that `kubectl describe pod` shows it.

use convene::api::consul::{Agent, Peers};
use convene::api::kube::Kube;
use convene::check::{WHATS, What, check};
use convene::cli::{
    self, CheckArgs, Cli, Command, CommonArgs, DiscoverArgs, DoctorArgs, InitArgs, InstallArgs, LeaveArgs, Places,
    ReapArgs, RecoverArgs, RunArgs, Stopped, WatchArgs,
};
use convene::events::Events;
use convene::exit::{Code, Failure};
use convene::formed::note_once;
use convene::init::{claims, settings_failure, volume_failure};
use convene::reap::{self, reap};
use convene::recover::{World, recover, remove::remove};
use convene::render::How;
use convene::run::pid1::{self, Signals};
use convene::run::{Task, exec_prepared, not_started, prepare_or_stop, run, watch};
use convene::settings::command::{AgentCommand, TAKEN_OUT};
use convene::settings::doctoring::Doctoring;
use convene::settings::gossip::GossipKey;
use convene::settings::read::{Env, Reader, SettingsError};
use convene::settings::reaping::Reaping;
use convene::settings::recovering::Recovery;
use convene::settings::supervision::{Mode, Supervision};
use convene::settings::{
    DEFAULT_TERMINATION_LOG, Leave, Local, Node, Role, Speech, Stop, Survey, config_out, kubernetes, needed_kubernetes,
    unknown_variables,
};
use convene::stop::course::Stopper;
use convene::stop::look::CALL;
use convene::survey::Surveyor;
use convene::survey::dns::Dns;
use convene::{discover, doctor, install, log, record, time};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{error, info, warn};

fn main() {
    let code = match Signals::block() {
        Ok(signals) => begin(signals),
        Err(error) => tell(&Failure::from_error(Code::Spawn, &error), Path::new(DEFAULT_TERMINATION_LOG), false),
    };
    exit(i32::from(code));
}

fn begin(signals: Signals) -> u8 {
    let env = Env::of_process();
    // Until the settings are read, the default place is where last words go.
    let early = PathBuf::from(env.get("CONVENE_TERMINATION_LOG").unwrap_or(DEFAULT_TERMINATION_LOG));
    let (cli, places) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(Stopped::Shown(text)) => {
            print(&text);
            return 0;
        }
        Err(Stopped::Wrong(failure)) => return tell(&failure, &early, false),
    };
    let reader = Reader { places: &places, env: &env };
    let speech = match Speech::read(reader, common(&cli)) {
        Ok(speech) => speech,
        Err(error) => return tell(&usage(&error), &early, false),
    };
    log::start(speech.format, speech.level);
    for warning in unknown_variables(reader) {
        warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tell(&Failure::from_error(Code::Spawn, &error), &speech.termination_log, true),
    };
    let done = runtime.block_on(act(signals, cli, &places, &env));
    // What still runs in the background ends with the process.
    runtime.shutdown_background();
    match done {
        Ok(code) => code,
        Err(failure) => tell(&failure, &speech.termination_log, true),
    }
}

fn common(cli: &Cli) -> &CommonArgs {
    match &cli.command {
        Command::Init(args) => &args.common,
        Command::Run(args) => &args.common,
        Command::Watch(args) => &args.common,
        Command::Leave(args) => &args.common,
        Command::Check(args) => &args.common,
        Command::Discover(args) => &args.common,
        Command::Reap(args) => &args.common,
        Command::Doctor(args) => &args.common,
        Command::Recover(args) => &args.common,
        Command::Install(args) => &args.common,
    }
}

async fn act(signals: Signals, cli: Cli, places: &Places, env: &Env) -> Result<u8, Failure> {
    let reader = Reader { places, env };
    // Boxed are those that supervise nobody: the largest of them would lie on the stack of `run` for good.
    match cli.command {
        Command::Init(args) => init_command(signals, reader, &args).await,
        Command::Run(args) => run_command(signals, reader, args).await,
        Command::Watch(args) => watch_command(signals, reader, &args).await,
        Command::Leave(args) => as_any_program(signals, Box::pin(leave_command(reader, &args))).await,
        Command::Check(args) => as_any_program(signals, Box::pin(check_command(reader, &args))).await,
        Command::Discover(args) => as_any_program(signals, Box::pin(discover_command(reader, &args))).await,
        Command::Reap(args) => as_any_program(signals, Box::pin(reap_command(reader, &args))).await,
        Command::Doctor(args) => as_any_program(signals, Box::pin(doctor_command(reader, &args))).await,
        Command::Recover(args) => as_any_program(signals, Box::pin(recover_command(reader, &args))).await,
        Command::Install(args) => as_any_program(signals, Box::pin(install_command(&args))).await,
    }
}

/// A command that has nothing to lose: a signal ends it as it ends any program.
async fn as_any_program(signals: Signals, command: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    signals.restore();
    command.await
}

async fn install_command(args: &InstallArgs) -> Result<u8, Failure> {
    installed(Path::new(&args.dir))?;
    Ok(0)
}

fn installed(folder: &Path) -> Result<(), Failure> {
    let target = install::install(folder)?;
    info!(file = %target.display(), "installed");
    Ok(())
}

async fn init_command(mut signals: Signals, reader: Reader<'_>, args: &InitArgs) -> Result<u8, Failure> {
    let mut node = Node::read(reader, &args.common, &args.survey, &args.node, None).map_err(|error| usage(&error))?;
    if let Some(file) = reader.text(&args.gossip_key_file) {
        let key = GossipKey::in_file(&reader.places.of("gossip_key_file"), file).map_err(|error| usage(&error))?;
        node.gossip_key = Some(key);
    }
    if let Some(folder) = reader.text(&args.install) {
        installed(Path::new(folder))?;
    }
    let leave = Leave::read(reader, &args.leave).map_err(|error| usage(&error))?;
    let hairpin = reader.choice("hairpin", &args.hairpin, &[("before", false), ("beside", true)]);
    let tried_later = hairpin.map_err(|error| usage(&error))?.unwrap_or(false);
    let how = How { binds: false, supervised: false, leave, tried_later };
    match prepare_or_stop(&mut signals, &node, how).await? {
        Ok(prepared) => prepared.events.finish().await,
        Err(code) => return Ok(code),
    }
    Ok(0)
}

async fn run_command(signals: Signals, reader: Reader<'_>, args: RunArgs) -> Result<u8, Failure> {
    let mode = mode(reader, &args)?;
    if args.command.is_empty() {
        return Err(Failure::new(Code::Usage, "no CMD was given: convene run [--exec|--plain] -- CMD…"));
    }
    let prepared = reader.boolean("prepared", &args.prepared).map_err(|error| usage(&error))?;
    let supervision = Supervision::read(reader, &args.supervise, mode).map_err(|error| usage(&error))?;
    if let Some(signal) = supervision.parent_death {
        pid1::signal_at_parents_end(signal);
    }
    if prepared {
        return prepared_command(signals, reader, &args, mode).await;
    }
    if mode == Mode::Plain {
        let grace = Stop::read(reader, &args.stop).map_err(|error| usage(&error))?.grace;
        let ended = pid1::plain(signals, &args.command, grace, supervision).await;
        return ended.or_else(|error| not_started(&error));
    }
    let stop = Stop::read(reader, &args.stop).map_err(|error| usage(&error))?;
    let mut command = agent_command(&args)?;
    // A CMD that names the rendered file itself would feed us what we wrote the last time.
    let rendered = config_out(reader, &args.common, &args.node, command.as_ref()).map_err(|error| usage(&error))?;
    if let Some(command) = &mut command {
        command.forget(&rendered);
    }
    let node = Node::read(reader, &args.common, &args.survey, &args.node, command.as_ref());
    let node = node.map_err(|error| usage(&error))?;
    let task = task(&node, args.command, command.as_ref(), mode == Mode::Exec)?;
    run(signals, &node, stop, task, supervision).await
}

async fn prepared_command(signals: Signals, reader: Reader<'_>, args: &RunArgs, mode: Mode) -> Result<u8, Failure> {
    if mode != Mode::Exec {
        let message =
            "--prepared needs --exec: what init has prepared is started, and a preStop hook does the stopping";
        return Err(Failure::new(Code::Usage, message));
    }
    let command = agent_command(args)?;
    let local = Local::read(reader, &args.common, command.as_ref()).map_err(|error| usage(&error))?;
    exec_prepared(signals, &local, &args.command).await
}

/// CMD, where it is a Consul agent that convene knows.
fn agent_command(args: &RunArgs) -> Result<Option<AgentCommand>, Failure> {
    let command = AgentCommand::read(args.command.clone(), |name| std::env::var_os(name));
    command.map_err(|error| Failure::from_error(Code::Usage, &error))
}

fn mode(reader: Reader<'_>, args: &RunArgs) -> Result<Mode, Failure> {
    let given = |id, value| reader.boolean(id, value).map_err(|error| usage(&error));
    match (given("plain", &args.plain)?, given("exec", &args.exec)?) {
        (true, true) => Err(Failure::new(
            Code::Usage,
            "--plain and --exec contradict each other: --plain supervises CMD, --exec becomes it; give one",
        )),
        (true, false) => Ok(Mode::Plain),
        (false, true) => Ok(Mode::Exec),
        (false, false) => Ok(Mode::Agent),
    }
}

/// CMD with what convene adds and takes out, unless it contradicts what convene must do.
fn task(node: &Node, words: Vec<OsString>, command: Option<&AgentCommand>, exec: bool) -> Result<Task, Failure> {
    let Some(command) = command else {
        warn!(file = %node.config_out.display(), "CMD is not a Consul agent that convene knows: it must read the rendered file itself");
        return Ok(Task { command: words, exec, binds: true, consul: false, told: false });
    };
    for warning in command.warnings() {
        warn!("{warning}");
    }
    // Only a CMD that gives one is compared with the volume's.
    let node_id = command.facts().node_id.as_ref().and_then(|_| holding(&node.local)?.node_id).map(|id| id.to_string());
    let contradictions = command.contradictions(&node.wanted(node_id.as_deref()));
    if !contradictions.is_empty() {
        let lines: Vec<String> = contradictions.iter().map(ToString::to_string).collect();
        return Err(usage(&SettingsError::Command(format!("CMD cannot stay as it is: {}", lines.join("; ")))));
    }
    let words = command.without(&TAKEN_OUT, &node.config_out);
    Ok(Task { command: words, exec, binds: command.facts().bind_addr.is_some(), consul: true, told: false })
}

async fn watch_command(signals: Signals, reader: Reader<'_>, args: &WatchArgs) -> Result<u8, Failure> {
    let local = Local::read(reader, &args.common, None).map_err(|error| usage(&error))?;
    let role = local.role.unwrap_or(Role::Server);
    let survey = Survey::read(reader, &args.survey, &local, role, None).map_err(|error| usage(&error))?;
    watch(signals, &local, role, &survey).await
}

async fn leave_command(reader: Reader<'_>, args: &LeaveArgs) -> Result<u8, Failure> {
    let begun = Instant::now();
    let local = Local::read(reader, &args.common, None).map_err(|error| usage(&error))?;
    let stop = Stop::read(reader, &args.stop).map_err(|error| usage(&error))?;
    let volume = record::Volume::open(&local.data_dir, false).map_err(|error| volume_failure(&error))?;
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let peers = Peers::new(&local).map_err(|error| settings_failure(&error))?;
    let role = local.role.unwrap_or(Role::Server);
    let kube = stop.kubernetes.clone().map(|access| Kube::new(access, CALL));
    note_once(&local, &agent, kube.clone(), CALL).await;
    let mut events = Events::on(kube.filter(|_| role == Role::Server), &local.owner);
    let course = Stopper::new(&local, role, agent, peers, volume, stop).stop(begun).await;
    course.event.into_iter().for_each(|event| events.tell(event));
    events.finish().await;
    course.done.map(|()| 0)
}

/// What a probe takes at most that says yes and then notes it: Kubernetes' default for timeoutSeconds is 1 s, and a yes that
/// comes later is a no.
const PROBE: Duration = Duration::from_millis(800);

/// How often a gate asks again, which may wait for an hour.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// How often a probe does, which waits for less than kubelet's next call.
const PROBE_EVERY: Duration = Duration::from_millis(50);

async fn check_command(reader: Reader<'_>, args: &CheckArgs) -> Result<u8, Failure> {
    let begun = Instant::now();
    let what = convene::settings::read::choice("check", &args.what, WHATS).map_err(|error| usage(&error))?;
    let local = beside_an_agent(reader, &args.common)?;
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let wait = reader.duration("wait", &args.wait, Duration::ZERO..=Duration::from_secs(3600));
    let wait = wait.map_err(|error| usage(&error))?.unwrap_or_default();
    let (is_gate, every) = if what == What::Joined { (!wait.is_zero(), CHECK_EVERY) } else { (false, PROBE_EVERY) };
    let mut asked_again = false;
    let answer = loop {
        let answer = check(what, &local, &agent).await;
        if answer.yes || begun.elapsed() >= wait {
            break answer;
        }
        asked_again = true;
        tokio::time::sleep(every).await;
    };
    // Who has waited for a yes is not to wait longer: the next call notes it.
    if answer.votes && !asked_again {
        let access = kubernetes(reader, &local, local.role.unwrap_or(Role::Server), &[]).ok().flatten();
        let kube = access.map(|access| Kube::new(access, CALL));
        note_once(&local, &agent, kube, PROBE.saturating_sub(begun.elapsed())).await;
    }
    print(&format!("{}\n", answer.line));
    match answer.yes {
        true => Ok(0),
        // A probe's answer is kubelet's to tell, and not its container's last word.
        false if !is_gate => Ok(Code::No as u8),
        false => Err(Failure::new(Code::No, format!("waited {} and gave up: {}", time::text(wait), answer.line))),
    }
}

async fn discover_command(reader: Reader<'_>, args: &DiscoverArgs) -> Result<u8, Failure> {
    let format =
        reader.choice("format", &args.format, discover::FORMATS).map_err(|error| usage(&error))?.unwrap_or_default();
    let local = beside_an_agent(reader, &args.common)?;
    let role = local.role.unwrap_or(if local.seat.is_some() { Role::Server } else { Role::Client });
    let survey = Survey::read(reader, &args.survey, &local, role, None).map_err(|error| usage(&error))?;
    let mut surveyor =
        Surveyor::new(&local, &survey, Dns::new(&survey), survey.kube()).map_err(|error| settings_failure(&error))?;
    // As a server sees it whose data belongs to a cluster.
    if let Some(record) = holding(&local).filter(|holding| holding.raft_data).and_then(|holding| holding.record) {
        surveyor.remember(record.memory());
    }
    let text = discover::show(&surveyor.survey().await, format)?;
    print(&text);
    Ok(0)
}

async fn reap_command(reader: Reader<'_>, args: &ReapArgs) -> Result<u8, Failure> {
    let reaping = Reaping::read(reader, args).map_err(|error| usage(&error))?;
    let local = Local::read(reader, &args.common, None).map_err(|error| usage(&error))?;
    let access = needed_kubernetes(reader).map_err(|error| usage(&error))?;
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let say = |line: &str| print(&format!("{line}\n"));
    let reaped = reap(&reaping, &Kube::new(access, reap::CALL), &agent, say).await;
    reaped.map(|()| 0).map_err(|error| Failure::from_error(error.code(), &error))
}

async fn doctor_command(reader: Reader<'_>, args: &DoctorArgs) -> Result<u8, Failure> {
    let local = beside_an_agent(reader, &args.common)?;
    let doctoring = Doctoring::read(reader, args, &local).map_err(|error| usage(&error))?;
    let mut report = doctor::run(&doctoring, &local).await?;
    print(&report.show(doctoring.output));
    Ok(report.code())
}

async fn recover_command(reader: Reader<'_>, args: &RecoverArgs) -> Result<u8, Failure> {
    let recovery = Recovery::read(reader, args).map_err(|error| usage(&error))?;
    let mut local = beside_an_agent(reader, &args.common)?;
    let mut settings = Survey::read(reader, &args.survey, &local, Role::Server, None).map_err(|error| usage(&error))?;
    let volume = record::Volume::open(&local.data_dir, false).map_err(|error| volume_failure(&error))?;
    if let Some(record) = holding(&local).and_then(|holding| holding.record) {
        settings.stable = record.stable;
    }
    local.owner = local.owner.or_in(settings.namespace.as_ref());
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let dns = Dns::new(&settings);
    let surveyor = Surveyor::new(&local, &settings, dns.clone(), settings.kube());
    let surveyor = surveyor.map_err(|error| settings_failure(&error))?;
    let claims = claims(&local, &settings, surveyor.kube());
    let mut world = World { local, settings, volume, agent, surveyor, dns, claims };
    let mut say = |line: &str| print(&format!("{line}\n"));
    let done = match &recovery.remove {
        Some(who) => remove(&world, who, recovery.yes, &mut say).await,
        None => recover(&mut world, &recovery, &mut say).await,
    };
    done.map(|()| 0).map_err(|error| Failure::from_error(error.code(), &error))
}

/// The settings of a command that is called beside an agent: the address that was chosen at its start is ours too, where that
/// can be read.
fn beside_an_agent(reader: Reader<'_>, args: &CommonArgs) -> Result<Local, Failure> {
    let mut local = Local::read(reader, args, None).map_err(|error| usage(&error))?;
    local.own_addresses.extend(holding(&local).and_then(|holding| holding.record?.advertise));
    Ok(local)
}

/// What is on the volume, where it can be read.
fn holding(local: &Local) -> Option<record::Holding> {
    record::Volume::open(&local.data_dir, false).and_then(|volume| volume.read()).ok()
}

fn usage(error: &SettingsError) -> Failure {
    Failure::from_error(Code::Usage, error)
}

/// Tells a failure once, and again in the termination log if that file is there; gives its code.
fn tell(failure: &Failure, termination_log: &Path, logging: bool) -> u8 {
    if logging {
        error!(exit = failure.code as u8, "{failure}");
    } else {
        let _ = writeln!(std::io::stderr(), "convene: {failure}");
    }
    // Kubelet makes this file; elsewhere there is none, and none is made.
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).truncate(true).open(termination_log) {
        let _ = writeln!(file, "convene: {failure}");
    }
    failure.code as u8
}

/// A reader of stdout that has gone away is no failure of ours.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
