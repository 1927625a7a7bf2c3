//! A consumer's process, built beside the suite.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    outbox_harness::member::main().await
}
