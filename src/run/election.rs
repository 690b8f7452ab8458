//! Has raft elect at once when all that it takes are there, instead of at its next timeout.
//!
//! A server that was bootstrapped, or that starts with its data, becomes a candidate when its heartbeat timer runs out, 1 to 2 s times
//! `raft_multiplier` after its start or the last time; nothing restarts that timer when the others come. A reload that makes the timeout
//! shorter lets it run out at once (hashicorp/raft 1.7, `ReloadConfig` and `runFollower`; Consul reloads the timeouts since 1.13, consul#12844). So the
//! rendered file says a longer one for the moment of a first reload, and what it said before for a second. Tried on 1.22.6, three servers,
//! `raft_multiplier` 1, 5 and 9: a leader 30 ms after the second. A multiplier that CMD gives itself stays as it is, and so does the timer.
//!
//! Takes the own agent, ways to ask the others, and the rendered file. Once for each time that a watch of the formation begins, and only while a majority of the
//! raft peers answer and nobody of them knows a leader; raft's pre-vote protects one that is known elsewhere. Who does it first is agreed
//! without words, since several candidates at one moment may elect nobody. Where it fails raft's own timer elects, as without it.

use crate::api::consul::{Agent, ApiError, Peers};
use crate::exit::chain;
use crate::init::{FORMS, millis, pause};
use crate::record::Volume;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

/// How long another server may take for what it has in memory.
const ASKED: Duration = Duration::from_millis(300);
/// How much later each next one does it. An election takes 30 ms.
const APART: Duration = Duration::from_millis(300);
/// How often a leader is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// Consul's largest `raft_multiplier`.
const LONGEST: u8 = 10;
/// How often the second reload is tried, which must not fail.
const TRIES: usize = 5;

/// The key that convene renders at no other time.
const KEY: &str = "performance";

/// Hastens the first election of one agent's life.
#[derive(Debug, Clone)]
pub struct Election {
    file: PathBuf,
}

/// What another server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It knows a leader.
    Led,
    /// It knows none, and could lead: it has a raft configuration.
    Able,
    /// It knows none, and has no raft configuration.
    Blank,
    /// It does not answer.
    Nothing,
}

// === impl Election ===

impl Election {
    /// `file` is what was rendered for this agent.
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// Puts back what a convene left behind that was killed between two reloads.
    pub async fn mend(&self, agent: &Agent, volume: &Volume) {
        let Some(mut all) = std::fs::read(&self.file).ok().and_then(|text| keys(&text)) else { return };
        if all.remove(KEY).is_some() && self.restore(volume, crate::render::text(all).as_bytes()) {
            self.read_again(agent).await;
        }
    }

    /// Has an election begin as soon as one is due, once. `own` are our addresses.
    pub async fn hasten(self, agent: Agent, peers: Peers, volume: Volume, own: BTreeSet<IpAddr>) {
        let begun = Instant::now();
        loop {
            if let Some(turn) = self.due(&agent, &peers, &own).await {
                return self.at_its_turn(turn, &agent, &volume).await;
            }
            // While something is broken the others are not asked all the time.
            sleep(if begun.elapsed() < FORMS { LOOK } else { pause(begun.elapsed()) }).await;
        }
    }

    /// How many do it before us, if an election is due.
    async fn due(&self, agent: &Agent, peers: &Peers, own: &BTreeSet<IpAddr>) -> Option<u32> {
        if !matches!(agent.leader().await, Ok(None)) {
            return None;
        }
        let all = agent.peers().await.unwrap_or_default();
        let us = all.iter().find(|peer| own.contains(&peer.ip())).copied()?;
        turn(us, &ask(all.into_iter().filter(|peer| *peer != us), peers).await)
    }

    async fn at_its_turn(&self, turn: u32, agent: &Agent, volume: &Volume) {
        let begun = Instant::now();
        while begun.elapsed() < APART * turn {
            if !matches!(agent.leader().await, Ok(None)) {
                return;
            }
            sleep(LOOK).await;
        }
        match self.shorten(agent, volume).await {
            Ok(true) => {
                info!(took_ms = millis(begun.elapsed()), "a majority of the raft peers is here: had the election begin")
            }
            Ok(false) => {}
            Err(error) => debug!("the election begins by raft's own timer: {}", chain(&error)),
        }
    }

    /// Both reloads, which go on when nobody waits for them any more: the second must follow the first.
    async fn shorten(&self, agent: &Agent, volume: &Volume) -> Result<bool, ApiError> {
        let (this, agent, volume) = (self.clone(), agent.clone(), volume.clone());
        tokio::spawn(async move { this.reload_twice(&agent, &volume).await }).await.unwrap_or(Ok(false))
    }

