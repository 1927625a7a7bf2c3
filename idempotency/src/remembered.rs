//! Whether what could not be claimed is remembered, as it must be: else somebody keeps rows out.

use tokio_postgres::{
    GenericClient,
    types::{ToSql, Type},
};
use uuid::Uuid;

use crate::{error::InboxError, guard, message_id::Day, transaction::Open};

/// Whether what was not claimed is there. Copies are few, so they pay for it.
pub(crate) async fn are_there(
    open: &Open,
    consumer_id: i32,
    ids: &[Uuid],
    days: &[Day],
) -> Result<(), InboxError> {
    const DOING: &str = "looking for what was here before";
    let rows = open.query(DOING, THERE, &[&consumer_id, &ids, &days]).await?;
    all_of(&rows, DOING)
}

/// As [`are_there`], in a transaction of the user's.
pub(crate) async fn are_there_for(
    client: &impl GenericClient,
    consumer_id: i32,
    ids: &[Uuid],
    days: &[Day],
) -> Result<(), InboxError> {
    const DOING: &str = "looking for what was here before";
    let typed: [(&(dyn ToSql + Sync), Type); 3] =
        [(&consumer_id, Type::INT4), (&ids, Type::UUID_ARRAY), (&days, Type::DATE_ARRAY)];
    let rows = client.query_typed(THERE, &typed).await;
    all_of(&rows.map_err(|error| InboxError::of(DOING, error))?, DOING)
}

const THERE: &str = "select not exists (select from unnest($2::pg_catalog.uuid[], $3::pg_catalog.date[]) \
        as w (id, day) where not exists (select from inbox.messages as m \
            where m.consumer_id operator(pg_catalog.=) $1 and m.id operator(pg_catalog.=) w.id \
                and m.day operator(pg_catalog.=) w.day))";

fn all_of(rows: &[tokio_postgres::Row], doing: &'static str) -> Result<(), InboxError> {
    let there = rows.first().map_or(Ok(false), |row| row.try_get(0));
    if there.map_err(|error| InboxError::of(doing, error))? {
        Ok(())
    } else {
        Err(guard::kept_out_of("inbox.messages"))
    }
}
