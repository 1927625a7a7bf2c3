//! Nothing stays behind: a small shell outlives this process by a moment and clears up.
//!
//! It reads a pipe whose only writer is this process. However this process ends (return, panic,
//! ctrl-C, `kill -9`), the pipe closes, and the guardian stops what was registered and removes the
//! directories. On an orderly exit the process waits for it, so that the next command finds a clean
//! machine. Called by every part that starts something.

use std::{
    fmt::Display,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};

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
    forget)
        kill=$(for p in $kill; do [ "$p" = "$value" ] || printf '%s ' "$p"; done)
        quit=$(for p in $quit; do [ "$p" = "$value" ] || printf '%s ' "$p"; done)
        ;;
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

static GUARDIAN: Mutex<Guardian> = Mutex::new(Guardian::None);

enum Guardian {
    None,
    Watching(Child),
    Dismissed,
}

/// A process to be ended by KILL, such as a broker or a relay.
///
/// # Errors
/// Here and below: there is no guardian, so whatever was started would stay. End it.
pub fn kill_at_exit(pid: u32) -> Result<()> {
    tell("kill", pid)
}

/// That process has ended and was waited for: its number may belong to another one by now.
pub fn forget(pid: u32) {
    // Without a guardian nothing would be killed either.
    let _nothing_to_forget = tell("forget", pid);
}

/// A process to be ended by QUIT: PostgreSQL's immediate shutdown, children included.
///
/// # Errors
/// As [`kill_at_exit`].
pub fn quit_at_exit(pid: u32) -> Result<()> {
    tell("quit", pid)
}

/// A directory to be removed once the processes are gone.
///
/// # Errors
/// As [`kill_at_exit`].
pub fn remove_at_exit(dir: &Path) -> Result<()> {
    tell("dir", dir.display())
}

/// A container to be removed, by its id or name; one that was never made is no error.
///
/// # Errors
/// As [`kill_at_exit`].
pub fn remove_container_at_exit(container: &str) -> Result<()> {
    tell("container", container)
}

fn tell(what: &str, value: impl Display) -> Result<()> {
    let mut guardian = GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner);
    let guardian = match &mut *guardian {
        Guardian::Dismissed => bail!("this process is ending, and starts nothing any more"),
        Guardian::Watching(child) => child,
        none @ Guardian::None => {
            *none = Guardian::Watching(spawn()?);
            let Guardian::Watching(child) = none else { unreachable!("it was set just now") };
            child
        }
    };
    let pipe =
        guardian.stdin.as_mut().context("the guardian's pipe is open until it is dismissed")?;
    // One write, below the pipe's atomic size: a kill cannot leave half a line.
    pipe.write_all(format!("{what} {value}\n").as_bytes())
        .context("telling the guardian, a /bin/sh, what to clear up")
}

fn spawn() -> Result<Child> {
    let child = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("starting /bin/sh, which clears up at the end")?;
    // SAFETY: `at_exit` has the signature that atexit takes and does not unwind.
    let registered = unsafe { libc::atexit(at_exit) };
    if registered != 0 {
        bail!("atexit takes no further handler");
    }
    Ok(child)
}

extern "C" fn at_exit() {
    let guardian = {
        let mut guardian = GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *guardian, Guardian::Dismissed)
    };
    if let Guardian::Watching(mut child) = guardian {
        drop(child.stdin.take()); // The end of its work list.
        // Every child that ends is taken note of here, not the guardian alone: one that no one
        // waited for would look alive to it, and be waited for in vain.
        loop {
            // SAFETY: waitpid may be given nowhere to put the status; it touches no other memory.
            let ended = unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
            let error = std::io::Error::last_os_error();
            let interrupted = ended == -1 && error.kind() == std::io::ErrorKind::Interrupted;
            if !interrupted && (ended == -1 || u32::try_from(ended) == Ok(child.id())) {
                break;
            }
        }
    }
}
