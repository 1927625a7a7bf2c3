//! The disk of the consumer's database is full: nothing can be stored, and that is no message's fault.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use outbox_harness::{database::Database, postgres::Postgres, wait};
use outbox_idempotency::{Message, Processor, Retry, Tx};
use outbox_relay::throwaway::LocalPostgres;
use tokio_postgres::error::SqlState;

use super::effects::{
    Step, assert_once_and_in_order, database_in, effects, inbox, message, number, take,
};

/// Small enough to be filled in a moment, and large enough for an empty database.
const SIZE: &str = "size=48m";
/// Any user but root.
const NOBODY: u32 = 65534;

/// In place of the server: it gives itself a mount of its own, which ends with it. Within a user namespace anyone
/// may mount, and is root there, as which PostgreSQL does not run: in a second one it has its own number again.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare --user --map-root-user --mount sh -c '
    uid=$1 gid=$2; shift 2
    mount -t tmpfs -o SIZE,mode=0700 small "AT" &&
    exec unshare --user --map-user="$uid" --map-group="$gid" "SERVER" "$@"
' sh "$(id -u)" "$(id -g)" "$@"
"#;

/// A server that alone sees a small disk at `at`.
async fn server_with_a_small_disk(dir: &Path, at: &Path) -> (&'static Postgres, LocalPostgres) {
    let theirs = Postgres::programs();
    let ours = dir.join("bin");
    fs::create_dir(&ours).expect("made");
    for entry in fs::read_dir(&theirs).expect("PostgreSQL's programs") {
        let program = entry.expect("a program").path();
        let name = program.file_name().expect("a name");
        if name != "postgres" {
            symlink(&program, ours.join(name)).expect("a link");
        }
    }
    let server = theirs.join("postgres");
    let script = SCRIPT.replace("SIZE", SIZE).replace("AT", &at.display().to_string());
    let script = script.replace("SERVER", &server.display().to_string());
    let path = ours.join("postgres");
    fs::write(&path, script).expect("written");
    // A server of root's runs as another user.
    for (path, mode) in [(dir, 0o755), (at, 0o755), (ours.as_path(), 0o755), (&path, 0o755)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode is set");
    }
    let mut version = Command::new(&path);
    version.arg("--version");
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        version.uid(NOBODY).gid(NOBODY);
    }
    let version = version.output().expect("the script runs");
    assert!(
        version.status.success(),
        "a full disk needs a mount in a user namespace, and this user may not make one ({}). As root, type: \
         sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1 \
         kernel.apparmor_restrict_unprivileged_userns=0 (each that this kernel has); in a container, run it \
         with --security-opt seccomp=unconfined",
        String::from_utf8_lossy(&version.stderr).trim()
    );
    Postgres::private_of(&ours).await
}

/// Takes all the room that there is.
async fn fill(database: &Database) {
    let make = "create table filler (t text) with (autovacuum_enabled = off); \
                alter table filler alter t set storage external";
    database.superuser().batch_execute(make).await.expect("a table");
    for rows in [1_000, 100, 1] {
        let insert =
            format!("insert into filler select repeat('x', 8000) from generate_series(1, {rows})");
        loop {
            match database.superuser().batch_execute(&insert).await {
                Ok(()) => {}
                Err(error) if error.code() == Some(&SqlState::DISK_FULL) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn make_room(database: &Database) {
    database.superuser().batch_execute("drop table filler").await.expect("dropped");
    // What was dropped goes with the next checkpoint.
    database.superuser().batch_execute("checkpoint").await.expect("a checkpoint");
}

/// How often the server has said that there is no room.
fn refusals(server: &LocalPostgres) -> usize {
    let log = std::fs::read(server.log()).unwrap_or_default();
    String::from_utf8_lossy(&log).matches("No space left on device").count()
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_counts_no_attempt() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("small");
    fs::create_dir(&at).expect("made");
    let (postgres, server) = server_with_a_small_disk(dir.path(), &at).await;
    let maintenance = Database::create_empty_in(postgres, "").await;
    let space = format!("create tablespace small location '{}'", at.display());
    maintenance.superuser().batch_execute(&space).await.expect("a tablespace");
    let database = database_in(postgres, "tablespace small").await;
    let calls = Arc::new(AtomicUsize::new(0));
    // The handler's own table is full, or the inbox's.
    let handler = |stores: bool| {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            calls.fetch_add(1, SeqCst);
            async move {
                if stores {
                    let more = "insert into more select repeat('x', 4000)";
                    tx.execute(more, &[]).await?;
                    take(&tx, &message.payload).await?;
                }
                Ok(())
            }
        }
    };
    let more = "create table more (t text); alter table more alter t set storage external; \
                grant insert on more to public";
    database.superuser().batch_execute(more).await.expect("a table");
    let retry = Retry::default().attempts(1);
    for (stores, key, count) in [(true, "a", 100), (false, "b", 2_000)] {
        let processor = Processor::new(inbox(&database).await, handler(stores)).retry(retry);
        let messages: Vec<_> = (1..=count).map(|n| message(key, n)).collect();
        calls.store(0, SeqCst);
        fill(&database).await;
        let before = refusals(&server);
        let waiting = tokio::spawn({
            let processor = processor.clone();
            async move { processor.process(&messages).await }
        });
        wait::until("it tries again and again", wait::PATIENCE, || async {
            let tries = refusals(&server) - before;
            if tries >= 4 { Ok(()) } else { Err(format!("{tries} tries")) }
        })
        .await
        .expect("there is no room");
        assert!(!waiting.is_finished(), "it waits");
        make_room(&database).await;
        waiting.await.expect("no panic").expect("settled");
        let called = calls.load(SeqCst);
        let taken = usize::try_from(count).expect("few");
        assert!(called >= taken && (stores || called == taken), "{called} calls for {count}");
    }
    assert_once_and_in_order(
        &effects(&database).await,
        (1..=100).map(|n| Step { key: "a".into(), n }),
    );
    let aside =
        "select (select count(*) from inbox.parked) + (select count(*) from inbox.dead_letters)";
    assert_eq!(number(&database, aside).await, 0, "a full disk is nobody's fault");
    let taken = "select count(*) from inbox.messages";
    assert_eq!(number(&database, taken).await, 2_100);
}
