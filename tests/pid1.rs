//! Does the built binary behave as an init? Runs `convene run --plain` (and `--exec`) both as a plain
//! process and as PID 1 of a namespace, with small shell scripts as CMD.
//!
//! It never waits for a time to pass: only for a line, a file, a state of a process or its end. A test that
//! hangs is ended by a guard after a minute and fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows them in tests, but not in a test file's own functions"
)]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CONVENE: &str = env!("CARGO_BIN_EXE_convene");
/// Of it stragglers get all but a reserve of 3 s, and 10 s at most when nobody sent a TERM.
const GRACE: &str = "CONVENE_GRACE_PERIOD";
/// Far more than any test takes on a busy machine.
const HANG: Duration = Duration::from_secs(60);
/// Marks the processes of one run in their environment.
const MARK: &str = "PID1_TEST_RUN";
static RUNS: AtomicU32 = AtomicU32::new(0);
const PLAIN: [&str; 4] = [CONVENE, "run", "--plain", "--"];
const AS_PID_1: [&str; 3] = ["unshare", "-pf", "--mount-proc"];

/// A started command line: its stdout is read by the test, and the guard ends it when it hangs.
struct Run {
    child: Child,
    stdout: BufReader<ChildStdout>,
    _ended: Sender<()>,
    hung: Arc<AtomicBool>,
    mark: String,
}

/// A test that fails leaves nothing running.
impl Drop for Run {
    fn drop(&mut self) {
        if thread::panicking() {
            kill_marked(&self.mark);
        }
    }
}

impl Run {
    fn start(words: &[&str]) -> Self {
        Self::start_with(words, |_| {})
    }

    fn start_with(words: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        // Those of the test run itself, and of `make e2e` where a shell has them, are none of convene's.
        let ours = std::env::vars_os().map(|(name, _)| name);
        ours.filter(|name| name.to_string_lossy().starts_with("CONVENE_")).for_each(|name| {
            command.env_remove(name);
        });
        change(&mut command);
        let mark = format!("{}.{}", std::process::id(), RUNS.fetch_add(1, Relaxed));
        command.env(MARK, &mark);
        let mut child = command.spawn().expect("the command starts");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (ended, has_ended) = channel::<()>();
        let hung = Arc::new(AtomicBool::new(false));
        let guard_says = Arc::clone(&hung);
        let guards = mark.clone();
        thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            if has_ended.recv_timeout(HANG) == Err(Timeout) {
                guard_says.store(true, Relaxed);
                kill_marked(&guards);
            }
        });
        Self { child, stdout, _ended: ended, hung, mark }
    }

    fn pid(&self) -> Pid {
        pid_of(&self.child)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("stdout is text");
        line.trim_end().to_owned()
    }

    /// Reads stdout to its end, which comes when all that inherited it are dead, and waits for the process.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("stdout is text");
        let status = self.child.wait().expect("it can be waited for");
        assert!(!self.hung.load(Relaxed), "it hung, and was killed");
        (status, rest)
    }

    fn code(self) -> Option<i32> {
        self.end().0.code()
    }
}

/// Kills all of one run, also what has lost its parent: it may hold stdout and with it the test.
fn kill_marked(mark: &str) {
    let entry = format!("{MARK}={mark}");
    for process in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        let is_marked = environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes());
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(pid)) = (is_marked, pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("a pid is positive"))
}

/// `pid` and its descendants.
fn tree(pid: Pid) -> Vec<Pid> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        all.extend(children(all[at]));
        at += 1;
    }
    all
}

fn children(pid: Pid) -> Vec<Pid> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_ascii_whitespace()
        .map(|pid| Pid::from_raw(pid.parse().expect("a pid is a number")))
        .collect()
}

/// Asks again and again until the answer is yes; the guard of the run that is asked about ends a hang.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANG, "hung: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The words of `sets`, one after another.
fn words<'a>(sets: &[&[&'a str]]) -> Vec<&'a str> {
    sets.concat()
}

fn plain<'a>(command: &[&'a str]) -> Vec<&'a str> {
    words(&[&PLAIN, command])
}

/// All that `--exec` needs to be done with preparing at once: a client whose server's address is given.
fn settled<'a>(run: &'a mut Command, folder: &tempfile::TempDir) -> &'a mut Command {
    run.env("CONVENE_ROLE", "client").env("CONVENE_NODE_NAME", "n").env("CONVENE_DISCOVER", "static:127.255.255.253");
    run.env("CONVENE_DATA_DIR", folder.path())
}

fn sh(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

/// The field of a status file that is a mask of signals.
fn mask(status: &str, name: &str) -> u64 {
    let value =
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the status has the field");
    u64::from_str_radix(value.trim(), 16).expect("a mask is hexadecimal")
}

fn status(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// By these a terminal stops a job.
const SUSPENDING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

fn is_stopped(pid: Pid) -> bool {
    status(pid).contains("\nState:\tT (stopped)")
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// Whether this machine lets us be PID 1 of a namespace; if not, says that `test` was skipped.
fn can_be_pid_1(test: &str) -> bool {
    let tried = Command::new(AS_PID_1[0]).args(&AS_PID_1[1..]).arg("true").stderr(Stdio::null()).status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        support::skip::skip(test, "unshare -pf --mount-proc is not allowed here");
    }
    can
}

/// Both ways to run: as a plain process, and as PID 1 where that is possible.
fn both_ways(test: &str) -> Vec<Vec<&'static str>> {
    let mut ways = vec![PLAIN.to_vec()];
    if can_be_pid_1(test) {
        ways.push(words(&[&AS_PID_1, &PLAIN]));
    }
    ways
}

/// The process of convene in a run: the run itself, or the child of `unshare`.
fn convene_of(run: &Run) -> Pid {
    tree(run.pid())
        .into_iter()
        .find(|pid| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe == fs::canonicalize(CONVENE).expect("convene is there"))
        })
        .expect("convene runs")
}

