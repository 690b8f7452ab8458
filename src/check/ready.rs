//! Is this server a healthy voter? Both views are needed: the leader's alone still shows our previous life for up to 2 s, and
//! our own cannot know that we were removed.
//!
//! With `agent:read` the own view is `/v1/agent/self`, with `operator:read` the leader's is its raft configuration, and either
//! of them tells a voter. Without both the own view is the headers of a stale read, the leader's view is the list of raft
//! peers that its own agent gives, and we pass for a voter once that list has had us for 25 s of this life of the agent, or
//! had us already before it began ([`crate::record::listed`]). A file on the volume remembers that between two probes, under
//! the agent's listening socket and the clock since boot, because nothing that a stranger may ask says when an agent started.
//! Where the file cannot be kept the answer is no, with the reason: a server cannot keep its data there either.
//!
//! A leader whose HTTP API cannot be reached makes nobody unready: who heard from it within the last second is in its
//! configuration, since a leader talks to nobody else. The own list of peers then stands for the leader's, and the line says so.

use super::own::{Own, in_touch};
use super::{Yes, joined, leader, life};
use crate::api::consul::{Agent, AgentSelf, ApiError, Peers, RaftServer};
use crate::exit::chain;
use crate::record::Volume;
use crate::record::listed::{LONG_ENOUGH, Listed, Moment, Sight, Standing, judge};
use crate::settings::{Local, Role};
use crate::time;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long the leader's own agent may take. It has the answer in memory, and a network that swallows packets must not use up
/// the time that kubelet gives a probe.
const LEADERS_AGENT: Duration = Duration::from_millis(500);

/// Answers; the reason when it is no.
pub(super) async fn ready(local: &Local, agent: &Agent) -> Result<Yes, String> {
    let answer = async {
        let answers = Answers::of(agent).await.inspect_err(|_| forget(local, false))?;
        if !answers.token_is_unknown() {
            return judged(local, agent, answers).await;
        }
        // Consul refuses an unknown token also what it answers to nobody in particular.
        let nobody = agent.without_token();
        let unknown = |line: String| format!("{line}; the token is unknown to Consul and counts as none");
        let answers = Answers::of(&nobody).await.map_err(unknown)?;
        judged(local, &nobody, answers).await.map(|yes| Yes { line: unknown(yes.line), ..yes }).map_err(unknown)
    };
    answer.await.map_err(|why| format!("not ready: {why}"))
}

/// What the own agent answers.
struct Answers {
    leader: SocketAddr,
    described: Result<AgentSelf, ApiError>,
    configuration: Result<Vec<RaftServer>, ApiError>,
}

// === impl Answers ===

impl Answers {
    /// The leader first: without one Consul keeps for seconds what is meant for it, and a probe that waits asks 20 times a second.
    async fn of(agent: &Agent) -> Result<Self, String> {
        let leader = leader(agent).await?;
        let (described, configuration) = tokio::join!(agent.describe(), agent.raft_configuration());
        Ok(Self { leader, described, configuration })
    }

    fn token_is_unknown(&self) -> bool {
        self.described.as_ref().is_err_and(ApiError::is_unknown_token)
    }
}

async fn judged(local: &Local, agent: &Agent, answers: Answers) -> Result<Yes, String> {
    let Answers { leader, described, configuration } = answers;
    let described = match described {
        Ok(described) => Some(described),
        Err(error) if error.is_denied() => None,
        Err(error) => return Err(error.to_string()),
    };
    let server =
        described.as_ref().map(|described| described.config.server).or(local.role.map(|role| role == Role::Server));
    if server == Some(false) {
        return joined(agent).await.map(|line| Yes { line: format!("ready, {line}"), votes: false });
    }
    let us = Us::new(local, described.as_ref())?;
    let case = Case { local, agent, leader, us };
    let (own, theirs) = tokio::join!(case.own_view(described.as_ref()), case.leaders_view(configuration));
    let own = own.inspect_err(|_| forget(local, false))?;
    let theirs = theirs?;
    let listed = match theirs.listed {
        Some(address) if !own.votes && !theirs.votes => case.long_enough(address)?,
        // Either view knows that we vote.
        _ => String::new(),
    };
    let line = format!("ready: leader {leader}; own view: {}; {}{listed}", own.said, theirs.said);
    Ok(Yes { line, votes: true })
}

/// Who we are.
struct Us<'a> {
    id: Option<&'a str>,
    addresses: Vec<IpAddr>,
}

// === impl Us ===

impl<'a> Us<'a> {
    fn new(local: &Local, described: Option<&'a AgentSelf>) -> Result<Self, String> {
        let member = described.and_then(|described| described.member.as_ref());
        let advertised = member.and_then(|member| member.addr.parse::<IpAddr>().ok());
        let addresses = advertised.map_or_else(|| local.own_addresses.clone(), |advertised| vec![advertised]);
        if addresses.is_empty() {
            return Err("this server's own address is not known: set POD_IP by the downward API".to_owned());
        }
        Ok(Self { id: described.map(|described| described.config.node_id.as_str()), addresses })
    }

    fn is_at(&self, address: &SocketAddr) -> bool {
        self.addresses.contains(&address.ip())
    }

    fn is(&self, server: &RaftServer) -> bool {
        match self.id {
            Some(id) => server.id.eq_ignore_ascii_case(id),
            None => server.address.parse().is_ok_and(|address| self.is_at(&address)),
        }
    }
}

/// A view in which we are well.
struct View {
    said: String,
    /// It shows that we vote.
    votes: bool,
    /// Our entry in a list that does not tell who votes.
    listed: Option<SocketAddr>,
}

