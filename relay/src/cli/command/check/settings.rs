//! Settings of the server and types of columns that stop nothing, and change what the relay does.

use tokio_postgres::Client;

use super::{Finding, problem, warning};
use crate::{
    config::{Config, parts::Parts},
    daemon::standbys::{self, Standbys},
    postgres::{
        catalog::{InspectError, table::TableState},
        error::named,
    },
    route::{Mapping, TableName},
};

/// `pg_type.oid` of `timestamp`, which has no time zone.
const TIMESTAMP: u32 = 1114;

/// What of the server's and the role's settings a person should know.
pub(super) async fn of_server(
    config: &Config,
    parts: &Parts,
    client: &Client,
) -> Result<Vec<Finding>, InspectError> {
    let failed = |source| InspectError::Query { what: "the server's settings", source };
    let found = standbys::look(client).await.map_err(failed)?;
    let standby = standby(&found, &standbys::application(config, parts));
    let sql = "select setting, source from pg_catalog.pg_settings \
               where name operator(pg_catalog.=) 'session_replication_role'";
    let row = client.query_one(sql, &[]).await.map_err(failed)?;
    let (role, source) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    let triggers = replication_role(role, source, parts.connect.database(), parts.connect.user());
    Ok(standby.into_iter().chain(triggers).collect())
}

fn standby(found: &Standbys, application: &str) -> Option<Finding> {
    const NAME: &str = "standbys";
    let names = &found.names;
    if standbys::counts(names, application) {
        return Some(warning(
            NAME,
            format!(
                "synchronous_standby_names = '{names}' counts the relay's own stream as a standby: \
                 commits of everybody may wait for it, and what it parks is durable on this server alone"
            ),
            "name the standbys: `alter system set synchronous_standby_names = '…'`",
        ));
    }
    let (seen, remedy) = found.away()?;
    Some(problem(NAME, seen, remedy))
}

/// `source` is as in `pg_settings`.
fn replication_role(role: &str, source: &str, database: &str, login: &str) -> Option<Finding> {
    let remedy = match source {
        // Which file it is, a superuser alone is told.
        "configuration file" => {
            "as a superuser, `alter system reset session_replication_role`, or remove it from postgresql.conf if \
             it is set there; then `select pg_reload_conf()`"
        }
        "global" => "as a superuser, `alter role all reset session_replication_role`",
        "user" => "`alter role {role} reset session_replication_role`",
        "database" => "`alter database {database} reset session_replication_role`",
        "database user" => {
            "`alter role {role} in database {database} reset session_replication_role`"
        }
        _ => {
            "`alter role {role} reset session_replication_role`; `alter database {database} reset \
             session_replication_role`"
        }
    };
    (role != "origin").then(|| {
        warning(
            "triggers",
            format!(
                "the session has session_replication_role = {role}: only triggers that are always enabled \
                 fire for it, as those of this schema are"
            ),
            named(remedy, database, login),
        )
    })
}

/// A time without a zone is some moment only by agreement.
pub(super) fn zone(name: &TableName, table: &TableState, mapping: &Mapping) -> Option<Finding> {
    let created_at = mapping.created_at_column()?;
    let column = table.columns.iter().find(|column| column.name == created_at)?;
    (column.type_oid == TIMESTAMP).then(|| {
        warning(
            "time",
            format!(
                "{name}.{created_at} is a timestamp without time zone: it is taken as UTC, whatever the \
                 server's or the writer's zone is"
            ),
            format!(
                "write UTC into it, or: alter table {name} alter column {created_at} type timestamptz \
                 (which rewrites the table)"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_whose_triggers_do_not_fire_is_named() {
        assert!(replication_role("origin", "default", "d", "r").is_none());
        for (source, remedy) in [
            ("user", "`alter role r reset session_replication_role`"),
            ("database user", "`alter role r in database d reset session_replication_role`"),
            ("database", "`alter database d reset session_replication_role`"),
            ("global", "`alter role all reset session_replication_role`"),
            ("configuration file", "`alter system reset session_replication_role`"),
        ] {
            let found = replication_role("replica", source, "d", "r").expect("named");
            assert!(found.seen.contains("replica"), "{found:?}");
            assert!(found.remedy.contains(remedy), "{found:?}");
            let reloads = found.remedy.contains("`select pg_reload_conf()`");
            assert_eq!(reloads, source == "configuration file", "{found:?}");
        }
    }
}
