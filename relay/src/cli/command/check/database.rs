//! The database: whether it is of this version, and whether tables, publication and slot serve.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tokio_postgres::Client;

use super::{
    Finding, HALF_MAX,
    capacity::capacity,
    events, identity, meddling, migrations, neighbours, ok, passed, problem,
    rights::{rights, writers},
    settings, start, tables, warning,
};
use crate::{
    capacity::Own,
    causes,
    config::{Config, parts::Parts},
    daemon::{locks, start::first},
    postgres::{
        ConnectError,
        catalog::{InspectError, kept, publication::changed_under, slot, standby_slots, table},
        holders, shortage,
        sql::{self, SqlSession},
    },
    repair,
    route::Mapping,
    sink::doctor::Expected,
    table_fit,
};

/// The session and what is to be delivered (and whether a table could be looked at for it), where all
/// could be asked on it.
pub(super) async fn looked_at(
    config: &Config,
    parts: &Parts,
) -> (Vec<Finding>, Option<(SqlSession, (Expected, bool))>) {
    let (mut findings, begun) = (Vec::new(), Instant::now());
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
                    let short = error
                        .sqlstate()
                        .and_then(|code| shortage::at_connect(code, &parts.connect));
                    let remedy = short.unwrap_or_else(|| {
                        "check postgres.url, and that the server is up".to_owned()
                    });
                    problem("PostgreSQL", causes::of(&error), remedy)
                }
            });
            return (findings, None);
        }
    };
    let (mut seen, looking) = (Vec::new(), Looking::at("its settings and the relay's rights"));
    let left = HALF_MAX.saturating_sub(MARGIN + begun.elapsed());
    match timeout(left, server(config, parts, session.client(), &mut seen, &looking)).await {
        Err(_elapsed) => {
            findings.extend(seen);
            findings.push(looking.too_long());
            (findings, None)
        }
        Ok(Ok(expected)) => {
            let go_on = passed(&seen) || seen.iter().any(|finding| finding.name == "slot");
            findings.extend(seen);
            (findings, expected.filter(|_| go_on).map(|expected| (session, expected)))
        }
        Ok(Err(error)) => {
            findings.extend(seen);
            findings.push(match locks::refused(&error) {
                true => locked(session.client()).await,
                false => {
                    let source = std::error::Error::source(&error);
                    let source = source.and_then(|it| it.downcast_ref::<tokio_postgres::Error>());
                    let code = source.and_then(tokio_postgres::Error::code);
                    let short = code.and_then(|code| shortage::remedy(code.code(), &parts.connect));
                    let rights = || "grant the relay's role what docs/ROLES.md lists".to_owned();
                    problem("PostgreSQL", causes::of(&error), short.unwrap_or_else(rights))
                }
            });
            (findings, None)
        }
    }
}

