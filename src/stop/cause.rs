//! Why does this Pod stop, and what follows from that?
//!
//! Takes what the Kubernetes API says of our Pod and our StatefulSet (or said a moment ago), and a person's order. Gives the
//! first cause that fits, with how it is known, and the action. Pure. Whoever cannot be asked makes a cause unknown, and an
//! unknown cause never leaves: a server that stayed away as a voter costs less than one that left by mistake.

use crate::api::kube::Timestamp;
use crate::settings::Leave;
use std::fmt;
use std::time::Duration;

/// What is known when a stop begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What a person ordered, and where.
    pub order: Option<(Leave, &'static str)>,
    /// Our Pod.
    pub own: Own,
    /// Our StatefulSet.
    pub set: Set,
    /// The grace period that our Pod's deletion gives, which may be shorter than the Pod's own.
    pub grace: Option<Duration>,
    /// Our ordinal; `None`: this Pod is none of a StatefulSet's.
    pub ordinal: Option<u32>,
}

/// What is known of our own Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// It is there, and to be gone by then if it is being deleted.
    Here {
        /// The end of its grace period.
        deleted_by: Option<Timestamp>,
    },
    /// There is none of its name: it was deleted by force.
    Gone,
    /// There is one of its name that is not ours.
    Another,
    /// Nobody told.
    Unknown(String),
}

/// What is known of our StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Set {
    /// It is there.
    Here {
        /// How many Pods it is to have.
        replicas: u32,
        /// Its first ordinal.
        start: u32,
        /// How long ago that was read, when nobody tells now.
        ago: Option<Duration>,
    },
    /// There is none, or it is being deleted.
    Gone,
    /// All of its namespace is being deleted, it too in the end.
    Ending,
    /// We may not ask any more, and could a minute ago: `kubectl delete` takes the Role, or all of the namespace, away too.
    Withdrawn(String),
    /// Nobody told.
    Unknown(String),
}

/// Why a Pod stops, in the order in which it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A person said what is to be done.
    Order(Leave),
    /// Our Pod is gone already, or another one has its name.
    Replaced,
    /// Only the container stops: a restart by kubelet, its eviction, or the machine's shutdown.
    Container,
    /// The StatefulSet goes too.
    Teardown,
    /// It is to have no Pods for now.
    Hibernate,
    /// Our ordinal is one too many.
    ScaleDown,
    /// The Pod comes back: a rollout, a drain, a deletion by hand.
    Restart,
    /// Nobody told.
    Unknown,
}

/// What is done about a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The agent is ended at once, nobody is asked.
    AtOnce,
    /// No leave. A server that `returns` hands leadership over and looks that nobody else is away.
    Stay {
        /// It comes back soon.
        returns: bool,
    },
    /// Leaves; `gated`: only while that costs no quorum.
    Leave {
        /// By our own decision, not by order.
        gated: bool,
    },
}

/// A cause, and how it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The cause.
    pub cause: Cause,
    /// The facts in words.
    pub how: String,
}

// === impl Facts ===

impl Facts {
    /// The first cause that fits.
    pub fn cause(&self) -> Known {
        let known = |cause, how: String| Known { cause, how };
        if let Some((leave, place)) = self.order {
            return known(Cause::Order(leave), format!("{place} says {leave}"));
        }
        match &self.own {
            Own::Gone => return known(Cause::Replaced, "our Pod is gone from the Kubernetes API".to_owned()),
            Own::Another => return known(Cause::Replaced, "another Pod has our name already".to_owned()),
            Own::Here { deleted_by: None } => {
                return known(Cause::Container, "our Pod is not being deleted".to_owned());
            }
            Own::Here { deleted_by: Some(_) } | Own::Unknown(_) => {}
        }
        let Some(ordinal) = self.ordinal else {
            let how = match &self.own {
                Own::Unknown(why) => why,
                _ => "our Pod is being deleted, and belongs to no StatefulSet",
            };
            return known(Cause::Unknown, how.to_owned());
        };
        match &self.set {
            Set::Gone => known(Cause::Teardown, "the StatefulSet is gone or being deleted".to_owned()),
            Set::Ending => known(Cause::Teardown, "the namespace is being deleted".to_owned()),
            Set::Withdrawn(why) => known(Cause::Teardown, format!("we could ask a minute ago, and now {why}")),
            Set::Unknown(why) => known(Cause::Unknown, why.clone()),
            Set::Here { replicas, start, ago } => {
                let ago = ago.map(|ago| format!(" ({} s ago)", ago.as_secs())).unwrap_or_default();
                let has = format!("the StatefulSet has {replicas} replicas{ago}");
                match () {
                    () if *replicas == 0 => known(Cause::Hibernate, has),
                    () if self.set.drops(ordinal) => {
                        known(Cause::ScaleDown, format!("{has} from ordinal {start} on, and ours is {ordinal}"))
                    }
                    () => known(Cause::Restart, format!("our Pod is being deleted, and {has}")),
                }
            }
        }
    }
}

// === impl Set ===

impl Set {
    /// Whether an ordinal is one too many. Nobody's silence makes it so.
    pub fn drops(&self, ordinal: u32) -> bool {
        match self {
            Self::Here { replicas, start, .. } => !(*start..start.saturating_add(*replicas)).contains(&ordinal),
            Self::Gone | Self::Ending | Self::Withdrawn(_) | Self::Unknown(_) => false,
        }
    }
}

// === impl Cause ===

