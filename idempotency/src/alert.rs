//! What a person should hear of, given to a hook of the user's.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// An event that a person should know about. If it concerns a commit, the hook is called after that commit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alert {
    /// A message became a dead letter.
    DeadLetter {
        /// The inbox's name.
        consumer: String,
        /// Why.
        code: String,
        /// Whether the consumer had no dead letter with this code before: worth more than a count.
        /// If several messages become dead letters at the same moment, it may be true for each.
        new_code: bool,
    },
    /// Records of a partition from offset `from` to before `to` were deleted before they were read, or are passed over
    /// with `auto.offset.reset=latest` though the group has read other partitions of the topic.
    Skipped {
        /// The inbox's name.
        consumer: String,
        /// The partition's topic.
        topic: String,
        /// Its number.
        partition: i32,
        /// Where reading was to continue, or the first record.
        from: i64,
        /// Where it continues.
        to: i64,
    },
    /// A partition was cut, or its topic recreated: reading was at `from` and begins again at `to`.
    Restarted {
        /// The inbox's name.
        consumer: String,
        /// The partition's topic.
        topic: String,
        /// Its number.
        partition: i32,
        /// Where reading was.
        from: i64,
        /// Where it begins.
        to: i64,
    },
    /// Another program (another kind of member, or a person) committed this partition's offset. Records before
    /// `offset` that it read have no effect here. Not raised where a watermark says where to continue, because
    /// reading does not depend on the group's offset then.
    Foreign {
        /// The inbox's name.
        consumer: String,
        /// The partition's topic.
        topic: String,
        /// Its number.
        partition: i32,
        /// Where reading continues.
        offset: i64,
    },
    /// The consumer's database is a promoted standby by now. If replication was asynchronous, it may lack the last
    /// effects. Each process that ran meanwhile raises it, within about 15 s.
    FailedOver {
        /// The inbox's name.
        consumer: String,
        /// When the former primary was written to, as seen last.
        seen: std::time::SystemTime,
    },
    /// Somebody else than the crate has had the inbox forget something: days that were truncated, dropped or
    /// detached, rows that were deleted. Each process raises it once, within about 15 s. For a dropped or detached
    /// day for which no message arrives it may take an hour.
    Forgotten {
        /// The inbox's name.
        consumer: String,
        /// What; its text says what it means and what to type.
        loss: crate::losses::Loss,
    },
    /// The database, or a server that it asks, can't do what a message's handler wants: no room, no memory, no
    /// connection, read-only. It costs no attempt. The message waits for as long as that lasts, and its key with it.
    Trouble {
        /// The inbox's name.
        consumer: String,
        /// The message's id.
        message: String,
        /// Why: `sqlstate-` and the state.
        code: String,
    },
    /// A handler has been at work on a message for half a minute (`Processor::slow_after`), and again for
    /// each further one. Its transaction is open.
    Slow {
        /// The inbox's name.
        consumer: String,
        /// The message's id, or the first one's of a batch.
        message: String,
        /// How long so far.
        for_time: std::time::Duration,
    },
}

type Hook = Arc<dyn Fn(&Alert) + Send + Sync>;

#[derive(Clone, Default)]
pub(crate) struct Alerts(Vec<Hook>);

impl fmt::Debug for Alerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Alerts").field(&self.0.len()).finish()
    }
}

impl Alerts {
    pub(crate) fn add(&mut self, hook: impl Fn(&Alert) + Send + Sync + 'static) {
        self.0.push(Arc::new(hook));
    }

    pub(crate) fn raise(&self, alert: &Alert) {
        for hook in &self.0 {
            // It is told of what is committed: whatever it does, nothing is to be undone.
            if catch_unwind(AssertUnwindSafe(|| hook(alert))).is_err() {
                tracing::error!(?alert, "a hook of on_alert panicked; the consumer continues");
            }
        }
    }
}
