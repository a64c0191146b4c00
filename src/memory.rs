//! How the C library hands out memory. It is made for programs of many threads that take and give back a lot; here one thread
//! does almost everything, and blocks of snapshots would leave holes between what a thousand sessions keep for good.

/// Blocks from this size on, in bytes, are given back to the system at once: a whole snapshot in memory, at most one
/// of each fetch. Smaller ones come again and again, and to get fresh pages for them costs more than to keep them.
#[cfg(target_env = "gnu")]
const LARGE: nix::libc::c_int = 1 << 20;

/// How much may be kept that is free, in bytes, before it goes back to the system.
#[cfg(target_env = "gnu")]
const KEPT: nix::libc::c_int = 2 << 20;

/// Settles it, before there are threads.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        // SAFETY: numbers that the manual names. What is not taken is left as it was, which costs some memory.
        unsafe {
            mallopt(M_ARENA_MAX, 1);
            mallopt(M_MMAP_THRESHOLD, LARGE);
            mallopt(M_TRIM_THRESHOLD, KEPT);
        }
    }
}
