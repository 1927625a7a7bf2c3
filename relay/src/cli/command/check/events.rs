//! The events that are to come, as far as the tables tell: what the brokers would make of them.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{Finding, ok, problem, warning};
use crate::{
    causes,
    config::{Config, parts::Parts},
    core::{
        charset::Charset,
        record::{Batch, BatchLimits},
    },
    daemon::{locks, start::first},
    postgres::catalog::{InspectError, characters, table::TableState},
    repair::{self, Place, ROWS_MAX, Which},
    route::{Mapping, TableName, quoted},
    sink::doctor::{Concern, Expected},
};

const NAME: &str = "topics";
/// For all looks at all tables, so that the whole stays within its time.
const TIME_MAX: Duration = Duration::from_millis(2500);
/// For one of them.
const LOOK_MAX: Duration = Duration::from_millis(800);
/// Topics of parked events that are asked for.
const TOPICS_MAX: i64 = 100;
/// Concerns that are shown; the rest are counted.
const SHOWN_MAX: usize = 20;

/// Looks at one table after another.
pub(super) struct Look<'a> {
    config: &'a Config,
    mapping: &'a Mapping,
    client: &'a Client,
    charset: Charset,
    has_slot: bool,
    until: Instant,
    /// Whether a table could be looked at.
    pub(super) looked: bool,
    pub(super) expected: Expected,
}

impl<'a> Look<'a> {
    pub(super) async fn new(
        config: &'a Config,
        parts: &'a Parts,
        client: &'a Client,
        has_slot: bool,
    ) -> Result<Self, InspectError> {
        let failed = |source| InspectError::Query { what: "the topics of parked events", source };
        let sql = "select distinct topic from outbox.dead_letters \
                   where relay operator(pg_catalog.=) $1 and state in ('parked', 'releasing') \
                       and pg_catalog.length(topic) operator(pg_catalog.<=) 249 limit $2";
        let rows = match client.query(sql, &[&config.name, &TOPICS_MAX]).await {
            // That is a finding of its own.
            Err(error) if locks::refused(&error) => Vec::new(),
            rows => rows.map_err(failed)?,
        };
        let topics = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>();
        let mapping = &parts.mapping;
        let limits = BatchLimits { records_max: usize::MAX, bytes_max: usize::MAX };
        let expected = Expected {
            waiting: Batch::new(limits),
            newest: Batch::new(limits),
            topics: topics.map_err(failed)?,
            record_bytes_max: record_bytes_max(config, mapping, client).await?,
            published_in: mapping.is_ours().then(|| quoted(parts.connect.database())),
        };
        let charset = characters::charset(client).await?;
        let until = Instant::now() + TIME_MAX;
        Ok(Look { config, mapping, client, charset, has_slot, until, looked: false, expected })
    }

    /// Takes some of the table's rows. What can't be looked at in time is said.
    pub(super) async fn at(
        &mut self,
        name: &TableName,
        state: &TableState,
    ) -> Result<Option<Finding>, InspectError> {
        if !state.usable || !state.readable || state.row_security {
            return Ok(None); // That is a finding of its own.
        }
        self.looked = true;
        let place = Place {
            relay: &self.config.name,
            name,
            state,
            mapping: self.mapping,
            charset: &self.charset,
            record_bytes_max: self.config.batch.record_bytes_max,
        };
        let slot = self.has_slot.then_some(self.config.postgres.slot.as_str());
        let mut looks = vec![(Which::Newest { recent: self.has_slot }, &mut self.expected.newest)];
        if self.has_slot || first::takes_all(self.config, self.mapping) {
            looks.push((Which::Waiting { slot }, &mut self.expected.waiting));
        }
        let mut told = true;
        for (which, batch) in looks {
            let left = self.until.saturating_duration_since(Instant::now()).min(LOOK_MAX);
            told &= !left.is_zero()
                && repair::glance(self.client, place, which, left, batch)
                    .await
                    .map_err(|source| InspectError::Query { what: "the newest events", source })?;
        }
        let seen = || {
            format!(
                "the events of {name} could not be compared with their topics' settings in time, or \
                 the table does not tell which of them wait"
            )
        };
        Ok((!told).then(|| ok(NAME, seen())))
    }
}

/// How large an event can become: `outbox.publish` has a limit of its own.
async fn record_bytes_max(
    config: &Config,
    mapping: &Mapping,
    client: &Client,
) -> Result<usize, InspectError> {
    let ours = config.batch.record_bytes_max;
    if !mapping.is_ours() {
        return Ok(ours);
    }
    let sql = "select pg_catalog.pg_size_bytes(coalesce(nullif( \
                   pg_catalog.current_setting('outbox.record_bytes_max', true), ''), '1000000'))";
    let failed = |source| InspectError::Query { what: "outbox.record_bytes_max", source };
    let published: i64 =
        client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    Ok(usize::try_from(published).map_or(ours, |published| published.min(ours)))
}

/// What the brokers would make of them.
pub(super) async fn foreseen(
    parts: &Parts,
    expected: Expected,
    looked_at: bool,
) -> (Vec<Finding>, Option<()>) {
    let looked = expected.waiting.len().max(expected.newest.len()).min(ROWS_MAX);
    let concerns = match parts.sink.foresee(expected).await {
        None => return (vec![], None),
        Some(Ok(concerns)) => concerns,
        Some(Err(error)) => {
            let remedy = "check that the brokers answer, and what the principal may describe";
            return (vec![warning(NAME, causes::of(&error), remedy)], None);
        }
    };
    let more = concerns.len().saturating_sub(SHOWN_MAX);
    let mut found: Vec<Finding> = concerns.into_iter().take(SHOWN_MAX).map(finding).collect();
    if more > 0 {
        found.push(warning(NAME, format!("and {more} more of the kind"), ""));
    }
    if found.is_empty() {
        let seen = match looked {
            0 if !looked_at => {
                "not looked at, as no table can be published: correct that first".to_owned()
            }
            0 => "not looked at: the tables have no recent event, and none waits".to_owned(),
            _ => "would take the newest events, and those that wait".to_owned(),
        };
        found.push(ok(NAME, seen));
    }
    (found, None)
}

fn finding(Concern { stops, what, remedy }: Concern) -> Finding {
    if stops { problem(NAME, what, remedy) } else { warning(NAME, what, remedy) }
}

/// Rows of our own table that no one publishes: `outbox.publish` adds them there, whatever the
/// settings map.
pub(super) async fn unmapped(
    mapping: &Mapping,
    client: &Client,
) -> Result<Option<Finding>, InspectError> {
    let events = TableName { schema: "outbox".into(), table: "events".into() };
    if mapping.maps(&events.schema, &events.table) {
        return Ok(None);
    }
    let rows = match repair::rows_there(client, &[events]).await {
        Ok(None | Some(0)) => return Ok(None),
        Ok(Some(rows)) => repair::in_words(rows),
        // There is no such table, which is as good.
        Err(error) if error.as_db_error().is_some() => return Ok(None),
        Err(source) => return Err(InspectError::Query { what: "outbox.events", source }),
    };
    Ok(Some(warning(
        "table",
        format!(
            "outbox.events has {rows} and is not in outbox.tables: this relay publishes none of them. \
             outbox.publish adds events to that table"
        ),
        "have a relay with a name of its own publish it (outbox.tables = [\"outbox.events\"]), or have \
         the services insert into the table that is mapped",
    )))
}
