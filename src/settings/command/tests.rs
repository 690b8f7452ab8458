//! Does a whole CMD, with its files and its environment, give the facts, the words and the lines that it should?

use std::fs;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::settings::http::Secret;

const ID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

fn no_variable(_: &str) -> Option<OsString> {
    None
}

#[track_caller]
fn agent(text: &str) -> AgentCommand {
    agent_of(words(text))
}

#[track_caller]
fn agent_of(words: Vec<OsString>) -> AgentCommand {
    AgentCommand::read(words, no_variable).unwrap().unwrap()
}

#[track_caller]
fn refused(text: &str) -> String {
    AgentCommand::read(words(text), no_variable).unwrap_err().to_string()
}

fn by_flag<T>(value: T, name: &str) -> Option<Said<T>> {
    Some(Said { value, place: Place::Flag(name.to_owned()) })
}

fn values(list: &[Said<String>]) -> Vec<&str> {
    list.iter().map(|said| said.value.as_str()).collect()
}

/// A folder with files, and CMD's words with `DIR` for it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    #[track_caller]
    fn agent(&self, text: &str) -> AgentCommand {
        agent(&text.replace("DIR", self.path()))
    }

    /// Without the folder's own name, which differs in every run.
    fn lines(&self, lines: impl Iterator<Item = String>) -> Vec<String> {
        lines.map(|line| line.replace(self.path(), "DIR")).collect()
    }
}

fn wanted() -> Wanted<'static> {
    Wanted {
        server: true,
        node_id: Some(ID),
        advertise: Some("10.1.2.3".parse().unwrap()),
        data_dir: Path::new("/consul/data"),
        node_name: Some("consul-server-0"),
        rendered: Path::new("/consul/data/convene/agent.json"),
    }
}

fn lines(agent: &AgentCommand, wanted: &Wanted<'_>) -> Vec<String> {
    agent.contradictions(wanted).iter().map(ToString::to_string).collect()
}

#[test]
fn the_command_line_that_people_have_is_read_whole() {
    let agent = agent(
        "consul agent -bootstrap-expect=3 -retry-join=consul-server -advertise=10.1.2.3 -server -data-dir /consul/data",
    );
    let facts = agent.facts();
    assert_eq!(facts.bootstrap_expect, by_flag(3, "bootstrap-expect"));
    assert_eq!(values(&facts.retry_join), ["consul-server"]);
    assert_eq!(facts.advertise_addr, by_flag("10.1.2.3".parse().ok(), "advertise"));
    assert_eq!(facts.server, by_flag(true, "server"));
    assert_eq!(facts.data_dir, by_flag(PathBuf::from("/consul/data"), "data-dir"));
    assert_eq!(agent.agent_at(), 2);
    assert_eq!(agent.warnings().count(), 0);
    assert_eq!(
        agent.without(&TAKEN_OUT, Path::new("/r.json")),
        words("consul agent -advertise=10.1.2.3 -server -data-dir /consul/data -config-file=/r.json")
    );
    assert_eq!(
        lines(&agent, &wanted()),
        [
            "client_addr (Consul's default) is 127.0.0.1, but the other servers must be able to ask this one: give CMD -client=0.0.0.0"
        ]
    );
}

#[test]
fn every_flag_of_interest_becomes_its_fact() {
    let agent = agent(
        "consul agent -bind {{GetPrivateIP}} -bootstrap=0 -client=0.0.0.0 -datacenter=DC1 -dev=F -domain k8s. -encrypt=k3y \
         -http-port=80 -https-port 443 -node=n -node-id=x -rejoin -serf-lan-port=1 -serf-wan-port -1 -server=T -server-port=0",
    );
    let wanted = Facts {
        bind_addr: by_flag(None, "bind"),
        bootstrap: by_flag(false, "bootstrap"),
        client_addr: by_flag("0.0.0.0".to_owned(), "client"),
        datacenter: by_flag("dc1".to_owned(), "datacenter"),
        dev: by_flag(false, "dev"),
        domain: by_flag("k8s.".to_owned(), "domain"),
        encrypt: by_flag(Secret::new("k3y"), "encrypt"),
        ports: Ports {
            http: by_flag(80, "http-port"),
            https: by_flag(443, "https-port"),
            serf_lan: by_flag(1, "serf-lan-port"),
            serf_wan: by_flag(-1, "serf-wan-port"),
            server: by_flag(0, "server-port"),
        },
        node_name: by_flag("n".to_owned(), "node"),
        node_id: by_flag("x".to_owned(), "node-id"),
        rejoin_after_leave: by_flag(true, "rejoin"),
        server: by_flag(true, "server"),
        ..Facts::default()
    };
    assert_eq!(agent.facts(), &wanted);
}

