//! `outbox-relay dead-letters`: what is parked, and what becomes of it.

mod arguments;
mod shown;

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::json;

pub(in crate::cli) use self::arguments::Action;
use self::{
    arguments::{By, DiscardArgs, ListArgs, ReleaseArgs},
    shown::{edited, heading, how_far, letter, line, released, shown},
};
use crate::{
    cli::{
        ask::ask,
        output::{eprint, print},
        waited,
    },
    config::Config,
    core::printable::{self, counted},
    dead_letter::operator::{self, Counted, Entry, Far, Group, Operator, Selection},
    postgres::sql::{self, SqlSession},
};

/// Does it, and prints what came of it.
pub(in crate::cli) async fn run(config: &Config, action: Action, json: bool) -> anyhow::Result<()> {
    let application = format!("outbox-relay {} dead-letters", config.name);
    let settings = config.connect()?;
    let mut session =
        sql::connect(&settings, &application).await.context("connecting to PostgreSQL")?;
    let pid = session.pid();
    waited::named(&settings, pid, carried_out(config, &mut session, action, json)).await?;
    if !session.is_closed() {
        session.close().await;
    }
    Ok(())
}

async fn carried_out(
    config: &Config,
    session: &mut SqlSession,
    action: Action,
    json: bool,
) -> anyhow::Result<()> {
    let mut operator = Operator::new(session.client_mut(), &config.name);
    operator.is_known(&config.postgres.slot).await?;
    match action {
        Action::List(arguments) => list(&mut operator, arguments, json).await?,
        Action::Show { id } => print(&letter(&operator.show(id).await?, json)),
        Action::Edit(arguments) => {
            let id = arguments.id;
            print(&edited(&operator.edit(id, &arguments.edit()?).await?, json));
        }
        Action::Release(ReleaseArgs { ids, of, all: _, yes }) => {
            release(&mut operator, of.selection(ids), yes, json).await?;
        }
        Action::Discard(arguments) => discard(&mut operator, arguments, json).await?,
    }
    Ok(())
}

/// Lines of a list that no one limited.
const LINES: i64 = 100;
/// A person sees how far a release is this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

async fn list(operator: &mut Operator<'_>, arguments: ListArgs, json: bool) -> anyhow::Result<()> {
    let ListArgs { all, by, limit, of } = arguments;
    let selection = of.selection(vec![]);
    let limit = limit.or((!json).then_some(LINES));
    if let Some(by) = by {
        return groups(operator, &selection, by, limit, json).await;
    }
    let mut count = 0_u64;
    let each = |entry: Entry| {
        if json {
            let entry = serde_json::to_string(&entry).expect("plain data has a JSON form");
            print(&format!("{}{entry}", if count == 0 { "[" } else { "," }));
        } else {
            if count == 0 {
                print(&heading(all));
            }
            print(&printable::line(&line(&entry)));
        }
        count += 1;
    };
    let more = operator.list(&selection, all, limit, each).await?;
    match (json, count) {
        (true, 0) => print("[]"),
        (true, _) => print("]"),
        (false, 0) if !all && selection != Selection::default() => {
            operator.count(&selection).await?;
        }
        (false, 0) => print("nothing is parked"),
        (false, _) if more > 0 => print(&format!(
            "… and {more} more: --limit N lists more of them, --by lane counts them, --topic, --key and --reason choose"
        )),
        (false, _) => {}
    }
    Ok(())
}

