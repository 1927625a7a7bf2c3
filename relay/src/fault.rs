//! Places where a crash matters, at which a test can end or stop this very process.
//!
//! The product contains none of this: without the feature `fault-points`, `point` and `soon`
//! are nothing, and only the tests' own program turns it on and arms a point.

#[cfg(feature = "fault-points")]
pub use self::armed::{ParseFaultError, arm};

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place in the relay's work.
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(feature = "fault-points", derive(Debug, Hash, PartialOrd, Ord))]
        pub enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        #[cfg(feature = "fault-points")]
        impl Point {
            /// Every point, in the order of the road.
            pub const ALL: &[Point] = &[$(Point::$point,)+];

            /// As the environment variable names it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// The leader's lock is held; nothing else is known yet.
    Leading = "leading",
    /// A progress record is in the database; no one was told.
    ProgressInTable = "progress-in-table",
    /// The progress topic exists; nothing was ever stored in it.
    ProgressTopicMade = "progress-topic-made",
    /// Progress was read once, no one is fenced.
    ProgressRead = "progress-read",
    /// Older relays are fenced; what they left is not looked at yet.
    Fenced = "fenced",
    /// A decision to start over is stored, and the slot that it leaves out is still there.
    DecisionStored = "decision-stored",
    /// A first start has said that the slot will be its own; there is no slot.
    FirstProgressStored = "first-progress-stored",
    /// The slot is there, for a first start or a repair; where it begins is not stored.
    SlotMade = "slot-made",
    /// The slot's beginning is stored; nothing was streamed.
    SlotStored = "slot-stored",
    /// A repair has said that it will recreate the slot; the old one may still be there.
    RepairAnnounced = "repair-announced",
    /// The new slot and what is to be read are stored; nothing was read.
    RepairBegun = "repair-begun",
    /// A page of a repair is stored, and the next one not read.
    RepairPageStored = "repair-page-stored",
    /// All rows of a repair are stored, its end is not.
    RepairDelivered = "repair-delivered",
    /// A repair's end is stored; nothing was streamed.
    RepairEnded = "repair-ended",
    /// Releases that were complete are finished, and it is known which lanes are parked.
    LanesRead = "lanes-read",
    /// Releases that are not delivered are announced once more.
    AnnouncedAgain = "announced-again",
    /// The server has agreed to stream.
    StreamStarted = "stream-started",
    /// A batch left the source; none of it left the relay.
    BatchGiven = "batch-given",
    /// A transaction is open at the broker's client, empty.
    TransactionBegun = "transaction-begun",
    /// Progress is queued in a transaction, its records are not.
    ProgressProduced = "progress-produced",
    /// All records of a delivery are queued; the broker may have some, all or none.
    RecordsProduced = "records-produced",
    /// The broker has all records of a delivery; they are not committed, or have no progress.
    RecordsStored = "records-stored",
    /// A moment after the commit was asked for: its request, its answer, or neither is under way.
    CommitUnderWay = "commit-under-way",
    /// The transaction is committed; no one but the broker knows.
    Committed = "committed",
    /// A transaction failed and is about to be aborted.
    Aborting = "aborting",
    /// It is aborted; its records were not tried again.
    Aborted = "aborted",
    /// At-least-once: progress is queued after its records.
    ProgressFollows = "progress-follows",
    /// At-least-once: a refused batch is about to be stored again, a record at a time.
    StoringAlone = "storing-alone",
    /// Events are refused permanently; nothing of it is in the table of dead letters.
    Parking = "parking",
    /// They are parked, or back among the parked ones; no progress covers them.
    Parked = "parked",
    /// A release's events have their places; none of them is delivered.
    ReleaseBegun = "release-begun",
    /// Its events are delivered or parked again; no progress says that it is complete.
    ReleaseDelivered = "release-delivered",
    /// Progress says that it is complete; its rows do not.
    ReleaseStored = "release-stored",
    /// Its rows say so too; progress still lists it.
    ReleaseFinished = "release-finished",
    /// A command has changed dead letters in a transaction that announces nothing yet.
    CommandChanged = "command-changed",
    /// The transaction announces the change, and is open.
    CommandAnnounced = "command-announced",
    /// It is committed; no one but the server knows.
    CommandCommitted = "command-committed",
    /// The sink has answered that all is stored; the source does not know.
    Delivered = "delivered",
    /// The source may confirm a new position, and has not told the server.
    Confirmable = "confirmable",
    /// The server was told a confirmed position.
    StatusSent = "status-sent",
    /// Asked to stop: the last delivery has ended, its confirmation is not sent.
    Finishing = "finishing",
}

