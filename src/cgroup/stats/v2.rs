//! Metrics of a v2 cgroup.

use std::io;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat, RdmaEntry, RdmaStat,
};
use protobuf::MessageField;

use crate::cgroup::file::Reader;
use crate::cgroup::stats::{Files, Stats, huge_page_sizes, text};

/// The metrics of the cgroup at `dir`, or `None` if it is gone.
///
/// CPU time and pressure are there for every cgroup, the rest if its parent passes the controller
/// on; without the memory controller its pressure is left out, as containerd's own shim does.
pub(super) fn read(dir: &Path, huge_pages: &Path) -> io::Result<Option<Stats>> {
    let mut reader = Reader::new();
    let Some(mut files) = Files::open(dir, u64::MAX, &mut reader)? else { return Ok(None) };
    let Some(controllers) = files.optional("cgroup.controllers")? else { return Ok(None) };
    let controllers = controllers.to_owned();
    let has = |name| controllers.split_ascii_whitespace().any(|own| own == name);

    let mut metrics = Box::new(Metrics::new());
    metrics.cpu = MessageField::some(cpu(&mut files)?);
    if has("pids") {
        metrics.pids = MessageField::some(PidsStat {
            current: files.number("pids.current")?,
            limit: files.number("pids.max")?,
            ..PidsStat::new()
        });
    }
    if has("memory") {
        metrics.memory = MessageField::some(memory(&mut files)?);
        metrics.memory_events = MessageField::some(memory_events(files.text("memory.events")?));
    }
    let io = IOStat {
        usage: if has("io") { io(files.text("io.stat")?) } else { Vec::new() },
        psi: pressure(files.text("io.pressure")?),
        ..IOStat::new()
    };
    if has("io") || io.psi.is_some() {
        metrics.io = MessageField::some(io);
    }
    if has("rdma") {
        metrics.rdma = MessageField::some(RdmaStat {
            current: rdma(files.text("rdma.current")?),
            limit: rdma(files.text("rdma.max")?),
            ..RdmaStat::new()
        });
    }
    if has("hugetlb") {
        metrics.hugetlb = huge_page_stats(&mut files, huge_pages)?;
    }
    Ok(Some(Stats::V2(metrics)))
}

