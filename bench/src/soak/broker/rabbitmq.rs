//! RabbitMQ in a soak: one broker, an exchange with quorum queues, and a consumer that keeps them short.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use outbox_harness::{
    Harness,
    postgres::Postgres,
    proxy::Proxy,
    rabbit::{Exchange, Rabbit},
    relay::Settings,
    servers,
};
use tokio::{task::JoinHandle, time::sleep};

use crate::soak::tally::PARTITIONS;

pub(in crate::soak) struct Broker {
    pub(super) server: Rabbit,
    pub(super) line: Proxy,
    pub(super) exchange: Arc<Exchange>,
    consumer: JoinHandle<()>,
}

impl Broker {
    pub(super) async fn set(postgres: &'static Postgres) -> Result<(Harness, Self)> {
        let server = Rabbit::start()?;
        let t = Harness::with(postgres, servers::kafka().await).await;
        server.wait_ready().await;
        let topic = format!("{}.orders", t.database().name());
        let exchange = Arc::new(server.exchange(&topic, PARTITIONS).await);
        server.store_queues();
        let line = Proxy::to(&server.address()).await;
        let consumer = tokio::spawn(consume(Arc::clone(&exchange)));
        Ok((t, Broker { server, line, exchange, consumer }))
    }

    pub(super) fn to(&self, settings: Settings) -> Settings {
        settings
            .to("rabbitmq")
            .set("sink.rabbitmq.url", &format!("amqp://{}", self.line.address()))
            .set_toml("sink.rabbitmq.partitions", &PARTITIONS.to_string())
    }

    /// Whoever counts reads the queues alone: two at once would share them.
    pub(super) async fn stop_consuming(&mut self) {
        self.consumer.abort();
        // It ends as it was told to.
        let _cancelled = (&mut self.consumer).await;
    }
}

async fn consume(exchange: Arc<Exchange>) {
    loop {
        // The broker is away now and then; what was not taken stays.
        let _away = exchange.collect().await;
        sleep(Duration::from_millis(300)).await;
    }
}
