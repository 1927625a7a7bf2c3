//! What each command does, apart from `run`, which is `daemon`. A command prints, and no one but `cli`
//! calls it.

pub(super) mod check;
pub(super) mod dead_letters;
pub(super) mod demo;
pub(super) mod inbox;
pub(super) mod migrate;
pub(super) mod resume;
pub(super) mod status;
