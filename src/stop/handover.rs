//! To whom does a leader hand its leadership before it stops, and how?
//!
//! Takes the servers as they are, gives one by name: the lowest healthy ordinal of our own revision, and when all others are of
//! a new one already the most caught-up of them. So leadership moves at most twice in a rolling restart, and in an upgrade no new leader writes
//! what old followers cannot read. Only the leader itself ever asks for it, because any server would pass the order on.
//!
//! Whoever lacks what our log has ([`Lag::behind`]) cannot become leader, and nothing is written in the second in which that is tried
//! (seen, 1.22.6). So it is asked last of its revision, and when one is asked in vain the next one is.

use super::lag::Lag;
use super::voters::{Asker, View, Voter};
use crate::api::consul::ApiError;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long the others may need to follow the new leader.
const FOLLOWED: Duration = Duration::from_secs(3);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Leadership that went over, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandedOver {
    /// To this server.
    To(String),
    /// It stays with us, for this reason.
    Not(String),
}

/// Who is to lead. `revision` is that of our own Pod, which is the old one in a rollout: the StatefulSet's status tells the new
/// one only after the first Pod was deleted. `indices` are how far each one's log reaches.
pub fn successor<'a>(view: &'a View, revision: Option<&str>, indices: &BTreeMap<SocketAddr, u64>) -> Option<&'a Voter> {
    // Where all are being deleted it goes after us.
    let all_go = able(view).all(|voter| voter.terminating);
    let may_lead = || able(view).filter(|voter| all_go || !voter.terminating);
    let lowest = |voter: &&Voter| (voter.ordinal.is_none(), voter.ordinal, voter.address);
    may_lead().filter(|voter| !is_new(voter, revision)).min_by_key(lowest).or_else(|| {
        // Of two that are alike the lower one: it is the last to be restarted.
        may_lead().min_by_key(|voter| (std::cmp::Reverse(indices.get(&voter.address).copied()), lowest(voter)))
    })
}

/// Whether its Pod is of another revision than ours.
fn is_new(voter: &Voter, revision: Option<&str>) -> bool {
    revision.is_some() && voter.revision.is_some() && voter.revision.as_deref() != revision
}

/// Whether somebody of our revision may lead who is not about to go. Then a leader that waits for its own turn need not lead meanwhile:
/// what it dials while others stop and return may hang for Consul's 10 s, and so does the end of an agent that did (seen, 1.22.6).
pub fn somebody_stays(view: &View, revision: Option<&str>) -> bool {
    let next = successor(view, revision, &BTreeMap::new());
    next.is_some_and(|next| !next.terminating && !is_new(next, revision))
}

/// Whether all that are away are about to listen, and some are. raft tries ever more seldom whom it does not reach, after 1, 3 and 5 s (1.7.3,
/// `replicateTo`), also once it could; a leader that is new then begins anew, and one that was new before would not.
pub fn all_arrive(view: &View) -> bool {
    all_away_are(view, |voter| voter.placed)
}

/// Whether one that is back answers and follows nobody, while the others are well. A leader's dial that is lost lasts for Consul's 10 s, and kube-proxy
/// by iptables loses those of the moment in which a Service begins to lead to its Pod (seen, 1.34).
pub fn one_is_unled(view: &View) -> bool {
    all_away_are(view, |voter| voter.placed && voter.answers)
}

/// Whether some are away, and all of them are so.
fn all_away_are(view: &View, so: impl Fn(&Voter) -> bool) -> bool {
    let mut away = view.others.iter().filter(|voter| !voter.is_healthy()).peekable();
    away.peek().is_some() && away.all(so)
}

/// Those that could lead, also when they lack what our log has. Who has withdrawn is gone in a moment.
pub fn able(view: &View) -> impl Iterator<Item = &Voter> {
    view.others.iter().filter(|voter| voter.is_healthy() && !voter.withdrawn)
}

/// All that may lead, in the order in which they are asked.
fn successors<'a>(view: &'a View, revision: Option<&str>, indices: &BTreeMap<SocketAddr, u64>) -> Vec<&'a Voter> {
    let (mut left, mut order) = (view.clone(), Vec::new());
    while let Some(next) = successor(&left, revision, indices).map(|next| next.address) {
        left.others.retain(|one| one.address != next);
        order.extend(view.others.iter().find(|one| one.address == next));
    }
    order
}

