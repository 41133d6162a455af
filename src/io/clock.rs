//! Pauses that are shorter than the event loop's own clock has them, which counts milliseconds.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::Interest;

use crate::sys::ready::Ready;

/// A timer of the kernel; it holds two descriptors.
pub(super) struct Clock {
    timer: TimerFd,
    ready: Ready,
}

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let watched: OwnedFd = std::os::fd::AsFd::as_fd(&timer).try_clone_to_owned()?;
        let ready = Ready::register(Rc::new(watched), Interest::READABLE)?;
        Ok(Self { timer, ready })
    }

    /// Resolves after `pause`.
    pub(super) async fn sleep(&self, pause: Duration) -> io::Result<()> {
        // Setting it anew takes back that it has expired.
        self.timer.set(Expiration::OneShot(pause.into()), TimerSetTimeFlags::empty())?;
        self.ready.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn pauses_are_short_and_repeat() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let clock = Clock::new().unwrap();
            let pause = Duration::from_micros(200);
            let began = Instant::now();
            for _ in 0..50 {
                clock.sleep(pause).await.unwrap();
            }
            assert!(began.elapsed() >= pause * 50, "{:?}", began.elapsed());
            // 50 pauses of the event loop's clock are 50 ms and more.
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        });
    }
}
