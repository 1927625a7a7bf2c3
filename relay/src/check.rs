//! `outbox-relay check`: a doctor that looks at every precondition and says what mends it.
//!
//! It changes nothing and disturbs no relay that runs. Each finding stands for itself; what can't
//! be looked at because something before it failed is left out. Ends within 15 s.

mod neighbours;
mod settings;
mod start;

use std::time::Duration;

use outbox_migrations::{
    Set,
    grants::{Lacking, RELAY, lacking},
};
use serde::Serialize;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{
    config::{Config, parts::Parts},
    daemon::first,
    postgres::{
        ConnectError, shortage,
        sql::{self, SqlSession},
    },
    printable,
    reconcile::Halt,
    repair, rights,
    route::{Mapping, TableName, quoted},
    sink::{
        SinkError,
        kafka::{self, ProgressTopic},
    },
    source::{
        publication::changed_under,
        slot::{self, InspectError},
        table::{self, TableState},
    },
    table_fit::{self, Fit, Unfit},
};

/// Bound of each of the two halves, so that the whole ends within 15 s.
const HALF_MAX: Duration = Duration::from_secs(7);

/// How a finding is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and something is worth knowing.
    Warning,
    /// The relay would not work.
    Problem,
}

/// One precondition.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What mends it; empty when nothing is to be mended.
    pub remedy: String,
}

/// Looks at everything. Problems come as findings, never as errors.
pub async fn run(config: &Config, parts: &Parts) -> Vec<Finding> {
    let ((mut findings, session), (kafka, has_progress_topic)) =
        tokio::join!(half("PostgreSQL", postgres(config, parts)), half("Kafka", kafka(parts)));
    findings.extend(kafka);
    if let (Some(session), Some(has_topic)) = (session, has_progress_topic) {
        let rehearsal = async {
            let found = start::rehearsed(config, parts, &session, has_topic, &findings).await;
            (found.into_iter().collect(), None::<()>)
        };
        let (found, _) = half("start", rehearsal).await;
        // What is mended by the same words has the same cause, and the start's words have more: what it
        // means for what was published before.
        for start in &found {
            findings
                .retain(|known| known.remedy.is_empty() || !start.remedy.contains(&known.remedy));
        }
        findings.extend(found);
    }
    findings
}

/// Whether none is a problem.
pub fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Problem)
}

/// Findings, and what the next half needs where it can be had.
async fn half<T>(
    name: &'static str,
    looks: impl Future<Output = (Vec<Finding>, Option<T>)>,
) -> (Vec<Finding>, Option<T>) {
    timeout(HALF_MAX, looks).await.unwrap_or_else(|_elapsed| {
        let seen = format!("no answer within {} s", HALF_MAX.as_secs());
        let remedy = "check that it is up and that the network lets it through";
        (vec![problem(name, seen, remedy)], None)
    })
}

/// Whether there is a progress topic is known where the brokers answered.
async fn kafka(parts: &Parts) -> (Vec<Finding>, Option<bool>) {
    let preflight = match kafka::preflight(parts.kafka.clone()).await {
        Ok(preflight) => preflight,
        Err(SinkError::Misconfigured { what, remedy }) => {
            return (vec![problem("Kafka", what, remedy)], None);
        }
        Err(error) => {
            let remedy = "check bootstrap.servers, the security settings, and that a broker is up";
            return (vec![problem("Kafka", printable::causes(&error), remedy)], None);
        }
    };
    let cluster = preflight.cluster_id.as_deref().unwrap_or("unknown");
    let brokers = preflight.brokers.join(", ");
    let topic = parts.kafka.progress_topic();
    let has_topic = preflight.progress_topic.as_ref().map(|seen| *seen != ProgressTopic::Missing);
    let progress = preflight.progress_topic.map(|seen| match seen {
        ProgressTopic::Missing => ok("progress", format!("{topic} is made by the first start")),
        ProgressTopic::Verified => ok("progress", format!("{topic} has one partition, compacted")),
        ProgressTopic::Unverified(why) => warning(
            "progress",
            format!("the settings of {topic} can't be seen: {why}"),
            "allow DescribeConfigs on the topic, so that each start can verify it",
        ),
    });
    let trust = parts.kafka.trust().map(|trusted| ok("TLS to Kafka", format!("trusts {trusted}")));
    let mut found = vec![ok("Kafka", format!("cluster {cluster}, brokers {brokers}"))];
    found.extend(progress.into_iter().chain(trust));
    let problems = preflight.problems.into_iter();
    found.extend(problems.map(|(what, remedy)| problem("Kafka rights", what, remedy)));
    (found, has_topic)
}