async fn server(
    config: &Config,
    parts: &Parts,
    client: &Client,
    findings: &mut Vec<Finding>,
    looking: &Looking,
) -> Result<Option<(Expected, bool)>, InspectError> {
    let limited = client.batch_execute(LOCK_WAIT).await;
    limited.map_err(|source| InspectError::Query { what: "limiting waits for locks", source })?;
    let name = &config.postgres.slot;
    let found = slot::inspect(client, name).await?;
    let server = slot::capacity(client).await?;
    let own = Own { slot: found.is_some(), sender: found.as_ref().is_some_and(|slot| slot.active) };
    findings.extend(capacity(&server, own, parts));
    findings.extend(settings::of_server(config, parts, client).await?);
    // Without the right to the schema it can't be asked, and the right is found below.
    let hidden = meddling::hidden(parts, &config.name, client).await.unwrap_or_default();
    if !hidden.is_empty() {
        findings.extend(hidden);
        return Ok(None);
    }
    let migrations = migrations::applied(client).await?;
    let mut ours: Vec<Finding> = migrations.into_iter().collect();
    if passed(&ours) {
        ours.extend(rights(&parts.mapping, &parts.sink, client).await?);
    }
    if passed(&ours) {
        ours.extend(writers(client).await?);
    }
    let is_whole = passed(&ours);
    findings.extend(ours);
    let differing = migrations::differing(client).await?;
    if is_whole && differing.is_empty() {
        findings.extend(migrations::dropped(client).await?);
    }
    findings.extend(differing);
    if is_whole {
        let (altered, lacks) = meddling::altered(parts, &config.name, client).await?;
        findings.extend(altered);
        if lacks {
            return Ok(None);
        }
    }
    if !is_whole {
        // What comes now would only say the same in other words, but for tables of someone else's.
        findings.extend(tables::of_others(config, &parts.mapping, client).await?);
        return Ok(None);
    }
    looking.next_at("outbox.dead_letters");
    // Somebody's lock on the parked events says nothing of all the rest.
    findings.push(match start::parking(config, client).await {
        Err(error) if locks::refused(&error) => locked(client).await,
        parking => parking?,
    });
    findings.extend(meddling::own(parts, client).await?);
    findings.extend(meddling::restored(&config.name, client).await?);
    let publication_name = &config.postgres.publication;
    let mut events = events::Look::new(config, parts, client, found.is_some()).await?;
    let publication = slot::inspect_publication(client, publication_name).await?;
    let mapping = &parts.mapping;
    let mut known = Vec::new();
    for table in mapping.tables() {
        looking.next_at(format!("what {table} is like"));
        let state = table::inspect(client, &table.schema, &table.table).await?;
        let publication = publication.as_ref();
        let fits = table_fit::all(publication_name, publication, table, state.as_ref(), mapping);
        let fit = fits.as_ref().ok().copied();
        findings.extend(match fits {
            Ok(_) => {
                vec![ok("table", format!("{table} is published by {publication_name} and fits"))]
            }
            Err(unfit) => unfit.into_iter().flat_map(tables::unfit).collect(),
        });
        let Some(state) = state else { continue };
        if let Some(fit) = fit {
            let kept = config.outbox.rows_kept;
            findings.push(tables::rows(publication_name, table, fit, &state, mapping, kept));
            findings.extend(settings::zone(table, &state, mapping));
            findings.extend(meddling::events(table, client).await?);
            findings.extend(tables::unlimited(table, client).await?);
            looking.next_at(format!("the newest events in {table}, and those that wait"));
            findings.extend(events.at(table, &state).await?);
        }
        known.push((table, state));
    }
    looking.next_at("the publication and the slots");
    findings.extend(tables::same_ids(&known, mapping));
    findings.extend(events::unmapped(mapping, client).await?);
    findings.extend(identity::lacking(mapping, client).await?);
    if found.is_some() && publication.is_some() {
        let tables = parts.mapping.tables().iter();
        let tables = tables.map(|table| (table.schema.as_str(), table.table.as_str()));
        findings.push(match changed_under(client, name, publication_name, tables).await? {
            false => {
                let seen = format!(
                    "{publication_name} was not changed since the oldest transaction that the slot {name} may \
                     still send"
                );
                ok("publication", seen)
            }
            true => warning(
                "publication",
                format!(
                    "{publication_name} was changed after the oldest transaction that the slot {name} may \
                         still send: what was written before may not be in the stream"
                ),
                "start the relay: it compares with what it knows, and publishes from the tables \
                     what may be missing, or halts with the interval",
            ),
        });
    }
    if found.is_none() {
        findings.extend(first_start(config, mapping, client).await?);
    }
    findings.extend(neighbours::awaited(&standby_slots::named(client).await?, found.as_ref()));
    findings.push(match found {
        None => ok("slot", format!("{name} does not exist yet; the first start makes it")),
        // Whether the start can replace it, the start says.
        Some(slot) if slot.is_lost() => warning(
            "slot",
            format!("{name} has lost its WAL"),
            "so that it does not happen again: raise max_slot_wal_keep_size",
        ),
        Some(slot) => {
            let confirmed = slot.confirmed_flush_lsn.unwrap_or_default();
            let used = if slot.active { "active" } else { "not active" };
            ok("slot", format!("{name} is {used}, confirmed up to {confirmed}"))
        }
    });
    let held = holders::long(client)
        .await
        .map_err(|source| InspectError::Query { what: "locks of the relay's tables", source })?;
    if !held.is_empty() {
        findings.push(warning(
            "locks",
            format!(
                "writers, the relay, or both are kept out of a table: {}",
                held.join(", ")
            ),
            "wait until it is gone, or end it; PostgreSQL takes a lock before it looks at rights, so it may \
             be of a role that has none on the table",
        ));
    }
    if !server.in_recovery {
        let kept = kept::look(client, name).await?;
        findings.extend(kept.map(|kept| neighbours::keeping(&kept, name)));
        findings.extend(neighbours::idle(&slot::idle_slots(client, name).await?));
    }
    Ok(Some((events.expected, events.looked)))
}

/// What is left of the half's time to say what took it.
const MARGIN: Duration = Duration::from_millis(500);

/// At what, so that it can be said if it takes too long: the server is there, and is at work.
struct Looking(RefCell<String>);

impl Looking {
    fn at(what: impl Into<String>) -> Self {
        Looking(RefCell::new(what.into()))
    }

    fn next_at(&self, what: impl Into<String>) {
        self.0.replace(what.into());
    }

    fn too_long(&self) -> Finding {
        problem(
            "PostgreSQL",
            format!(
                "it answers, but a look at {} took too long, and what comes after it was not looked at",
                self.0.borrow()
            ),
            "run check again when the server has less to do; if it stays so, a row may take long to read, as one \
             of hundreds of MB does: `select pid, wait_event, query from pg_stat_activity where \
             application_name = 'outbox-relay check'` shows what it is at",
        )
    }
}

/// No one else is to wait for long behind a look.
const LOCK_WAIT: &str = "set lock_timeout = '300ms'";

/// Somebody holds what is to be looked at.
async fn locked(client: &Client) -> Finding {
    let held = holders::of_tables(client).await;
    problem(
        "locks",
        format!("another session holds a lock that keeps the relay from a table: {held}"),
        "wait until it is gone, or end it, and run check again. Until then all events wait as soon as the relay \
         needs that table: one of its own when an event must be parked, a catalog when it starts or looks",
    )
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
        ok("first start", format!("if it is the first one, it publishes what is there: {rows}"))
    } else {
        warning(
            "first start",
            format!("if it is the first one, it leaves out what is there already: {rows}"),
            "set postgres.start to \"all\" to publish them; later, each would have to be inserted again, without its xid",
        )
    }))
}
