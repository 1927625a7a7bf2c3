//! Whatever somebody has the inbox forget is noted in the database and told by the consumer, with what it means.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_harness::{
    database::{Database, Role},
    postgres::Postgres,
    postgres_version::Version,
    wait,
};
use outbox_idempotency::{
    Alert, Inbox, InboxError, Loss, LossKind, Message, Processor, RawMessage, Stop, Tx,
};
use outbox_migrations::recreate_inbox;
use outbox_relay::throwaway::Shutdown;

use super::{
    effects::{Step, database, database_in, effects, inbox, message, number, take},
    watermark::{published, watermark},
};
use crate::grants::change;

pub(super) async fn handle(
    tx: Tx,
    message: Message<Step>,
) -> Result<(), outbox_idempotency::Failure> {
    take(&tx, &message.payload).await?;
    Ok(())
}

/// Today, as in the names of partitions and as it is told; not right before midnight.
pub(super) async fn today(database: &Database) -> (String, String) {
    let left = "select greatest(0, 60 - (86400 - extract(epoch from now())::bigint % 86400))";
    let left = u64::try_from(number(database, left).await).expect("seconds");
    if left > 0 {
        tokio::time::sleep(Duration::from_secs(61)).await;
    }
    let today = "select to_char(d, 'YYYYMMDD'), to_char(d, 'YYYY-MM-DD') from (select now() at time zone 'utc') as x (d)";
    let row = database.superuser().query_one(today, &[]).await.expect("a day");
    (row.get(0), row.get(1))
}

pub(super) async fn losses(inbox: &Inbox) -> Vec<Loss> {
    inbox.losses().await.expect("they are read")
}

/// What there is to be told, and the same messages once more: each takes effect again.
async fn forgets(database: &Database, harm: &str, kind: LossKind) {
    let (number_of_day, day) = today(database).await;
    let harm = harm.replace("TODAY", &number_of_day);
    let messages: Vec<RawMessage> = vec![message("a", 1), message("b", 1)];
    let processor = Processor::new(inbox(database).await, handle);
    processor.process(&messages).await.expect("settled");
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(database).await.len(), 2, "{harm}");
    assert_eq!(losses(processor.inbox()).await, [], "{harm}");
    change(database, &harm).await;
    // One that runs, and one that is started later.
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(database).await.len(), 4, "{harm}: what is forgotten takes effect again");
    for inbox in [processor.inbox().clone(), inbox(database).await] {
        let [loss] = &losses(&inbox).await[..] else {
            panic!("{harm}: {:?}", losses(&inbox).await)
        };
        assert_eq!(loss.kind, kind, "{harm}");
        let (first, last) = loss.days.as_ref().expect("days");
        assert!(*first <= day && day <= *last, "{harm}: {loss:?}");
        let text = loss.to_string();
        assert!(text.contains("takes effect again") && text.contains(&day), "{text}");
        let remedy = text.rsplit_once("dealt with it: ").expect("what to type").1;
        assert!(remedy.starts_with("delete from inbox.losses"), "{text}");
    }
    let told = told_by_another(database).await;
    assert!(told.iter().any(|loss| loss.kind == kind), "{harm}: {told:?}");
    // By the owner, as it says.
    let done = losses(processor.inbox()).await.first().expect("it is there still").to_string();
    let done = done.rsplit_once("dealt with it: ").expect("what to type").1.to_owned();
    database.connect(Role::Owner).await.batch_execute(&done).await.expect("the owner may");
    assert_eq!(losses(processor.inbox()).await, [], "{harm}");
    change(database, "delete from effects").await;
}

