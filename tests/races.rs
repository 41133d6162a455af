//! Calls that meet: what one of them is in the middle of, another one must not undo.

use std::thread;

use crate::support::{Code, Host, Spec, eventually};

#[test]
fn delete_does_not_kill_a_container_that_is_being_started() {
    let host = Host::scripted();
    let shim = host.start("c", Spec::idle());
    shim.create_plain("c").unwrap();
    host.script().set("start", "slow 1");
    thread::scope(|scope| {
        let start = scope.spawn(|| shim.start("c", ""));
        let begun = || host.script().calls().iter().any(|call| call == "start");
        eventually("the start", || begun().then_some(()));
        let refusal = shim.delete("c", "").unwrap_err();
        assert_ne!(refusal.code, Code::NOT_FOUND, "{refusal:?}");
        start.join().unwrap().unwrap();
    });
    shim.end();
}