fn cpu(files: &mut Files<'_>) -> io::Result<CPUStat> {
    let mut cpu = CPUStat::new();
    for (key, value) in text::pairs(files.text("cpu.stat")?) {
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
    Ok(cpu)
}

fn memory(files: &mut Files<'_>) -> io::Result<MemoryStat> {
    let mut memory = memory_stat(files.text("memory.stat")?);
    memory.usage = files.number("memory.current")?;
    memory.usage_limit = files.number("memory.max")?;
    memory.max_usage = files.number("memory.peak")?;
    memory.swap_usage = files.number("memory.swap.current")?;
    memory.swap_limit = files.number("memory.swap.max")?;
    memory.swap_max_usage = files.number("memory.swap.peak")?;
    memory.psi = pressure(files.text("memory.pressure")?);
    Ok(memory)
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

fn io(text: &str) -> Vec<IOEntry> {
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

fn huge_page_stats(files: &mut Files<'_>, sizes: &Path) -> io::Result<Vec<HugeTlbStat>> {
    let mut stats = Vec::new();
    for pagesize in huge_page_sizes(sizes) {
        let events = format!("hugetlb.{pagesize}.events");
        let failcnt = text::pairs(files.text(&events)?).find(|(key, _)| *key == "max");
        stats.push(HugeTlbStat {
            failcnt: failcnt.map(|(_, count)| count).unwrap_or_default(),
            current: files.number(&format!("hugetlb.{pagesize}.current"))?,
            max: files.number(&format!("hugetlb.{pagesize}.max"))?,
            pagesize,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as the kernel would fill it, and one with the sizes of huge pages.
    fn fake(files: &[(&str, &str)]) -> (tempfile::TempDir, tempfile::TempDir) {
        let (dir, huge) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        std::fs::create_dir(huge.path().join("hugepages-2048kB")).unwrap();
        (dir, huge)
    }

    fn metrics(files: &[(&str, &str)]) -> Box<Metrics> {
        let (dir, huge) = fake(files);
        match read(dir.path(), huge.path()).unwrap() {
            Some(Stats::V2(metrics)) => metrics,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_controller_is_read() {
        let psi = "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\nfull avg10=5.00 total=6\n";
        let metrics = metrics(&[
            ("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n"),
            (
                "cpu.stat",
                "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\n\
                 throttled_usec 1\nnr_bursts 7\nburst_usec 8\n",
            ),
            ("cpu.pressure", psi),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            (
                "memory.stat",
                "anon 11\nfile 12\nworkingset_refault_anon 3\nworkingset_refault_file 4\n\
                 thp_collapse_alloc 5\nnew 1\n",
            ),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "200\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "300\n"),
            ("memory.pressure", psi),
            ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n"),
            ("io.pressure", psi),
            ("rdma.current", "mlx hca_handle=1 hca_object=2\n"),
            ("rdma.max", "mlx hca_handle=max hca_object=3\n"),
            ("hugetlb.2MB.current", "4096\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 7\n"),
        ]);
        let cpu = &metrics.cpu;
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (9, 5, 4));
        assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (3, 2, 1));
        assert_eq!((cpu.nr_bursts, cpu.burst_usec), (7, 8));
        for psi in [&cpu.psi, &metrics.memory.psi, &metrics.io.psi] {
            assert_eq!((psi.some.avg10, psi.some.avg60, psi.some.avg300), (1.0, 2.0, 3.0));
            assert_eq!((psi.some.total, psi.full.avg10, psi.full.total), (4, 5.0, 6));
        }
        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, u64::MAX));
        let memory = &metrics.memory;
        assert_eq!((memory.anon, memory.file, memory.thp_collapse_alloc), (11, 12, 5));
        assert_eq!((memory.workingset_refault, memory.workingset_activate), (7, 0));
        assert_eq!((memory.usage, memory.usage_limit, memory.max_usage), (100, u64::MAX, 200));
        assert_eq!((memory.swap_usage, memory.swap_limit, memory.swap_max_usage), (0, 300, 0));
        let events = &metrics.memory_events;
        assert_eq!((events.low, events.high, events.max), (1, 2, 3));
        assert_eq!((events.oom, events.oom_kill, events.oom_group_kill), (4, 5, 6));
        let io: Vec<_> = metrics.io.usage.iter().map(|io| (io.major, io.rbytes, io.wios)).collect();
        assert_eq!(io, [(254, 1, 4), (7, 0, 0)]);
        let limit = &metrics.rdma.limit[0];
        assert_eq!((limit.hca_handles, limit.hca_objects), (u32::MAX, 3));
        assert_eq!((limit.device.as_str(), metrics.rdma.current[0].hca_objects), ("mlx", 2));
        let huge = &metrics.hugetlb[0];
        assert_eq!((huge.pagesize.as_str(), huge.current, huge.failcnt), ("2MB", 4096, 7));
        assert_eq!(huge.max, u64::MAX);
    }

    #[test]
    fn controllers_that_the_cgroup_lacks_are_left_out() {
        let files = [("cgroup.controllers", "pids\n"), ("cpu.stat", "usage_usec 9\nx\n")];
        let metrics = metrics(&files);
        assert_eq!(metrics.cpu.usage_usec, 9);
        assert!(metrics.cpu.psi.is_none() && metrics.memory.is_none() && metrics.io.is_none());
        assert!(metrics.memory_events.is_none() && metrics.rdma.is_none());
        assert!(metrics.hugetlb.is_empty() && metrics.pids.limit == 0);

        let (dir, huge) = fake(&[]);
        assert!(read(dir.path(), huge.path()).unwrap().is_none(), "no cgroup");
        assert!(read(&dir.path().join("none"), huge.path()).unwrap().is_none(), "gone");
    }
}
