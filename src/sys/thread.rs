//! Threads of a short life, for system calls that block or that change the calling thread.

use std::io;
use std::thread::{self, Builder};

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

/// Enough for the system calls and path buffers that run here.
const STACK: usize = 256 * 1024;

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
    let (sender, receiver) = oneshot::channel();
    Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
        // Signals are for the event loop's thread; on failure they only arrive here.
        let _ = SigSet::all().thread_block();
        // A result that nobody waits for is dropped, see above.
        let _ = sender.send(work());
    })?;
    receiver.await.map_err(|_| io::Error::other("the thread ended without a result"))
}

/// Runs `work` on a thread of its own and waits for it, so that what `work` does to its thread
/// (working directory, mount namespace) ends with it.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = Builder::new().stack_size(STACK).spawn_scoped(scope, || {
            let _ = SigSet::all().thread_block();
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
