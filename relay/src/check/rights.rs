//! What the relay's role may do in the database.

use outbox_migrations::grants::{Lacking, RELAY, lacking};
use tokio_postgres::Client;

use super::{Finding, ok, problem, warning};
use crate::{
    reconcile::Halt,
    rights,
    route::{Mapping, TableName},
    source::slot::InspectError,
};

/// What the role may do of what the relay does, and whether there is something to do it with.
pub(super) async fn rights(
    mapping: &Mapping,
    client: &Client,
) -> Result<Vec<Finding>, InspectError> {
    const NAME: &str = "rights";
    let failed = |source| InspectError::Query { what: "the role's rights", source };
    let lacking = lacking(client, RELAY).await.map_err(failed)?;
    let needed =
        |object: &&str| RELAY.iter().any(|grant| grant.object == *object && grant.serves.is_none());
    let absent: Vec<&str> = lacking.absent.iter().copied().filter(needed).collect();
    if !absent.is_empty() {
        let seen = format!("there is no {}", absent.join(", no "));
        let remedy = "run `outbox-relay migrate` as the schema's owner";
        return Ok(vec![problem("migrations", seen, remedy)]);
    }
    let stopping = lacking.clone().that_stop_everything();
    if let Some(Halt { reason, remedy }) = rights::halt(&stopping, rights::NOTHING_IS_PUBLISHED) {
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
