//! Servers that root starts run as another user, and that user leads root nowhere.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use outbox_harness::wait;
use outbox_relay::throwaway::{self, LocalPostgres, Shutdown};

/// Tries to put a link to `target` in the place of `path`, with the rights of the server's user.
fn plant(path: &Path, target: &Path, user: (u32, u32)) -> bool {
    let mut ln = Command::new("ln");
    ln.uid(user.0).gid(user.1).args(["-sfn"]).arg(target).arg(path);
    ln.output().expect("ln runs").status.success()
}

#[tokio::test]
async fn what_root_opens_for_a_server_is_out_of_reach_of_the_servers_user() {
    let bin = throwaway::installed().expect("an installed PostgreSQL");
    let mut server = LocalPostgres::start(&bin, "secret", &[]).expect("a server");
    let theirs = fs::metadata(server.socket_dir()).expect("its directory");
    let user = (theirs.uid(), theirs.gid());
    let ours = tempfile::tempdir().expect("a directory");
    // SAFETY: geteuid has no preconditions and cannot fail.
    let us = unsafe { libc::geteuid() };
    if user.0 == us {
        // There is but one user, and nothing to keep apart. A user namespace has no second one either, for
        // which root must have given this user subordinate ids. Written past the capture of a test that passes.
        let unchecked = "NOTHING CHECKED: root::what_root_opens_for_a_server_is_out_of_reach_of_the_servers_user \
                         needs root, and this user is not; run it once as root\n";
        std::io::stderr().write_all(unchecked.as_bytes()).expect("said");
        return;
    }
    let victim = ours.path().join("victim");
    fs::write(&victim, "as it was").expect("written");
    let log = server.log();
    for part in log.ancestors().skip(1) {
        assert_eq!(fs::metadata(part).expect("it is there").uid(), us, "{}", part.display());
    }
    server.stop(Shutdown::Fast).expect("it ends");
    assert!(!plant(&log, &victim, user), "the log lies where the server's user may not write");
    for name in ["log", "password", "standby.signal"] {
        assert!(plant(&server.socket_dir().join(name), &victim, user), "its own is its own");
    }
    fs::remove_file(&log).expect("ours");
    server.restart().expect("it starts");
    wait::until("it logs", wait::PATIENCE, || async {
        let logged = fs::read_to_string(&log)?;
        anyhow::ensure!(logged.contains("ready to accept connections"), "{logged}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .expect("to its log");
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "as it was");
    let owner = fs::metadata(&victim).expect("it is there").uid();
    assert_eq!(owner, us, "and nobody was given it");
}
