//! What a doctor asks of the brokers before the relay runs: whether they can be reached, and what they
//! allow. Changes nothing, fences no one.

use std::{
    collections::HashMap,
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use super::{
    acl,
    errors::{is_silence, sort},
    lookup::Broker,
    probe::{PROBE_TIMEOUT, blocking, make_lookup},
    progress_topic::{self, ProgressTopic},
    settings::{Delivery, Settings},
};
use crate::{
    causes,
    sink::{
        SinkError,
        doctor::{Examined, Seen},
    },
};

const TIMEOUT: Duration = Duration::from_secs(5);
/// For one broker's port to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Brokers whose addresses are tried, at most.
const TRIED_MAX: usize = 50;

const NAME: &str = "Kafka";

/// Looks at the brokers, and says what was seen. Whether there is a progress topic is known where the brokers
/// answered.
pub(in crate::sink) async fn examine(settings: &Settings) -> Examined {
    let preflight = match preflight(settings.clone()).await {
        Ok(preflight) => preflight,
        Err(SinkError::Misconfigured { what, remedy }) => {
            return Examined::unusable(NAME, what, remedy);
        }
        Err(error) => {
            if let Some((what, remedy)) = settings.login_refused() {
                return Examined::unusable(NAME, what, remedy);
            }
            let remedy = "check bootstrap.servers, the security settings, and that a broker is up";
            let what = match is_silence(&error) {
                true => format!("no answer from {}", settings.silent()),
                false => causes::of(&error),
            };
            return Examined::unusable(NAME, what, remedy);
        }
    };
    let Preflight { brokers, cluster_id, progress_topic, problems } = preflight;
    let cluster = cluster_id.as_deref().unwrap_or("unknown");
    let mut seen =
        vec![Seen::fine(NAME, format!("cluster {cluster}, brokers {}", brokers.join(", ")))];
    let has_progress = match settings.keeps_progress() {
        true => progress_topic.as_ref().map(|topic| *topic != ProgressTopic::Missing),
        // What there is in the database is looked at by whoever asks for it.
        false => Some(true),
    };
    seen.extend(progress_topic.map(|found| progress(settings, found)));
    let trust = settings.trust();
    seen.extend(trust.map(|trusted| Seen::fine("TLS to Kafka", format!("trusts {trusted}"))));
    let problems = problems.into_iter();
    seen.extend(problems.map(|(what, remedy)| Seen::problem(NAME, what, remedy)));
    Examined { seen, has_progress }
}

fn progress(settings: &Settings, found: ProgressTopic) -> Seen {
    const NAME: &str = "progress";
    let topic = settings.progress_topic();
    match found {
        ProgressTopic::Missing => Seen::fine(NAME, format!("{topic} is made by the first start")),
        ProgressTopic::Leaderless => {
            let (what, remedy) = progress_topic::without_leader(settings, &topic);
            Seen::problem(NAME, format!("{topic}: {what}"), remedy)
        }
        ProgressTopic::Verified => Seen::fine(NAME, format!("{topic} is compacted")),
        ProgressTopic::Unverified(why) => Seen::warning(
            NAME,
            format!("the settings of {topic} can't be seen: {why}"),
            "allow DescribeConfigs on the topic, so that each start can verify it",
        ),
    }
}

/// What a doctor wants to know before the relay runs.
#[derive(Clone, Debug)]
struct Preflight {
    /// `host:port` of every broker of the cluster.
    brokers: Vec<String>,
    /// The cluster's id, where the brokers tell it.
    cluster_id: Option<String>,
    /// State of the progress topic; `None` where one of the problems is about it, or none is needed.
    progress_topic: Option<ProgressTopic>,
    /// What keeps the relay from delivering, each with its remedy.
    problems: Vec<(String, String)>,
}

/// Looks at the cluster and the progress topic. Ends within about ten seconds.
///
/// # Errors
/// `Unavailable` if the brokers don't answer or refuse the credentials; `Misconfigured` if the
/// settings can't be used, or brokers can't be reached where the cluster says that they are.
async fn preflight(settings: Settings) -> Result<Preflight, SinkError> {
    blocking(move || {
        let lookup = make_lookup(&settings)?;
        let cluster = lookup
            .cluster(&settings.progress_topic(), TIMEOUT)
            .map_err(|error| sort("asking the brokers who they are", error, None))?;
        // Whatever is asked of a broker that can't be reached would only time out.
        all_reached(&settings, &cluster.brokers)?;
        let mut problems = Vec::new();
        let mut sound = |looked: Result<(), SinkError>| match looked {
            Err(SinkError::Misconfigured { what, remedy }) => {
                problems.push((what, remedy));
                Ok(())
            }
            other => other,
        };
        let mut progress_topic = None;
        if settings.delivery != Delivery::RecordsAlone {
            let seen = progress_topic::inspect(&settings, &lookup);
            sound(seen.map(|seen| progress_topic = Some(seen)))?;
            if progress_topic == Some(ProgressTopic::Missing) {
                sound(progress_topic::may_create(&settings, &lookup))?;
            }
            sound(acl::may_use_transactional_id(&settings, PROBE_TIMEOUT))?;
            if let Some(first) = cluster.brokers.first() {
                let theirs = lookup.broker_settings(first.id, PROBE_TIMEOUT);
                sound(takes_the_timeout(&settings, &theirs))?;
            }
        }
        lookup.serve();
        let brokers = cluster.brokers.iter().map(ToString::to_string).collect();
        Ok(Preflight { brokers, cluster_id: cluster.id, progress_topic, problems })
    })
    .await
}

/// Whether every broker can be reached where the cluster tells clients to find it. The first answer
/// comes from `bootstrap.servers`, everything else from there.
fn all_reached(settings: &Settings, brokers: &[Broker]) -> Result<(), SinkError> {
    let tried = brokers.get(..TRIED_MAX).unwrap_or(brokers);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = tried
            .iter()
            .map(|broker| (broker, scope.spawn(move || connect(&broker.host, broker.port))))
            .collect();
        let ended = threads.into_iter().filter_map(|(broker, thread)| {
            let error = thread.join().ok()?.err()?;
            Some(format!("broker {} as {broker} ({error})", broker.id))
        });
        ended.collect()
    });
    if failed.is_empty() {
        return Ok(());
    }
    let servers = settings.properties.get("bootstrap.servers").map_or("bootstrap.servers", |s| s);
    Err(SinkError::Misconfigured {
        what: format!(
            "{servers} answers, but names addresses of the cluster that can't be reached from \
             here: {}; nothing can be delivered to what they lead",
            failed.join(", ")
        ),
        remedy:
            "correct advertised.listeners of these brokers, or let this host resolve and reach \
                 the addresses"
                .into(),
    })
}

fn connect(host: &str, port: i32) -> std::io::Result<()> {
    let port = u16::try_from(port).map_err(std::io::Error::other)?;
    let mut last = std::io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether the broker takes transactions as long as ours; `broker` is empty where it does not say.
fn takes_the_timeout(
    settings: &Settings,
    broker: &HashMap<String, String>,
) -> Result<(), SinkError> {
    let ours = settings.transaction_timeout().as_millis();
    let max = broker.get("transaction.max.timeout.ms").and_then(|ms| ms.trim().parse().ok());
    match max {
        Some(max) if ours > max => Err(SinkError::Misconfigured {
            what: format!(
                "transaction.timeout.ms is {ours}, and the brokers allow {max} at most \
                 (transaction.max.timeout.ms): nothing can be delivered"
            ),
            remedy: format!("set sink.properties.\"transaction.timeout.ms\" to {max} or less"),
        }),
        _ => Ok(()),
    }
}
