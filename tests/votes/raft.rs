//! Servers that vote and replicate as hashicorp/raft does. Takes one [`Event`] after the other, each of them a no-op where
//! it cannot happen; keeps what was acknowledged, and finds the leader that lacks some of it.

use crate::rules::Rules;
use convene::survey::agents::Verdict;
use std::collections::{BTreeMap, BTreeSet};

/// Something that happens. Servers are numbers, which are their addresses too; `Vec<usize>` are those that are asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A voter begins a new term as candidate.
    Stand(usize),
    /// A candidate asks those for their votes.
    Ask(usize, Vec<usize>),
    /// A candidate with the votes of a majority leads.
    Win(usize),
    /// A client writes at a leader.
    Write(usize),
    /// A leader sends a server so many of the entries that it lacks.
    Send(usize, usize, usize),
    /// A leader commits what a majority holds, and the clients hear of it.
    Commit(usize),
    /// A leader appends that a server is no peer.
    Remove(usize, usize),
    /// A leader appends that a server is a peer without a vote.
    Add(usize, usize),
    /// A leader appends that a peer votes, which it has seen caught up.
    Promote(usize, usize),
    /// The link between two is cut.
    Cut(usize, usize),
    /// That link works again.
    Heal(usize, usize),
    /// A server ends; its disk stays.
    Kill(usize),
    /// A server ends and its disk is lost, if it may be.
    Wipe(usize),
    /// A server that is down comes back: at once with a disk that an agent has used, else when it is let.
    Start(usize),
    /// One that comes back with an empty disk asks those whom it has not asked in this round.
    Look(usize, Vec<usize>),
}

/// What an entry of the log says.
#[derive(Debug, Clone, PartialEq)]
enum Entry {
    Noop,
    Write(u32),
    /// Every peer, and whether it votes. In force as soon as it is appended, as in hashicorp/raft.
    Peers(Peers),
}

type Peers = BTreeMap<usize, bool>;

#[derive(Debug, Clone, Default, PartialEq)]
enum Role {
    #[default]
    Follower,
    Candidate(BTreeSet<usize>),
    Leader(Lead),
}

