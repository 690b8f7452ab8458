//! Takes a server that stops out of its own Service, before it is gone there.
//!
//! Between a Pod's end and kube-proxy's next change a Service leads to an address that nobody has. The leader dials it at once, and
//! where nobody on that machine says so it hears nothing for Consul's 10 s (1.22.6: no setting shortens it), while the server is back
//! after four. A Service that leads nowhere refuses at once, and Raft tries again.
//!
//! Turns the label by which the Service finds the Pod to `false`, then waits until dials of the own address fail. What is connected
//! stays so: kube-proxy cuts no connection. Only for a Pod that is being deleted: its successor has the label again.

use super::look::Looker;
use super::steps::Steps;
use crate::api::kube::KubeError;
use crate::exit::chain;
use crate::time;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

/// kube-proxy makes at most one change a second (`minSyncPeriod`); where it is slower the stop does not wait for it.
const CHANGED: Duration = Duration::from_secs(2);
/// How often the address is dialled.
const DIAL: Duration = Duration::from_millis(50);
/// How long it may take to hear of a dial.
const ANSWERED: Duration = Duration::from_millis(250);
/// How many dials in turn of which nothing is heard say that nobody is there any more.
const UNHEARD: u32 = 2;

/// Has the Service of our Pod lead nowhere; `server` is our server port behind it. False: no Service finds us by the label, or it may not
/// be changed, and the stop goes on without.
///
/// # Errors
/// [`KubeError`]: what became of the label is not known.
pub async fn withdraw(looker: &Looker, server: SocketAddr, steps: &mut Steps) -> Result<bool, KubeError> {
    let begun = Instant::now();
    match looker.set_reachable(false).await {
        None => return Ok(false),
        Some(Err(error)) if error.is_refusal() => {
            info!("{}: the others may hear later of this server's return", chain(&error));
            return Ok(false);
        }
        Some(changed) => changed?,
    }
    let mut unheard = 0;
    while begun.elapsed() < CHANGED {
        match timeout(ANSWERED, TcpStream::connect(server)).await {
            // It leads here, where the kernel answers by itself.
            Ok(Ok(_)) => unheard = 0,
            // kube-proxy has it refused, and another proxy may say that there is no way, or that it is not allowed.
            Ok(Err(_)) => unheard = UNHEARD,
            // The kernel tells each of us only once a second that it is refused (`icmp_ratelimit`).
            Err(_) => unheard += 1,
        }
        if unheard >= UNHEARD {
            steps.note_timed("its Service leads nowhere", begun.elapsed());
            return Ok(true);
        }
        sleep(DIAL).await;
    }
    info!("the own Service still leads here after {}", time::text(CHANGED));
    Ok(true)
}

/// Has it lead to us again, since it is not our turn.
///
/// # Errors
/// [`KubeError`]: it still leads nowhere, and this must be tried again.
pub async fn restore(looker: &Looker) -> Result<(), KubeError> {
    looker.set_reachable(true).await.unwrap_or(Ok(()))
}
