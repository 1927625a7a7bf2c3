//! Lives of the relay, one after the other, and the hand that gives turns and ends them.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use rand::Rng;
use tokio::sync::{mpsc, watch};

use super::{
    catalog,
    repair::limits,
    sink::SimSink,
    source::Source,
    start::{Ended, Next, SLOT, SYSTEM, Start},
    table::SimTable,
    world::{Mutant, Shared, World, look, turns},
};
use crate::{
    core::{
        landmark::Recognition,
        position::{Confirmable, Position, RowPosition},
        progress::Progress,
    },
    dead_letter::DeadLetters,
    pipeline::{Pipeline, PipelineError, delivery::Delivery, intake::RouteIntake},
    route::{Format, Origin, Router, TableName},
    sink::ProgressStore as _,
    source::{decoder::Decoder, handover::handover},
    state::Board,
};

/// After so many turns without a fault everything has come to its end, or never will.
const TURNS_MAX: u32 = 30_000;

type Life = Pin<Box<dyn Future<Output = Result<(), Ended>>>>;

/// Gives turns until everything has come to its end.
///
/// # Errors
/// What did not hold.
pub(super) fn run(world: &Shared, board: &Board) -> Result<(), String> {
    let (mut writes, mut faulty_turns) = {
        let mut first = Progress::before_first_start(SLOT);
        first.system_id = SYSTEM.into();
        first.timeline = 1;
        let world = &mut *look(world);
        let (snapshot, published) = world.make_slot();
        first.begin_slot(snapshot, published);
        world.first_progress(&first);
        (world.random.random_range(4..20), world.random.random_range(100..2_000))
    };
    let mut life: Option<(u64, Life)> = None;
    let mut frozen: Vec<Life> = Vec::new();
    let mut turns_left = TURNS_MAX;
    let mut unpublished_once = false;
    loop {
        let mut ends = false;
        let mut freezes = false;
        {
            let world = &mut *look(world);
            if let Some(violation) = world.violation.take() {
                return Err(violation);
            }
            if writes > 0 && world.once_in(15) {
                writes -= 1;
                world.write();
            }
            if world.faults {
                match world.random.random_range(0..400) {
                    0..6 => world.release_all(),
                    6..14 => world.fix(false),
                    14..16 => world.discard_one(),
                    16..20 => ends = true,
                    // The scripted broker does not know who has claimed at-least-once progress.
                    20..23 => freezes = world.exactly_once || world.apart,
                    // A crash of the server: what it was told lately is not on its disk.
                    23..25 => {
                        ends = true;
                        world.forgets_confirmed();
                    }
                    _ => {}
                }
                if world.meddled {
                    match world.random.random_range(0..400) {
                        0..8 => world.alter(),
                        8..16 => world.put_back(false),
                        16 => world.delete(),
                        _ => {}
                    }
                }
                faulty_turns -= 1;
                if faulty_turns == 0 {
                    world.faults = false;
                    world.fix(true);
                    world.put_back(false);
                }
            } else {
                if frozen.is_empty() && writes == 0 && world.once_in(50) {
                    world.fix(true);
                    world.release_all();
                    if world.unfinished().is_none() {
                        return Ok(());
                    }
                }
                turns_left -= 1;
                if turns_left == 0 {
                    let left = world.unfinished();
                    return Err(format!("it does not come to an end: {left:?}"));
                }
            }
            if world.once_in(10) {
                world.commit_arrives();
            }
            if world.once_in(10) {
                world.table.flush();
            }
        }
        if (ends || freezes)
            && let Some((_, ended)) = life.take()
        {
            look(world).ends_session();
            look(world).tell(|| format!("the relay {}", if freezes { "freezes" } else { "dies" }));
            if ends {
                unpublished_once = false; // Another process.
                if look(world).meddled && look(world).once_in(16) {
                    look(world).drop_slot();
                }
            }
            if ends && look(world).once_in(4) {
                look(world).lose_announcements();
                if look(world).once_in(2) {
                    look(world).release_all();
                }
            }
            if freezes {
                frozen.push(ended);
            }
        }
        let thawed = look(world).once_in(16).then(|| frozen.pop()).flatten();
        if let Some(mut thawed) = thawed {
            if poll(&mut thawed).is_pending() {
                frozen.push(thawed);
            }
            continue;
        }
        let (_, current) = life.get_or_insert_with(|| {
            let session = look(world).begins_session();
            let life = live(Arc::clone(world), board.clone(), session, unpublished_once);
            (session, Box::pin(life))
        });
        if let Poll::Ready(ended) = poll(current) {
            life = None;
            let world = &mut *look(world);
            world.tell(|| match &ended {
                Err(Ended::Retry(why)) => format!("the relay starts again: {why}"),
                ended => format!("the relay starts again: {ended:?}"),
            });
            world.ends_session();
            match ended {
                Ok(()) => unpublished_once = false,
                Err(Ended::Unpublished) => unpublished_once = true,
                Err(Ended::Halted(halt)) if world.once_in(3) => world.obey(&halt),
                Err(Ended::Halted(_) | Ended::Retry(_)) => {}
            }
        }
    }
}

