//! `outbox-relay migrate`: applies or prints a set of migrations.

use anyhow::Context;
use outbox_migrations::{
    Applied, Made, Set,
    grants::{RELAY, RELAY_PROGRESS, lacking},
};
use tokio_postgres::Client;

use crate::{config::Config, core::halt::Halt, postgres::sql};

/// What was done.
#[derive(Debug)]
pub(crate) struct Migrated {
    /// Migrations that were not there before.
    pub applied: Vec<Applied>,
    /// Tables that the history has and somebody had dropped.
    pub made_again: Vec<&'static str>,
    /// Functions, triggers and defaults that somebody had dropped.
    pub restored: Vec<&'static Made>,
}

/// Brings the database up to date. Two at once do not clash: the second waits, and finds
/// nothing left to do.
///
/// # Errors
/// No connection, or a migration failed; a failed migration leaves nothing behind.
pub(crate) async fn run(config: &Config, set: Set) -> anyhow::Result<Migrated> {
    let application = format!("outbox-relay {} migrate", config.name);
    let mut session =
        sql::connect(&config.connect()?, &application).await.context("connecting to PostgreSQL")?;
    let applied = outbox_migrations::apply(session.client_mut(), set).await;
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            let client = session.client();
            if let Some(halt) = of_another(client, set).await {
                return Err(halt.into()); // It says all that the server said, and more.
            }
            let error = anyhow::Error::new(error);
            return Err(match may_not_create(client).await {
                Some(halt) => error.context(halt),
                None => error.context(format!("applying the {} migrations", set.name())),
            });
        }
    };
    let put_back = put_back(session.client_mut(), set).await;
    let (made_again, restored) = match put_back {
        Ok(done) => done,
        Err(error) => {
            // What is put on a table takes its owner, and the server's words don't say so.
            let halt = anothers_tables(session.client(), set).await;
            return Err(halt.map_or(error, anyhow::Error::from));
        }
    };
    Ok(Migrated { applied, made_again, restored })
}

/// Makes again what somebody has dropped.
async fn put_back(
    client: &mut Client,
    set: Set,
) -> anyhow::Result<(Vec<&'static str>, Vec<&'static Made>)> {
    Ok(match set {
        Set::Outbox => {
            let made_again = make_again(client).await?;
            (made_again, outbox_migrations::restore_outbox(client).await?)
        }
        Set::Inbox => (outbox_migrations::recreate_inbox(client).await?, Vec::new()),
        _ => Default::default(),
    })
}

/// What the tables that were recreated mean for a person.
pub(crate) fn meaning(set: Set, made_again: &[&str]) -> String {
    match set {
        Set::Inbox => outbox_migrations::meaning(made_again),
        _ if made_again.contains(&"outbox.dead_letters") => {
            "made again, without the rows that were in it; now grant what docs/ROLES.md lists. Where events were \
             parked in it, the relay says how many, and how they are sent again, once it has started"
                .to_owned()
        }
        _ => "made again, without the rows that were in it; now grant what docs/ROLES.md lists".to_owned(),
    }
}

/// The right that schema and publication take, where the role lacks it.
async fn may_not_create(client: &Client) -> Option<Halt> {
    let query = "select pg_catalog.has_database_privilege(current_database(), 'create'), \
                     pg_catalog.quote_ident(current_database()), \
                     pg_catalog.quote_ident(current_user)";
    let row = client.query_one(query, &[]).await.ok()?;
    let (database, role): (String, String) = (row.try_get(1).ok()?, row.try_get(2).ok()?);
    (!row.try_get::<_, bool>(0).ok()?).then(|| {
        Halt::new(
            format!(
                "the role {role} lacks create on database {database}, which schema and publication \
                 take: the migration that failed has changed nothing"
            ),
            format!("`grant create on database {database} to {role}`"),
        )
    })
}

/// Names the owner of the schema if that is another role, which the guard of the migrations refuses. Mostly someone
/// ran the first `migrate` as a superuser.
async fn of_another(client: &Client, set: Set) -> Option<Halt> {
    let query = "select pg_catalog.quote_ident(o.rolname), pg_catalog.quote_ident(me.rolname) \
                 from pg_catalog.pg_namespace n \
                 join pg_catalog.pg_roles o on o.oid operator(pg_catalog.=) n.nspowner \
                 join pg_catalog.pg_roles me on me.rolname operator(pg_catalog.=) current_user \
                 where n.nspname operator(pg_catalog.=) $1 \
                     and n.nspowner operator(pg_catalog.<>) me.oid \
                     and not case when me.rolsuper then o.rolsuper \
                         else pg_catalog.pg_has_role(n.nspowner, 'usage') end";
    let row = client.query_opt(query, &[&set.name()]).await.ok()??;
    let (owner, role): (String, String) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
    let published = match set {
        Set::Outbox => " and for its publication",
        _ => "",
    };
    Some(Halt::new(
        format!(
            "the schema {set} belongs to the role {owner}, and not to {role}: {owner} could change \
             everything that the migrations make there. Nothing was changed"
        ),
        format!(
            "if {owner} made it with an earlier `outbox-relay migrate`, migrate as {owner} again, and grant what \
             docs/ROLES.md lists; or hand it over, as a superuser, with `alter schema {set} owner to {role}` and \
             the same for each table and function in it{published} (docs/ROLES.md has the \
             statements). If someone else made it, look at what is in it; then drop it, or rename it: \
             `alter schema {set} rename to {set}_of_a_stranger`; and migrate again"
        ),
    ))
}

