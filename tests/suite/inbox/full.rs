//! The disk of the consumer's database is full: nothing can be stored, and that is no message's fault.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use outbox_harness::{database::Database, host, postgres::Postgres, wait};
use outbox_idempotency::{Message, Processor, Retry, Tx};
use outbox_relay::throwaway::LocalPostgres;
use tokio_postgres::error::SqlState;

use super::effects::{
    Step, assert_once_and_in_order, database_in, effects, inbox, message, number, take,
};

/// Small enough to be filled in a moment, and large enough for an empty database.
const SIZE: &str = "size=48m";

/// A server that alone sees a small disk at `at`: a mount of its own, which ends with it. Only root may.
async fn server_with_a_small_disk(at: &Path) -> (&'static Postgres, LocalPostgres) {
    let (at, runtime) = (at.to_owned(), tokio::runtime::Handle::current());
    let started = std::thread::spawn(move || {
        // SAFETY: it changes which mounts this thread sees, and what it starts; the thread ends here.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "a namespace of its own");
        let run = |program: &str, arguments: &[&str]| {
            let status = Command::new(program).args(arguments).arg(&at).status();
            assert!(status.expect("it runs").success(), "{program} {arguments:?}");
        };
        let private = Command::new("mount").args(["--make-rprivate", "/"]).status();
        assert!(private.expect("it runs").success(), "nobody else sees what is mounted");
        run("mount", &["-t", "tmpfs", "-o", SIZE, "small"]);
        let (postgres, server) = runtime.block_on(Postgres::private());
        let theirs = std::fs::metadata(server.socket_dir()).expect("the server's directory");
        run("chown", &[&format!("{}:{}", theirs.uid(), theirs.gid())]);
        (postgres, server)
    });
    tokio::task::spawn_blocking(move || started.join().expect("the server starts"))
        .await
        .expect("joined")
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
    // SAFETY: geteuid has no preconditions and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        host::report("a full disk was NOT TESTED: only root may mount a small one");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (postgres, server) = server_with_a_small_disk(dir.path()).await;
    let maintenance = Database::create_empty_in(postgres, "").await;
    let space = format!("create tablespace small location '{}'", dir.path().display());
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
