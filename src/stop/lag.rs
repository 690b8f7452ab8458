//! Who lacks what the leader's log has?
//!
//! Takes the servers as they are, asks how far each log reaches, gives those that said less than the leader. A leader whose dial to a
//! server that returns got lost copies nothing there for Consul's 10 s, while its heartbeats arrive: that server follows it, autopilot
//! calls it healthy, and it is of no use for a write (seen, 1.22.6). kube-proxy by iptables has such a moment at each return: it takes
//! away that a Service is refused before it has it lead anywhere.
//!
//! Each server is asked itself (`agent:read`). Who may not be asked, since our token goes to nobody over an unverified connection, is
//! looked for in the leader's autopilot (`operator:read`), which asks all at one moment, every 2 s. Who does not answer is not behind:
//! whether it is well is another question.

use super::guard;
use super::voters::{ASKED, Asker, View};
use crate::api::consul::{Agent, ApiError, Reach};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long a server may need for what the leader's log has, from its first answer on: a follower has it after some milliseconds.
const COPIED: Duration = Duration::from_millis(300);

/// How often it is asked meanwhile.
const COPYING: Duration = Duration::from_millis(50);

/// By how many entries two that autopilot asks at one moment may differ under writes, though both are well.
const APART: u64 = 8;

/// What was seen of it during one stop.
#[derive(Debug, Default)]
pub struct Lag {
    /// Since when somebody has been waited for.
    since: Option<Instant>,
    /// How far the leader's log reached when autopilot told first that somebody lacks some of it.
    goal: Option<Reach>,
}

/// What a server itself says.
enum Said {
    /// It has all, or may be asked for nothing that tells.
    Nothing,
    /// It lacks some of it.
    Behind,
    /// We may not ask.
    Denied,
}

// === impl Lag ===

impl Lag {
    /// Whom to wait for, since without us no majority has what the leader's log has; `None`: nobody, or not any longer.
    pub async fn waits_for(&mut self, asker: &Asker, view: &View) -> Option<String> {
        if !view.we_vote() || self.since.is_some_and(|since| since.elapsed() >= guard::BEHIND) {
            return None;
        }
        let line = guard::lacks(view, &self.behind(asker, view).await);
        self.since = line.is_some().then(|| self.since.unwrap_or_else(Instant::now));
        line
    }

    /// The other voters that are well but lack what the leader's log has, as far as that is told.
    pub async fn behind(&mut self, asker: &Asker, view: &View) -> BTreeSet<SocketAddr> {
        let others = view.others.iter().filter(|voter| voter.is_healthy()).map(|voter| voter.address);
        let followers: BTreeSet<SocketAddr> = others.filter(|address| view.leader != Some(*address)).collect();
        let reach = match leaders(asker, view).await {
            Ok(Some(reach)) => reach,
            Err(error) if error.is_denied() => return self.by_autopilot(asker, view, followers).await,
            Ok(None) | Err(_) => return BTreeSet::new(),
        };
        let mut asking = JoinSet::new();
        for address in followers {
            let agent = asker.peers.at(address.ip());
            asking.spawn(async move {
                let said = match agent {
                    Ok(agent) => asked(&agent, reach).await,
                    Err(_) => Said::Nothing,
                };
                (address, said)
            });
        }
        let (mut behind, mut denied) = (BTreeSet::new(), BTreeSet::new());
        while let Some(done) = asking.join_next().await {
            match done {
                Ok((address, Said::Behind)) => _ = behind.insert(address),
                Ok((address, Said::Denied)) => _ = denied.insert(address),
                Ok((_, Said::Nothing)) | Err(_) => {}
            }
        }
        if !denied.is_empty() {
            behind.extend(self.by_autopilot(asker, view, denied).await);
        }
        behind
    }

