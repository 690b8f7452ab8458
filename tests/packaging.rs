//! Do the files around the program keep their promises? Reads the Dockerfile, the Makefile, deny.toml and .ci/run as text, since
//! nothing here can build an image, and asks `make` itself what it offers.

// Clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unwrap_used)]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use support::skip::needs_program;

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("could not read {file}: {e}"))
}

/// The lines that are no comments.
fn said(file: &str) -> Vec<String> {
    read(file)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// The Dockerfile's instructions (`FROM`, and what follows it), their continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let joined = said("Dockerfile").join("\n").replace("\\\n", " ");
    let split = |line: &str| line.split_once(' ').map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()));
    joined.lines().map(|line| split(line).unwrap_or_else(|| panic!("not an instruction: {line}"))).collect()
}

/// What the image itself is made of: the instructions after the last FROM, and that one.
fn image() -> Vec<(String, String)> {
    let all = instructions();
    let last = all.iter().rposition(|(word, _)| word == "FROM").expect("a stage");
    all[last..].to_vec()
}

fn values<'a>(of: &'a [(String, String)], word: &str) -> Vec<&'a str> {
    of.iter().filter(|(first, _)| first == word).map(|(_, rest)| rest.as_str()).collect()
}

/// Every `make WORD` that stands in a file as a command: at the start of a line or of `code`, or as a word of a script.
fn make_targets_named_in(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        for (at, _) in line.match_indices("make ") {
            let before = line[..at].trim_start_matches(['$', ' ']);
            let is_command = before.is_empty() || before.ends_with('`') || before.ends_with("&& ");
            let target: String = line[at + 5..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
                .collect();
            if is_command && !target.is_empty() {
                found.insert(target);
            }
        }
    }
    found
}

/// The targets that `.PHONY` lists.
fn make_targets() -> BTreeSet<String> {
    let makefile = read("Makefile");
    let phony = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).expect("a .PHONY line");
    phony.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_image_holds_the_program_and_its_licence_and_nothing_else() {
    let image = image();
    assert_eq!(values(&image, "FROM"), ["scratch"]);
    assert_eq!(values(&image, "COPY"), ["LICENSE /LICENSE", "--from=build /build/target/release/convene /convene"]);
    assert_eq!(values(&image, "ADD"), [""; 0]);
    assert_eq!(values(&image, "RUN"), [""; 0], "an empty image has nothing to run");
}

#[test]
fn the_image_starts_convene_itself_as_the_user_of_consuls_image() {
    let image = image();
    assert_eq!(values(&image, "USER"), ["100:1000"]);
    assert_eq!(values(&image, "ENTRYPOINT"), [r#"["/convene"]"#]);
    assert_eq!(values(&image, "CMD"), [""; 0]);
}

#[test]
fn the_image_says_the_version_and_the_licence_of_the_package() {
    let image = image();
    let labels = values(&image, "LABEL").join(" ");
    for (label, value) in [
        ("version", env!("CARGO_PKG_VERSION")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ] {
        let wanted = format!("org.opencontainers.image.{label}=\"{value}\"");
        assert!(labels.contains(&wanted), "{wanted} is not in: {labels}");
    }
}

#[test]
fn the_image_is_built_from_locked_crates_by_a_named_rust_that_is_new_enough() {
    let all = instructions();
    let builds: Vec<&str> = values(&all, "RUN").into_iter().filter(|run| run.contains("cargo ")).collect();
    assert!(!builds.is_empty());
    for build in builds {
        assert!(build.contains("--locked"), "{build}");
    }
    let bases: Vec<&str> = values(&all, "FROM").into_iter().filter(|base| *base != "scratch").collect();
    assert_eq!(bases.len(), 1, "{bases:?}");
    let image = bases[0].split_whitespace().next().unwrap();
    let (name, tag) = image.split_once(':').expect("a tag, so that it is not the latest");
    assert_eq!(name, "rust");
    let (version, system) = tag.split_once('-').expect("version and system");
    assert!(system.starts_with("alpine"), "musl makes the binary static; {system} may not be musl");
    let number = |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().unwrap()).collect() };
    assert!(number(version) >= number(env!("CARGO_PKG_RUST_VERSION")), "{version}");
}

#[test]
fn the_image_build_is_given_no_secret_and_only_what_it_copies() {
    let all = instructions();
    for (word, rest) in &all {
        assert!(!["ARG", "ENV", "ADD"].contains(&word.as_str()), "{word} {rest}: a value may stay in a layer");
        for secret in ["secret", "token", "password"] {
            assert!(!rest.to_lowercase().contains(secret), "{word} {rest}");
        }
    }
    let ignored = said(".dockerignore");
    assert_eq!(ignored[0], "*");
    let allowed: BTreeSet<&str> =
        ignored[1..].iter().map(|line| line.strip_prefix('!').expect("an exception")).collect();
    let mut copied = BTreeSet::new();
    for copy in values(&all, "COPY").into_iter().filter(|copy| !copy.contains("--from=")) {
        let words: Vec<&str> = copy.split_whitespace().collect();
        copied.extend(words[..words.len() - 1].to_vec());
    }
    assert_eq!(allowed, copied);
}

#[test]
fn the_changelog_and_the_licence_are_there_and_whole() {
    let changelog = read("CHANGELOG.md");
    assert!(changelog.contains("## [Unreleased]"));
    let licence = read("LICENSE");
    assert!(licence.contains("Version 2.0, January 2004") && licence.contains("END OF TERMS AND CONDITIONS"));
}

#[test]
fn the_crates_that_deny_toml_forbids_are_not_locked() {
    let deny = read("deny.toml");
    let banned: Vec<&str> =
        deny.lines().filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next()).collect();
    for name in ["openssl", "native-tls", "aws-lc-sys"] {
        assert!(banned.contains(&name), "{name} is not in {banned:?}");
    }
    let lock = read("Cargo.lock");
    for name in banned {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} is in Cargo.lock");
    }
}

