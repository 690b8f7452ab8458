//! Does this server reach itself at the address that it advertises? Tried beside the agent, at a server's first start: where it comes out
//! well, as it mostly does, the agent has not waited until the cluster's proxy leads there.
//!
//! Takes the record, which names the rendered file with that address. Where the address leads back to this Pod the record says so. Where
//! it does not, Consul does not form: then the Pod's own address takes its place in the file and in the record, and the caller has the
//! agent start there. Fails with 73 when that cannot be written.

use crate::api::consul::Agent;
use crate::api::kube::Event;
use crate::dial::dial;
use crate::exit::{Code, Failure};
use crate::init::{millis, volume_failure};
use crate::record::{self, Record, Volume};
use crate::render;
use crate::survey::own::HAIRPIN;
use crate::time::{self, SAY_EVERY};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// How often it is tried.
const TRY: Duration = Duration::from_millis(100);
/// How long one try may take.
const DIALLED: Duration = Duration::from_millis(500);

/// An address that nobody has tried yet.
pub struct Untried {
    /// The server port at it.
    advertised: SocketAddr,
    /// The Pod's own address.
    pod: IpAddr,
    /// The rendered file that has it, and whom it is to join.
    recorded: record::Untried,
    agent: Agent,
    volume: Volume,
}

// === impl Untried ===

impl Untried {
    /// What is to be tried, if anything is. `pod` is the Pod's own address.
    pub fn of(record: &Record, pod: Option<IpAddr>, port: u16, agent: &Agent, volume: &Volume) -> Option<Self> {
        Some(Self {
            recorded: record.untried.clone()?,
            advertised: SocketAddr::new(record.advertise?, port),
            pod: pod?,
            agent: agent.clone(),
            volume: volume.clone(),
        })
    }

    /// Tries it once the agent answers. An Event: it leads nowhere, and the agent is to start at the Pod's own address.
    ///
    /// # Errors
    /// [`Failure`]: 73 and 78 of the volume.
    pub async fn settle(&self) -> Result<Option<Event>, Failure> {
        let mut said = Instant::now();
        while let Err(error) = self.agent.leader().await {
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                warn!("the own address is tried once the agent answers: {error}");
            }
            sleep(TRY).await;
        }
        let begun = Instant::now();
        let ip = self.advertised.ip();
        while begun.elapsed() < HAIRPIN {
            if timeout(DIALLED, dial(self.advertised)).await.is_ok_and(|dialled| dialled.is_ok()) {
                info!(advertise = %ip, took_ms = millis(begun.elapsed()), "this Pod reaches its own Service");
                self.settled(ip, true)?;
                return Ok(None);
            }
            sleep(TRY).await;
        }
        self.settled(self.pod, false)?;
        let within = time::text(HAIRPIN);
        let message = format!(
            "this Pod does not reach its own Service address {ip} within {within} (hairpin), without which Consul does not form: the agent \
             starts again at the Pod's own address {}",
            self.pod
        );
        warn!("{message}");
        Ok(Some(Event { reason: "NotReached", warning: true, message }))
    }

    /// Writes the address that it is: into the rendered file, with those who are joined, and into the record.
    fn settled(&self, address: IpAddr, stable: bool) -> Result<(), Failure> {
        let file = &self.recorded.file;
        let unusable = |why: String| {
            Failure::new(Code::Write, format!("could not change the address in {}: {why}", file.display()))
        };
        let text = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
        let all = serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        let mut all: serde_json::Map<String, Value> = all;
        all.insert("advertise_addr".to_owned(), address.to_string().into());
        all.insert("retry_join".to_owned(), self.recorded.join.clone().into());
        self.volume.write(file, render::text(all).as_bytes()).map_err(|error| volume_failure(&error))?;
        let noted = self.volume.change_record(|record| {
            record.untried = None;
            record.advertise = Some(address);
            record.stable = stable;
            if !record.addresses.contains(&address) {
                record.addresses.push(address);
                record.addresses.sort();
            }
        });
        noted.map_err(|error| volume_failure(&error))
    }
}