/// The session, where all could be asked on it.
async fn postgres(config: &Config, parts: &Parts) -> (Vec<Finding>, Option<SqlSession>) {
    let mut findings = Vec::new();
    for host in parts.connect.unverified_hosts() {
        let seen = format!("the connection to {host} is not verified");
        let remedy = "add sslmode=verify-full (and sslrootcert) to postgres.url";
        findings.push(warning("TLS", seen, remedy));
    }
    let session = match sql::connect(&parts.connect, "outbox-relay check").await {
        Ok(session) => session,
        Err(error) => {
            findings.push(match error {
                ConnectError::Permanent { what, remedy, .. } => problem("PostgreSQL", what, remedy),
                error @ ConnectError::Transient { .. } => {
                    let short = error.sqlstate().and_then(shortage::remedy);
                    let remedy = short.unwrap_or("check postgres.url, and that the server is up");
                    problem("PostgreSQL", printable::causes(&error), remedy)
                }
            });
            return (findings, None);
        }
    };
    match server(config, parts, session.client()).await {
        Ok(seen) => {
            let go_on = passed(&seen) || seen.iter().any(|finding| finding.name == "slot");
            findings.extend(seen);
            (findings, go_on.then_some(session))
        }
        Err(error) => {
            let remedy = "grant the relay's role what docs/ROLES.md lists";
            findings.push(problem("PostgreSQL", printable::causes(&error), remedy));
            (findings, None)
        }
    }
}

async fn server(
    config: &Config,
    parts: &Parts,
    client: &Client,
) -> Result<Vec<Finding>, InspectError> {
    let name = &config.postgres.slot;
    let found = slot::inspect(client, name).await?;
    let server = slot::capacity(client).await?;
    let mut findings = capacity(&server, found.is_some(), parts);
    findings.extend(settings::of_server(config, parts, client).await?);
    let mut ours: Vec<Finding> = migrations(client).await?.into_iter().collect();
    if passed(&ours) {
        ours.extend(rights(&parts.mapping, client).await?);
    }
    let is_whole = passed(&ours);
    findings.extend(ours);
    if !is_whole {
        return Ok(findings); // What comes now would only say the same in other words.
    }
    findings.push(start::parking(config, client).await?);
    let publication_name = &config.postgres.publication;
    let publication = slot::inspect_publication(client, publication_name).await?;
    for table in parts.mapping.tables() {
        let state = table::inspect(client, &table.schema, &table.table).await?;
        let (publication, mapping) = (publication.as_ref(), &parts.mapping);
        let fits = table_fit::fits(publication_name, publication, table, state.as_ref(), mapping);
        let fit = fits.as_ref().ok().copied();
        findings.push(match fits {
            Ok(_) => ok("table", format!("{table} is published by {publication_name} and fits")),
            Err(Unfit::Unpublished(halt) | Unfit::Columns(halt)) => {
                problem("table", halt.reason, halt.remedy)
            }
        });
        if let (Some(fit), Some(state)) = (fit, &state) {
            findings.push(rows(table, fit, state, mapping, config.outbox.rows_kept));
            findings.extend(settings::zone(table, state, mapping));
        }
    }
    if found.is_some() && publication.is_some() {
        let tables = parts.mapping.tables().iter();
        let tables = tables.map(|table| (table.schema.as_str(), table.table.as_str()));
        findings.push(match changed_under(client, name, publication_name, tables).await? {
            false => {
                ok("publication", format!("{publication_name} is older than what {name} may send"))
            }
            true => warning(
                "publication",
                format!(
                    "{publication_name} was changed after the oldest transaction that {name} may \
                         send: what was written before may not be in the stream"
                ),
                "start the relay: it compares with what it knows, and publishes from the tables \
                     what may be missing, or halts with the interval",
            ),
        });
    }
    if found.is_none() {
        findings.extend(first_start(config, &parts.mapping, client).await?);
    }
    findings.push(match found {
        None => ok("slot", format!("{name} does not exist yet; the first start makes it")),
        Some(slot) if slot.is_lost() => problem(
            "slot",
            format!("{name} has lost its WAL"),
            "the relay's next start makes a new one and publishes what is missing from the tables; \
             raise max_slot_wal_keep_size",
        ),
        Some(slot) => {
            let confirmed = slot.confirmed_flush_lsn.unwrap_or_default();
            let used = if slot.active { "active" } else { "not active" };
            ok("slot", format!("{name} is {used}, confirmed up to {confirmed}"))
        }
    });
    if !server.in_recovery {
        findings.extend(neighbours::idle(&slot::idle_slots(client, name).await?));
    }
    Ok(findings)
}

