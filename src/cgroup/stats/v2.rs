//! Metrics of a v2 cgroup.

use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat, RdmaEntry, RdmaStat,
};
use protobuf::MessageField;

use crate::cgroup::file::Reader;
use crate::cgroup::stats::{Files, Host, Stats, text};

/// The metrics of the cgroup at `dir`, or `None` if it is gone.
///
/// CPU time and pressure are there for every cgroup, the rest if its parent passes the controller
/// on, which the controller's first file tells; without the memory controller its pressure is left
/// out, as containerd's own shim does.
pub(super) fn read(dir: &Path, host: &Host) -> io::Result<Option<Stats>> {
    let mut reader = Reader::new();
    let Some(mut files) = Files::open(dir, u64::MAX, &mut reader)? else { return Ok(None) };
    let Some(cpu) = cpu(&mut files)? else { return Ok(None) };
    let mut metrics = Box::new(Metrics::new());
    metrics.cpu = MessageField::some(cpu);
    if let Some(current) = files.optional_number("pids.current")? {
        let limit = files.number("pids.max")?;
        metrics.pids = MessageField::some(PidsStat { current, limit, ..PidsStat::new() });
    }
    if let Some(memory) = memory(&mut files)? {
        metrics.memory = MessageField::some(memory);
        let events = files.optional("memory.events")?.map(memory_events);
        metrics.memory_events = MessageField::from_option(events);
    }
    metrics.io = MessageField::from_option(io(&mut files)?);
    if let Some(current) = files.optional("rdma.current")?.map(rdma) {
        let limit = rdma(files.text("rdma.max")?);
        metrics.rdma = MessageField::some(RdmaStat { current, limit, ..RdmaStat::new() });
    }
    metrics.hugetlb = huge_page_stats(&mut files, &host.huge_pages)?;
    Ok(Some(Stats::V2(metrics)))
}

/// CPU time, or `None` once the cgroup is gone: every one has this file, whatever its controllers.
fn cpu(files: &mut Files<'_>) -> io::Result<Option<CPUStat>> {
    let Some(text) = files.optional("cpu.stat")? else { return Ok(None) };
    let mut cpu = CPUStat::new();
    for (key, value) in text::pairs(text) {
        match key {
            "usage_usec" => cpu.usage_usec = value,
            "user_usec" => cpu.user_usec = value,
            "system_usec" => cpu.system_usec = value,
            "nr_periods" => cpu.nr_periods = value,
            "nr_throttled" => cpu.nr_throttled = value,
            "throttled_usec" => cpu.throttled_usec = value,
            "nr_bursts" => cpu.nr_bursts = value,
            "burst_usec" => cpu.burst_usec = value,
            _ => {}
        }
    }
    cpu.psi = pressure(files.text("cpu.pressure")?);
    Ok(Some(cpu))
}

fn memory(files: &mut Files<'_>) -> io::Result<Option<MemoryStat>> {
    let Some(mut memory) = files.optional("memory.stat")?.map(memory_stat) else {
        return Ok(None);
    };
    memory.usage = files.number("memory.current")?;
    memory.usage_limit = files.number("memory.max")?;
    memory.max_usage = files.number("memory.peak")?;
    memory.swap_usage = files.number("memory.swap.current")?;
    memory.swap_limit = files.number("memory.swap.max")?;
    memory.swap_max_usage = files.number("memory.swap.peak")?;
    memory.psi = pressure(files.text("memory.pressure")?);
    Ok(Some(memory))
}

/// Block IO and its pressure, which is there without the controller too.
fn io(files: &mut Files<'_>) -> io::Result<Option<IOStat>> {
    let usage = files.optional("io.stat")?.map(io_entries);
    let psi = pressure(files.text("io.pressure")?);
    if usage.is_none() && psi.is_none() {
        return Ok(None);
    }
    Ok(Some(IOStat { usage: usage.unwrap_or_default(), psi, ..IOStat::new() }))
}

