//! The consumer's half of the outbox: each message takes effect once, in key order.
//!
//! The row that remembers a message, the effect, and whatever the work publishes commit together
//! in the consumer's PostgreSQL. So redelivery, rebalances, crashes and processes that come back
//! from the dead leave one effect for each message; the broker's offset is only a hint where to go
//! on.
//!
//! [`Inbox`] is the core and knows no broker: any consumer of RabbitMQ, NATS, SQS or HTTP can use it.
//!
//! ```no_run
//! use outbox_idempotency::{Inbox, MessageId, Once};
//!
//! # async fn example(pool: deadpool_postgres::Pool, id: uuid::Uuid)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! // The tables: `outbox-relay migrate --set inbox`, or `migrate` of this crate.
//! let inbox = Inbox::open(pool, "billing/charge").await?;
//! let id = MessageId::from_uuid(id).ok_or("the relay's ids carry their time")?;
//!
//! let done = inbox
//!     .once(&id, |tx| async move {
//!         tx.execute("update account set balance = balance - $1 where id = $2", &[&5_i64, &7_i64])
//!             .await
//!     })
//!     .await?;
//! match done {
//!     Once::Applied(_) | Once::Duplicate => { /* acknowledge the message */ }
//!     Once::OutsideWindow => { /* too old to tell: put it aside for a person */ }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Processor`] adds what happens when a handler fails: retries in the order of the key, dead letters
//! ([`dead_letters`]), alerts, metrics. With the feature `kafka` there is a runner for consumer groups.
//!
//! What it leaves to others: effects outside that transaction, which it can't undo or tell from
//! one another (`docs/CONSUMER.md`).

/// The README's code compiles.
#[cfg(all(doctest, feature = "kafka-plain"))]
#[doc = include_str!("../README.md")]
struct Readme;

mod alert;
mod connection;
pub mod dead_letters;
pub mod dispatch;
mod error;
mod failure;
#[cfg(feature = "fault-points")]
#[doc(hidden)]
pub mod fault;
#[cfg(not(feature = "fault-points"))]
mod fault;
mod guard;
mod handler;
mod heap;
mod identity;
mod inbox;
#[cfg(feature = "kafka-plain")]
pub mod kafka;
mod losses;
mod message;
mod message_id;
mod meter;
mod ordering;
mod processor;
mod quiet;
mod registered;
mod remembered;
mod repertoire;
mod retry;
mod rfc3339;
mod running;
mod session;
mod sql;
#[cfg(feature = "testing")]
pub mod testing;
mod timestamp;
mod transaction;
mod tx;
mod window;

pub use alert::Alert;
pub use bytes;
pub use deadpool_postgres;
pub use error::{InboxError, OnceError};
pub use failure::{Classify, Failure};
pub use handler::{BatchHandler, Handler};
pub use inbox::{Claim, Inbox, Once};
pub use losses::{Loss, LossKind};
pub use message::{Headers, Message, RawMessage, Source};
pub use message_id::MessageId;
pub use metrics;
pub use ordering::OrderBy;
#[cfg(feature = "migrate")]
pub use outbox_migrations::MigrateError;
pub use processor::{Dedup, Processor, Stop};
pub use retry::Retry;
pub use session::Isolation;
pub use timestamp::Timestamp;
pub use tokio_postgres;
pub use tx::{Event, Tx};
pub use uuid;

/// Brings the schema `inbox` of the client's database up to date, as `outbox-relay migrate --set
/// inbox` does; what somebody has dropped of it is recreated, and the log says what that means. Run it as the tables' owner, on a direct connection (`docs/ROLES.md`).
///
/// Cancel safe: a migration that was under way is rolled back with its connection; call it again on another one.
///
/// # Errors
/// [`MigrateError`]; what was applied before stays applied.
#[cfg(feature = "migrate")]
pub async fn migrate(client: &mut tokio_postgres::Client) -> Result<(), MigrateError> {
    outbox_migrations::apply(client, outbox_migrations::Set::Inbox).await?;
    let recreated = outbox_migrations::recreate_inbox(client).await?;
    if !recreated.is_empty() {
        let (recreated, meaning) = (recreated.join(", "), outbox_migrations::meaning(&recreated));
        tracing::warn!("{recreated}: {meaning}");
    }
    Ok(())
}
