//! Who is connected, and who has to go when there is no room.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use tokio::task::{AbortHandle, spawn_local};

/// Connections at a time: each client of a stream has one, with some versions of containerd.
const MOST: usize = 2048;

/// The connections of one server. Those that have not said anything yet are the first to go.
#[derive(Default)]
pub(super) struct Peers {
    count: Cell<usize>,
    last: Cell<u64>,
    silent: RefCell<BTreeMap<u64, AbortHandle>>,
}

/// One connection; it counts until this is dropped.
pub(super) struct Peer {
    peers: Rc<Peers>,
    id: u64,
}

impl Peers {
    /// Serves a connection, which begins silent; in its place an older silent one goes if there are too
    /// many. `false` if there is no room.
    pub(super) fn admit<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        serve: impl FnOnce(Peer) -> F,
    ) -> bool {
        if self.count.get() >= MOST && !self.dismiss() {
            return false;
        }
        self.count.set(self.count.get() + 1);
        let id = self.last.get() + 1;
        self.last.set(id);
        let task = spawn_local(serve(Peer { peers: self.clone(), id }));
        self.silent.borrow_mut().insert(id, task.abort_handle());
        true
    }

    /// Hangs up the connection that has been silent for longest, soon; `false` if there is none.
    pub(super) fn dismiss(&self) -> bool {
        let oldest = self.silent.borrow_mut().pop_first();
        let Some((_, task)) = oldest else { return false };
        task.abort();
        true
    }
}

impl Peer {
    /// It has sent a frame.
    pub(super) fn speaks(&self) {
        self.peers.silent.borrow_mut().remove(&self.id);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.speaks();
        self.peers.count.set(self.peers.count.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_said_nothing_goes_first() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let peers = Rc::new(Peers::default());
            let ended = Rc::new(RefCell::new(Vec::new()));
            let add = |number: usize, speaks: bool| {
                let ended = ended.clone();
                peers.admit(move |peer| async move {
                    struct End(Rc<RefCell<Vec<usize>>>, usize);
                    impl Drop for End {
                        fn drop(&mut self) {
                            self.0.borrow_mut().push(self.1);
                        }
                    }
                    let _end = End(ended, number);
                    if speaks {
                        peer.speaks();
                    }
                    std::future::pending::<()>().await;
                })
            };
            let turn = tokio::task::yield_now;
            for number in 0..MOST {
                assert!(add(number, number % 2 == 0));
            }
            turn().await;
            for number in 0..MOST {
                assert_eq!(add(MOST + number, true), number < MOST / 2, "{number}");
                turn().await;
            }
            let odd: Vec<_> = (0..MOST).filter(|number| number % 2 == 1).collect();
            assert_eq!(*ended.borrow(), odd);
            assert_eq!(peers.count.get(), MOST);
        });
    }
}
