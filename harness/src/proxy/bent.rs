//! A line that leads somewhere else, or whose other end sends what it should not.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::net::TcpStream;

/// More than the first message of a connection takes.
const FIRST_BYTES: usize = 4 << 10;

/// Whether these are the bytes.
pub(super) type Matches = Box<dyn Fn(&[u8]) -> bool + Send>;

/// What is bent until it is straightened.
#[derive(Default)]
pub(super) struct Bent {
    diverted: Mutex<Option<(Matches, String)>>,
    altered: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

impl Bent {
    pub(super) fn divert(&self, matches: Matches, server: &str) {
        *lock(&self.diverted) = Some((matches, server.to_owned()));
    }

    pub(super) fn alter(&self, these: &[u8], others: &[u8]) {
        assert_eq!(these.len(), others.len(), "lengths are part of what is sent");
        *lock(&self.altered) = Some((these.to_owned(), others.to_owned()));
    }

    pub(super) fn straighten(&self) {
        *lock(&self.diverted) = None;
        *lock(&self.altered) = None;
    }

    /// Connects to where this client's line leads: `server`, if it is not diverted.
    pub(super) async fn connect(&self, client: &TcpStream, server: &str) -> io::Result<TcpStream> {
        let mut first = vec![0; FIRST_BYTES];
        let is_straight = lock(&self.diverted).is_none();
        let peeked = if is_straight { 0 } else { client.peek(&mut first).await? };
        let first = first.get(..peeked).unwrap_or_default();
        let diverted = lock(&self.diverted).as_ref().and_then(|(matches, other)| {
            let matches = peeked > 0 && matches(first);
            matches.then(|| other.clone())
        });
        TcpStream::connect(diverted.as_deref().unwrap_or(server)).await
    }

    /// On their way from the server.
    pub(super) fn pass(&self, bytes: &mut [u8]) {
        let altered = lock(&self.altered);
        let Some((these, others)) = altered.as_ref() else { return };
        for at in 0..bytes.len() {
            if let Some(found) = bytes.get_mut(at..at + these.len()).filter(|it| it == these) {
                found.copy_from_slice(others);
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
