//! What a pod with one container costs: `--cost` prints a table, with every shim in turn in each
//! round.

use std::fs;
use std::time::{Duration, Instant};

use crate::Shim;
use crate::cri::Cri;
use crate::daemon::Daemon;

/// The pod of one round.
struct Cost {
    /// From the request for the pod until its container runs.
    running: Duration,
    /// The shim's, the pod's stand-in's and the container's own.
    processes: usize,
    /// What the shim and the stand-in share with no other process and with no file, in KiB.
    private: u64,
}

/// Measures `rounds` pods for each shim, after one that does not count, and prints the medians.
pub(crate) fn print(daemon: &Daemon, rounds: usize) {
    let cri = Cri::of(daemon);
    let pauseless = !daemon.version.starts_with("1.");
    let shims = if pauseless { &Shim::ALL[..3] } else { &[Shim::Stock, Shim::Berth] };
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for round in 0..=rounds {
        for turn in 0..shims.len() {
            // Each round begins with another one.
            let index = (turn + round) % shims.len();
            let cost = measure(&cri, shims[index], &format!("cost-{round}"));
            if round > 0 {
                costs[index].push(cost);
            }
        }
    }
    println!("containerd {}, {}, {rounds} rounds, medians", daemon.version, daemon.runtime.name());
    println!("| | time to running | processes | private dirty memory |");
    println!("|---|---|---|---|");
    for (shim, costs) in shims.iter().zip(&costs) {
        let name = match shim {
            Shim::Stock => "stock shim",
            Shim::Berth => "berth",
            Shim::Pauseless | Shim::Streaming => "berth without pause container",
        };
        let time = median(costs.iter().map(|cost| cost.running.as_millis()));
        let processes = median(costs.iter().map(|cost| cost.processes));
        let private = median(costs.iter().map(|cost| cost.private));
        println!("| {name} | {time} ms | {processes} | {private} KiB |");
    }
}

fn measure(cri: &Cri<'_>, shim: Shim, name: &str) -> Cost {
    let began = Instant::now();
    let pod = cri.run(shim.handler(), &format!("{name}-{}", shim.name()), |_| ());
    pod.start("c", &["sleep", "1000"]);
    let running = began.elapsed();
    let processes = pod.processes().len();
    let private = private(pod.shim()) + private(pod.sandbox());
    pod.remove();
    Cost { running, processes, private }
}

/// The memory in KiB that process `pid` shares neither with another one nor with a file.
pub(crate) fn private(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}
