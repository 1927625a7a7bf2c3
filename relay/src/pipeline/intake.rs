//! Where rows become records: skips what is delivered, routes the rest into the batch.

use std::time::Instant;

use crate::{
    position::{Position, RowPosition},
    record::Batch,
    route::{RelationError, RelationUse, Routed, Router},
    row::{Relation, Row},
    source::intake::{Intake, IntakeError},
    table_fit,
};

/// Joins the source to the router.
#[derive(Debug)]
pub struct RouteIntake {
    router: Router,
    /// Stored before this connection: the server sends a cut transaction again from its Begin.
    delivered: Position,
}

impl RouteIntake {
    /// Rows that `delivered` covers are skipped.
    pub fn new(router: Router, delivered: Position) -> Self {
        RouteIntake { router, delivered }
    }
}

impl Intake for RouteIntake {
    fn relation(&mut self, relation: &Relation) -> Result<(), IntakeError> {
        match self.router.relation(relation) {
            Ok(RelationUse::Mapped | RelationUse::Ignored) => Ok(()),
            Err(RelationError::NeedsText { table, column }) => {
                Err(IntakeError::NeedsText { table, column })
            }
            Err(RelationError::DoesNotFit(misfits)) => Err(table_fit::misfits(&misfits).into()),
        }
    }

    fn row(&mut self, row: &Row<'_>, batch: &mut Batch) {
        if self.delivered.covers(row.position) {
            return;
        }
        match self.router.route(row, batch) {
            Ok(Routed::Added) => {
                batch.position = Some(Position::Row(row.position));
                batch.newest_commit_us = row.commit_time_us;
                if batch.first_received.is_none() {
                    batch.first_received = Some(Instant::now());
                }
            }
            Ok(Routed::Ignored) => {}
            Err(refused) => batch.refused = Some(*refused),
        }
    }

    fn message(&mut self, _position: RowPosition, _content: &[u8], _batch: &mut Batch) {
        // Announces a release of parked events; one without matching rows is ignored, and
        // nothing is parked by this version.
    }
}
