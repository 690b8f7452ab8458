//! The claim: what outlives all volumes, and keeps a second cluster from being founded out of wiped disks.
//!
//! Takes the Kubernetes API and our StatefulSet, gives what the ConfigMap `<statefulset>-convene` says: nothing, "founding" with
//! the expect that the first server wrote before anybody rendered one, or "formed". Every change is a compare-and-swap. It goes
//! with its StatefulSet: one of another owner counts as none, one without an owner is taken over. Whether it is used is a
//! setting and never inferred from a call that failed: a claim that cannot be read is [`Seen::Unreadable`], not absent.

use crate::api::kube::{ConfigMap, Kube, KubeError, StatefulSet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use uuid::Uuid;

const STATE: &str = "state";
const ID: &str = "id";
const EXPECT: &str = "expect";
const FOUNDING: &str = "founding";
const FORMED: &str = "formed";
const NODES: &str = "nodes";
/// Before the name of a Pod: every address that it has had.
const ADDRESSES: &str = "addresses.";
/// The raft configuration of a recovery that was begun.
const RECOVERY: &str = "recovery";
/// When, and from which Pod.
const BEGUN: &str = "recovery-begun";
/// The last recovery that came to its end.
const RECOVERED: &str = "recovered";

/// What is known of the claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seen {
    /// None is kept (`--claim=off`, or no way to the API).
    #[default]
    Unused,
    /// It cannot be read.
    Unreadable(String),
    /// There is none.
    Absent,
    /// It is there.
    Claimed(Claim),
}

/// What a claim says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its own ID: another one each time that a cluster is founded by force.
    pub id: String,
    /// A cluster was seen whole; else it is being founded.
    pub formed: bool,
    /// The expect of the servers that found it.
    pub expect: Option<u32>,
    /// Every address that our own Pod has had.
    pub addresses: BTreeSet<IpAddr>,
}

/// A change of the claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A cluster is to be founded with this expect. `over` is the ID of a claim that is given up for it, by force.
    Found {
        /// The expect.
        expect: u32,
        /// The claim that is given up.
        over: Option<String>,
    },
    /// A leader and a majority of voters were seen, these being the node IDs that are known.
    Formed {
        /// The voters' node IDs.
        nodes: Vec<String>,
    },
    /// A server that has lost its quorum is to come back with this raft configuration.
    Recover {
        /// Each `ID@ADDRESS`, sorted.
        peers: Vec<String>,
    },
    /// It has, and knows a leader, these being the voters' node IDs that are known.
    Recovered {
        /// The voters' node IDs.
        nodes: Vec<String>,
        /// The leader came without it.
        void: bool,
    },
}

/// What a claim says of recoveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The raft configuration of one that was begun, each `ID@ADDRESS`; none: none is under way.
    pub peers: Vec<String>,
    /// When it was begun, and from which Pod.
    pub begun: String,
    /// Every address that any Pod of our StatefulSet has had.
    pub addresses: BTreeMap<IpAddr, String>,
}

/// Reads and changes the claim of one StatefulSet.
#[derive(Debug, Clone)]
pub struct Claims {
    kube: Kube,
    namespace: String,
    statefulset: String,
    pod: String,
}

// === impl Claims ===

impl Claims {
    /// The claim of our Pod's StatefulSet.
    pub fn new(kube: Kube, namespace: String, statefulset: String, pod: String) -> Self {
        Self { kube, namespace, statefulset, pod }
    }

    /// The ConfigMap's name.
    pub fn name(&self) -> String {
        format!("{}-convene", self.statefulset)
    }

    /// Our StatefulSet as it is now; `None` when it is gone.
    ///
    /// # Errors
    /// Why the Kubernetes API did not tell.
    pub async fn statefulset(&self) -> Result<Option<StatefulSet>, String> {
        self.kube.statefulset(&self.namespace, &self.statefulset).await.map_err(|error| error.to_string())
    }

    /// What the claim says. `told` is our StatefulSet, whose UID the claim's owner must have.
    pub async fn read(&self, told: Option<&StatefulSet>) -> Seen {
        match self.kept(told).await {
            Ok(map) => map.data.get(STATE).map_or(Seen::Absent, |_| Seen::Claimed(self.claim(&map))),
            Err(why) => Seen::Unreadable(why),
        }
    }

