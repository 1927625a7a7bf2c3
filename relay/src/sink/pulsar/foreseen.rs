//! What a run would meet, for `check`: the topics of the events that wait, and of the newest.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    client::{Client, refusal},
    directory::look,
    message,
    settings::Settings,
};
use crate::sink::{
    SinkError,
    doctor::{Concern, Expected},
};

/// So many topics are looked at.
const TOPICS_MAX: usize = 100;

/// Looks at each topic. Nothing is sent, and no producer is opened: it would end another relay's.
///
/// # Errors
/// No one answers, or the settings can't be used.
pub(in crate::sink) async fn foresee(
    settings: Settings,
    expected: Expected,
) -> Result<Vec<Concern>, SinkError> {
    let client = Client::new(settings);
    let settings = client.settings.as_ref();
    let batches = [&expected.waiting, &expected.newest];
    let mut topics: BTreeSet<&str> = expected.topics.iter().map(String::as_str).collect();
    topics.extend(batches.iter().flat_map(|batch| batch.iter()).map(|record| record.topic));
    let mut concerns = Vec::new();
    let mut partitions = BTreeMap::new();
    for topic in topics.into_iter().take(TOPICS_MAX) {
        let name = settings.topic.of(topic);
        match look(&client, &name).await? {
            Ok(count) => {
                partitions.insert(topic, count);
            }
            Err(said) => {
                let (_, error) = refusal(&name, &said);
                concerns.push(Concern {
                    stops: false,
                    what: format!("events for it are parked: {error}"),
                    remedy: "create the topic, or correct sink.pulsar.topic or the relay's rights"
                        .into(),
                });
            }
        }
    }
    let mut by_reason: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for record in expected.waiting.iter() {
        let judged = message::judge(settings, &record).and_then(|name| {
            let known = partitions.get(record.topic);
            known.map_or(Ok(()), |count| message::place(&record, &name, *count).map(drop))
        });
        if let Err((reason, error)) = judged {
            by_reason.entry(reason).or_insert((0, error)).0 += 1;
        }
    }
    concerns.extend(by_reason.into_iter().map(|(reason, (count, first))| Concern {
        stops: false,
        what: format!(
            "{count} of the events that wait would be parked ({reason}), the first because {first}"
        ),
        remedy: "correct them in the outbox table, or after they are parked".into(),
    }));
    Ok(concerns)
}