/// Whether the database has what this version's migrations make; `None` where it does not say: the
/// files were applied by hand, or the history may not be read.
async fn migrations(client: &Client) -> Result<Option<Finding>, InspectError> {
    let Some(newest) = Set::Outbox.migrations().iter().map(|m| m.version).max() else {
        return Ok(None);
    };
    let applied = match client
        .query_one("select pg_catalog.max(version) from outbox.migrations", &[])
        .await
        .and_then(|row| row.try_get::<_, Option<i32>>(0))
    {
        Ok(applied) => applied.unwrap_or(0),
        Err(error) if error.as_db_error().is_some() => return Ok(None),
        Err(source) => return Err(InspectError::Query { what: "outbox.migrations", source }),
    };
    Ok(Some(if applied < newest {
        let seen = format!("the database has migration V{applied}, this version needs V{newest}");
        problem("migrations", seen, "run `outbox-relay migrate` as the schema's owner")
    } else {
        ok("migrations", format!("V{applied}"))
    }))
}

/// What the role may do of what the relay does, and whether there is something to do it with.
async fn rights(mapping: &Mapping, client: &Client) -> Result<Vec<Finding>, InspectError> {
    const NAME: &str = "rights";
    let failed = |source| InspectError::Query { what: "the role's rights", source };
    let lacking = lacking(client, RELAY).await.map_err(failed)?;
    let needed =
        |object: &&str| RELAY.iter().any(|grant| grant.object == *object && grant.serves.is_none());
    let absent: Vec<&str> = lacking.absent.iter().copied().filter(needed).collect();
    if !absent.is_empty() {
        let seen = format!("there is no {}", absent.join(", no "));
        let remedy = "run `outbox-relay migrate` as the schema's owner";
        return Ok(vec![problem("migrations", seen, remedy)]);
    }
    let stopping = lacking.clone().that_stop_everything();
    if let Some(Halt { reason, remedy }) = rights::halt(&stopping, rights::NOTHING_IS_PUBLISHED) {
        return Ok(vec![problem(NAME, reason, remedy)]);
    }
    // Whether rows can be read is said of each table.
    let ours = |name: &TableName| name.to_string() == "outbox.events";
    let serve = lacking.grants.iter().filter(|grant| match grant.object {
        "outbox.events" => false,
        "outbox.deletions" => mapping.tables().iter().any(ours),
        _ => true,
    });
    let mut found: Vec<Finding> = serve
        .map(|grant| {
            let one = Lacking { grants: vec![*grant], ..lacking.clone() };
            let meaning = format!("it can't {}", grant.serves.unwrap_or_default());
            let seen = format!("the role {} lacks {}: {meaning}", one.role, one.rights());
            warning(NAME, seen, format!("`{one}`"))
        })
        .collect();
    if found.is_empty() {
        let seen = format!("{} has what docs/ROLES.md gives the relay's role", lacking.role);
        found.push(ok(NAME, seen));
    }
    Ok(found)
}

/// What becomes of the rows that are there when there is no slot; `None` when there are none.
async fn first_start(
    config: &Config,
    mapping: &Mapping,
    client: &Client,
) -> Result<Option<Finding>, InspectError> {
    let found = repair::rows_there(client, mapping.tables()).await;
    let rows = match found {
        Ok(Some(0) | None) => return Ok(None),
        Ok(Some(rows)) => repair::in_words(rows),
        // That a table is missing, and the like, is a finding of its own.
        Err(error) if error.as_db_error().is_some() => return Ok(None),
        Err(source) => return Err(InspectError::Query { what: "the outbox tables", source }),
    };
    Ok(Some(if first::takes_all(config, mapping) {
        ok("first start", format!("if it is the first one, it publishes {rows} that are there"))
    } else {
        warning(
            "first start",
            format!("if it is the first one, it leaves out {rows} that are there already"),
            "set postgres.start to \"all\" to publish them; it can't be done later",
        )
    }))
}

