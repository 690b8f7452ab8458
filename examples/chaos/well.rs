//! Are the servers well again? Takes what was done to them and how their Pods were before; gives what is still missing, and
//! panics when it does not come, or when an acknowledged write is lost. It changes nothing but by writing new keys.

use crate::disturb::Stage;
use crate::plan::{Ordinals, SERVERS};
use crate::servers::Wiped;
use crate::support::kubernetes::namespace::{SERVERS as LABEL, is_ready, server};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A guard against hanging, no measure: kubelet, autopilot and serf have periods of up to a minute.
const LIMIT: Duration = Duration::from_secs(180);
/// How late a follower may have what is committed before something else is looked at: it hears of it with the next write.
const LATE: Duration = Duration::from_secs(2);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);
/// What the servers keep in Kubernetes: that there is a cluster, and which.
const CLAIM: &str = "configmaps/consul-server-convene";

/// Each Pod's UID and restarts, by its name.
pub type Lives = BTreeMap<String, (String, u64)>;

/// What must have happened to Pods.
#[derive(Debug, Default)]
pub struct Changes {
    /// How they were.
    pub before: Lives,
    /// Those that must be others.
    pub replaced: Ordinals,
    /// Those that must have been started again.
    pub killed: Ordinals,
}

// === impl Stage ===

impl Stage<'_> {
    /// Waits until all is well.
    pub fn wait_until_well(self, changes: &Changes, wiped: Wiped) {
        let begun = Instant::now();
        while let Err(missing) = self.is_well(changes, wiped) {
            self.ledger.assert_right();
            let pods = || self.namespace.try_kubectl(&["get", "pods", "-o", "wide"]).unwrap_or_else(|why| why);
            assert!(begun.elapsed() < LIMIT, "not well again after {} s: {missing}\n{}", LIMIT.as_secs(), pods());
            std::thread::sleep(LOOK);
        }
        self.ledger.assert_right();
    }

    /// The claim's ID and state; none while it has none.
    pub fn claim(self) -> Option<(String, String)> {
        let claim = self.namespace.get(CLAIM)?;
        let text = |name: &str| claim["data"][name].as_str().map(str::to_owned);
        Some((text("id")?, text("state")?))
    }

    fn is_well(self, changes: &Changes, wiped: Wiped) -> Result<(), String> {
        let asked = || (0..SERVERS).filter(move |asked| !matches!(wiped, Wiped::Away(away) if away == *asked));
        // The cheapest first, and what is read last must hold what the writes before it have put there.
        self.servers.united(self.voters, wiped)?;
        self.are_ready(asked(), changes)?;
        for through in asked() {
            if !self.ledger.write(self.servers, through) {
                return Err(format!("{} does not take a write", server(through)));
            }
        }
        asked().try_for_each(|from| self.has_all(from))?;
        let claim = self.claim().ok_or("the claim is not there")?;
        assert_eq!(claim, (self.claim.to_owned(), "formed".to_owned()), "the claim is another one");
        Ok(())
    }

    fn are_ready(self, mut asked: impl Iterator<Item = usize>, changes: &Changes) -> Result<(), String> {
        let (pods, lives) = (self.namespace.pods(LABEL), self.namespace.lives(LABEL));
        asked.try_for_each(|ordinal| {
            let name = server(ordinal);
            let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name.as_str());
            if !pod.is_some_and(is_ready) {
                return Err(format!("{name} is not Ready"));
            }
            let (old, now) = (changes.before.get(&name), lives.get(&name));
            let is_other = old.map(|life| &life.0) != now.map(|life| &life.0);
            if (changes.replaced.contains(&ordinal) && !is_other) || (changes.killed.contains(&ordinal) && old == now) {
                return Err(format!("{name} is still as it was"));
            }
            Ok(())
        })
    }

    /// A consistent answer that lacks an acknowledged write has lost it. On a server itself it may be late.
    fn has_all(self, from: usize) -> Result<(), String> {
        let name = server(from);
        let acknowledged = self.ledger.acknowledged();
        let lacking = |consistent| {
            let keys = self.servers.keys(from, consistent).ok_or_else(|| format!("{name} does not list the keys"))?;
            Ok::<Vec<String>, String>(acknowledged.difference(&keys).cloned().collect())
        };
        let lost = lacking(true)?;
        assert!(lost.is_empty(), "lost, as {name} says consistently: {:#?}", self.ledger.told(&lost));
        let begun = Instant::now();
        loop {
            let late = lacking(false)?;
            if late.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > LATE {
                return Err(format!("{name} itself lacks {:#?}", self.ledger.told(&late)));
            }
        }
    }
}
