//! Faults, each with what is expected of berth: nothing hangs, nothing leaks, the error is clear, and once
//! the fault is gone new containers start.

mod apart;
mod clock;
mod cycles;
mod files;
mod inside;
mod killed;
mod memory;
mod pids;
mod places;
mod processes;
mod runtime;
mod twins;
mod watches;
mod wire;
mod words;

use std::fs;
use std::path::PathBuf;

use crate::support::{Host, Spec};

/// Numbers that look random and come again for the same seed.
struct Random(u64);

impl Random {
    /// The next one, below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What `delete` has to leave: nothing on the machine, and in the bundle what containerd removes with it.
#[track_caller]
fn assert_clean(host: &Host, name: &str) {
    assert_eq!(host.processes(), [], "{name}");
    assert!(host.mounts().is_empty(), "{name}: {:?}", host.mounts());
    assert!(host.cgroups().is_empty(), "{name}: {:?}", host.cgroups());
    assert!(host.states().is_empty(), "{name}: {:?}", host.states());
    assert_eq!(terminals(host), Vec::<PathBuf>::new(), "{name}");
}

/// A host whose runtime does as it is told, and whose daemons have their terminals' sockets in its directory.
fn scripted() -> Host {
    let host = Host::scripted();
    let dir = host.dir().to_str().unwrap().to_owned();
    host.with_env("XDG_RUNTIME_DIR", &dir)
}

/// The directories of sockets over which runtimes send terminals, of a host that is [`scripted`].
fn terminals(host: &Host) -> Vec<PathBuf> {
    let entries = fs::read_dir(host.dir()).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().contains("/berth-pty-")).collect()
}

/// Removes the bundle of a container, as containerd does behind `delete`.
fn remove_bundle(host: &Host, id: &str) {
    fs::remove_dir_all(host.bundle(id)).unwrap();
}

/// A container of that name, with a daemon of its own, lives from its Create to its Delete.
#[track_caller]
fn assert_works(host: &Host, id: &str) {
    let shim = host.start(id, Spec::idle());
    shim.run(id);
    shim.exec_run(id, "e", "exit 3").unwrap();
    assert_eq!(shim.reap(id, "e"), 3);
    assert_eq!(shim.remove(id), 137);
    drop(shim.shutdown(id));
    shim.wait_gone();
}
