//! Keeps the C library's allocator from holding on to memory.

/// Makes every large buffer go back to the system when it is freed.
///
/// glibc raises its threshold for separate mappings with each large buffer freed, up to 32 MiB, and then keeps such
/// buffers in its heaps; one 48 MiB request would stay in the process for ever. Other C libraries do not.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE_BYTES: i32 = 128 << 10;
        // SAFETY: mallopt(3) takes plain integers and is called before other threads exist.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
        // SAFETY: as above. Few arenas: the agent's threads allocate little and rarely at once.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    }
}

/// Gives memory that is free back to the system, from all heaps. For after something large was done.
pub fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim(3) takes a plain integer and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
