//! The promise at work on throwaway servers.

use anyhow::anyhow;

/// Flags of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PostgreSQL to use instead of a throwaway one
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// A Kafka to use instead of the mock cluster
    #[arg(long, value_name = "BROKERS")]
    pub kafka: Option<String>,
}

/// Runs the demo; `true` when nothing was lost, duplicated or out of order.
///
/// # Errors
/// It could not be set up.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn run(_args: Args) -> anyhow::Result<bool> {
    Err(anyhow!("demo is not built yet"))
}