// === Exit codes ===

#[test]
fn the_exit_code_is_the_commands_own() {
    for way in both_ways("the_exit_code_is_the_commands_own") {
        for code in [0, 1, 7, 126, 143, 255] {
            let script = format!("exit {code}");
            let run = Run::start(&words(&[&way, &sh(&script)]));
            assert_eq!(run.code(), Some(code), "{way:?}");
        }
    }
}

#[test]
fn a_command_killed_by_a_signal_gives_128_and_its_number() {
    for way in both_ways("a_command_killed_by_a_signal_gives_128_and_its_number") {
        // 34 and 64 are real-time signals.
        for number in [1, 2, 6, 9, 11, 13, 15, 34, 64] {
            let script = format!("ulimit -c 0; kill -{number} $$");
            let run = Run::start(&words(&[&way, &sh(&script)]));
            assert_eq!(run.code(), Some(128 + number), "{way:?}");
        }
    }
}

#[test]
fn a_command_that_is_not_found_gives_127_and_one_that_cannot_be_executed_126() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str, mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
        path.to_str().expect("the path is text").to_owned()
    };
    let not_executable = write("plain-file", "#!/bin/sh\n", 0o644);
    let no_format = write("no-format", "echo it ran\n", 0o755);
    let no_interpreter = write("no-interpreter", "#!/no/such/interpreter\n", 0o755);
    let below_a_file = format!("{not_executable}/x");
    let a_folder = folder.path().to_str().expect("the path is text");
    let cases = [
        ("/no/such/file", 127),
        ("no-such-file", 127),
        ("", 127),
        (below_a_file.as_str(), 127),
        (no_interpreter.as_str(), 127),
        (not_executable.as_str(), 126),
        (no_format.as_str(), 126),
        (a_folder, 126),
        // On PATH, where only files that cannot be executed have the name.
        ("plain-file", 126),
    ];
    for (command, code) in cases {
        for mode in ["--plain", "--exec"] {
            // glibc's execvp gives it to a shell, musl's does not.
            if mode == "--exec" && command == no_format {
                continue;
            }
            let run = Run::start_with(&[CONVENE, "run", mode, "--", command], |run| {
                settled(run, &folder).env("PATH", folder.path()).stderr(Stdio::null());
            });
            assert_eq!(run.code(), Some(code), "{mode} {command:?}");
        }
    }
}

// === Signals ===

#[test]
fn every_signal_from_1_to_31_but_kill_stop_and_chld_is_forwarded() {
    for way in both_ways("every_signal_from_1_to_31_but_kill_stop_and_chld_is_forwarded") {
        // All are blocked in CMD, so that each stays pending, where its status shows it.
        let (unshare, convene) = way.split_at(way.len() - PLAIN.len());
        let mut run =
            Run::start(&words(&[unshare, &["env", "--block-signal"], convene, &sh("echo ready; exec sleep 1000")]));
        assert_eq!(run.line(), "ready");
        let convene = convene_of(&run);
        let command = children(convene)[0];
        for signal in Signal::iterator() {
            if let Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGCHLD = signal {
                continue;
            }
            kill(convene, signal).expect("convene lives");
            until(&format!("{way:?} forwards {signal}"), || mask(&status(command), "ShdPnd") & bit(signal) != 0);
            if unshare.is_empty() && SUSPENDING.contains(&signal) {
                until("convene is suspended too", || is_stopped(convene));
                kill(convene, Signal::SIGCONT).expect("convene lives");
            }
        }
        kill(command, Signal::SIGKILL).expect("the command lives");
        assert_eq!(run.code(), Some(137));
    }
}

#[test]
fn a_chld_from_outside_is_not_forwarded() {
    let mut run = Run::start(&words(&[&["env", "--block-signal"], &PLAIN, &sh("echo ready; exec sleep 1000")]));
    assert_eq!(run.line(), "ready");
    let command = children(run.pid())[0];
    kill(run.pid(), Signal::SIGCHLD).expect("convene lives");
    until("CHLD is read", || mask(&status(run.pid()), "ShdPnd") & bit(Signal::SIGCHLD) == 0);
    // PWR has a higher number, so it is read later.
    kill(run.pid(), Signal::SIGPWR).expect("convene lives");
    until("PWR is forwarded", || mask(&status(command), "ShdPnd") & bit(Signal::SIGPWR) != 0);
    assert_eq!(mask(&status(command), "ShdPnd"), bit(Signal::SIGPWR));
    kill(command, Signal::SIGKILL).expect("the command lives");
    run.end();
}

#[test]
fn a_real_time_signal_does_not_end_the_supervisor() {
    let run = Run::start(&plain(&sh("kill -34 $PPID; exit 5")));
    assert_eq!(run.code(), Some(5));
}

#[test]
fn a_term_ends_a_command_that_does_not_handle_it() {
    for way in both_ways("a_term_ends_a_command_that_does_not_handle_it") {
        let mut run = Run::start(&words(&[&way, &sh("echo ready; exec sleep 1000")]));
        assert_eq!(run.line(), "ready");
        kill(convene_of(&run), Signal::SIGTERM).expect("convene lives");
        assert_eq!(run.code(), Some(143), "{way:?}");
    }
}

