//! The servers of a run: one PostgreSQL and one Kafka per process, started when first asked for.
//!
//! Each comes from an environment variable, else from Docker, else from what is installed; when
//! none can be had, every test that needs it fails with what to install. `guardian` stops them.

use std::{future::Future, time::Instant};

use anyhow::{Context, Result};
use tokio::sync::OnceCell;

use crate::{
    aws::{ElasticMq, Moto},
    host::report,
    kafka::Kafka,
    nats::Nats,
    postgres::Postgres,
    rabbit::Rabbit,
};

static POSTGRES: OnceCell<Result<Postgres, String>> = OnceCell::const_new();
static NATS: OnceCell<Result<Nats, String>> = OnceCell::const_new();
static RABBIT: OnceCell<Result<Rabbit, String>> = OnceCell::const_new();
static ELASTICMQ: OnceCell<Result<ElasticMq, String>> = OnceCell::const_new();
static MOTO: OnceCell<Result<Moto, String>> = OnceCell::const_new();
#[cfg(feature = "pulsar")]
static PULSAR: OnceCell<Result<crate::pulsar::Pulsar, String>> = OnceCell::const_new();
static KAFKA: OnceCell<Result<Kafka, String>> = OnceCell::const_new();

/// This run's PostgreSQL.
///
/// # Panics
/// When none can be had, with what to install.
pub async fn postgres() -> &'static Postgres {
    shared(&POSTGRES, "PostgreSQL", Postgres::start).await
}

/// This run's Kafka.
///
/// # Panics
/// When none can be had, with what to install.
pub async fn kafka() -> &'static Kafka {
    shared(&KAFKA, "Kafka", Kafka::start).await
}

/// This run's NATS server.
///
/// # Panics
/// When none can be had, with what to install.
pub async fn nats() -> &'static Nats {
    shared(&NATS, "NATS", || async { Nats::start() }).await
}

/// This run's RabbitMQ.
///
/// # Panics
/// When none can be had, with what to install.
pub async fn rabbit() -> &'static Rabbit {
    shared(&RABBIT, "RabbitMQ", || async {
        let broker = Rabbit::start()?;
        broker.wait_ready().await;
        Ok(broker)
    })
    .await
}

/// This run's Pulsar.
///
/// # Panics
/// When none can be had, with what to install.
#[cfg(feature = "pulsar")]
pub async fn pulsar() -> &'static crate::pulsar::Pulsar {
    shared(&PULSAR, "Pulsar", || async {
        let broker = crate::pulsar::Pulsar::start()?;
        broker.wait_ready().await;
        Ok(broker)
    })
    .await
}

/// This run's ElasticMQ.
///
/// # Panics
/// When none can be had, with what to install.
pub async fn elasticmq() -> &'static ElasticMq {
    shared(&ELASTICMQ, "ElasticMQ", || async {
        let server = ElasticMq::start()?;
        server.wait_ready().await;
        Ok(server)
    })
    .await
}

/// This run's moto.
///
/// # Panics
/// When none can be had, with what to install.
pub async fn moto() -> &'static Moto {
    shared(&MOTO, "moto", || async {
        let server = Moto::start()?;
        server.wait_ready().await;
        Ok(server)
    })
    .await
}

/// Starts it on the first call. A failure is kept too: the second test should fail at once with
/// the same words, not wait for another attempt.
async fn shared<T, F, Fut>(
    cell: &'static OnceCell<Result<T, String>>,
    what: &'static str,
    start: F,
) -> &'static T
where
    T: Send + Sync,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T>>,
{
    let server = cell
        .get_or_init(|| async move {
            // On a runtime of its own: the first test's ends with that test.
            let started = tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("starting a runtime")?;
                let server = runtime.block_on(start())?;
                report(&format!("{what} is ready after {:.1?}", begun.elapsed()));
                Ok(server)
            });
            let started: Result<T> = match started.await {
                Ok(started) => started,
                Err(panicked) => Err(panicked.into()),
            };
            started.map_err(|error| format!("{error:#}"))
        })
        .await;
    match server {
        Ok(server) => server,
        Err(error) => panic!("{error}"),
    }
}
