//! How what a user's code has left is dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many panics are dropped of which each leaves another one.
const PANICS_MAX: usize = 8;

/// Drops what panics when it is dropped, as a runtime or a blocking client does in a task. Returns whether it did.
pub(crate) fn drop_quietly<T>(left: T) -> bool {
    let Err(mut panic) = catch_unwind(AssertUnwindSafe(|| drop(left))) else { return false };
    for _ in 0..PANICS_MAX {
        match catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            Ok(()) => return true,
            Err(next) => panic = next,
        }
    }
    // It is kept for ever: that is little.
    std::mem::forget(panic);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics when it is dropped, and so does what that panic carries, so often.
    struct Bomb(usize);

    impl Drop for Bomb {
        fn drop(&mut self) {
            match self.0.checked_sub(1) {
                Some(left) if !std::thread::panicking() => std::panic::panic_any(Bomb(left)),
                _ => {}
            }
        }
    }

    #[test]
    fn what_panics_when_it_is_dropped_is_dropped() {
        assert!(!drop_quietly(Bomb(0)));
        for bombs in [1, 3, PANICS_MAX + 3] {
            assert!(drop_quietly(Bomb(bombs)), "{bombs}");
        }
    }
}
