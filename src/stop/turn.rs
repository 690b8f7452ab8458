//! The turn of a server that stops and will return.
//!
//! Takes a [`Stopper`], gives the moment at which its agent may be ended: nobody else is away or about to stop ([`guard`]), leadership is
//! another's, our Service leads nowhere, which the others see, and a look after that says the same, since another one may have withdrawn at the
//! same moment, and only one of us goes. Or the time for it is over. Decides nothing itself of whom to wait for.

use super::ENDING;
use super::course::{LOOK, Stopper};
use super::guard::{self, Seen, Us};
use super::handover::{able, all_arrive, one_is_unled, somebody_stays};
use super::lag::Lag;
use super::steps::{Steps, Wait};
use super::voters::View;
use super::withdraw::{restore, withdraw};
use crate::api::consul::ApiError;
use crate::api::kube::KubeError;
use crate::exit::chain;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long calls may fail while we are out of our Service until the stop goes on as it is.
const PASSING: Duration = Duration::from_secs(5);

/// How long a server is out of its Service already whose turn it is next, while the one before it comes back, which takes 2 s.
const AHEAD: Duration = Duration::from_secs(5);

/// After how long the leader has lost its dial of a server that is back, and follows nobody or lacks its log: where it is refused raft dials at least
/// twice a second.
const LOST: Duration = Duration::from_secs(1);

/// Another look is needed, or it is our turn.
type Next = ControlFlow<()>;

/// What is remembered from one look to the next.
pub struct Turn<'a> {
    stopper: &'a mut Stopper,
    steps: &'a mut Steps,
    deadline: Instant,
    /// Nobody is waited for from a moment on that lies between these two.
    first: Instant,
    last: Instant,
    /// When we looked first.
    looked: Option<Instant>,
    seen: Seen,
    lag: Lag,
    us: Us,
    wait: Option<Wait>,
    trouble: Trouble,
    /// A change of our label that failed may have been made all the same.
    unsure: bool,
    /// Leadership was handed over before we withdrew.
    handed_over: bool,
    /// And once while we waited.
    early: bool,
    ahead: Ahead,
    /// Since when one that is back follows nobody, or lacks what the leader's log has.
    unserved: Option<Instant>,
}

/// Whether we withdrew before it was our turn, which is tried once: kube-proxy takes up to a second for it, while the one before us comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ahead {
    Untried,
    Since(Instant),
    Over,
}

/// Who is waited for at one look.
struct Awaited {
    line: Option<String>,
    /// One is well, and lacks what the leader's log has.
    lacks: bool,
    /// And nobody else is waited for.
    is_own: bool,
    /// Nobody is waited for any longer.
    late: bool,
}

// === impl Turn ===

impl<'a> Turn<'a> {
    /// Nothing was looked at yet. `first` is when those give up that nobody goes before.
    pub fn new(stopper: &'a mut Stopper, steps: &'a mut Steps, first: Instant, deadline: Instant) -> Self {
        // A second is kept for handing leadership over.
        let last = deadline - ENDING * 2;
        let us = Us { withdrawn: stopper.looker.is_withdrawn(), ..stopper.us() };
        Self {
            stopper,
            steps,
            deadline,
            first: first.min(last),
            last,
            looked: None,
            seen: Seen::default(),
            lag: Lag::default(),
            us,
            wait: None,
            trouble: Trouble::default(),
            unsure: false,
            handed_over: false,
            early: false,
            ahead: Ahead::Untried,
            unserved: None,
        }
    }

    /// Waits for it.
    pub async fn wait(mut self) {
        while self.look().await.is_continue() {}
        if let Some(wait) = self.wait {
            self.steps.note(wait.tell());
        }
    }

    async fn look(&mut self) -> Next {
        let view = match self.stopper.asker.see().await {
            Ok(view) => view,
            // Who waits for somebody does not go because one question failed.
            Err(error) if (self.us.withdrawn || self.wait.is_some()) && self.trouble.is_bearable(&error) => {
                sleep(LOOK).await;
                return Next::Continue(());
            }
            Err(error) => {
                self.steps.note(format!("nobody is waited for, since {error}"));
                return Next::Break(());
            }
        };
        let untold = view.others.iter().any(|voter| voter.untold);
        if !untold && !self.unsure {
            self.trouble.pass();
        }
        let awaited = self.awaited(&view).await;
        let is_unserved = awaited.lacks || one_is_unled(&view);
        self.unserved = is_unserved.then(|| self.unserved.unwrap_or_else(Instant::now));
        // Leadership that came to us since is handed over first, which needs our Service.
        let leads_since = self.us.withdrawn && view.we_lead() && !self.handed_over;
        if !awaited.late && (awaited.line.is_some() || leads_since) {
            self.stand_by(&view, &awaited).await;
            return Next::Continue(());
        }
        if self.is_ahead() {
            // Who has withdrawn looks once more, however long ago that was.
            self.ahead = Ahead::Over;
            self.stopper.asker.forget().await;
            return Next::Continue(());
        }
        if !self.us.withdrawn {
            return self.withdraw(&view, awaited.late).await;
        }
        // Whether another one has withdrawn too is worth a moment.
        if !awaited.late && untold && self.trouble.is_young() {
            sleep(LOOK).await;
            self.stopper.asker.forget().await;
            return Next::Continue(());
        }
        Next::Break(())
    }

