//! The databases that those of tests are copies of, made when first asked for, and how one is dropped.
//!
//! Knows what `docs/ROLES.md` has done to a cluster and a database; `database` copies for a test, and counts on that.

use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use outbox_migrations::Set;
use tokio::sync::OnceCell;

use crate::{
    host,
    postgres::{PASSWORD, Postgres},
    rights::{Role, documented, named},
    wait,
};

/// What the writers of `load` need to number events: not part of the product.
const SEQUENCES: &str = "
    create schema test;
    create table test.lanes (lane text primary key, last bigint not null);
    grant usage on schema test to outbox_writer;
    grant select, insert, update on test.lanes to outbox_writer;
";

/// How long a session that is told to end may take.
const ENDS: Duration = Duration::from_secs(5);

/// Drops a database, with its slots: whoever is connected to it is cut off.
pub(crate) async fn remove(postgres: &Postgres, name: &str) -> Result<()> {
    let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
    // All at once, and looked for often: the server itself looks every 100 ms whether one has ended, and one
    // after another.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    maintenance.execute(end, &[&name]).await?;
    let left = "select count(*) from pg_stat_activity where datname = $1";
    // Whoever stays longer is for `force` below, which tells if it can't.
    let _left = wait::until("its sessions have ended", ENDS, || async {
        match maintenance.query_one(left, &[&name]).await.map(|row| row.get::<_, i64>(0)) {
            Ok(0) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    maintenance
        .execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
             where database = $1",
            &[&name],
        )
        .await?;
    maintenance.batch_execute(&format!("drop database if exists {name} with (force)")).await?;
    Ok(())
}

/// Name that no other test of this or another run has; letters, digits and underscores.
pub(crate) fn unique_name(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// The name of the one with the outbox set applied. With it the roles are made.
///
/// # Panics
/// When it can't be made.
pub(crate) async fn outbox(postgres: &'static Postgres) -> String {
    named_by(&postgres.outbox_template, Box::pin(make_outbox(postgres))).await
}

/// The name of the one with both sets applied.
///
/// # Panics
/// When it can't be made.
pub(crate) async fn inbox(postgres: &'static Postgres) -> String {
    named_by(&postgres.inbox_template, Box::pin(make_inbox(postgres))).await
}

async fn named_by(
    cell: &OnceCell<Result<String, String>>,
    make: impl Future<Output = Result<String>>,
) -> String {
    let make = async { make.await.map_err(|error| format!("making a template: {error:#}")) };
    match cell.get_or_init(|| make).await {
        Ok(name) => name.clone(),
        Err(error) => panic!("{error}"),
    }
}

/// Roles once per cluster, then one database as `docs/ROLES.md` has it made.
async fn make_outbox(postgres: &'static Postgres) -> Result<String> {
    let name = unique_name("outbox_template_");
    let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
    maintenance.batch_execute(&documented(0, &name)?).await.context("creating the roles")?;
    // Of the cluster, so once: two tests that grant it at the same time clash in pg_auth_members.
    let publishes = named("grant outbox_writer to inbox_consumer", &name);
    maintenance.batch_execute(&publishes).await.context("consumers that publish")?;
    for role in Role::ALL {
        let statement = format!("alter role {} password '{PASSWORD}'", role.name());
        maintenance.batch_execute(&statement).await?;
    }
    maintenance.batch_execute(&format!("create database {name} template template0")).await?;
    maintenance.batch_execute(&documented(1, &name)?).await?;
    if postgres.is_external() {
        clear_at_exit(postgres, &name);
    }

    let mut owner = postgres.connect(&postgres.role(&Role::Owner.name(), &name)).await?;
    outbox_migrations::apply(&mut owner, Set::Outbox).await?;
    owner.batch_execute(&documented(2, &name)?).await.context("the grants of docs/ROLES.md")?;
    let superuser = postgres.connect(&postgres.superuser(&name)).await?;
    superuser.batch_execute(&named(SEQUENCES, &name)).await?;
    Ok(name)
}

/// A copy of the other: a migration takes ten times as long as a copy, and hundreds of tests need an inbox.
async fn make_inbox(postgres: &'static Postgres) -> Result<String> {
    let template = outbox(postgres).await;
    let name = unique_name("inbox_template_");
    let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
    maintenance.batch_execute(&format!("create database {name} template {template}")).await?;
    maintenance.batch_execute(&documented(1, &name)?).await?;
    if postgres.is_external() {
        clear_at_exit(postgres, &name);
    }

    let mut owner = postgres.connect(&postgres.role(&Role::Owner.name(), &name)).await?;
    outbox_migrations::apply(&mut owner, Set::Inbox).await?;
    owner.batch_execute(&documented(3, &name)?).await.context("the grants of docs/ROLES.md")?;
    Ok(name)
}

/// A cluster that is not ours keeps neither templates nor roles. Only an orderly exit does this: a
/// killed run leaves them, named by its process id.
fn clear_at_exit(postgres: &'static Postgres, template: &str) {
    static TEMPLATES: Mutex<Vec<(&Postgres, String)>> = Mutex::new(Vec::new());
    extern "C" fn clear() {
        let templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(&(postgres, _)) = templates.first() else { return };
        let cleared = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                for (postgres, template) in templates {
                    remove(postgres, &template).await?;
                }
                let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
                for role in Role::ALL {
                    maintenance.batch_execute(&format!("drop role {}", role.name())).await?;
                }
                anyhow::Ok(())
            })
        })
        .join();
        if let Ok(Err(error)) = cleared {
            host::report(&format!("clearing OUTBOX_TEST_POSTGRES: {error:#}"));
        }
    }
    let mut templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
    templates.push((postgres, template.to_owned()));
    if templates.len() == 1 {
        // SAFETY: `clear` has the signature that atexit takes and does not unwind: the thread
        // that may panic is joined.
        let registered = unsafe { libc::atexit(clear) };
        assert_eq!(registered, 0, "atexit takes a handler");
    }
}
