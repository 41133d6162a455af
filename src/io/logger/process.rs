//! A logger's process, from its birth until it was reaped.

use std::path::Path;

use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Duration, Instant, timeout};

use crate::ids::Pid;
use crate::reaper::{Child, Exit};
use crate::sys::child;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// A logger that runs. Dropped, it gets SIGTERM, and SIGKILL if it takes that for more than 2 s;
/// whoever drops it need not wait.
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) born: Instant,
    exit: oneshot::Receiver<Exit>,
    ended: Option<Exit>,
    end: Option<oneshot::Sender<Killed>>,
}

/// It shall end without having been asked to.
struct Killed;

impl Process {
    /// Takes care of `child`, which leads a process group.
    pub(super) fn keep(child: Child) -> Self {
        let ((end, asked), (tell, exit)) = (oneshot::channel(), oneshot::channel());
        let pid = child.pid;
        // The event loop owns it, which kills the group when it goes itself.
        spawn_local(async move {
            let exit = Group { child: Some(child) }.life(asked).await;
            let _ = tell.send(exit); // nobody may be left to be told
        });
        Self { pid, born: Instant::now(), exit, ended: None, end: Some(end) }
    }

    /// Resolves when it has ended, at once if it was before.
    pub(super) async fn ended(&mut self) -> Exit {
        match self.ended {
            Some(exit) => exit,
            None => {
                let exit = (&mut self.exit).await.unwrap_or_else(|_| Exit::killed());
                *self.ended.insert(exit)
            }
        }
    }

    /// Ends it as dropping does, and resolves when it has ended.
    pub(super) async fn stop(mut self) {
        self.end = None;
        self.ended().await;
    }

    /// Kills it, and resolves when it has ended, or hangs in the kernel for more than 1 s.
    pub(super) async fn kill(mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(Killed); // it has ended
        }
        let _ = timeout(Duration::from_secs(1), self.ended()).await;
    }

    /// How messages name it.
    pub(super) fn name(&self, program: &Path) -> String {
        format!("logger {} (pid {})", program.display(), self.pid)
    }
}

/// The process group of a logger. Dropped before its leader was reaped, it is killed.
struct Group {
    child: Option<Child>,
}

impl Group {
    /// Resolves when the leader was reaped, which it is asked for (`Err`) or made to in the end.
    async fn life(mut self, asked: oneshot::Receiver<Killed>) -> Exit {
        let asked = tokio::select! {
            biased;
            exit = self.ended() => return exit,
            asked = asked => asked,
        };
        if asked.is_err() {
            self.signal(child::terminate_group);
            if let Ok(exit) = timeout(GRACE, self.ended()).await {
                return exit;
            }
        }
        self.signal(child::kill_group);
        self.ended().await
    }

    async fn ended(&mut self) -> Exit {
        let Some(child) = &mut self.child else { return Exit::killed() };
        match (&mut child.exit).await {
            Ok(exit) => {
                self.child = None;
                exit
            }
            // The daemon ends: nobody waits for the leader any more, and dropping this kills it.
            Err(_) => Exit::killed(),
        }
    }

    fn signal(&self, send: fn(Pid)) {
        // Not reaped by now means not before the next turn of the event loop either.
        if let Some(child) = self.child.as_ref().filter(|child| child.exit.is_empty()) {
            send(child.pid);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(child::kill_group);
    }
}
