//! Releases of very many parked events: what comes meanwhile waits for a few of them, never for all.

use std::collections::BTreeSet;

use outbox_harness::{Harness, event::Event};
use uuid::Uuid;

use crate::dead_letters::{dead_letters, wait_parked_again};

/// Lanes and events of each.
const LANES: u32 = 100;
const OF_A_LANE: u32 = 160;

#[tokio::test]
async fn a_release_of_very_many_announces_no_more_than_the_relay_keeps_up_with() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(4).await;
    let settings = t.relay();
    let relay = settings.value("name");
    // As if they had been parked; events that wait in the same lanes among them.
    let sql = format!(
        "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, lane, \
             topic, key, payload, headers, fit, reason, error) \
         select '{relay}', (select system_identifier::text from pg_control_system()), '0/1', n, n::text, \
             md5((n % {LANES})::text)::uuid, '{0}', convert_to('k' || n % {LANES}, 'UTF8'), \
             convert_to('{{}}', 'UTF8'), jsonb_build_array(jsonb_build_array('outbox-id', n::text), \
                 jsonb_build_array('outbox-position', '')), true, 'too_large', 'scripted' \
         from generate_series(1, {LANES} * {OF_A_LANE}) n",
        topic.name()
    );
    t.database().superuser().batch_execute(&sql).await.expect("parked");
    let _relay = settings.start().await;
    let session = t.database().connect(outbox_harness::database::Role::Operator).await;
    let under_way = "select array_agg(distinct release_id) from outbox.dead_letters \
                     where state = 'releasing'";
    let (mut most, mut releases) = (0, BTreeSet::new());
    let all = ["release", "--all"];
    let mut release = Box::pin(dead_letters(&t, &all));
    let released = loop {
        tokio::select! {
            biased;
            released = &mut release => break released,
            row = session.query_one(under_way, &[]) => {
                let found: Option<Vec<Uuid>> = row.expect("a look").get(0);
                let found = found.unwrap_or_default();
                most = most.max(found.len());
                releases.extend(found);
            }
        }
    };
    drop(release);
    let announced = released["releases"].as_array().map_or(0, Vec::len);
    assert!(announced >= 5, "{released}");
    assert!(most <= 2, "{most} of {announced} releases were under way at once");
    assert!(!releases.is_empty(), "they were seen");
    assert_eq!(wait_parked_again(&t).await, 0);
    t.commit([Event::to(topic.name()).key("behind")]).await;
    let ids: BTreeSet<String> = (1..=LANES * OF_A_LANE).map(|n| n.to_string()).collect();
    let records = topic.records_with(ids.iter().cloned()).await;
    let found: Vec<_> =
        records.iter().filter_map(|record| record.id()).filter(|id| ids.contains(*id)).collect();
    assert_eq!(found.len(), ids.len(), "each once");
}
