//! Which disturbance comes next? Takes a seed; gives an endless sequence that is a pure function of it, so that a run can be
//! had again, as far as the machine's pace allows. It knows what may be asked of three servers: at most one of them is without
//! its disk at a time, and no container is killed twice before its Pod was replaced, since kubelet would wait for 10 s and more
//! (CrashLoopBackOff). It never does anything.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

/// How many servers there are: the ordinals below it.
pub const SERVERS: usize = 3;
/// So many disturbances hit the others while a server that lost its disk returns, before all three are waited for.
const MEANWHILE: usize = 7;

/// Ordinals of servers.
pub type Ordinals = BTreeSet<usize>;

/// What happens to the servers, or to what they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disturbance {
    /// The agents get SIGKILL, whoever started them.
    KillAgents(Ordinals),
    /// The first process of every container gets SIGKILL.
    KillContainers(Ordinals),
    /// The Pods are deleted, by force or with their grace period.
    Delete(Ordinals, Grace),
    /// So many replicas until those beyond are gone, then three again.
    Scale(usize),
    /// Something between or beside the servers is broken for a while.
    Break(Outage, Meanwhile),
    /// A server's Pod and volume are deleted.
    Wipe(usize),
    /// The schedule in which an empty disk could vote acknowledged writes away: the leader and `wiped` acknowledge what
    /// `behind` lacks, `wiped` loses its disk, and comes back where it sees `behind` and not the leader.
    Outvote {
        /// Loses its disk.
        wiped: usize,
        /// Lacks writes.
        behind: usize,
    },
}

/// How a Pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grace {
    /// As `kubectl delete` does it.
    Given,
    /// `--force --grace-period=0`: the next Pod starts while the containers of this one may still run.
    None,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// CoreDNS does not run.
    Dns,
    /// The API server does not run.
    Api,
    /// Nothing passes between two servers, for so long.
    Link(usize, usize, Duration),
    /// Nothing passes between a server and the other two, for so long.
    Alone(usize, Duration),
}

/// What happens while it is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meanwhile {
    /// Nothing else.
    Nothing,
    /// [`Disturbance::KillAgents`].
    KillAgents(Ordinals),
    /// [`Disturbance::Delete`] with the grace period.
    Delete(Ordinals),
}

/// A disturbance, and what is waited for after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What happens.
    pub what: Disturbance,
    /// The server without a disk that is on its way back and need not be well yet, this one's own included.
    pub returning: Option<usize>,
    /// Whether it is waited for afterwards, before anything else happens.
    pub then_whole: bool,
}

/// The kinds of disturbances, without their targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    KillAgents(usize),
    KillContainers(usize),
    Delete(usize, Grace),
    Scale(usize),
    Link,
    Alone,
    AloneAndKill,
    Dns,
    DnsAndDelete,
    Api,
    ApiAndKill,
    Wipe,
    Outvote,
}

/// Of each kind so many, then all over again in another order: what is rare comes too.
const DECK: &[(Card, usize)] = &[
    (Card::KillAgents(1), 13),
    (Card::KillAgents(2), 5),
    (Card::KillAgents(3), 3),
    (Card::KillContainers(1), 4),
    (Card::KillContainers(3), 2),
    (Card::Delete(1, Grace::Given), 9),
    (Card::Delete(2, Grace::Given), 3),
    (Card::Delete(3, Grace::Given), 3),
    (Card::Delete(1, Grace::None), 2),
    (Card::Delete(3, Grace::None), 2),
    (Card::Scale(0), 1),
    (Card::Scale(2), 1),
    (Card::Link, 12),
    (Card::Alone, 10),
    (Card::AloneAndKill, 1),
    (Card::Dns, 1),
    (Card::DnsAndDelete, 1),
    (Card::Api, 1),
    (Card::ApiAndKill, 1),
    (Card::Wipe, 1),
    (Card::Outvote, 1),
];

/// The sequence.
#[derive(Debug)]
pub struct Plan {
    random: Random,
    deck: VecDeque<Card>,
    /// Servers none of whose containers was killed since their Pod came.
    fresh: Ordinals,
    /// Who lost its disk, and how many more disturbances hit the others before it is waited for.
    returning: Option<(usize, usize)>,
}