#[test]
fn a_second_term_is_forwarded_too() {
    for way in both_ways("a_second_term_is_forwarded_too") {
        let script = "n=0; trap 'n=$((n+1)); echo term $n' TERM; echo ready
            while [ $n -lt 2 ]; do sleep 0.01; done; exit 3";
        let mut run = Run::start(&words(&[&way, &sh(script)]));
        assert_eq!(run.line(), "ready");
        let convene = convene_of(&run);
        kill(convene, Signal::SIGTERM).expect("convene lives");
        assert_eq!(run.line(), "term 1");
        kill(convene, Signal::SIGTERM).expect("convene lives");
        assert_eq!(run.line(), "term 2");
        assert_eq!(run.code(), Some(3), "{way:?}");
    }
}

#[test]
fn a_term_that_came_before_the_start_is_forwarded() {
    for way in both_ways("a_term_that_came_before_the_start_is_forwarded") {
        let (unshare, _) = way.split_at(way.len() - PLAIN.len());
        // TERM stays blocked in the command, so it shows as pending there.
        let run = Run::start(&words(&[
            unshare,
            &["env", "--block-signal=TERM"],
            &sh("kill -TERM $$; exec \"$@\""),
            &["sh"],
            &PLAIN,
            &["sleep", "1000"],
        ]));
        let mut command = None;
        until("the command has the TERM", || {
            command = tree(run.pid()).into_iter().find(|pid| status(*pid).starts_with("Name:\tsleep\n"));
            command.is_some_and(|pid| mask(&status(pid), "ShdPnd") & bit(Signal::SIGTERM) != 0)
        });
        kill(command.expect("it was found"), Signal::SIGKILL).expect("the command lives");
        assert_eq!(run.code(), Some(137), "{way:?}");
    }
}

#[test]
fn a_term_at_any_moment_of_the_start_ends_the_run() {
    for _ in 0..100 {
        let run = Run::start(&plain(&["sleep", "1000"]));
        kill(run.pid(), Signal::SIGTERM).expect("it was not waited for yet");
        let (status, _) = run.end();
        // Before its main has begun, TERM kills convene itself.
        let by_term = status.signal() == Some(15) || status.code() == Some(143);
        assert!(by_term, "{status}");
    }
}

#[test]
fn a_stopped_command_has_not_ended_and_goes_on_after_a_cont() {
    let mut run = Run::start(&plain(&sh("echo $$; kill -STOP $$; exit 8")));
    let command = Pid::from_raw(run.line().parse().expect("a pid"));
    until("the command stops", || is_stopped(command));
    kill(run.pid(), Signal::SIGCONT).expect("convene lives");
    assert_eq!(run.code(), Some(8));
}

#[test]
fn exec_with_a_term_pending_ends_with_143() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = Run::start_with(
        &words(&[
            &["env", "--block-signal=TERM"],
            &sh("kill -TERM $$; exec \"$@\""),
            &["sh", CONVENE, "run", "--exec", "--", "echo", "it ran"],
        ]),
        |run| {
            settled(run, &folder).stderr(Stdio::null());
        },
    );
    let (status, output) = run.end();
    assert_eq!((status.code(), output.as_str()), (Some(143), ""));
}

// === What the command inherits ===

/// The first 31 signals: glibc's posix_spawn ignores its own two, 32 and 33, in the child.
const STANDARD: u64 = 0x7fff_ffff;

#[test]
fn the_command_gets_the_original_mask_and_dispositions() {
    let starts: [&[&str]; 4] = [
        &["env"],
        &["sh", "-c", "trap '' HUP USR2; exec \"$@\"", "sh"],
        &["env", "--ignore-signal=TERM", "--block-signal=USR1,INT"],
        &["env", "--block-signal"],
    ];
    let cat = ["cat", "/proc/self/status"];
    for start in starts {
        let (_, direct) = Run::start(&words(&[start, &cat])).end();
        for mode in ["--plain", "--exec"] {
            let convene = [CONVENE, "run", mode, "--"];
            let folder = tempfile::tempdir().expect("a folder");
            let through = Run::start_with(&words(&[start, &convene, &cat]), |run| {
                settled(run, &folder);
            });
            let (_, through) = through.end();
            for field in ["SigBlk", "SigIgn"] {
                assert_eq!(
                    mask(&through, field) & STANDARD,
                    mask(&direct, field) & STANDARD,
                    "{field} by {start:?} {mode}"
                );
            }
            for field in ["SigPnd", "ShdPnd"] {
                assert_eq!(mask(&through, field), 0, "{field} by {start:?} {mode}");
            }
        }
    }
}

#[test]
fn the_command_gets_no_file_descriptor_more() {
    let list = ["ls", "/proc/self/fd"];
    let (_, direct) = Run::start(&list).end();
    for start in [&["env"][..], &["env", "--ignore-signal=CHLD"]] {
        for mode in ["--plain", "--exec"] {
            let convene = [CONVENE, "run", mode, "--"];
            let folder = tempfile::tempdir().expect("a folder");
            let through = Run::start_with(&words(&[start, &convene, &list]), |run| {
                settled(run, &folder);
            });
            let (_, through) = through.end();
            assert_eq!(through, direct, "{start:?} {mode}");
        }
    }
}

