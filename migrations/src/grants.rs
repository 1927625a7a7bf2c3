//! What each role may do with the tables: the grants of `docs/ROLES.md`, as the programs ask for them.
//!
//! One list for `check`, for what a halt or a refused command says, and for the test that holds it
//! against the document. A right that is missing is named as the statement that gives it.

use std::fmt;

use tokio_postgres::{Client, Error};

/// A right on one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// `select`, `usage`, `execute`, ….
    pub right: &'static str,
    /// As GRANT names it: `schema outbox`, `outbox.events`, `function outbox.uuid_v7()`.
    pub object: &'static str,
    /// What can't be done without it; `None` where nothing works.
    pub serves: Option<&'static str>,
}

const fn grant(right: &'static str, object: &'static str) -> Grant {
    Grant { right, object, serves: None }
}

const fn grant_to(serves: &'static str, right: &'static str, object: &'static str) -> Grant {
    Grant { right, object, serves: Some(serves) }
}

const REPAIR: &str = "publish from the tables what a lost slot would have sent, or what is there at a \
                      first start";

/// `outbox_relay`: `run`, `check`, `resume`.
pub const RELAY: &[Grant] = &[
    grant("usage", "schema outbox"),
    grant_to(REPAIR, "select", "outbox.events"),
    grant_to("compare the database's version with the program's", "select", "outbox.migrations"),
    grant_to(REPAIR, "select", "outbox.deletions"),
    grant("select", "outbox.dead_letters"),
    grant("insert", "outbox.dead_letters"),
    grant("update", "outbox.dead_letters"),
    grant_to("delete old history of parked events", "delete", "outbox.dead_letters"),
    grant("select", "outbox.leaders"),
    grant("insert", "outbox.leaders"),
    grant("update", "outbox.leaders"),
    grant("select", "outbox.relay_keys"),
    grant("insert", "outbox.relay_keys"),
    grant("update", "outbox.relay_keys"),
];

/// `outbox_relay` as well, where the broker keeps no progress.
pub const RELAY_PROGRESS: &[Grant] = &[
    grant("select", "outbox.progress"),
    grant("insert", "outbox.progress"),
    grant("delete", "outbox.progress"),
];

/// `outbox_operator` in a producer's database: `dead-letters`.
pub const OPERATOR: &[Grant] = &[
    grant("usage", "schema outbox"),
    grant("select", "outbox.dead_letters"),
    grant("update", "outbox.dead_letters"),
];

/// `outbox_operator` in a consumer's database: `inbox`.
pub const INBOX_OPERATOR: &[Grant] = &[
    grant("usage", "schema inbox"),
    grant("select", "inbox.consumers"),
    grant("select", "inbox.dead_letters"),
    grant("update", "inbox.dead_letters"),
    grant("select", "inbox.parked_lanes"),
    grant("insert", "inbox.parked_lanes"),
    grant("update", "inbox.parked_lanes"),
    grant("insert", "inbox.parked"),
];

/// `inbox_consumer`: the consumer's crate.
pub const INBOX_CONSUMER: &[Grant] = &[
    grant("usage", "schema inbox"),
    grant("select", "inbox.settings"),
    grant("select", "inbox.losses"),
    grant("select", "inbox.consumers"),
    grant("insert", "inbox.consumers"),
    grant("select", "inbox.messages"),
    grant("insert", "inbox.messages"),
    grant("execute", "function inbox.maintain()"),
    grant("select", "inbox.parked_lanes"),
    grant("insert", "inbox.parked_lanes"),
    grant("update", "inbox.parked_lanes"),
    grant("delete", "inbox.parked_lanes"),
    grant("select", "inbox.parked"),
    grant("insert", "inbox.parked"),
    grant("delete", "inbox.parked"),
    grant("select", "inbox.dead_letters"),
    grant("insert", "inbox.dead_letters"),
    grant_to(BATCH, "execute", "function inbox.claim_batch(int, uuid[], date[], uuid[])"),
    grant_to(WATERMARK, "select", "inbox.watermarks"),
    grant_to(WATERMARK, "insert", "inbox.watermarks"),
    grant_to(WATERMARK, "update", "inbox.watermarks"),
    grant_to(WATERMARK, "select", "inbox.applied"),
    grant_to(WATERMARK, "insert", "inbox.applied"),
    grant_to(WATERMARK, "delete", "inbox.applied"),
    grant_to(WATERMARK, "execute", "function inbox.lock_watermark(int, text, int, uuid[])"),
    grant_to(WATERMARK, "execute", "function inbox.claim_by_id(int, text, int, uuid[], date[])"),
];

const BATCH: &str = "take several messages in one transaction";
const WATERMARK: &str = "remember messages by a watermark";

/// What a session's role lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Whom to grant it, quoted where SQL needs that.
    pub role: String,
    /// In the order of the list.
    pub grants: Vec<Grant>,
    /// Tables and functions that are not there: no one can grant anything on them before `migrate`.
    pub absent: Vec<&'static str>,
}

impl Lacking {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// Only what nothing works without.
    #[must_use]
    pub fn that_stop_everything(mut self) -> Self {
        self.grants.retain(|grant| grant.serves.is_none());
        self
    }

