//! What a person gets who says something wrong: one clear line (what, where, what is allowed, what to do) and the exit code
//! that README documents.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use support::program::Convene;

/// `init` of a server with all that it needs, so that one more word is what is wrong.
fn init(words: &[&str]) -> Convene {
    let complete = [
        "init",
        "--role=server",
        "--node-name=s1",
        "--advertise=127.0.0.1",
        "--discover=static:127.255.255.253",
        "--data-dir=/does/not/exist",
    ];
    Convene::new(complete).words(words)
}

fn run(words: &[&str]) -> Convene {
    Convene::new(["run", "--data-dir=/does/not/exist", "--"])
        .words(words)
        .envs("POD_NAME=consul-server-0 POD_NAMESPACE=prod POD_IP=10.0.0.1")
}

#[test]
fn a_wrong_value_is_64_and_names_flag_value_and_what_is_allowed() {
    for (words, parts) in [
        (["--expect=0"], ["--expect: \"0\"", "a whole number from 1 to 99"]),
        (["--expect=-1"], ["--expect: \"-1\"", "a whole number from 1 to 99"]),
        (["--expect=2000"], ["--expect: \"2000\"", "a whole number from 1 to 99"]),
        (["--expect=three"], ["--expect: \"three\"", "a whole number from 1 to 99"]),
        (["--replicas=0"], ["--replicas: \"0\"", "a whole number"]),
        (["--ordinals-start=-1"], ["--ordinals-start: \"-1\"", "from 0 to 9999"]),
        (["--service=two words"], ["--service: \"two words\"", "no spaces"]),
        (["--discover=dns:two words"], ["--discover: \"dns:two words\"", "no spaces"]),
        (["--discover=statefullset"], ["--discover: \"statefullset\"", "did you mean \"statefulset\"?"]),
        (["--discover=provider=k8s labels=x"], ["--discover: \"provider=k8s …\"", "label_selector"]),
        (["--discover-timeout=5"], ["--discover-timeout: \"5\"", "did you mean \"5s\"?"]),
        (["--discover-timeout=2h"], ["--discover-timeout: \"2h\"", "from 100 ms to 60.0 s"]),
        (["--nameserver=ns1.example"], ["--nameserver: \"ns1.example\"", "ADDR:PORT"]),
        (["--cluster-domain=a b"], ["--cluster-domain: \"a b\"", "no spaces"]),
        (["--peer-http-port=0"], ["--peer-http-port: \"0\"", "from 1 to 65535"]),
        (["--peer-tls=maybe"], ["--peer-tls: \"maybe\"", "true, false"]),
        (["--server-port=70000"], ["--server-port: \"70000\"", "from 1 to 65535"]),
        (["--wait=soon"], ["--wait: \"soon\"", "a duration with its unit"]),
        (["--create-data-dir=maybe"], ["--create-data-dir: \"maybe\"", "true, false"]),
        (["--log-level=loud"], ["--log-level: \"loud\"", "error, warn, info"]),
        (["--log-format=jsno"], ["--log-format: \"jsno\"", "did you mean \"json\"?"]),
    ] {
        init(&words).run().ends(64, &parts);
    }
}

#[test]
fn a_wrong_value_in_the_environment_is_named_by_its_variable() {
    init(&[]).env("CONVENE_EXPECT", "three").run().ends(64, &["CONVENE_EXPECT: \"three\""]);
    init(&[]).env("CONVENE_DISCOVER", "statc:a").env("CONVENE_EXPECT", "").run().ends(73, &[]);
    Convene::new(["discover"])
        .env("CONVENE_DISCOVER", "static:127.0.0.9; statc:a")
        .run()
        .ends(64, &["CONVENE_DISCOVER: \"statc:a\""]);
    init(&[]).env("POD_IP", "not-an-address").run().ends(64, &["POD_IP: \"not-an-address\""]);
    init(&[]).env("CONSUL_HTTP_ADDR", "tcp://x:1").run().ends(64, &["CONSUL_HTTP_ADDR: \"tcp://x:1\""]);
}