/// One server, asked about now.
struct Case<'a> {
    local: &'a Local,
    agent: &'a Agent,
    leader: SocketAddr,
    us: Us<'a>,
}

// === impl Case ===

impl Case<'_> {
    /// In touch with a leader in this life of the agent.
    async fn own_view(&self, described: Option<&AgentSelf>) -> Result<View, String> {
        let Some(described) = described else {
            let contact = self.agent.contact().await.map_err(|error| chain(&error))?;
            if !contact.leader_known {
                return Err("no leader is known (a stale read's headers say)".to_owned());
            }
            in_touch(contact.ago)?;
            if self.us.is_at(&self.leader) {
                // Nobody but a voter leads, and the agent learned in this life who does.
                return Ok(View { said: "leads".to_owned(), votes: true, listed: None });
            }
            let ago = time::text(contact.ago);
            let said = format!("heard of the leader {ago} ago (a stale read; no agent:read)");
            return Ok(View { said, votes: false, listed: None });
        };
        let own = Own::read(described)?;
        let said = match own {
            Own { leads: true, .. } => "leads",
            Own { voter: Some(_), .. } => "follows, is caught up and votes",
            Own { voter: None, .. } => "follows and is caught up",
        };
        Ok(View { said: said.to_owned(), votes: own.leads || own.voter == Some(true), listed: None })
    }

    /// In the leader's configuration at our address.
    async fn leaders_view(&self, configuration: Result<Vec<RaftServer>, ApiError>) -> Result<View, String> {
        if let Ok(servers) = configuration {
            return self.in_configuration(&servers);
        }
        let own_list = async || self.agent.peers().await.map_err(|error| chain(&error));
        let leaders = "the leader's raft peers".to_owned();
        let (peers, whose) = if self.us.is_at(&self.leader) {
            (own_list().await?, leaders)
        } else {
            match leaders_peers(self.local, self.leader.ip()).await {
                Ok(peers) => (peers, leaders),
                // The leader talks to us, or the own view says no.
                Err(why) => (own_list().await?, format!("the own agent's raft peers ({why})")),
            }
        };
        match peers.into_iter().find(|peer| self.us.is_at(peer)) {
            Some(address) => Ok(View { said: format!("among {whose}"), votes: false, listed: Some(address) }),
            None => {
                forget(self.local, true);
                Err(format!("not among {whose}"))
            }
        }
    }

    fn in_configuration(&self, servers: &[RaftServer]) -> Result<View, String> {
        match servers.iter().find(|server| self.us.is(server)) {
            None => Err("the leader's raft configuration lacks us".to_owned()),
            Some(us) if !us.voter => Err("the leader's raft configuration has us as a non-voter".to_owned()),
            Some(us) if !us.address.parse().is_ok_and(|address| self.us.is_at(&address)) => {
                Err(format!("the leader's raft configuration has us at {}, our earlier address", us.address))
            }
            Some(_) => Ok(View { said: "leader's view: a voter".to_owned(), votes: true, listed: None }),
        }
    }

    /// Whether we were listed long enough, in words.
    fn long_enough(&self, address: SocketAddr) -> Result<String, String> {
        let unknown = "whether it votes cannot be told without a token that has agent:read or operator:read";
        let own: Vec<IpAddr> = self.us.addresses.iter().chain(&self.local.own_addresses).copied().collect();
        let Some(agent) = life::of_listener(address.port(), &own) else {
            return Err(format!(
                "{unknown}, nor when the agent started: /proc/net/tcp shows nobody at port {}",
                address.port()
            ));
        };
        let (listed, now) = self
            .look(Sight { agent: &agent, address, leader: self.leader })
            .map_err(|why| format!("{unknown}, nor since when it is listed: {why}"))?;
        match listed.standing {
            Standing::Kept => Ok(", as before this agent's start (no operator:read, so time tells a voter)".to_owned()),
            Standing::Lasting => {
                Ok(format!(" for more than {} (no operator:read, so time tells a voter)", time::text(LONG_ENOUGH)))
            }
            Standing::New => Err(format!(
                "{unknown}, and it is listed among the leader's raft peers for {} of the {} that a promotion may take",
                time::text(listed.lasts(&now)),
                time::text(LONG_ENOUGH)
            )),
        }
    }

    fn look(&self, sight: Sight<'_>) -> Result<(Listed, Moment), String> {
        let volume = Volume::open(&self.local.data_dir, false).map_err(|error| chain(&error))?;
        let now = Moment::now().map_err(|error| chain(&error))?;
        let old = volume.listed();
        let listed = judge(old.as_ref(), &now, sight, LONG_ENOUGH);
        if old.as_ref() != Some(&listed) {
            volume.keep_listed(&listed).map_err(|error| chain(&error))?;
        }
        Ok((listed, now))
    }
}

/// What the leader's own agent says, over HTTP.
async fn leaders_peers(local: &Local, leader: IpAddr) -> Result<Vec<SocketAddr>, String> {
    let agent = Peers::new(local).and_then(|peers| peers.at(leader)).map_err(|error| chain(&error))?;
    match tokio::time::timeout(LEADERS_AGENT, agent.peers()).await {
        Ok(answer) => answer.map_err(|error| chain(&error)),
        Err(_) => Err(format!("the leader's agent did not answer within {}", time::text(LEADERS_AGENT))),
    }
}

/// What was counted is void: the leader lacks us, or it does not talk to us while it still has to see us well.
fn forget(local: &Local, removed: bool) {
    let Ok(volume) = Volume::open(&local.data_dir, false) else { return };
    if volume.listed().is_some_and(|listed| removed || listed.standing == Standing::New) {
        // What cannot be removed could not be written either: the next look says so.
        let _ = volume.forget_listed();
    }
}