#[test]
fn another_program_gives_nothing_and_a_shell_an_error() {
    assert_eq!(AgentCommand::read(words("/bin/true"), no_variable), Ok(None));
    assert!(refused("/bin/sh -ec consul").contains("`sh -c` hides them in a string; write the words themselves"));
}

#[test]
fn the_last_of_a_repeated_flag_counts_and_lists_append() {
    let agent = agent("consul agent -retry-join=a -node=x -retry-join b -join=c -node y");
    assert_eq!(agent.facts().node_name, by_flag("y".to_owned(), "node"));
    assert_eq!(values(&agent.facts().retry_join), ["a", "b"]);
    assert_eq!(values(&agent.facts().start_join), ["c"]);
}

#[test]
fn files_follow_the_order_of_arguments_flags_beat_them_and_fragments_beat_flags() {
    let folder = Folder::of(&[
        (
            "a.json",
            r#"{"node_name": "a", "domain": "a", "datacenter": "a", "retry_join": ["a"], "ports": {"http": 1, "https": 1}}"#,
        ),
        ("b.hcl", "domain = \"b\"\ndatacenter = \"b\"\nretry_join = [\"b\"]\nports { https = 2 }"),
    ]);
    let agent = folder.agent("consul agent -hcl=datacenter=\"hcl\" -config-file=DIR/a.json -retry-join=flag -config-file DIR/b.hcl -datacenter=flag -hcl retry_join=[\"hcl\"]");
    let facts = agent.facts();
    assert_eq!(facts.node_name.as_ref().unwrap().value, "a");
    assert_eq!(
        facts.domain.as_ref().unwrap().place,
        Place::File { path: folder.0.path().join("b.hcl"), key: "domain" }
    );
    assert_eq!(facts.datacenter, Some(Said { value: "hcl".to_owned(), place: Place::Fragment("datacenter") }));
    assert_eq!(values(&facts.retry_join), ["flag", "a", "b", "hcl"]);
    assert_eq!(facts.ports.http.as_ref().unwrap().value, 1);
    assert_eq!(facts.ports.https.as_ref().unwrap().value, 2);
}

