//! `outbox-relay status`: asks a running relay and prints its answer.

use std::fmt::Write as _;

use anyhow::{Context, bail};

use crate::{
    admin::client,
    cli::{arguments::of_process, output::print},
    config::{Config, Origin},
    core::printable::{self, counted},
    state::{
        boards::Answer,
        status::{LastError, Status, approximate},
    },
};

/// What to look at where something else answers.
const TAKEN: &str = "If the relay runs, another program has its address: the relay's log says which one, and \
                     the relay takes the address once it is free";

/// Fetches `/status` and prints it. Returns whether the relay is ready, and each of several.
pub(in crate::cli) async fn run(configs: &[Config], json: bool) -> anyhow::Result<bool> {
    let config = of_process(configs)?;
    let Some(address) = config.admin.reach() else {
        bail!("admin.listen is off, so there is nothing to ask: set it, or give --admin HOST:PORT");
    };
    let (code, body) = client::get(&address, "/status").await?;
    if code != 200 {
        bail!("{address} answers /status with code {code}: is it a relay's admin address? {TAKEN}");
    }
    let answer: Answer = serde_json::from_str(&body)
        .with_context(|| format!("what {address} answers is not a relay's status. {TAKEN}"))?;
    let relays = answer.relays();
    for status in &relays {
        let config = configs.iter().find(|it| it.name == status.name).or(configs.first());
        config.map_or(Ok(()), |config| is_asked_for(status, config, &address))?;
    }
    let tables: Vec<String> = relays.iter().map(table).collect();
    print(&if json { body } else { tables.join("\n") });
    Ok(relays.iter().all(|status| status.ready))
}

/// Any user of the host can take a port that is free, and so can another relay. Who names an address on the
/// command line asks whoever is there.
fn is_asked_for(status: &Status, config: &Config, address: &str) -> anyhow::Result<()> {
    let from = |key: &str| config.origin(key) != Origin::Default;
    let is_known = from("name") || !config.postgres.url.expose().is_empty();
    let (name, slot) = (&config.name, &config.postgres.slot);
    let asked_by_address = matches!(config.origin("admin.listen"), Origin::Flag(_));
    if asked_by_address || !is_known || (&status.name, &status.slot) == (name, slot) {
        return Ok(());
    }
    let (other, its_slot) = (printable::line(&status.name), printable::line(&status.slot));
    bail!(
        "what answers on {address} says that it is the relay {other} with slot {its_slot}, and not {name} with \
         slot {slot}. {TAKEN}. To ask whoever is there, give --admin {address}"
    )
}

fn table(s: &Status) -> String {
    fn known<T: ToString>(value: Option<T>) -> String {
        value.map_or_else(|| "-".into(), |value| value.to_string())
    }
    let phase = match s.not_ready_because.as_deref().unwrap_or(&s.detail) {
        "" => s.phase.clone(),
        // What there is to say of some phases begins with their name: `halted: …`.
        why if why.starts_with(&format!("{}: ", s.phase)) => why.to_owned(),
        why => format!("{} ({why})", s.phase),
    };
    let lag = match (s.lag_bytes, s.lag_seconds) {
        (Some(bytes), Some(seconds)) => format!("{}, {seconds:.1} s", approximate(bytes)),
        _ => "-".into(),
    };
    let batch = s.last_batch.as_ref().map(|b| {
        let records = counted(b.records, "record");
        format!("{records}, {}, {:.1} ms", approximate(b.bytes), b.seconds * 1000.0)
    });
    let route = s.route.iter().map(|route| ("route", route.clone()));
    let rows = [
        ("relay", format!("{} {}", s.name, s.version)),
        ("phase", phase),
        ("ready", if s.ready { "yes" } else { "no" }.into()),
        ("role", s.role.clone()),
        ("slot", s.slot.clone()),
        ("received", known(s.received)),
        ("delivered", known(s.delivered)),
        ("confirmed", known(s.confirmed)),
        ("server's WAL end", known(s.server_wal_end)),
        ("lag", lag),
        ("records delivered", s.records_delivered.to_string()),
        ("last batch", known(batch)),
        ("rows moved", s.rows_moved.to_string()),
        ("parked lanes", known(s.parked_lanes)),
        ("parked events", known(s.parked_events)),
        ("last error", known(s.last_error.as_ref().map(last_error))),
        ("uptime", uptime(s.uptime_seconds)),
    ];
    let mut out = String::new();
    let concerns = s.concerns.iter().map(|concern| ("of concern", concern.clone()));
    for (name, value) in route.chain(rows).chain(concerns) {
        // Writing to a string can't fail.
        let _ = writeln!(out, "{name:<18} {}", printable::line(&value));
    }
    out
}

fn last_error(last: &LastError) -> String {
    match &last.over_since {
        Some(over) => format!("over since {over}: {} {}", last.at, last.error),
        None => format!("{} {}", last.at, last.error),
    }
}

fn uptime(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.trunc()).unwrap_or_default();
    humantime::format_duration(whole).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{lsn::Lsn, position::Position},
        state::{Board, Phase},
    };
    use std::time::Duration;

    #[test]
    fn the_table_has_every_line_and_a_dash_for_what_is_not_known() {
        let board = Board::new("orders", "outbox_orders", "1.2.3");
        board.heard();
        board.phase(Phase::Streaming);
        board.server(Lsn::new(0x300));
        board.delivered(
            Some(Position::UpTo(Lsn::new(0x100))),
            2,
            5000,
            Duration::from_millis(4),
            None,
        );
        let status = Status { lag_seconds: Some(0.5), uptime_seconds: 61.9, ..board.status() };
        let expected = "\
relay              orders 1.2.3
phase              streaming
ready              yes
role               leader
slot               outbox_orders
received           -
delivered          up to 0/100
confirmed          -
server's WAL end   0/300
lag                512 B, 0.5 s
records delivered  2
last batch         2 records, 5000 B, 4.0 ms
rows moved         0
parked lanes       -
parked events      -
last error         -
uptime             1m 1s
";
        assert_eq!(table(&status), expected);
        let because = Some("halted: no topic; fix it".to_owned());
        let halted = Status { phase: "halted".into(), not_ready_because: because, ..status };
        assert!(table(&halted).contains("phase              halted: no topic; fix it\n"));
    }
}
