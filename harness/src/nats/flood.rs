//! A client that publishes without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::Nats;

/// As many as a relay looks through for its own before it stores: it takes its time for them, and is always too late.
const FIRST: usize = 1_000;
/// Then so many each millisecond. A client's flush waits for its socket alone: without a pace it has sent all that it may
/// before a busy relay has tried for the last time.
const EACH: usize = 4;
const PACE: Duration = Duration::from_millis(1);
/// It publishes no more than this: for minutes.
const MESSAGES_MAX: usize = 2_000_000;

/// Ends when dropped.
#[derive(Debug)]
pub struct Flood {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Nats {
    /// Publishes to a subject as a user of the server, until what is returned is dropped; also while the server
    /// refuses.
    ///
    /// # Panics
    /// When the user may not log in.
    pub async fn flood(&self, user: &str, password: &str, subject: String) -> Flood {
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        let address = self.address().to_owned();
        let ends = Arc::new(AtomicBool::new(false));
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (until, mut begun) = (Arc::clone(&ends), Some(begun));
        // A thread of its own: it does not wait for what its test does.
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let client = options.connect(address).await.expect("it may log in");
                for n in 0..MESSAGES_MAX {
                    // While the server takes up other rights it may be away.
                    let _away = client.publish(subject.clone(), "mine".into()).await;
                    if n < FIRST || n % EACH > 0 {
                        continue;
                    }
                    let _away = client.flush().await;
                    if let Some(begun) = begun.take() {
                        begun.send(()).expect("its test waits");
                    }
                    if until.load(Relaxed) {
                        return;
                    }
                    tokio::time::sleep(PACE).await;
                }
            });
        });
        has_begun.await.expect("it logs in");
        Flood { ends, thread: Some(thread) }
    }
}
