//! Many pods at once.

use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use crate::bed::Bed;
use crate::cri::Cri;
use crate::cri::messages::RUNNING;
use crate::{Case, host, number, pods_alone};

pub(crate) const CASES: &[Case] = &[pods_alone("pods-many", many)];

/// Pods with three containers each, all started at the same time, and all removed.
fn many(bed: &Bed<'_>) {
    let cri = Cri::of(bed.daemon);
    let count = number("BERTH_PODS", 30);
    let names: Vec<_> = (0..count).map(|index| bed.name(&index.to_string())).collect();
    let handler = bed.shim.handler();
    let before = host::processes().len();
    let start = &|name: &str| {
        let pod = cri.run(handler, name, |_| ());
        for name in ["a", "b", "c"] {
            pod.start(name, &["sleep", "1000"]);
        }
        pod
    };
    let began = Instant::now();
    let pods: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> = names.iter().map(|name| scope.spawn(move || start(name))).collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let started = began.elapsed();
    let processes: usize = pods.iter().map(|pod| pod.processes().len()).sum();
    let ids: Vec<_> = pods.iter().map(|pod| pod.id.clone()).collect();
    let all = cri.containers().into_iter();
    let all: Vec<_> = all.filter(|container| ids.contains(&container.pod_sandbox_id)).collect();
    let ended: Vec<_> = all.iter().filter(|container| container.state != RUNNING).collect();
    assert!(all.len() == 3 * count && ended.is_empty(), "{} containers, {ended:?}", all.len());
    let began = Instant::now();
    thread::scope(|scope| {
        let removals: Vec<_> =
            pods.into_iter().map(|pod| scope.spawn(move || pod.remove())).collect();
        for removal in removals {
            removal.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
    let seconds = |time: Duration| time.as_secs_f32();
    println!(
        "{} {} {}: {count} pods with 3 containers: started in {:.1} s, removed in {:.1} s, \
         {processes} processes ({before} before)",
        bed.daemon.version,
        bed.daemon.runtime.name(),
        bed.shim.name(),
        seconds(started),
        seconds(began.elapsed()),
    );
}
