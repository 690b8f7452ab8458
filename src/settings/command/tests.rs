use super::*;
use std::fs;

fn read(words: &[&str]) -> Result<Option<AgentCommand>, CommandError> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    AgentCommand::read(&words, &Env::default())
}

fn agent(line: &str) -> AgentCommand {
    read(&line.split(' ').collect::<Vec<_>>()).unwrap().unwrap()
}

fn wanted(advertise: &str) -> Wanted<'static> {
    Wanted { server: true, advertise: Some(advertise.parse().unwrap()), node_name: "consul-server-0" }
}

fn contradictions(command: &AgentCommand) -> Vec<String> {
    command.contradictions(&wanted("10.1.2.3")).iter().map(ToString::to_string).collect()
}

#[test]
fn the_command_line_that_people_have_today_is_taken_over() {
    let command = agent(
        "consul agent -bootstrap-expect=3 -retry-join=consul-server -advertise=10.1.2.3 -server -client=0.0.0.0 -data-dir /consul/data",
    );
    let facts = command.facts();
    assert_eq!(facts.bootstrap_expect.as_ref().unwrap().value, 3);
    assert_eq!(facts.joins()[0].value, "consul-server");
    assert!(facts.server.as_ref().unwrap().value);
    assert_eq!(facts.advertise_addr.as_ref().unwrap().value.ip(), Some("10.1.2.3".parse().unwrap()));
    assert_eq!(facts.data_dir.as_ref().unwrap().value, Path::new("/consul/data"));
    assert_eq!(contradictions(&command), [""; 0]);
    let words = command.with_config_file(Path::new("/x.json"));
    let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
    assert_eq!(
        words,
        [
            "consul",
            "agent",
            "-advertise=10.1.2.3",
            "-server",
            "-client=0.0.0.0",
            "-data-dir",
            "/consul/data",
            "-config-file=/x.json"
        ]
    );
}