    /// The same of these by what the leader's autopilot heard of them last.
    async fn by_autopilot(&mut self, asker: &Asker, view: &View, of: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
        let piloted = asker.agent.piloted().await.unwrap_or_default();
        let told: BTreeMap<SocketAddr, Reach> =
            piloted.iter().filter_map(|one| Some((one.address.parse().ok()?, one.reach()))).collect();
        let Some(leaders) = view.leader.and_then(|leader| told.get(&leader)).copied() else { return BTreeSet::new() };
        let (goal, behind) = lacking(self.goal, leaders, &told, of);
        self.goal = goal;
        behind
    }
}

/// Who of these lacks some of what the leader's log had when somebody was first seen to, and how far that is; from then on it is the goal,
/// since the leader's own end moves on with each write.
fn lacking(
    goal: Option<Reach>,
    leaders: Reach,
    told: &BTreeMap<SocketAddr, Reach>,
    mut of: BTreeSet<SocketAddr>,
) -> (Option<Reach>, BTreeSet<SocketAddr>) {
    // Nothing is known of one that autopilot does not list.
    let least = goal.unwrap_or(Reach { index: leaders.index.saturating_sub(APART), ..leaders });
    of.retain(|address| told.get(address).is_some_and(|theirs| *theirs < least));
    ((!of.is_empty()).then_some(goal.unwrap_or(leaders)), of)
}

/// How far the leader's log reaches; `None`: there is no leader, or it does not say.
async fn leaders(asker: &Asker, view: &View) -> Result<Option<Reach>, ApiError> {
    let Some(leader) = view.leader else { return Ok(None) };
    let agent = if view.we_lead() { asker.agent.clone() } else { asker.peers.at(leader.ip())? };
    Ok(agent.describe_within(ASKED).await?.reach())
}

/// Asks a server until it has what the leader had, for as long as that may take.
async fn asked(agent: &Agent, leaders: Reach) -> Said {
    let mut first: Option<Instant> = None;
    loop {
        match agent.describe_within(ASKED).await.map(|theirs| theirs.reach()) {
            Ok(Some(theirs)) if theirs < leaders => {
                if first.get_or_insert_with(Instant::now).elapsed() >= COPIED {
                    return Said::Behind;
                }
                sleep(COPYING).await;
            }
            Err(error) if error.is_denied() => return Said::Denied,
            Ok(_) | Err(_) => return Said::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::voters::tests::at;
    use super::*;

    fn reach(index: u64) -> Reach {
        Reach { term: 3, index }
    }

    /// What the second look gives after the first, each with the leader's end and that of ordinal 2.
    fn looks(first: (u64, Reach), second: (u64, Reach)) -> [bool; 2] {
        let mut goal = None;
        [first, second].map(|(leaders, theirs)| {
            let told = BTreeMap::from([(at(0), reach(leaders)), (at(2), theirs)]);
            let (now, behind) = lacking(goal, reach(leaders), &told, BTreeSet::from([at(2)]));
            goal = now;
            !behind.is_empty()
        })
    }

    #[test]
    fn by_autopilot_who_is_some_entries_apart_under_writes_is_not_behind() {
        assert_eq!(looks((100, reach(92)), (200, reach(192))), [false, false]);
    }

    #[test]
    fn by_autopilot_who_lacks_more_is_behind_until_it_has_what_the_leader_had_then() {
        assert_eq!(looks((100, reach(91)), (200, reach(99))), [true, true]);
        assert_eq!(
            looks((100, reach(91)), (200, reach(100))),
            [true, false],
            "the leader has gone on, as it always does"
        );
    }

    #[test]
    fn by_autopilot_a_longer_log_of_an_earlier_term_is_behind_and_who_is_not_listed_is_not() {
        assert_eq!(looks((100, Reach { term: 2, index: 500 }), (100, reach(100))), [true, false]);
        let told = BTreeMap::from([(at(0), reach(100))]);
        assert_eq!(lacking(None, reach(100), &told, BTreeSet::from([at(2)])), (None, BTreeSet::new()));
    }
}
