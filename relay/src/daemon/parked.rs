//! What is parked: counts it, and looks whether the table has all that was parked before.
//!
//! Delivery has passed a parked event, so that the table is its only place as such. Progress says what was parked when it was
//! stored, and the table may lack it: somebody has dropped it, or the server took over, or was put back,
//! without the newest rows. What is lost is written down in the table (`dead_letter::notice`) before
//! progress forgets it, and told by whoever leads until somebody has dealt with it.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::Error;

use super::{context::Context, locks};
use crate::{
    causes,
    config::Config,
    core::{
        identity::SystemIdentity,
        printable::counted,
        progress::{ParkedRecord, Progress},
    },
    dead_letter::{
        self, lost,
        notice::{self, Notice},
        restored,
    },
    postgres::sql::SqlSession,
};

/// What is parked is counted this often, and so soon after it has changed, or more rarely: its share of
/// the time is at most one in [`COUNT_SHARE`].
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
const COUNT_SOON: Duration = Duration::from_millis(500);
const COUNT_SHARE: u32 = 30;

/// Counts what is parked, again and again, at a small share of the server's time. Ends by being
/// dropped only, at any time. As [`count`].
pub(super) async fn watch(
    context: &Context,
    session: &SqlSession,
    streaming: Option<&str>,
) -> Infallible {
    loop {
        let begun = Instant::now();
        match count(context, session, streaming).await {
            Ok(()) => {}
            Err(error) if locks::passes(&error) => {}
            // What reads the table for its work says why. To ask again would be harmful: it would
            // break a transaction that shares this session.
            Err(error) => {
                let error = causes::of(&error);
                tracing::warn!(
                    error,
                    "what is parked can't be counted now; it is counted again when the relay reconnects"
                );
                std::future::pending().await
            }
        }
        sleep(COUNT_SOON.max(begun.elapsed() * COUNT_SHARE)).await;
        // Cancel safe, both.
        tokio::select! {
            () = context.board.parking_has_changed() => {}
            () = sleep(COUNT_INTERVAL) => {}
        }
    }
}

/// Counts once, and tells of what is lost. `streaming`: the cluster's system identifier, where this relay
/// streams; else it is a start's, which may be in a transaction, and looks by itself what is lost.
///
/// # Errors
/// The table can't be read, or the session is broken.
pub(super) async fn count(
    context: &Context,
    session: &SqlSession,
    streaming: Option<&str>,
) -> Result<(), Error> {
    let board = &context.board;
    let client = session.client();
    board.parked_count_begins();
    let counted = dead_letter::count(client, &context.config.name).await;
    // What can't be counted is not known, also where it was counted before.
    let counted = counted.inspect_err(|_| board.parked_unknown())?;
    match (board.parked_elsewhere(counted.table), streaming) {
        (Some(_), None) => return Ok(()),
        (Some(before), Some(system_id)) => {
            let absent = dead_letter::absent(client, &context.config.name, &before.ids).await?;
            if let Some(lost) = lost::remade(&before, counted.events, absent) {
                write_down(context, session, system_id, &lost, &remade(&lost)).await?;
            }
        }
        (None, Some(system_id)) => {
            // What is released or discarded keeps its row.
            let before = board.parked_last().unwrap_or_default();
            let absent = dead_letter::absent(client, &context.config.name, &before.ids).await?;
            if !absent.is_empty()
                && keeps_rows(&context.config)
                && let Some(lost) = lost::remade(&before, counted.events, absent)
            {
                write_down(context, session, system_id, &lost, &emptied(&lost)).await?;
            }
        }
        (None, None) => {}
    }
    board.parked(&counted);
    tell(context, session).await
}

/// Looks, at a start, whether the table has what was parked when progress was stored. To be done before
/// anything else is stored as progress, and outside of a transaction.
///
/// # Errors
/// The table can't be read or written, or the session is broken.
pub(super) async fn compare(
    context: &Context,
    session: &SqlSession,
    stored: Option<&Progress>,
    identity: &SystemIdentity,
) -> Result<(), Error> {
    let Some(stored) = stored else { return Ok(()) };
    let client = session.client();
    let table = dead_letter::which_table(client).await?;
    let elsewhere = |parked: &ParkedRecord| ![0, table].contains(&parked.table);
    // What this process saw last may be newer than what it could store.
    let seen = context.board.parked_elsewhere(table);
    let of_progress = || stored.parked.clone().filter(elsewhere);
    let Some(mut before) = seen
        .or_else(of_progress)
        .or_else(|| lost::either(stored.parked.as_ref(), context.board.parked_last()))
    else {
        return Ok(());
    };
    if stored.system_id != identity.system_id {
        before.ids.clear(); // Their places were another cluster's.
    }
    let has_another_past = stored.timeline != identity.timeline || stored.rolled_back.is_some();
    let mut known_lost = None;
    if stored.system_id == identity.system_id
        && (elsewhere(&before) || has_another_past || keeps_rows(&context.config))
    {
        let absent = dead_letter::absent(client, &context.config.name, &before.ids).await?;
        let there = dead_letter::count(client, &context.config.name).await?.events;
        let (lost, said) = match (elsewhere(&before), has_another_past) {
            (true, _) => {
                let lost = lost::remade(&before, there, absent);
                (lost.clone(), lost.as_ref().map(remade))
            }
            (false, false) => {
                let lost = lost::deleted(&before, there, absent);
                (lost.clone(), lost.as_ref().map(deleted))
            }
            (false, true) => {
                let lost = lost::cut_off(&before, there, absent);
                (lost.clone(), lost.as_ref().map(cut_off))
            }
        };
        if let (Some(lost), Some(said)) = (lost, said) {
            write_down(context, session, &identity.system_id, &lost, &said).await?;
            known_lost = Some(lost);
        }
    }
    context.board.parked_before(&before, table, known_lost.as_ref());
    tell(context, session).await
}