    /// The same, for people: `select, insert on outbox.dead_letters`.
    pub fn rights(&self) -> String {
        let rights =
            |(object, rights): &(&str, Vec<&str>)| format!("{} on {object}", rights.join(", "));
        self.by_object().iter().map(rights).collect::<Vec<_>>().join("; ")
    }

    fn by_object(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut objects: Vec<(&str, Vec<&str>)> = Vec::new();
        for Grant { right, object, .. } in &self.grants {
            match objects.iter_mut().find(|(known, _)| known == object) {
                Some((_, rights)) => rights.push(right),
                None => objects.push((object, vec![right])),
            }
        }
        objects
    }
}

/// The statements that give it.
impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (object, rights)) in self.by_object().iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}grant {} on {object} to {}", rights.join(", "), self.role)?;
        }
        Ok(())
    }
}

/// Which of `grants` the session's role lacks, and what of their objects is not there.
///
/// # Errors
/// The question was not answered.
pub async fn lacking(client: &Client, grants: &[Grant]) -> Result<Lacking, Error> {
    // One row at least: the role's name.
    let sql = "select pg_catalog.quote_ident(current_user), \
                   pg_catalog.array_remove(pg_catalog.array_agg(case when not (case g.kind \
                       when 'schema' then pg_catalog.has_schema_privilege(n.oid, g.privilege) \
                       when 'function' then pg_catalog.has_function_privilege(p.oid, g.privilege) \
                       else pg_catalog.has_table_privilege(c.oid, g.privilege) end) \
                       then g.place end), null::pg_catalog.int8), \
                   pg_catalog.array_remove(pg_catalog.array_agg(distinct case \
                       when coalesce(case g.kind when 'schema' then n.oid when 'function' then p.oid \
                           else c.oid end, 0::pg_catalog.oid) operator(pg_catalog.=) 0::pg_catalog.oid \
                       then g.place end), null::pg_catalog.int8) \
               from unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[], \
                       $4::pg_catalog.text[]) \
                   with ordinality g (kind, schema, name, privilege, place) \
               left join pg_catalog.pg_namespace n \
                   on n.nspname operator(pg_catalog.=) g.schema::pg_catalog.name \
               left join pg_catalog.pg_class c on c.relnamespace operator(pg_catalog.=) n.oid \
                   and c.relname operator(pg_catalog.=) g.name::pg_catalog.name \
               left join pg_catalog.pg_proc p on p.pronamespace operator(pg_catalog.=) n.oid \
                   and p.proname operator(pg_catalog.=) g.name::pg_catalog.name";
    let objects: Vec<(&str, &str, &str)> = grants.iter().map(|grant| parts(grant.object)).collect();
    let kinds: Vec<&str> = objects.iter().map(|(kind, ..)| *kind).collect();
    let schemas: Vec<&str> = objects.iter().map(|(_, schema, _)| *schema).collect();
    let names: Vec<&str> = objects.iter().map(|(.., name)| *name).collect();
    let rights: Vec<&str> = grants.iter().map(|grant| grant.right).collect();
    let row = client.query_one(sql, &[&kinds, &schemas, &names, &rights]).await?;
    let at = |place: i64| grants.get(usize::try_from(place).ok()?.checked_sub(1)?).copied();
    let read = |column: usize| -> Result<Vec<Grant>, Error> {
        let mut places: Vec<i64> = row.try_get::<_, Option<_>>(column)?.unwrap_or_default();
        places.sort_unstable();
        Ok(places.into_iter().filter_map(at).collect())
    };
    let mut absent: Vec<&str> = read(2)?.iter().map(|grant| grant.object).collect();
    absent.dedup();
    Ok(Lacking { role: row.try_get(0)?, grants: read(1)?, absent })
}

/// Kind, schema and name of an object as GRANT names it.
fn parts(object: &str) -> (&'static str, &str, &str) {
    if let Some(schema) = object.strip_prefix("schema ") {
        return ("schema", schema, "");
    }
    let (kind, name) = match object.strip_prefix("function ") {
        Some(name) => ("function", name.split('(').next().unwrap_or(name)),
        None => ("table", object),
    };
    let (schema, name) = name.split_once('.').unwrap_or(("", name));
    (kind, schema, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_is_told_as_the_statements_that_give_it() {
        let grants = RELAY.iter().copied().filter(|grant| grant.object != "outbox.events");
        let lacking =
            Lacking { role: "\"R\"".into(), grants: grants.take(5).collect(), absent: vec![] };
        assert_eq!(
            lacking.to_string(),
            "grant usage on schema outbox to \"R\"; grant select on outbox.migrations to \"R\"; \
             grant select on outbox.deletions to \"R\"; grant select, insert on \
             outbox.dead_letters to \"R\""
        );
        assert!(lacking.rights().ends_with("; select, insert on outbox.dead_letters"));
        let stopping = lacking.that_stop_everything();
        assert_eq!(
            stopping.rights(),
            "usage on schema outbox; select, insert on outbox.dead_letters"
        );
    }

    #[test]
    fn objects_are_named_as_grant_names_them() {
        assert_eq!(parts("schema outbox"), ("schema", "outbox", ""));
        assert_eq!(parts("outbox.events"), ("table", "outbox", "events"));
        assert_eq!(
            parts("function outbox.publish(text, jsonb)"),
            ("function", "outbox", "publish")
        );
    }
}
