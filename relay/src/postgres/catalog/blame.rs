//! Which change of the relay's tables is why the server has refused a statement.
//!
//! The server names the constraint or the column where it knows it: then that one alone is told, and no harmless
//! change beside it.

use tokio_postgres::{
    Client,
    error::{DbError, SqlState},
};

use super::{
    altered::{self, Altered, Kind},
    columns,
    error::InspectError,
    suspects,
};

/// What was changed on those of the relay's tables that are named, in an order in which the remedies work. Who asks
/// is `relay`.
///
/// # Errors
/// [`InspectError`].
pub async fn look(
    client: &Client,
    tables: &[&str],
    relay: &str,
) -> Result<Vec<Altered>, InspectError> {
    let mut found = altered::look(client, tables).await?;
    // Of a table whose rows are hidden nothing can be told.
    if !found.iter().any(Altered::hides) {
        found.splice(0..0, columns::lacking(client, tables, relay).await?);
    }
    Ok(found)
}

/// What of the changes explains that the server refused a statement with `error`; empty where nothing does. What
/// refuses rows explains it only of a statement on `outbox.dead_letters` (`is_parking`); what hides them, or a column
/// that is gone, of any on `tables`; so does another type, where the client could not read
/// or write a value (no `error`).
///
/// # Errors
/// [`InspectError`].
pub async fn explaining(
    client: &Client,
    error: Option<&DbError>,
    is_parking: bool,
    tables: &[&str],
    relay: &str,
) -> Result<Vec<Altered>, InspectError> {
    let found = look(client, tables, relay).await?;
    let shaped = |it: &Altered| matches!(it.kind, Kind::Hides | Kind::Absent | Kind::Type);
    // The client has refused what the server gave or wanted.
    let Some(error) = error else { return Ok(only(&found, shaped)) };
    let code = error.code();
    if !is_parking && is_of_types(code) {
        return Ok(only(&found, shaped));
    }
    if *code == SqlState::UNDEFINED_COLUMN {
        // With a column its indexes are gone.
        let gone = |it: &Altered| matches!(it.kind, Kind::Hides | Kind::Absent | Kind::Index);
        return Ok(match found.iter().any(|it| it.hides() || it.is_absent()) {
            true => only(&found, gone),
            false => Vec::new(),
        });
    }
    if !is_parking || *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return Ok(only(&found, Altered::hides));
    }
    let told = Told::of(error);
    let guilty = match told.by_trigger {
        true => Vec::new(),
        false => only(&found, |it| told.blames(it)),
    };
    if !guilty.is_empty() {
        return Ok(guilty);
    }
    let found = only(&found, |it| told.may_blame(it));
    let all = suspects::look(client).await?;
    let named = only(&all, |it| told.names(it));
    if !named.is_empty() {
        return Ok(named);
    }
    if !told.by_trigger && !found.is_empty() {
        return Ok(found);
    }
    Ok(if all.is_empty() { found } else { all })
}

/// Whether the server has refused what a statement is or was to write, and will do so again.
#[must_use]
pub fn may_explain(code: &SqlState) -> bool {
    ["09", "0A", "21", "22", "23", "27", "38", "39", "42", "44", "54", "P0"]
        .iter()
        .any(|class| code.code().starts_with(class))
}

/// Whether the server refused a statement because of the types of its values or columns.
#[must_use]
pub fn is_of_types(code: &SqlState) -> bool {
    [SqlState::DATATYPE_MISMATCH, SqlState::UNDEFINED_FUNCTION].contains(code)
}

fn only(found: &[Altered], keep: impl Fn(&Altered) -> bool) -> Vec<Altered> {
    found.iter().filter(|it| keep(it)).cloned().collect()
}

/// What the server tells of the culprit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    constraint: Option<String>,
    column: Option<String>,
    /// A value that the type of some column does not take.
    value: bool,
    /// `ON CONFLICT` finds no index.
    no_index: bool,
    /// A row or an entry of an index is too large.
    too_large: bool,
    /// It happened in a function, or at another table: a trigger's doing.
    by_trigger: bool,
    /// In which function.
    context: String,
}