/// What a leader has in memory.
#[derive(Debug, Clone, Default, PartialEq)]
struct Lead {
    /// How much each peer is known to hold: never less than before while it is the same peer.
    held: BTreeMap<usize, usize>,
    committed: usize,
    /// Where its term begins.
    begun: usize,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    /// An agent was started on it.
    used: bool,
    log: Vec<(u64, Entry)>,
    term: u64,
    vote: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Server {
    disk: Disk,
    running: bool,
    role: Role,
    leader: Option<usize>,
    /// What others said to it in this round while it waits with an empty disk.
    seen: BTreeMap<usize, Verdict>,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct World {
    pub rules: Rules,
    /// How many servers may be lost at a time.
    pub losses: usize,
    servers: Vec<Server>,
    cut: BTreeSet<(usize, usize)>,
    /// Lost their disk or were removed, and are not yet again voters that hold all that is committed.
    lost: BTreeSet<usize>,
    /// Every write that was committed, and in which term.
    acknowledged: BTreeMap<u32, u64>,
    writes: u32,
}

// === impl Disk ===

impl Disk {
    fn peers(&self) -> (usize, Peers) {
        let latest = self.log.iter().enumerate().rev().find_map(|(at, (_, entry))| match entry {
            Entry::Peers(peers) => Some((at + 1, peers.clone())),
            _ => None,
        });
        latest.unwrap_or_default()
    }

    fn votes(&self, who: usize) -> bool {
        self.peers().1.get(&who) == Some(&true)
    }

    fn end(&self) -> (u64, usize) {
        (self.log.last().map_or(0, |last| last.0), self.log.len())
    }

    fn writes(&self) -> BTreeSet<u32> {
        let of = |(_, entry): &(u64, Entry)| if let Entry::Write(write) = entry { Some(*write) } else { None };
        self.log.iter().filter_map(of).collect()
    }
}

// === impl Server ===

impl Server {
    fn see_term(&mut self, term: u64) {
        if term > self.disk.term {
            (self.disk.term, self.disk.vote) = (term, None);
            (self.role, self.leader) = (Role::Follower, None);
        }
    }

    fn lead(&self) -> Option<&Lead> {
        if let Role::Leader(lead) = &self.role { Some(lead) } else { None }
    }

    /// The order of hashicorp/raft's requestVote, without its refusal while a leader is known: more is possible here.
    fn grants(&mut self, candidate: usize, term: u64, end: (u64, usize)) -> bool {
        let peers = self.disk.peers().1;
        // "if the Servers list is empty that mean the cluster is very likely trying to bootstrap, Grant the vote"
        if (!peers.is_empty() && !peers.contains_key(&candidate)) || term < self.disk.term {
            return false;
        }
        self.see_term(term);
        if !peers.is_empty() && peers.get(&candidate) != Some(&true) {
            return false;
        }
        let granted = match self.disk.vote {
            Some(vote) => vote == candidate,
            None => self.disk.end() <= end,
        };
        self.disk.vote = if granted { Some(candidate) } else { self.disk.vote };
        granted
    }
}

// === impl World ===

impl World {
    /// A cluster that has formed: every server votes, and holds nothing yet but that.
    pub fn formed(size: usize, rules: Rules, losses: usize) -> Self {
        let peers = (0..size).map(|server| (server, true)).collect();
        let disk = Disk { used: true, log: vec![(1, Entry::Peers(peers))], term: 1, vote: None };
        let server = Server { disk, running: true, ..Server::default() };
        let (cut, lost, acknowledged) = Default::default();
        Self { rules, losses, servers: vec![server; size], cut, lost, acknowledged, writes: 0 }
    }

    /// Lets something happen. An error is the leader that lacks what was acknowledged.
    pub fn happen(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Stand(who) => self.stand(*who),
            Event::Ask(who, asked) => asked.iter().for_each(|voter| self.ask(*who, *voter)),
            Event::Win(who) => return self.win(*who),
            Event::Write(at) if self.leads(*at) => {
                self.writes += 1;
                self.append(*at, Entry::Write(self.writes));
            }
            Event::Send(from, to, most) => self.send(*from, *to, *most),
            Event::Commit(at) => self.commit(*at),
            Event::Remove(at, who) if self.may_lose(*who) => self.change(*at, *who, None),
            Event::Add(at, who) => self.change(*at, *who, Some(false)),
            Event::Promote(at, who) => self.change(*at, *who, Some(true)),
            Event::Cut(a, b) => drop(self.cut.insert((*a.min(b), *a.max(b)))),
            Event::Heal(a, b) => drop(self.cut.remove(&(*a.min(b), *a.max(b)))),
            Event::Kill(who) => self.kill(*who),
            Event::Wipe(who) if self.may_lose(*who) => {
                self.kill(*who);
                self.servers[*who] = Server::default();
                self.lost.insert(*who);
            }
            Event::Start(who) => self.start(*who),
            Event::Look(who, asked) if !self.servers[*who].running => {
                for other in asked.iter().filter(|other| *other != who) {
                    let verdict = self.verdict(*who, *other);
                    self.servers[*who].seen.entry(*other).or_insert(verdict);
                }
            }
            Event::Write(_) | Event::Remove(..) | Event::Wipe(_) | Event::Look(..) => {}
        }
        Ok(())
    }

    pub fn size(&self) -> usize {
        self.servers.len()
    }

    pub fn running(&self, who: usize) -> bool {
        self.servers[who].running
    }

    pub fn leads(&self, who: usize) -> bool {
        self.servers[who].lead().is_some()
    }

    /// The leader of the newest term.
    pub fn leader(&self) -> Option<usize> {
        (0..self.size()).filter(|who| self.leads(*who)).max_by_key(|who| self.servers[*who].disk.term)
    }

    /// Whether a server has the leader's log, and votes by it.
    pub fn follows(&self, leader: usize, who: usize) -> bool {
        let (disk, of) = (&self.servers[who].disk, &self.servers[leader].disk);
        disk.log == of.log && of.votes(who)
    }

    /// A server whose log has all that was acknowledged.
    pub fn holds_all(&self, who: usize) -> bool {
        let writes = self.servers[who].disk.writes();
        self.acknowledged.keys().all(|write| writes.contains(write))
    }

    /// What a server answers to one that asks, as a survey hears it.
    fn verdict(&self, asking: usize, who: usize) -> Verdict {
        let server = &self.servers[who];
        let reported = crate::rules::reported(server.leader, server.disk.peers().1.into_keys());
        match () {
            () if self.is_cut(asking, who) => Verdict::Unknown("silent".to_owned()),
            () if !server.running => Verdict::Absent("its server port refuses".to_owned()),
            () if reported.leader.is_none() && reported.peers.is_empty() => Verdict::NeverFormed,
            () => Verdict::Formed(reported),
        }
    }

    fn may_lose(&self, who: usize) -> bool {
        self.lost.len() < self.losses || self.lost.contains(&who)
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.servers[a].running && self.servers[b].running && !self.is_cut(a, b)
    }

    fn append(&mut self, at: usize, entry: Entry) {
        let disk = &mut self.servers[at].disk;
        disk.log.push((disk.term, entry));
    }

    fn kill(&mut self, who: usize) {
        let disk = std::mem::take(&mut self.servers[who].disk);
        self.servers[who] = Server { disk, ..Server::default() };
    }

    fn start(&mut self, who: usize) {
        if self.servers[who].running {
            return;
        }
        let asked_all = self.servers[who].seen.len() + 1 == self.size();
        let seen = if asked_all { std::mem::take(&mut self.servers[who].seen) } else { BTreeMap::new() };
        let is_let = self.rules == Rules::None || (asked_all && self.rules.let_start(who, seen));
        if self.servers[who].disk.used || is_let {
            (self.servers[who].running, self.servers[who].disk.used) = (true, true);
        }
    }

    fn stand(&mut self, who: usize) {
        let server = &mut self.servers[who];
        if server.running && server.lead().is_none() && server.disk.votes(who) {
            server.see_term(server.disk.term + 1);
            server.disk.vote = Some(who);
            server.role = Role::Candidate(BTreeSet::from([who]));
        }
    }

    fn ask(&mut self, who: usize, voter: usize) {
        let Server { disk, role: Role::Candidate(_), .. } = &self.servers[who] else { return };
        if who == voter || !self.reaches(who, voter) || !disk.votes(voter) {
            return;
        }
        let (term, end) = (disk.term, disk.end());
        let granted = self.servers[voter].grants(who, term, end);
        let answered = self.servers[voter].disk.term;
        self.servers[who].see_term(answered);
        if let (true, Role::Candidate(votes)) = (granted, &mut self.servers[who].role) {
            votes.insert(voter);
        }
    }

    fn win(&mut self, who: usize) -> Result<(), String> {
        let Server { disk, role: Role::Candidate(votes), .. } = &self.servers[who] else { return Ok(()) };
        let voters = disk.peers().1.into_values().filter(|votes| *votes).count();
        if votes.len() <= voters / 2 {
            return Ok(());
        }
        // One whose votes arrive when a later term has begun may lack what that term acknowledged; it commits nothing.
        let earlier = self.acknowledged.iter().filter(|(_, term)| **term <= disk.term).map(|(write, _)| write);
        let writes = disk.writes();
        let lacks: Vec<&u32> = earlier.filter(|write| !writes.contains(write)).collect();
        if !lacks.is_empty() {
            return Err(format!("server {who} leads in term {} without the acknowledged {lacks:?}", disk.term));
        }
        let begun = disk.log.len() + 1;
        self.servers[who].role = Role::Leader(Lead { begun, ..Lead::default() });
        self.servers[who].leader = Some(who);
        self.append(who, Entry::Noop);
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, most: usize) {
        let disk = self.servers[from].disk.clone();
        if !self.leads(from) || from == to || !self.reaches(from, to) || !disk.peers().1.contains_key(&to) {
            return;
        }
        let answered = self.servers[to].disk.term;
        if answered > disk.term {
            return self.servers[from].see_term(answered);
        }
        let server = &mut self.servers[to];
        server.see_term(disk.term);
        (server.role, server.leader) = (Role::Follower, Some(from));
        let same = server.disk.log.iter().zip(&disk.log).take_while(|(theirs, ours)| theirs == ours).count();
        let sent = disk.log.len().min(same + most);
        if sent > same {
            server.disk.log.truncate(same);
            server.disk.log.extend_from_slice(&disk.log[same..sent]);
        }
        if let Role::Leader(lead) = &mut self.servers[from].role {
            let held = lead.held.entry(to).or_default();
            *held = sent.max(*held);
        }
    }

    fn commit(&mut self, at: usize) {
        let Server { disk, role: Role::Leader(lead), .. } = &mut self.servers[at] else { return };
        let (_, peers) = disk.peers();
        let own = disk.log.len();
        let mut held: Vec<usize> = peers
            .iter()
            .filter(|(_, votes)| **votes)
            .map(|(peer, _)| if *peer == at { own } else { lead.held.get(peer).copied().unwrap_or_default() })
            .collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        let most = held.get(held.len() / 2).copied().unwrap_or_default();
        // Only an entry of its own term is committed by counting.
        if most < lead.begun || most <= lead.committed {
            return;
        }
        lead.committed = most;
        let committed = Disk { log: disk.log[..most].to_vec(), ..Disk::default() };
        for write in committed.writes() {
            self.acknowledged.entry(write).or_insert(disk.term);
        }
        let (servers, lost) = (&self.servers, self.lost.clone());
        let left = || servers.iter().enumerate().filter(|(who, _)| !lost.contains(who)).map(|(_, server)| &server.disk);
        self.lost.retain(|who| {
            let is_back = committed.votes(*who) && servers[*who].disk.log.starts_with(&committed.log);
            !is_back || left().any(|disk| !disk.votes(*who))
        });
    }

    /// One server at a time, and the next one only when the last one and an entry of the leader's own term are committed.
    fn change(&mut self, at: usize, who: usize, votes: Option<bool>) {
        let Server { disk, role: Role::Leader(lead), .. } = &mut self.servers[at] else { return };
        let (since, mut peers) = disk.peers();
        let caught_up = lead.held.get(&who).copied().unwrap_or_default() >= lead.committed;
        let fits = match votes {
            None => peers.contains_key(&who),
            Some(false) => !peers.contains_key(&who),
            Some(true) => peers.get(&who) == Some(&false) && caught_up,
        };
        if who == at || !fits || lead.committed < since || lead.committed < lead.begun {
            return;
        }
        match votes {
            Some(votes) => drop(peers.insert(who, votes)),
            None => drop((peers.remove(&who), lead.held.remove(&who), self.lost.insert(who))),
        }
        self.append(at, Entry::Peers(peers));
    }
}