/// Tables in the schema that another role owns, as where a superuser has made one anew: who migrates may not put triggers
/// and defaults on them.
async fn anothers_tables(client: &Client, set: Set) -> Option<Halt> {
    let query = "select c.oid::pg_catalog.regclass::pg_catalog.text, \
                     pg_catalog.quote_ident(o.rolname), pg_catalog.quote_ident(current_user) \
                 from pg_catalog.pg_class c \
                 join pg_catalog.pg_roles o on o.oid operator(pg_catalog.=) c.relowner \
                 where c.relnamespace operator(pg_catalog.=) pg_catalog.to_regnamespace($1) \
                     and c.relkind in ('r', 'p') and not pg_catalog.pg_has_role(c.relowner, 'usage') \
                 order by 1";
    let rows = client.query(query, &[&set.name()]).await.ok()?;
    let (mut belongs, mut hand_over, mut role) = (Vec::new(), Vec::new(), String::new());
    for row in &rows {
        let (table, owner): (String, String) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
        role = row.try_get(2).ok()?;
        belongs.push(format!("{table} belongs to the role {owner}"));
        hand_over.push(format!("alter table {table} owner to {role}"));
    }
    (!rows.is_empty()).then(|| {
        Halt::new(
            format!(
                "{}, and not to {role}, so {role} may not put back the triggers, functions and defaults that are \
                 missing: none of them was put back",
                belongs.join(", ")
            ),
            format!(
                "as a superuser, `{}`; then run this command again, and grant what docs/ROLES.md lists",
                hand_over.join("; ")
            ),
        )
    })
}

/// The publication that the table of events was in before it was dropped: ours, and of nothing now. The
/// migration makes it with the table, and takes no other for it.
const DROP_EMPTY: &str = "do $$ begin \
    if exists (select from pg_catalog.pg_publication p \
        where p.pubname operator(pg_catalog.=) 'outbox' and not p.puballtables \
            and pg_catalog.pg_has_role(p.pubowner, 'usage') \
            and not exists (select from pg_catalog.pg_publication_tables t \
                where t.pubname operator(pg_catalog.=) p.pubname)) \
    then drop publication outbox; end if; end $$";

/// A table that was renamed keeps the names of its indexes and of its constraint, so the new one would be made without
/// them.
const FREE_NAMES: &str = "do $$ declare it text; begin \
    for it in select pg_catalog.format('alter index outbox.%I rename to %I', i.relname, \
                'moved_' || x.indrelid::pg_catalog.text || '_' || i.relname) \
            from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid \
            where i.relnamespace = pg_catalog.to_regnamespace('outbox') and i.relname ~ '^dead_letters_' \
                and pg_catalog.pg_has_role(i.relowner, 'usage') \
        union all select pg_catalog.format('alter table %s rename constraint %I to %I', \
                c.conrelid::pg_catalog.regclass, c.conname, \
                'moved_' || c.conrelid::pg_catalog.text || '_' || c.conname) \
            from pg_catalog.pg_constraint c join pg_catalog.pg_class t on t.oid = c.conrelid \
            where c.connamespace = pg_catalog.to_regnamespace('outbox') and c.contype = 'c' \
                and c.conname ~ '^dead_letters_state_check' and pg_catalog.pg_has_role(t.relowner, 'usage') \
    loop execute it; end loop; end $$";

/// Tables that somebody has dropped are made again, by the migrations that name them: each of their
/// statements may be repeated. Others are left alone, for the relay watches what they would touch.
async fn make_again(client: &mut Client) -> anyhow::Result<Vec<&'static str>> {
    let doing = "making again what was dropped; nothing was changed";
    let tables = [RELAY, RELAY_PROGRESS].concat();
    let absent = lacking(client, &tables).await.context("looking for what is missing")?.absent;
    let names = |sql: &str| absent.iter().any(|table| sql.contains(table));
    if absent.is_empty() {
        return Ok(absent);
    }
    let transaction = client.transaction().await.context(doing)?;
    // Whoever waits for a table has everybody else wait behind.
    transaction.batch_execute("set local lock_timeout = '2s'").await.context(doing)?;
    if absent.contains(&"outbox.events") {
        transaction.batch_execute(DROP_EMPTY).await.context(doing)?;
    }
    if absent.contains(&"outbox.dead_letters") {
        transaction.batch_execute(FREE_NAMES).await.context(doing)?;
    }
    for migration in Set::Outbox.migrations().iter().filter(|migration| names(migration.sql)) {
        transaction.batch_execute(migration.sql).await.context(doing)?;
    }
    transaction.commit().await.context(doing)?;
    Ok(absent)
}
