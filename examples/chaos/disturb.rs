//! Does what the plan says: to the Pods, to the processes in them, and to the cluster that they run in. Takes a disturbance;
//! comes back when it is done, with what was broken whole again, and leaves the waiting for the servers to its caller. It
//! panics when something could not be done, since then nothing was shown.

use crate::ledger::Ledger;
use crate::plan::{Disturbance, Grace, Meanwhile, Ordinals, Outage, SERVERS, pair};
use crate::servers::{Servers, Wiped};
use crate::support::kubernetes::breaking::Broken;
use crate::support::kubernetes::machine::{Process, processes};
use crate::support::kubernetes::namespace::{Namespace, SERVERS as LABEL, Voter, server};
use crate::well::Lives;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How long DNS or the API server is away, beside the seconds that it takes to start.
const AWAY: Duration = Duration::from_secs(1);
/// How long an empty server sees the one that lags and not the leader: longer than elections take.
const OUTVOTE: Duration = Duration::from_secs(5);
/// So many writes are acknowledged that one server lacks.
const LACKED: usize = 10;

/// What is disturbed.
#[derive(Clone, Copy)]
pub struct Stage<'a> {
    pub namespace: &'a Namespace,
    pub servers: &'a Servers,
    pub ledger: &'a Ledger,
    /// The voters before the disturbance, by ordinal.
    pub voters: &'a [Voter],
    /// The claim's ID.
    pub claim: &'a str,
}

// === impl Stage ===

impl Stage<'_> {
    /// Does it.
    pub fn disturb(self, what: &Disturbance) {
        match what {
            Disturbance::KillAgents(who) => self.kill(who, |process, pod| process.is_agent_of(pod)),
            Disturbance::KillContainers(who) => {
                self.kill(who, |process, pod| process.is_first() && process.has("POD_NAME", pod));
            }
            Disturbance::Delete(who, grace) => self.delete(who, *grace),
            Disturbance::Scale(to) => self.scale(*to),
            Disturbance::Break(outage, meanwhile) => self.broken(*outage, meanwhile),
            Disturbance::Wipe(who) => self.wipe(*who, Grace::Given),
            Disturbance::Outvote { wiped, behind } => self.outvote(*wiped, *behind),
        }
    }

    fn kill(self, who: &Ordinals, which: impl Fn(&Process, &str) -> bool) {
        let find = |who: &usize| {
            let pod = server(*who);
            let found = processes(self.namespace.name(), |process| which(process, &pod));
            assert!(!found.is_empty(), "no such process of {pod}");
            found
        };
        // All are found before the first one is killed, so that they die at once.
        let found: Vec<Pid> = who.iter().flat_map(find).collect();
        for pid in found {
            // One that has ended by itself is as good.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    fn delete(self, who: &Ordinals, grace: Grace) {
        let names: Vec<String> = who.iter().copied().map(server).collect();
        let force: &[&str] = if grace == Grace::None { &["--force", "--grace-period=0"] } else { &[] };
        let mut words = vec!["delete", "pods", "--wait=false"];
        words.extend(force);
        words.extend(names.iter().map(String::as_str));
        self.namespace.kubectl(&words);
    }

    fn scale(self, to: usize) {
        let scale =
            |to: usize| self.namespace.kubectl(&["scale", "statefulset", "consul-server", &format!("--replicas={to}")]);
        scale(to);
        self.namespace.wait_for("the Pods beyond to be gone", || self.namespace.pods(LABEL).len() <= to);
        scale(SERVERS);
    }

    fn wipe(self, who: usize, grace: Grace) {
        // The claim stays until its Pod is gone.
        let claim = format!("data-{}", server(who));
        self.namespace.kubectl(&["delete", "persistentvolumeclaims", "--wait=false", &claim]);
        self.delete(&[who].into(), grace);
    }

    fn broken(self, outage: Outage, meanwhile: &Meanwhile) {
        let (broken, lasts) = match outage {
            Outage::Dns => (vec![Broken::stop(self.namespace, "coredns")], AWAY),
            Outage::Api => (vec![Broken::stop(self.namespace, "apiserver")], AWAY),
            Outage::Link(one, other, lasts) => (vec![self.cut(one, other)], lasts),
            Outage::Alone(who, lasts) => {
                let (one, other) = pair(who);
                (vec![self.cut(who, one), self.cut(who, other)], lasts)
            }
        };
        let begun = Instant::now();
        let united = || self.servers.united(self.voters, Wiped::Nobody).is_ok();
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::KillAgents(who) => {
                self.kill(who, Process::is_agent_of);
                if outage == Outage::Api {
                    self.wait_for("the servers to be united without it", united);
                }
            }
            Meanwhile::Delete(who) => {
                let old = self.namespace.lives(LABEL);
                self.delete(who, Grace::Given);
                self.wait_for("other Pods", || who.iter().all(|who| self.is_other(*who, &old)));
                self.wait_for("the servers to be united without it", united);
            }
        }
        // What is disturbed is a time.
        std::thread::sleep(lasts.saturating_sub(begun.elapsed()));
        drop(broken);
    }

    fn outvote(self, wiped: usize, behind: usize) {
        let (one, other) = pair(wiped);
        let leader = if one == behind { other } else { one };
        self.wait_for("the leadership of the third server", || {
            self.servers.transfer(leader, &self.voters[leader].id);
            (0..SERVERS).all(|asked| self.servers.leader(asked) == Ok(leader))
        });
        let _lagging = self.cut(leader, behind);
        let before = self.ledger.count();
        self.wait_for("writes that it lacks", || self.ledger.count() >= before + LACKED);
        let old = self.namespace.lives(LABEL);
        // It comes back on the same node: others have a server each.
        let nodes = (self.node(leader), self.node(wiped));
        // With its grace period it would wait for the one that is behind.
        self.wipe(wiped, Grace::None);
        let _away = Broken::cut(self.namespace, nodes.0, nodes.1);
        self.wait_for("another Pod with an empty disk", || {
            let pod = self.namespace.get(&format!("pods/{}", server(wiped))).unwrap_or_default();
            self.is_other(wiped, &old) && !pod["status"]["podIP"].is_null()
        });
        // What is disturbed is a time.
        std::thread::sleep(OUTVOTE);
    }

    fn cut(self, one: usize, other: usize) -> Broken {
        Broken::cut(self.namespace, self.node(one), self.node(other))
    }

    /// The number of a server's node; a Pod may come back on another one.
    fn node(self, who: usize) -> usize {
        let pod = self.namespace.get(&format!("pods/{}", server(who))).unwrap_or_default();
        let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let number = name.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse();
        number.unwrap_or_else(|_| panic!("{} runs on {name:?}, and nodes are cut by their numbers", server(who)))
    }

    /// Whether a server's Pod is there, and another one than it was.
    fn is_other(self, who: usize, old: &Lives) -> bool {
        let (name, now) = (server(who), self.namespace.lives(LABEL));
        now.get(&name).is_some_and(|life| old.get(&name).is_none_or(|before| before.0 != life.0))
    }

    fn wait_for(self, what: &str, done: impl Fn() -> bool) {
        self.namespace.wait_for(what, || {
            self.ledger.assert_right();
            done()
        });
    }
}
