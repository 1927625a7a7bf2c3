//! Functions, operators, types and relations that stand in for PostgreSQL's own, for every name there
//! is, and say so in the server's log when one is used.
//!
//! What a stranger may make in `public` on PostgreSQL 14, and whoever may create a schema anywhere.
//! They come first in the `search_path` of each role, so a statement that is not immune meets them.

use crate::{
    database::{Database, Role},
    postgres::Session,
};

/// What the server's log says when one was used.
pub const CALLED: &str = "an impostor was used";

/// Makes the impostors of one schema, `{schema}`; of each name and each list of arguments that
/// `pg_catalog` has, as far as SQL lets a user have them.
const MAKE: &str = r#"
set local search_path = pg_catalog, pg_temp;
create function {schema}.impostor(what text) returns bool language plpgsql volatile as $$
begin
    raise exception 'an impostor was used: %', what;
end $$;
do $do$
declare
    found record;
    made int := 0;
    body text;
begin
    for found in
        -- Functions; aggregates and window functions as plain functions of the same arguments.
        select format('function %s(%s)', p.proname, oidvectortypes(p.proargtypes)) as what,
            case
                when p.prokind = 'a' and p.pronargs = 0
                    then format('create aggregate {schema}.%I(*) (sfunc = int8inc, stype = int8)',
                        p.proname)
                else format('create function {schema}.%I(%s) returns %s language plpgsql',
                    p.proname,
                    replace(pg_get_function_arguments(p.oid), '"any"', 'anyelement'),
                    pg_get_function_result(p.oid))
            end as statement,
            p.prokind <> 'a' or p.pronargs > 0 as has_body
        from pg_proc as p
        where p.pronamespace = 'pg_catalog'::regnamespace and {functions}
        union all
        -- Those whose results have the names of their arguments.
        select format('function %s(%s)', p.proname, oidvectortypes(p.proargtypes)),
            format('create function {schema}.%I(%s) returns %s language plpgsql', p.proname,
                pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)),
            true
        from pg_proc as p
        where p.pronamespace = 'pg_catalog'::regnamespace and p.proargmodes is not null
            and {functions}
        union all
        -- For each of PostgreSQL's that takes any type, some that take one exactly: they are better
        -- matches, wherever the search_path has them.
        select format('function %s(%s)', p.proname, exact.arguments),
            format('create function {schema}.%I(%s) returns text language plpgsql', p.proname,
                exact.arguments),
            true
        from pg_proc as p,
            unnest(array['text', 'bigint', 'integer', 'jsonb', 'uuid', 'oid', 'text[]']) as t,
            lateral (select regexp_replace(
                regexp_replace(oidvectortypes(p.proargtypes),
                    '\m(anyarray|anycompatiblearray)\M', rtrim(t, '[]') || '[]', 'g'),
                '"any"|\m(anyelement|anynonarray|anycompatible|anycompatiblenonarray)\M', t, 'g')
                as arguments) as exact
        where p.pronamespace = 'pg_catalog'::regnamespace
            and exact.arguments <> oidvectortypes(p.proargtypes) and {functions}
        union all
        select format('type %s', t.typname),
            format('create domain {schema}.%I as pg_catalog.%I check ({schema}.impostor(%L))',
                t.typname, t.typname, 'type ' || t.typname), false
        from pg_type as t
        where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b'
            and t.typelem = 0
        union all
        select format('relation %s', c.relname),
            format('create view {schema}.%I as select x.* from (select {schema}.impostor(%L) '
                'offset 0) as called, pg_catalog.%I as x', c.relname, 'relation ' || c.relname,
                c.relname), false
        from pg_class as c
        where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind in ('r', 'v')
    loop
        begin
            body := format(' as %L', format('begin perform {schema}.impostor(%L); end',
                found.what));
            execute found.statement || case when found.has_body then body else '' end;
            made := made + 1;
        exception when others then
            null; -- Its arguments or its result are of a type that users can't have.
        end;
    end loop;
    for found in
        select o.oid, o.oprname as name, format_type(o.oprleft, null) as l,
            format_type(o.oprright, null) as r, format_type(o.oprresult, null) as result
        from pg_operator as o
        where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft <> 0 and o.oprright <> 0
            and {functions}
    loop
        begin
            execute format('create function {schema}.%I(%s, %s) returns %s language plpgsql as %L',
                'op_' || found.oid, found.l, found.r, found.result,
                format('begin perform {schema}.impostor(%L); end',
                    format('operator %s (%s, %s)', found.name, found.l, found.r)));
            execute format('create operator {schema}.%s (function = {schema}.%I, leftarg = %s, '
                'rightarg = %s)', found.name, 'op_' || found.oid, found.l, found.r);
            made := made + 1;
        exception when others then
            null;
        end;
    end loop;
    grant select on all tables in schema {schema} to public;
    if made < {least} then
        raise exception 'only % impostors could be made', made;
    end if;
end $do$;
"#;

/// Makes them in `public`, as a role without any grant but the one to create there, and in a schema
/// that has the relay's role's name, and has them come first for every role of the database.
///
/// # Panics
/// When they can't be made.
pub async fn plant(database: &Database) {
    let superuser = database.superuser();
    let stranger = format!("stranger_{}", database.name());
    let own = database.name_of(Role::Relay);
    let make = MAKE.replace("{functions}", "true").replace("{least}", "2500");
    let granted = format!(
        "create role {stranger}; grant usage, create on schema public to {stranger}; \
         create schema {own} authorization {stranger}; grant usage on schema {own} to public"
    );
    superuser.batch_execute(&granted).await.expect("a stranger");
    for schema in ["public", &own] {
        let make = make.replace("{schema}", schema);
        let sql = format!("begin; set local role {stranger}; {make}; commit");
        superuser.batch_execute(&sql).await.expect("impostors");
    }
    for role in database.roles() {
        let first = format!(
            "alter role {role} in database {} set search_path = \"$user\", public, pg_catalog, \
             pg_temp",
            database.name()
        );
        superuser.batch_execute(&first).await.expect("a setting");
    }
}

/// Makes those that a session can have for itself alone: relations and types, which come before
/// PostgreSQL's own unless the `search_path` says otherwise.
///
/// # Errors
/// The database's.
pub async fn plant_temporary(client: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    let make = MAKE.replace("    grant select on all tables in schema {schema} to public;\n", "");
    let make = make.replace("{schema}", "pg_temp").replace("{functions}", "false");
    client.batch_execute(&format!("begin; {}; commit", make.replace("{least}", "100"))).await
}

/// Whether a statement meets an impostor.
pub async fn meets_one(session: &Session, sql: &str) -> bool {
    match session.batch_execute(sql).await {
        Ok(()) => false,
        Err(error) => error.as_db_error().is_some_and(|error| error.message().contains(CALLED)),
    }
}