#[test]
fn a_misspelt_variable_is_a_warning_with_the_nearest_right_spelling() {
    let ended = init(&[]).env("CONVENE_EXPCT", "3").env("CONVENE_SERVICE_HOST", "10.0.0.1").run();
    assert!(
        ended.stderr.contains("CONVENE_EXPCT is none of convene's; did you mean \"CONVENE_EXPECT\"?"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("CONVENE_SERVICE_HOST"), "Kubernetes makes that one: {}", ended.stderr);
}

#[test]
fn a_misspelt_flag_or_command_is_64_with_the_nearest_right_spelling() {
    init(&["--expct=3"]).run().ends(64, &["--expct", "--expect", "convene --help"]);
    Convene::new(["init", "--role=srever"]).run().ends(64, &["--role: \"srever\"", "did you mean \"server\"?"]);
    Convene::new(["init", "--role=server", "--advertise=0.0.0.0"])
        .run()
        .ends(64, &["--advertise: \"0.0.0.0\"", "that others can reach"]);
    init(&["--role=server"]).run().ends(64, &["--role", "multiple times"]);
    Convene::new(["innit"]).run().ends(64, &["innit", "init"]);
    Convene::new([""; 0]).run().ends(64, &["init, run, watch, leave, check, discover, reap, doctor, recover, install"]);
    Convene::new(["check", "redy"]).run().ends(64, &["\"redy\"", "did you mean \"ready\"?"]);
    Convene::new(["discover", "--discover=static:127.0.0.9", "--format=jsn"])
        .run()
        .ends(64, &["did you mean \"json\"?"]);
    Convene::new(["doctor", "--output=jsn"]).run().ends(64, &["--output: \"jsn\"", "did you mean \"json\"?"]);
    Convene::new(["leave", "--leave=allways"]).run().ends(64, &["--leave: \"allways\"", "did you mean \"always\"?"]);
    Convene::new(["leave", "--grace-period=1s"]).run().ends(64, &["--grace-period: \"1s\"", "from 5.0 s"]);
}

#[test]
fn what_is_missing_is_named_with_how_to_give_it() {
    Convene::new(["init", "--data-dir=/x"]).run().ends(64, &["the role", "--role server"]);
    Convene::new(["init", "--role=server", "--data-dir=/x"]).run().ends(64, &["own address", "POD_IP", "--advertise"]);
    Convene::new(["init", "--role=server", "--advertise=10.0.0.1"])
        .run()
        .ends(64, &["where to find the servers", "--discover k8s:SELECTOR, dns:NAME"]);
    Convene::new(["init", "--role=client"]).run().ends(64, &["a client must be told"]);
    Convene::new(["init", "--role=server", "--advertise=10.0.0.1", "--discover=statefulset"])
        .run()
        .ends(64, &["the StatefulSet", "POD_NAME"]);
    Convene::new(["init", "--role=server", "--resolv-conf=/does/not/exist"])
        .envs("POD_NAME=consul-server-0 POD_IP=10.0.0.1")
        .run()
        .ends(64, &["the namespace", "POD_NAMESPACE"]);
    Convene::new(["run"]).run().ends(64, &["no CMD was given", "convene run"]);
}

#[test]
fn numbers_that_do_not_fit_each_other_are_64_with_those_that_would() {
    init(&["--expect=1", "--replicas=3"])
        .run()
        .ends(64, &["--expect is 1 and --replicas is 3", "both sides of a cut", "from 2 to 3; usually 3"]);
    init(&["--expect=2", "--replicas=4"]).run().ends(64, &["both sides of a cut", "from 3 to 4"]);
    init(&["--expect=5", "--replicas=3"]).run().ends(64, &["that many servers will never come"]);
    init(&["--expect=2", "--replicas=3"]).run().ends(73, &[]);
}

#[test]
fn an_expect_of_one_beside_another_server_is_refused_with_64() {
    let data = tempfile::tempdir().unwrap();
    Convene::new([
        "init",
        "--role=server",
        "--advertise=127.0.0.1",
        "--discover=static:127.255.255.253",
        "--server-port=1",
        "--expect=1",
        "--data-dir",
    ])
    .words([data.path()])
    .run()
    .ends(64, &["rule 8: expect is 1", "there is another server (127.255.255.253)", "--expect 2"]);
}

#[test]
fn cmd_that_contradicts_the_decision_is_64_with_flag_and_mend() {
    for (words, parts) in [
        (
            vec!["consul", "agent", "-server", "-client=0.0.0.0", "-bootstrap"],
            vec!["CMD cannot stay", "-bootstrap is true", "remove it"],
        ),
        (vec!["consul", "agent", "-server", "-client=0.0.0.0", "-dev"], vec!["-dev is true"]),
        (vec!["consul", "agent", "-server", "-client=0.0.0.0", "-node-id=x"], vec!["-node-id is x", "node-id"]),
        (
            vec!["consul", "agent", "-server", "-client=0.0.0.0", "-data-dir=/other"],
            vec!["--data-dir is /does/not/exist but CMD's -data-dir is /other", "once"],
        ),
        (vec!["consul", "agent", "-server"], vec!["client_addr", "-client=0.0.0.0"]),
        (vec!["consul", "agent", "-server", "-bootstrap-expect=0"], vec!["CMD's -bootstrap-expect: \"0\""]),
        (vec!["consul", "agent", "-server", "-retry-join=a b"], vec!["CMD's -retry-join: \"a b\"", "no spaces"]),
        (vec!["sh", "-c", "consul agent"], vec!["sh -c", "convene run -- consul agent"]),
    ] {
        run(&words).run().ends(64, &parts);
    }
    let said_twice = Convene::new([
        "run",
        "--expect=5",
        "--data-dir=/does/not/exist",
        "--",
        "consul",
        "agent",
        "-server",
        "-bootstrap-expect=3",
    ]);
    said_twice
        .envs("POD_IP=10.0.0.1 POD_NAME=consul-server-0 POD_NAMESPACE=x")
        .run()
        .ends(64, &["--expect is 5 but CMD's -bootstrap-expect is 3"]);
    Convene::new(["run", "--plain", "--exec", "--", "true"]).run().ends(64, &["--plain and --exec contradict"]);
}

#[test]
fn a_wrong_wish_for_the_supervision_is_64_with_what_is_allowed() {
    let plain = |flag: &str| Convene::new(["run", "--plain", flag, "--", "true"]).run();
    for (flag, parts) in [
        ("--rewrite=15", ["--rewrite: \"15\"", "FROM:TO, each a signal by number (1 to 31) or name (TERM)"]),
        ("--rewrite=TERM:ITN", ["--rewrite: \"TERM:ITN\"", "TO may be 0"]),
        ("--rewrite=KILL:TERM", ["--rewrite: \"KILL:TERM\"", "FROM not be KILL, STOP or CHLD"]),
        ("--rewrite=15:2,15:3", ["--rewrite rewrites SIGTERM twice", "give it once"]),
        ("--success=256", ["--success: \"256\"", "a whole number from 0 to 255"]),
        ("--parent-death=soon", ["--parent-death: \"soon\"", "a signal by number (1 to 31) or name (TERM)"]),
        ("--group=maybe", ["--group: \"maybe\"", "true, false"]),
        ("--session=yes", ["--session: \"yes\"", "true, false"]),
    ] {
        plain(flag).ends(64, &parts);
    }
    for flag in ["--group", "--session", "--rewrite=15:2", "--success=143"] {
        let both = format!("{} and --exec contradict each other", flag.split('=').next().unwrap());
        for words in [&["run", "--exec", flag, "--", "true"][..], &["run", "--exec", "--prepared", flag, "--", "true"]]
        {
            Convene::new(words).run().ends(64, &[&both, "nobody is left to do it; give one"]);
        }
    }
    Convene::new(["run", "--exec", "--", "true"])
        .env("CONVENE_REWRITE", "15:2")
        .run()
        .ends(64, &["CONVENE_REWRITE and --exec contradict"]);
    Convene::new(["run", "--rewrite=TERM:0", "--", "consul", "agent"])
        .run()
        .ends(64, &["--rewrite drops TERM", "never be told to end", "--plain"]);
}

#[test]
fn a_failure_stands_in_the_termination_log_when_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("termination-log");
    init(&["--expect=0"]).env("CONVENE_TERMINATION_LOG", &log).run().ends(64, &[]);
    assert!(!log.exists(), "it is kubelet's to make");
    for words in [["--expect=0"], ["--expct=0"], ["--wait=1s"]] {
        fs::write(&log, "older words that are longer than the new ones, and must not show any more: ".repeat(9))
            .unwrap();
        let ended = init(&words).env("CONVENE_TERMINATION_LOG", &log).run();
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let said = text.trim().strip_prefix("convene: ").unwrap();
        assert!(ended.last_line().contains(said), "{said} is not in {}", ended.last_line());
    }
}

