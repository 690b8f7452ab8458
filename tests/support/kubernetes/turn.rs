//! Which tests may run at the same time? Most of a test is waiting, so several share the cluster, each in a namespace of its
//! own; a test that breaks what all share has the cluster to itself.
//!
//! Takes nothing, gives a [`Turn`] that lasts until it goes out of scope. Holds for the tests of one process.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Whoever waits to be alone is let in before newcomers: the lock of Linux prefers its writers.
static CLUSTER: RwLock<()> = RwLock::new(());

/// A test's time on the cluster.
#[derive(Debug)]
pub enum Turn {
    /// Beside others.
    Beside(RwLockReadGuard<'static, ()>),
    /// While nobody else is there. What was there before may still be on its way out.
    Alone(RwLockWriteGuard<'static, ()>),
}

// === impl Turn ===

impl Turn {
    /// Waits for those who must be alone.
    pub fn beside() -> Self {
        Self::Beside(CLUSTER.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for everybody.
    pub fn alone() -> Self {
        Self::Alone(CLUSTER.write().unwrap_or_else(PoisonError::into_inner))
    }
}