/// What a process raises that was started afterwards.
async fn told_by_another(database: &Database) -> Vec<Loss> {
    let (processor, told) = telling(Processor::new(inbox(database).await, handle));
    let heard = wait::until("it is told", wait::PATIENCE, || async {
        if told.lock().expect("no panic").is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        heard = heard => heard.expect("an alert"),
    }
    let told = told.lock().expect("no panic");
    told.clone()
}

fn telling(processor: Processor) -> (Processor, Arc<Mutex<Vec<Loss>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    let processor = processor.on_alert(move |alert| {
        if let Alert::Forgotten { loss, .. } = alert {
            hook.lock().expect("no panic").push(loss.clone());
        }
    });
    (processor, told)
}

const HARMS: [(&str, LossKind); 6] = [
    ("truncate inbox.messages", LossKind::Truncated),
    ("truncate inbox.messages_TODAY", LossKind::Truncated),
    ("delete from inbox.messages", LossKind::Deleted),
    ("delete from inbox.messages_TODAY where consumer_id = 1", LossKind::Deleted),
    ("drop table inbox.messages_TODAY", LossKind::Dropped),
    (
        "set session_replication_role = replica; truncate inbox.messages; reset session_replication_role",
        LossKind::Truncated,
    ),
];

#[tokio::test]
async fn days_that_are_truncated_deleted_or_dropped_are_told_whoever_does_it() {
    let database = database().await;
    for (harm, kind) in HARMS {
        forgets(&database, harm, kind).await;
    }
}

#[tokio::test]
async fn days_that_are_forgotten_are_told_on_postgresql_14() {
    let (postgres, mut server) = Postgres::private_version(Version::V14).await;
    let database = database_in(postgres, "").await;
    for (harm, kind) in HARMS {
        forgets(&database, harm, kind).await;
    }
    server.stop(Shutdown::Immediate).expect("it ends");
}

#[tokio::test]
async fn what_forgets_nothing_is_not_told() {
    let database = database().await;
    change(&database, "truncate inbox.messages; delete from inbox.messages").await;
    let processor = Processor::new(inbox(&database).await, handle);
    processor.process(&[message("a", 1)]).await.expect("settled");
    change(
        &database,
        "begin; truncate inbox.messages, inbox.consumers, inbox.watermarks; rollback",
    )
    .await;
    // What the inbox itself drops, and what it makes ahead.
    change(&database, "update inbox.settings set retention_days = 5, ahead_days = 9").await;
    let days = "select count(*) from pg_inherits where inhparent = 'inbox.messages'::regclass";
    let oldest = "select ((now() at time zone 'utc')::date - oldest)::bigint from inbox.window()";
    wait::until("old days are dropped", wait::PATIENCE, || async {
        processor.inbox().maintain().await.expect("maintained");
        match number(&database, days).await {
            15 => Ok(()),
            some => Err(format!("{some} days")),
        }
    })
    .await
    .expect("no one is in the way for long");
    change(&database, "update inbox.settings set retention_days = 30").await;
    processor.inbox().maintain().await.expect("maintained");
    assert_eq!(number(&database, oldest).await, 5, "what was dropped is not made again");
    assert_eq!(losses(processor.inbox()).await, []);
    // Another consumer's.
    let other = Inbox::open(database.pool(Role::Consumer, 2), "another").await.expect("opened");
    change(&database, "delete from inbox.messages").await;
    assert_eq!(losses(&other).await, []);
    assert_eq!(losses(processor.inbox()).await.len(), 1);
}

#[tokio::test]
async fn a_consumer_that_runs_tells_it_and_continues() {
    let database = database().await;
    let (processor, told) = telling(Processor::new(inbox(&database).await, handle));
    let running = async {
        processor.process(&[message("a", 1)]).await.expect("settled");
        change(&database, "delete from inbox.messages").await;
        for n in [1, 2] {
            wait::until("it is told", wait::PATIENCE, || async {
                let told = told.lock().expect("no panic").len();
                if told == n { Ok(()) } else { Err(format!("{told}")) }
            })
            .await
            .expect("an alert");
            processor.process(&[message("a", 1)]).await.expect("settled");
            change(&database, "truncate inbox.messages").await;
        }
    };
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        () = running => {}
    }
    let kinds: Vec<LossKind> =
        told.lock().expect("no panic").iter().map(|loss| loss.kind).collect();
    assert_eq!(kinds, [LossKind::Deleted, LossKind::Truncated]);
    assert_eq!(effects(&database).await.len(), 3);
}

#[tokio::test]
async fn a_day_that_is_detached_is_told_until_it_is_attached_again() {
    let database = database().await;
    let (number_of_day, day) = today(&database).await;
    let messages = [message("a", 1)];
    let processor = Processor::new(inbox(&database).await, handle);
    processor.process(&messages).await.expect("settled");
    let detach =
        format!("alter table inbox.messages detach partition inbox.messages_{number_of_day}");
    change(&database, &detach).await;
    processor.inbox().maintain().await.expect("maintained");
    processor.inbox().maintain().await.expect("maintained");
    processor.process(&messages).await.expect("settled");
    let letters = "select count(*) from inbox.dead_letters where code = 'outside-window'";
    assert_eq!(number(&database, letters).await, 1, "it is not taken for new");
    let found = losses(processor.inbox()).await;
    let [loss] = &found[..] else { panic!("{found:?}") };
    assert_eq!((loss.kind, loss.days.clone()), (LossKind::Detached, Some((day.clone(), day))));
    let text = loss.to_string();
    let remedy = text.rsplit_once("for each day: ").expect("what to type").1;
    database.connect(Role::Owner).await.batch_execute(remedy).await.expect("attached");
    assert_eq!(losses(processor.inbox()).await, []);
    processor.inbox().maintain().await.expect("maintained");
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(&database).await.len(), 1, "nothing is forgotten");
    assert_eq!(number(&database, letters).await, 1);
}