#[test]
fn the_command_gets_the_environment_whole() {
    let show = ["env"];
    let set = |run: &mut Command| {
        run.env_clear().env("PATH", "/usr/bin:/bin").env("EMPTY", "").env("LINES", "a\nb=c");
    };
    let (_, direct) = Run::start_with(&show, set).end();
    let (_, through) = Run::start_with(&plain(&show), set).end();
    let own = |output: String| -> Vec<String> {
        let lines = output.lines().filter(|line| !line.starts_with(MARK));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(own(through), own(direct));
}

#[test]
fn the_command_leads_a_process_group_of_its_own() {
    let script = "cut -d' ' -f5 /proc/$$/stat; echo $$";
    let (_, output) = Run::start(&plain(&sh(script))).end();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn the_command_has_the_terminal_and_convene_takes_it_back() {
    let test = "the_command_has_the_terminal_and_convene_takes_it_back";
    if Command::new("script").arg("--version").output().is_err() {
        return support::skip::skip(test, "there is no `script` to make a terminal");
    }
    // Field 8 is the terminal's foreground group, field 5 the own group. The command may run a moment
    // before it is in the foreground.
    let script = format!(
        "{CONVENE} run --plain -- sh -c '
            until set -- $(cut -d\" \" -f5,8 /proc/$$/stat) && [ $1 = $2 ]; do :; done; echo during'
        set -- $(cut -d' ' -f5,8 /proc/$$/stat); [ $1 = $2 ] && echo after"
    );
    let run = Run::start(&["script", "-qec", &script, "/dev/null"]);
    let (_, output) = run.end();
    assert_eq!(output, "during\r\nafter\r\n");
}

// === Reaping ===

/// Waits in the command until process `$p` is gone, which a zombie is not.
const UNTIL_GONE: &str = "while [ -e /proc/$p ]; do sleep 0.01; done";

/// A named pipe that a script can wait at.
fn pipe_in(folder: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    let path = folder.path().join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    path
}

#[test]
fn an_orphan_becomes_ours_and_is_reaped() {
    for way in both_ways("an_orphan_becomes_ours_and_is_reaped") {
        let folder = tempfile::tempdir().expect("a folder");
        let script = format!(
            "(sleep 1000 & echo $! > orphan); p=$(cat orphan)
            until grep -q \"^PPid:.$PPID$\" /proc/$p/status; do sleep 0.01; done
            kill $p; {UNTIL_GONE}; exit 6"
        );
        let run = Run::start_with(&words(&[&way, &sh(&script)]), |run| {
            run.current_dir(folder.path());
        });
        assert_eq!(run.code(), Some(6), "{way:?}");
    }
}

#[test]
fn a_zombie_that_was_there_before_us_is_reaped() {
    let folder = tempfile::tempdir().expect("a folder");
    let go = pipe_in(&folder, "go");
    let lock = fs::File::create(folder.path().join("lock")).expect("a file");
    lock.lock().expect("locked");
    // flock never waits for children, and becomes convene when it has the lock.
    let script = format!(
        "(read -r _ < go) & p=$!; export p; echo $p
        exec flock -F lock {CONVENE} run --plain -- sh -c '{UNTIL_GONE}; exit 6'"
    );
    let mut run = Run::start_with(&sh(&script), |run| {
        run.current_dir(folder.path());
    });
    let orphan = Pid::from_raw(run.line().parse().expect("a pid"));
    until("flock waits", || status(run.pid()).starts_with("Name:\tflock\n"));
    fs::write(&go, "\n").expect("the orphan reads");
    until("the orphan is a zombie", || status(orphan).contains("Z (zombie)"));
    lock.unlock().expect("unlocked");
    assert_eq!(run.code(), Some(6));
}

#[test]
fn a_storm_of_orphans_leaves_no_zombie() {
    for way in both_ways("a_storm_of_orphans_leaves_no_zombie") {
        let storm = "i=0; while [ $i -lt 2000 ]; do (: &); i=$((i+1)); done
            echo over; read -r _ < go; exit 2";
        let folder = tempfile::tempdir().expect("a folder");
        let go = pipe_in(&folder, "go");
        let mut run = Run::start_with(&words(&[&way, &sh(storm)]), |run| {
            run.current_dir(folder.path());
        });
        assert_eq!(run.line(), "over");
        let convene = convene_of(&run);
        until("all orphans are reaped", || children(convene).len() == 1);
        fs::write(&go, "\n").expect("the command reads");
        assert_eq!(run.code(), Some(2), "{way:?}");
    }
}

// === Stragglers ===

#[test]
fn a_straggler_that_handles_term_finishes_its_work() {
    for way in both_ways("a_straggler_that_handles_term_finishes_its_work") {
        // In the command's group, and in a session of its own.
        for by in ["", "setsid"] {
            let folder = tempfile::tempdir().expect("a folder");
            fs::write(
                folder.path().join("straggler"),
                "trap 'echo stopping; until [ -e go ]; do sleep 0.01; done; echo done; exit' TERM
                : > ready; while :; do sleep 0.01; done",
            )
            .expect("written");
            let script = format!("{by} sh ./straggler & until [ -e ready ]; do sleep 0.01; done; exit 3");
            let mut run = Run::start_with(&words(&[&way, &sh(&script)]), |run| {
                run.current_dir(folder.path()).env(GRACE, "60s");
            });
            assert_eq!(run.line(), "stopping", "{way:?} {by}");
            fs::write(folder.path().join("go"), "").expect("written");
            let (status, output) = run.end();
            assert_eq!((status.code(), output.as_str()), (Some(3), "done\n"), "{way:?} {by}");
        }
    }
}

#[test]
fn a_straggler_that_ignores_term_is_killed_at_the_deadline() {
    for way in both_ways("a_straggler_that_ignores_term_is_killed_at_the_deadline") {
        for by in ["", "setsid"] {
            let folder = tempfile::tempdir().expect("a folder");
            // Its own child ignores TERM too and is no child of ours until it is orphaned.
            fs::write(
                folder.path().join("straggler"),
                "trap '' TERM; setsid sleep 1000 & : > ready; while :; do sleep 0.01; done",
            )
            .expect("written");
            let script = format!("{by} sh ./straggler & until [ -e ready ]; do sleep 0.01; done; exit 3");
            let run = Run::start_with(&words(&[&way, &sh(&script)]), |run| {
                run.current_dir(folder.path()).env(GRACE, "5s");
            });
            // Its end is the end of stdout, which both of them hold.
            assert_eq!(run.code(), Some(3), "{way:?} {by}");
        }
    }
}

// === SIGCHLD ignored by who started us ===

/// Starts convene with SIGCHLD ignored, as PID 1 where that is possible.
fn without_chld(test: &str, command: &[&'static str]) -> Vec<Run> {
    both_ways(test)
        .iter()
        .map(|way| {
            let (unshare, convene) = way.split_at(way.len() - PLAIN.len());
            let ignore = ["env", "--ignore-signal=CHLD"];
            Run::start(&words(&[unshare, &ignore, convene, command]))
        })
        .collect()
}

#[test]
fn the_exit_code_is_known_although_sigchld_came_ignored() {
    let test = "the_exit_code_is_known_although_sigchld_came_ignored";
    for run in without_chld(test, &sh("exit 9")) {
        assert_eq!(run.code(), Some(9));
    }
    for run in without_chld(test, &sh("kill -KILL $$")) {
        assert_eq!(run.code(), Some(137));
    }
    for run in without_chld(test, &["no-such-command"]) {
        assert_eq!(run.code(), Some(127));
    }
}

#[test]
fn signals_arrive_although_sigchld_came_ignored() {
    let test = "signals_arrive_although_sigchld_came_ignored";
    let script = "trap 'echo hup' HUP; trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    for mut run in without_chld(test, &sh(script)) {
        assert_eq!(run.line(), "ready");
        let convene = convene_of(&run);
        kill(convene, Signal::SIGHUP).expect("convene lives");
        assert_eq!(run.line(), "hup");
        kill(convene, Signal::SIGTERM).expect("convene lives");
        assert_eq!(run.code(), Some(5));
    }
}

#[test]
fn orphans_are_reaped_and_stragglers_ended_although_sigchld_came_ignored() {
    let test = "orphans_are_reaped_and_stragglers_ended_although_sigchld_came_ignored";
    let script = "(sleep 1000 & echo $!) ; exit 6";
    for mut run in without_chld(test, &sh(script)) {
        run.line();
        // Stdout ends when the orphan is dead.
        assert_eq!(run.code(), Some(6));
    }
}

#[test]
fn the_mask_is_the_original_one_although_sigchld_came_ignored() {
    let start = ["env", "--ignore-signal=CHLD", "--block-signal=USR1,INT"];
    let cat = ["cat", "/proc/self/status"];
    let (_, output) = Run::start(&words(&[&start, &PLAIN, &cat])).end();
    assert_eq!(mask(&output, "SigBlk"), bit(Signal::SIGUSR1) | bit(Signal::SIGINT));
}

// === What tini and dumb-init document beyond that ===

/// `--plain` with more flags, both ways.
fn both_ways_with<'a>(test: &str, flags: &[&'a str]) -> Vec<Vec<&'a str>> {
    let with = |way: Vec<&'a str>| words(&[&way[..way.len() - 1], flags, &["--"]]);
    both_ways(test).into_iter().map(with).collect()
}

