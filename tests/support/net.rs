//! Which addresses may a test use? Consul's servers listen on their default ports at 127.a.b.2, .3 and .4, so every test
//! needs a block 127.a.b of its own, also beside the tests of another binary. Takes nothing; gives a block that is ours
//! for as long as the guard lives: a lock on a file of the temp folder, which the kernel lets go of when a test is
//! killed. Before a block is given its ports are tried, so that an agent somebody forgot does not answer. Fails by
//! panicking with the address that stood in the way.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The blocks are 127.64.0 to 127.127.255; 127.0.b is what people and other programs use.
const FIRST_SECOND_BYTE: u32 = 64;

/// How many blocks there are.
const BLOCKS: u32 = 64 * 256;

/// How many blocks are tried. More than this in use means that something else is wrong.
const TRIES: u32 = 512;

/// Consul's default ports: RPC, both gossips, HTTP, gRPC, gRPC with TLS, DNS.
const PORTS: [u16; 7] = [8300, 8301, 8302, 8500, 8502, 8503, 8600];

/// Where the next search in this process begins.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A block of addresses that is ours until this is dropped.
pub struct LoopbackBlock {
    second: u8,
    third: u8,
    path: PathBuf,
    _lock: File,
}

/// A block that no other test of this machine has.
pub fn loopback_block() -> LoopbackBlock {
    // Processes begin at different places so that they seldom meet; the lock decides when they do.
    let start = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::SeqCst));
    let mut last = String::from("every block is locked");
    for attempt in 0..TRIES {
        let number = start.wrapping_add(attempt) % BLOCKS;
        let second = (FIRST_SECOND_BYTE + number / 256) as u8;
        let Some(block) = LoopbackBlock::lock(second, (number % 256) as u8) else { continue };
        match block.taken() {
            None => return block,
            Some(addr) => last = format!("{addr} is in use"),
        }
    }
    panic!("found no free block of loopback addresses in {TRIES}: {last}");
}

impl LoopbackBlock {
    /// The address whose last byte is `host`.
    pub fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.second, self.third, host)
    }

    /// That address and a port, as text.
    pub fn at(&self, host: u8, port: u16) -> String {
        format!("{}:{port}", self.ip(host))
    }

    /// The file whose lock makes the block ours.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// This very block, its ports untried. None when another process or thread has the block, or another user's file is in the way.
    pub fn lock(second: u8, third: u8) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("convene-loopback-127.{second}.{third}"));
        let file = File::options().create(true).append(true).open(&path).ok()?;
        file.try_lock().ok()?;
        // Whoever had it before may have removed the file between our opening and our locking: then it guards nothing.
        let ours = file.metadata().ok()?.ino();
        let there = std::fs::metadata(&path).ok()?.ino();
        (ours == there).then_some(Self { second, third, path, _lock: file })
    }

    /// The first of Consul's addresses in this block that somebody listens at.
    pub fn taken(&self) -> Option<SocketAddr> {
        let addrs = (2..=4).flat_map(|host| PORTS.map(|port| SocketAddr::from((self.ip(host), port))));
        addrs.into_iter().find(|addr| TcpListener::bind(addr).is_err() || UdpSocket::bind(addr).is_err())
    }
}

impl Drop for LoopbackBlock {
    fn drop(&mut self) {
        // While the lock is still ours, so that nobody else's file goes.
        let _ = std::fs::remove_file(&self.path);
    }
}
