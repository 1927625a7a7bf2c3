//! Servers that are gone, with all they wrote, when this process ends, whichever way it ends.
//!
//! Run as root, it opens nothing in a folder that another user can change: a link there would lead it
//! to any file of the machine.
//!
//! Finds an installed PostgreSQL, starts it in a directory of its own as a user that PostgreSQL
//! accepts, and has a guardian clear up. Knows no SQL and waits for no answer: its callers do,
//! `demo` and the test suite's harness. The daemon has no use for it.

mod directory;
pub mod guardian;
mod postgres;
mod unprivileged;

use std::{
    collections::HashSet,
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

use anyhow::{Context, Result};

pub use directory::directory;
pub use postgres::{LocalPostgres, Shutdown, installed};

/// Lines of a log that an error's text shows.
const TAIL_LINES: usize = 40;
/// Lower ports are mostly services'.
const PORT_MIN: u16 = 10_000;
/// Where Linux's default range begins; elsewhere it is higher.
const CLIENTS_PORTS_BEGIN: u16 = 32_768;
const PORTS_TRIED: usize = 1000;

/// Starts a server with its output added to `log`. It need not be waited for: `ends` tells the
/// guardian how to end it.
///
/// # Errors
/// The log can't be written, the program not started, or no one would end it; then it is ended.
pub fn spawn_logged(
    mut server: Command,
    dir: &Path,
    log: &Path,
    ends: fn(u32) -> Result<()>,
) -> Result<Child> {
    let output = File::options().create(true).append(true).mode(0o600).open(log);
    let output = output.with_context(|| format!("opening {}", log.display()))?;
    let mut child = server
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // A terminal's ctrl-C is for this process; servers go when the guardian says.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", server.get_program().display()))?;
    ends(child.id()).inspect_err(|_| drop(child.kill()))?;
    Ok(child)
}

/// A port of the loopback interface that is free now, never the same one twice.
///
/// It is below the ports that the kernel gives to clients. A client that tries again and again to reach a server that
/// is down could be given the server's own port, and would connect to itself.
///
/// # Errors
/// The loopback interface has none.
pub fn free_port() -> io::Result<u16> {
    static HANDED_OUT: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let (min, end) = (PORT_MIN, clients_ports_begin());
    for _ in 0..PORTS_TRIED {
        // At random, because other processes look for ports too.
        let number = RandomState::new().build_hasher().finish();
        let above = u16::try_from(number % u64::from(end - min)).unwrap_or_default();
        let port = min + above;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner).insert(port)
        {
            return Ok(port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("of {PORTS_TRIED} ports from {min} to below {end}, none was free"),
    ))
}

/// From here on the kernel gives ports to clients.
fn clients_ports_begin() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let first = range.ok().and_then(|range| range.split_whitespace().next()?.parse().ok());
    // If clients have nearly all ports, use theirs too.
    first.filter(|first| *first >= PORT_MIN + 1000).unwrap_or(CLIENTS_PORTS_BEGIN)
}

/// The end of a log, for an error's text.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map_or_else(
        |error| format!("(no log: {error})"),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    );
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
}