#[test]
fn make_alone_lists_every_target() {
    if !needs_program("make_alone_lists_every_target", "make") {
        return;
    }
    // By a make that calls the tests its flags and level are handed down; here it is a person's first word.
    let output = Command::new("make")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .stdin(Stdio::null())
        .output()
        .expect("make starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.split_whitespace().nth(1).expect("make TARGET what").to_owned())
        .collect();
    assert_eq!(listed, make_targets());
}

#[test]
fn every_make_target_that_a_text_names_exists() {
    let targets = make_targets();
    let mut named = BTreeSet::new();
    for file in ["README.md", "CHANGELOG.md", ".ci/run"] {
        // README is the last file that is written.
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default();
        named.extend(make_targets_named_in(&text));
    }
    assert!(named.contains("demo") && named.contains("test"), "{named:?}");
    assert!(named.is_subset(&targets), "{:?}", named.difference(&targets));
}

#[test]
fn ci_runs_what_people_run() {
    let script = said(".ci/run");
    for target in ["lint", "test", "static", "demo", "bench", "e2e"] {
        let call = format!("make {target}");
        assert!(script.iter().any(|line| line.contains(&call)), ".ci/run does not call {call}");
    }
    assert!(script.iter().any(|line| line == "set -euo pipefail"));
    assert!(script.iter().any(|line| line.contains("CONVENE_STRICT=1 make test")), "a skipped test must fail CI");
}

// === deploy ===

/// Of a folder of deploy/: how many servers, and the Services of the servers themselves, those of its base included.
fn folder(name: &str) -> (u32, String) {
    let file = |file: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap_or_default()
    };
    let kustomization = file(&format!("{name}/kustomization.yaml"));
    let set = file("server/statefulset.yaml");
    let base = set.lines().find_map(|line| line.trim().strip_prefix("replicas: ")).unwrap().parse().unwrap();
    let count = kustomization.split("count: ").nth(1).and_then(|rest| rest.split('}').next()?.parse().ok());
    let services = [file("server/services.yaml"), file(&format!("{name}/services.yaml"))].join("\n---\n");
    let deleted =
        |service: &str| kustomization.contains(&format!("metadata: {{name: {service}}}\n      $patch: delete"));
    let kept = services.split("\n---\n").filter(|one| {
        let name = one.lines().find_map(|line| line.strip_prefix("  name: "));
        name.is_some_and(|name| !deleted(name))
    });
    (count.unwrap_or(base), kept.collect::<Vec<_>>().join("\n---\n"))
}

#[test]
fn every_server_of_deploy_has_a_service_of_its_own_that_answers_before_it_is_ready() {
    for name in ["server", "server-init", "server-five", "server-one"] {
        let (replicas, services) = folder(name);
        for ordinal in 0..replicas {
            let name = format!("consul-server-{ordinal}");
            let service = services.split("\n---\n").find(|one| one.contains(&format!("\n  name: {name}\n"))).unwrap();
            assert!(
                service.contains(&format!(
                    "selector: {{statefulset.kubernetes.io/pod-name: {name}, convene.dev/reachable: \"true\"}}"
                )),
                "{service}"
            );
            assert!(
                service.contains("publishNotReadyAddresses: true") && !service.contains("clusterIP: None"),
                "{service}"
            );
            for port in [8300, 8301, 8302, 8500, 8501, 8502, 8503] {
                assert!(
                    service.contains(&format!("port: {port}}}")) || service.contains(&format!("port: {port},")),
                    "{port}"
                );
            }
            assert!(service.contains("port: 8301, protocol: UDP"), "gossip needs UDP");
        }
        assert!(!services.contains(&format!("name: consul-server-{replicas}\n")), "{name}: and nobody else has one");
    }
}

