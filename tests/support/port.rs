//! Does somebody listen there? A port that accepts and says nothing, which is what Consul's RPC port 8300 looks like to
//! a client that only connects. Takes an address; gives a guard that closes the port when dropped. It never writes.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::accept::{Accepting, listen};

/// An open port without a word.
pub struct OpenPort {
    accepting: Accepting,
    accepted: Arc<AtomicUsize>,
}

impl OpenPort {
    /// Listens at `addr`, for example `127.64.3.2:8300`; port 0 takes a free one. Panics when the address stays taken.
    pub fn at(addr: &str) -> Self {
        let listener = listen(addr);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let accepting = Accepting::start(listener, move |mut stream| {
            count.fetch_add(1, Ordering::SeqCst);
            let mut nowhere = [0; 512];
            while matches!(stream.read(&mut nowhere), Ok(n) if n > 0) {}
        });
        Self { accepting, accepted }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.accepting.addr()
    }

    /// How many connections were taken so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}