/// `memory.stat`. Linux 5.9 split the working set's counters into anonymous and file pages; the
/// message has their sum.
fn memory_stat(text: &str) -> MemoryStat {
    let mut memory = MemoryStat::new();
    for (key, value) in text::pairs(text) {
        let field = match key {
            "anon" => &mut memory.anon,
            "file" => &mut memory.file,
            "kernel_stack" => &mut memory.kernel_stack,
            "slab" => &mut memory.slab,
            "sock" => &mut memory.sock,
            "shmem" => &mut memory.shmem,
            "file_mapped" => &mut memory.file_mapped,
            "file_dirty" => &mut memory.file_dirty,
            "file_writeback" => &mut memory.file_writeback,
            "anon_thp" => &mut memory.anon_thp,
            "inactive_anon" => &mut memory.inactive_anon,
            "active_anon" => &mut memory.active_anon,
            "inactive_file" => &mut memory.inactive_file,
            "active_file" => &mut memory.active_file,
            "unevictable" => &mut memory.unevictable,
            "slab_reclaimable" => &mut memory.slab_reclaimable,
            "slab_unreclaimable" => &mut memory.slab_unreclaimable,
            "pgfault" => &mut memory.pgfault,
            "pgmajfault" => &mut memory.pgmajfault,
            "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => {
                &mut memory.workingset_refault
            }
            "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => {
                &mut memory.workingset_activate
            }
            "workingset_nodereclaim" => &mut memory.workingset_nodereclaim,
            "pgrefill" => &mut memory.pgrefill,
            "pgscan" => &mut memory.pgscan,
            "pgsteal" => &mut memory.pgsteal,
            "pgactivate" => &mut memory.pgactivate,
            "pgdeactivate" => &mut memory.pgdeactivate,
            "pglazyfree" => &mut memory.pglazyfree,
            "pglazyfreed" => &mut memory.pglazyfreed,
            "thp_fault_alloc" => &mut memory.thp_fault_alloc,
            "thp_collapse_alloc" => &mut memory.thp_collapse_alloc,
            _ => continue,
        };
        *field = field.saturating_add(value);
    }
    memory
}

fn memory_events(text: &str) -> MemoryEvents {
    let mut events = MemoryEvents::new();
    for (key, value) in text::pairs(text) {
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    events
}

fn io_entries(text: &str) -> Vec<IOEntry> {
    let entry = |((major, minor), fields): ((u64, u64), text::Fields<'_>)| IOEntry {
        major,
        minor,
        rbytes: fields.number("rbytes"),
        wbytes: fields.number("wbytes"),
        rios: fields.number("rios"),
        wios: fields.number("wios"),
        ..IOEntry::new()
    };
    text::io(text).map(entry).collect()
}

fn rdma(text: &str) -> Vec<RdmaEntry> {
    let entry = |(device, fields): (&str, text::Fields<'_>)| RdmaEntry {
        device: device.to_owned(),
        hca_handles: fields.limit("hca_handle"),
        hca_objects: fields.limit("hca_object"),
        ..RdmaEntry::new()
    };
    text::rdma(text).map(entry).collect()
}

/// The use of each size of huge pages; none without the controller.
fn huge_page_stats(files: &mut Files<'_>, sizes: &[String]) -> io::Result<Vec<HugeTlbStat>> {
    let mut stats = Vec::new();
    for size in sizes {
        let name = |what: &str| format!("hugetlb.{size}.{what}");
        let Some(current) = files.optional_number(&name("current"))? else { break };
        let failcnt = text::pairs(files.text(&name("events"))?)
            .find_map(|(key, count)| (key == "max").then_some(count));
        stats.push(HugeTlbStat {
            current,
            failcnt: failcnt.unwrap_or_default(),
            max: files.number(&name("max"))?,
            pagesize: size.clone(),
            ..HugeTlbStat::new()
        });
    }
    Ok(stats)
}

/// A pressure file; nothing where the kernel runs without PSI, which leaves the file empty or out.
fn pressure(text: &str) -> MessageField<PSIStats> {
    let data = |kind| {
        let line = text::pressure(text, kind).map(|line| PSIData {
            avg10: line.avg10,
            avg60: line.avg60,
            avg300: line.avg300,
            total: line.total,
            ..PSIData::new()
        });
        MessageField::from_option(line)
    };
    let stats = PSIStats { some: data("some"), full: data("full"), ..PSIStats::new() };
    MessageField::from_option((stats.some.is_some() || stats.full.is_some()).then_some(stats))
}
