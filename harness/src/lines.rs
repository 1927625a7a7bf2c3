//! Listeners of a broker that stand ready for tests that break the line to it: the broker tells its clients a
//! listener's address, so they are there from its start on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host;

/// A listener of its own for one test's proxy, whose port the broker tells its clients.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) listens: String,
    pub(crate) proxy_port: u16,
}

/// Those that no test uses now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<Line>>>);

/// In use: its line is free again once this is dropped.
pub(crate) struct Lent {
    line: Option<Line>,
    from: Lines,
}

impl Lines {
    pub(crate) fn of(lines: Vec<Line>) -> Self {
        Lines(Arc::new(Mutex::new(lines)))
    }

    /// One that is not used again.
    ///
    /// # Panics
    /// When more tests need one than there are.
    pub(crate) fn take(&self) -> Line {
        self.free().pop().expect(
            "a listener for a proxy: unset OUTBOX_TEST_KAFKA, for the broker must be started with \
             them; if it was, raise kafka::LINES",
        )
    }

    /// One, with what it is until it is given back: the proxy's port, and where the broker listens.
    ///
    /// # Panics
    /// As [`Lines::take`].
    pub(crate) fn lend(&self) -> (u16, String, Lent) {
        let line = self.take();
        let (port, listens) = (line.proxy_port, line.listens.clone());
        (port, listens, Lent { line: Some(line), from: self.clone() })
    }

    fn free(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.from.free().extend(self.line.take());
    }
}

/// For a broker on this host.
pub(crate) fn local(count: usize) -> Vec<Line> {
    let line = |_| Line {
        listens: format!("127.0.0.1:{}", host::free_port()),
        proxy_port: host::free_port(),
    };
    (0..count).map(line).collect()
}
