//! Catalog rows as JSON: what a server does not know is `None`, so that one query serves PostgreSQL 14 to 18.

use serde::de::DeserializeOwned;
use tokio_postgres::{Client, Row, error::SqlState, types::ToSql};

use super::{characters, error::InspectError};

/// Some name has no form in UTF-8, though it may be no one's concern.
const NO_CHARACTER: [SqlState; 2] =
    [SqlState::UNTRANSLATABLE_CHARACTER, SqlState::CHARACTER_NOT_IN_REPERTOIRE];

/// Rows of one column that holds JSON as text.
pub(super) async fn rows<T: DeserializeOwned>(
    client: &Client,
    what: &'static str,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<T>, InspectError> {
    let failed = |source| InspectError::Query { what, source };
    let found = match client.query(sql, parameters).await {
        Ok(found) => {
            let text = |row: &Row| row.try_get(0);
            found.iter().map(text).collect::<Result<Vec<String>, _>>().map_err(failed)?
        }
        Err(error) if error.code().is_some_and(|code| NO_CHARACTER.contains(code)) => {
            let bytes = format!(
                "select pg_catalog.convert_to(found.text, 'SQL_ASCII') from ({sql}) found (text)"
            );
            let found = client.query(&bytes, parameters).await.map_err(failed)?;
            let charset = characters::charset(client).await?;
            let text = |row: &Row| row.try_get(0).map(|text| charset.names(text).into_owned());
            found.iter().map(text).collect::<Result<_, _>>().map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    let mut values = Vec::with_capacity(found.len());
    for text in &found {
        let value = serde_json::from_str(text);
        values.push(value.map_err(|source| InspectError::Shape { what, source })?);
    }
    Ok(values)
}
