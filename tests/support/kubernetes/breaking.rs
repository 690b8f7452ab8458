//! A part of the cluster that a test breaks, by the program of `CONVENE_E2E_CLUSTER`. It is mended when the value goes out of
//! scope, also when the test fails. Takes a namespace that is [alone](Namespace::alone), because all others would feel it.

use super::namespace::Namespace;
use super::{kubectl, nodes, run};
use std::path::PathBuf;
use std::process::Command;

/// Something that is broken.
#[derive(Debug)]
pub struct Broken {
    tool: PathBuf,
    mend: Vec<String>,
}

/// A node on which nothing new is scheduled.
#[derive(Debug)]
pub struct Cordoned {
    node: String,
}

// === impl Broken ===

impl Broken {
    /// A component of the control plane, or CoreDNS, does not run.
    pub fn stop(namespace: &Namespace, component: &str) -> Self {
        Self::new(namespace, &["stop", component], up())
    }

    /// A node's machine is lost. Nodes count from 1.
    pub fn kill_node(namespace: &Namespace, node: usize) -> Self {
        Self::new(namespace, &["kill-node", &node.to_string()], up())
    }

    /// Nothing passes between the Pods of two nodes. Nodes count from 1.
    pub fn cut(namespace: &Namespace, one: usize, other: usize) -> Self {
        Self::new(namespace, &["cut", &one.to_string(), &other.to_string()], vec!["heal".to_owned()])
    }

    /// Makes it whole before the end of the scope.
    pub fn mend(self) {}

    fn new(namespace: &Namespace, words: &[&str], mend: Vec<String>) -> Self {
        // Before it breaks, since a failure half-way is mended too.
        let broken = Self { tool: namespace.breaking().to_owned(), mend };
        run(Command::new(&broken.tool).args(words)).unwrap_or_else(|why| panic!("{why}"));
        broken
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        match run(Command::new(&self.tool).args(&self.mend)) {
            Ok(_) => {}
            Err(why) if std::thread::panicking() => eprintln!("could not mend the cluster: {why}"),
            Err(why) => panic!("could not mend the cluster: {why}"),
        }
    }
}

// === impl Cordoned ===

impl Cordoned {
    /// Until the value goes out of scope. Nodes count from 1.
    pub fn new(_alone: &Broken, node: usize) -> Self {
        let cordoned = Self { node: nodes().swap_remove(node - 1) };
        run(&mut kubectl(["cordon", &cordoned.node])).unwrap_or_else(|why| panic!("{why}"));
        cordoned
    }
}

impl Drop for Cordoned {
    fn drop(&mut self) {
        if let Err(why) = run(&mut kubectl(["uncordon", &self.node])) {
            eprintln!("could not mend the cluster: {why}");
        }
    }
}

/// The number of the node on which a Pod runs, counted from 1.
pub fn node_of(namespace: &Namespace, pod: &str) -> usize {
    let node = namespace.get(&format!("pods/{pod}")).unwrap()["spec"]["nodeName"].clone();
    nodes().iter().position(|name| node == name.as_str()).unwrap() + 1
}

/// Starts what does not run, of as many nodes as there are.
fn up() -> Vec<String> {
    vec!["up".to_owned(), "--nodes".to_owned(), nodes().len().to_string()]
}
