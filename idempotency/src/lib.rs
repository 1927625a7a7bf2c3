//! The consumer's half of the outbox: each message takes effect once, in key order.
//!
//! **Not built yet.** This crate reserves the name and states the promise; it has no public item.
//!
//! What it will promise: a consumer that links it writes one handler, which gets a transaction and
//! a typed message. The dedup row, the effect, and whatever the handler publishes commit together
//! in the consumer's PostgreSQL, so redelivery, rebalances, crashes and zombies leave one effect
//! per message. A message that fails waits with its key's later ones; all other keys flow.
//!
//! What it will leave to others: effects outside that transaction, and schema of the payload.
//! Until then, a consumer of the relay's topics stores the header `outbox-id` in a table with a
//! unique key, in the transaction of its effect, and reads with `isolation.level=read_committed`.
