//! An admin address that another program has: any user of the host can take a port. The relay streams
//! without its page, says who has the address as far as the kernel tells (`/proc`), and takes it once it is
//! free.

use std::{fs, io, path::Path, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{BindError, Hosts, bind, serve};
use crate::state::boards::Boards;

/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);
/// Probes fail meanwhile, so the log says why so often.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Waits until the address is free, then serves as [`serve`]. Cancel safe.
///
/// # Errors
/// As [`serve`].
pub async fn serve_when_free(
    listen: String,
    hosts: Hosts,
    boards: Boards,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut told: Option<Instant> = None;
    loop {
        let error = match bind(&listen).await {
            Ok(listener) => {
                tracing::info!(address = %listen, "admin endpoints are up");
                return serve(listener, hosts, boards, stop).await;
            }
            Err(BindError { source, .. }) => source,
        };
        if told.is_none_or(|told| told.elapsed() >= REMIND_EVERY) {
            told = Some(Instant::now());
            let who = by_whom(&listen);
            tracing::warn!(
                address = %listen,
                %error,
                who = who.as_deref().unwrap_or("not known"),
                "another program has the admin address: this relay continues, as leader or standby, but /livez, /readyz, \
                 /metrics and /status are not served until the address is free. A second relay on a host needs an \
                 admin.listen of its own, or \"off\", and a restart. End that program if it should not be there"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(RETRY) => {}
        }
    }
}

/// Who listens at the port; `None` where that is not told.
fn by_whom(listen: &str) -> Option<String> {
    let port = listen.rsplit_once(':')?.1.parse().ok()?;
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let listener = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listener_in(&table, port))?;
    Some(match process(&listener.inode) {
        Some((pid, name)) => format!("process {pid} ({name}, user {})", listener.user),
        None => match namesake(Path::new("/proc"), &listener.user, std::process::id()) {
            Some((pid, name)) => {
                format!("a process of user {}, perhaps process {pid} ({name})", listener.user)
            }
            None => format!("a process of user {}", listener.user),
        },
    })
}

/// Another process of this program and of that user. Which files a relay has open can't be read, because a relay hides
/// its memory from other processes; its name and its user can.
fn namesake(proc: &Path, user: &str, own: u32) -> Option<(u32, String)> {
    let name_of = |pid: u32| fs::read_to_string(proc.join(format!("{pid}/comm"))).ok();
    let name = name_of(own)?;
    let is_of_user = |pid: u32| {
        let status = fs::read_to_string(proc.join(format!("{pid}/status"))).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        line.and_then(|ids| ids.split_whitespace().nth(1)) == Some(user)
    };
    let numbers = fs::read_dir(proc).ok()?.flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut others = pids.filter(|pid| *pid != own && name_of(*pid).as_ref() == Some(&name));
    others.find(|pid| is_of_user(*pid)).map(|pid| (pid, name.trim().to_owned()))
}

#[derive(Debug, PartialEq, Eq)]
struct ListenerOf {
    user: String,
    inode: String,
}

/// A row is `0: 0100007F:24F8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 4711 …`:
/// local and remote address, state, queues, timer, retransmissions, user, timeout, inode.
fn listener_in(table: &str, port: u16) -> Option<ListenerOf> {
    const LISTENS: &str = "0A";
    let port = format!(":{port:04X}");
    table.lines().find_map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        match words.as_slice() {
            [_, local, _, LISTENS, _, _, _, user, _, inode, ..] if local.ends_with(&port) => {
                Some(ListenerOf { user: (*user).to_owned(), inode: (*inode).to_owned() })
            }
            _ => None,
        }
    })
}

/// The process that has the socket, and its name. Those of other users are seen by root alone.
fn process(inode: &str) -> Option<(u32, String)> {
    let socket = format!("socket:[{inode}]");
    let numbers = fs::read_dir("/proc").ok()?.flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| {
            fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
        })
    };
    let pid = pids.into_iter().find(has_it)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_among_those_that_are_connected() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:24F8 0100007F:0050 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0\n\
            1: 0100007F:24F9 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 2 1 0\n\
            2: 0100007F:24F8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1002        0 3 1 0\n";
        let found = listener_in(table, 9464).expect("one listens");
        assert_eq!(found, ListenerOf { user: "1002".into(), inode: "3".into() });
        assert_eq!(listener_in(table, 80), None);
    }

    #[test]
    fn another_process_of_this_program_is_found_by_name_and_user() {
        let proc = tempfile::tempdir().expect("a directory");
        for (pid, name, user) in [
            (10, "outbox-relay", 7),
            (11, "outbox-relay", 8),
            (12, "other", 7),
            (13, "outbox-relay", 7),
        ] {
            let of = proc.path().join(pid.to_string());
            fs::create_dir(&of).expect("made");
            fs::write(of.join("comm"), format!("{name}\n")).expect("written");
            let status = format!("Name:\t{name}\nUid:\t{user}\t{user}\t{user}\t{user}\n");
            fs::write(of.join("status"), status).expect("written");
        }
        let found = |user, own| namesake(proc.path(), user, own).map(|(pid, _)| pid);
        assert_eq!(found("7", 10), Some(13));
        assert_eq!(found("8", 10), Some(11));
        assert_eq!(found("9", 10), None);
        assert_eq!(found("7", 12), None, "no other process has that program's name");
    }

    #[test]
    fn a_socket_of_this_process_is_known_as_its_own() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let who = by_whom(&address).expect("the kernel tells");
        assert!(who.contains(&format!("process {}", std::process::id())), "{who}");
    }
}