/// SplitMix64 (Steele, Lea and Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug)]
struct Random(u64);

// === impl Plan ===

impl Plan {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { random: Random(seed), deck: VecDeque::new(), fresh: (0..SERVERS).collect(), returning: None }
    }

    /// Whether a card can be played now.
    fn fits(&self, card: Card) -> bool {
        let fresh = self.others().intersection(&self.fresh).count();
        let among = match card {
            Card::KillAgents(count) | Card::KillContainers(count) => count <= fresh,
            Card::AloneAndKill => fresh == SERVERS,
            Card::ApiAndKill => fresh > 0,
            _ => true,
        };
        let is_short = match card {
            Card::KillAgents(count) | Card::KillContainers(count) | Card::Delete(count, _) => count < SERVERS,
            Card::Link | Card::Alone => true,
            _ => false,
        };
        among && (is_short || self.returning.is_none())
    }

    /// Those that have their disk.
    fn others(&self) -> Ordinals {
        (0..SERVERS).filter(|server| self.returning.is_none_or(|(returning, _)| returning != *server)).collect()
    }

    fn draw(&mut self) -> Card {
        loop {
            let at = self.deck.iter().position(|card| self.fits(*card));
            if let Some(card) = at.and_then(|at| self.deck.remove(at)) {
                return card;
            }
            let mut more: Vec<Card> =
                DECK.iter().flat_map(|(card, count)| std::iter::repeat_n(*card, *count)).collect();
            self.random.shuffle(&mut more);
            self.deck.extend(more);
        }
    }

    fn pick(&mut self, among: Ordinals, count: usize) -> Ordinals {
        let mut among: Vec<usize> = among.into_iter().collect();
        self.random.shuffle(&mut among);
        among.into_iter().take(count).collect()
    }

    fn one(&mut self, among: Ordinals) -> usize {
        // Never asked of nobody.
        self.pick(among, 1).pop_first().unwrap_or_default()
    }

    fn seconds(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_secs(least + self.random.below(most - least + 1))
    }

    fn play(&mut self, card: Card) -> Disturbance {
        let others = self.others();
        let fresh: Ordinals = others.intersection(&self.fresh).copied().collect();
        match card {
            Card::KillAgents(count) => Disturbance::KillAgents(self.pick(fresh, count)),
            Card::KillContainers(count) => Disturbance::KillContainers(self.pick(fresh, count)),
            Card::Delete(count, grace) => Disturbance::Delete(self.pick(others, count), grace),
            Card::Scale(to) => Disturbance::Scale(to),
            Card::Link => {
                let alone = self.one((0..SERVERS).collect());
                let (one, other) = pair(alone);
                Disturbance::Break(Outage::Link(one, other, self.seconds(1, 2)), Meanwhile::Nothing)
            }
            Card::Alone => {
                let who = self.one((0..SERVERS).collect());
                Disturbance::Break(Outage::Alone(who, self.seconds(1, 3)), Meanwhile::Nothing)
            }
            Card::AloneAndKill => {
                let who = self.one((0..SERVERS).collect());
                let (one, other) = pair(who);
                let killed = self.pick([one, other].into(), 1);
                Disturbance::Break(Outage::Alone(who, self.seconds(3, 5)), Meanwhile::KillAgents(killed))
            }
            Card::Dns => Disturbance::Break(Outage::Dns, Meanwhile::Nothing),
            Card::DnsAndDelete => {
                let count = 1 + usize::from(self.random.below(2) == 1) * 2;
                Disturbance::Break(Outage::Dns, Meanwhile::Delete(self.pick(others, count)))
            }
            Card::Api => Disturbance::Break(Outage::Api, Meanwhile::Nothing),
            Card::ApiAndKill => {
                let count = fresh.len();
                Disturbance::Break(Outage::Api, Meanwhile::KillAgents(self.pick(fresh, count)))
            }
            Card::Wipe => Disturbance::Wipe(self.one(others)),
            Card::Outvote => {
                let wiped = self.one(others);
                let (one, other) = pair(wiped);
                Disturbance::Outvote { wiped, behind: self.one([one, other].into()) }
            }
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let card = self.draw();
        let what = self.play(card);
        self.fresh.extend(what.replaced());
        self.fresh.retain(|server| !what.killed().contains(server));
        if let Some(wiped) = what.wiped() {
            self.returning = Some((wiped, MEANWHILE));
            return Some(Step { what, returning: Some(wiped), then_whole: false });
        }
        let returning = self.returning.map(|(server, _)| server);
        self.returning = self.returning.map(|(server, left)| (server, left - 1)).filter(|(_, left)| *left > 0);
        Some(Step { what, returning, then_whole: self.returning.is_none() })
    }
}

