//! Which life of the agent is this? The kernel's number of the socket that listens at a server's raft port: it is made with
//! the process, ends with it, and is not given again in this boot.
//!
//! Takes the server's raft address, gives the number from /proc/net/tcp and tcp6, which show the Pod's network to any of its
//! containers and to any user: no process needs to be found, and nothing is asked of the agent, which tells no stranger
//! when it started. `None` where nobody listens there, or where the kernel does not say. How long the container runs is the age of its
//! first process.

use crate::process::field;
use std::fs::read_to_string;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

/// The life of the agent that listens at `port`, at one of these addresses or at all. When only others listen at that port it
/// is the life of them all, since a number that changes too often costs a wait and nothing else.
pub fn of_listener(port: u16, addresses: &[IpAddr]) -> Option<String> {
    let table: String = ["/proc/net/tcp", "/proc/net/tcp6"].iter().flat_map(read_to_string).collect();
    in_table(&table, port, addresses)
}

/// How long the first process runs that we see: a container's own, or the Pod's where its containers share them
/// (`shareProcessNamespace`). `None` where the kernel does not say.
pub fn of_container() -> Option<Duration> {
    since_start(Path::new("/proc"))
}

/// Field 22 of proc_pid_stat(5) counts the hundredths of a second (`USER_HZ`) from the machine's start to the process's, proc_uptime(5)
/// begins with the seconds since the machine's start.
fn since_start(proc: &Path) -> Option<Duration> {
    let started: f64 = field(&std::fs::read(proc.join("1/stat")).ok()?, 22)?;
    let up: f64 = read_to_string(proc.join("uptime")).ok()?.split_whitespace().next()?.parse().ok()?;
    // Where a container is shown an uptime of its own nothing can be told. A hundredth may be rounded the other way.
    Some(up - started / 100.0).filter(|age| *age > -1.0).and_then(|age| Duration::try_from_secs_f64(age.max(0.0)).ok())
}

fn in_table(table: &str, port: u16, addresses: &[IpAddr]) -> Option<String> {
    let all = table.lines().filter_map(listener).filter(|(_, listens_at, socket)| *listens_at == port && *socket > 0);
    let (ours, others): (Vec<_>, Vec<_>) =
        all.partition(|(ip, ..)| ip.is_unspecified() || addresses.contains(&ip.to_canonical()));
    let counted = if ours.is_empty() { others } else { ours };
    let mut sockets: Vec<u64> = counted.into_iter().map(|(_, _, socket)| socket).collect();
    sockets.sort_unstable();
    let text = sockets.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}

/// A row of a socket that listens: its address, its port, its number.
/// `9: 0200007F:206C 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1510048 …`
fn listener(row: &str) -> Option<(IpAddr, u16, u64)> {
    /// `TCP_LISTEN` of the kernel's include/net/tcp_states.h.
    const LISTEN: &str = "0A";
    let mut words = row.split_whitespace();
    let (local, state) = (words.nth(1)?, words.nth(1)?);
    let (ip, port) = local.split_once(':').filter(|_| state == LISTEN)?;
    Some((address(ip)?, u16::from_str_radix(port, 16).ok()?, words.nth(5)?.parse().ok()?))
}

/// The kernel writes an address as numbers of 32 bits in the machine's own order.
fn address(hex: &str) -> Option<IpAddr> {
    let number = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(IpAddr::from(Ipv4Addr::from(number(0)?))),
        32 => {
            let bytes = [number(0)?, number(8)?, number(16)?, number(24)?].concat();
            Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
        }
        _ => None,
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   9: 03075B7F:206C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1510048 2 00000000b931a86f 100 0 0 10 0
  12: 02075B7F:206C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1510602 2 00000000ff26bcf0 100 0 0 10 0
  13: 02075B7F:206C 03075B7F:9E40 01 00000000:00000000 00:00000000 00000000     0        0 77 2 00000000ff26bcf0 100 0 0 10 0
  14: 00000000:2134 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 2 00000000ff26bcf0 100 0 0 10 0
   0: 00000000000000000000000001000000:206C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 42 1 0 100 0 0 10 0
   1: 0000000000000000FFFF000004075B7F:206C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0 100 0 0 10 0
";

    #[test]
    fn a_container_is_as_old_as_its_first_process() {
        let proc = tempfile::tempdir().unwrap();
        let age = |stat: &str, uptime: &str| {
            std::fs::create_dir_all(proc.path().join("1")).unwrap();
            std::fs::write(proc.path().join("1/stat"), stat).unwrap();
            std::fs::write(proc.path().join("uptime"), uptime).unwrap();
            since_start(proc.path())
        };
        let stat = "1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 123450 1263992832";
        assert_eq!(age(stat, "1300.75 2000.00\n"), Some(Duration::from_millis(66_250)));
        assert_eq!(age(stat, "1234.49 2000.00\n"), Some(Duration::ZERO), "rounded the other way");
        assert_eq!(age(stat, "30.0 30.0"), None, "the container's own uptime");
        assert_eq!(age("1 (a) S", "1.0 1.0"), None);
        assert_eq!(age(stat, ""), None);
        assert_eq!(since_start(Path::new("/nowhere")), None);
        assert!(of_container().is_some());
    }

    #[test]
    fn the_socket_that_listens_at_our_address_or_at_all_is_found() {
        let of = |port: u16, ip: &str| in_table(TABLE, port, &[ip.parse().unwrap()]);
        assert_eq!(of(8300, "127.91.7.3").as_deref(), Some("1510048"));
        assert_eq!(of(8300, "127.91.7.2").as_deref(), Some("1510602"), "a connection is no listener");
        assert_eq!(of(8300, "::1").as_deref(), Some("42"));
        assert_eq!(of(8300, "127.91.7.4").as_deref(), Some("43"), "an IPv4 address in IPv6's table");
        assert_eq!(of(8500, "10.0.0.1").as_deref(), Some("5"));
        assert_eq!(
            of(8300, "10.0.0.1").as_deref(),
            Some("42 43 1510048 1510602"),
            "bound to an address nobody told us"
        );
        assert_eq!(of(8301, "10.0.0.1"), None);
        assert_eq!(in_table("nonsense\n1: x:y z 0A\n", 8300, &[]), None);
    }

    #[test]
    fn each_life_has_a_number_of_its_own() {
        let address = "127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap();
        let first = TcpListener::bind(address).unwrap();
        let address = first.local_addr().unwrap();
        let life = of_listener(address.port(), &[address.ip()]);
        assert!(life.is_some());
        assert_eq!(of_listener(address.port(), &[address.ip()]), life);
        drop(first);
        let _second = TcpListener::bind(address).unwrap();
        assert_ne!(of_listener(address.port(), &[address.ip()]), life);
    }
}