fn poll(life: &mut Life) -> Poll<Result<(), Ended>> {
    life.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

impl World {
    fn begins_session(&mut self) -> u64 {
        self.server.sessions += 1;
        self.server.leader = Some(self.server.sessions);
        self.server.sessions
    }

    fn ends_session(&mut self) {
        self.server.leader = None;
        self.table.forget();
    }
}

/// One life: `daemon::start`'s order, then the stream or a repair, until something ends it.
async fn live(
    world: Shared,
    board: Board,
    session: u64,
    unpublished_once: bool,
) -> Result<(), Ended> {
    let mut sink = SimSink::new(&world, session);
    let glance = sink.peek().await?;
    sink.fence().await?;
    let mut stored = sink.read().await?;
    if look(&world).is(Mutant::ReadsBeforeFence) {
        stored = glance;
    }
    let mut progress = Progress::decode(&stored.own.expect("the first start stored some")).unwrap();
    let mut table = SimTable::new(&world, session);
    for release in progress.releases.iter().filter(|release| release.complete) {
        table.finish(release).await.map_err(|error| error.to_string())?;
    }
    progress
        .releases
        .retain(|release| !release.complete && look(&world).table.is_under_way(&release.id));
    turns(&world).await;
    let lanes = {
        let world = &mut *look(&world);
        let max = if world.random.random_range(0..2) == 0 { 1 } else { 1_000 };
        world.table.lanes(progress.position, max, world.mutant)
    };
    let start = Start { world: &world, session, unpublished_once };
    let next = start.decide(&mut sink, &mut progress).await?;
    turns(&world).await;
    let origin = Origin { system_id: SYSTEM.into(), timeline: 1, era: progress.era };
    let (from, before, stamped) = match next {
        Next::Stream { from, before, stamped } => (from, before, stamped),
        Next::Repair => {
            look(&world).tell(|| format!("session {session} repairs"));
            let delivery = Delivery::new(sink, table, lanes, progress, board);
            return start.repairs(delivery, &origin).await;
        }
    };
    look(&world).tell(|| format!("session {session} starts from {from}"));
    turns(&world).await;
    look(&world).leads(session)?;
    look(&world).announce_again();
    turns(&world).await;

    let limits = limits(&world);
    let (giver, taker) = handover(limits);
    let (confirmed_tx, confirmed_rx) = watch::channel(Confirmable::stored(from));
    let (seen_tx, seen_rx) = mpsc::channel(2);
    let known = progress.landmark;
    let confirmed = look(&world).server.confirmed;
    if look(&world).server.slot.is_none() || confirmed > from.resume_lsn() {
        return Err(Ended::Retry("the slot was moved meanwhile".into()));
    }
    let recognition = Recognition::new(known, from, confirmed);
    let delivered = believed(look(&world).mutant, from);
    let router = router(look(&world).mutant, &origin, stamped);
    let intake = RouteIntake::new(router, delivered, "sim", board.clone());
    let decoder = Decoder::new(giver, intake, recognition, 1 << 20);
    let delivery = Delivery::new(sink, table, lanes, progress, board);
    let pipeline = Pipeline::new(taker, delivery, seen_rx, confirmed_tx, limits);
    let start = Recognition::start(known, from);
    let source = Source { world: &world, session, start, before: *before, looked: None };
    let mut source = pin!(source.run(decoder, confirmed_rx, seen_tx));
    let mut pipeline = pin!(pipeline.run());
    let (mut source_ended, mut pipeline_ended) = (None, None);
    poll_fn(|context| {
        if source_ended.is_none() && look(&world).once_in(2) {
            if let Poll::Ready(ended) = source.as_mut().poll(context) {
                source_ended = Some(ended);
            }
        } else if pipeline_ended.is_none()
            && let Poll::Ready(ended) = pipeline.as_mut().poll(context)
        {
            pipeline_ended = Some(ended);
        }
        let both = source_ended.is_some() && pipeline_ended.is_some();
        if both { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    if let Some(Err(error @ PipelineError::Malformed { .. })) = pipeline_ended {
        look(&world).violated(error.to_string());
    }
    source_ended.expect("it has")
}

/// What a mutant's start takes to be delivered.
fn believed(mutant: Option<Mutant>, from: Position) -> Position {
    match (mutant, from) {
        (Some(Mutant::ResumesTooLate), Position::UpTo(commit)) => {
            Position::Row(RowPosition { commit, ordinal: u64::MAX })
        }
        (Some(Mutant::ResumesTooEarly), Position::Row(row)) => match row.ordinal.checked_sub(1) {
            Some(ordinal) => Position::Row(RowPosition { ordinal, ..row }),
            None => Position::UpTo(row.commit),
        },
        _ => from,
    }
}

fn router(mutant: Option<Mutant>, origin: &Origin, stamped: Vec<TableName>) -> Router {
    let stamped = match mutant {
        Some(Mutant::PublishesMoved) => vec![],
        _ => stamped,
    };
    Router::new(catalog::mapping(), origin, Format::Text).with_stamped(stamped)
}