/// Starts CMD with every signal blocked, so that what it gets stays pending, where its status shows it; gives convene and CMD.
fn all_pending(way: &[&str], script: &str) -> (Run, Pid, Pid) {
    let at = way.iter().position(|word| *word == CONVENE).expect("convene is in the way");
    let mut run = Run::start(&words(&[&way[..at], &["env", "--block-signal"], &way[at..], &sh(script)]));
    assert_eq!(run.line(), "ready");
    let convene = convene_of(&run);
    let command = children(convene)[0];
    (run, convene, command)
}

fn pending(pid: Pid) -> u64 {
    mask(&status(pid), "ShdPnd")
}

#[test]
fn a_signal_goes_to_the_whole_group_with_group_and_else_to_the_command_alone() {
    let test = "a_signal_goes_to_the_whole_group_with_group_and_else_to_the_command_alone";
    for (flags, to_all) in [(&[][..], false), (&["--group"], true), (&["--group", "--session"], true)] {
        for way in both_ways_with(test, flags) {
            let (run, convene, command) = all_pending(&way, "sleep 1000 & echo ready; exec sleep 1000");
            let other = children(command)[0];
            kill(convene, Signal::SIGTERM).expect("convene lives");
            // PWR has a higher number, so it is read later.
            kill(convene, Signal::SIGPWR).expect("convene lives");
            until("both are handed on", || pending(command) == bit(Signal::SIGTERM) | bit(Signal::SIGPWR));
            assert_eq!(pending(other) & bit(Signal::SIGTERM) != 0, to_all, "{way:?}");
            kill(command, Signal::SIGKILL).expect("the command lives");
            kill(other, Signal::SIGKILL).expect("it lives");
            assert_eq!(run.code(), Some(137), "{way:?}");
        }
    }
}

#[test]
fn the_command_leads_a_session_of_its_own_with_session_and_else_is_in_ours() {
    let test = "the_command_leads_a_session_of_its_own_with_session_and_else_is_in_ours";
    let show = sh("cut -d' ' -f5,6 /proc/$$/stat; echo $$; cut -d' ' -f6 /proc/$PPID/stat");
    for (flags, own) in [(&[][..], false), (&["--session"], true), (&["--session=false"], false)] {
        for way in both_ways_with(test, flags) {
            let (status, output) = Run::start(&words(&[&way, &show])).end();
            assert_eq!(status.code(), Some(0));
            let lines: Vec<&str> = output.lines().collect();
            let (group, session) = lines[0].split_once(' ').expect("two fields");
            assert_eq!(group, lines[1], "{way:?}");
            assert_eq!((session == lines[1], session == lines[2]), (own, !own), "{way:?}");
        }
    }
}

