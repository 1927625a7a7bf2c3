//! How glibc's allocator is set up. Called by `cli`, before the first thread.

/// Keeps all threads on one heap.
///
/// A record's parts are allocated by the thread that produces it and freed by librdkafka's thread
/// that sent it. With a heap for each thread, nearly every free goes to another thread's heap, and
/// what it frees is not used again by the one who frees. `outbox-bench drain --only large` measures
/// it. Does nothing where the C library is another one.
pub(crate) fn use_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes any numbers; no other thread exists yet.
        let taken = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
        debug_assert_eq!(taken, 1, "glibc knows M_ARENA_MAX");
    }
}
