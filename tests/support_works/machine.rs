//! Are address blocks nobody else's, and is a skipped test always named?

use std::collections::HashSet;
use std::net::TcpListener;
use std::process::{Command, Output};

use crate::support::net::{LoopbackBlock, loopback_block};
use crate::support::skip;

// === blocks of addresses ===

#[test]
fn blocks_taken_at_once_differ_and_their_ports_are_free() {
    let blocks: Vec<LoopbackBlock> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(loopback_block)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let firsts: HashSet<_> = blocks.iter().map(|block| block.ip(2)).collect();
    assert_eq!(firsts.len(), 16);
    assert!(blocks.iter().all(|block| block.ip(2).is_loopback() && TcpListener::bind(block.at(2, 8500)).is_ok()));
}

#[test]
fn a_block_is_not_given_to_another_process_until_it_is_dropped() {
    let block = loopback_block();
    let (second, third) = (block.ip(2).octets()[1], block.ip(2).octets()[2]);
    let has = || child("machine::tries_a_block", &[("CONVENE_BLOCK", &format!("{second}.{third}"))]);
    assert!(printed(&has()).contains("the block is taken"));
    drop(block);
    assert!(printed(&has()).contains("the block is ours"));
}

/// Only the other half of a_block_is_not_given_to_another_process, which starts it.
#[test]
fn tries_a_block() {
    if std::env::var_os("CONVENE_CHILD").is_none() {
        return;
    }
    let block = std::env::var("CONVENE_BLOCK").unwrap();
    let (second, third) = block.split_once('.').unwrap();
    let ours = LoopbackBlock::lock(second.parse().unwrap(), third.parse().unwrap()).is_some();
    println!("the block is {}", if ours { "ours" } else { "taken" });
}

#[test]
fn a_block_where_somebody_listens_is_not_given() {
    let block = loopback_block();
    assert_eq!(block.taken(), None);
    let addr = block.at(3, 8502);
    let _forgotten = TcpListener::bind(&addr).unwrap();
    assert_eq!(block.taken(), Some(addr.parse().unwrap()));
}

#[test]
fn a_block_leaves_no_file_behind() {
    let block = loopback_block();
    let path = block.path().to_owned();
    assert!(path.exists());
    drop(block);
    assert!(!path.exists());
}

// === skipped tests ===

/// Starts one test of this binary by itself.
fn child(test: &str, set: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
        .env("CONVENE_CHILD", "1")
        .env_remove("CONVENE_STRICT")
        .env_remove("CONVENE_SKIPPED")
        .envs(set.iter().copied())
        .output()
        .unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Only the other half of the tests about skipping, which start it.
#[test]
fn skips_itself() {
    if std::env::var_os("CONVENE_CHILD").is_none() {
        return;
    }
    skip::skip("a_test", "the moon\nis full");
}

#[test]
fn a_skipped_test_and_its_reason_go_to_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("skipped");
    for _ in 0..2 {
        assert!(child("machine::skips_itself", &[("CONVENE_SKIPPED", list.to_str().unwrap())]).status.success());
    }
    assert_eq!(std::fs::read_to_string(list).unwrap(), "a_test: the moon is full\n".repeat(2));
}

#[test]
fn without_a_list_a_skipped_test_goes_to_stderr() {
    for set in [&[][..], &[("CONVENE_SKIPPED", "")], &[("CONVENE_STRICT", "0")]] {
        let output = child("machine::skips_itself", set);
        assert!(output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("skipped a_test: the moon is full\n"), "{said}");
    }
}

#[test]
fn nothing_may_be_skipped_when_it_is_strict() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("skipped");
    let output =
        child("machine::skips_itself", &[("CONVENE_STRICT", "1"), ("CONVENE_SKIPPED", list.to_str().unwrap())]);
    assert!(!output.status.success());
    assert!(printed(&output).contains("a_test cannot run here"), "{}", printed(&output));
}

#[test]
fn a_list_that_cannot_be_written_fails_the_test() {
    let output = child("machine::skips_itself", &[("CONVENE_SKIPPED", "/dev/null/list")]);
    assert!(!output.status.success());
    assert!(printed(&output).contains("could not note the skipped test"), "{}", printed(&output));
}

/// Only the other half of what_a_test_needs_is_tried_and_noted_when_it_is_not_there, which starts it.
#[test]
fn needs_much() {
    if std::env::var_os("CONVENE_CHILD").is_none() {
        return;
    }
    let found = (skip::needs_program("program", "unshare"), skip::needs_unshare("unshare"));
    println!("program and unshare: {found:?}; root: {}", skip::needs_root("root"));
    assert_ne!(skip::needs_root("root"), skip::needs_non_root("non_root"));
}

#[test]
fn what_a_test_needs_is_tried_and_noted_when_it_is_not_there() {
    let output = child("machine::needs_much", &[("PATH", "/nowhere")]);
    let said = printed(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("skipped program: there is no `unshare` on PATH\n"), "{said}");
    assert!(said.contains("skipped unshare: `unshare` of util-linux cannot be started"), "{said}");
    assert!(said.contains("program and unshare: (false, false)"), "{said}");
}