impl Cause {
    /// What a server does about it. `stable`: its address outlives its Pod.
    pub fn action(self, stable: bool) -> Action {
        match self {
            Self::Order(Leave::Always) => Action::Leave { gated: false },
            // Consul leaves by itself.
            Self::Replaced | Self::Order(Leave::Signal) => Action::AtOnce,
            Self::Teardown | Self::Hibernate => Action::Stay { returns: false },
            Self::ScaleDown => Action::Leave { gated: true },
            // It comes back at another address, and the old one is free at once when it has left.
            Self::Restart if !stable => Action::Leave { gated: true },
            Self::Order(Leave::Never) | Self::Container | Self::Restart | Self::Unknown => {
                Action::Stay { returns: true }
            }
        }
    }

    /// What a client does about it: it has no vote to lose, and whoever stays on the list of members after its end is in everybody's
    /// way. Only a container that comes back in its Pod stays.
    pub fn action_of_a_client(self) -> Action {
        match self {
            Self::Order(Leave::Signal) => Action::AtOnce,
            Self::Order(Leave::Never) | Self::Container => Action::Stay { returns: false },
            _ => Action::Leave { gated: false },
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(leave) => write!(f, "order to leave: {leave}"),
            Self::Replaced => f.write_str("replaced"),
            Self::Container => f.write_str("container restart"),
            Self::Teardown => f.write_str("teardown"),
            Self::Hibernate => f.write_str("hibernate"),
            Self::ScaleDown => f.write_str("scale-down"),
            Self::Restart => f.write_str("restart"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: u32) -> Set {
        Set::Here { replicas, start: 0, ago: None }
    }

    fn facts(own: Own, set: Set) -> Facts {
        Facts { order: None, own, set, grace: None, ordinal: Some(2) }
    }

    fn deleted() -> Own {
        Own::Here { deleted_by: Some(Timestamp::UNIX_EPOCH) }
    }

    fn cause(own: Own, set: Set) -> Cause {
        facts(own, set).cause().cause
    }

    #[test]
    fn the_first_cause_that_fits_is_taken() {
        let silent = || Own::Unknown("silent".to_owned());
        let nobody = || Set::Unknown("silent".to_owned());
        for (own, of, expected) in [
            (Own::Gone, set(3), Cause::Replaced),
            (Own::Another, Set::Gone, Cause::Replaced),
            (Own::Here { deleted_by: None }, set(1), Cause::Container),
            (deleted(), Set::Gone, Cause::Teardown),
            (deleted(), Set::Ending, Cause::Teardown),
            (deleted(), set(0), Cause::Hibernate),
            (deleted(), set(2), Cause::ScaleDown),
            (deleted(), Set::Here { replicas: 3, start: 3, ago: None }, Cause::ScaleDown),
            (deleted(), Set::Here { replicas: 3, start: 1, ago: None }, Cause::Restart),
            (deleted(), set(3), Cause::Restart),
            (silent(), set(2), Cause::ScaleDown),
            (silent(), set(3), Cause::Restart),
            (silent(), nobody(), Cause::Unknown),
            (silent(), Set::Withdrawn("may not".to_owned()), Cause::Teardown),
            (deleted(), nobody(), Cause::Unknown),
        ] {
            assert_eq!(cause(own.clone(), of.clone()), expected, "{own:?} {of:?}");
        }
    }

    #[test]
    fn an_order_counts_before_everything() {
        let ordered = Facts { order: Some((Leave::Never, "--leave")), ..facts(Own::Gone, Set::Gone) };
        assert_eq!(ordered.cause().cause, Cause::Order(Leave::Never));
        assert_eq!(ordered.cause().how, "--leave says never");
    }

    #[test]
    fn a_pod_of_no_statefulset_is_scaled_by_nobody() {
        let alone = Facts { ordinal: None, ..facts(deleted(), set(0)) };
        assert_eq!(alone.cause().cause, Cause::Unknown);
    }

    #[test]
    fn a_client_leaves_at_every_stop_but_a_container_restart() {
        for cause in
            [Cause::Replaced, Cause::Teardown, Cause::Hibernate, Cause::ScaleDown, Cause::Restart, Cause::Unknown]
        {
            assert_eq!(cause.action_of_a_client(), Action::Leave { gated: false }, "{cause}");
        }
        assert_eq!(Cause::Container.action_of_a_client(), Action::Stay { returns: false });
        assert_eq!(Cause::Order(Leave::Never).action_of_a_client(), Action::Stay { returns: false });
        assert_eq!(Cause::Order(Leave::Signal).action_of_a_client(), Action::AtOnce);
    }

    #[test]
    fn only_a_removal_or_an_order_leaves_at_a_stable_address() {
        let all = [
            Cause::Order(Leave::Always),
            Cause::Order(Leave::Never),
            Cause::Order(Leave::Signal),
            Cause::Replaced,
            Cause::Container,
            Cause::Teardown,
            Cause::Hibernate,
            Cause::ScaleDown,
            Cause::Restart,
            Cause::Unknown,
        ];
        let leaving = |stable: bool| {
            all.iter().filter(|cause| matches!(cause.action(stable), Action::Leave { .. })).collect::<Vec<_>>()
        };
        assert_eq!(leaving(true), [&Cause::Order(Leave::Always), &Cause::ScaleDown]);
        assert_eq!(leaving(false), [&Cause::Order(Leave::Always), &Cause::ScaleDown, &Cause::Restart]);
    }
}
