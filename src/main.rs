//! Arguments in, exit code out: the only place that ends the process.
//!
//! Blocks the signals before anything else, reads the settings, calls one command, and tells a failure once: on stderr, and
//! in the termination log where there is one, so that `kubectl describe pod` shows it.

use convene::api::consul::Agent;
use convene::api::kube::Kube;
use convene::check::{WHATS, check};
use convene::cli::{
    self, CheckArgs, Cli, Command, CommonArgs, DiscoverArgs, InitArgs, InstallArgs, LeaveArgs, Places, RunArgs,
    Stopped, WatchArgs,
};
use convene::events::Events;
use convene::exit::{Code, Failure};
use convene::init::{How, settings_failure, volume_failure};
use convene::run::pid1::{self, Signals};
use convene::run::{Task, not_started, prepare_or_stop, run, watch};
use convene::settings::command::{AgentCommand, TAKEN_OUT};
use convene::settings::read::{Env, Reader, SettingsError};
use convene::settings::{
    DEFAULT_DISCOVER_TIMEOUT, DEFAULT_TERMINATION_LOG, Leave, Local, Node, Role, Speech, Stop, Survey, config_out,
    kubernetes, unknown_variables,
};
use convene::stop::deadline;
use convene::stop::leave::{LeaveError, Leaver, leave_once, told};
use convene::survey::Surveyor;
use convene::survey::dns::Dns;
use convene::{discover, install, log, record};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::exit;
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
        Command::Install(args) => &args.common,
    }
}

async fn act(signals: Signals, cli: Cli, places: &Places, env: &Env) -> Result<u8, Failure> {
    let reader = Reader { places, env };
    match cli.command {
        Command::Init(args) => init_command(signals, reader, &args).await,
        Command::Run(args) => run_command(signals, reader, args).await,
        Command::Watch(args) => watch_command(signals, reader, &args).await,
        Command::Leave(args) => as_any_program(signals, leave_command(reader, &args)).await,
        Command::Check(args) => as_any_program(signals, check_command(reader, &args)).await,
        Command::Discover(args) => as_any_program(signals, discover_command(reader, &args)).await,
        Command::Install(args) => as_any_program(signals, install_command(&args)).await,
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
    let node = Node::read(reader, &args.common, &args.survey, &args.node, None).map_err(|error| usage(&error))?;
    if let Some(folder) = reader.text(&args.install) {
        installed(Path::new(folder))?;
    }
    let how = How { binds: false, joins_later: false, leave: None };
    match prepare_or_stop(&mut signals, &node, how).await? {
        Ok(prepared) => prepared.events.finish().await,
        Err(code) => return Ok(code),
    }
    Ok(0)
}

async fn run_command(signals: Signals, reader: Reader<'_>, args: RunArgs) -> Result<u8, Failure> {
    let (exec, plain) = (
        reader.boolean("exec", &args.exec).map_err(|error| usage(&error))?,
        reader.boolean("plain", &args.plain).map_err(|error| usage(&error))?,
    );
    if args.command.is_empty() {
        return Err(Failure::new(Code::Usage, "no CMD was given: convene run [--exec|--plain] -- CMD…"));
    }
    if plain {
        if exec {
            return Err(Failure::new(
                Code::Usage,
                "--plain and --exec contradict each other: --plain supervises CMD, --exec becomes it; give one",
            ));
        }
        let grace = Stop::read(reader, &args.stop).map_err(|error| usage(&error))?.grace;
        return pid1::plain(signals, &args.command, grace).await.or_else(|error| not_started(&error));
    }
    let stop = Stop::read(reader, &args.stop).map_err(|error| usage(&error))?;
    let command = AgentCommand::read(args.command.clone(), |name| std::env::var_os(name));
    let mut command = command.map_err(|error| Failure::from_error(Code::Usage, &error))?;
    // A CMD that names the rendered file itself would feed us what we wrote the last time.
    let rendered = config_out(reader, &args.common, &args.node, command.as_ref()).map_err(|error| usage(&error))?;
    if let Some(command) = &mut command {
        command.forget(&rendered);
    }
    let node = Node::read(reader, &args.common, &args.survey, &args.node, command.as_ref());
    let node = node.map_err(|error| usage(&error))?;
    let task = task(&node, args.command, command.as_ref(), exec)?;
    run(signals, &node, stop, task).await
}

/// CMD with what convene adds and takes out, unless it contradicts what convene must do.
fn task(node: &Node, words: Vec<OsString>, command: Option<&AgentCommand>, exec: bool) -> Result<Task, Failure> {
    let Some(command) = command else {
        warn!(file = %node.config_out.display(), "CMD is not a Consul agent that convene knows: it must read the rendered file itself");
        return Ok(Task { command: words, exec, binds: true });
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
    Ok(Task { command: words, exec, binds: command.facts().bind_addr.is_some() })
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
    if stop.leave != Some(Leave::Always) {
        info!("--leave=always was not given: the agent stops without leaving");
        return Ok(0);
    }
    let volume = record::Volume::open(&local.data_dir, false).map_err(|error| volume_failure(&error))?;
    let deadline = deadline(begun, stop.grace);
    let leaver = Leaver {
        agent: Agent::own(&local.http).map_err(|error| settings_failure(&error))?,
        peers: convene::api::consul::Peers::new(&local).map_err(|error| settings_failure(&error))?,
        node: local.node_name.clone(),
        addresses: local.own_addresses.iter().copied().collect(),
        role: local.role.unwrap_or(Role::Server),
    };
    let access = kubernetes(reader, &local, leaver.role, &[]).map_err(|error| usage(&error))?;
    let mut events = Events::on(access.map(|access| Kube::new(access, DEFAULT_DISCOVER_TIMEOUT)), &local.owner);
    let left = leave_once(&volume, leaver, deadline).await;
    events.tell(told(&left));
    events.finish().await;
    left.map(|_| 0).map_err(|error| Failure::from_error(leave_code(&error), &error))
}

fn leave_code(error: &LeaveError) -> Code {
    match error {
        LeaveError::Held { .. } => Code::NotNow,
        LeaveError::Lock(error) => error.code(),
        LeaveError::NoAddress => Code::Usage,
        _ => Code::Unavailable,
    }
}

async fn check_command(reader: Reader<'_>, args: &CheckArgs) -> Result<u8, Failure> {
    let what = convene::settings::read::choice("check", &args.what, WHATS).map_err(|error| usage(&error))?;
    let local = beside_an_agent(reader, &args.common)?;
    let agent = Agent::own(&local.http).map_err(|error| settings_failure(&error))?;
    let answer = check(what, &local, &agent).await;
    print(&format!("{}\n", answer.line));
    Ok(if answer.yes { 0 } else { Code::No as u8 })
}

async fn discover_command(reader: Reader<'_>, args: &DiscoverArgs) -> Result<u8, Failure> {
    let format =
        reader.choice("format", &args.format, discover::FORMATS).map_err(|error| usage(&error))?.unwrap_or_default();
    let local = beside_an_agent(reader, &args.common)?;
    let role = local.role.unwrap_or(if local.seat.is_some() { Role::Server } else { Role::Client });
    let survey = Survey::read(reader, &args.survey, &local, role, None).map_err(|error| usage(&error))?;
    let mut surveyor =
        Surveyor::new(&local, &survey, Dns::new(&survey), survey.kube()).map_err(|error| settings_failure(&error))?;
    let text = discover::show(&surveyor.survey().await, format)?;
    print(&text);
    Ok(0)
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