#[test]
fn a_session_gets_the_mask_the_dispositions_and_the_exit_code_too() {
    let start = ["env", "--ignore-signal=HUP", "--block-signal=USR1,INT"];
    let show = sh("cat /proc/self/status; exit 7");
    let (_, direct) = Run::start(&words(&[&start, &show])).end();
    let (status, through) = Run::start(&words(&[&start, &[CONVENE, "run", "--plain", "--session", "--"], &show])).end();
    for field in ["SigBlk", "SigIgn"] {
        assert_eq!(mask(&through, field) & STANDARD, mask(&direct, field) & STANDARD, "{field}");
    }
    assert_eq!(status.code(), Some(7));
    assert_eq!(Run::start(&[CONVENE, "run", "--plain", "--session", "--", "no-such-command"]).code(), Some(127));
}

#[test]
fn a_signal_is_rewritten_or_dropped_on_its_way_to_the_command() {
    use Signal::{SIGHUP, SIGINT, SIGPWR, SIGTERM, SIGUSR1, SIGWINCH};
    let test = "a_signal_is_rewritten_or_dropped_on_its_way_to_the_command";
    let cases: [(&[&str], u64); 3] = [
        (&[], bit(SIGTERM) | bit(SIGWINCH)),
        (&["--rewrite=15:2", "--rewrite", "WINCH:0"], bit(SIGINT)),
        (&["--group", "--rewrite=TERM:HUP,SIGWINCH:USR1"], bit(SIGHUP) | bit(SIGUSR1)),
    ];
    for (flags, given) in cases {
        for way in both_ways_with(test, flags) {
            let (run, convene, command) = all_pending(&way, "echo ready; exec sleep 1000");
            for signal in [SIGTERM, SIGWINCH, SIGPWR] {
                kill(convene, signal).expect("convene lives");
            }
            until("the last one is handed on", || pending(command) & bit(SIGPWR) != 0);
            assert_eq!(pending(command), given | bit(SIGPWR), "{way:?}");
            kill(command, Signal::SIGKILL).expect("the command lives");
            assert_eq!(run.code(), Some(137), "{way:?}");
        }
    }
}

#[test]
fn what_would_suspend_a_job_suspends_the_command_and_us_until_a_cont() {
    let test = "what_would_suspend_a_job_suspends_the_command_and_us_until_a_cont";
    for flags in [&[][..], &["--session"], &["--group"], &["--group", "--session"]] {
        for way in both_ways_with(test, flags) {
            // Not a shell that waits for others: in a vfork(2) it cannot be seen to be stopped.
            let mut run = Run::start(&words(&[&way, &sh("echo ready; exec sleep 1000")]));
            assert_eq!(run.line(), "ready");
            let convene = convene_of(&run);
            let command = children(convene)[0];
            for signal in SUSPENDING {
                kill(convene, signal).expect("convene lives");
                until(&format!("{way:?}: {signal} stops the command"), || is_stopped(command));
                // The kernel keeps PID 1 from it.
                if way[0] == CONVENE {
                    until(&format!("{way:?}: {signal} stops convene"), || is_stopped(convene));
                }
                kill(convene, Signal::SIGCONT).expect("convene lives");
                until(&format!("{way:?}: CONT resumes both"), || !is_stopped(command) && !is_stopped(convene));
            }
            kill(convene, Signal::SIGTERM).expect("convene lives");
            assert_eq!(run.code(), Some(143), "{way:?}");
        }
    }
}

#[test]
fn a_rewritten_tstp_suspends_us_still_and_a_dropped_one_does_not() {
    let run = |rewrite| {
        let script = "trap 'echo hup' HUP; trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done";
        let mut run = Run::start(&words(&[&[CONVENE, "run", "--plain", "--session", rewrite, "--"], &sh(script)]));
        assert_eq!(run.line(), "ready");
        kill(run.pid(), Signal::SIGTSTP).expect("convene lives");
        run
    };
    let mut rewritten = run("--rewrite=TSTP:HUP");
    assert_eq!(rewritten.line(), "hup");
    until("convene is suspended", || is_stopped(rewritten.pid()));
    kill(rewritten.pid(), Signal::SIGCONT).expect("convene lives");
    kill(rewritten.pid(), Signal::SIGTERM).expect("convene lives");
    assert_eq!(rewritten.code(), Some(4));
    let mut dropped = run("--rewrite=TSTP:0");
    // Were it suspended, it could not hand this on.
    kill(dropped.pid(), Signal::SIGHUP).expect("convene lives");
    assert_eq!(dropped.line(), "hup");
    kill(dropped.pid(), Signal::SIGTERM).expect("convene lives");
    assert_eq!(dropped.code(), Some(4));
}

#[test]
fn an_exit_code_that_counts_as_success_becomes_0() {
    let test = "an_exit_code_that_counts_as_success_becomes_0";
    for way in both_ways_with(test, &["--success=143", "--success", "7,9"]) {
        for (script, code) in [("exit 7", 0), ("exit 9", 0), ("exit 8", 8), ("kill -TERM $$", 0), ("kill -INT $$", 130)]
        {
            assert_eq!(Run::start(&words(&[&way, &sh(script)])).code(), Some(code), "{way:?} {script}");
        }
    }
}

