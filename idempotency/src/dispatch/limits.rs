//! How much may be in memory.

/// What may be in memory: at the limit nothing more is taken in until half of it is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { messages: 10_000, bytes: 64 << 20 }
    }
}

impl Limits {
    pub(crate) fn new(messages: usize, bytes: usize) -> Self {
        Limits { messages: messages.max(1), bytes: bytes.max(1) }
    }

    pub(crate) fn are_reached(self, (messages, bytes): (usize, usize)) -> bool {
        messages >= self.messages || bytes >= self.bytes
    }

    pub(crate) fn have_room_again(self, (messages, bytes): (usize, usize)) -> bool {
        messages <= self.messages / 2 && bytes <= self.bytes / 2
    }
}
