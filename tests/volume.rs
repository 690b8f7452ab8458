//! What is kept on the volume: written as a whole or not at all, the same on a second run, and never a node ID lost.

// A panic is how a test fails; clippy's own exception for tests covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/mod.rs"]
mod support;

use convene::record::Volume;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use support::program::{Convene, Ended};
use support::skip::{needs_root, needs_unshare};
use support::traced::killed_when;
use tempfile::TempDir;

const NODE_ID: &str = "6b1d3a52-9c0e-4f57-8a34-2f0f6f1d9c11";

/// A server that may found a cluster at once: of two, and nobody at the other's address.
fn words(data: &Path) -> Vec<String> {
    let data = data.to_str().unwrap();
    [
        "init",
        "--role=server",
        "--node-name=s1",
        "--advertise=127.0.0.1",
        "--expect=2",
        "--server-port=1",
        "--discover=static:127.0.0.1,127.255.255.253",
        "--data-dir",
        data,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn init(data: &Path) -> Ended {
    Convene::new(words(data)).run()
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Every file below a folder with its bytes and mode.
fn content(data: &Path) -> BTreeMap<String, (Vec<u8>, u32)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                all.insert(
                    entry.path().strip_prefix(data).unwrap().display().to_string(),
                    (fs::read(entry.path()).unwrap(), meta.mode() & 0o777),
                );
            }
        }
    }
    all
}

fn node_id(data: &Path) -> String {
    fs::read_to_string(data.join("node-id")).unwrap()
}

fn record(data: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(data.join("convene/record.json")).unwrap()).unwrap()
}

#[test]
fn the_same_world_gives_the_same_bytes_on_a_second_run() {
    let data = folder();
    init(data.path()).ends(0, &["ready to start the agent"]);
    let first = content(data.path());
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        [
            "convene/agent.json",
            "convene/agent.lock",
            "convene/record.json",
            "convene/record.lock",
            "convene/waiting.lock",
            "node-id"
        ]
    );
    assert!(first.values().all(|(_, mode)| *mode == 0o600), "{first:?}");
    init(data.path()).ends(0, &[]);
    assert_eq!(content(data.path()), first);
    let record = record(data.path());
    assert_eq!(
        (&record["node_id"], &record["expect"], &record["formed"]),
        (&node_id(data.path()).into(), &2.into(), &false.into())
    );
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let inodes = || {
        ["node-id", "convene/record.json", "convene/agent.json"]
            .map(|file| fs::metadata(data.path().join(file)).unwrap().ino())
    };
    let before = inodes();
    init(data.path()).ends(0, &[]);
    assert_eq!(inodes(), before, "a file that is written anew has another inode");
}

#[test]
fn a_valid_node_id_is_never_changed() {
    for id in [NODE_ID.to_owned(), format!("{NODE_ID}\n"), NODE_ID.to_uppercase()] {
        let data = folder();
        fs::write(data.path().join("node-id"), &id).unwrap();
        init(data.path()).ends(0, &[]);
        assert_eq!(node_id(data.path()), id);
        assert_eq!(record(data.path())["node_id"], id.trim());
    }
}

#[test]
fn a_missing_node_id_is_written_again_from_the_record() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let id = node_id(data.path());
    for damage in [None, Some(""), Some("6b1d3a52-9c0e")] {
        match damage {
            None => fs::remove_file(data.path().join("node-id")).unwrap(),
            Some(text) => fs::write(data.path().join("node-id"), text).unwrap(),
        }
        let ended = init(data.path());
        ended.ends(0, &[]);
        assert!(ended.stderr.contains("written again from the record"), "{}", ended.stderr);
        assert_eq!(node_id(data.path()), id);
    }
}

