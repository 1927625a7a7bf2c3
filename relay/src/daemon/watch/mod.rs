//! What runs beside the stream while the relay leads: each file is one task, or what one of them looks at.

pub(super) mod broker;
pub(super) mod control;
mod held;
mod late;
pub(super) mod lookout;
pub(super) mod missing;
pub(super) mod retention;
pub(super) mod stuck;
pub(super) mod suspects;
pub(super) mod waiting;
