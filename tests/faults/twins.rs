//! Two containerds whose shims have the same namespace, ids and runtime root.

use crate::support::{Code, Host, Spec, skipped};

#[test]
fn a_container_of_another_containerd_with_the_same_id_is_left_alone() {
    if skipped("a container of the same id is left alone") {
        return;
    }
    let (one, two) = (Host::new(), Host::new());
    let first = one.start("c", Spec::idle());
    let second = two.start("c", Spec::idle());
    assert_ne!((first.address(), first.pid()), (second.address(), second.pid()));
    let pid = first.run("c");
    // With a root of its own it runs beside the other.
    second.run("c");
    second.remove("c");
    let mut request = second.request("c");
    request.options = first.request("c").options;
    let refusal = second.create(&request).unwrap_err();
    assert_eq!(refusal.code, Code::ALREADY_EXISTS, "{refusal:?}");
    let bundle = one.bundle("c");
    assert!(refusal.message.contains(bundle.to_str().unwrap()), "{refusal:?}");
    two.delete("c"); // as containerd does after that
    let state = first.state("c", "").unwrap();
    assert_eq!((state.pid, state.status.value()), (pid, 2), "it runs");
    first.exec_run("c", "e", "exit 3").unwrap();
    assert_eq!(first.reap("c", "e"), 3);
    second.stop();
    first.end();
}

/// What a container has left that nobody could delete is no obstacle to the next one.
#[test]
fn a_state_that_is_left_of_the_same_bundle_is_no_obstacle() {
    if skipped("a state that is left is no obstacle") {
        return;
    }
    let host = Host::new();
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let (root, saved) = (host.root().join("tests/c"), host.dir().join("saved"));
    let copied = std::process::Command::new("cp").arg("-a").args([&root, &saved]).status();
    assert!(copied.unwrap().success());
    shim.remove("c");
    std::fs::rename(&saved, &root).unwrap();
    drop(shim.create_plain("c").map(drop)); // it may fail, and removes it
    if shim.state("c", "").is_ok() {
        shim.remove("c");
    }
    shim.run("c");
    shim.end();
}