#[test]
fn a_missing_or_unreadable_record_is_rebuilt_from_the_node_id() {
    for damage in [None, Some(""), Some("{\"version\": 1, \"owner\"")] {
        let data = folder();
        init(data.path()).ends(0, &[]);
        let id = node_id(data.path());
        let path = data.path().join("convene/record.json");
        match damage {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        init(data.path()).ends(0, &[]);
        assert_eq!((node_id(data.path()), record(data.path())["node_id"].as_str()), (id.clone(), Some(id.as_str())));
        if let Some(text) = damage {
            assert_eq!(
                fs::read_to_string(data.path().join("convene/record.json.unreadable")).unwrap(),
                text,
                "nothing is lost"
            );
        }
    }
}

#[test]
fn an_empty_node_id_on_a_new_volume_is_repaired_and_on_a_used_one_refused() {
    let data = folder();
    fs::write(data.path().join("node-id"), "").unwrap();
    init(data.path()).ends(0, &[]);
    assert_eq!(node_id(data.path()).len(), 36);

    let used = folder();
    fs::write(used.path().join("node-id"), "").unwrap();
    fs::create_dir_all(used.path().join("raft")).unwrap();
    fs::write(used.path().join("raft/raft.db"), "x").unwrap();
    init(used.path()).ends(78, &["node-id", "it is empty", "consul members"]);
    assert_eq!(node_id(used.path()), "");
}

#[test]
fn a_malformed_node_id_that_nothing_else_knows_is_refused_with_78() {
    let data = folder();
    fs::write(data.path().join("node-id"), "not-a-uuid").unwrap();
    init(data.path()).ends(78, &["node-id", "\"not-a-uuid\"", "36 characters", "remove the file"]);
    let left: Vec<String> = content(data.path()).into_keys().collect();
    assert_eq!(left, ["convene/agent.lock", "convene/waiting.lock", "node-id"], "nothing was written but the locks");
}

#[test]
fn two_node_ids_that_differ_are_refused_with_78() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let old = node_id(data.path());
    fs::write(data.path().join("node-id"), NODE_ID).unwrap();
    init(data.path()).ends(78, &[NODE_ID, &old, "changed by hand"]);
}

#[test]
fn an_unreadable_record_without_a_node_id_is_refused_with_78() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    fs::remove_file(data.path().join("node-id")).unwrap();
    fs::write(data.path().join("convene/record.json"), "{").unwrap();
    init(data.path()).ends(78, &["record.json", "no valid node-id", "Restore"]);
}

#[test]
fn a_record_of_a_newer_version_is_refused_with_78_and_kept() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let path = data.path().join("convene/record.json");
    let newer = fs::read_to_string(&path).unwrap().replace("\"version\": 1", "\"version\": 2");
    fs::write(&path, &newer).unwrap();
    init(data.path()).ends(78, &["record.json", "version 2", "newer convene"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
}

#[test]
fn a_rendered_file_without_a_folder_goes_to_where_convene_was_called() {
    let (data, here) = (folder(), folder());
    Convene::new(words(data.path())).words(["--config-out=agent.json"]).within(here.path()).run().ends(0, &[]);
    assert!(here.path().join("agent.json").exists());
}

#[test]
fn several_that_change_the_record_at_once_lose_nothing() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let volume = Volume::open(data.path(), false).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let volume = &volume;
            scope.spawn(move || {
                for change in 0..20 {
                    let address = IpAddr::from([10, 0, writer, change]);
                    volume.change_record(|record| record.servers.push(address)).unwrap();
                }
            });
        }
    });
    assert_eq!(volume.read().unwrap().record.unwrap().servers.len(), 80);
}

#[test]
fn what_changes_nothing_in_the_record_needs_no_volume_that_can_be_written() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let volume = Volume::open(data.path(), false).unwrap();
    // A folder in its place stops root too.
    fs::remove_file(data.path().join("convene/record.lock")).unwrap();
    fs::create_dir(data.path().join("convene/record.lock")).unwrap();
    volume.change_record(|record| record.left = false).unwrap();
    let refused = volume.change_record(|record| record.left = true).unwrap_err().to_string();
    assert!(refused.contains("record.lock"), "{refused}");
}

#[test]
fn what_a_newer_convene_of_the_same_version_wrote_is_kept() {
    let data = folder();
    init(data.path()).ends(0, &[]);
    let path = data.path().join("convene/record.json");
    let more = fs::read_to_string(&path)
        .unwrap()
        .replace("\"version\": 1", "\"version\": 1, \"later\": [1]")
        .replace("\"left\": false", "\"left\": true");
    fs::write(&path, more).unwrap();
    init(data.path()).ends(0, &[]);
    assert_eq!((&record(data.path())["later"], &record(data.path())["left"]), (&serde_json::json!([1]), &false.into()));
}

#[test]
fn a_data_folder_that_is_missing_or_a_file_is_refused_with_73_and_not_made() {
    let parent = folder();
    let missing = parent.path().join("data");
    init(&missing).ends(73, &["does not exist", "not mounted", "--create-data-dir"]);
    assert!(!missing.exists());
    Convene::new(words(&missing)).words(["--create-data-dir"]).run().ends(0, &[]);
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    init(&file).ends(73, &["it is a file"]);
}