#[test]
fn flags_are_taken_out_in_each_of_gos_forms_and_nothing_else_is() {
    let command =
        agent("/bin/consul agent --bootstrap-expect 3 -retry-join a --retry-join=b -server=true -join c -- rest");
    assert_eq!(command.facts().joins().iter().map(|said| said.value.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    let words = command.with_config_file(Path::new("/x"));
    assert_eq!(words, ["/bin/consul", "agent", "-server=true", "-config-file=/x", "--", "rest"].map(OsString::from));
}

#[test]
fn an_agent_is_found_behind_the_usual_wrappers() {
    for line in [
        "consul agent -server",
        "/usr/local/bin/docker-entrypoint.sh agent -server",
        "docker-entrypoint.sh consul agent -server",
        "dumb-init --single-child -r 15:2 -- consul agent -server",
        "tini -g -p SIGKILL -- /consul agent -server",
        "su-exec consul:consul consul agent -server",
        "env A=b consul agent -server",
        "agent -server",
    ] {
        assert!(agent(line).facts().server.as_ref().unwrap().value, "{line}");
    }
    for line in ["consul version", "nginx -g daemon", "sh script.sh", "docker-entrypoint.sh", "vault agent -server"] {
        assert!(read(&line.split(' ').collect::<Vec<_>>()).unwrap().is_none(), "{line}");
    }
}

#[test]
fn a_shell_is_refused_with_the_mend() {
    for words in [["sh", "-c", "consul agent"], ["/bin/bash", "-ec", "consul agent"]] {
        let error = read(&words).unwrap_err().to_string();
        assert!(error.contains("convene run -- consul agent"), "{error}");
    }
}

#[test]
fn the_entrypoints_own_folders_count() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.json"), r#"{"bind_addr": "0.0.0.0", "client_addr": "0.0.0.0"}"#).unwrap();
    let env = Env::from([
        ("CONSUL_CONFIG_DIR", folder.path().to_str().unwrap()),
        ("CONSUL_LOCAL_CONFIG", r#"{"datacenter": "east"}"#),
    ]);
    let words = ["docker-entrypoint.sh", "agent", "-server"].map(OsString::from);
    let command = AgentCommand::read(&words, &env).unwrap().unwrap();
    assert_eq!(command.facts().client_addr.as_ref().unwrap().value, "0.0.0.0");
    assert_eq!(command.facts().datacenter.as_ref().unwrap().value, "east");
    assert_eq!(command.facts().data_dir.as_ref().unwrap().value, Path::new("/consul/data"));
}

#[test]
fn files_merge_as_consul_merges_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.hcl"), "server = false\nports { http = 1 }\nnode_name = \"a\"\n").unwrap();
    fs::write(folder.path().join("b.json"), r#"{"server": true, "ports": {"http": 2, "server": 9300}}"#).unwrap();
    fs::write(folder.path().join("c.txt"), "not read").unwrap();
    let folder = folder.path().to_str().unwrap().to_owned();
    let command = read(&["consul", "agent", "-config-dir", &folder, "-http-port=3", "-hcl", "domain = \"c.example\""])
        .unwrap()
        .unwrap();
    let facts = command.facts();
    assert!(facts.server.as_ref().unwrap().value, "the last file wins");
    assert_eq!(facts.port_http.as_ref().unwrap().value, 3, "a flag wins over every file");
    assert_eq!(facts.port_server.as_ref().unwrap().value, 9300);
    assert_eq!(facts.node_name.as_ref().unwrap().place.to_string(), format!("node_name in {folder}/a.hcl"));
    assert_eq!(facts.domain.as_ref().unwrap().value, "c.example");
    assert_eq!(command.warnings(), [""; 0]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_warning_without_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.json");
    fs::write(&file, "{\"encrypt\": \"b1gs3cret\"\n oops").unwrap();
    let command =
        read(&["consul", "agent", "-config-file", file.to_str().unwrap(), "-config-file=/does/not/exist.hcl"])
            .unwrap()
            .unwrap();
    assert_eq!(command.warnings().len(), 2);
    assert!(command.warnings()[0].ends_with("as JSON (line 2); convene judges without it"), "{:?}", command.warnings());
    assert!(!format!("{:?}", command.warnings()).contains("b1gs3cret"));
}

#[test]
fn every_contradiction_is_one_line_with_place_and_mend() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.hcl");
    fs::write(&file, "bootstrap_expect = 3\nretry_join = [\"consul\"]\nleave_on_terminate = true\n").unwrap();
    let file = file.to_str().unwrap();
    let words = [
        "consul",
        "agent",
        "-bootstrap",
        "-dev",
        "-node-id=x",
        "-advertise=10.9.9.9",
        "-node=other",
        "-server=false",
        "-config-file",
        file,
    ];
    let command = read(&words).unwrap().unwrap();
    let lines = contradictions(&command);
    assert_eq!(
        lines,
        [
            "CMD's -bootstrap elects this server without asking any other; take it out".to_owned(),
            "CMD's -dev keeps nothing and joins nobody; take it out".to_owned(),
            format!("leave_on_terminate in {file} removes a voter at every stop; take it out, and give --leave=always if that is what you want"),
            "CMD's -node-id is \"x\", but the node ID stands in the data folder's node-id; take it out; a valid ID that is there is never changed".to_owned(),
            format!("bootstrap_expect in {file} is 3 for every start, also one that must not found; take it out and give --expect 3"),
            format!("retry_join in {file} is \"consul\", which may be this server itself; take it out and give --discover dns:consul"),
            "CMD's -server is false but --role is server; say the role once".to_owned(),
            "CMD's -advertise is 10.9.9.9 but --advertise is 10.1.2.3; say the address once".to_owned(),
            "CMD's -node is \"other\" but --node-name is \"consul-server-0\"; say the name once".to_owned(),
            "client_addr, which CMD does not set, is 127.0.0.1, where no other server can ask this one (it advertises 10.1.2.3); give CMD -client=0.0.0.0".to_owned(),
        ]
    );
}

#[test]
fn an_api_on_loopback_is_fine_for_a_client_and_for_servers_on_loopback() {
    let command = agent("consul agent -server");
    assert_eq!(command.contradictions(&wanted("127.0.0.2")), []);
    let client = Wanted { server: false, ..wanted("10.1.2.3") };
    assert_eq!(agent("consul agent").contradictions(&client), []);
    assert_eq!(
        agent("consul agent -server -client {{GetPrivateIP}}").contradictions(&wanted("10.1.2.3")),
        [],
        "a template is Consul's to fill in"
    );
}

#[test]
fn a_value_that_consul_would_refuse_is_named() {
    assert_eq!(
        read(&["consul", "agent", "-server=maybe"]).unwrap_err().to_string(),
        "CMD's -server: \"maybe\" is not allowed; allowed: true or false"
    );
    assert_eq!(
        read(&["consul", "agent", "-bootstrap-expect", "three"]).unwrap_err().to_string(),
        "CMD's -bootstrap-expect: \"three\" is not allowed; allowed: a whole number"
    );
}

#[test]
fn a_flag_of_a_newer_consul_is_handed_on() {
    let command = agent("consul agent -brand-new=1 -newer value -server");
    assert!(command.facts().server.as_ref().unwrap().value);
    assert_eq!(command.warnings().len(), 2);
    assert_eq!(command.with_config_file(Path::new("/x")).len(), 7);
}
