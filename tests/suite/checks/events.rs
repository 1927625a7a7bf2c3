//! What `check` finds about the table of events, and about a look at its rows that does not end.

use outbox_harness::Harness;

use super::{Finding, check, named, problems};
use crate::{obeyed::typed, retries::undecodable::odd_column, rows::run};

/// A cast that the server does not interrupt, as it does not where it writes out a value of hundreds of MB.
const SLOW: &str = "create function public.slow(public.odd) returns text language plpgsql as $$ \
    begin perform pg_sleep(20); return ''; \
    exception when query_canceled then perform pg_sleep(20); return ''; end $$; \
    create cast (public.odd as text) with function public.slow(public.odd); \
    grant execute on function public.slow(public.odd) to public";

#[tokio::test]
async fn a_look_at_rows_that_takes_too_long_is_named_and_what_was_seen_before_is_told() {
    let t = Harness::start().await;
    odd_column(&t).await;
    run(&t, SLOW).await;
    run(&t, "insert into outbox.events (topic, odd) values ('x', 'odd')").await;
    let found = check(&t.relay().set("outbox.columns.key", "odd")).await;
    let late = problems(&found);
    assert_eq!(late.len(), 1, "{found:#?}");
    let seen = "it answers, but a look at the newest events in outbox.events";
    assert!(late[0].seen.starts_with(seen), "{late:?}");
    assert!(!late[0].remedy.contains("is up"), "{late:?}");
    assert_eq!(named(&found, "migrations").verdict, "ok");
}

#[tokio::test]
async fn a_constraint_that_the_table_of_events_has_lost_is_named_and_its_statement_adds_it() {
    let t = Harness::start().await;
    let settings = t.relay();
    let lost = |found: &[Finding]| {
        let found = found.iter().find(|it| it.seen.contains("events_bytes"));
        found.map(|it| (it.verdict.clone(), it.remedy.clone()))
    };
    assert_eq!(lost(&check(&settings).await), None);
    run(&t, "alter table outbox.events drop constraint events_bytes").await;
    let (verdict, remedy) = lost(&check(&settings).await).expect("it is found");
    assert_eq!(verdict, "warning");
    run(&t, typed(&remedy, "events_bytes")).await;
    assert_eq!(lost(&check(&settings).await), None);
}
