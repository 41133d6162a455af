//! What some shims on this machine come to on a large node, and in a large cluster. Pure.

/// Pods of a node.
const PODS: f64 = 1_000.0;
/// Nodes of a cluster.
const NODES: f64 = 10_000.0;

/// What `count` shims of a kind were measured to use together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) count: f64,
    pub(crate) pss_mib: f64,
    /// In a minute in which nobody asked them anything.
    pub(crate) idle_cpu_ms: f64,
    pub(crate) idle_wake_ups_per_s: f64,
    /// To start them all, without their runtimes.
    pub(crate) start_cpu_s: f64,
}

/// A line of a Markdown table below [`HEAD`]: the same for each pod, as many as a node has.
pub(crate) fn line(subject: &str, measured: Measured) -> String {
    let node = PODS / measured.count;
    let gib = measured.pss_mib * node / 1024.0;
    let tib = gib * NODES / 1024.0;
    let busy = measured.idle_cpu_ms * node / 60.0;
    let wake_ups = measured.idle_wake_ups_per_s * node;
    let start = measured.start_cpu_s * node;
    format!(
        "| {subject} | {gib:.2} GiB | {busy:.1} ms | {wake_ups:.0} | {start:.1} s | {tib:.1} TiB |\n"
    )
}

/// The head of the table.
pub(crate) const HEAD: &str = "| a node of 1,000 pods | memory | CPU per idle second | wake-ups per idle second \
     | CPU to start them | memory of 10,000 nodes |\n|---|---|---|---|---|---|\n";
