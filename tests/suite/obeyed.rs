//! Halts and endless retries, one row each: how the state comes about, and what of the text a person
//! types. The command is taken out of the text and run as it stands there; then the events are counted.

mod agreed;
mod columns;
mod home;
mod places;
mod progress;
mod roles;
mod server;
mod stamped;
mod tables;

use outbox_harness::{
    Harness, database::Role, event::Event, postgres::Postgres, relay::Relay, servers, topic::Topic,
    wait,
};
use serde_json::Value;

use crate::{remedies::halted, repair::wait_snapshot};

/// One state.
struct Case {
    /// What somebody does as a superuser while the relay is stopped and three events wait. `{slot}`,
    /// `{relay}` and `{role}` stand for names.
    done: &'static str,
    /// What the relay says, halt after halt, and what is typed of it: the first command in the text that
    /// has these words.
    road: &'static [(&'static str, &'static str)],
}

const DROP: &str = "select pg_drop_replication_slot('{slot}'); ";

const CASES: &[Case] = &[
    Case {
        done: "select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())",
        road: &[("somebody moved the slot", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_logical_replication_slot('{slot}', 'test_decoding')",
        road: &[("with plugin test_decoding", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_physical_replication_slot('{slot}')",
        road: &[("is physical", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)",
        road: &[("two_phase", "pg_drop_replication_slot")],
    },
    Case {
        done: "select pg_create_logical_replication_slot('{slot}', 'pgoutput')",
        road: &[("somebody moved the slot", "pg_drop_replication_slot")],
    },
    Case {
        done: "drop table outbox.dead_letters",
        road: &[("outbox.dead_letters", "outbox-relay migrate")],
    },
    Case {
        done: "alter schema outbox rename to \"The outbox\"",
        road: &[("The outbox", "rename to outbox")],
    },
    Case { done: "drop table outbox.leaders", road: &[("outbox.leaders", "outbox-relay migrate")] },
    // With it goes what the relay knows its own progress by: it takes what is stored, as from a version
    // that knew no keys.
    Case {
        done: "drop table outbox.relay_keys",
        road: &[("outbox.relay_keys", "outbox-relay migrate")],
    },
    Case {
        done: "alter table outbox.relay_keys drop constraint relay_keys_key_check; \
               update outbox.relay_keys set key = '\\x00' where relay = '{relay}'",
        road: &[("can't be read as a key", "delete from outbox.relay_keys")],
    },
    // As where another's key was put there: what is stored is no one's that this relay knows.
    Case {
        done: "update outbox.relay_keys set key = sha256('another') where relay = '{relay}'",
        road: &[("that this relay did not store", "resume --at slot")],
    },
    // Of a column that is dropped `migrate` says that all is up to date.
    Case {
        done: "alter table outbox.leaders drop column pid",
        road: &[("outbox.leaders lacks the column pid", "add column pid")],
    },
    Case {
        done: "alter table outbox.leaders drop column slot",
        road: &[("outbox.leaders lacks the column slot", "add column slot")],
    },
    Case {
        done: "alter table outbox.leaders alter column pid type text",
        road: &[("pid of outbox.leaders is of type text", "alter column pid type integer")],
    },
    Case {
        done: "alter table outbox.relay_keys drop column key",
        road: &[("outbox.relay_keys lacks the column key", "add column key")],
    },
    Case {
        done: "alter table outbox.relay_keys drop column delivered_at",
        road: &[("outbox.relay_keys lacks the column delivered_at", "add column delivered_at")],
    },
    Case {
        done: "select pg_drop_replication_slot('{slot}'); \
               alter table outbox.deletions drop column newest",
        road: &[("outbox.deletions lacks the column newest", "add column newest")],
    },
    Case {
        done: "revoke update on outbox.dead_letters from {role}",
        road: &[("lacks update on outbox.dead_letters", "grant update")],
    },
];

/// A relay that has published one event.
pub(crate) async fn published(t: &mut Harness, topic: &Topic, event: Event) -> Relay {
    let relay = t.relay().start().await;
    t.commit([event]).await;
    t.count(topic, 1).await.assert_exactly_once();
    relay
}

/// The same, with a topic of one partition.
pub(crate) async fn one_published() -> (Harness, Topic, Relay) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = published(&mut t, &topic, Event::to(topic.name()).key("k")).await;
    (t, topic, relay)
}

/// The same, once a snapshot is stored and the relay has stopped: a position inside its transaction would have
/// `resume` send that again.
pub(crate) async fn one_published_and_stopped() -> (Harness, Topic, Relay) {
    let (t, topic, mut relay) = one_published().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    (t, topic, relay)
}

/// Between backticks is what is typed.
pub(crate) fn typed<'a>(text: &'a str, words: &str) -> &'a str {
    let mut commands = text.split('`').skip(1).step_by(2);
    commands.find(|one| one.contains(words)).unwrap_or_else(|| panic!("no {words} in: {text}"))
}

pub(crate) async fn obey(t: &Harness, command: &str) {
    let Some(arguments) = command.strip_prefix("outbox-relay ") else {
        let done = t.database().superuser().batch_execute(command).await;
        return done.unwrap_or_else(|error| panic!("{command}: {error:?}"));
    };
    let mut settings = t.relay();
    if arguments == "migrate" {
        settings = settings.set("postgres.url", &t.database().url(Role::Owner));
    }
    let mut arguments: Vec<&str> = arguments.split(' ').collect();
    let mut output = settings.command(&arguments).await;
    // Whoever has broken nothing else agrees to what is asked.
    let asked = String::from_utf8_lossy(&output.stderr).contains("counts as published");
    if asked && !output.status.success() {
        arguments.push("--yes");
        output = settings.command(&arguments).await;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if arguments == ["migrate"] {
        // "… then grant what docs/ROLES.md lists".
        t.database().grant_outbox().await;
    }
}

/// The halt that speaks of this; the relay may still be at the one before.
pub(crate) async fn says(relay: &Relay, words: &str) -> String {
    wait::until(words, wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let text = |name| status.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("phase") == "halted" && text("detail").contains(words) {
            true => Ok(text("detail").to_owned()),
            false => Err(status.to_string()),
        }
    })
    .await
    .expect("it says so")
}

async fn is_obeyed(case: &Case) {
    is_obeyed_in(Harness::start().await, case).await;
}

async fn is_obeyed_in(mut t: Harness, case: &Case) {
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k"), Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let (name, role) = (t.database().name().to_owned(), t.database().name_of(Role::Relay));
    let makes_slot = case.done.starts_with("select pg_create");
    let done = [if makes_slot { DROP } else { "" }, case.done].concat();
    let done = done.replace("{slot}", &format!("outbox_{name}"));
    let done = done.replace("{relay}", &name).replace("{role}", &role);
    for statement in done.split("; ") {
        let run = t.database().superuser().batch_execute(statement).await;
        run.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    relay.restart();
    halted(&relay).await;
    for (words, command) in case.road {
        let detail = says(&relay, words).await;
        obey(&t, typed(&detail, command)).await;
    }
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.lost, count.duplicated), (0, 0), "{}: {count}", case.done);
}

#[tokio::test]
async fn what_a_halt_says_can_be_typed_and_loses_and_doubles_nothing() {
    // Roles are everybody's: these are of a server of its own.
    let (postgres, _server) = Postgres::private().await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let unable = Case {
        done: "alter role {role} noreplication",
        road: &[("replication role", "alter role")],
    };
    is_obeyed_in(t, &unable).await;
    let t = Harness::with(postgres, servers::kafka().await).await;
    let unable =
        Case { done: "alter role {role} nologin", road: &[("not permitted to log in", "login")] };
    is_obeyed_in(t, &unable).await;
    // Some at a time: each is a relay of its own.
    for cases in CASES.chunks(4) {
        futures_util::future::join_all(cases.iter().map(is_obeyed)).await;
    }
}
