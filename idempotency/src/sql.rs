//! What a handler's SQL would do, as far as its words tell. Pure.

/// What a text of statements does beside its work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Names may mean other tables, functions and types behind it: it sets the search path or the role, makes a
    /// temporary table, or runs code that may.
    pub(crate) changes_names: bool,
    /// The server forgets prepared statements.
    pub(crate) forgets_what_is_prepared: bool,
}

/// By single words, wherever they stand: one too many costs a round trip for each later statement of the message.
pub(crate) fn effects(sql: &str) -> Effects {
    let mut effects = Effects::default();
    let mut before = "";
    let is_between = |c: char| !c.is_alphanumeric() && c != '_';
    for word in sql.split(is_between).filter(|word| !word.is_empty()) {
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        let behind = |others: &[&str]| others.iter().any(|it| before.eq_ignore_ascii_case(it));
        let any = |others: &[&str]| others.iter().any(|it| word.eq_ignore_ascii_case(it));
        if any(&["deallocate", "discard"]) {
            effects.forgets_what_is_prepared = true;
        }
        effects.changes_names |= any(&[
            "search_path",
            "set_config",
            "authorization",
            "temp",
            "temporary",
            "pg_temp",
            "call",
            "discard",
        ]) || (is("role")
            && behind(&["set", "local", "session", "reset"]))
            || (is("schema") && behind(&["set"]))
            || (is("all") && behind(&["reset"]))
            || (behind(&["do"]) && !any(&["nothing", "update"]));
        before = word;
    }
    effects
}

/// Of the first statement, and the extended protocol takes no others. Functions, CALL and DO can't end a
/// transaction that was open before.
pub(crate) fn ends_a_transaction(sql: &str) -> bool {
    let mut words = words(sql);
    let mut next = || words.next().unwrap_or_default().to_ascii_lowercase();
    match next().as_str() {
        "commit" | "end" | "abort" => true,
        // ROLLBACK [WORK | TRANSACTION] TO …
        "rollback" => match next().as_str() {
            "to" => false,
            "work" | "transaction" => next() != "to",
            _ => true,
        },
        "prepare" => next() == "transaction",
        _ => false,
    }
}

/// The words at the beginning of a statement, without comments.
fn words(sql: &str) -> impl Iterator<Item = &str> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
            if let Some(comment) = rest.strip_prefix("--") {
                rest = comment.split_once(['\n', '\r']).map_or("", |(_, rest)| rest);
            } else if let Some(comment) = rest.strip_prefix("/*") {
                rest = after_comment(comment);
            } else {
                break;
            }
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// Behind the end of a comment, which may hold others.
fn after_comment(mut rest: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let close = rest.find("*/").unwrap_or(rest.len());
        match rest.find("/*") {
            Some(open) if open < close => {
                depth += 1;
                rest = rest.get(open + 2..).unwrap_or_default();
            }
            _ => {
                depth -= 1;
                rest = rest.get(close + 2..).unwrap_or_default();
            }
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_the_transaction_is_known_by_its_first_words() {
        for sql in [
            "commit",
            " COMMIT AND CHAIN",
            ";;end",
            "/* a /* b */ c */ rollback",
            "-- a\n-- b\r\nabort;",
            "rollback work",
            "rollback transaction and chain",
            "prepare transaction 'x'",
        ] {
            assert!(ends_a_transaction(sql), "{sql}");
        }
        for sql in [
            "",
            "/* commit",
            "select 'commit'",
            "rollback to x",
            "rollback work to savepoint x",
            "rollback/**/transaction--\nto x",
            "prepare x as select 1",
            "commitment",
            "release savepoint x",
        ] {
            assert!(!ends_a_transaction(sql), "{sql}");
        }
    }

    #[test]
    fn what_changes_the_meaning_of_names_is_known_by_its_words() {
        for sql in [
            "set local search_path = acme",
            "SET  SESSION\nROLE acme",
            "set role none",
            "reset all",
            "set schema 'acme'",
            "alter table a set schema b",
            "set session authorization acme",
            "select pg_catalog.set_config('search_path', $1, true)",
            "create temp table t (n int)",
            "create temporary view v as select 1",
            "select 1 as n into pg_temp.t",
            "do $$ begin perform x(); end $$",
            "call tidy($1)",
            "discard all",
        ] {
            assert!(effects(sql).changes_names, "{sql}");
        }
        for sql in [
            "insert into a (role, schema_name) values ($1, $2) on conflict do nothing",
            "insert into a values ($1) on conflict (id) do update set n = $2",
            "select temperature, template, reset_at from a where done",
            "update a set n = n + 1 where all_done",
            "set local lock_timeout = '1s'",
        ] {
            assert!(!effects(sql).changes_names, "{sql}");
        }
    }

    #[test]
    fn what_forgets_prepared_statements_is_known_by_its_words() {
        for sql in ["deallocate all", "select 1; DISCARD plans", "deallocate prepare x"] {
            assert!(effects(sql).forgets_what_is_prepared, "{sql}");
        }
        assert!(!effects("select discarded from a").forgets_what_is_prepared);
    }
}
