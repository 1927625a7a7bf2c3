//! Whether the database has what this version's migrations make, and a history that it continues.

use outbox_migrations::{Difference, Made, Set, differences, missing_outbox};
use tokio_postgres::{Client, Error};

use super::{Finding, ok, problem, warning};
use crate::postgres::catalog::InspectError;

const NAME: &str = "migrations";

/// Whether the database has what this version's migrations make; `None` where it does not say: the
/// files were applied by hand, or the history may not be read.
pub(super) async fn applied(client: &Client) -> Result<Option<Finding>, InspectError> {
    let Some(newest) = Set::Outbox.migrations().iter().map(|m| m.version).max() else {
        return Ok(None);
    };
    let query = "select pg_catalog.max(version), \
                     pg_catalog.row_security_active('outbox.migrations'::pg_catalog.regclass) \
                 from outbox.migrations";
    let row = client.query_one(query, &[]).await;
    let applied =
        row.and_then(|row| Ok((row.try_get::<_, Option<i32>>(0)?, row.try_get::<_, bool>(1)?)));
    let Some((applied, hidden)) = told(applied)? else { return Ok(None) };
    if hidden {
        return Ok(None);
    }
    let applied = applied.unwrap_or(0);
    Ok(match applied.cmp(&newest) {
        std::cmp::Ordering::Less => {
            let seen =
                format!("the database has migration V{applied}, this version needs V{newest}");
            Some(problem(NAME, seen, "run `outbox-relay migrate` as the schema's owner"))
        }
        std::cmp::Ordering::Equal => Some(ok(NAME, format!("V{applied}"))),
        // `differing` says it.
        std::cmp::Ordering::Greater => None,
    })
}

/// What `migrate` refuses. A relay works with what a newer version has made, or halts and says what it
/// misses; of other texts no one knows what they have made.
pub(super) async fn differing(client: &Client) -> Result<Vec<Finding>, InspectError> {
    let found = told(differences(client, Set::Outbox).await)?.unwrap_or_default();
    Ok(found.iter().map(finding).collect())
}

fn finding(difference: &Difference) -> Finding {
    let seen = format!("outbox.migrations {difference}: `outbox-relay migrate` refuses that");
    match difference {
        Difference::Newer(_) => warning(
            NAME,
            format!("{seen}, and an older relay may not know what a newer one stores"),
            "run the version that applied it",
        ),
        Difference::Missing(_) => problem(
            NAME,
            seen,
            "run that version's file by hand as the schema's owner, as `outbox-relay migrate --print` \
             has it, and add its row to outbox.migrations; or put outbox.migrations back from a backup",
        ),
        _ => problem(
            NAME,
            seen,
            "run the version that applied it; if somebody changed outbox.migrations, put it back from a \
             backup",
        ),
    }
}

/// Functions, triggers and defaults that somebody has dropped. To be asked of a database that has all migrations, and
/// no newer ones.
pub(super) async fn dropped(client: &Client) -> Result<Vec<Finding>, InspectError> {
    let missing = missing_outbox(client).await;
    let missing =
        missing.map_err(|source| InspectError::Query { what: "what is missing", source })?;
    let finding = |made: &&Made| {
        let means = made.means()?;
        let grants = match made.has_grants() {
            true => ", which puts it back; then grant what docs/ROLES.md lists on it",
            false => ", which puts it back",
        };
        let remedy = format!("run `outbox-relay migrate` as the schema's owner{grants}");
        Some(problem(NAME, format!("{made} {}: {means}", made.is()), remedy))
    };
    Ok(missing.iter().filter_map(finding).collect())
}

/// `None` where the database refuses to say.
fn told<T>(answer: Result<T, Error>) -> Result<Option<T>, InspectError> {
    match answer {
        Ok(told) => Ok(Some(told)),
        Err(error) if error.as_db_error().is_some() => Ok(None),
        Err(source) => Err(InspectError::Query { what: "outbox.migrations", source }),
    }
}
