//! Subjects that a server has said the relay may not publish to.
//!
//! A server does not answer what it does not let pass: it says so beside. Deliveries and the probe share a connection,
//! so each asks only for what was said since it began, and takes nothing away from the other.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Subjects that are remembered; the oldest is forgotten for a newer one.
const SUBJECTS_MAX: usize = 1_000;

/// When each subject was last refused.
#[derive(Debug, Default)]
pub(super) struct Forbidden(Mutex<BTreeMap<String, Instant>>);

impl Forbidden {
    /// The server names the subject in a text: `Permissions Violation for Publish to "orders.0"`.
    pub(super) fn note(&self, text: &str) {
        if !text.to_ascii_lowercase().contains("permissions violation for publish") {
            return;
        }
        let Some(subject) = text.split('"').nth(1) else { return };
        let mut noted = self.lock();
        if noted.len() >= SUBJECTS_MAX && !noted.contains_key(subject) {
            let oldest =
                noted.iter().min_by_key(|(_, at)| **at).map(|(subject, _)| subject.clone());
            oldest.map(|subject| noted.remove(&subject));
        }
        noted.insert(subject.to_owned(), Instant::now());
    }

    /// Whether the subject was refused since then.
    pub(super) fn is(&self, subject: &str, since: Instant) -> bool {
        self.lock().get(subject).is_some_and(|at| *at >= since)
    }

    /// Every subject that was refused since then.
    pub(super) fn since(&self, since: Instant) -> Vec<String> {
        let noted = self.lock();
        noted.iter().filter(|(_, at)| **at >= since).map(|(subject, _)| subject.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(subject: &str) -> String {
        format!("Permissions Violation for Publish to \"{subject}\"")
    }

    #[test]
    fn what_a_delivery_learns_is_not_taken_from_the_probe_and_what_was_said_before_counts_for_no_one()
     {
        let forbidden = Forbidden::default();
        let began = Instant::now();
        forbidden.note("slow consumer");
        forbidden.note(&text("progress"));
        forbidden.note(&text("orders.0"));
        assert_eq!(forbidden.since(began), ["orders.0", "progress"]);
        // The delivery has asked, and the probe still learns of its own subject alone.
        assert!(forbidden.is("progress", began) && !forbidden.is("orders.1", began));
        assert!(forbidden.is("progress", began), "another one that waits learns it too");
        std::thread::sleep(std::time::Duration::from_millis(2));
        let later = Instant::now();
        assert!(!forbidden.is("progress", later) && forbidden.since(later).is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten() {
        let forbidden = Forbidden::default();
        let began = Instant::now();
        for n in 0..=SUBJECTS_MAX {
            forbidden.note(&text(&n.to_string()));
        }
        assert_eq!(forbidden.since(began).len(), SUBJECTS_MAX);
        assert!(forbidden.is(&SUBJECTS_MAX.to_string(), began));
    }
}