#[test]
fn a_folder_is_read_by_name_order_without_its_folders_and_other_files() {
    let folder = Folder::of(&[
        ("b.json", r#"{"node_name": "b"}"#),
        ("a.hcl", "node_name = \"a\"\nserver = true"),
        ("c.txt", "node_name = 1"),
        ("d.json", ""),
    ]);
    fs::create_dir(folder.0.path().join("e.json")).unwrap();
    fs::write(folder.0.path().join("e.json/f.json"), r#"{"node_name": "f"}"#).unwrap();
    let agent = folder.agent("consul agent -config-dir DIR");
    assert_eq!(agent.facts().node_name.as_ref().unwrap().value, "b");
    assert!(agent.facts().server.as_ref().unwrap().value);
    assert_eq!(agent.warnings().count(), 0);
}

#[test]
fn a_mounted_config_map_is_read_through_its_symbolic_links() {
    let folder = Folder::of(&[]);
    fs::create_dir(folder.0.path().join("..data")).unwrap();
    fs::write(folder.0.path().join("..data/server.json"), r#"{"server": true}"#).unwrap();
    std::os::unix::fs::symlink("..data/server.json", folder.0.path().join("server.json")).unwrap();
    let agent = folder.agent("consul agent -config-dir=DIR");
    assert_eq!(
        agent.facts().server.as_ref().unwrap().place.to_string(),
        format!("server in {}/server.json", folder.path())
    );
}

#[test]
fn config_format_counts_for_every_file() {
    let folder = Folder::of(&[("a.txt", "server = true"), ("b.json", "node_name = \"b\"")]);
    let agent = folder.agent("consul agent -config-dir=DIR -config-format=hcl");
    assert!(agent.facts().server.is_some() && agent.facts().node_name.is_some());
    assert_eq!(
        refused("consul agent -config-format=yaml"),
        "could not read -config-format: \"yaml\" is not hcl or json"
    );
}

#[test]
fn files_that_cannot_be_read_are_warnings_that_quote_nothing() {
    let folder = Folder::of(&[
        ("a.hcl", "server = true\nencrypt = \"s3cret\" \"x\""),
        ("b.json", "{\n\"encrypt\": s3cret}"),
        ("c.json", "\u{1}"),
        ("d.txt", ""),
    ]);
    fs::write(folder.0.path().join("e.json"), b"\xff").unwrap();
    let agent = folder.agent("consul agent -config-dir=DIR -config-file=DIR/d.txt -config-file=DIR/gone.json -config-file=/dev/null -config-format= -hcl encrypt:s3cret");
    assert_eq!(
        folder.lines(agent.warnings().map(str::to_owned)),
        [
            "could not read DIR/a.hcl, line 2, as HCL: a key has neither `=` nor `{` after it; convene judges without it",
            "could not read DIR/b.json, line 2, as JSON: it is not JSON; convene judges without it",
            "could not read DIR/c.json, line 1, as JSON: it is not JSON; convene judges without it",
            "could not open DIR/e.json: it is not UTF-8; convene judges without it",
            "could not read DIR/d.txt: Consul wants a name that ends in .json or .hcl, or -config-format; convene judges without it",
            "could not open DIR/gone.json: No such file or directory (os error 2); convene judges without it",
            "could not read /dev/null: Consul wants a name that ends in .json or .hcl, or -config-format; convene judges without it",
            "could not read -hcl, line 1, as HCL: a key has neither `=` nor `{` after it; convene judges without it",
        ]
    );
}

#[test]
fn a_line_end_in_a_string_of_json_is_refused_as_consul_refuses_it() {
    let folder = Folder::of(&[("a.json", "{\n\"encrypt\": \"s3cret\n\"}")]);
    let refused = refused(&format!("consul agent -config-dir={}", folder.path()));
    let wanted = "could not read DIR/a.json, line 2, as JSON: a string has a line end in it, or another control character, and Consul refuses it: take it away (what `echo` and editors write ends with one)";
    assert_eq!(refused.replace(folder.path(), "DIR"), wanted);
}

#[test]
fn a_pipe_is_not_opened() {
    let folder = Folder::of(&[]);
    nix::unistd::mkfifo(&folder.0.path().join("p.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let agent = folder.agent("consul agent -config-file=DIR/p.json");
    assert_eq!(
        folder.lines(agent.warnings().map(str::to_owned)),
        ["could not open DIR/p.json: it is not a file; convene judges without it"]
    );
}

#[test]
fn unknown_flags_and_extra_words_are_warnings_without_their_values() {
    assert_eq!(
        agent("consul agent -new=s3cret -server s3cret -ui").warnings().collect::<Vec<_>>(),
        [
            "could not tell what CMD's flag -new means: it is unknown to convene",
            "could not read CMD's last words (2): Consul takes only flags after `agent`, and reads none of these",
        ]
    );
}

#[test]
fn a_value_of_the_wrong_kind_names_place_value_and_what_is_allowed() {
    for (text, wanted) in [
        ("-bootstrap-expect=three", "could not read -bootstrap-expect: \"three\" is not a whole number"),
        ("-server=yes", "could not read -server: \"yes\" is not true or false"),
        ("-server=", "could not read -server: \"\" is not true or false"),
        ("-http-port=70000", "could not read -http-port: \"70000\" is not a port up to 65535, or -1 for none"),
        (
            "-advertise=$(POD_IP)",
            "could not read -advertise: \"$(POD_IP)\" is not an IP address or a go-sockaddr template; a $(NAME) that is left means that the Pod lacks that variable",
        ),
        ("-hcl bootstrap_expect=\"3\"", "could not read bootstrap_expect in -hcl: \"\\\"3\\\"\" is not a whole number"),
        ("-hcl retry_join=[1,\"s3cret\"]", "could not read retry_join in -hcl: \"…\" is not a list of texts"),
        ("-hcl node_name={token=\"s3cret\"}", "could not read node_name in -hcl: \"…\" is not a text"),
    ] {
        assert_eq!(refused(&format!("consul agent {text}")), wanted);
    }
}

#[test]
fn an_empty_address_or_name_is_none() {
    let folder = Folder::of(&[("a.json", r#"{"advertise_addr": "10.0.0.1", "node_name": "x", "server": null}"#)]);
    let agent = folder.agent("consul agent -config-dir=DIR -advertise= -node=");
    assert_eq!((&agent.facts().advertise_addr, &agent.facts().node_name, &agent.facts().server), (&None, &None, &None));
}

#[test]
fn keys_are_read_as_consul_reads_them() {
    let folder = Folder::of(&[(
        "a.hcl",
        "Server = true\nACL = [{ enabled = true }]\nautopilot { min_quorum = 3 }\nbootstrap_expect = 3.0\nretry_join = \"one\"\nstart_join = [\"two\"]\naddresses { http = \"unix:///x\" }",
    )]);
    let agent = folder.agent("consul agent -config-dir=DIR");
    let facts = agent.facts();
    assert!(facts.server.as_ref().unwrap().value && facts.acl_enabled.as_ref().unwrap().value);
    assert_eq!(facts.min_quorum.as_ref().unwrap().value, 3);
    assert_eq!(facts.bootstrap_expect.as_ref().unwrap().value, 3);
    assert_eq!((values(&facts.retry_join), values(&facts.start_join)), (vec!["one"], vec!["two"]));
    assert_eq!(facts.http_addr.as_ref().unwrap().value, "unix:///x");
}

#[test]
fn the_images_entrypoint_adds_its_folders_and_its_local_config() {
    let folder = Folder::of(&[("local.json", r#"{"node_name": "old"}"#), ("z.json", r#"{"domain": "z"}"#)]);
    let path = folder.path().to_owned();
    let variable = |name: &str| match name {
        "CONSUL_CONFIG_DIR" => Some(path.clone().into()),
        "CONSUL_LOCAL_CONFIG" => Some(r#"{"node_name": "new", "domain": "local", "bootstrap_expect": 3}"#.into()),
        "CONSUL_CLIENT_INTERFACE" => Some("eth0".into()),
        "CONSUL_BIND" => Some("-bind=10.1.2.3 -retry-join=old".into()),
        _ => None,
    };
    let agent = AgentCommand::read(words("docker-entrypoint.sh agent -server"), variable).unwrap().unwrap();
    let facts = agent.facts();
    assert_eq!(
        facts.data_dir,
        Some(Said { value: PathBuf::from("/consul/data"), place: Place::Entrypoint("data-dir".to_owned()) })
    );
    assert_eq!(facts.node_name, Some(Said { value: "new".to_owned(), place: Place::LocalConfig("node_name") }));
    assert_eq!(facts.domain.as_ref().unwrap().value, "z");
    assert_eq!(facts.client_addr.as_ref().unwrap().value, "{{ GetInterfaceIP \"eth0\" }}");
    assert_eq!(agent.without(&TAKEN_OUT, Path::new("/r")), words("docker-entrypoint.sh agent -server -config-file=/r"));
    assert_eq!(
        lines(&agent, &Wanted { node_name: None, ..wanted() }),
        [
            "bootstrap_expect in $CONSUL_LOCAL_CONFIG is 3, but convene decides whether this server may found, and cannot take it out of there: remove it there and give --expect 3",
            "-retry-join (from docker-entrypoint.sh) is \"old\", but convene finds the servers itself, and cannot take it out of there: remove it there and give --discover dns:old",
        ]
    );
    // Not when Consul is started by its own name.
    let agent = AgentCommand::read(words("docker-entrypoint.sh consul agent -server"), variable).unwrap().unwrap();
    assert_eq!((agent.facts().data_dir.as_ref(), agent.facts().node_name.as_ref()), (None, None));
}

#[test]
fn flags_are_taken_out_in_both_forms_and_the_rendered_file_comes_last_of_the_flags() {
    let without = |text: &str| agent(text).without(&TAKEN_OUT, Path::new("/r"));
    for (text, wanted) in [
        (
            "tini -- consul agent -retry-join a --retry-join=b -join c -server --bootstrap-expect 3 -retry-join-wan=w",
            "tini -- consul agent -server -retry-join-wan=w -config-file=/r",
        ),
        ("consul agent", "consul agent -config-file=/r"),
        ("consul agent -server -- -join=x", "consul agent -server -config-file=/r -- -join=x"),
        ("consul agent -join=a word -join=b", "consul agent -config-file=/r word -join=b"),
        ("consul agent -node -join -ui", "consul agent -node -join -ui -config-file=/r"),
        ("consul agent -config-file /r -ui -config-file=/x", "consul agent -ui -config-file=/x -config-file=/r"),
    ] {
        assert_eq!(without(text), words(wanted), "{text}");
    }
}

#[test]
fn each_contradiction_by_flag_is_one_line_with_its_mend() {
    let agent = agent(
        "consul agent -bootstrap -dev -server=false -node-id=abc -data-dir=/other -advertise=10.9.9.9 -node=me -client=127.0.0.1 -bootstrap-expect=3 -retry-join=a",
    );
    assert_eq!(
        lines(&agent, &wanted()),
        [
            "-bootstrap is true, but such a server elects itself without asking anyone: remove it, and give --expect 1 where there is one server only",
            "-dev is true, but a development agent keeps nothing and is a cluster of its own: remove it",
            "-server is false, but convene was told that this node is a server: remove it, or give --role client",
            "-node-id is abc, but this node's ID is 3f2504e0-4f89-41d3-9a0c-0305e82c3301: remove it; the ID stands in /consul/data/node-id",
            "-data-dir is /other, but convene was told /consul/data: give the same folder to both, or to CMD alone",
            "-advertise is 10.9.9.9, but convene advertises 10.1.2.3: remove it, or give convene the same address",
            "-node is me, but convene names this node consul-server-0: remove it, or give convene the same name",
            "-client is 127.0.0.1, but the other servers must be able to ask this one: give CMD -client=0.0.0.0",
        ]
    );
}

#[test]
fn each_contradiction_in_a_file_names_file_and_key() {
    let folder = Folder::of(&[(
        "s.json",
        r#"{"bootstrap_expect": 5, "retry_join": ["consul-server", "10.0.0.1:8301", "[fd00::1]", "provider=aws secret_access_key=s3cret"],
            "start_join": ["10.0.0.2"], "node_id": "abc", "leave_on_terminate": true, "skip_leave_on_interrupt": false, "client_addr": "127.0.0.1 ::1"}"#,
    )]);
    let agent = folder.agent("consul agent -config-dir=DIR -bootstrap-expect=3 -hcl skip_leave_on_interrupt=false");
    let leave = "no signal may take this node out of the cluster, only convene leaves: remove it, and give --leave=always if every stop shall be a leave (--leave=signal if Consul itself shall do it)";
    let found = folder.lines(lines(&agent, &wanted()).into_iter());
    assert_eq!(
        found,
        [
            "bootstrap_expect in DIR/s.json is 5, but convene decides whether this server may found, and cannot take it out of there: remove it there and give --expect 5".to_owned(),
            "retry_join in DIR/s.json is \"consul-server\", \"10.0.0.1:8301\", \"[fd00::1]\", \"provider=aws …\", but convene finds the servers itself, and cannot take it out of there: remove it there and give --discover dns:consul-server --discover static:10.0.0.1:8301 --discover static:[fd00::1] --discover 'provider=aws …'".to_owned(),
            "start_join in DIR/s.json is \"10.0.0.2\", but convene finds the servers itself, and cannot take it out of there: remove it there and give --discover static:10.0.0.2".to_owned(),
            "node_id in DIR/s.json is abc, but this node's ID is 3f2504e0-4f89-41d3-9a0c-0305e82c3301: remove it; the ID stands in /consul/data/node-id".to_owned(),
            format!("leave_on_terminate in DIR/s.json is true, but {leave}"),
            format!("skip_leave_on_interrupt in -hcl is false, but {leave}"),
            "client_addr in DIR/s.json is 127.0.0.1 ::1, but the other servers must be able to ask this one: set it to 0.0.0.0".to_owned(),
        ]
    );
}

#[test]
fn what_agrees_with_the_decision_is_no_contradiction() {
    let id = ID.to_uppercase();
    let agent = agent(&format!(
        "consul agent -server -bootstrap=false -dev=false -bootstrap-expect=3 -retry-join=x -join=y -node-id={id} -data-dir=/consul/data/ -advertise=10.1.2.3 -node=consul-server-0 -client=0.0.0.0 -hcl leave_on_terminate=false,bootstrap_expect=0"
    ));
    assert_eq!(lines(&agent, &wanted()), Vec::<String>::new());
}

#[test]
fn templates_are_left_alone() {
    let agent = agent_of(vec![
        "consul".into(),
        "agent".into(),
        "-client={{ GetInterfaceIP \"eth0\" }}".into(),
        "-advertise={{ GetPrivateIP }}".into(),
    ]);
    assert_eq!(agent.facts().advertise_addr, by_flag(None, "advertise"));
    assert_eq!(lines(&agent, &wanted()), Vec::<String>::new());
}

#[test]
fn a_client_must_not_be_a_server_and_may_listen_on_loopback() {
    let client = Wanted { server: false, ..wanted() };
    assert_eq!(lines(&agent("consul agent"), &client), Vec::<String>::new());
    assert_eq!(
        lines(&agent("consul agent -server"), &client),
        ["-server is true, but convene was told that this node is a client: remove it, or give --role server"]
    );
}

#[test]
fn a_server_is_reachable_by_any_listener_that_is_on_and_not_loopback() {
    let refused = |text: &str| !lines(&agent(&format!("consul agent {text}")), &wanted()).is_empty();
    assert!(refused(""));
    assert!(refused("-client=::1"));
    assert!(refused("-hcl addresses{http=\"unix:///x\"} -client=0.0.0.0"));
    assert!(refused("-hcl addresses{https=\"0.0.0.0\"}"), "HTTPS is off");
    assert!(refused("-https-port=8501"));
    assert!(!refused("-hcl addresses{https=\"0.0.0.0\"} -https-port=8501"));
    assert!(!refused("-hcl addresses{http=\"0.0.0.0\"}"));
    assert!(!refused("-hcl client_addr=\"127.0.0.1,10.1.2.3\""), "not an address: Consul judges");
    assert!(!refused("-hcl addresses{http=\"127.0.0.1\"} -http-port=-1 -https-port=8501 -client=0.0.0.0"));
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let advertised = |text| lines(&agent("consul agent"), &Wanted { advertise: Some(address(text)), ..wanted() });
    assert_eq!(advertised("127.0.0.2"), Vec::<String>::new());
    assert!(advertised("fd00::1").concat().ends_with(": give CMD -client=::"));
    let unsaid = Wanted { advertise: None, ..wanted() };
    assert_eq!(lines(&agent("consul agent -bind=127.0.0.1"), &unsaid), Vec::<String>::new());
    assert_eq!(lines(&agent("consul agent"), &unsaid).len(), 1);
}

#[test]
fn the_rendered_file_is_never_a_fact_or_a_contradiction() {
    let folder = Folder::of(&[
        ("agent.json", r#"{"bootstrap_expect": 3, "retry_join": ["x"], "node_name": "y"}"#),
        ("user.json", r#"{"server": true}"#),
    ]);
    let rendered = folder.0.path().join("agent.json");
    let other_name = folder.0.path().join("./agent.json");
    let missing = folder.0.path().join("gone.json");
    let mut agent = folder.agent("consul agent -client=0.0.0.0 -config-dir=DIR -config-file=DIR/gone.json");
    assert_eq!(lines(&agent, &Wanted { rendered: &other_name, ..wanted() }), Vec::<String>::new());
    assert_eq!(lines(&agent, &wanted()).len(), 3);
    agent.forget(&rendered);
    assert_eq!((agent.facts().retry_join.len(), agent.facts().server.is_some()), (0, true));
    assert_eq!(agent.warnings().count(), 1);
    agent.forget(&missing);
    assert_eq!(agent.warnings().count(), 0);
}

#[test]
fn a_secret_is_never_printed() {
    let folder = Folder::of(&[("a.json", r#"{"encrypt": "s3cret", "acl": {"tokens": {"agent": "s3cret"}}}"#)]);
    let agent = folder.agent("consul agent -config-dir=DIR -encrypt=s3cret -new s3cret -hcl encrypt=\"s3cret\"");
    assert_eq!(agent.facts().encrypt.as_ref().map(|said| said.value.reveal()), Some("s3cret"));
    let warnings: Vec<&str> = agent.warnings().collect();
    let printed = format!("{agent:?}{:?}{:?}{warnings:?}", agent.sayings, lines(&agent, &wanted()));
    assert!(!printed.contains("s3cret"), "{printed}");
    fs::write(folder.0.path().join("a.json"), r#"{"encrypt": {"s3cret": true}}"#).unwrap();
    let refused = refused(&format!("consul agent -config-dir={}", folder.path()));
    assert_eq!(refused.replace(folder.path(), "DIR"), "could not read encrypt in DIR/a.json: \"…\" is not a text");
}

#[test]
fn a_gossip_key_among_the_arguments_or_an_empty_one_is_a_warning() {
    let argument = "puts the gossip key among CMD's arguments, where everybody on the machine can read it: give it by -config-file, from a mounted Secret";
    let empty = "is empty, which Consul takes for no encryption: give the output of `consul keygen`, or remove it";
    let folder = Folder::of(&[("a.json", r#"{"encrypt": "k3y"}"#), ("b.json", r#"{"encrypt": ""}"#)]);
    for (words, wanted) in [
        ("-encrypt=k3y", vec![format!("-encrypt {argument}")]),
        ("-hcl encrypt=\"k3y\"", vec![format!("encrypt in -hcl {argument}")]),
        ("-config-file=DIR/a.json", vec![]),
        ("-config-file=DIR/b.json", vec![format!("encrypt in DIR/b.json {empty}")]),
        // The last one counts.
        ("-config-file=DIR/b.json -config-file=DIR/a.json", vec![]),
        ("-config-file=DIR/a.json -encrypt=", vec![format!("-encrypt {empty}")]),
    ] {
        let agent = folder.agent(&format!("consul agent {words}"));
        assert_eq!(folder.lines(agent.warnings().map(str::to_owned)), wanted, "{words}");
    }
}

proptest! {
    #[test]
    fn invariant_any_words_are_read_or_refused_and_nothing_else_is_taken_out(
        tail in prop::collection::vec(prop::sample::select(vec![
            "-server", "-server=x", "-join", "-join=a", "--retry-join", "b", "--", "-", "-bootstrap-expect=3", "-hcl", "a={", "-node", "", "é",
        ]), 0..10),
    ) {
        let words: Vec<OsString> = ["consul", "agent"].iter().chain(&tail).map(OsString::from).collect();
        if let Ok(Some(agent)) = AgentCommand::read(words.clone(), no_variable) {
            let file = OsString::from("-config-file=/r");
            let mut same = agent.without(&[], Path::new("/r"));
            same.retain(|word| *word != file);
            prop_assert_eq!(&same, &words);
            let again = AgentCommand::read(agent.without(&TAKEN_OUT, Path::new("/r")), no_variable).unwrap().unwrap();
            let left: Vec<&str> = again.flags.iter().map(|flag| flag.name.as_str()).filter(|name| TAKEN_OUT.contains(name)).collect();
            prop_assert_eq!(left, Vec::<&str>::new());
            prop_assert_eq!(&again.facts().server, &agent.facts().server);
            prop_assert_eq!(again.flags.last().map(|flag| flag.name.as_str()), Some("config-file"));
        }
    }
}
