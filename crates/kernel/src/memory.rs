//! What the allocator keeps of what was freed.

/// Gives the pages that nothing uses any more back to the kernel.
///
/// Reading every link, route and rule of a host of a thousand networks takes tens of megabytes for
/// some milliseconds, and glibc's arenas would keep them for as long as the process lives. For work
/// that is rare and large only: it walks every arena (`malloc_trim(3)`, a millisecond or less). A C
/// library that returns what is freed by itself has nothing to do here.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and glibc's allocator is safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