/// Hands leadership over, if it is ours.
pub async fn hand_over(asker: &Asker, view: &View, revision: Option<&str>) -> HandedOver {
    let no = |why: String| HandedOver::Not(why);
    let servers = match asker.agent.raft_configuration().await {
        Ok(servers) => servers,
        Err(error) => return no(why_not(&error)),
    };
    let ids: BTreeMap<SocketAddr, String> = servers
        .into_iter()
        .filter(|server| server.voter)
        .filter_map(|server| Some((server.address.parse().ok()?, server.id)))
        .collect();
    let last: BTreeMap<String, u64> =
        asker.agent.piloted().await.unwrap_or_default().into_iter().map(|one| (one.id, one.last_index)).collect();
    let indices = ids.iter().filter_map(|(address, id)| Some((*address, *last.get(id)?))).collect();
    let voting = View {
        others: view.others.iter().filter(|one| ids.contains_key(&one.address)).cloned().collect(),
        ..view.clone()
    };
    let mut order = successors(&voting, revision, &indices);
    if order.len() > 1 {
        let behind = Lag::default().behind(asker, &voting).await;
        order.sort_by_key(|next| (is_new(next, revision), behind.contains(&next.address)));
    }
    let followers = followers(view);
    let mut why = "no other voter is well".to_owned();
    for next in order {
        let Some(id) = ids.get(&next.address) else { continue };
        // Not an earlier answer: somebody else may lead by now, and would be moved.
        match asker.agent.leader().await {
            Ok(leader) if leader == view.us => {}
            Ok(_) => return no("another server leads by now".to_owned()),
            Err(error) => return no(error.to_string()),
        }
        match asker.agent.transfer_leader(id).await {
            Ok(()) => return followed(asker, next, followers).await,
            Err(error) if error.is_denied() => return no(why_not(&error)),
            Err(error) => {
                let leader = leads_after(asker).await;
                if leader == Some(next.address) {
                    return followed(asker, next, followers).await;
                }
                why = format!("{} could not take it: {error}", next.name());
                // Without an answer the transfer may still be under way.
                if leader != view.us || !matches!(error, ApiError::Status { .. }) {
                    return no(why);
                }
            }
        }
    }
    no(why)
}

/// Who leads after a transfer that failed, or that took place though nobody said so.
async fn leads_after(asker: &Asker) -> Option<SocketAddr> {
    let begun = Instant::now();
    while begun.elapsed() < FOLLOWED {
        if let Ok(Some(leader)) = asker.agent.leader().await {
            return Some(leader);
        }
        sleep(LOOK).await;
    }
    None
}

/// How many others are to follow a new leader until it counts as such: as many as it needs once we have stopped, and of those that are away
/// nobody, whom a leader that hands over while it waits does not need yet.
fn followers(view: &View) -> usize {
    view.well().min(view.count().div_ceil(2))
}

/// Waits until we and so many of the others follow the new leader.
async fn followed(asker: &Asker, next: &Voter, followers: usize) -> HandedOver {
    let begun = Instant::now();
    let mut leader = None;
    // Their Pods make no difference any more.
    let mut asker = asker.clone();
    asker.kube = None;
    while begun.elapsed() < FOLLOWED {
        if let Ok(view) = asker.view().await {
            leader = view.leader;
            if leader == Some(next.address) && view.well() >= followers {
                return HandedOver::To(next.name());
            }
        }
        sleep(LOOK).await;
    }
    match leader {
        Some(leader) if leader == next.address => HandedOver::To(next.name()),
        Some(leader) => HandedOver::Not(format!("{} was asked to lead, but {leader} does", next.name())),
        None => HandedOver::Not(format!("{} was asked to lead, and no leader is known", next.name())),
    }
}

