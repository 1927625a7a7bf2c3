//! The start of the relay, in the order of `daemon::start`, up to where it knows what it does.
//!
//! Scripted are what the server and the tables answer, and the order. Whether rows may be missing, what is done then,
//! what a halt says and what progress says of it are the relay's own.

use super::{
    catalog::Tables,
    sink::SimSink,
    world::{Mutant, Shared, World, look, turns},
};
use crate::{
    core::{
        halt::Halt, identity::SystemIdentity, look::Before, position::Position, progress::Progress,
        published::Published, snapshot,
    },
    postgres::catalog::slot::SlotState,
    reconcile::{self, Decision, Facts, Left, Reconciled},
    route::TableName,
    sink::{ProgressStore as _, SinkError},
    table_fit,
};

pub(super) const SLOT: &str = "outbox_sim";
pub(super) const SYSTEM: &str = "7312345678901234567";

/// Why an attempt has ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Try again.
    Retry(String),
    /// The stream has come to what was written while there was no publication.
    Unpublished,
    /// A person must act.
    Halted(Halt),
}

impl From<String> for Ended {
    fn from(why: String) -> Self {
        Ended::Retry(why)
    }
}

impl From<SinkError> for Ended {
    fn from(error: SinkError) -> Self {
        Ended::Retry(error.to_string())
    }
}

/// What a start leads to.
pub(super) enum Next {
    Stream {
        from: Position,
        before: Box<Before>,
        /// As the streaming looks compare it.
        stamped: Vec<TableName>,
    },
    Repair,
}

/// What a start goes by.
pub(super) struct Start<'w> {
    pub(super) world: &'w Shared,
    pub(super) session: u64,
    /// As `daemon::started::Learnt` has it.
    pub(super) unpublished_once: bool,
}