/// The other two.
pub fn pair(server: usize) -> (usize, usize) {
    ((server + 1) % SERVERS, (server + 2) % SERVERS)
}

// === impl Disturbance ===

impl Disturbance {
    /// What it is, without its targets.
    pub fn kind(&self) -> String {
        let of = |what: &str, who: &Ordinals| format!("{what}, {}", who.len());
        match self {
            Self::KillAgents(who) => of("kill agents", who),
            Self::KillContainers(who) => of("kill containers", who),
            Self::Delete(who, Grace::Given) => of("delete Pods", who),
            Self::Delete(who, Grace::None) => of("delete Pods by force", who),
            Self::Scale(to) => format!("scale to {to} and back"),
            Self::Break(outage, Meanwhile::Nothing) => outage.to_string(),
            Self::Break(outage, Meanwhile::KillAgents(_)) => format!("{outage}, kill agents"),
            Self::Break(outage, Meanwhile::Delete(_)) => format!("{outage}, delete Pods"),
            Self::Wipe(_) => "wipe".to_owned(),
            Self::Outvote { .. } => "wipe beside one behind".to_owned(),
        }
    }

    /// Whom it hits.
    pub fn targets(&self) -> Vec<usize> {
        let sorted = |who: &Ordinals| who.iter().copied().collect();
        match self {
            Self::KillAgents(who) | Self::KillContainers(who) | Self::Delete(who, _) => sorted(who),
            Self::Scale(to) => (*to..SERVERS).collect(),
            Self::Break(outage, meanwhile) => {
                let mut all = match outage {
                    Outage::Dns | Outage::Api => Vec::new(),
                    Outage::Link(one, other, _) => vec![*one, *other],
                    Outage::Alone(who, _) => vec![*who],
                };
                if let Meanwhile::KillAgents(who) | Meanwhile::Delete(who) = meanwhile {
                    all.extend(who);
                }
                all
            }
            Self::Wipe(who) => vec![*who],
            Self::Outvote { wiped, behind } => vec![*wiped, *behind],
        }
    }

    /// Whose Pod is another one afterwards.
    pub fn replaced(&self) -> Ordinals {
        match self {
            Self::Delete(who, _) | Self::Break(_, Meanwhile::Delete(who)) => who.clone(),
            Self::Scale(to) => (*to..SERVERS).collect(),
            Self::Wipe(wiped) | Self::Outvote { wiped, .. } => [*wiped].into(),
            Self::KillAgents(_) | Self::KillContainers(_) | Self::Break(..) => Ordinals::new(),
        }
    }

    /// Whose container was started again afterwards.
    pub fn killed(&self) -> Ordinals {
        match self {
            Self::KillAgents(who) | Self::KillContainers(who) | Self::Break(_, Meanwhile::KillAgents(who)) => {
                who.clone()
            }
            _ => Ordinals::new(),
        }
    }

    /// Who lost its disk.
    pub fn wiped(&self) -> Option<usize> {
        match self {
            Self::Wipe(wiped) | Self::Outvote { wiped, .. } => Some(*wiped),
            _ => None,
        }
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "no DNS",
            Self::Api => "no API server",
            Self::Link(..) => "cut one link",
            Self::Alone(..) => "cut one off",
        })
    }
}

// === impl Random ===

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The remainder's bias is nothing beside these small numbers.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