impl Told {
    fn of(error: &DbError) -> Self {
        let ours = error.schema() == Some("outbox") && error.table() == Some("dead_letters");
        let owned = |name: Option<&str>| name.filter(|_| ours).map(str::to_owned);
        let code = error.code();
        Told {
            constraint: owned(error.constraint()),
            column: owned(error.column()),
            value: error.table().is_none() && code.code().starts_with("22")
                || *code == SqlState::DATATYPE_MISMATCH,
            no_index: *code == SqlState::INVALID_COLUMN_REFERENCE,
            too_large: code.code().starts_with("54"),
            by_trigger: error.where_().is_some() || error.table().is_some() && !ours,
            context: error.where_().unwrap_or_default().to_owned(),
        }
    }

    /// Whether it happened in the function of this trigger, or this index refused it.
    fn names(&self, suspect: &Altered) -> bool {
        suspect.of.as_ref().is_some_and(|name| {
            self.context.contains(&format!("{name}(")) || self.constraint.as_ref() == Some(name)
        })
    }

    /// Whether it can have to do with it at all.
    fn may_blame(&self, it: &Altered) -> bool {
        match it.kind {
            Kind::Ids => false,
            Kind::Room => self.too_large,
            _ => true,
        }
    }

    fn blames(&self, it: &Altered) -> bool {
        let is = |named: &Option<String>| named.is_some() && *named == it.of;
        match it.kind {
            Kind::Hides | Kind::Trigger | Kind::Ids => false,
            Kind::Refuses => is(&self.constraint),
            Kind::Room => is(&self.constraint) || self.too_large && self.constraint.is_none(),
            Kind::Null => is(&self.column),
            Kind::Type => self.value,
            Kind::Index | Kind::Absent => self.no_index,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::altered::Remedy;

    fn change(kind: Kind, of: Option<&str>) -> Altered {
        Altered {
            kind,
            seen: String::new(),
            remedy: Remedy::Sql(String::new()),
            of: of.map(str::to_owned),
            takes_letters: false,
            costs: None,
        }
    }

    #[test]
    fn of_several_changes_the_one_that_the_server_names_is_blamed_alone() {
        let all = [
            change(Kind::Refuses, Some("tidy")),
            change(Kind::Refuses, Some("other")),
            change(Kind::Null, Some("team")),
            change(Kind::Null, Some("state")),
            change(Kind::Type, Some("reason")),
            change(Kind::Index, None),
            change(Kind::Room, Some("long")),
            change(Kind::Room, Some("payload")),
            change(Kind::Ids, None),
        ];
        let named = |name: &str| Some(name.to_owned());
        for (told, expected) in [
            (Told { constraint: named("tidy"), ..Told::default() }, vec![0]),
            (Told { column: named("state"), ..Told::default() }, vec![3]),
            (Told { value: true, ..Told::default() }, vec![4]),
            (Told { no_index: true, ..Told::default() }, vec![5]),
            (Told { too_large: true, ..Told::default() }, vec![6, 7]),
            (Told { too_large: true, constraint: named("long"), ..Told::default() }, vec![6]),
            (Told { constraint: named("state"), ..Told::default() }, vec![]),
            (Told::default(), vec![]),
        ] {
            let blamed = |(index, it): (usize, &Altered)| told.blames(it).then_some(index);
            let found: Vec<_> = all.iter().enumerate().filter_map(blamed).collect();
            assert_eq!(found, expected, "{told:?}");
        }
    }

    #[test]
    fn a_trigger_is_known_by_the_function_in_which_the_server_failed() {
        let context = "PL/pgSQL function outbox.refuse() line 1 at RAISE".to_owned();
        let told = Told { context, ..Told::default() };
        assert!(told.names(&change(Kind::Trigger, Some("refuse"))));
        assert!(!told.names(&change(Kind::Trigger, Some("outbox"))));
        assert!(!told.names(&change(Kind::Trigger, None)));
        let told = Told { constraint: Some("refuse".to_owned()), ..Told::default() };
        assert!(told.names(&change(Kind::Trigger, Some("refuse"))));
    }
}