#[test]
fn the_quorum_of_every_folder_of_deploy_is_its_number_of_servers() {
    for name in ["server", "server-five", "server-one"] {
        let quorum = read(&format!("deploy/{name}/quorum.hcl"));
        assert!(quorum.contains(&format!("min_quorum = {}\n", folder(name).0)), "{name}: {quorum}");
    }
    assert!(read("deploy/server/convene.env").contains("CONVENE_EXPECT=auto\n"));
}

#[test]
fn the_role_that_a_refusal_names_is_there_and_grants_nothing_but_what_is_asked() {
    let access = read("deploy/server/access.yaml");
    let rules: Vec<&str> =
        access.lines().filter(|line| line.trim().starts_with("- {apiGroups")).map(str::trim).collect();
    assert_eq!(
        rules,
        [
            "- {apiGroups: [\"\"], resources: [pods], verbs: [get, list]}",
            "- {apiGroups: [\"\"], resources: [pods], verbs: [patch], resourceNames: [consul-server-0, consul-server-1, consul-server-2]}",
            "- {apiGroups: [apps], resources: [statefulsets], verbs: [get]}",
            "- {apiGroups: [\"\"], resources: [services], verbs: [get]}",
            "- {apiGroups: [\"\"], resources: [configmaps], verbs: [get, create, update]}",
            "- {apiGroups: [\"\"], resources: [events], verbs: [create]}",
        ]
    );
    assert!(access.contains("kind: Role\n") && !access.contains("ClusterRole"));
}

#[test]
fn reap_may_read_nodes_and_nothing_else_and_says_where_a_person_sees_it_that_it_removes() {
    let access = read("deploy/reap/access.yaml");
    let rules: Vec<&str> = access.lines().map(str::trim).filter(|line| line.starts_with("- {apiGroups")).collect();
    assert_eq!(rules, ["- {apiGroups: [\"\"], resources: [nodes], verbs: [get, list]}"]);
    let job = said("deploy/reap/cronjob.yaml");
    for line in [
        "- --yes",
        "concurrencyPolicy: Forbid",
        "backoffLimit: 0",
        "runAsNonRoot: true",
        "seccompProfile: {type: RuntimeDefault}",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "capabilities: {drop: [ALL]}",
    ] {
        assert!(job.iter().any(|said| said == line), "{line} is not in {job:#?}");
    }
    // Its time must do for as many removals as one run makes.
    let seconds: usize =
        job.iter().find_map(|line| line.strip_prefix("activeDeadlineSeconds: ")).unwrap().parse().unwrap();
    assert!(seconds >= convene::settings::reaping::DEFAULT_AT_MOST * 10);
}

#[test]
fn every_setting_in_deploy_is_one_of_convenes() {
    let twins = convene::cli::environment_twins();
    let mut names = BTreeSet::new();
    for (file, text) in deploy() {
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        for name in words.filter(|word| word.starts_with("CONVENE_")) {
            assert!(twins.iter().any(|twin| twin == name), "{file}: {name}");
            names.insert(name.to_owned());
        }
    }
    assert!(names.contains("CONVENE_EXPECT") && names.contains("CONVENE_DISCOVER"), "{names:?}");
}

/// Every file of deploy/: its path below that, and its text.
fn deploy() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let (mut folders, mut files) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

#[test]
fn the_components_of_deploy_find_the_volume_that_they_add_secrets_to() {
    for (file, agent) in [
        ("deploy/server/statefulset.yaml", "convene.dev/agent: server"),
        ("deploy/client/daemonset.yaml", "convene.dev/agent: client"),
        ("deploy/components/sidecar/agent.yaml", ""),
    ] {
        let text = read(file);
        let volumes: Vec<&str> = text
            .split("\n      volumes:\n")
            .nth(1)
            .unwrap()
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with('-'))
            .collect();
        assert!(
            volumes[0].starts_with("- {name: consul-tuning, projected: {sources: [{configMap: "),
            "{file}: {volumes:?}"
        );
        assert!(text.contains(agent), "{file}: {agent}");
    }
    for (file, text) in deploy().iter().filter(|(file, _)| file.ends_with("/app.yaml") || file.ends_with("/job.yaml")) {
        assert!(text.contains("convene.dev/agent: sidecar"), "{file}");
    }
}

#[test]
fn nothing_in_deploy_puts_a_secret_where_others_can_read_it() {
    for (file, text) in deploy() {
        let said = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for line in said {
            for word in ["-encrypt", "CONSUL_HTTP_TOKEN:", "CONSUL_HTTP_TOKEN=", "-token", "encrypt ="] {
                assert!(!line.contains(word), "{file}: {line}");
            }
        }
    }
}