impl Start<'_> {
    /// From the look at the tables on.
    pub(super) async fn decide(
        &self,
        sink: &mut SimSink,
        progress: &mut Progress,
    ) -> Result<Next, Ended> {
        let world = self.world;
        let tables = self.ask(|world| world.catalog.inspect())?;
        if let Some(halt) = &tables.unpublished {
            return Err(self.unpublished(halt, &tables, sink, progress).await);
        }
        turns(world).await;
        let (snapshot, published) =
            self.ask(|world| (world.server.snapshot(), world.catalog.published()))?;
        turns(world).await;
        let Reconciled { progress: carried, decision, gap } =
            self.reconcile(progress, &published, &tables)?;
        *progress = carried.expect("some was stored");
        turns(world).await;
        self.loses_nothing(progress, &decision, gap.as_deref())?;
        let (from, published) = match decision {
            Decision::Stream { from } => {
                progress.continue_slot(&published);
                (from, published)
            }
            Decision::MakeSlot { replace } => {
                if replace {
                    self.ask(World::drop_slot)?;
                    turns(world).await;
                }
                progress.announce_slot(published);
                store(sink, progress).await?;
                let (made, published) = self.ask(|world| {
                    world.leave_out();
                    world.make_slot()
                })?;
                turns(world).await;
                let from = Position::UpTo(made.lsn);
                progress.begin_slot(made, published.clone());
                store(sink, progress).await?;
                (from, published)
            }
            Decision::Repair { lower, replace } => {
                let gap = gap.as_deref();
                self.repair(sink, progress, lower.as_deref(), gap, replace).await?;
                return Ok(Next::Repair);
            }
            Decision::FinishRepair => return Ok(Next::Repair),
            Decision::Wait { .. } => unreachable!("no other relay uses the slot"),
        };
        progress.stream_from(from);
        let before = Box::new(Before { published, snapshot, lsn: from.resume_lsn() });
        Ok(Next::Stream { from, before, stamped: tables.stamped })
    }

    /// A question to the server, by a session that leads.
    fn ask<T>(&self, question: impl FnOnce(&mut World) -> T) -> Result<T, Ended> {
        let world = &mut *look(self.world);
        world.leads(self.session)?;
        if world.fails_once_in(100) {
            return Err(Ended::Retry("the session broke".into()));
        }
        Ok(question(world))
    }

    /// As `daemon::tables::unpublished`.
    async fn unpublished(
        &self,
        halt: &Halt,
        tables: &Tables,
        sink: &mut SimSink,
        progress: &mut Progress,
    ) -> Ended {
        let streamed = progress.position.is_some();
        let told = table_fit::until_obeyed(halt.clone(), streamed, tables.unrepairable.as_ref());
        let forgets = look(self.world).is(Mutant::ForgetsTheGap);
        if progress.note_gap(&halt.reason)
            && !forgets
            && let Err(ended) = store(sink, progress).await
        {
            return ended;
        }
        Ended::Halted(told)
    }

    fn reconcile(
        &self,
        progress: &Progress,
        published: &Published,
        tables: &Tables,
    ) -> Result<Reconciled, Ended> {
        let slot = self.ask(|world| world.slot_state())?;
        let world = &mut *look(self.world);
        let identity =
            SystemIdentity { system_id: SYSTEM.into(), timeline: 1, flush_lsn: world.server.end() };
        let reconciled = reconcile::reconcile(&Facts {
            progress: Some(progress),
            slot: slot.as_ref(),
            has_delivered: true,
            published: Some(published).filter(|_| !world.is(Mutant::ForgetsThePublication)),
            unpublished_once: self.unpublished_once,
            unrepairable: tables.unrepairable.as_ref(),
            ..Facts::new("sim", SLOT, "app", &identity)
        });
        let is_needed = |decision: &Decision| match decision {
            Decision::Stream { .. } => true,
            Decision::Wait { .. } => false,
            _ => world.meddled,
        };
        match reconciled {
            Ok(reconciled) if is_needed(&reconciled.decision) => {
                world.tell(|| format!("a start decides {:?}", reconciled.decision));
                Ok(reconciled)
            }
            Err(halt) if world.meddled && halt.reason.contains("may be unpublished") => {
                Err(Ended::Halted(halt))
            }
            other => {
                world.violated(format!("no one moved the slot, and a start says {other:?}"));
                Err(Ended::Retry("halted".into()))
            }
        }
    }

    /// As `daemon::start::given_up`.
    fn loses_nothing(
        &self,
        progress: &Progress,
        decision: &Decision,
        gap: Option<&str>,
    ) -> Result<(), Ended> {
        let (Decision::Repair { replace: true, .. }, Some(gap)) = (decision, gap) else {
            return Ok(());
        };
        let Some(delivered) = progress.position else { return Ok(()) };
        let lacks = self.ask(|world| {
            let streams = world.events.iter().filter(|event| !event.hidden);
            let mut rest = streams.filter(|event| event.position.commit >= delivered.resume_lsn());
            rest.any(|event| event.deleted || event.table != world.catalog.table)
        })?;
        if !lacks {
            return Ok(());
        }
        let why = "it has rows that are no longer in the tables";
        let left = Left::of(true, self.unpublished_once);
        Err(Ended::Halted(reconcile::only_in_slot((SLOT, left), gap, why)))
    }

    /// As `daemon::start::repair::begin`.
    async fn repair(
        &self,
        sink: &mut SimSink,
        progress: &mut Progress,
        lower: Option<&str>,
        gap: Option<&str>,
        replace: bool,
    ) -> Result<(), Ended> {
        self.complete(progress, lower, (gap, Left::of(replace, self.unpublished_once)))?;
        let of_now = look(self.world).server.snapshot();
        let lower = match look(self.world).is(Mutant::RepairsTooLittle) {
            true => Some(of_now.as_str()),
            false => lower,
        };
        if !look(self.world).is(Mutant::AnnouncesNothing) {
            progress.announce_repair(lower);
            store(sink, progress).await?;
        }
        turns(self.world).await;
        if replace {
            self.ask(World::drop_slot)?;
            turns(self.world).await;
        }
        let (upper, published) = self.ask(World::make_slot)?;
        turns(self.world).await;
        same_tables(progress, &published)?;
        progress.replace_slot(published);
        progress.begin_repair(lower, upper);
        store(sink, progress).await
    }

    /// As `repair::complete` tells by the account of deletions.
    pub(super) fn complete(
        &self,
        progress: &Progress,
        lower: Option<&str>,
        gap: (Option<&str>, Left),
    ) -> Result<(), Ended> {
        let gone = self.ask(|world| {
            let shows = |event: &&super::world::Event| {
                let xid = u32::try_from(event.xid).unwrap();
                lower.is_some_and(|lower| snapshot::shows(lower, xid) == Some(true))
            };
            let table = world.catalog.table;
            let mut here = world.events.iter().filter(|event| event.table == table);
            here.any(|event| event.deleted && !shows(&event))
        })?;
        if !gone {
            return Ok(());
        }
        let why = Halt::new("rows were deleted from outbox.events", "restore them");
        Err(Ended::Halted(reconcile::incomplete(SLOT, gap, lower, progress, &why)))
    }
}

/// As in `daemon::start::repair`.
pub(super) fn same_tables(progress: &Progress, published: &Published) -> Result<(), Ended> {
    match progress.another_table(published) {
        None => Ok(()),
        Some(table) => Err(Ended::Retry(format!("{table} is another table"))),
    }
}

pub(super) async fn store(sink: &mut SimSink, progress: &Progress) -> Result<(), Ended> {
    let stored = sink.store(progress.encode()).await?;
    drop(stored); // The next start reads it back.
    Ok(())
}

impl World {
    fn slot_state(&self) -> Option<SlotState> {
        self.server.slot?;
        Some(SlotState {
            plugin: Some("pgoutput".into()),
            slot_type: "logical".into(),
            database: Some("app".into()),
            active: false,
            active_pid: None,
            restart_lsn: Some(self.server.confirmed),
            confirmed_flush_lsn: Some(self.server.confirmed),
            wal_status: Some("reserved".into()),
            safe_wal_size: None,
            two_phase: false,
            conflicting: None,
            invalidation_reason: None,
            failover: None,
        })
    }

    pub(super) fn leads(&self, session: u64) -> Result<(), String> {
        if self.server.leader == Some(session) {
            return Ok(());
        }
        Err("the session is lost".into())
    }
}
