//! Threads for system calls that block or that change the calling thread.
//!
//! State is the event loop's alone, and `Send` keeps it there: its `Rc`s and `Cell`s cannot be moved here.
//! What a thread works on is moved to it and comes back through a channel, once ([`blocking`], [`apart`]) or
//! word by word (`io/drain.rs`). Beside that there is, in the whole daemon:
//!
//! - a flag that only ever goes from false to true, written before the eventfd that wakes its reader
//!   (`io/drain.rs`): who is woken sees it, and who is not looks before the next step;
//! - files in an `Arc` that are read and written at offsets that are given (`events/store.rs`,
//!   `io/spill.rs`): there is no cursor to share, a part is read only after the channel has said that it was
//!   written, and there is one write at a time;
//! - the log's state behind a mutex, which nobody waits for (`log.rs`), and a counter for names
//!   (`runtime/output.rs`);
//! - how many looks at paths there are: tokio's semaphore, and a count of those given up, which each adds
//!   itself to and takes itself off, by whichever of its two sides comes second (`io/look.rs`).
//!
//! No two of these depend on each other, so there is no order of steps that a model checker could find
//! wrong beyond those of the channels, which are tokio's.

use std::io;
use std::sync::Once;
use std::thread::{self, Builder};

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

/// Enough for the system calls and path buffers that run here.
const STACK: usize = 256 * 1024;

/// Enough for a loop of reads and writes whose buffers are not on it.
const SMALL_STACK: usize = 64 * 1024;

/// From this size on, in bytes, memory is the kernel's again as soon as it is freed.
#[cfg(target_env = "gnu")]
const MAPPED: i32 = 64 * 1024;

/// Runs `work` on a thread of its own, which takes no signals, and returns what it returned.
///
/// If the caller goes away first the result is dropped on that thread: let `work` return a guard
/// and nothing is left behind.
///
/// # Errors
/// The thread could not be started.
pub(crate) async fn blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    share_heap();
    let (sender, receiver) = oneshot::channel();
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
        // Signals are for the event loop's thread; on failure they only arrive here.
        let _ = SigSet::all().thread_block();
        // A result that nobody waits for is dropped, see above.
        let _ = sender.send(work());
    })?;
    receiver.await.map_err(|_| io::Error::other("the thread ended without a result"))
}

/// Runs `work` on a thread of its own, which takes no signals and which nobody waits for.
///
/// # Errors
/// The thread could not be started.
pub(crate) fn detached(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    share_heap();
    Builder::new().name(name.to_owned()).stack_size(SMALL_STACK).spawn(move || {
        let _ = SigSet::all().thread_block();
        work();
    })?;
    Ok(())
}

/// Runs `work` on a thread of its own and waits for it, so that what `work` does to its thread
/// (working directory, mount namespace) ends with it.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    share_heap();
    thread::scope(|scope| {
        let thread = Builder::new().stack_size(STACK).spawn_scoped(scope, || {
            let _ = SigSet::all().thread_block();
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Gives memory that was freed, and lies between what is still in use, back to the kernel: as many execs at
/// once leave it. It costs some tens of microseconds, and what is taken next is mapped anew.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the argument is a number of bytes, and glibc takes the heap's lock itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes all threads take memory from one heap, and give back what is large when they free it. glibc
/// gives each thread a heap of its own otherwise, with pages that stay after the thread.
fn share_heap() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(target_env = "gnu")]
        // SAFETY: the arguments are integers, and glibc takes the heap's lock itself.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        }
    });
}
