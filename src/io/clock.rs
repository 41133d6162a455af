//! Pauses that are shorter than the event loop's own clock has them, which counts milliseconds.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::Interest;

use crate::sys::ready::Registered;

/// A timer of the kernel, which holds two descriptors; the event loop's where there is none to be had, or no room for it.
pub(super) struct Clock(Option<Timer>);

struct Timer {
    timer: TimerFd,
    ready: Registered,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self(Timer::new().inspect_err(|error| log::debug!("no timer: {error}")).ok())
    }

    /// Resolves after `pause`, or a millisecond or two without a timer of the kernel.
    pub(super) async fn sleep(&self, pause: Duration) -> io::Result<()> {
        match &self.0 {
            Some(timer) => timer.sleep(pause).await,
            None => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
        }
    }
}

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let watched: OwnedFd = std::os::fd::AsFd::as_fd(&timer).try_clone_to_owned()?;
        let ready = Registered::new(Rc::new(watched), Interest::READABLE)?;
        Ok(Self { timer, ready })
    }

    async fn sleep(&self, pause: Duration) -> io::Result<()> {
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
            let kernel = Clock::new();
            assert!(kernel.0.is_some());
            for (name, clock) in [("kernel", kernel), ("none to be had", Clock(None))] {
                let pause = Duration::from_micros(200);
                let began = Instant::now();
                for _ in 0..50 {
                    clock.sleep(pause).await.unwrap();
                }
                assert!(began.elapsed() >= pause * 50, "{name}: {:?}", began.elapsed());
                assert!(began.elapsed() < Duration::from_secs(5), "{name}: {:?}", began.elapsed());
            }
        });
    }
}
