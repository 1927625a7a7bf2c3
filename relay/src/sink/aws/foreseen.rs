//! What a run would meet, for `check`: the queues or topics of the events that wait, and of the newest.

use std::collections::{BTreeMap, BTreeSet};

use outbox_relay_aws::{Found, Said, What};

use super::{
    client::Client, delivery::refusal, directory::look, facts::Facts, message, settings::Settings,
};
use crate::sink::{
    SinkError,
    doctor::{Concern, Expected},
};

/// So many topics are looked at.
const TOPICS_MAX: usize = 100;

/// Looks at each queue or topic. Nothing is sent.
///
/// # Errors
/// No one answers, or the settings can't be used.
pub(in crate::sink) async fn foresee(
    settings: Settings,
    expected: Expected,
) -> Result<Vec<Concern>, SinkError> {
    let client = Client::new(settings);
    let settings = client.settings.as_ref();
    let service = client.service().await?;
    let batches = [&expected.waiting, &expected.newest];
    let mut topics: BTreeSet<&str> = expected.topics.iter().map(String::as_str).collect();
    topics.extend(batches.iter().flat_map(|batch| batch.iter()).map(|record| record.topic));
    let mut concerns = Vec::new();
    let mut limits = BTreeMap::new();
    for topic in topics.into_iter().take(TOPICS_MAX) {
        let Ok(name) = settings.destination.of(settings.kind, topic) else { continue };
        let found = look(service, settings, &name).await?;
        if let Ok(found) = &found {
            limits.extend(Facts::of(found).bytes_max.map(|bytes| (name.clone(), bytes)));
        }
        concerns.extend(of_one(settings, &name, &found));
    }
    concerns.extend(refused(settings, &expected, &limits));
    Ok(concerns)
}

fn concern(what: String, remedy: impl Into<String>) -> Concern {
    Concern { stops: false, what, remedy: remedy.into() }
}

/// What there is to say of a queue or topic.
fn of_one(settings: &Settings, name: &str, found: &Result<Found, Said>) -> Vec<Concern> {
    let noun = settings.noun();
    let found = match found {
        Ok(found) => found,
        Err(said) => {
            let (_, error) = refusal(settings, name, said);
            let remedy = match said.what {
                What::Denied => format!("allow it the actions {}", actions(settings)),
                _ => format!("create the {noun}, or correct {}", settings.key(noun)),
            };
            return vec![concern(format!("events for it are parked: {error}"), remedy)];
        }
    };
    let facts = Facts::of(found);
    let mut concerns = Vec::new();
    if let Some(said) = facts.unread {
        let what = format!(
            "the relay may not look at the {noun} {name} ({said}): it does not know how large a message may be, and parks \
             what the service refuses"
        );
        concerns.push(concern(what, format!("allow it the actions {}", actions(settings))));
        return concerns;
    }
    if facts.fifo.is_some_and(|is_fifo| is_fifo != settings.is_fifo()) {
        let what = format!("the {noun} {name} is not of the kind that its name says");
        concerns.push(concern(
            what,
            format!("end {} with .fifo exactly where its {noun}s are FIFO", settings.key(noun)),
        ));
    }
    if let Some(key) = facts.kms_key.filter(|key| !key.starts_with("alias/aws/")) {
        let what = format!(
            "the {noun} {name} is encrypted with the KMS key {key}, which the relay must be able to use"
        );
        concerns.push(concern(
            what,
            "allow it kms:GenerateDataKey and kms:Decrypt on that key, if it is not",
        ));
    }
    if !facts.open_to_all.is_empty() {
        let what = format!(
            "the policy of the {noun} {name} allows everyone {}",
            facts.open_to_all.join(", ")
        );
        concerns.push(concern(what, "name the principals in it, or add a condition"));
    }
    concerns
}

/// What docs/AWS.md lists.
fn actions(settings: &Settings) -> &'static str {
    match settings.kind {
        outbox_relay_aws::Kind::Sqs => {
            "sqs:GetQueueUrl, sqs:GetQueueAttributes and sqs:SendMessage"
        }
        outbox_relay_aws::Kind::Sns => "sns:GetTopicAttributes and sns:Publish",
    }
}

/// Events that wait and can't be messages, a sentence for each reason.
fn refused(
    settings: &Settings,
    expected: &Expected,
    limits: &BTreeMap<String, usize>,
) -> Vec<Concern> {
    let mut by_reason: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for record in expected.waiting.iter() {
        let judged = message::message(settings, &record).and_then(|message| {
            let limit = limits.get(&message.destination).copied().unwrap_or(usize::MAX);
            message::fits(settings, &message, limit.min(settings.message_bytes_max))
        });
        if let Err((reason, error)) = judged {
            by_reason.entry(reason).or_insert((0, error)).0 += 1;
        }
    }
    by_reason
        .into_iter()
        .map(|(reason, (count, first))| {
            let what = format!("{count} of the events that wait would be parked ({reason}), the first because {first}");
            concern(what, "correct them in the outbox table, or after they are parked")
        })
        .collect()
}
