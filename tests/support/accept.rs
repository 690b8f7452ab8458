//! How does a scripted server accept TCP connections and end for sure? Takes a listener and a function for one
//! connection; gives a guard. Dropping the guard hangs up every connection and joins every thread, so no test leaves a
//! socket behind. It never reads or writes by itself. A connection that fails is that function's business.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// A listener with one thread for accepting and one for each connection.
pub struct Accepting {
    addr: SocketAddr,
    live: Arc<Live>,
    thread: Option<JoinHandle<()>>,
}

/// The connections that are open now.
#[derive(Default)]
struct Live {
    stopping: AtomicBool,
    streams: Mutex<HashMap<u64, TcpStream>>,
}

/// Locks also after another thread's panic, so that the first panic is the one that is read.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a child may need from fork to exec on a busy machine.
const FORKED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// Listens at `addr`. Panics when the address stays taken: a socket that was just closed lives on in whatever another thread has
/// forked, until that has become its program.
pub fn listen(addr: &str) -> TcpListener {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(addr) {
            Ok(listener) => return listener,
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < FORKED => sleep(LOOK),
            Err(error) => panic!("could not listen on {addr}: {error}"),
        }
    }
}

impl Accepting {
    /// Calls `serve` in a thread of its own for every connection that `listener` accepts.
    pub fn start(listener: TcpListener, serve: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        let addr = listener.local_addr().expect("a listener has an address");
        let live = Arc::new(Live::default());
        let (accepting, serve) = (Arc::clone(&live), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            let mut threads: Vec<JoinHandle<()>> = Vec::new();
            for (id, stream) in (0..).zip(listener.incoming()) {
                if accepting.stopping.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let Ok(handle) = stream.try_clone() else { continue };
                lock(&accepting.streams).insert(id, handle);
                threads.retain(|thread| !thread.is_finished());
                let (live, serve) = (Arc::clone(&accepting), Arc::clone(&serve));
                threads.push(std::thread::spawn(move || {
                    serve(&stream);
                    // The client sees the end only when the second handle is gone too.
                    lock(&live.streams).remove(&id);
                }));
            }
            for stream in lock(&accepting.streams).values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            for thread in threads {
                let _ = thread.join();
            }
        });
        Self { addr, live, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        lock(&self.live.streams).len()
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.live.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that sits in accept; when this fails there is nobody to join.
        if TcpStream::connect(self.addr).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
