//! The end-to-end suite. One binary, so that its servers start once per run.

mod connect;
mod crash;
mod dead_letters;
mod delivery;
mod demo;
mod failover;
mod idle;
mod inbox;
mod large;
mod layouts;
mod leader;
mod matrix;
mod migrations;
mod ordering;
mod outages;
mod publish;
mod repair;
mod schema;
mod secure_kafka;
mod secure_postgres;
mod servers;
mod sessions;
mod settings;
mod strangers;
mod topics;
mod trust;
