//! The boards of all relays of a process: one, or one for each route.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Board, status::Status};
use crate::core::printable;

/// A relay's board, and what it means for the process.
#[derive(Clone, Debug)]
pub struct OfRelay {
    /// `None` where the process is one relay.
    pub route: Option<String>,
    /// Whether the process is not ready where this relay alone is not.
    pub required: bool,
    /// The relay's own.
    pub board: Board,
}

/// All of them; never empty.
#[derive(Clone, Debug)]
pub struct Boards(Vec<OfRelay>);

/// What `/status` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of a process with routes.
    Routes {
        /// One each, in the order of their names.
        routes: Vec<Status>,
    },
    /// Of a process that is one relay.
    Relay(Box<Status>),
}

impl Answer {
    /// Each relay's.
    pub fn relays(self) -> Vec<Status> {
        match self {
            Answer::Routes { routes } => routes,
            Answer::Relay(status) => vec![*status],
        }
    }
}

impl From<Board> for Boards {
    fn from(board: Board) -> Self {
        Boards(vec![OfRelay { route: None, required: true, board }])
    }
}

impl From<Vec<OfRelay>> for Boards {
    fn from(relays: Vec<OfRelay>) -> Self {
        Boards(relays)
    }
}

impl Boards {
    /// Each relay's.
    pub fn iter(&self) -> impl Iterator<Item = &OfRelay> {
        self.0.iter()
    }

    /// `Err` has the reason why the process should be restarted: one relay that is stuck is enough.
    pub fn liveness(&self) -> Result<(), Vec<String>> {
        let stuck = self.0.iter().filter_map(|it| Some(it.told(it.board.liveness().err()?)));
        let stuck: Vec<String> = stuck.collect();
        if stuck.is_empty() { Ok(()) } else { Err(stuck) }
    }

    /// `Err` has the reasons why the process is not ready: no relay is, or a required one is not. Otherwise what a
    /// person should change, which includes relays that are not ready.
    pub fn readiness(&self) -> Result<Vec<String>, Vec<String>> {
        let found: Vec<_> = self.0.iter().map(|it| (it, it.board.readiness())).collect();
        let is_ready = found.iter().any(|(_, found)| found.is_ok())
            && found.iter().all(|(it, found)| found.is_ok() || !it.required);
        let not = found.iter().filter_map(|(it, found)| Some(it.told(found.clone().err()?)));
        let not: Vec<String> = not.collect();
        if !is_ready {
            return Err(not);
        }
        let concerns = self.0.iter().flat_map(|it| {
            it.board.concerns().into_iter().map(|concern| it.told(concern)).collect::<Vec<_>>()
        });
        Ok(not.into_iter().chain(concerns).collect())
    }

    /// As of now.
    pub fn status(&self) -> Answer {
        match self.0.as_slice() {
            [OfRelay { route: None, board, .. }] => Answer::Relay(Box::new(board.status())),
            relays => Answer::Routes {
                routes: relays
                    .iter()
                    .map(|it| Status { route: it.route.clone(), ..it.board.status() })
                    .collect(),
            },
        }
    }

    /// The OpenMetrics text.
    pub fn render_metrics(&self) -> String {
        match self.0.as_slice() {
            [one] => one.board.render_metrics(),
            relays => one_text(relays.iter().map(|it| it.board.render_metrics())),
        }
    }
}

impl OfRelay {
    /// Of what the log has of it, where there are several.
    pub fn span(&self) -> tracing::Span {
        match &self.route {
            Some(route) => tracing::info_span!("relay", route),
            None => tracing::Span::none(),
        }
    }

    /// With the name of its route, if it is one.
    fn told(&self, what: String) -> String {
        match &self.route {
            Some(route) => format!("route {route}: {}", printable::for_route(&what, route)),
            None => what,
        }
    }
}

/// Samples of the same metric stand together, below what is said of it once. What the process has is in each of the
/// texts, and counts once.
fn one_text(texts: impl Iterator<Item = String>) -> String {
    let mut order: Vec<String> = Vec::new();
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (at, text) in texts.enumerate() {
        let mut family = String::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().unwrap_or_default().to_owned();
                if !order.contains(&family) {
                    order.push(family.clone());
                }
            }
            let (said, samples) = families.entry(family.clone()).or_default();
            let is_said = line.starts_with('#');
            if at > 0 && (is_said || family.starts_with("process_")) && !said.is_empty() {
                continue;
            }
            let out = if is_said { said } else { samples };
            out.push_str(line);
            out.push('\n');
        }
    }
    let mut text = String::new();
    for (said, samples) in order.iter().filter_map(|family| families.get(family)) {
        text.push_str(said);
        text.push_str(samples);
    }
    text + "# EOF\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Phase;

    fn two(required: bool) -> (Boards, Board, Board) {
        let board = |name: &str| Board::of_route(name, name, "1.2.3");
        let (first, second) = (board("shop_audit"), board("shop_orders"));
        let of = |route: &str, required, board: &Board| OfRelay {
            route: Some(route.into()),
            required,
            board: board.clone(),
        };
        let relays = vec![of("audit", false, &first), of("orders", required, &second)];
        (Boards::from(relays), first, second)
    }

    #[test]
    fn a_process_is_ready_while_a_route_is_unless_a_required_one_is_not() {
        for required in [false, true] {
            let (boards, audit, orders) = two(required);
            let why = boards.readiness().expect_err("none is ready").concat();
            assert!(
                why.contains("route audit: starting") && why.contains("route orders: "),
                "{why}"
            );
            audit.heard();
            audit.phase(Phase::Streaming);
            match (required, boards.readiness()) {
                (false, Ok(but)) => {
                    assert!(but.concat().contains("route orders: starting"), "{but:?}")
                }
                (true, Err(why)) => assert!(!why.concat().contains("audit"), "{why:?}"),
                (_, other) => panic!("{other:?}"),
            }
            orders.heard();
            orders.phase(Phase::Streaming);
            assert_eq!(boards.readiness(), Ok(vec![]));
        }
    }

    #[test]
    fn each_metric_is_described_once_and_has_a_sample_for_each_route() {
        let (boards, ..) = two(false);
        let text = boards.render_metrics();
        for (what, expected) in [
            ("# TYPE outbox_relay_ready gauge", 1),
            ("outbox_relay_ready{relay=\"shop_audit\"} 0", 1),
            ("outbox_relay_ready{relay=\"shop_orders\"} 0", 1),
            ("\nprocess_resident_memory_bytes ", 1),
            ("# EOF\n", 1),
        ] {
            assert_eq!(text.matches(what).count(), expected, "{what} in: {text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let described: Vec<&str> = text.lines().filter(|line| line.starts_with("# HELP")).collect();
        let alone = Board::new("shop", "shop", "1.2.3").render_metrics();
        assert_eq!(described.len(), alone.matches("# HELP").count(), "{described:?}");
    }

    #[test]
    fn what_status_answers_reads_back() {
        let (boards, one, _) = two(false);
        for boards in [boards, Boards::from(one)] {
            let answer = boards.status();
            let text = serde_json::to_string(&answer).expect("it has a form");
            let read: Answer = serde_json::from_str(&text).expect("it reads back");
            assert_eq!(read.relays().len(), answer.relays().len(), "{text}");
        }
    }
}