#[test]
fn files_belong_to_whom_the_data_folder_belongs() {
    if !needs_root("files_belong_to_whom_the_data_folder_belongs") {
        return;
    }
    let data = folder();
    nix::unistd::chown(data.path(), Some(100.into()), Some(1000.into())).unwrap();
    init(data.path()).ends(0, &[]);
    for file in [
        "node-id",
        "convene",
        "convene/record.json",
        "convene/agent.json",
        "convene/agent.lock",
        "convene/record.lock",
        "convene/waiting.lock",
    ] {
        let meta = fs::metadata(data.path().join(file)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100, 1000), "{file}");
    }
}

#[test]
fn a_volume_that_cannot_be_written_is_73_with_the_mend() {
    let test = "a_volume_that_cannot_be_written_is_73_with_the_mend";
    if nix::unistd::Uid::effective().is_root() {
        return mounted(
            test,
            "mount -o remount,ro tmpfs DATA",
            73,
            &["Read-only file system", "mount the volume writable"],
        );
    }
    let data = folder();
    fs::set_permissions(data.path(), Permissions::from_mode(0o500)).unwrap();
    init(data.path()).ends(73, &["Permission denied", "must belong to the user"]);
    fs::set_permissions(data.path(), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_full_volume_is_73_and_loses_nothing() {
    let test = "a_full_volume_is_73_and_loses_nothing";
    mounted(
        test,
        "mkdir DATA/convene; dd if=/dev/zero of=DATA/filler bs=1k 2>/dev/null; true",
        73,
        &["No space left", "free space"],
    );
    // With an ID that is there already: it must be there afterwards, and be used once there is room.
    let script = format!(
        "printf {NODE_ID} >DATA/node-id; mkdir DATA/convene; dd if=/dev/zero of=DATA/filler bs=1k 2>/dev/null; true"
    );
    mounted(test, &script, 73, &["No space left"]);
}

/// Runs `init` on a file system of 64 KiB of its own, after a script that damages it; the node-id that was there stays.
#[track_caller]
fn mounted(test: &str, damage: &str, code: i32, parts: &[&str]) {
    if !needs_unshare(test) {
        return;
    }
    let data = folder();
    let path = data.path().to_str().unwrap();
    let damage = damage.replace("DATA", path);
    let call = words(data.path()).iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let script = format!(
        "mount -t tmpfs -o size=64k tmpfs {path} && {damage} && before=$(cat {path}/node-id 2>/dev/null); {} {call}; code=$?; [ \"$before\" = \"$(cat {path}/node-id 2>/dev/null)\" ] || exit 99; exit $code",
        env!("CARGO_BIN_EXE_convene")
    );
    Convene::behind("unshare", ["-m", "sh", "-c", &script]).run().ends(code, parts);
}

#[test]
fn killed_between_any_two_system_calls_it_never_loses_a_node_id() {
    let mut killed = 0;
    loop {
        let data = folder();
        let mut made = 0;
        let ended = killed_when(Convene::new(words(data.path())), |moment| {
            made += usize::from(moment.begins());
            moment.begins() && made > killed
        });
        // Whatever is there is whole.
        let id = fs::read_to_string(data.path().join("node-id")).ok();
        assert!(id.as_ref().is_none_or(|id| id.len() == 36), "call {killed}: node-id is {id:?}");
        if let Ok(text) = fs::read(data.path().join("convene/record.json")) {
            let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(
                record["node_id"].as_str(),
                id.as_deref(),
                "call {killed}: node-id is written before the record"
            );
        }
        if let Ok(text) = fs::read(data.path().join("convene/agent.json")) {
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
            assert!(
                data.path().join("convene/record.json").exists(),
                "call {killed}: the record is written before the rendered file"
            );
        }
        // A second start ends where an undisturbed one does, with the ID that was there.
        let second = init(data.path());
        assert_eq!(second.code, 0, "call {killed}: {}", second.stderr);
        if let Some(id) = id {
            assert_eq!(node_id(data.path()), id, "call {killed}");
        }
        assert_eq!(content(data.path()).keys().filter(|name| !name.ends_with(".tmp")).count(), 6, "call {killed}");
        if ended {
            break;
        }
        killed += 1;
    }
    assert!(killed > 50, "{killed} system calls cannot have been all");
}
