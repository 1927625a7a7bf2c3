//! What is the same at the start of each service, and what makes two services of one program.

use anyhow::{Context, Result, bail};
use deadpool_postgres::{Manager, Pool};
use outbox_idempotency::{Inbox, Processor};
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};
use tokio_postgres::NoTls;

use crate::{payment, shipment};

/// A service that has started, and has yet to be given messages.
#[derive(Debug)]
pub struct Service {
    /// `payments` or `shipping`. The broker knows each by this name, and delivers every event to both.
    pub name: &'static str,
    /// Its own inbox: what one service has taken, the other has not.
    pub processor: Processor,
}

/// From the program's arguments: POSTGRES_URL, what names the broker, and perhaps which service it is; else `payments`.
///
/// # Errors
/// Another number of arguments, or the database's.
pub async fn start<const BROKER: usize>(
    usage: &'static str,
) -> Result<(Service, [String; BROKER])> {
    tracing_subscriber::fmt().init();
    let mut arguments = std::env::args().skip(1);
    let database = arguments.next().context(usage)?;
    let broker: Vec<String> = arguments.by_ref().take(BROKER).collect();
    let Ok(broker) = broker.try_into() else { bail!(usage) };

    let manager = Manager::new(database.parse()?, NoTls);
    let pool = Pool::builder(manager).max_size(32).build()?;
    let service = match arguments.next().as_deref() {
        None | Some("payments") => {
            let inbox = Inbox::open(pool, "payments/take").await?;
            Service { name: "payments", processor: Processor::new(inbox, payment::take) }
        }
        Some("shipping") => {
            let inbox = Inbox::open(pool, "shipping/send").await?;
            Service { name: "shipping", processor: Processor::new(inbox, shipment::send) }
        }
        Some(_) => bail!(usage),
    };
    Ok((service, broker))
}

/// Ctrl-C, or the signal that whoever stops a container sends.
///
/// # Errors
/// The system's.
pub fn stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    Ok(async move { tokio::select!(_ = ctrl_c() => {}, _ = term.recv() => {}) })
}
