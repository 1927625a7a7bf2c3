//! How glibc's allocator treats large messages.

/// From now on a block of a large message has pages of its own, which go back to the system when it is freed.
/// Otherwise glibc learns from each such block that is freed, and has the next ones among small blocks: what is
/// free then stays with the process, several messages' sizes of it. Whoever has set the threshold in the
/// environment is obeyed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn large_blocks_apart() {
    use std::sync::Once;

    use crate::message::LARGE;

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let has_tunables = || {
            std::env::var_os("GLIBC_TUNABLES")
                .is_some_and(|all| all.to_string_lossy().contains("mmap_threshold"))
        };
        if std::env::var_os("MALLOC_MMAP_THRESHOLD_").is_some() || has_tunables() {
            return;
        }
        let threshold = libc::c_int::try_from(LARGE).expect("a mebibyte");
        // SAFETY: it takes two numbers, may be called on any thread, and touches no block that is in use.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, threshold) };
    });
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn large_blocks_apart() {}
