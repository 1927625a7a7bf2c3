//! `[routes.<r>]`: several relays in one process, each with a sink of its own; what happens to one of them is no other's trouble.

use std::path::{Path, PathBuf};

use outbox_harness::{
    Harness, check,
    event::{Committed, Event},
    file,
    load::Plan,
    relay::{Relay, Settings},
    wait,
};
use serde_json::Value;

use crate::obeyed::typed;

const PARTITIONS: i32 = 2;

/// A route that appends the events of these topics to a file, and where that is.
fn to_file(t: &Harness, settings: Settings, route: &str, topics: &str) -> (Settings, PathBuf) {
    let path = t.dir().join(format!("{route}.jsonl"));
    let key = |own: &str| format!("routes.{route}.{own}");
    let settings = settings
        .set(&key("sink.kind"), "file")
        .set(&key("sink.file.path"), path.to_str().expect("UTF-8"));
    match topics {
        "" => (settings, path),
        topics => (settings.set_toml(&key("topics"), topics), path),
    }
}

/// What is committed to the topics of which this is true.
async fn committed(t: &Harness, of: impl Fn(&str) -> bool) -> Vec<Committed> {
    let mut truth = t.committed().await;
    truth.retain(|row| of(&row.topic));
    truth
}

/// Waits until the file has all of these, and returns the count.
async fn all_in(path: &Path, truth: &[Committed]) -> check::Count {
    wait::until("all is in the file", wait::PATIENCE, || async {
        let count = check::compare(truth, &file::records(path, PARTITIONS), PARTITIONS);
        if count.lost == 0 { Ok(count) } else { Err(format!("{count}")) }
    })
    .await
    .expect("it is")
}

fn text<'a>(status: &'a Value, name: &str) -> &'a str {
    status.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// What a route says of itself.
async fn of_route(relay: &Relay, route: &str) -> Result<Value, String> {
    let status = relay.try_status().await.map_err(|error| error.to_string())?;
    let routes = status.get("routes").and_then(Value::as_array).expect("it has routes");
    let this = routes.iter().find(|it| text(it, "route") == route);
    Ok(this.expect("this one is among them").clone())
}

async fn halted(relay: &Relay, route: &str) -> String {
    wait::until("the route halts", wait::PATIENCE, || async {
        let status = of_route(relay, route).await?;
        match text(&status, "phase") {
            "halted" => Ok(text(&status, "detail").to_owned()),
            _ => Err(status.to_string()),
        }
    })
    .await
    .expect("it does")
}

async fn run(settings: &Settings, command: &str) -> String {
    let arguments: Vec<&str> = command.split(' ').filter(|it| *it != "outbox-relay").collect();
    let output = settings.command(&arguments).await;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &words
}

