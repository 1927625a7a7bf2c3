//! What the relay's role may do in the database.

use outbox_migrations::grants::{Lacking, lacking};
use tokio_postgres::Client;

use super::{Finding, ok, problem, warning};
use crate::{
    core::halt::Halt,
    postgres::catalog::{InspectError, renamed},
    rights,
    route::{Mapping, TableName},
    sink::any::Settings,
};

/// What the role may do of what the relay does, and whether there is something to do it with.
pub(super) async fn rights(
    mapping: &Mapping,
    sink: &Settings,
    client: &Client,
) -> Result<Vec<Finding>, InspectError> {
    const NAME: &str = "rights";
    let failed = |source| InspectError::Query { what: "the role's rights", source };
    let grants = sink.grants();
    let lacking = lacking(client, &grants).await.map_err(failed)?;
    let needed = |object: &&str| {
        grants.iter().any(|grant| grant.object == *object && grant.serves.is_none())
    };
    let absent: Vec<&str> = lacking.absent.iter().copied().filter(needed).collect();
    if !absent.is_empty() {
        let seen = format!("there is no {}", absent.join(", no "));
        let migrate = "run `outbox-relay migrate` as the schema's owner";
        let found = match renamed::dead_letters(client).await? {
            Some(back) => Some(back),
            None => renamed::schema(client).await?,
        };
        let remedy = found.map_or(migrate.to_owned(), |back| format!("{back}; else {migrate}"));
        return Ok(vec![problem("migrations", seen, remedy)]);
    }
    let stopping = rights::stopping(client, &grants, rights::HALTS_WHEN_NEEDED).await;
    if let Some(Halt { reason, remedy }) = stopping.map_err(failed)? {
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

/// Roles that may write `xid` as well, which only the column's default may: it would be theirs to say
/// whose transaction a row is. Databases that were migrated before the grants named columns have them.
pub(super) async fn writers(client: &Client) -> Result<Vec<Finding>, InspectError> {
    let failed = |source| InspectError::Query { what: "the writers' rights", source };
    let sql = "select distinct case when a.grantee operator(pg_catalog.=) 0 then 'public' \
                   else a.grantee::pg_catalog.regrole::pg_catalog.text end, a.of_table \
               from pg_catalog.pg_class c \
               join lateral ( \
                   select grantee, true as of_table from pg_catalog.aclexplode(c.relacl) \
                   where privilege_type operator(pg_catalog.=) 'INSERT' \
                   union all select x.grantee, false from pg_catalog.pg_attribute t, \
                       lateral pg_catalog.aclexplode(t.attacl) x \
                   where t.attrelid operator(pg_catalog.=) c.oid \
                       and t.attname operator(pg_catalog.=) 'xid' \
                       and x.privilege_type operator(pg_catalog.=) 'INSERT' \
               ) a on a.grantee operator(pg_catalog.<>) c.relowner \
               where c.oid operator(pg_catalog.=) pg_catalog.to_regclass('outbox.events') \
               order by 1, 2 limit 20";
    let rows = client.query(sql, &[]).await.map_err(failed)?;
    let finding = |row: &tokio_postgres::Row| {
        let (role, of_table): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
        let given = if of_table { "insert" } else { "insert (xid)" };
        let seen = format!(
            "{role} has {given} on outbox.events, and so may say of a row that another transaction \
             wrote it: such a row is taken for one that was moved, and not published"
        );
        let mut remedy = format!("revoke {given} on outbox.events from {role}");
        if of_table {
            remedy = format!("{remedy}; grant {WRITERS} on outbox.events to {role}");
        }
        Ok(warning("writers", seen, format!("`{remedy}`")))
    };
    rows.iter().map(finding).collect::<Result<_, _>>().map_err(failed)
}

/// As docs/ROLES.md has it.
const WRITERS: &str = "insert (id, topic, key, type, payload, headers, partition, created_at)";