/// Ends or stops the process here, if a test asked for it.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn point(_: Point) {}

/// As [`point`], but a moment later, while this thread continues.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn soon(_: Point) {}

#[cfg(feature = "fault-points")]
pub(crate) use self::armed::{point, soon};

#[cfg(feature = "fault-points")]
mod armed {
    use std::{
        io::Write as _,
        str::FromStr,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        thread,
        time::Duration,
    };

    use super::Point;

    /// A commit takes a few milliseconds; this falls into most of them.
    const MOMENT: Duration = Duration::from_millis(1);

    static FAULT: OnceLock<Fault> = OnceLock::new();

    struct Fault {
        point: Point,
        /// Passings left until it happens.
        left: AtomicU64,
        way: Way,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Way {
        Kill,
        Freeze,
        /// The thread or the task panics, as at a defect of the relay.
        Panic,
    }

    /// The text is not `point[:nth[:freeze|:panic]]`.
    #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
    #[error(
        "{0:?} is not a fault, which looks like committed, committed:3, committed:3:freeze or committed:3:panic"
    )]
    pub struct ParseFaultError(String);

    impl FromStr for Fault {
        type Err = ParseFaultError;

        fn from_str(text: &str) -> Result<Self, ParseFaultError> {
            let unknown = || ParseFaultError(text.to_owned());
            let mut parts = text.split(':');
            let name = parts.next().unwrap_or_default();
            let point = Point::ALL.iter().copied().find(|point| point.name() == name);
            let nth: u64 = parts.next().unwrap_or("1").parse().map_err(|_| unknown())?;
            let way = match (parts.next(), parts.next()) {
                (None, None) => Way::Kill,
                (Some("freeze"), None) => Way::Freeze,
                (Some("panic"), None) => Way::Panic,
                _ => return Err(unknown()),
            };
            match point {
                Some(point) if nth > 0 => Ok(Fault { point, left: AtomicU64::new(nth), way }),
                _ => Err(unknown()),
            }
        }
    }

    /// Arms the fault `point[:nth[:freeze|:panic]]`: at the nth passing (the first by default) the process
    /// gets SIGKILL, or SIGSTOP where it is to freeze, or the code that passes panics. Once per process.
    ///
    /// # Errors
    /// [`ParseFaultError`] when there is no such point.
    pub fn arm(fault: &str) -> Result<(), ParseFaultError> {
        let _armed_before = FAULT.set(fault.parse()?);
        Ok(())
    }

    pub(crate) fn point(point: Point) {
        if let Some(fault) = due(point) {
            fault.happen();
        }
    }

    pub(crate) fn soon(point: Point) {
        if let Some(fault) = due(point) {
            if fault.way == Way::Panic {
                fault.happen();
            }
            let _detached = thread::spawn(|| {
                thread::sleep(MOMENT);
                fault.happen();
            });
        }
    }

    fn due(point: Point) -> Option<&'static Fault> {
        let fault = FAULT.get().filter(|fault| fault.point == point)?;
        (fault.left.fetch_sub(1, Relaxed) == 1).then_some(fault)
    }

    impl Fault {
        /// Not `abort`, which writes a core: a signal, as a kernel out of memory sends it.
        fn happen(&self) {
            // In one write: a line of the log that another thread writes would come between two.
            let line = format!("fault: {}\n", self.point.name());
            let _ = std::io::stderr().write_all(line.as_bytes());
            let signal = match self.way {
                Way::Kill => libc::SIGKILL,
                Way::Freeze => libc::SIGSTOP,
                Way::Panic => panic!("as the fault {} asks", self.point.name()),
            };
            // To this thread: a signal to the process waits for its first thread to run, and this one
            // would continue meanwhile.
            // SAFETY: raise takes any number and touches no memory of ours.
            let sent = unsafe { libc::raise(signal) };
            assert_eq!(sent, 0, "a process may signal itself");
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_fault_is_a_point_a_number_and_a_way() {
            let fault: Fault = "committed:3:freeze".parse().expect("a fault");
            assert!(fault.point == Point::Committed && fault.way == Way::Freeze);
            let fault: Fault = "committed:3:panic".parse().expect("a fault");
            assert_eq!(fault.way, Way::Panic);
            assert_eq!(fault.left.into_inner(), 3);
            for wrong in ["", "comitted", "committed:0", "committed:x", "committed:1:melt", ":1"] {
                assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
            }
        }

        #[test]
        fn names_are_those_of_one_point_each() {
            let mut names: Vec<_> = Point::ALL.iter().map(|point| point.name()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), Point::ALL.len());
        }
    }
}
