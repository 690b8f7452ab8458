//! Which of convene's calls would fail with the token that it was given? Beside an agent, whose token is convene's own.
//!
//! Takes the own agent, asks it by `/v1/internal/acl/authorize` what the token may; gives [`Seen`] and judges it. Makes none of the calls,
//! and never shows a token. Without ACLs everybody may everything. Without a token nothing is wrong, and what lacks is named.

use super::agents::Lack;
use super::finding::{Finding, Report, Unseen};
use crate::api::consul::Agent;
use crate::settings::Local;
use std::time::Duration;

const TOKEN: &str = "token-rights";

/// Each check's name and what it finds, as README's table has them.
pub const CHECKS: &[(&str, &str)] =
    &[(TOKEN, "convene's token is unknown to Consul, or lacks a right: which calls would fail")];

/// How long the agent may take: it resolves the token at the leader, and keeps it.
const ANSWER: Duration = Duration::from_millis(1200);

/// What a server's token must be allowed, as README's table and `deploy/policies/server.hcl` have it.
struct Need {
    resource: &'static str,
    access: &'static str,
    /// It is about our own node.
    of_node: bool,
    calls: &'static str,
    without: &'static str,
}

const NEEDS: [Need; 5] = [
    Need {
        resource: "agent",
        access: "read",
        of_node: true,
        calls: "GET /v1/agent/self",
        without: "`check ready` tells a voter by time: 25 s after a join",
    },
    Need {
        resource: "agent",
        access: "write",
        of_node: true,
        calls: "PUT /v1/agent/join, PUT /v1/agent/leave",
        without: "a server that is found late is not joined, and a scale-down does not leave (69)",
    },
    Need {
        resource: "node",
        access: "read",
        of_node: true,
        calls: "GET /v1/agent/members",
        without: "a leader alone counts as joined, and members are not seen",
    },
    Need {
        resource: "operator",
        access: "read",
        of_node: false,
        calls: "GET /v1/operator/raft/configuration, /v1/operator/autopilot/state",
        without: "non-voters count as voters",
    },
    Need {
        resource: "operator",
        access: "write",
        of_node: false,
        calls: "POST /v1/operator/raft/transfer-leader, PUT /v1/agent/force-leave, DELETE /v1/operator/raft/peer",
        without: "a leader that stops costs an election, and a server that lost its disk waits for a person",
    },
];

/// What was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The server.
    pub name: String,
    /// A token was given.
    pub given: bool,
    /// What it may of all that a server needs, and last whether it sees services; `None`: there are no ACLs.
    pub may: Result<Option<Vec<bool>>, Lack>,
}

// === impl Seen ===

impl Seen {
    /// Whether an empty list of services means that there are none.
    pub fn sees_services(&self) -> bool {
        match &self.may {
            Ok(None) => true,
            Ok(Some(may)) => may.get(NEEDS.len()) == Some(&true),
            Err(_) => false,
        }
    }
}

/// Asks what our token may.
pub async fn look(local: &Local) -> Seen {
    let name = local.node_name.clone();
    let own = |need: &Need| (need.resource, if need.of_node { local.node_name.as_str() } else { "" }, need.access);
    // Nothing of convene's fails without the last one.
    let rights: Vec<(&str, &str, &str)> = NEEDS.iter().map(own).chain([("service", "any", "read")]).collect();
    let may = match Agent::own(&local.http) {
        Ok(agent) => agent.may(&rights, ANSWER).await,
        Err(error) => Err(error),
    };
    let may = match may {
        Ok(may) => Ok(Some(may)),
        // 401 "ACL support disabled"
        Err(error) if error.has_no_acls() => Ok(None),
        Err(error) => Err(Lack::of(&error)),
    };
    Seen { given: local.http.token.is_some(), name, may }
}

