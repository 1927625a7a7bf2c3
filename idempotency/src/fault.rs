//! Places where a crash matters, at which a test can end or stop this very process.
//!
//! The product contains none of this: without the feature `fault-points`, `point` is nothing. With
//! it, whoever called `on_passing` hears of each passing and decides what happens.

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place in a consumer's work.
        // Those of the poll thread are nowhere without it, and only tests call it by its name.
        #[cfg_attr(not(feature = "fault-points"), allow(unreachable_pub))]
        #[cfg_attr(not(feature = "kafka-plain"), allow(dead_code))]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        #[cfg(feature = "fault-points")]
        impl Point {
            /// Every point: the poll thread's, then a message's.
            pub const ALL: &[Point] = &[$(Point::$point,)+];

            /// What it is called in settings and logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// Partitions came; no one has asked the database where they continue.
    Assigning = "assigning",
    /// A record was taken from Kafka's client; no worker knows of it.
    Polled = "polled",
    /// Offsets of what is finished are with Kafka's client, which has not committed them.
    OffsetsStored = "offsets-stored",
    /// Partitions are to go; what is under way was not waited for.
    Revoking = "revoking",
    /// What was under way is finished; the offsets behind it are not committed.
    Drained = "drained",
    /// Asked to stop: everything is committed, and the group does not know that we leave.
    Leaving = "leaving",
    /// The transaction is open and its messages are claimed; no handler was called.
    Claimed = "claimed",
    /// In the handler, which publishes an event, perhaps after other writes.
    Handling = "handling",
    /// The handler has done all it does; the transaction is open.
    Handled = "handled",
    /// A watermark is moved, and its transaction open.
    MarkMoved = "mark-moved",
    /// A commit is about to be asked for.
    Committing = "committing",
    /// It took effect; only the database knows.
    Committed = "committed",
    /// A handler has failed and all is rolled back; nothing is stored about it.
    Failed = "failed",
    /// Messages are stored behind a parked one, and the transaction is open.
    Waiting = "waiting",
    /// A lane and its first message are parked, and the transaction is open.
    Parking = "parking",
    /// They are parked; only the database knows.
    Parked = "parked",
    /// A dead letter is stored, and the transaction is open.
    Burying = "burying",
    /// A parked lane that is due is locked; its messages were not tried.
    TakenUp = "taken-up",
    /// Messages of a parked lane took effect and left the lane; the transaction is open.
    Retried = "retried",
    /// A parked message has failed again and its lane has a new due time; the transaction is open.
    Postponing = "postponing",
    /// A replay of dead letters is about to be asked for.
    Replaying = "replaying",
    /// It is done; only the database knows.
    Replayed = "replayed",
    /// Days of the inbox are about to be made and dropped.
    Maintaining = "maintaining",
    /// They are; only the database knows.
    Maintained = "maintained",
}

/// Passes a point.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn point(_: Point) {}

/// Whether a session is left as a handler left it.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn sessions_are_left() -> bool {
    false
}

#[cfg(feature = "fault-points")]
static LEFT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Has sessions left as handlers leave them, to measure what putting them back costs; nothing else may
/// rest on it.
#[cfg(feature = "fault-points")]
pub fn leave_sessions(left: bool) {
    LEFT.store(left, std::sync::atomic::Ordering::Relaxed);
}

/// Whether a session is left as a handler left it.
#[cfg(feature = "fault-points")]
pub(crate) fn sessions_are_left() -> bool {
    LEFT.load(std::sync::atomic::Ordering::Relaxed)
}

#[cfg(feature = "fault-points")]
static HOOK: std::sync::OnceLock<fn(Point)> = std::sync::OnceLock::new();

/// Has `hook` called at each passing of a point, on the thread that passes it. Once per process.
#[cfg(feature = "fault-points")]
pub fn on_passing(hook: fn(Point)) {
    let _hooked_before = HOOK.set(hook);
}

/// Passes a point.
#[cfg(feature = "fault-points")]
pub(crate) fn point(point: Point) {
    if let Some(hook) = HOOK.get() {
        hook(point);
    }
}