/// Killed six times under load, with a third route whose broker is never there.
#[tokio::test]
async fn each_route_publishes_its_own_and_one_without_its_broker_holds_up_none() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let settings = t
        .relay()
        .set_toml("routes.kafka.topics", &format!("[\"{}\"]", topic.name()))
        .set_toml("routes.kafka.required", "true")
        .set_toml("routes.gone.topics", "[\"gone*\"]")
        .set("routes.gone.sink.kind", "nats")
        .set("routes.gone.sink.nats.url", "nats://127.0.0.1:1")
        .set("routes.gone.sink.nats.stream", "GONE");
    let (settings, path) = to_file(&t, settings, "users", "[\"us*rs\"]");
    let mut relay = settings.start().await;
    let plan = |topic: &str| Plan {
        topic: topic.to_owned(),
        partitions: PARTITIONS,
        writers: 3,
        transactions: 1_000_000,
    };
    let loads = [plan(topic.name()), plan("users"), plan("gone.for.now")];
    let mut under_way = Vec::new();
    for load in &loads {
        under_way.push(t.load(load).await);
    }
    for _ in 0..6 {
        let before = file::records(&path, PARTITIONS).len();
        wait::until("events flow", wait::PATIENCE, || async {
            match file::records(&path, PARTITIONS).len() {
                now if now > before + 100 => Ok(()),
                now => Err(format!("{now} records")),
            }
        })
        .await
        .expect("they do");
        relay.kill9().await;
        relay.restart();
        relay.wait_ready().await;
    }
    for load in under_way {
        load.stop().await;
    }

    let orders = committed(&t, |of| of == topic.name()).await;
    let records = topic.records_with(orders.iter().map(|row| row.id.clone())).await;
    check::compare(&orders, &records, PARTITIONS).assert_exactly_once();
    let users = committed(&t, |of| of == "users").await;
    assert!(orders.len() > 100 && users.len() > 100, "{} and {}", orders.len(), users.len());
    all_in(&path, &users).await.assert_at_least_once();
    let ready = relay.page("/readyz").await;
    assert!(ready.starts_with("ok\nbut route gone: "), "{ready}");
    let gone = of_route(&relay, "gone").await.expect("its status");
    assert_eq!(
        (&gone["ready"], &gone["records_delivered"]),
        (&Value::from(false), &Value::from(0))
    );
    let metrics = relay.page("/metrics").await;
    for (route, ready) in [("kafka", 1), ("users", 1), ("gone", 0)] {
        let name = t.database().name();
        let line = format!("outbox_relay_ready{{relay=\"{name}_{route}\"}} {ready}");
        assert_eq!(metrics.matches(&line).count(), 1, "{line} in {metrics}");
    }
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn what_no_route_takes_is_parked_by_the_first_one_and_released_where_it_is_taken_later() {
    let mut t = Harness::start().await;
    let (settings, orders) = to_file(&t, t.relay(), "orders", "[\"orders\"]");
    let (settings, users) = to_file(&t, settings, "users", "[\"users\"]");
    let mut relay = settings.clone().start().await;
    t.commit(["orders", "other", "users", "other", "orders"].map(|it| Event::to(it).key("k")))
        .await;
    all_in(&orders, &committed(&t, |of| of == "orders").await).await.assert_exactly_once();
    all_in(&users, &committed(&t, |of| of == "users").await).await.assert_exactly_once();
    let parked = "select relay, topic, reason from outbox.dead_letters where state = 'parked'";
    wait::until("they are parked", wait::PATIENCE, || async {
        let rows = t.database().superuser().query(parked, &[]).await.expect("rows");
        let rows: Vec<[String; 3]> =
            rows.iter().map(|row| [0, 1, 2].map(|at| row.get(at))).collect();
        let relay = format!("{}_orders", t.database().name());
        let of = |reason: &str| [relay.clone(), "other".to_owned(), reason.to_owned()];
        if rows == [of("no_route"), of("no_route")] { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await
    .expect("both, once, by one route");
    let told = run(&settings, "dead-letters list --route orders").await;
    assert!(told.contains("no_route"), "{told}");
    let unnamed = settings.command(&["dead-letters", "list"]).await;
    let words = String::from_utf8_lossy(&unnamed.stderr);
    assert!(
        !unnamed.status.success() && words.contains("add --route orders or --route users"),
        "{words}"
    );

    assert!(relay.sigterm().await.success());
    let settings = settings.set_toml("routes.orders.topics", "[\"orders\", \"other\"]");
    let mut relay = settings.clone().start().await;
    run(&settings, "dead-letters release --route orders --topic other").await;
    let truth = committed(&t, |of| of != "users").await;
    all_in(&orders, &truth).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_route_that_halts_is_resumed_as_it_says_while_the_others_flow() {
    let mut t = Harness::start().await;
    let (settings, orders) = to_file(&t, t.relay(), "orders", "[\"orders\"]");
    let (settings, users) = to_file(&t, settings, "users", "[\"users\"]");
    let mut relay = settings.clone().start().await;
    let both = || ["orders", "users"].map(|it| Event::to(it).key("k"));
    t.commit(both()).await;
    all_in(&users, &committed(&t, |of| of == "users").await).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    let forget =
        format!("delete from outbox.progress where relay = '{}_users'", t.database().name());
    t.database().superuser().batch_execute(&forget).await.expect("it is forgotten");
    relay.restart();
    let detail = halted(&relay, "users").await;
    t.commit(both()).await;
    all_in(&orders, &committed(&t, |of| of == "orders").await).await.assert_exactly_once();
    relay.wait_ready().await;
    let ready = relay.page("/readyz").await;
    assert!(ready.starts_with("ok\nbut route users: halted: "), "{ready}");

    let command = typed(&detail, "resume --route users --at slot");
    let unnamed = settings.command(&["resume", "--at", "slot", "--yes"]).await;
    let words = String::from_utf8_lossy(&unnamed.stderr);
    assert!(!unnamed.status.success() && words.contains("several routes"), "{words}");
    run(&settings, &format!("{command} --yes")).await;
    all_in(&users, &committed(&t, |of| of == "users").await).await.assert_at_least_once();
    wait::until("nothing is of concern", wait::PATIENCE, || relay.nothing_of_concern())
        .await
        .expect("both are ready");
    for route in ["orders", "users"] {
        let status = of_route(&relay, route).await.expect("its status");
        assert_eq!(status["phase"], "streaming", "{status}");
    }
    assert!(relay.sigterm().await.success());
}

/// A relay that has worked for long becomes one of two routes under its name: it repeats nothing, and the new one takes what
/// is there.
#[tokio::test]
async fn a_relay_becomes_a_route_beside_a_new_one() {
    let mut t = Harness::start().await;
    let path = t.dir().join("main.jsonl");
    let alone = t.relay().to("file").set("sink.file.path", path.to_str().expect("UTF-8"));
    let mut relay = alone.start().await;
    t.commit((0..5).map(|_| Event::to("orders").key("k"))).await;
    all_in(&path, &t.committed().await).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());

    let (settings, path) = to_file(&t, t.relay(), "main", "");
    let settings = settings.set("routes.main.name", t.database().name());
    let (settings, copy) = to_file(&t, settings, "audit", "");
    let mut relay = settings.start().await;
    t.commit((0..5).map(|_| Event::to("users").key("k"))).await;
    for path in [&path, &copy] {
        all_in(path, &t.committed().await).await.assert_exactly_once();
    }
    assert!(relay.sigterm().await.success());
}

/// The new route has passed the events of that topic over before it was its own, and the old one has not published them yet.
#[tokio::test]
async fn events_that_wait_while_their_topic_moves_to_another_route_are_published_by_the_former_one()
{
    let mut t = Harness::start().await;
    let (settings, a) = to_file(&t, t.relay(), "a", "[\"x\", \"y\"]");
    let (settings, b) = to_file(&t, settings, "b", "[\"z\"]");
    let each = || ["x", "y", "z"].map(|it| Event::to(it).key("k"));
    let mut relay = settings.clone().start().await;
    t.commit(each()).await;
    all_in(&a, &committed(&t, |of| of != "z").await).await.assert_exactly_once();
    all_in(&b, &committed(&t, |of| of == "z").await).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());

    // Its file takes nothing now.
    let full = settings.clone().set("routes.a.sink.file.path", "/dev/full");
    let mut relay = full.start().await;
    for _ in 0..3 {
        t.commit(each()).await;
    }
    all_in(&b, &committed(&t, |of| of == "z").await).await.assert_exactly_once();
    wait::until("the route waits", wait::PATIENCE, || async {
        let status = of_route(&relay, "a").await?;
        if status["ready"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .expect("its file is full");
    assert!(relay.sigterm().await.success());

    let moved = settings.set_toml("routes.a.topics", "[\"y\"]");
    let mut relay = moved.set_toml("routes.b.topics", "[\"x\", \"z\"]").start().await;
    let waited = committed(&t, |of| of != "z").await;
    all_in(&a, &waited).await.assert_exactly_once();
    relay.wait_log("the route takes these topics no more").await;
    // Who looks at the new one is told what that has not.
    let told = "but route b: since this start the route takes the topics x; before, it passed them over, and the tables have 4 rows";
    wait::until("it is told", wait::PATIENCE, || async {
        let ready = relay.page("/readyz").await;
        let is_told = ready.contains(told) && ready.contains("resume --route b --at table");
        if is_told { Ok(()) } else { Err(ready) }
    })
    .await
    .expect("it is");
    let before = file::records(&b, PARTITIONS).len();
    t.commit(each()).await;
    all_in(&a, &committed(&t, |of| of == "y").await).await;
    wait::until("the new route has both of its topics", wait::PATIENCE, || async {
        match file::records(&b, PARTITIONS).len() {
            now if now == before + 2 => Ok(()),
            now => Err(format!("{before} and {now}")),
        }
    })
    .await
    .expect("it has");
    let of_x = |path: &Path| {
        let records = file::records(path, PARTITIONS);
        records.iter().filter(|record| record.topic == "x").count()
    };
    assert_eq!((of_x(&a), of_x(&b)), (4, 1));
    assert!(relay.sigterm().await.success());
}
