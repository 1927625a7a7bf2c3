//! Topics of SNS, as moto has them.

use outbox_harness::{
    Harness,
    aws::{Moto, credentials},
    check,
    event::Event,
    relay::Relay,
    wait,
};

use super::PARTITIONS;
use crate::contract::aws::to_sns;

async fn relay_delivers(relay: &Relay, wanted: usize) {
    let delivers = wait::until("all is delivered", wait::PATIENCE, || async {
        let metrics = relay.page("/metrics").await;
        let delivered = metrics.lines().find(|it| it.starts_with("outbox_relay_records_delivered"));
        match delivered {
            Some(line) if line.ends_with(&format!(" {wanted}")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    delivers.await.expect("it does");
}

#[tokio::test]
#[ignore = "installs moto: `just long` runs it"]
async fn a_fifo_topic_brings_each_event_once_and_in_order_to_two_queues() {
    let (mut t, server) = (Harness::start().await, Moto::start().expect("a server of its own"));
    server.wait_ready().await;
    let name = format!("{}-orders", t.database().name());
    let topic = server.topic(&format!("{name}.fifo")).await;
    let queues = [
        server.queue(&format!("{name}-a.fifo"), PARTITIONS).await,
        server.queue(&format!("{name}-b.fifo"), PARTITIONS).await,
    ];
    for queue in &queues {
        topic.subscribe(queue).await;
    }
    let settings = to_sns(&topic.endpoint(), &credentials(t.dir()), topic.arn(), &name, t.relay());
    t.commit((0..60).map(|n| Event::to(&name).key(&format!("{}", n % 9)))).await;
    // All of them are sent, and no progress is stored: the next relay sends all of them again.
    let mut relay = settings.clone().fault("records-stored:1").spawn();
    relay.wait_end(wait::PATIENCE).await;
    let relay = settings.start().await;
    relay_delivers(&relay, 60).await;
    for queue in &queues {
        let mut committed = t.committed().await;
        committed.iter_mut().for_each(|row| row.topic = queue.topic().to_owned());
        let count = wait::until("all arrive", wait::PATIENCE, || async {
            // moto forgets what it has seen when it is deleted, so nothing is read before all was sent again.
            match check::compare(&committed, &queue.records().await, PARTITIONS) {
                count if count.lost == 0 => Ok(count),
                count => Err(count.to_string()),
            }
        });
        count.await.expect("they do").assert_exactly_once();
    }
}
