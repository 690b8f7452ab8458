//! `make demo`: three real Consul servers come together through convene on this machine, one is killed and returns as
//! itself, and all stop. Finds a Consul (and says what to do when there is none), needs nothing else, leaves nothing behind.
//!
//! Prints what happens, with the time from the last start to a leader, and a line of progress while it waits. Exit 0 when
//! everything came as it should, else a panic that says what did not.

// It is test code in all but name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/mod.rs"]
mod support;

use nix::sys::signal::Signal;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::cluster::Cluster;
use support::consul::find;
use support::net::{LoopbackBlock, loopback_block};

const ALL: [u8; 3] = [0, 1, 2];

fn main() {
    let consul = find().unwrap_or_else(|why| {
        eprintln!("demo: {why}");
        exit(69);
    });
    // 127.0.0.2 to .4, or, where somebody listens there already, three others.
    let usual = LoopbackBlock::lock(0, 0).filter(|block| block.taken().is_none());
    let mut cluster = Cluster::at(usual.unwrap_or_else(loopback_block), program(), &consul, 3);
    say(&format!(
        "three servers at {}, {} and {}, each with a data folder of its own, found by DNS ({})",
        cluster.ip(0),
        cluster.ip(1),
        cluster.ip(2),
        cluster.dns().addr()
    ));
    cluster.publish_all();
    cluster.start_all(&[]);
    let started = Instant::now();
    waiting("a leader", || cluster.wait_for("a leader", || cluster.leader(2).is_some()));
    say(&format!(
        "a leader {:.1} s after the last start: {}",
        started.elapsed().as_secs_f64(),
        cluster.leader(2).unwrap()
    ));
    waiting("three voters", || cluster.wait_formed(&ALL));

    show("convene discover, as server 0", cluster.surveying(0, &["discover", "--expect=3"]));
    show("consul members", consul_cli(&cluster, &consul, &["members"]));
    show("consul operator raft list-peers", consul_cli(&cluster, &consul, &["operator", "raft", "list-peers"]));

    let leader = cluster.leading(0).unwrap();
    let victim = ALL.into_iter().find(|ordinal| *ordinal != leader).unwrap();
    let id = node_id(&cluster, victim);
    say(&format!("killing server {victim} (node ID {id}) without a word, and starting it again"));
    cluster.kill(victim);
    cluster.start(victim, &[]);
    let started = Instant::now();
    waiting("its return", || {
        cluster
            .wait_for("its return", || cluster.leader(victim).is_some() && cluster.member(leader, victim) == Some(1));
        cluster.wait_formed(&ALL);
    });
    assert_eq!(node_id(&cluster, victim), id, "it must return as itself");
    say(&format!("it is back after {:.1} s with the same node ID", started.elapsed().as_secs_f64()));

    say("stopping all three, without leaving");
    for ordinal in ALL {
        cluster.signal(ordinal, Signal::SIGTERM);
    }
    for ordinal in ALL {
        let status = cluster.wait(ordinal);
        assert!(status.success(), "server {ordinal} ended with {status}\n{}", cluster.log(ordinal));
    }
    let folder = cluster.folder().to_owned();
    drop(cluster);
    assert!(!folder.exists(), "nothing may stay behind");
    say("all three stopped with exit code 0, and nothing stays behind");
}

/// The program beside this example.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("convene")
}

fn node_id(cluster: &Cluster, ordinal: u8) -> String {
    fs::read_to_string(cluster.data(ordinal).join("node-id")).unwrap()
}

fn consul_cli(cluster: &Cluster, consul: &std::path::Path, words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(consul);
    command.args(words).env("CONSUL_HTTP_ADDR", format!("{}:8500", cluster.ip(0)));
    command
}

fn show(title: &str, mut command: std::process::Command) {
    let output = command.output().unwrap();
    println!("\n$ {title}\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{title} ended with {}", output.status);
}

fn say(line: &str) {
    println!("demo: {line}");
}

/// Does something that takes a while, with a line of progress every second.
fn waiting(what: &str, act: impl FnOnce()) {
    let done = Arc::new(AtomicBool::new(false));
    let (seen, what) = (done.clone(), what.to_owned());
    let begun = Instant::now();
    let teller = std::thread::spawn(move || {
        while !seen.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_secs(1));
            if !seen.load(Ordering::SeqCst) {
                println!("demo: waiting for {what}, {} s", begun.elapsed().as_secs());
                let _ = std::io::stdout().flush();
            }
        }
    });
    act();
    done.store(true, Ordering::SeqCst);
    teller.thread().unpark();
    teller.join().unwrap();
}
