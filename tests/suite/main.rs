//! The end-to-end suite. One binary, so that its servers start once per run.

mod migrations;
mod publish;
mod servers;