/// Judges what the token may.
pub fn check(seen: &Seen, report: &mut Report) {
    let subject = format!("server {}", seen.name);
    let finding =
        |what: String, why: String, mend: String| Finding { check: TOKEN, subject: subject.clone(), what, why, mend };
    let may = match &seen.may {
        Ok(Some(may)) => may,
        Ok(None) => {
            report.looked.push(TOKEN);
            return;
        }
        Err(Lack::UnknownToken) => {
            report.looked.push(TOKEN);
            let what = "Consul does not know the token of CONSUL_HTTP_TOKEN_FILE (or CONSUL_HTTP_TOKEN)".to_owned();
            let why = "it counts as none: convene neither leaves, nor hands leadership over, nor removes a lost disk's predecessor".to_owned();
            let mend = "consul acl token create -policy-name=convene-server -secret=\"$(cat TOKEN-FILE)\"    # README: encryption, TLS and ACLs";
            report.findings.push(finding(what, why, mend.to_owned()));
            return;
        }
        Err(Lack::NoWay(why) | Lack::Failed(why)) => {
            report.unseen.push(Unseen { what: "the token's rights", why: why.clone() });
            return;
        }
        Err(Lack::Denied) => {
            let why = "the agent refuses /v1/internal/acl/authorize (http_config.block_endpoints)".to_owned();
            report.unseen.push(Unseen { what: "the token's rights", why });
            return;
        }
    };
    let lacking: Vec<&Need> = NEEDS.iter().zip(may).filter(|(_, may)| !**may).map(|(need, _)| need).collect();
    if !seen.given && !lacking.is_empty() {
        let rules = lacking.iter().map(|need| rule(need, &seen.name)).collect::<Vec<_>>().join("; ");
        let why = format!("there are ACLs, and no token is given (CONSUL_HTTP_TOKEN_FILE): {rules}");
        report.unseen.push(Unseen { what: "what needs a token", why });
        return;
    }
    report.looked.push(TOKEN);
    for (at, need) in lacking.iter().enumerate() {
        // Who lacks both lacks the first one for the same cause.
        if need.access == "write"
            && at > 0
            && lacking.get(at - 1).is_some_and(|before| before.resource == need.resource)
        {
            continue;
        }
        let both: Vec<&&Need> = lacking.iter().filter(|other| other.resource == need.resource).collect();
        let list =
            |of: fn(&Need) -> &str, between: &str| both.iter().map(|need| of(need)).collect::<Vec<_>>().join(between);
        let rights =
            both.iter().map(|need| format!("{}:{}", need.resource, need.access)).collect::<Vec<_>>().join(" and ");
        let what = format!("the token lacks {rights}: {} would fail", list(|need| need.calls, ", "));
        let strongest = both.last().copied().unwrap_or(need);
        let mend = format!(
            "{}    # in the token's policy; deploy/policies/server.hcl has it\nconsul acl policy update -name=convene-server -rules=@deploy/policies/server.hcl",
            rule(strongest, &seen.name)
        );
        report.findings.push(finding(what, list(|need| need.without, "; "), mend));
    }
}

/// The rule of a policy.
fn rule(need: &Need, node: &str) -> String {
    match need.of_node {
        true => format!("{} \"{node}\" {{ policy = \"{}\" }}", need.resource, need.access),
        false => format!("{} = \"{}\"", need.resource, need.access),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_seen_without_acls_or_with_their_right() {
        let sees = |may| Seen { name: String::new(), given: true, may }.sees_services();
        assert!(sees(Ok(None)) && sees(Ok(Some(vec![true; NEEDS.len() + 1]))));
        assert!(!sees(Ok(Some([vec![true; NEEDS.len()], vec![false]].concat()))) && !sees(Err(Lack::Denied)));
    }

    fn judged(given: bool, may: Result<Option<Vec<bool>>, Lack>) -> Report {
        let mut report = Report::default();
        check(&Seen { name: "consul-server-1".to_owned(), given, may }, &mut report);
        report
    }

    #[test]
    fn a_token_that_may_all_gives_no_finding_nor_does_a_cluster_without_acls() {
        for may in [Some(vec![true; NEEDS.len()]), None] {
            let report = judged(true, Ok(may));
            assert!(report.findings.is_empty() && report.unseen.is_empty() && report.looked == [TOKEN], "{report:?}");
        }
    }

    #[test]
    fn each_right_that_lacks_is_named_with_its_calls_and_its_rule() {
        for (lacking, what, rule) in [
            (
                &[0][..],
                "the token lacks agent:read: GET /v1/agent/self would fail",
                "agent \"consul-server-1\" { policy = \"read\" }",
            ),
            (
                &[0, 1],
                "lacks agent:read and agent:write: GET /v1/agent/self, PUT /v1/agent/join, PUT",
                "agent \"consul-server-1\" { policy = \"write\" }",
            ),
            (&[1], "lacks agent:write: PUT /v1/agent/join", "agent \"consul-server-1\" { policy = \"write\" }"),
            (&[2], "lacks node:read: GET /v1/agent/members", "node \"consul-server-1\" { policy = \"read\" }"),
            (
                &[3, 4],
                "lacks operator:read and operator:write: GET /v1/operator/raft/configuration",
                "operator = \"write\"",
            ),
            (&[4], "lacks operator:write: POST", "operator = \"write\""),
        ] {
            let may = (0..NEEDS.len()).map(|at| !lacking.contains(&at)).collect();
            let report = judged(true, Ok(Some(may)));
            assert_eq!(report.findings.len(), 1, "{report:?}");
            let found = &report.findings[0];
            assert!(found.what.contains(what) && found.mend.starts_with(rule), "{found:?}");
        }
    }

    #[test]
    fn without_a_token_what_lacks_is_named_and_is_no_finding() {
        let report = judged(false, Ok(Some(vec![false; NEEDS.len()])));
        assert!(report.findings.is_empty() && report.unseen[0].why.contains("operator = \"write\""), "{report:?}");
    }

    #[test]
    fn a_token_that_consul_does_not_know_is_a_finding() {
        let report = judged(true, Err(Lack::UnknownToken));
        assert!(
            report.findings.len() == 1 && report.findings[0].what.contains("does not know the token"),
            "{report:?}"
        );
    }
}
