//! A part of the cluster that a test breaks, by the program of `CONVENE_E2E_CLUSTER`
//! ([`needs_cluster_tool`](super::super::skip::needs_cluster_tool)). It is mended when the value goes out of scope, also
//! when the test fails; other namespaces of the same cluster feel it meanwhile.

use super::{kubectl, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something that is broken.
#[derive(Debug)]
pub struct Broken {
    tool: PathBuf,
    mend: Vec<String>,
}

// === impl Broken ===

impl Broken {
    /// A component of the control plane, or CoreDNS, does not run.
    pub fn stop(tool: &Path, component: &str) -> Self {
        Self::new(tool, &["stop", component], up())
    }

    /// A node's machine is lost. Nodes count from 1.
    pub fn kill_node(tool: &Path, node: usize) -> Self {
        Self::new(tool, &["kill-node", &node.to_string()], up())
    }

    /// Nothing passes between the Pods of two nodes. Nodes count from 1.
    pub fn cut(tool: &Path, one: usize, other: usize) -> Self {
        Self::new(tool, &["cut", &one.to_string(), &other.to_string()], vec!["heal".to_owned()])
    }

    /// Makes it whole before the end of the scope.
    pub fn mend(self) {}

    fn new(tool: &Path, words: &[&str], mend: Vec<String>) -> Self {
        // Before it breaks, since a failure half-way is mended too.
        let broken = Self { tool: tool.to_owned(), mend };
        run(Command::new(tool).args(words)).unwrap_or_else(|why| panic!("{why}"));
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

/// Starts what does not run, of as many nodes as there are.
fn up() -> Vec<String> {
    let nodes = run(&mut kubectl(["get", "nodes", "-o", "name"])).unwrap_or_else(|why| panic!("{why}"));
    vec!["up".to_owned(), "--nodes".to_owned(), nodes.lines().count().to_string()]
}
