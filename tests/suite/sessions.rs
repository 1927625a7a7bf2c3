//! What is set on roles, databases and servers changes no outcome: every session that the relay
//! and its commands open is settled when it is made.

use outbox_harness::{Harness, database::Role, event::Event, wait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    dead_letters::{dead_letters, wait_parked},
    repair::{drop_slot, wait_snapshot},
};

/// Each would end, hide, delay or distort what the relay does.
const ADVERSE: &[&str] = &[
    "statement_timeout = '1ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "idle_session_timeout = '5ms'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "synchronous_commit = off",
    "client_encoding = 'LATIN1'",
    "search_path = 'astray, pg_catalog'",
    "DateStyle = 'German'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "transform_null_equals = on",
    "exit_on_error = on",
    "client_min_messages = debug5",
    "session_replication_role = replica",
    "track_activities = off",
    "wal_sender_timeout = '50ms'",
    "tcp_user_timeout = '10ms'",
    "logical_decoding_work_mem = '64kB'",
];

/// Sets all of them for the sessions of a role in the test's database.
async fn mislead(t: &Harness, role: Role) {
    let config = t.database().config(role);
    let role = config.get_user().expect("a role");
    for setting in ADVERSE {
        let alter = format!("alter role {role} in database {} set {setting}", t.database().name());
        t.database().superuser().batch_execute(&alter).await.expect(setting);
    }
}

#[tokio::test]
async fn settings_of_role_and_database_change_no_outcome() {
    let mut t = Harness::start().await;
    for role in [Role::Relay, Role::Operator, Role::Owner] {
        mislead(&t, role).await;
    }
    let owner = t.relay().set("postgres.url", &t.database().url(Role::Owner));
    let migrated = owner.command(&["migrate"]).await;
    assert!(migrated.status.success(), "{migrated:?}");

    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.load(&outbox_harness::load::Plan {
        topic: topic.name().to_owned(),
        partitions: 2,
        writers: 4,
        transactions: 50,
    })
    .await
    .finish()
    .await;
    t.count(&topic, 2).await.assert_exactly_once();
    let missing = t.topic("later");
    t.commit([Event::to(missing.name()).key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let check = t.relay().command(&["check"]).await;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    // A repair, by readers of its own, while nothing but a release is under way.
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    t.commit((0..100).map(|n| Event::to(topic.name()).key(&format!("k{n}")))).await;
    relay.restart();
    relay.wait_ready().await;
    assert!(relay.logs_contain("repaired: every event that the slot had lost"));
    let missing = missing.create(1).await;
    dead_letters(&t, &["release", "--all"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    wait::until("the released event arrives", wait::PATIENCE, || async {
        if missing.records().await.len() == 1 { Ok(()) } else { Err("not yet") }
    })
    .await
    .expect("it is delivered");
    t.commit([Event::to(topic.name()).key("after")]).await;
    let ours = "select id::text from outbox.events where topic = $1";
    let truth = t.database().superuser().query(ours, &[&topic.name()]).await.expect("rows");
    let ids = truth.iter().map(|row| row.get::<_, String>(0));
    assert_eq!(topic.records_with(ids).await.len(), truth.len(), "each once");
}

/// As tools do that hand out passwords for a while: the login role becomes another at once.
#[tokio::test]
async fn a_login_that_becomes_another_role_leads_stands_by_and_takes_over() {
    let mut t = Harness::start().await;
    let config = t.database().config(Role::Relay);
    let relay_role = config.get_user().expect("a role").to_owned();
    let name = t.database().name().to_owned();
    let login = |n: u32| format!("{relay_role}_{name}_{n}");
    for n in [1, 2] {
        let (login, password) = (login(n), outbox_harness::postgres::PASSWORD);
        let make = format!(
            "create role {login} login replication in role {relay_role} password '{password}'; \
             alter role {login} set role {relay_role}"
        );
        t.database().superuser().batch_execute(&make).await.expect("a login role");
    }
    let settings = |n: u32| {
        let url = t
            .database()
            .url(Role::Relay)
            .replace(&format!("//{relay_role}:"), &format!("//{}:", login(n)));
        t.relay().set("postgres.url", &url).files(&format!("{name}-{n}"))
    };
    let topic = t.topic("orders").create(1).await;
    let mut leader = settings(1).start().await;
    let mut heir = settings(2).start().await;
    heir.wait_log("standing by").await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    leader.kill9().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    heir.wait_ready().await;
    assert!(heir.sigterm().await.success());
    for n in [1, 2] {
        let drop = format!("drop role {}", login(n));
        wait::until("the login is gone", wait::PATIENCE, || {
            t.database().superuser().batch_execute(&drop)
        })
        .await
        .expect("nothing depends on it");
    }
}

/// As who rotates secrets does: the password changes, its file is rewritten, old sessions end.
#[tokio::test]
async fn a_connection_string_that_is_rewritten_in_its_file_is_taken_up_by_leader_and_standby() {
    let mut t = Harness::start().await;
    let config = t.database().config(Role::Relay);
    let relay_role = config.get_user().expect("a role").to_owned();
    let name = t.database().name().to_owned();
    let login = format!("{relay_role}_{name}");
    let superuser = t.database().superuser();
    let make =
        format!("create role {login} login replication in role {relay_role} password 'first'");
    superuser.batch_execute(&make).await.expect("a login role");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("url");
    let write = |password: &str| {
        let plain = format!("//{relay_role}:{}@", outbox_harness::postgres::PASSWORD);
        let url = t.database().url(Role::Relay);
        let rotated = url.replace(&plain, &format!("//{login}:{password}@"));
        assert_ne!(url, rotated);
        std::fs::write(&file, rotated).expect("written");
    };
    write("first");
    let settings = |n: u32| {
        let settings = t.relay().without("postgres.url").files(&format!("{name}-{n}"));
        settings.set("postgres.url_file", &file.display().to_string())
    };
    let topic = t.topic("orders").create(1).await;
    let mut leader = settings(1).start().await;
    let mut standby = settings(2).start().await;
    standby.wait_log("standing by").await;
    let alter = format!("alter role {login} password 'second'");
    superuser.batch_execute(&alter).await.expect("rotated");
    write("second");
    // The standby's session is from before, its next connections are not.
    leader.kill9().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let end = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity \
               where usename = $1";
    t.database().superuser().query_one(end, &[&login]).await.expect("ended");
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    standby.wait_ready().await;
    assert!(!standby.logs_contain("halted"), "{}", standby.log_text());
    assert!(standby.sigterm().await.success());
    let drop = format!("drop role {login}");
    wait::until("the login is gone", wait::PATIENCE, || {
        t.database().superuser().batch_execute(&drop)
    })
    .await
    .expect("nothing depends on it");
}

#[tokio::test]
async fn broker_properties_that_are_rewritten_in_their_file_are_taken_up_after_an_outage() {
    let mut t = Harness::start().await;
    let line = t.kafka().line().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("kafka.properties");
    let write = |servers: &str| {
        std::fs::write(&file, format!("bootstrap.servers={servers}\n")).expect("written");
    };
    write(&line.address());
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay().without("sink.properties.\"bootstrap.servers\"");
    let settings = settings.set("sink.properties_file", &file.display().to_string());
    let leader = settings.clone().files("leader").start().await;
    let standby = settings.files("standby").start().await;
    standby.wait_log("standing by").await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    line.refuse();
    write(t.kafka().brokers());
    drop(leader);
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// What PgBouncer does with a start-up packet: by default it refuses `options`, and told to ignore
/// them it leaves them out.
async fn pooler(server: String, ignores_options: bool) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pool(client, server.clone(), ignores_options));
        }
    });
    port
}