#[tokio::test]
async fn a_consumer_whose_row_was_deleted_keeps_its_number_and_forgets_nothing() {
    let database = database().await;
    let messages = [message("a", 1)];
    Processor::new(inbox(&database).await, handle).process(&messages).await.expect("settled");
    let id = "select id::bigint from inbox.consumers where name = 'billing'";
    let before = number(&database, id).await;
    for harm in [
        "delete from inbox.consumers",
        "truncate inbox.consumers",
        "truncate inbox.consumers restart identity",
    ] {
        change(&database, harm).await;
        // One that is new does not come to remember what another one has taken.
        let name = format!("another after {harm}");
        let other = Inbox::open(database.pool(Role::Consumer, 2), &name).await.expect("opened");
        drop(other);
        let others = format!("select id::bigint from inbox.consumers where name = '{name}'");
        assert_ne!(number(&database, &others).await, before, "{harm}");
        let processor = Processor::new(inbox(&database).await, handle);
        assert_eq!(number(&database, id).await, before, "{harm}");
        processor.process(&messages).await.expect("settled");
        assert_eq!(effects(&database).await.len(), 1, "{harm}");
        assert_eq!(losses(processor.inbox()).await, [], "{harm}");
    }
}

#[tokio::test]
async fn a_consumer_that_runs_without_its_row_puts_it_back_or_stops_where_another_has_its_name() {
    let database = database().await;
    let processor = Processor::new(inbox(&database).await, handle);
    let messages = [message("a", 1)];
    processor.process(&messages).await.expect("settled");
    let id = "select coalesce(max(id), 0)::bigint from inbox.consumers where name = 'billing'";
    let before = number(&database, id).await;
    // Without a note, as where somebody has disabled the triggers.
    let without = "alter table inbox.consumers disable trigger all; delete from inbox.consumers; \
        alter table inbox.consumers enable always trigger note_delete";
    change(&database, without).await;
    let back = wait::until("it is there again", wait::PATIENCE, || async {
        let now = number(&database, id).await;
        if now == before { Ok(()) } else { Err(format!("{now}")) }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        back = back => back.expect("under its number"),
    }
    let another = "update inbox.consumers set id = id + 100";
    change(&database, another).await;
    let Stop::Inbox(InboxError::Setting(text)) = processor.background().await else {
        panic!("it has two numbers")
    };
    let remedy = text.rsplit_once("inbox: ").expect("what to type").1;
    database.connect(Role::Owner).await.batch_execute(remedy).await.expect("corrected");
    let processor = Processor::new(inbox(&database).await, handle);
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(&database).await.len(), 1);
}

#[tokio::test]
async fn without_its_watermark_a_partition_is_not_read_before_someone_decides() {
    let database = database().await;
    let open = async || Processor::new(inbox(&database).await, handle).dedup(watermark());
    for (offset, harm) in (0..).zip([
        "delete from inbox.watermarks",
        "truncate inbox.watermarks",
        "delete from inbox.watermarks; delete from inbox.applied",
        "drop table inbox.watermarks",
    ]) {
        let place = u64::try_from(offset).expect("a few") + 10;
        let new = [published("a", 1, place, offset)];
        open().await.process(&new).await.expect("settled");
        let before = effects(&database).await.len();
        change(&database, harm).await;
        let noted = !harm.starts_with("drop");
        if !noted {
            let mut owner = database.connect(Role::Owner).await;
            recreate_inbox(&mut owner).await.expect("recreated");
            database.grant().await;
        }
        let processor = open().await;
        let stop = processor.process(&new).await.expect_err(harm);
        let Stop::Inbox(InboxError::Unsafe(text)) = stop else { panic!("{harm}: {stop:?}") };
        assert!(text.contains("steps/0"), "{harm}: {text}");
        let kinds: Vec<LossKind> =
            losses(processor.inbox()).await.iter().map(|loss| loss.kind).collect();
        let expected: &[LossKind] = if noted { &[LossKind::Watermark] } else { &[] };
        assert_eq!(kinds, expected, "{harm}");
        let (back, anew) = text.rsplit_once(". Or, ").expect("two ways");
        let back = back.rsplit_once("inbox: ").map(|(_, back)| back);
        let anew = anew.rsplit_once("effect again: ").expect("what to type").1;
        let anew = anew.strip_suffix(". Then start them").expect("what to do then");
        // It is not known without a note where it was.
        assert_eq!(back.is_some(), noted, "{text}");
        let owner = database.connect(Role::Owner).await;
        owner.batch_execute(back.unwrap_or(anew)).await.expect("decided");
        let processor = open().await;
        processor.process(&new).await.expect("it continues");
        let again = usize::from(!noted);
        assert_eq!(effects(&database).await.len(), before + again, "{harm}");
        assert_eq!(losses(processor.inbox()).await, [], "{harm}");
    }
    // The other way, where it is noted.
    let last = [published("a", 1, 90, 90)];
    open().await.process(&last).await.expect("settled");
    change(&database, "delete from inbox.watermarks").await;
    let stop = open().await.process(&last).await.expect_err("it is gone").to_string();
    assert!(stop.contains("the inbox can't continue"), "{stop}");
    let text = losses(open().await.inbox()).await[0].to_string();
    let anew = text.rsplit_once("effect again: ").expect("what to type").1;
    let anew = anew.strip_suffix(". Then start them").expect("what to do then");
    database.connect(Role::Owner).await.batch_execute(anew).await.expect("decided");
    open().await.process(&last).await.expect("it begins anew");
    assert_eq!(losses(open().await.inbox()).await, []);
}
