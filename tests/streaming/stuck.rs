//! Readers that are there and take nothing.

use crate::support::streaming::{Reader, uri};
use crate::support::{Host, Spec, skipped};

use super::exec;

#[test]
fn small_messages_that_nobody_reads_block_nobody() {
    if skipped("streams") {
        return;
    }
    let host = Host::new().configured("[io]\nspill = \"64MiB\"\n");
    let shim = host.start("c", Spec::idle());
    shim.run("c");
    let mut out = Reader::open(shim.address(), "out");
    out.hold(true);
    let script = "i=0; while [ $i -lt 330 ]; do echo x; usleep 55000; i=$((i+1)); done; \
        head -c 500000 /dev/zero; echo end";
    exec(&shim, "e", &uri(shim.address(), "out"), script);
    let ended = shim.wait("c", "e");
    out.hold(false);
    assert_eq!(ended.unwrap().exit_status, 0, "it was not blocked");
    assert_eq!(shim.reap("c", "e"), 0);
    assert_eq!(out.finish().len(), 660 + 500_000 + 4);
    shim.end();
}