async fn pool(mut client: TcpStream, server: String, ignores_options: bool) -> std::io::Result<()> {
    let length = client.read_u32().await?;
    let mut packet = vec![0; usize::try_from(length).expect("small") - 4];
    client.read_exact(&mut packet).await?;
    if !ignores_options {
        let error = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        client.write_u8(b'E').await?;
        client.write_u32(u32::try_from(error.len()).expect("small") + 4).await?;
        return client.write_all(error).await;
    }
    let (version, parameters) = packet.split_at(4);
    let words: Vec<_> = parameters.split(|byte| *byte == 0).collect();
    let mut kept = version.to_vec();
    let left_out: [&[u8]; 2] = [b"options", b""];
    let kept_pairs =
        words.chunks_exact(2).filter(|pair| !left_out.iter().any(|o| pair.first() == Some(o)));
    for word in kept_pairs.flatten() {
        kept.extend([word, &b"\0"[..]].concat());
    }
    kept.push(0);
    let mut server = TcpStream::connect(server).await?;
    server.write_u32(u32::try_from(kept.len()).expect("small") + 4).await?;
    server.write_all(&kept).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Through which two relays may share one session, and with it each lock.
#[tokio::test]
async fn a_pooled_address_is_refused_by_run_check_and_commands_with_what_to_type() {
    let t = Harness::start().await;
    let (host, port) = t.database().postgres().address();
    for ignores_options in [false, true] {
        let pooled = pooler(format!("{host}:{port}"), ignores_options).await;
        let through = |role| {
            let url = t.database().url(role);
            let url = url.replace(&format!("{host}:{port}"), &format!("127.0.0.1:{pooled}"));
            t.relay().set("postgres.url", &format!("{url}?sslmode=disable"))
        };
        for (role, command) in [
            (Role::Relay, &["check"][..]),
            (Role::Operator, &["dead-letters", "list"]),
            (Role::Owner, &["migrate"]),
        ] {
            let output = through(role).command(command).await;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(!output.status.success(), "{command:?}: {said}");
            assert!(said.contains("connect to PostgreSQL itself"), "{command:?}: {said}");
            let seen = if ignores_options { "settings that were asked for" } else { "unsupported" };
            assert!(said.contains(seen), "{command:?}: {said}");
        }
        let files = format!("{}-{ignores_options}", t.database().name());
        let mut relay = through(Role::Relay).files(&files).spawn();
        relay.wait_log("halted").await;
        relay.wait_log("connect to PostgreSQL itself").await;
        relay.wait_for("/readyz", 503).await;
    }
}
