//! The task service: lifecycle, error codes, the runtime's words.

use crate::support::{Host, Spec};

#[test]
fn smoke() {
    let host = Host::new();
    let shim = host.start("c", Spec::sh("exit 3"));
    shim.run("c");
    assert_eq!(shim.reap("c", ""), 3);
    host.sink.expect("c", &["create c", "start c", "exit c 3", "delete c 3"]);
    shim.stop();
}