#[test]
fn help_and_version_are_0_and_on_stdout() {
    let help = Convene::new(["--help"]).run();
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    assert!(help.stdout.contains("discover"));
    assert_eq!(Convene::new(["--version"]).run().stdout, format!("convene {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn install_copies_the_program_and_refuses_what_is_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        assert_eq!(Convene::new(["install"]).words([folder.path()]).run().code, 0);
    }
    let installed = folder.path().join("convene");
    assert_eq!(fs::read(&installed).unwrap(), fs::read(env!("CARGO_BIN_EXE_convene")).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(Convene::behind(installed.to_str().unwrap(), ["--version"]).run().code, 0);
    fs::remove_file(&installed).unwrap();
    let init =
        ["init", "--role=client", "--discover=static:127.0.0.1", "--create-data-dir", "--nameserver=127.0.0.1:9"];
    let data = folder.path().join("data");
    let data = [format!("--data-dir={}", data.display()), format!("--install={}", folder.path().display())];
    Convene::new(init).words(data).run().ends(0, &["ready to start the agent"]);
    assert!(installed.exists(), "init --install saves an init container");
    Convene::new(["init", "--role=client", "--discover=static:127.0.0.1", "--install=/does/not/exist"])
        .run()
        .ends(73, &["does not exist"]);
    Convene::new(["install"]).words([&installed]).run().ends(73, &["not a folder"]);
    Convene::new(["install", "/does/not/exist"]).run().ends(73, &["does not exist", "shared volume"]);
}

/// Every row of README's table, and of the program's, is made to happen.
#[test]
fn every_row_of_the_exit_code_table_is_produced() {
    let data = tempfile::tempdir().unwrap();
    let new = |words: &[&str]| Convene::new(words).run().code;
    let at = |words: &[&str]| Convene::new(words).words([data.path()]).run().code;
    let malformed = tempfile::tempdir().unwrap();
    fs::write(malformed.path().join("node-id"), "x").unwrap();
    let server = "--role=server --advertise=127.0.0.1 --server-port=1 --expect=2";
    let server: Vec<&str> = server.split(' ').collect();
    let waiting = [
        &["init", "--wait=0s", "--discover=dns:consul.example.", "--nameserver=127.0.0.1:1"],
        &server[..],
        &["--data-dir"],
    ]
    .concat();
    let contradicted = [&["init", "--discover=static:127.255.255.253"], &server[..], &["--data-dir"]].concat();
    let produced = [
        ("0", new(&["--version"])),
        ("1", new(&["check", "live"])),
        ("64", new(&["init", "--expect=0"])),
        ("69", new(&["discover", "--discover=dns:consul.example.", "--nameserver=127.0.0.1:1"])),
        ("71", no_more_processes()),
        ("73", new(&["install", "/does/not/exist"])),
        ("75", at(&waiting)),
        ("78", Convene::new(&contradicted).words([malformed.path()]).run().code),
        ("126", new(&["run", "--plain", "--", "/etc/passwd"])),
        ("127", new(&["run", "--plain", "--", "/does/not/exist"])),
        ("128+n", new(&["run", "--plain", "--", "sh", "-c", "kill -TERM $$"])),
        ("other", new(&["run", "--plain", "--", "sh", "-c", "exit 42"])),
    ];
    let documented: Vec<(&str, &str)> = convene::exit::TABLE.to_vec();
    assert_eq!(
        documented.iter().map(|(code, _)| *code).collect::<Vec<_>>(),
        produced.iter().map(|(row, _)| *row).collect::<Vec<_>>()
    );
    for (row, code) in produced {
        let expected = match row {
            "128+n" => 143,
            "other" => 42,
            number => number.parse().unwrap(),
        };
        assert_eq!(code, expected, "row {row}");
    }
}

/// A process limit of one, for a user who has no process yet: the child cannot be made. Root has no such limit.
fn no_more_processes() -> i32 {
    // A copy where any user may come: the build's own folder is often closed to others.
    let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    assert_eq!(Convene::new(["install"]).words([folder.path()]).run().code, 0);
    let convene = folder.path().join("convene");
    let limited = ["prlimit", "--nproc=1", convene.to_str().unwrap(), "run", "--plain", "--", "/bin/true"];
    if nix::unistd::Uid::effective().is_root() {
        Convene::behind("setpriv", ["--reuid=61234", "--regid=61234", "--clear-groups"]).words(limited).run().code
    } else {
        Convene::behind("prlimit", &limited[1..]).run().code
    }
}

#[test]
fn readme_lists_every_setting_and_every_exit_code_as_the_program_has_them() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let rows: BTreeSet<&str> = readme.lines().filter(|line| line.starts_with('|')).collect();
    for (code, meaning) in convene::exit::TABLE {
        let row = format!("| {code} | {meaning} |");
        assert!(rows.contains(row.as_str()), "README lacks: {row}");
    }
    for (flag, twin, help) in convene::cli::documented() {
        let row = format!("| `{flag}` | `{twin}` | {help} |");
        assert!(rows.contains(row.as_str()), "README lacks: {row}");
    }
    let known: BTreeSet<String> = convene::cli::documented().into_iter().map(|(flag, _, _)| flag).collect();
    for flag in rows.iter().filter_map(|row| row.strip_prefix("| `--")?.split(['`', ' ', '=']).next()) {
        assert!(
            known.iter().any(|known| known.trim_start_matches("--").split(' ').next() == Some(flag)),
            "README names --{flag}, which is none"
        );
    }
}
