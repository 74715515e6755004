//! Keeping the supervisor small: there is one for every container.

/// Tells the allocator that memory is worth more than speed: one arena whatever the
/// threads, and pages go back to the kernel early.
pub fn economise() {
    // SAFETY: mallopt(3) takes plain numbers; no thread exists yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}
