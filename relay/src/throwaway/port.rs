//! Ports of the loopback interface that no other process of ours takes before a server listens on them.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::unix::net::UnixListener,
    sync::{Mutex, PoisonError},
};

/// Lower ports are mostly services'.
const MIN: u16 = 10_000;
/// Where Linux's default range of clients' ports begins; elsewhere it is higher.
const CLIENTS_BEGIN: u16 = 32_768;
/// Ports that a process claims at once.
const BLOCK: u16 = 64;
const BLOCKS_TRIED: usize = 1000;

/// What this process has claimed. A claim ends with the process, whichever way it ends.
static CLAIMED: Mutex<Claimed> = Mutex::new(Claimed { left: 0..0, claims: Vec::new() });

struct Claimed {
    left: Range<u16>,
    claims: Vec<Claim>,
}

/// A port of the loopback interface that is free now, never the same one twice, and never one that another process
/// was given by this function: a server takes seconds to start, and another one would listen on its port before it.
///
/// It is below the ports that the kernel gives to clients. A client that tries again and again to reach a server that
/// is down could be given the server's own port, and would connect to itself.
///
/// # Errors
/// The loopback interface has none.
pub fn free_port() -> io::Result<u16> {
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..BLOCKS_TRIED {
        for port in claimed.left.by_ref() {
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
        let (begin, claim) = claim_a_block()?;
        claimed.left = begin..begin + BLOCK;
        claimed.claims.push(claim);
    }
    Err(none_is_free())
}

/// The first port of a block that no other process has, and what keeps it.
fn claim_a_block() -> io::Result<(u16, Claim)> {
    let blocks = (clients_begin() - MIN) / BLOCK;
    for _ in 0..BLOCKS_TRIED {
        // At random, because programs of others look for ports too.
        let number = RandomState::new().build_hasher().finish() % u64::from(blocks);
        let begin = MIN + u16::try_from(number).unwrap_or_default() * BLOCK;
        match claim(begin) {
            Ok(claim) => return Ok((begin, claim)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(none_is_free())
}

type Claim = Option<UnixListener>;

/// A name that the kernel gives to one process at a time, in the network namespace whose ports are meant. Nothing is
/// left of it in a file system.
#[cfg(target_os = "linux")]
fn claim(begin: u16) -> io::Result<Claim> {
    use std::os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr};

    let name = SocketAddr::from_abstract_name(format!("outbox-ports-{begin}"))?;
    UnixListener::bind_addr(&name).map(Some)
}

/// There are no such names here: that a port is free has to do.
#[cfg(not(target_os = "linux"))]
fn claim(_begin: u16) -> io::Result<Claim> {
    Ok(None)
}

/// From here on the kernel gives ports to clients.
fn clients_begin() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let first = range.ok().and_then(|range| range.split_whitespace().next()?.parse().ok());
    // If clients have nearly all ports, use theirs too.
    first.filter(|first| *first >= MIN + 1000).unwrap_or(CLIENTS_BEGIN)
}

fn none_is_free() -> io::Error {
    let end = clients_begin();
    let text = format!("of the ports from {MIN} to below {end}, none was found that is free");
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, claim, claim_a_block, free_port};

    #[test]
    fn a_port_is_given_once() {
        let mut ports: Vec<u16> = (0..200).map(|_| free_port().expect("a port")).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 200);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_one_has_claimed_no_other_is_given() {
        let (begin, kept) = claim_a_block().expect("a block");
        let refused = claim(begin).expect_err("it is claimed");
        assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
        let others: Vec<_> = (0..60).map(|_| claim_a_block().expect("a block")).collect();
        assert!(others.iter().all(|(other, _)| other.abs_diff(begin) >= BLOCK));
        drop(kept);
        claim(begin).expect("it is free again");
    }
}