#[test]
fn the_settings_can_come_from_the_environment() {
    let script = "trap 'exit 7' INT; cut -d' ' -f6 /proc/$$/stat; echo $$; while :; do sleep 0.01; done";
    let mut run = Run::start_with(&plain(&sh(script)), |run| {
        run.env("CONVENE_SESSION", "true").env("CONVENE_GROUP", "1");
        run.env("CONVENE_REWRITE", "1:0,15:2").env("CONVENE_SUCCESS", "7");
    });
    assert_eq!(run.line(), run.line());
    kill(run.pid(), Signal::SIGTERM).expect("convene lives");
    assert_eq!(run.code(), Some(0));
}

#[test]
fn the_end_of_our_parent_is_a_signal_when_that_is_wished() {
    let script = "trap 'echo usr1; exit' USR1; echo ready; while :; do sleep 0.01; done";
    let convene = words(&[&[CONVENE, "run", "--plain", "--parent-death=usr1", "--"], &sh(script)]);
    // It waits for stdin, which nobody closes.
    let parent = words(&[&sh("\"$@\" & read -r _"), &["sh"], &convene]);
    let mut run = Run::start_with(&parent, |run| {
        run.stdin(Stdio::piped());
    });
    assert_eq!(run.line(), "ready");
    kill(run.pid(), Signal::SIGKILL).expect("the parent lives");
    assert_eq!(run.end().1, "usr1\n");
}

#[test]
fn convene_does_not_keep_the_working_folder_and_the_command_does() {
    for way in both_ways("convene_does_not_keep_the_working_folder_and_the_command_does") {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().canonicalize().expect("it is there");
        let mut run = Run::start_with(&words(&[&way, &sh("pwd -P; exec sleep 1000")]), |run| {
            run.current_dir(&path);
        });
        assert_eq!(run.line(), path.to_str().expect("the path is text"), "{way:?}");
        let convene = convene_of(&run);
        let folder_of = |pid: Pid| fs::read_link(format!("/proc/{pid}/cwd")).expect("it lives");
        until(&format!("{way:?}: convene leaves the folder"), || folder_of(convene) == std::path::Path::new("/"));
        kill(convene, Signal::SIGTERM).expect("convene lives");
        assert_eq!(run.code(), Some(143), "{way:?}");
    }
}

#[test]
fn a_script_can_have_convene_as_its_interpreter_and_convene_can_stand_before_convene() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("script");
    fs::write(&path, format!("#!/usr/bin/env -S {CONVENE} run --plain --group -- sh\necho it ran $1; exit 3\n"))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode set");
    let path = path.to_str().expect("the path is text");
    let (status, output) = Run::start(&words(&[&PLAIN, &PLAIN, &[path, "well"]])).end();
    assert_eq!((status.code(), output.as_str()), (Some(3), "it ran well\n"));
}

#[test]
fn what_is_handed_on_is_said_at_the_level_debug() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = folder.path().join("said");
    let way = [CONVENE, "run", "--plain", "--rewrite=HUP:0", "--log-level=debug", "--log-format=plain", "--"];
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let mut run = Run::start_with(&words(&[&way, &sh(script)]), |run| {
        run.stderr(fs::File::create(&said).expect("a file"));
    });
    assert_eq!(run.line(), "ready");
    kill(run.pid(), Signal::SIGHUP).expect("convene lives");
    kill(run.pid(), Signal::SIGTERM).expect("convene lives");
    assert_eq!(run.code(), Some(3));
    let said = fs::read_to_string(&said).expect("it was written");
    for part in ["started CMD", "dropped signal=\"SIGHUP\"", "handed on signal=\"SIGTERM\"", "CMD ended code=3"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

// === A stop of `run` ===

#[test]
fn a_rewritten_term_is_a_stop_still_and_a_second_one_is_not_handed_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "trap 'echo int' INT; trap 'echo term' TERM; trap 'echo hup' HUP; echo ready
        until [ -e go ]; do sleep 0.01; done; exit 7";
    // `sh -c` is refused.
    fs::write(folder.path().join("agent"), script).expect("written");
    let mut run = Run::start_with(&[CONVENE, "run", "--rewrite=TERM:INT", "--", "sh", "agent"], |run| {
        settled(run, &folder).current_dir(folder.path()).stderr(Stdio::null());
    });
    assert_eq!(run.line(), "ready");
    kill(run.pid(), Signal::SIGTERM).expect("convene lives");
    assert_eq!(run.line(), "int");
    kill(run.pid(), Signal::SIGTERM).expect("convene lives");
    until("the second TERM is read", || pending(run.pid()) & bit(Signal::SIGTERM) == 0);
    kill(run.pid(), Signal::SIGHUP).expect("convene lives");
    assert_eq!(run.line(), "hup");
    fs::write(folder.path().join("go"), "").expect("written");
    let (status, rest) = run.end();
    assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
}

// === Between fork and exec ===

/// Starts CMD, and calls `meanwhile` with convene and its child when the child is there and has not become CMD yet.
fn between_fork_and_exec(command: &[&str], meanwhile: impl FnOnce(Pid, Pid)) -> Run {
    use nix::sys::ptrace::{self, Event, Options};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let run = Run::start(&words(&[&sh("kill -STOP $$; exec \"$@\""), &["sh"], &PLAIN, command]));
    let convene = run.pid();
    while !matches!(waitpid(convene, Some(WaitPidFlag::WUNTRACED)), Ok(WaitStatus::Stopped(_, Signal::SIGSTOP))) {}
    ptrace::seize(convene, Options::PTRACE_O_TRACEVFORK).expect("it can be traced");
    kill(convene, Signal::SIGCONT).expect("it lives");
    loop {
        match waitpid(convene, Some(WaitPidFlag::__WALL)).expect("it lives") {
            WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_VFORK as i32 => break,
            WaitStatus::Stopped(_, signal) if signal != Signal::SIGTRAP => {
                ptrace::cont(convene, signal).expect("it lives")
            }
            _ => ptrace::cont(convene, None).expect("it lives"),
        }
    }
    let child = Pid::from_raw(ptrace::getevent(convene).expect("it is stopped").try_into().expect("a pid"));
    waitpid(child, Some(WaitPidFlag::__WALL)).expect("it is traced as well");
    meanwhile(convene, child);
    ptrace::detach(child, None).expect("it is stopped");
    ptrace::detach(convene, None).expect("it is stopped");
    run
}

