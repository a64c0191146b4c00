//! How the C library hands out memory. It is made for programs of many threads that take and give back a lot; here one thread
//! does almost everything, and blocks of snapshots would leave holes between what a thousand sessions keep for good.

/// Blocks from this size on, in bytes, are given back to the system at once. Those of snapshots are as large.
#[cfg(target_env = "gnu")]
const LARGE: nix::libc::c_int = 256 << 10;

/// Settles it, before there are threads.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, mallopt};
        // SAFETY: numbers that the manual names. What is not taken is left as it was, which costs some memory.
        unsafe {
            mallopt(M_ARENA_MAX, 1);
            mallopt(M_MMAP_THRESHOLD, LARGE);
        }
    }
}
