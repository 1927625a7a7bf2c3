//! Asks the running relay, if it can be reached: the catalogs don't show what it has met in the stream.

use super::{Finding, problem};
use crate::{admin::client, config::Config, core::printable, state::status::Status};

/// Whether it is halted. Ends within the client's patience.
pub(super) async fn halted(config: &Config) -> Option<Finding> {
    let address = config.admin.reach()?;
    let (_, body) = client::get(&address, "/status").await.ok()?;
    let status: Status = serde_json::from_str(&body).ok()?;
    told(&status, &config.name, &config.postgres.slot)
}

/// Any user of the host can take a port that is free, and so can another relay.
fn told(status: &Status, name: &str, slot: &str) -> Option<Finding> {
    let is_it = status.name == name && status.slot == slot;
    (is_it && status.phase == "halted").then(|| {
        let detail = printable::line(&status.detail);
        problem(
            "running relay",
            format!("what answers at admin.listen as relay {name} is halted: {detail}"),
            "compare it with the relay's log, and follow it; the relay then continues within ten seconds, or after a restart if a setting was changed",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Board, Phase};

    #[test]
    fn a_halt_is_told_of_the_relay_of_the_settings_alone() {
        let board = Board::new("orders", "outbox_orders", "1.2.3");
        assert!(told(&board.status(), "orders", "outbox_orders").is_none());
        board.phase(Phase::Halted { reason: "r".into(), remedy: "m".into() });
        let found = told(&board.status(), "orders", "outbox_orders").expect("it has halted");
        assert!(found.seen.ends_with("r; m"), "{found:?}");
        assert!(told(&board.status(), "others", "outbox_orders").is_none());
        assert!(told(&board.status(), "orders", "outbox_others").is_none());
    }
}