async fn groups(
    operator: &mut Operator<'_>,
    selection: &Selection,
    by: By,
    limit: Option<i64>,
    json: bool,
) -> anyhow::Result<()> {
    let by = match by {
        By::Lane => operator::By::Lane,
        By::Reason => operator::By::Reason,
    };
    let groups = operator.groups(selection, by, limit).await?;
    if json {
        print(&serde_json::to_string_pretty(&groups).expect("plain data has a JSON form"));
        return Ok(());
    }
    if groups.is_empty() {
        operator.count(selection).await?;
        print("nothing is parked");
    }
    for (n, Group { topic, key, reason, events, first, parked_at }) in groups.iter().enumerate() {
        if n == 0 {
            let key = if key.is_some() { "  KEY" } else { "" };
            print(&format!("{:>8}  TOPIC{key}  REASON  FIRST", "EVENTS"));
        }
        let topic = printable::short(topic.as_deref().unwrap_or("(no topic)"));
        let key = key.as_ref().map_or_else(String::new, |key| format!("  {}", shown(key)));
        let reason = reason.as_deref().unwrap_or("-");
        print(&printable::line(&format!(
            "{events:>8}  {topic}{key}  {reason}  from {first} on, since {parked_at}"
        )));
    }
    if limit.is_some_and(|limit| groups.len() as u64 == limit.unsigned_abs()) {
        print("there may be more: --limit N lists more of them");
    }
    Ok(())
}

async fn release(
    operator: &mut Operator<'_>,
    selection: Selection,
    yes: bool,
    json: bool,
) -> anyhow::Result<()> {
    if let [id] = selection.ids.as_slice() {
        operator.show(*id).await?; // One that is not there is named as such.
    }
    let total = operator.count(&selection).await?.events;
    let named = BTreeSet::from_iter(&selection.ids).len();
    if usize::try_from(total).is_ok_and(|total| total < named) {
        bail!("{total} of these {named} are parked; nothing was released: see `dead-letters list`");
    }
    let restored = operator.restored(&selection).await?;
    if restored > 0 {
        let question = format!(
            "{restored} of these events were put back into outbox.dead_letters from a copy: those that were released \
             or discarded after it was made come a second time, with the header outbox-repaired. To leave out what \
             is in its topic, discard it first."
        );
        match yes {
            // Whoever agreed in advance is told to what.
            true => eprint(&question),
            false if ask(&format!("{question} Release?"))? => {}
            false => bail!("nothing was released"),
        }
    }
    let begun = Instant::now();
    let (mut reported, mut alone) = (begun, false);
    let tell = |far: Far| {
        let is_news = far.undelivered_for.is_some() && !alone;
        alone |= is_news;
        if is_news || reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            eprint(&how_far(far, total, begun.elapsed()));
        }
    };
    let done = operator.release(&selection, tell).await?;
    print(&released(&done, json));
    Ok(())
}

/// Asks first: nothing brings back what was left out.
async fn discard(
    operator: &mut Operator<'_>,
    arguments: DiscardArgs,
    json: bool,
) -> anyhow::Result<()> {
    let DiscardArgs { ids, of, all: _, why, yes } = arguments;
    let why = why.as_deref();
    let selection = of.selection(ids);
    let chosen = match selection.ids.as_slice() {
        [id] => {
            operator.show(*id).await?;
            Counted { events: 1, newest: *id }
        }
        _ => operator.count(&selection).await?,
    };
    let count = chosen.events;
    let named = u64::try_from(selection.ids.len()).unwrap_or(u64::MAX);
    if named > 1 && count.unsigned_abs() < named {
        bail!(
            "{count} of these {named} are parked; nothing was discarded: see `dead-letters list`"
        );
    }
    let events = counted(count.unsigned_abs(), "event");
    let question = format!("{events} will never be delivered. Discard?");
    // Without a terminal, what names each event is an answer by itself; a selection is none, for it may
    // have more than was thought of.
    let answered = yes || (named > 0 && !std::io::stdin().is_terminal());
    if !(answered || ask(&question)?) {
        bail!("nothing was discarded");
    }
    if let [id] = selection.ids.as_slice() {
        let discarded = operator.discard(*id, why).await?;
        let event = printable::line(discarded.entry.event_id.as_deref().unwrap_or("without an id"));
        print(&match json {
            true => letter(&discarded, true),
            false => format!("dead letter {id}, event {event}, will not be delivered"),
        });
        return Ok(());
    }
    operator.discard_all(&selection, chosen, why).await?;
    print(&match json {
        true => json!({ "discarded": count }).to_string(),
        false => format!("{} will not be delivered", counted(count.unsigned_abs(), "event")),
    });
    Ok(())
}
