//! What does convene cost beside tini and dumb-init? Size, resident memory while supervising, and the time of one `true`.
//!
//! Takes the release binary (`make bench` builds it and calls this), runs all programs in one loop so that the machine's
//! moods hit all alike, and prints one table and the aims. A program that is not installed is named and left out, and so
//! is Consul. Measures only this machine; starts nothing that it does not end. Ends with 1 when an aim is missed or
//! a program under test misbehaves.

#[path = "../tests/support/mod.rs"]
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use support::cluster::request;
use support::consul;

/// The aims: bytes on disk, bytes resident, and the median time of `true`.
const SIZE: u64 = 8_000_000;
const MEMORY: u64 = 4_000_000;
const TIME: Duration = Duration::from_millis(2);

/// Runs that count, and runs before them that do not: 200 keep the median steady to a few per cent.
const RUNS: usize = 200;
const WARM_UP: usize = 20;

/// Between two looks at a condition, and the longest wait for one.
const LOOK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Of loopback, and nobody else's: Consul's default ports are taken there.
const ADDRESS: &str = "127.88.4.1";

/// One row: a program that runs another one.
struct Row {
    name: String,
    version: String,
    /// The words before CMD; none: CMD by itself.
    words: Vec<OsString>,
    size: Option<u64>,
    memory: Option<Memory>,
    times: Vec<Duration>,
}

/// What `/proc/PID/status` says, in bytes.
#[derive(Clone, Copy)]
struct Memory {
    now: u64,
    peak: u64,
}

/// An aim and what was measured.
struct Aim {
    what: &'static str,
    measured: String,
    allowed: String,
    met: bool,
}

fn main() -> ExitCode {
    let Some(binary) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("bench: the one argument is the release binary; `make bench` builds it and gives it");
        return ExitCode::FAILURE;
    };
    match bench(&binary) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: an aim was missed");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all, prints all; gives whether every aim was met.
fn bench(binary: &Path) -> Result<bool, String> {
    let size = fs::metadata(binary).map_err(|e| format!("could not look at {}: {e}", binary.display()))?.len();
    let mut rows = vec![Row::of("convene run --plain", binary, &["run", "--plain", "--"])];
    let mut notes = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // tini as subreaper, which convene and dumb-init are by themselves when they are not PID 1.
    for (name, program, words) in [("tini -s", "tini", &["-s", "--"][..]), ("dumb-init", "dumb-init", &["--"])] {
        match consul::on_path(&path, program) {
            Some(found) => rows.push(Row::of(name, &found, words)),
            None => notes.push(format!("{program} is not installed (Debian: apt-get install {program})")),
        }
    }
    for row in &mut rows {
        row.memory = Some(memory_beside_sleep(&row.words)?);
    }
    rows.push(Row::nobody());
    time_all(&mut rows)?;
    match consul::find() {
        Ok(consul) => rows.insert(1, beside_consul(binary, &consul)?),
        Err(why) => notes.push(format!("the memory beside Consul was not measured: {why}")),
    }
    print_table(&rows, &notes);
    let aims = aims(size, &rows);
    for Aim { what, measured, allowed, met } in &aims {
        println!("{}: {what}: {measured}, aim at most {allowed}", if *met { "met" } else { "MISSED" });
    }
    Ok(aims.iter().all(|aim| aim.met))
}

fn aims(size: u64, rows: &[Row]) -> Vec<Aim> {
    let mut aims = vec![Aim { what: "size", measured: megabytes(size), allowed: megabytes(SIZE), met: size <= SIZE }];
    let most =
        rows.iter().filter(|row| row.name.starts_with("convene")).filter_map(|row| row.memory).map(|m| m.now).max();
    if let Some(most) = most {
        let (measured, allowed) = (megabytes(most), megabytes(MEMORY));
        aims.push(Aim { what: "resident while supervising", measured, allowed, met: most <= MEMORY });
    }
    if let Some(median) = rows.first().and_then(|row| row.times.get(row.times.len() / 2)) {
        let (measured, allowed) = (milliseconds(*median), milliseconds(TIME));
        aims.push(Aim { what: "median time of true", measured, allowed, met: *median <= TIME });
    }
    aims
}

// === measuring ===

/// Each program in turn, again and again; leaves every row's times sorted.
fn time_all(rows: &mut [Row]) -> Result<(), String> {
    for run in 0..WARM_UP + RUNS {
        for row in &mut *rows {
            let begun = Instant::now();
            let status = command(&row.words, &["/bin/true".into()])?.status();
            let took = begun.elapsed();
            match status {
                Ok(status) if status.success() => {}
                Ok(status) => return Err(format!("{} ended with {status} over /bin/true", row.name)),
                Err(error) => return Err(format!("could not start {}: {error}", row.name)),
            }
            if run >= WARM_UP {
                row.times.push(took);
            }
        }
    }
    rows.iter_mut().for_each(|row| row.times.sort());
    Ok(())
}

/// The memory of a supervisor whose child does nothing.
fn memory_beside_sleep(words: &[OsString]) -> Result<Memory, String> {
    let child = command(words, &["sleep".into(), "60".into()])?.spawn();
    let mut running = Running(child.map_err(|e| format!("could not start {words:?}: {e}"))?);
    let memory = running.memory_once("sleep", || true)?;
    running.stop()?;
    Ok(memory)
}