/// What the relay can tell of a table's rows when they come again, or their slot is lost.
fn rows(
    name: &TableName,
    fit: Fit,
    state: &TableState,
    mapping: &Mapping,
    rows_kept: bool,
) -> Finding {
    let repairable = repair::fits(name, state, mapping)
        .and_then(|table| if rows_kept { Ok(()) } else { repair::accounted_for(&table) });
    match repairable {
        Err(halt) => {
            let seen = format!("a lost slot can't be repaired from {name}: {}", halt.reason);
            warning("rows", seen, halt.remedy)
        }
        Ok(_) if !fit.stamped => warning(
            "rows",
            format!(
                "rows of {name} that are moved between its partitions are published again: the \
                 stream has no column xid whose default is pg_current_xact_id()"
            ),
            format!("alter table {name} alter column xid set default pg_current_xact_id()"),
        ),
        Ok(_) => ok("rows", format!("of {name} can be read for a repair, and known when moved")),
    }
}

/// What the server and the role are able to do.
fn capacity(found: &slot::Capacity, has_slot: bool, parts: &Parts) -> Vec<Finding> {
    let (major, minor) = (found.server_version_num / 10_000, found.server_version_num % 10_000);
    let version = format!("version {major}.{minor}");
    let mut findings = vec![if major < 14 {
        problem("PostgreSQL", version, "PostgreSQL 14 or later is needed")
    } else {
        ok("PostgreSQL", version)
    }];
    findings.push(if found.wal_level == "logical" {
        ok("wal_level", "logical".into())
    } else {
        let remedy = "alter system set wal_level = logical, and restart the server";
        problem("wal_level", found.wal_level.clone(), remedy)
    });
    findings.push(if found.may_replicate {
        ok("role", "may replicate".into())
    } else {
        let remedy = format!("`alter role {} replication`", quoted(parts.connect.user()));
        problem("role", "may not replicate".into(), remedy)
    });
    let slots =
        format!("{} of {} slots in use", found.replication_slots, found.max_replication_slots);
    findings.push(if has_slot || found.replication_slots < found.max_replication_slots {
        ok("slots", slots)
    } else {
        problem("slots", slots, "raise max_replication_slots, and restart the server")
    });
    let senders = format!("{} of {} WAL senders in use", found.wal_senders, found.max_wal_senders);
    findings.push(if found.wal_senders < found.max_wal_senders {
        ok("senders", senders)
    } else {
        problem("senders", senders, "raise max_wal_senders, and restart the server")
    });
    if found.max_slot_wal_keep_size_mb < 0 {
        findings.push(warning(
            "WAL kept",
            "without a limit: a relay that is away for long fills the disk".into(),
            "set max_slot_wal_keep_size to what the disk can spare",
        ));
    }
    if let Some(seconds @ 1..) = found.idle_slot_timeout_seconds {
        findings.push(warning(
            "slot kept",
            format!(
                "a slot without a relay for {seconds} s is lost: idle_replication_slot_timeout"
            ),
            "set it to 0, or to longer than the relay may be away",
        ));
    }
    if !found.track_activities {
        findings.push(warning(
            "signs of life",
            "track_activities is off: a standby does not see that a leader hangs".into(),
            "set track_activities = on, for the server or for the relay's role",
        ));
    }
    if found.in_recovery {
        let remedy = "add target_session_attrs=read-write to postgres.url";
        findings.push(problem("server", "is a standby".into(), remedy));
    }
    findings
}

fn ok(name: &'static str, seen: String) -> Finding {
    Finding { name, verdict: Verdict::Ok, seen, remedy: String::new() }
}

fn warning(name: &'static str, seen: String, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Warning, seen, remedy: remedy.into() }
}

fn problem(name: &'static str, seen: String, remedy: impl Into<String>) -> Finding {
    Finding { name, verdict: Verdict::Problem, seen, remedy: remedy.into() }
}