    async fn awaited(&mut self, view: &View) -> Awaited {
        let waited = self.looked.get_or_insert_with(Instant::now).elapsed();
        self.seen.look(view, self.us, waited);
        let stops = guard::waits_for(view, self.us, &self.seen, waited);
        let late = Instant::now() >= self.seen.until(view, self.first, self.last);
        // The agents are asked for it only when nobody else is waited for, and by a leader, which may have to go for it.
        let asks = match stops {
            None => !self.us.withdrawn || self.is_ahead(),
            Some(_) => !self.early && view.we_lead() && view.well() == view.others.len(),
        };
        let lacking = if asks && !late { self.lag.waits_for(&self.stopper.asker, view).await } else { None };
        let lacks = lacking.is_some();
        let is_own = lacks && stops.is_none();
        let line = stops.or(lacking);
        if let Some(line) = &line {
            let wait = self.wait.get_or_insert_with(Wait::begin);
            wait.say("the stop waits", line.clone());
            wait.in_vain = late;
        }
        Awaited { line, lacks, is_own, late }
    }

    /// It is not our turn.
    async fn stand_by(&mut self, view: &View, awaited: &Awaited) {
        // Another leader dials anew whom we do not reach.
        let may_go = || {
            awaited.is_own
                || self.has_lost_a_dial() && able(view).count() > usize::from(awaited.lacks)
                || all_arrive(view) && somebody_stays(view, self.stopper.looker.revision())
        };
        if view.we_lead() && !self.us.withdrawn && !self.unsure && !self.early && may_go() {
            self.early = true;
            self.stopper.hand_over(view, self.deadline, self.steps).await;
            return;
        }
        // Leadership may come again while we wait.
        self.handed_over &= awaited.line.is_none();
        if self.is_next(view, awaited) {
            if let Some(server) = self.stopper.stable
                && !self.us.withdrawn
            {
                return self.withdraw_ahead(server).await;
            }
            if let Ahead::Since(since) = self.ahead
                && since.elapsed() < AHEAD
            {
                return sleep(LOOK).await;
            }
        }
        if self.us.withdrawn || self.unsure {
            self.us.withdrawn = false;
            if self.is_ahead() {
                self.ahead = Ahead::Over;
            }
            let restored = restore(&self.stopper.looker).await;
            let trouble = &mut self.trouble;
            self.unsure = restored
                .inspect_err(|error| trouble.say("the own Service leads nowhere while the stop waits", error))
                .is_err();
        }
        sleep(LOOK).await;
    }

    /// Whether the leader, be it us or not, has lost its dial of one that is back.
    fn has_lost_a_dial(&self) -> bool {
        self.unserved.is_some_and(|since| since.elapsed() >= LOST)
    }

    fn is_ahead(&self) -> bool {
        matches!(self.ahead, Ahead::Since(_))
    }

    /// Whether we may be out of our Service, or go out of it, although it is not our turn yet.
    fn is_next(&self, view: &View, awaited: &Awaited) -> bool {
        let waited = self.looked.map(|at| at.elapsed()).unwrap_or_default();
        // What one that is back lacks it has in a moment.
        let is_next = || self.is_ahead() && awaited.lacks || guard::is_next(view, self.us, &self.seen, waited);
        // Who leads must be reached by those that vote for another one.
        let may_be_out = self.ahead != Ahead::Over && !self.unsure && !view.we_lead();
        // And who may have to lead, so that another one dials.
        may_be_out && !self.has_lost_a_dial() && is_next()
    }

    async fn withdraw_ahead(&mut self, server: SocketAddr) {
        self.us.withdrawn = self.leave_service(server).await.unwrap_or(false);
        self.ahead = if self.us.withdrawn { Ahead::Since(Instant::now()) } else { Ahead::Over };
        self.stopper.asker.forget().await;
    }

    /// It may be: hands leadership over, and takes us out of our Service.
    async fn withdraw(&mut self, view: &View, late: bool) -> Next {
        // Once before the same withdrawal, however often that is tried.
        if !self.unsure {
            self.handed_over |= view.we_lead();
            self.stopper.hand_over(view, self.deadline, self.steps).await;
        }
        // Where nobody else votes nobody dials.
        let Some(server) = self.stopper.stable.filter(|_| !view.others.is_empty()) else { return Next::Break(()) };
        match self.leave_service(server).await {
            Some(true) if !late => (self.us.withdrawn, self.unsure) = (true, false),
            Some(_) => return Next::Break(()),
            None if late || !self.trouble.is_young() => return Next::Break(()),
            None => sleep(LOOK).await,
        }
        self.stopper.asker.forget().await;
        Next::Continue(())
    }

    /// Whether our Service leads nowhere now; `None`: that is not known, and so nor is what our label says.
    async fn leave_service(&mut self, server: SocketAddr) -> Option<bool> {
        let withdrawn = withdraw(&self.stopper.looker, server, self.steps).await;
        if let Err(error) = &withdrawn {
            self.trouble.say("the own Service may lead to nobody", error);
            self.unsure = true;
        }
        withdrawn.ok()
    }
}

/// Calls that fail between two looks at the others, which are worth another try for a moment.
#[derive(Debug, Default)]
struct Trouble {
    since: Option<Instant>,
    said: Option<Wait>,
}

// === impl Trouble ===

impl Trouble {
    /// It may pass; from the first time on that this is asked.
    fn is_young(&mut self) -> bool {
        self.since.get_or_insert_with(Instant::now).elapsed() < PASSING
    }

    /// All is answered again.
    fn pass(&mut self) {
        self.since = None;
    }

    /// Whether our agent may answer yet.
    fn is_bearable(&mut self, error: &ApiError) -> bool {
        !matches!(error, ApiError::Refused { .. }) && self.is_young()
    }

    fn say(&mut self, what: &str, error: &KubeError) {
        self.said.get_or_insert_with(Wait::begin).say(what, chain(error));
    }
}