    /// What it says of recoveries.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn recovery(&self, told: Option<&StatefulSet>) -> Result<Recovery, String> {
        let map = self.kept(told).await?;
        let words = |key: &str| map.data.get(key).map(String::as_str).unwrap_or_default().split_whitespace();
        let of_pods = map.data.iter().filter_map(|(key, all)| Some((key.strip_prefix(ADDRESSES)?, all)));
        let addresses = of_pods.flat_map(|(pod, all)| {
            all.split_whitespace().filter_map(|ip| Some((ip.parse().ok()?, pod.to_owned()))).collect::<Vec<_>>()
        });
        Ok(Recovery {
            peers: words(RECOVERY).map(str::to_owned).collect(),
            begun: map.data.get(BEGUN).cloned().unwrap_or_default(),
            addresses: addresses.collect(),
        })
    }

    /// The Kubernetes API, and our namespace there.
    pub fn place(&self) -> (&Kube, &str) {
        (&self.kube, &self.namespace)
    }

    /// Makes a change. False: somebody else changed it meanwhile; read again.
    ///
    /// # Errors
    /// Why it could not be written.
    pub async fn write(
        &self,
        told: Option<&StatefulSet>,
        step: &Step,
        own: impl IntoIterator<Item = IpAddr>,
    ) -> Result<bool, String> {
        let mut map = self.kept(told).await?;
        let before = (map.owner.clone(), map.data.clone());
        map.owner = told.map(|told| told.uid.clone());
        let mut own: BTreeSet<IpAddr> = own.into_iter().collect();
        own.extend(self.claim(&map).addresses);
        match step {
            Step::Found { expect, over } => {
                let id = map.data.get(ID).cloned();
                let claimed = map.data.contains_key(STATE);
                // Another server was quicker, or the force was used up.
                if claimed && (over.is_none() || *over != id) {
                    return Ok(false);
                }
                let now = k8s_openapi::jiff::Timestamp::now();
                if let Some(over) = over {
                    map.data.insert("forced".to_owned(), format!("{now} by {} over the claim {over}", self.pod));
                }
                map.data.insert(STATE.to_owned(), FOUNDING.to_owned());
                map.data.insert(ID.to_owned(), Uuid::new_v4().to_string());
                map.data.insert(EXPECT.to_owned(), expect.to_string());
                map.data.insert("founding".to_owned(), format!("{now} by {}", self.pod));
                map.data.remove(FORMED);
            }
            Step::Formed { nodes } => self.formed(&mut map, nodes),
            Step::Recover { peers } => {
                // A server with data is proof of a cluster: nobody may found another one meanwhile.
                self.formed(&mut map, &[]);
                let peers = peers.join(" ");
                match map.data.get(RECOVERY) {
                    // Another one is under way.
                    Some(other) if *other != peers => return Ok(false),
                    Some(_) => {}
                    None => {
                        let now = k8s_openapi::jiff::Timestamp::now();
                        map.data.insert(RECOVERY.to_owned(), peers);
                        map.data.insert(BEGUN.to_owned(), format!("{now} by {}", self.pod));
                    }
                }
            }
            Step::Recovered { nodes, void } => {
                self.formed(&mut map, nodes);
                map.data.remove(BEGUN);
                if let Some(peers) = map.data.remove(RECOVERY).filter(|_| !void) {
                    let now = k8s_openapi::jiff::Timestamp::now();
                    map.data.insert(RECOVERED.to_owned(), format!("{now} seen by {}: {peers}", self.pod));
                    if !nodes.is_empty() {
                        map.data.insert(NODES.to_owned(), nodes.join(" "));
                    }
                }
            }
        }
        if !own.is_empty() {
            let own = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            map.data.insert(format!("{ADDRESSES}{}", self.pod), own);
        }
        if before == (map.owner.clone(), map.data.clone()) {
            return Ok(true);
        }
        let written = self.kube.keep_config_map(&self.namespace, &map, &self.statefulset).await;
        written.map_err(|error| self.failed(&error))
    }

    /// Has it say "formed", unless it does, and name the voters, unless whoever saw it first could.
    fn formed(&self, map: &mut ConfigMap, nodes: &[String]) {
        let first = map.data.get(STATE).is_none_or(|state| state != FORMED);
        if first {
            let now = k8s_openapi::jiff::Timestamp::now();
            map.data.insert(STATE.to_owned(), FORMED.to_owned());
            map.data.insert(FORMED.to_owned(), format!("{now} seen by {}", self.pod));
        }
        let unnamed = map.data.get(NODES).is_none_or(String::is_empty);
        if first || unnamed && !nodes.is_empty() {
            map.data.insert(NODES.to_owned(), nodes.join(" "));
        }
        map.data.entry(ID.to_owned()).or_insert_with(|| Uuid::new_v4().to_string());
    }

    /// The ConfigMap as far as it is ours, empty when it is not.
    async fn kept(&self, told: Option<&StatefulSet>) -> Result<ConfigMap, String> {
        let Some(told) = told else {
            return Err(format!("whose claim {} is cannot be told without the StatefulSet", self.name()));
        };
        let found = self.kube.config_map(&self.namespace, &self.name()).await.map_err(|error| self.failed(&error))?;
        Ok(match found {
            Some(map) if map.owner.as_ref().is_none_or(|owner| *owner == told.uid) => map,
            // Of a StatefulSet that is gone, and about to go too.
            Some(foreign) => ConfigMap { data: BTreeMap::new(), owner: None, ..foreign },
            None => ConfigMap { name: self.name(), ..ConfigMap::default() },
        })
    }

    fn claim(&self, map: &ConfigMap) -> Claim {
        let text = |key: &str| map.data.get(key).map(String::as_str).unwrap_or_default();
        let addresses = text(&format!("{ADDRESSES}{}", self.pod)).split_whitespace();
        Claim {
            id: text(ID).to_owned(),
            // A word that this convene does not know is no leave to found.
            formed: text(STATE) != FOUNDING,
            expect: text(EXPECT).parse().ok(),
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
        }
    }

    fn failed(&self, error: &KubeError) -> String {
        format!("claim {}: {error}", self.name())
    }
}
