//! The same text of SQL may mean other tables and other types in the next message: what was prepared for one message
//! decides nothing in another.

use std::time::{Duration, SystemTime};

use outbox_harness::database::Database;
use outbox_idempotency::{Failure, Message, Processor, Retry, Tx};

use super::{
    effects::{Step, database, effects, message, number, take},
    sessions::{DEAD, one_session, work_off},
};

const PARKED: &str = "select count(*) from inbox.parked_lanes";

/// Two tenants whose tables have the same names and other columns, with a function that changes the search path
/// without a word of that in the handler's text.
async fn tenants(database: &Database) {
    let sql = format!(
        "create schema a; create schema b; \
         create table a.rows (n bigint, at timestamptz); create table b.rows (n int, at timestamp); \
         create function enter(tenant text) returns void language plpgsql as \
             $$ begin perform set_config('search_path', tenant || ', public', true); end $$; \
         grant usage on schema a, b to public; grant all on all tables in schema a, b to public; \
         alter database {} set timezone = 'Asia/Kolkata'",
        database.name()
    );
    database.superuser().batch_execute(&sql).await.expect("tenants");
}

fn retry() -> Retry {
    Retry::exponential(Duration::from_millis(1), Duration::from_millis(5)).attempts(3)
}

#[tokio::test]
async fn a_parameter_has_the_type_of_the_table_that_the_message_means() {
    let database = database().await;
    tenants(&database).await;
    for (how, path) in [("words", "set local search_path = "), ("function", "")] {
        database.superuser().batch_execute("delete from effects").await.expect("none");
        let handler = move |tx: Tx, message: Message<Step>| async move {
            let Step { key, n } = &message.payload;
            take(&tx, &message.payload).await?;
            match path {
                "" => tx.execute("select enter($1)", &[key]).await?,
                path => tx.execute(&format!("{path}{key}, public"), &[]).await?,
            };
            let insert = "insert into rows (n) values ($1)";
            match key.as_str() {
                "a" => tx.execute(insert, &[&i64::from(*n)]).await?,
                _ => tx.execute(insert, &[n]).await?,
            };
            Ok::<_, Failure>(())
        };
        let processor = Processor::new(one_session(&database).await, handler).retry(retry());
        for n in 1..=4 {
            for key in ["a", "b"] {
                processor.process(&[message(key, n)]).await.expect("settled");
            }
        }
        assert_eq!(effects(&database).await.len(), 8, "{how}: each at its first attempt");
        assert_eq!(number(&database, DEAD).await, 0, "{how}");
    }
}

#[tokio::test]
async fn a_time_has_the_meaning_of_the_column_that_the_message_means() {
    let database = database().await;
    tenants(&database).await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        let path = format!("set local search_path = {}", message.payload.key);
        tx.execute(&path, &[]).await?;
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(3600);
        tx.execute("insert into rows (at) values ($1)", &[&at]).await?;
        Ok::<_, Failure>(())
    };
    let processor = Processor::new(one_session(&database).await, handler).retry(retry());
    for (key, n) in [("b", 1), ("a", 1), ("b", 2)] {
        processor.process(&[message(key, n)]).await.expect("settled");
    }
    for (rows, time, count) in [
        ("a.rows", "timestamptz '1970-01-01 01:00:00+00'", 1),
        ("b.rows", "timestamp '1970-01-01 01:00:00'", 2),
    ] {
        let at = format!("select count(*) from {rows} where at = {time}");
        assert_eq!(number(&database, &at).await, count, "{rows}");
    }
}

#[tokio::test]
async fn a_temporary_table_of_one_message_gives_its_types_to_no_other() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        if message.payload.key == "a" {
            tx.batch_execute("create temporary table effects (key text, n bigint)").await?;
            let (key, n) = (&message.payload.key, i64::from(message.payload.n));
            tx.execute("insert into effects (key, n) values ($1, $2)", &[key, &n]).await?;
            return Ok::<_, Failure>(());
        }
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let processor = Processor::new(one_session(&database).await, handler).retry(retry());
    for (key, n) in [("a", 1), ("b", 1), ("a", 2), ("b", 2)] {
        processor.process(&[message(key, n)]).await.expect("settled");
    }
    assert_eq!(effects(&database).await.len(), 2);
    assert_eq!(number(&database, DEAD).await, 0);
}

#[tokio::test]
async fn what_a_message_has_the_server_forget_is_missed_by_no_other() {
    let database = database().await;
    let sql = "create type mood as enum ('x'); create type tone as enum ('y'); \
               create function forget() returns void language plpgsql as \
                   $$ begin execute 'deallo' || 'cate all'; end $$";
    database.superuser().batch_execute(sql).await.expect("types");
    for forget in ["deallocate all", "discard all", "select forget()"] {
        let none = "delete from effects; delete from inbox.dead_letters";
        database.superuser().batch_execute(none).await.expect("none");
        let handler = move |tx: Tx, message: Message<Step>| async move {
            take(&tx, &message.payload).await?;
            if message.payload.key == "a" {
                tx.query("select $1::text::mood", &[&"x"]).await?;
                // DISCARD ALL is refused within a transaction: that is the handler's to know.
                tx.batch_execute("savepoint s").await?;
                if tx.batch_execute(forget).await.is_err() {
                    tx.batch_execute("rollback to s").await?;
                }
                if message.payload.n == 3 {
                    return Err(Failure::transient("to the end"));
                }
            } else {
                // The driver asks for a type that it has not met.
                tx.query("select $1::text::tone", &[&"y"]).await?;
            }
            Ok::<_, Failure>(())
        };
        let processor = Processor::new(one_session(&database).await, handler).retry(retry());
        for n in 1..=3 {
            for key in ["a", "b"] {
                processor.process(&[message(key, n)]).await.expect("settled");
            }
        }
        work_off(&processor, &database, PARKED).await;
        let dead = "select coalesce(string_agg(concat_ws(' ', code, error), '; '), '') \
                    from inbox.dead_letters";
        let row = database.superuser().query_one(dead, &[]).await.expect("dead letters");
        assert_eq!(row.get::<_, String>(0), "transient to the end", "{forget}");
        assert_eq!(effects(&database).await.len(), 5, "{forget}");
    }
}
