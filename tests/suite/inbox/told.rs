//! What a runner warns of at its start.

use outbox_harness::wait;
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::database,
    records::{Member, topic},
    rights::Log,
};

#[tokio::test]
async fn headers_of_ids_that_are_given_for_several_topics_are_warned_of_once() {
    const WARNING: &str = "ids are the consumer's, over all its topics";
    let database = database().await;
    let [one, other] =
        [topic(&database, "one").await.create(1).await, topic(&database, "other").await];
    let other = other.create(1).await;
    let both = [one.name(), other.name()];
    for (topics, headers, warned) in [
        (&both[..], &["id"][..], 1),
        (&both[..1], &["id"][..], 0),
        (&["^none-has-this-name"][..], &["id"][..], 1),
        (&both[..], &["outbox-id", "ce_id"][..], 0),
    ] {
        let (log, _until_the_end) = Log::written(LevelFilter::INFO);
        let member =
            Member::start(&database, topics, &[], |runner| runner.id_headers(headers)).await;
        wait::until("it has started", wait::PATIENCE, || async {
            match log.text().contains("the consumer starts") {
                true => Ok(()),
                false => Err(log.text()),
            }
        })
        .await
        .expect("it says so");
        member.stop().await;
        assert_eq!(log.text().matches(WARNING).count(), warned, "{topics:?} {}", log.text());
    }
}
