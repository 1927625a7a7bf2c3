//! Whatever is set on the role or the database, a promise holds or the inbox is not opened.

use outbox_harness::database::Role;
use outbox_idempotency::{Inbox, InboxError, Message, Once, Processor, Tx};

use super::effects::{Step, database, effects, message, number, take, with};

/// Settings of the role that change what the crate's statements, or a commit, would mean.
const SETTINGS: &[&str] = &[
    "synchronous_commit = off",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_deferrable = on",
    "search_path = pg_temp",
    "search_path = ''",
    "row_security = off",
    "statement_timeout = '2s'",
    "lock_timeout = '2s'",
    "idle_in_transaction_session_timeout = '2s'",
    "timezone = 'Pacific/Kiritimati'",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'iso_8601'",
    "bytea_output = 'escape'",
    "client_encoding = 'LATIN1'",
    "standard_conforming_strings = off",
    "transform_null_equals = on",
    "plpgsql.variable_conflict = 'use_column'",
    "plpgsql.extra_errors = 'all'",
    "check_function_bodies = off",
    "plan_cache_mode = 'force_generic_plan'",
    "constraint_exclusion = off",
    "enable_partition_pruning = off",
    "xmloption = 'document'",
];

#[tokio::test]
async fn settings_of_the_role_and_the_database_weaken_no_promise() {
    for setting in SETTINGS {
        let database = database().await;
        let (consumer, name) = (database.name_of(Role::Consumer), database.name());
        let sql = format!("alter role {consumer} in database {name} set {setting}");
        database.superuser().batch_execute(&sql).await.expect(setting);
        let inbox = Inbox::open(database.pool(Role::Consumer, 2), "billing").await;
        let inbox = inbox.unwrap_or_else(|error| panic!("{setting}: {error:?}"));
        inbox.maintain().await.unwrap_or_else(|error| panic!("{setting}: {error:?}"));
        let handler = |tx: Tx, message: Message<Step>| async move {
            let sql = "select pg_catalog.current_setting('synchronous_commit'), \
                pg_catalog.current_setting('transaction_isolation'), \
                pg_catalog.current_setting('transaction_read_only')";
            let row = tx.query_one(sql, &[]).await?;
            let [commit, isolation, read_only] = [0, 1, 2].map(|n| row.get::<_, String>(n));
            assert_ne!(commit, "off");
            assert_eq!((isolation.as_str(), read_only.as_str()), ("read committed", "off"));
            tx.execute("set local search_path = public", &[]).await?;
            take(&tx, &message.payload).await?;
            Ok(())
        };
        let processor = Processor::new(inbox, handler);
        let dies = with(message("b", 1), |m| m.payload = None);
        let messages = [message("a", 1), dies, message("a", 2)];
        for _ in 0..2 {
            processor.process(&messages).await.unwrap_or_else(|e| panic!("{setting}: {e:?}"));
        }
        assert_eq!(effects(&database).await.len(), 2, "{setting}");
        let dead = "select count(*) from inbox.dead_letters";
        assert_eq!(number(&database, dead).await, 1, "{setting}");
    }
}

#[tokio::test]
async fn a_commit_waits_for_standbys_as_the_role_says() {
    for (set, expected) in [("remote_apply", "remote_apply"), ("local", "local"), ("off", "on")] {
        let database = database().await;
        let (consumer, name) = (database.name_of(Role::Consumer), database.name());
        let sql =
            format!("alter role {consumer} in database {name} set synchronous_commit = {set}");
        database.superuser().batch_execute(&sql).await.expect("set");
        let inbox = Inbox::open(database.pool(Role::Consumer, 1), "billing").await.expect("opens");
        let look = |tx: Tx| async move {
            let row = tx.query_one("select current_setting('synchronous_commit')", &[]).await?;
            row.try_get::<_, String>(0)
        };
        let seen = inbox.once(&message("a", 1).id, look).await.expect("looked");
        assert_eq!(seen, Once::Applied(expected.to_owned()));
    }
}

#[tokio::test]
async fn what_the_consumers_role_may_not_set_right_is_refused_with_what_to_type() {
    for (set, named, remedy) in [
        (
            "alter role CONSUMER in database NAME set session_replication_role = replica",
            "session_replication_role",
            "alter system reset session_replication_role",
        ),
        (
            "alter table inbox.messages enable row level security",
            "inbox.messages",
            "disable row level security",
        ),
        (
            "alter table inbox.parked enable row level security; \
             create policy p on inbox.parked using (true)",
            "inbox.parked",
            "disable row level security",
        ),
    ] {
        let database = database().await;
        let sql = set.replace("CONSUMER", &database.name_of(Role::Consumer));
        let sql = sql.replace("NAME", database.name());
        database.superuser().batch_execute(&sql).await.expect("set");
        let error = Inbox::open(database.pool(Role::Consumer, 1), "billing").await;
        let error = error.expect_err("it weakens a promise");
        assert!(matches!(error, InboxError::Setting(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(named) && text.contains(remedy), "{text}");
    }
}

#[tokio::test]
async fn a_refusal_names_the_migration_or_the_grants_only_where_it_is_about_them() {
    let database = database().await;
    let inbox = Inbox::open(database.pool(Role::Consumer, 1), "billing").await.expect("opens");
    for (damage, words) in [
        ("revoke insert on inbox.messages from ROLE", "grant insert on inbox.messages to"),
        ("alter table inbox.messages rename to others", "migrate --set inbox"),
        (
            "alter table inbox.others rename to messages; grant insert on inbox.messages to ROLE; \
          create function inbox.no() returns trigger language plpgsql as \
          $$ begin raise exception 'on purpose'; end $$; \
          create trigger no before insert on inbox.messages for each row execute function inbox.no()",
            "the database refused",
        ),
    ] {
        let sql = damage.replace("ROLE", &database.name_of(Role::Consumer));
        database.superuser().batch_execute(&sql).await.expect("damaged");
        let once = inbox.once(&message("a", 1).id, |_| async { Ok::<_, InboxError>(()) }).await;
        let error = once.expect_err("refused");
        assert!(error.to_string().contains(words), "{error}");
    }
}