fn remade(lost: &ParkedRecord) -> String {
    format!(
        "outbox.dead_letters was dropped and created again without {} that were parked in it: the relay can \
         no longer deliver them",
        lost::in_words(lost)
    )
}

fn emptied(lost: &ParkedRecord) -> String {
    format!(
        "outbox.dead_letters was emptied, or rows of it were deleted, while {} were parked in it: the relay can no \
         longer deliver them",
        lost::in_words(lost)
    )
}

/// Progress may be older than a release.
fn deleted(lost: &ParkedRecord) -> String {
    format!(
        "outbox.dead_letters was emptied, or rows of it were deleted, while {} were parked in it by the progress that \
         the relay had stored: unless they were released or discarded since, the relay can no longer deliver them",
        lost::in_words(lost)
    )
}

/// Rows of events that were released are there for longer than it takes to count again.
fn keeps_rows(config: &Config) -> bool {
    config.retention.keep_dead_letters.is_none_or(|keep| keep >= 6 * COUNT_INTERVAL)
}

fn cut_off(lost: &ParkedRecord) -> String {
    let about = if lost.events > lost.ids.len() as u64 { "about " } else { "" };
    format!(
        "this server became the primary, or was put back, without {about}{} that had been parked before: \
         outbox.dead_letters does not have them, and the relay delivers them only if a repair reads them again",
        counted(lost.events, "event")
    )
}

async fn write_down(
    context: &Context,
    session: &SqlSession,
    system_id: &str,
    lost: &ParkedRecord,
    what: &str,
) -> Result<(), Error> {
    let config = &context.config;
    let remedy = lost::remedy(lost, &config.name, ours(config));
    let said = format!(
        "{what}; when the relay is ready, look for them in their topics; for those that are not there: {remedy}"
    );
    notice::leave(session.client(), &config.name, system_id, &said, lost).await
}

/// Tells of what came from a copy of the table, as long as it is parked.
async fn tell_of_restored(context: &Context, session: &SqlSession) -> Result<(), Error> {
    let found = restored::count(session.client(), &context.config.name).await?;
    let said = found.as_ref().map(restored::in_words);
    let all = said.as_ref().map(|(what, remedy)| format!("{what}; {remedy}"));
    if context.board.parked_events_are_restored(all)
        && let Some((what, remedy)) = said
    {
        tracing::warn!(remedy, "{what}");
    }
    Ok(())
}

/// Tells of what no one has dealt with; what is in the table again is dealt with.
async fn tell(context: &Context, session: &SqlSession) -> Result<(), Error> {
    tell_of_restored(context, session).await?;
    let config = &context.config;
    let client = session.client();
    let known = context.losses().clone();
    let mut found = notice::open(client, &config.name).await?;
    if known.iter().any(|it| !found.contains(it))
        && notice::restore(client, &config.name, &known).await?
    {
        found = notice::open(client, &config.name).await?;
    }
    let mut open = Vec::new();
    for notice in found {
        let Notice { id, lost, .. } = &notice;
        let all_are_known = !lost.ids.is_empty() && lost.events <= lost.ids.len() as u64;
        if all_are_known && dead_letter::absent(client, &config.name, &lost.ids).await?.is_empty() {
            notice::settle(client, *id, "they are in the table again").await?;
            tracing::info!(
                "the parked events that were lost to the relay are in outbox.dead_letters again"
            );
            continue;
        }
        open.push(notice);
    }
    let said: Vec<String> = open.iter().map(|notice| notice.in_words(&config.name)).collect();
    let said = said.join("; and ");
    let events = open.iter().map(|notice| notice.lost.events).sum();
    context.losses().clone_from(&open);
    if context.board.parked_events_are_lost((!open.is_empty()).then_some((events, said.clone())))
        && !open.is_empty()
    {
        tracing::error!(reason = said, "parked events are lost to the relay");
        context.board.error(said);
    }
    Ok(())
}

/// Whether events are those of `outbox.events`.
pub(super) fn ours(config: &Config) -> bool {
    config.outbox.tables.iter().all(|table| table == "outbox.events")
}
