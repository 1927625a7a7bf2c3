//! `outbox-relay check`: a doctor that looks at every precondition and says what mends it.
//!
//! It changes nothing and disturbs no relay that runs. Each finding stands for itself; what can't
//! be looked at because something before it failed is left out. Ends within 15 s.

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::{
    config::Config,
    postgres::sql::SqlSession,
    row::Relation,
    route::{Origin, Router},
    sink::kafka,
    source::slot,
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
pub async fn run(config: &Config) -> Vec<Finding> {
    let (mut findings, kafka) = tokio::join!(
        half("PostgreSQL", postgres(config)), //
        half("Kafka", kafka(config)),
    );
    findings.extend(kafka);
    findings
}

/// Whether none is a problem.
pub fn passed(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Problem)
}

async fn half(name: &'static str, looks: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    timeout(HALF_MAX, looks).await.unwrap_or_else(|_elapsed| {
        let seen = format!("no answer within {} s", HALF_MAX.as_secs());
        vec![problem(name, seen, "check that it is up and that the network lets it through")]
    })
}

async fn kafka(config: &Config) -> Vec<Finding> {
    match kafka::preflight(&config.kafka_settings()).await {
        Ok(seen) => seen
            .into_iter()
            .map(|fact| Finding {
                name: fact.name,
                verdict: if fact.remedy.is_some() { Verdict::Warning } else { Verdict::Ok },
                seen: fact.seen,
                remedy: fact.remedy.unwrap_or_default(),
            })
            .collect(),
        Err(error) => vec![problem(
            "Kafka",
            chain(&error),
            "check bootstrap.servers, the security settings and that the brokers are up",
        )],
    }
}

async fn postgres(config: &Config) -> Vec<Finding> {
    let settings = &config.postgres.connect;
    let mut findings = Vec::new();
    for host in settings.unverified_hosts() {
        findings.push(Finding {
            name: "TLS to PostgreSQL",
            verdict: Verdict::Warning,
            seen: format!("the connection to {host} is not verified"),
            remedy: "add sslmode=verify-full (and sslrootcert) to postgres.url".into(),
        });
    }
    let session = match SqlSession::connect(settings, "outbox-relay check").await {
        Ok(session) => session,
        Err(error) => {
            let remedy = "check postgres.url, and that the server is up";
            findings.push(problem("PostgreSQL", chain(&error), remedy));
            return findings;
        }
    };
    match server(config, &session).await {
        Ok(seen) => findings.extend(seen),
        Err(error) => {
            findings.push(problem("PostgreSQL", chain(&error), "grant the relay's role its rights"));
        }
    }
    findings
}

async fn server(
    config: &Config,
    session: &SqlSession,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let client = session.client();
    let mut findings = vec![version(session)];
    findings.extend(slot::preconditions(client).await?.into_iter().map(|fact| Finding {
        name: fact.name,
        verdict: if fact.remedy.is_some() { Verdict::Problem } else { Verdict::Ok },
        seen: fact.seen,
        remedy: fact.remedy.unwrap_or_default(),
    }));
    let name = &config.postgres.publication;
    let publication = slot::inspect_publication(client, name).await?;
    for table in &config.route.tables {
        let columns = slot::table_columns(client, &table.schema, &table.name).await?;
        findings.push(match slot::fits(name, publication.as_ref(), table, &columns) {
            Ok(()) => ok("publication", format!("{name} publishes inserts into {table}")),
            Err(halt) => problem("publication", halt.reason, &halt.remedy),
        });
        if !columns.is_empty() {
            let relation = Relation {
                id: 0,
                schema: table.schema.clone(),
                table: table.name.clone(),
                columns,
            };
            let origin = Origin { system_id: String::new(), timeline: 0 };
            findings.push(match Router::new(config.route.clone(), origin).relation(&relation) {
                Ok(_) => ok("columns", format!("{table} has every mapped column")),
                Err(error) => problem("columns", error.to_string(), "see docs/CONFIG.md, outbox"),
            });
        }
    }
    let name = &config.postgres.slot;
    findings.push(match slot::inspect(client, name).await? {
        None => ok("slot", format!("{name} does not exist yet; the first start makes it")),
        Some(slot) if slot.is_lost() => problem(
            "slot",
            format!("{name} has lost its WAL"),
            "run `outbox-relay resume --at now`, and raise max_slot_wal_keep_size",
        ),
        Some(slot) => ok("slot", format!("{name}: {slot}")),
    });
    Ok(findings)
}

fn version(session: &SqlSession) -> Finding {
    let version = session.server_version_num();
    let (major, minor) = (version / 10_000, version % 10_000);
    let seen = format!("version {major}.{minor}");
    if version < 140_000 {
        problem("PostgreSQL", seen, "PostgreSQL 14 or later is needed")
    } else {
        ok("PostgreSQL", seen)
    }
}

fn ok(name: &'static str, seen: String) -> Finding {
    Finding { name, verdict: Verdict::Ok, seen, remedy: String::new() }
}

fn problem(name: &'static str, seen: String, remedy: &str) -> Finding {
    Finding { name, verdict: Verdict::Problem, seen, remedy: remedy.to_owned() }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        text.push_str(": ");
        text.push_str(&below.to_string());
        cause = below.source();
    }
    text
}
