//! Asks the running relay, if it can be reached: the catalogs don't show what it has met in the stream.

use super::{Finding, problem, warning};
use crate::{
    admin::client,
    config::Config,
    core::printable,
    state::{boards::Answer, status::Status},
};

/// Whether it is halted, or not ready. Ends within the client's patience.
pub(super) async fn asked(config: &Config) -> Option<Finding> {
    let address = config.admin.reach()?;
    let (_, body) = client::get(&address, "/status").await.ok()?;
    let answer: Answer = serde_json::from_str(&body).ok()?;
    let (name, slot) = (&config.name, &config.postgres.slot);
    answer.relays().iter().find_map(|status| told(status, name, slot))
}

/// Any user of the host can take a port that is free, and so can another relay.
fn told(status: &Status, name: &str, slot: &str) -> Option<Finding> {
    const NAME: &str = "running relay";
    if status.name != name || status.slot != slot {
        return None;
    }
    if status.phase == "halted" {
        let detail = printable::line(&status.detail);
        return Some(problem(
            NAME,
            format!("what answers at admin.listen as relay {name} is halted: {detail}"),
            "compare it with the relay's log, and follow it; the relay then continues within ten seconds, or after a restart if a setting was changed",
        ));
    }
    let why = status.not_ready_because.as_ref()?;
    let seen = format!(
        "what answers at admin.listen as relay {name} is not ready: {}",
        printable::line(why)
    );
    // What it is on the way to takes its time; all else is an outage.
    let is_on_its_way =
        ["repairing", "stopping"].contains(&status.phase.as_str()) || why.starts_with("starting: ");
    Some(match is_on_its_way {
        true => warning(NAME, seen, "wait; `outbox-relay status` shows how far it is"),
        false => problem(
            NAME,
            seen,
            "if it stays, follow it (docs/TROUBLESHOOTING.md); the relay tries again by itself",
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        cli::command::check::Verdict,
        state::{Board, Phase},
    };

    #[test]
    fn a_halt_is_told_of_the_relay_of_the_settings_alone() {
        let board = Board::new("orders", "outbox_orders", "1.2.3");
        board.phase(Phase::Halted { reason: "r".into(), remedy: "m".into() });
        let found = told(&board.status(), "orders", "outbox_orders").expect("it has halted");
        assert!(found.seen.ends_with("r; m"), "{found:?}");
        assert!(told(&board.status(), "others", "outbox_orders").is_none());
        assert!(told(&board.status(), "orders", "outbox_others").is_none());
    }

    #[test]
    fn what_a_relay_tries_again_is_a_problem_and_a_start_or_a_repair_is_a_warning() {
        let board = Board::new("orders", "outbox_orders", "1.2.3");
        let found = || told(&board.status(), "orders", "outbox_orders");
        let starting = || board.phase(Phase::Starting { doing: "fencing".into() });
        starting();
        assert_eq!(found().expect("it starts").verdict, Verdict::Warning);
        board.phase(Phase::Repairing { delivered: 1, through: None });
        assert_eq!(found().expect("it repairs").verdict, Verdict::Warning);
        board.phase(Phase::Retrying {
            doing: "writing".into(),
            error: "no space left".into(),
            next_attempt_in: Duration::from_secs(4),
        });
        starting();
        let between = found().expect("the next attempt has begun");
        assert_eq!(between.verdict, Verdict::Problem);
        assert!(between.seen.contains("writing: no space left"), "{between:?}");
        board.phase(Phase::Streaming);
        board.heard();
        assert!(found().is_none(), "{:?}", found());
    }
}
