//! Rights that lie outside of the schema.

use outbox_harness::{
    Harness,
    database::{Database, Role},
    event::Event,
    postgres::Postgres,
    relay::Settings,
    servers,
    topic::Topic,
    wait,
};

use super::{obey, published, says, typed};
use crate::checks::check;

/// A login with the relay's grants that is no member of its role, and settings that log in by it.
async fn another_login(t: &Harness) -> (String, Settings) {
    let (role, other) = (t.database().name_of(Role::Relay), format!("r_{}", t.database().name()));
    let grants = t.database().documented_grants().into_iter().map(|grant| grant.to_string());
    let grants = grants.filter(|grant| grant.ends_with(&format!(" to {role}")));
    let grants: Vec<_> = grants.map(|g| g.replace(&role, &other)).collect();
    assert!(grants.len() > 5, "{grants:?}");
    let make = format!(
        "create role {other} login replication password 'other'; \
         grant connect on database {} to {other}; {}",
        t.database().name(),
        grants.join("; ")
    );
    t.database().superuser().batch_execute(&make).await.expect("a role");
    let (host, port) = t.database().postgres().address();
    let url = format!("postgres://{other}:other@{host}:{port}/{}", t.database().name());
    (other, t.relay().files("another").set("postgres.url", &url))
}

/// Frozen, with its lock gone and its line to the slot still there.
#[tokio::test]
async fn what_an_older_leader_of_another_role_left_is_ended_with_the_rights_that_the_halt_names() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut older = published(&mut t, &topic, Event::to(topic.name()).key("k")).await;
    let (role, settings) = another_login(&t).await;
    older.freeze();
    t.commit([Event::to(topic.name()).key("k")]).await;
    let end = "select pg_terminate_backend(pid, 5000) from outbox.leaders";
    t.database().superuser().query_one(end, &[]).await.expect("its session is ended");
    let mut relay = settings.spawn();
    let detail = says(&relay, "logs in as another role").await;
    obey(&t, typed(&detail, "grant pg_signal_backend")).await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
    older.thaw();
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    older.kill9().await;
    let gone = format!("drop owned by {role}; drop role {role}");
    wait::until("its sessions are gone", wait::PATIENCE, || {
        t.database().superuser().batch_execute(&gone)
    })
    .await
    .expect("the role is everybody's server's");
}

async fn arrives(t: &Harness, database: &Database, topic: &Topic) {
    let insert = format!(
        "insert into outbox.events (topic, key) values ('{}', 'k') returning id::text",
        topic.name()
    );
    let id: String = database.superuser().query_one(&insert, &[]).await.expect("inserted").get(0);
    assert_eq!(topic.records_with([id]).await.len(), 1, "{}", t.database().name());
}

/// What the characters are is asked for only where they are not UTF-8.
#[tokio::test]
async fn without_the_language_the_encoding_is_asked_by_the_relay_halts_and_the_grant_helps() {
    let t = Harness::start().await;
    let database = Database::create_empty_with("encoding 'LATIN1' locale 'C'").await;
    let mut owner = database.connect(Role::Owner).await;
    for set in [outbox_migrations::Set::Outbox, outbox_migrations::Set::Inbox] {
        outbox_migrations::apply(&mut owner, set).await.expect("migrated");
    }
    database.grant().await;
    let superuser = database.superuser();
    let revoke = "revoke usage on language plpgsql from public";
    superuser.batch_execute(revoke).await.expect("revoked");
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay_of(&database).spawn();
    let detail = says(&relay, "language plpgsql").await;
    let grant = typed(&detail, "grant usage on language");
    superuser.batch_execute(grant).await.expect("granted");
    relay.wait_ready().await;
    arrives(&t, &database, &topic).await;
    assert!(relay.sigterm().await.success());
}

/// The rights are those of the role that it becomes. To grant that one more would give them to all who write events.
#[tokio::test]
async fn a_relay_that_a_setting_makes_another_role_is_told_so_and_the_reset_helps() {
    // All databases of a server share its roles: this test has a server of its own.
    let (postgres, _server) = Postgres::private().await;
    let mut t = Harness::with(postgres, servers::kafka().await).await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    assert!(relay.sigterm().await.success());
    t.commit([Event::to(topic.name()).key("k")]).await;
    let (role, writer) = (t.database().name_of(Role::Relay), t.database().name_of(Role::Writer));
    obey(&t, &format!("grant {writer} to {role}; alter role {role} set role {writer}")).await;
    let reset = format!("alter role {role} reset role");
    let found = check(&t.relay()).await;
    let problems: Vec<_> = found.iter().filter(|it| it.verdict == "problem").collect();
    let [found] = problems[..] else { panic!("one cause, one problem: {problems:#?}") };
    assert!(found.seen.contains(&format!("logged in as {role}")), "{found:?}");
    assert_eq!(typed(&found.remedy, ""), reset);
    relay.restart();
    let detail =
        says(&relay, &format!("logged in as {role}, and a setting makes it {writer}")).await;
    obey(&t, typed(&detail, "reset role")).await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
}