#[test]
fn a_term_between_fork_and_exec_ends_the_command() {
    type Meanwhile = fn(Pid, Pid);
    let meanwhiles: [Meanwhile; 3] = [
        |convene, _| kill(convene, Signal::SIGTERM).expect("it lives"),
        |_, child| kill(child, Signal::SIGTERM).expect("it lives"),
        |convene, child| [convene, child].into_iter().for_each(|pid| kill(pid, Signal::SIGTERM).expect("it lives")),
    ];
    for meanwhile in meanwhiles {
        let run = between_fork_and_exec(&["sleep", "1000"], |convene, child| {
            let exe = |pid: Pid| fs::read_link(format!("/proc/{pid}/exe")).expect("it lives");
            assert_eq!(exe(child), exe(convene), "the child is not CMD yet");
            meanwhile(convene, child);
        });
        assert_eq!(run.code(), Some(143));
    }
}

// === A terminal ===

/// Runs a shell's words on a terminal of their own: gives what they wrote, or none where there is no `script`. What is to be
/// typed comes when `after` was read.
fn on_a_terminal(test: &str, command: &str, typed: Option<(&str, &str)>) -> Option<String> {
    use std::io::Write;
    if !support::skip::needs_program(test, "script") {
        return None;
    }
    let mut run = Run::start_with(&["script", "-qec", command, "/dev/null"], |run| {
        run.stdin(Stdio::piped()).env("SHELL", "/bin/sh");
    });
    // Held until the end: its end would be typed too.
    let mut keyboard = run.child.stdin.take().expect("it is piped");
    let mut written = String::new();
    if let Some((after, keys)) = typed {
        while run.line() != after {
            assert!(!run.hung.load(Relaxed), "{after} did not come");
        }
        keyboard.write_all(keys.as_bytes()).expect("it reads");
    }
    run.stdout.read_to_string(&mut written).expect("stdout is text");
    run.end();
    Some(written.replace('\r', ""))
}

#[test]
fn a_shell_gets_the_terminal_back_when_the_command_is_suspended_and_fg_goes_on() {
    let test = "a_shell_gets_the_terminal_back_when_the_command_is_suspended_and_fg_goes_on";
    // TSTP to its group, of which there are two, is what the terminal sends for ctrl-Z. Then it waits for the foreground: field 8
    // is the terminal's foreground group, field 5 the own group.
    let stops = "sh -c '(kill -TSTP 0
        until set -- $(cut -d\" \" -f5,8 /proc/$$/stat) && [ $1 = $2 ]; do sleep 0.01; done; echo on); true'";
    for convene in [format!("{CONVENE} run --plain --"), format!("{CONVENE} run --plain -- {CONVENE} run --plain --")] {
        let job = format!("set -m; {convene} {stops}; echo suspended; stty sane; fg >/dev/null; echo end $?");
        let Some(written) = on_a_terminal(test, &job, None) else { return };
        let lines: Vec<&str> = written.lines().filter(|line| ["suspended", "on", "end 0"].contains(line)).collect();
        assert_eq!(lines, ["suspended", "on", "end 0"], "{written}");
    }
}

#[test]
fn where_no_shell_would_continue_it_a_suspended_command_goes_on() {
    let test = "where_no_shell_would_continue_it_a_suspended_command_goes_on";
    for way in both_ways(test) {
        let command = format!("exec {} sh -c '(kill -TSTP 0; stty sane; echo on); true'", way.join(" "));
        let Some(written) = on_a_terminal(test, &command, None) else { return };
        assert_eq!(written, "on\n", "{way:?}");
    }
}

#[test]
fn the_command_can_read_from_the_terminal_also_behind_a_second_convene() {
    let test = "the_command_can_read_from_the_terminal_also_behind_a_second_convene";
    for times in 1..=2 {
        let convene = format!("{CONVENE} run --plain -- ").repeat(times);
        let command = format!("stty -echo; {convene} sh -c 'echo ready; read -r line; echo read $line'; stty echo");
        let Some(written) = on_a_terminal(test, &command, Some(("ready", "typed\n"))) else { return };
        assert_eq!(written, "read typed\n");
    }
}

#[test]
fn a_session_of_its_own_has_no_terminal_and_gets_ctrl_c_by_us() {
    let test = "a_session_of_its_own_has_no_terminal_and_gets_ctrl_c_by_us";
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("command");
    // Field 7 is the controlling terminal.
    let script = "trap 'echo int; exit 5' INT
        [ $(cut -d' ' -f7 /proc/$$/stat) = 0 ] && echo ready; while :; do sleep 0.01; done";
    fs::write(&path, script).expect("written");
    let command =
        format!("trap : INT; stty -echo; {CONVENE} run --plain --session -- sh {}; echo end $?", path.display());
    let Some(written) = on_a_terminal(test, &command, Some(("ready", "\x03"))) else { return };
    assert_eq!(written.lines().last(), Some("end 5"), "{written}");
    assert!(written.contains("int\n"), "{written}");
}
