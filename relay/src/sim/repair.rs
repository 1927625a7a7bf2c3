//! A repair, as `daemon::start::repair` runs it: the rows come from the scripted table, and become records, pages and
//! progress by the relay's own code.

use std::sync::Arc;

use rand::Rng as _;

use super::{
    catalog,
    server::{created_us, relation, tuple, uuid},
    sink::SimSink,
    start::{Ended, Start, same_tables},
    table::SimTable,
    world::{Shared, World, look, turns},
};
use crate::{
    core::{
        charset::Charset,
        progress::RepairRecord,
        record::{Batch, BatchLimits},
        snapshot,
    },
    pipeline::{PipelineError, delivery::Delivery},
    reconcile::Left,
    repair::{End, FoundRow, Page, Pages},
    route::{Origin, Router},
};

impl From<PipelineError> for Ended {
    fn from(error: PipelineError) -> Self {
        Ended::Retry(error.to_string())
    }
}

impl Start<'_> {
    /// Delivers what is left of the repair in stored progress, and stores its end.
    pub(super) async fn repairs(
        &self,
        mut delivery: Delivery<SimSink, SimTable>,
        origin: &Origin,
    ) -> Result<(), Ended> {
        let world = self.world;
        let under_way = delivery.progress().repair_to_read().expect("it was begun");
        let lower = delivery.progress().repair.as_ref().and_then(|it| it.lower.clone());
        let router = Router::repairing(catalog::mapping(), origin);
        let mut pages = Pages::new(&under_way, 1 << 20, router, Charset::AsItIs);
        look(world).leads(self.session)?;
        let rows = look(world).rows(&under_way);
        // The statement locks the table.
        let catalog = look(world).catalog.clone();
        same_tables(delivery.progress(), &catalog.published())?;
        let relation = relation(catalog.table);
        pages.relation(&relation).expect("it fits");
        turns(world).await;
        self.complete(delivery.progress(), lower.as_deref(), (None, Left::Gone))?;
        let mut rows = rows.into_iter().peekable();
        let mut batch = Batch::new(limits(world));
        loop {
            let mut page = pages.begin();
            while !batch.is_full() {
                let Some(row) = rows.next() else { break };
                pages.add(&relation, row, i64::MAX, &mut batch, &mut page);
            }
            page.is_followed_by(rows.peek());
            if page.is_empty() {
                break;
            }
            let mut shared = Arc::new(batch);
            delivery.deliver(&mut shared, &mut page).await?;
            delivery.settle_in_time(&mut page).await?;
            batch = Arc::into_inner(shared).expect("a sink keeps no batch after its delivery");
            batch.clear();
            turns(world).await;
        }
        delivery.settle(&mut Page::default()).await?;
        look(world).leads(self.session)?;
        let mut nothing = Arc::new(Batch::new(BatchLimits { records_max: 1, bytes_max: 1 }));
        let mut end = End { now_ms: look(world).server.now_ms() };
        delivery.deliver(&mut nothing, &mut end).await?;
        delivery.settle(&mut end).await?;
        Ok(())
    }
}

pub(super) fn limits(world: &Shared) -> BatchLimits {
    let records_max = look(world).random.random_range(1..8);
    BatchLimits { records_max, bytes_max: 1 << 20 }
}

impl World {
    /// What the statement of a repair reads, by (`created_at`, id).
    fn rows(&self, under_way: &RepairRecord) -> Vec<FoundRow> {
        let shown = |snapshot: &str, xid: u64| {
            snapshot::shows(snapshot, u32::try_from(xid).unwrap()) == Some(true)
        };
        let row = |id: usize| FoundRow {
            moment_us: created_us(id),
            id: uuid(id),
            size_bytes: 100,
            past: true,
            column_count: u16::try_from(catalog::COLUMNS.len()).unwrap(),
            values: tuple(id, &self.events[id]),
        };
        let is_wanted = |id: &usize| {
            let event = &self.events[*id];
            let here = event.table == self.catalog.table && !event.deleted;
            let below = under_way.lower.as_ref().is_some_and(|lower| shown(lower, event.xid));
            let place = (created_us(*id), uuid(*id));
            let past = under_way.cursor.as_ref().is_none_or(|cursor| place > *cursor);
            here && shown(&under_way.upper, event.xid) && !below && past
        };
        (0..self.events.len()).filter(is_wanted).map(row).collect()
    }
}
