//! Connects in spite of a lost first packet, for which the kernel would wait a second before it sends another.
//!
//! Takes an address, gives the connection, or why there is none. kube-proxy by iptables loses such a packet in the moment in which a
//! Service begins to lead to its Pod: it takes away that the Service is refused before it has it lead anywhere (seen, 1.34). So another
//! try is begun beside the one that is not answered. Never ends by itself where nobody answers: the caller gives the time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long one try is alone; each later one is for twice as long as the one before, so that they stay few.
const ALONE: Duration = Duration::from_millis(100);

/// Connects; the first answer counts, be it a refusal.
///
/// # Errors
/// What the kernel says of the connection.
pub async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let mut tries = JoinSet::new();
    let mut alone = ALONE;
    loop {
        tries.spawn(TcpStream::connect(address));
        tokio::select! {
            Some(done) = tries.join_next() => return done.unwrap_or_else(|error| Err(io::Error::other(error))),
            () = sleep(alone) => alone *= 2,
        }
    }
}