fn why_not(error: &ApiError) -> String {
    if error.is_unknown_token() {
        return "Consul does not know our token: it has expired, or was deleted".to_owned();
    }
    if error.is_denied() {
        return "the token may not: the policy operator = \"write\" is needed".to_owned();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::voters::tests::{at, view, voter};
    use super::*;

    #[test]
    fn a_leader_that_waits_goes_when_those_that_are_away_have_a_place() {
        let gone = |n: u32| Voter { placed: false, ..voter(n).away() };
        assert!(all_arrive(&view(1, vec![voter(0), voter(2).away()])));
        assert!(!all_arrive(&view(1, vec![voter(0), gone(2)])));
        assert!(!all_arrive(&view(1, vec![gone(0), voter(2).away()])));
        assert!(!all_arrive(&view(1, vec![voter(0), voter(2)])), "nobody is away");
    }

    #[test]
    fn one_that_is_back_and_follows_nobody_is_unled() {
        assert!(one_is_unled(&view(1, vec![voter(0), voter(2).astray()])));
        assert!(!one_is_unled(&view(1, vec![voter(0), voter(2)])));
        assert!(!one_is_unled(&view(1, vec![voter(0), voter(2).away()])), "it is not back");
        assert!(!one_is_unled(&view(1, vec![voter(0).away(), voter(2).astray()])));
        assert_eq!(able(&view(1, vec![voter(0).going(), voter(2).astray()])).count(), 1);
        assert_eq!(able(&view(1, vec![voter(0).withdrawn(), voter(2).astray()])).count(), 0);
    }

    #[test]
    fn a_new_leader_is_followed_by_those_that_it_needs_and_not_by_one_that_is_away() {
        assert_eq!(followers(&view(1, vec![voter(0), voter(2)])), 2);
        assert_eq!(followers(&view(1, vec![voter(0), voter(2).away()])), 1);
        let five = |others: [Voter; 4]| followers(&view(1, others.to_vec()));
        assert_eq!(five([voter(0), voter(2), voter(3), voter(4)]), 3);
        assert_eq!(five([voter(0), voter(2), voter(3).away(), voter(4).away()]), 2);
    }

    fn of(n: u32, revision: &str) -> Voter {
        Voter { revision: Some(revision.to_owned()), ..voter(n) }
    }

    fn next(others: Vec<Voter>, indices: &[(u32, u64)]) -> Option<u32> {
        let indices = indices.iter().map(|(n, index)| (at(*n), *index)).collect();
        successor(&view(9, others), Some("old"), &indices)?.ordinal
    }

    #[test]
    fn in_a_rollout_the_lowest_of_the_old_revision_leads() {
        assert_eq!(next(vec![of(0, "old"), of(1, "old"), of(2, "new")], &[(1, 9), (2, 9), (0, 5)]), Some(0));
        assert_eq!(next(vec![of(0, "old").away(), of(1, "old"), of(2, "new")], &[]), Some(1));
    }

    #[test]
    fn at_the_beginning_of_a_rollout_the_lowest_leads() {
        assert_eq!(next(vec![of(0, "old"), of(1, "old")], &[(1, 9), (0, 5)]), Some(0));
    }

    #[test]
    fn at_its_end_the_most_caught_up_one_leads() {
        assert_eq!(next(vec![of(1, "new"), of(2, "new")], &[(1, 5), (2, 9)]), Some(2));
        assert_eq!(next(vec![of(1, "new"), of(2, "new")], &[(1, 9), (2, 9)]), Some(1));
        assert_eq!(next(vec![of(1, "new"), of(2, "new")], &[]), Some(1));
    }

    #[test]
    fn nobody_leads_who_is_away_or_about_to_go() {
        assert_eq!(next(vec![of(0, "old").going(), of(1, "old"), of(2, "new").away()], &[]), Some(1));
        assert_eq!(next(vec![of(0, "old").away(), of(1, "new").away()], &[]), None);
        assert_eq!(next(vec![of(0, "old").withdrawn(), of(1, "old").going()], &[]), Some(1));
    }

    #[test]
    fn where_all_are_about_to_go_the_lowest_ordinal_leads_since_it_goes_last() {
        assert_eq!(next(vec![of(1, "old").going(), of(0, "old").going()], &[]), Some(0));
        assert_eq!(next(vec![of(0, "old").going(), of(1, "new").away()], &[]), Some(0));
    }

    #[test]
    fn leadership_goes_early_to_one_that_stays_and_is_of_the_same_revision() {
        let stays = |others: Vec<Voter>| somebody_stays(&view(9, others), Some("old"));
        assert!(stays(vec![of(0, "old"), of(1, "old").going()]));
        assert!(!stays(vec![of(0, "old").going(), of(1, "old").away()]));
        assert!(!stays(vec![of(0, "old").going(), of(1, "new")]), "old followers cannot read what it writes");
    }

    #[test]
    fn all_that_may_lead_have_an_order() {
        let order = |others: Vec<Voter>| -> Vec<_> {
            successors(&view(9, others), Some("old"), &BTreeMap::new()).iter().filter_map(|one| one.ordinal).collect()
        };
        assert_eq!(order(vec![of(0, "new"), of(1, "old"), of(2, "old"), of(3, "old").away()]), [1, 2, 0]);
        assert_eq!(order(vec![of(0, "old").going(), of(2, "old")]), [2, 0], "who goes after us is better than nobody");
        assert_eq!(order(vec![of(0, "old").withdrawn()]), [0; 0]);
    }

    #[test]
    fn without_revisions_the_lowest_ordinal_leads() {
        assert_eq!(successor(&view(2, vec![voter(1), voter(0)]), None, &BTreeMap::new()).unwrap().ordinal, Some(0));
    }
}
