//! Nothing stays behind: a small shell outlives the test process by a moment and clears up.
//!
//! It reads a pipe whose only writer is this process. However this process ends (return, panic,
//! ctrl-C, `kill -9`), the pipe closes, and the guardian stops what was registered and removes the
//! directories. On an orderly exit the process waits for it, so `cargo test` returns to a clean
//! machine. Called by every part that starts something.

use std::{
    fmt::Display,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

/// Lines are `what value`. Processes get the gentlest signal that ends them at once (a postmaster
/// ends its children on QUIT), then KILL; directories go when nothing writes to them any more.
/// The guardian is in a process group of its own, so a terminal's ctrl-C does not reach it.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
quit= kill= dirs= containers=
while read -r what value; do
    case $what in
    quit) quit="$quit $value" ;;
    kill) kill="$kill $value" ;;
    forget) kill=$(for p in $kill; do [ "$p" = "$value" ] || printf '%s ' "$p"; done) ;;
    dir) dirs="$dirs
$value" ;;
    container) containers="$containers $value" ;;
    esac
done
for p in $kill; do kill -KILL "$p"; done
for p in $quit; do kill -QUIT "$p"; done
for c in $containers; do
    docker rm --force --volumes "$c" ||
        curl --silent --unix-socket "${DOCKER_SOCKET:-/var/run/docker.sock}" \
            --request DELETE "http://localhost/containers/$c?force=1&v=1"
done
turn=0
for p in $quit $kill; do
    while kill -0 "$p" && [ $turn -lt 500 ]; do
        turn=$((turn + 1))
        sleep 0.02
    done
    kill -KILL "$p"
done
printf '%s\n' "$dirs" | while read -r d; do
    [ -n "$d" ] && rm -rf -- "$d"
done
"#;

static GUARDIAN: OnceLock<Mutex<Option<Child>>> = OnceLock::new();

/// A process to be ended by KILL, such as a broker or a relay.
pub(crate) fn kill_at_exit(pid: u32) {
    tell("kill", pid);
}

/// That process has ended and was waited for: its number may belong to another one by now.
pub(crate) fn forget(pid: u32) {
    tell("forget", pid);
}

/// A process to be ended by QUIT: PostgreSQL's immediate shutdown, children included.
pub(crate) fn quit_at_exit(pid: u32) {
    tell("quit", pid);
}

/// A directory to be removed once the processes are gone.
pub(crate) fn remove_at_exit(dir: &Path) {
    tell("dir", dir.display());
}

/// A container to be removed by its id.
pub(crate) fn remove_container_at_exit(id: &str) {
    tell("container", id);
}

fn tell(what: &str, value: impl Display) {
    let guardian = GUARDIAN.get_or_init(|| Mutex::new(Some(spawn())));
    let mut guardian = guardian.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = guardian
        .as_mut()
        .and_then(|child| child.stdin.as_mut())
        .expect("the guardian is told nothing after the process began to exit");
    // One write, below the pipe's atomic size: a kill cannot leave half a line.
    pipe.write_all(format!("{what} {value}\n").as_bytes())
        .expect("the guardian reads until this process ends");
}

fn spawn() -> Child {
    let child = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("/bin/sh starts");
    // SAFETY: `at_exit` has the signature that atexit takes and does not unwind.
    let registered = unsafe { libc::atexit(at_exit) };
    assert_eq!(registered, 0, "atexit takes a handler");
    child
}

extern "C" fn at_exit() {
    let Some(guardian) = GUARDIAN.get() else { return };
    let child = guardian.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut child) = child {
        drop(child.stdin.take()); // The end of its work list.
        let _ended = child.wait();
    }
}