    async fn reload_twice(&self, agent: &Agent, volume: &Volume) -> Result<bool, ApiError> {
        let Ok(before) = std::fs::read(&self.file) else { return Ok(false) };
        let Some(mut all) = keys(&before).filter(|all| !all.contains_key(KEY)) else { return Ok(false) };
        all.insert(KEY.to_owned(), json!({ "raft_multiplier": LONGEST }));
        if let Err(error) = volume.write(&self.file, crate::render::text(all).as_bytes()) {
            debug!("{}", chain(&error));
            // It may be there all the same, when its folder could not be synced.
            self.restore(volume, &before);
            return Ok(false);
        }
        let longer = agent.reload().await;
        // Who was denied has read nothing; at another failure raft may have its part already.
        let unread = longer.as_ref().is_err_and(|error| error.is_denied() || matches!(error, ApiError::Refused { .. }));
        if self.restore(volume, &before) && !unread {
            self.read_again(agent).await;
        }
        longer.map(|()| true)
    }

    /// The file as it was.
    fn restore(&self, volume: &Volume, before: &[u8]) -> bool {
        let written = volume.write(&self.file, before);
        if let Err(error) = &written {
            let file = self.file.display();
            warn!("raft_multiplier = {LONGEST} stays in {file} until the next start: {}", chain(error));
        }
        written.is_ok()
    }

    /// The agent by it.
    async fn read_again(&self, agent: &Agent) {
        for _ in 0..TRIES {
            match agent.reload().await {
                Ok(()) => return,
                Err(error) => debug!("{}", chain(&error)),
            }
            sleep(LOOK).await;
        }
        warn!("the agent may wait ten times as long for a leader until it is told to reload: consul reload");
    }
}

/// What was rendered; `None`: it cannot be told.
fn keys(text: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(text).ok()
}

/// What each of these says.
async fn ask(others: impl Iterator<Item = SocketAddr>, peers: &Peers) -> Vec<(SocketAddr, Said)> {
    let mut asking = JoinSet::new();
    for address in others {
        let agent = peers.at(address.ip());
        asking.spawn(async move {
            let Ok(agent) = agent else { return (address, Said::Nothing) };
            let asked = timeout(ASKED, async { tokio::join!(agent.leader(), agent.peers()) });
            let said = match asked.await {
                Ok((Ok(Some(_)), _)) => Said::Led,
                Ok((Ok(None), Ok(all))) if all.is_empty() => Said::Blank,
                Ok((Ok(None), _)) => Said::Able,
                Ok((Err(_), _)) | Err(_) => Said::Nothing,
            };
            (address, said)
        });
    }
    asking.join_all().await
}

/// How many do it before us, if an election is due: a majority is here, we among it, and nobody knows a leader.
fn turn(us: SocketAddr, others: &[(SocketAddr, Said)]) -> Option<u32> {
    let count = |what: &dyn Fn(&(SocketAddr, Said)) -> bool| others.iter().filter(|one| what(one)).count();
    let here = count(&|(_, said)| *said != Said::Nothing) + 1;
    if count(&|(_, said)| *said == Said::Led) > 0 || here * 2 <= others.len() + 1 {
        return None;
    }
    u32::try_from(count(&|(address, said)| *said == Said::Able && *address < us)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, n], 8300))
    }

    #[test]
    fn an_election_is_due_when_a_majority_is_here_and_nobody_knows_a_leader() {
        assert_eq!(turn(at(1), &[(at(2), Said::Blank), (at(3), Said::Nothing)]), Some(0));
        assert_eq!(turn(at(1), &[(at(2), Said::Nothing), (at(3), Said::Nothing)]), None);
        assert_eq!(turn(at(1), &[(at(2), Said::Led), (at(3), Said::Able)]), None);
        assert_eq!(turn(at(1), &[]), Some(0), "the only one is a majority");
        assert_eq!(turn(at(1), &[(at(2), Said::Able)]), Some(0));
        let two_of_four = [(at(2), Said::Able), (at(3), Said::Nothing), (at(4), Said::Nothing)];
        assert_eq!(turn(at(1), &two_of_four), None);
    }

    #[test]
    fn the_lowest_address_that_could_lead_does_it_first() {
        let all = |us: u8, said: [Said; 3]| {
            let others = (1..=3).zip(said).filter(|(n, _)| *n != us).map(|(n, said)| (at(n), said));
            turn(at(us), &others.collect::<Vec<_>>())
        };
        let able = [Said::Able; 3];
        assert_eq!([all(1, able), all(2, able), all(3, able)], [Some(0), Some(1), Some(2)]);
        assert_eq!(all(3, [Said::Blank, Said::Blank, Said::Able]), Some(0), "who was bootstrapped alone need not wait");
        assert_eq!(all(3, [Said::Blank, Said::Able, Said::Able]), Some(1));
        assert_eq!(all(2, [Said::Nothing, Said::Able, Said::Able]), Some(0));
    }
}