/// The memory of convene beside a real server, once it leads a cluster of one.
fn beside_consul(binary: &Path, consul: &Path) -> Result<Row, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("could not make a data folder: {e}"))?;
    let mut row = Row::of("convene run, Consul", binary, &["run", "--node-name=bench", "--expect=1", "--leave=never"]);
    row.words.extend([format!("--discover=static:{ADDRESS}").into(), "--".into()]);
    let mut agent: Vec<OsString> = vec![consul.into(), "agent".into(), "-server".into(), "-log-level=error".into()];
    agent.extend(["bind", "client", "advertise"].map(|flag| format!("-{flag}={ADDRESS}").into()));
    agent.extend(["-data-dir".into(), folder.path().into()]);
    let child = command(&row.words, &agent)?.spawn();
    let mut running = Running(child.map_err(|e| format!("could not start convene with Consul: {e}"))?);
    row.memory = Some(running.memory_once("consul", has_leader)?);
    running.stop()?;
    Ok(row)
}

/// Whether the agent at [`ADDRESS`] knows a leader.
fn has_leader() -> bool {
    let answer = ADDRESS.parse().ok().and_then(|ip| request(SocketAddr::new(ip, 8500), "GET", "/v1/status/leader", ""));
    answer.is_some_and(|(_, body)| body.contains(&format!("\"{ADDRESS}:8300\"")))
}

/// `words… cmd…` with nothing inherited and nothing to read or say.
fn command(words: &[OsString], cmd: &[OsString]) -> Result<Command, String> {
    let mut all = words.iter().chain(cmd);
    let mut command = Command::new(all.next().ok_or("there is no program to run")?);
    command.args(all).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// A supervisor that runs; it does not outlive this, nor does its child when [`Running::stop`] was called.
struct Running(Child);

// === impl Running ===

impl Running {
    /// Its memory, once its child is the program `comm`, `ready` holds, and it has gone to sleep.
    fn memory_once(&mut self, comm: &str, ready: impl Fn() -> bool) -> Result<Memory, String> {
        let pid = self.0.id();
        let guard = Instant::now() + PATIENCE;
        while Instant::now() < guard {
            if let Ok(Some(status)) = self.0.try_wait() {
                return Err(format!("the supervisor of {comm} ended early, with {status}"));
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let asleep = status.lines().any(|line| line.starts_with("State:\tS"));
            let memory = field(&status, "VmRSS:").zip(field(&status, "VmHWM:"));
            if let Some((now, peak)) = memory.filter(|_| asleep && has_child(pid, comm) && ready()) {
                return Ok(Memory { now, peak });
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("the supervisor did not come to rest over {comm} within {PATIENCE:?}"))
    }

    /// TERM, which each of them hands on, and the end of both.
    fn stop(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.0.id()).map_err(|e| e.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| format!("could not stop {pid}: {e}"))?;
        self.0.wait().map(drop).map_err(|e| format!("could not wait for {pid}: {e}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn has_child(pid: u32, comm: &str) -> bool {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let is_it = |child: &str| fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == comm);
    children.split_whitespace().any(is_it)
}

/// A field of `/proc/PID/status`, which says kB and means KiB, in bytes.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

// === impl Row ===

impl Row {
    fn of(name: &str, program: &Path, words: &[&str]) -> Self {
        let words = [program.into()].into_iter().chain(words.iter().map(OsString::from)).collect();
        let size = fs::metadata(program).ok().map(|meta| meta.len());
        Self { name: name.to_owned(), version: version(program), words, size, memory: None, times: Vec::new() }
    }

    /// `true` by itself: what the loop costs.
    fn nobody() -> Self {
        Self {
            name: "nobody (true itself)".to_owned(),
            version: String::new(),
            words: Vec::new(),
            size: None,
            memory: None,
            times: Vec::new(),
        }
    }
}

/// The first word of `--version` that begins as a version does; dumb-init says it on stderr.
fn version(program: &Path) -> String {
    let Ok(output) = Command::new(program).arg("--version").output() else { return "?".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let mut words = said.split_whitespace().map(|word| word.trim_start_matches('v'));
    words.find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or("?").to_owned()
}

// === printing ===

fn print_table(rows: &[Row], notes: &[String]) {
    let said = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{}, {}, {cores} cores, {RUNS} runs each", said("date", &["-u", "+%F"]), said("uname", &["-srm"]));
    println!();
    let heads = ["", "version", "size", "resident", "its peak", "true: min", "median", "max"];
    println!("{}", line(heads.map(str::to_owned)));
    for row in rows {
        let time = |at: usize| row.times.get(at).map_or("-".to_owned(), |time| milliseconds(*time));
        let memory = |part: fn(Memory) -> u64| row.memory.map_or("-".to_owned(), |memory| megabytes(part(memory)));
        println!(
            "{}",
            line([
                row.name.clone(),
                row.version.clone(),
                row.size.map_or("-".to_owned(), megabytes),
                memory(|m| m.now),
                memory(|m| m.peak),
                time(0),
                time(row.times.len() / 2),
                time(row.times.len().saturating_sub(1)),
            ])
        );
    }
    println!();
    notes.iter().for_each(|note| println!("{note}"));
}

fn line([name, version, rest @ ..]: [String; 8]) -> String {
    let rest: Vec<String> = rest.iter().map(|cell| format!("{cell:>10}")).collect();
    format!("{name:<20}  {version:<8}  {}", rest.join("  ")).trim_end().to_owned()
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
