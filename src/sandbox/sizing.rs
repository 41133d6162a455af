//! How many CPUs and how much memory a pod, or a container on its own, may use; pure.
//!
//! A pod's limits are in its sandbox's annotations, because its containers are not known yet. What
//! is known of the rules is Kata's: a quota counts; without one the shares do, 1024 for a CPU.

use std::collections::HashMap;

use serde::Serialize;

use crate::sandbox::kind::Kind;

/// CPUs and memory; 0 where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sizing {
    /// Whole CPUs, rounded up.
    pub(crate) cpus: u64,
    /// MiB of memory, rounded down.
    pub(crate) memory_mib: u64,
}

/// The limits that a size is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Microseconds.
    pub(crate) period: u64,
    /// Microseconds of CPU time in each period; negative: no limit.
    pub(crate) quota: i64,
    /// Weight against others.
    pub(crate) shares: u64,
    /// Bytes; negative: no limit.
    pub(crate) memory: i64,
}

impl Sizing {
    /// The size of what a container is for: its pod, if it is a sandbox, by `annotations`; itself,
    /// if it is on its own, by its `limits`. A pod's container has none.
    pub(crate) fn of(kind: &Kind, annotations: &HashMap<String, String>, limits: Limits) -> Self {
        match kind {
            Kind::Single => limits.into(),
            Kind::Sandbox => Limits::of_sandbox(annotations).into(),
            Kind::Container { .. } => Self::default(),
        }
    }
}

impl Limits {
    /// What cannot be read counts as 0, with a warning: a pod is not refused for it.
    fn of_sandbox(annotations: &HashMap<String, String>) -> Self {
        Self {
            period: number(annotations, "io.kubernetes.cri.sandbox-cpu-period"),
            quota: number(annotations, "io.kubernetes.cri.sandbox-cpu-quota"),
            shares: number(annotations, "io.kubernetes.cri.sandbox-cpu-shares"),
            memory: number(annotations, "io.kubernetes.cri.sandbox-memory"),
        }
    }
}

fn number<T>(annotations: &HashMap<String, String>, name: &str) -> T
where
    T: std::str::FromStr + Default,
    T::Err: std::fmt::Display,
{
    let Some(value) = annotations.get(name) else { return T::default() };
    value.parse().unwrap_or_else(|error| {
        log::warn!("annotation {name} = {value:?} counts as 0: {error}");
        T::default()
    })
}

impl From<Limits> for Sizing {
    fn from(Limits { period, quota, shares, memory }: Limits) -> Self {
        let cpus = match u64::try_from(quota) {
            Ok(quota) if period > 0 => quota.div_ceil(period),
            Ok(_) => 0,
            Err(_) => shares.div_ceil(1024),
        };
        Self { cpus, memory_mib: u64::try_from(memory).unwrap_or(0) >> 20 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rounded_to_whole_cpus_and_mebibytes() {
        let none = Limits { quota: 0, ..Limits::default() };
        let cases = [
            ("nothing", none, (0, 0)),
            ("half a CPU", Limits { period: 100_000, quota: 50_000, ..none }, (1, 0)),
            ("one CPU", Limits { period: 100_000, quota: 100_000, ..none }, (1, 0)),
            ("a bit more", Limits { period: 100_000, quota: 100_001, ..none }, (2, 0)),
            ("no period", Limits { quota: 100_000, ..none }, (0, 0)),
            ("shares beside a quota of 0", Limits { shares: 2048, ..none }, (0, 0)),
            ("shares without limit", Limits { quota: -1, shares: 2048, ..none }, (2, 0)),
            ("few shares", Limits { quota: -1, shares: 2, ..none }, (1, 0)),
            ("shares beside a quota", Limits { period: 1, quota: 1, shares: 4096, ..none }, (1, 0)),
            ("memory", Limits { memory: 512 << 20, ..none }, (0, 512)),
            ("odd memory", Limits { memory: (2 << 20) - 1, ..none }, (0, 1)),
            ("no limit", Limits { memory: -1, quota: -1, ..none }, (0, 0)),
            ("most", Limits { period: 1, quota: i64::MAX, ..none }, (i64::MAX as u64, 0)),
        ];
        for (name, limits, (cpus, memory_mib)) in cases {
            assert_eq!(Sizing::from(limits), Sizing { cpus, memory_mib }, "{name}");
        }
    }

    #[test]
    fn a_pod_is_sized_by_annotations_and_a_single_container_by_its_spec() {
        let annotations = HashMap::from(
            [
                ("io.kubernetes.cri.sandbox-cpu-period", "100000"),
                ("io.kubernetes.cri.sandbox-cpu-quota", "250000"),
                ("io.kubernetes.cri.sandbox-cpu-shares", "many"),
                ("io.kubernetes.cri.sandbox-memory", "1073741824"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        let limits = Limits { period: 10, quota: 10, ..Limits::default() };
        let container = Kind::Container { sandbox: "p".into() };
        let cases = [
            ("sandbox", Kind::Sandbox, (3, 1024)),
            ("single", Kind::Single, (1, 0)),
            ("container", container, (0, 0)),
        ];
        for (name, kind, (cpus, memory_mib)) in cases {
            let sizing = Sizing::of(&kind, &annotations, limits);
            assert_eq!(sizing, Sizing { cpus, memory_mib }, "{name}");
        }
    }
}
