//! How each command of the documents is run, in the order in which it is.

use crate::machine::Machine;
use crate::steps;

/// A command, as the documents have it.
pub(crate) struct Row {
    pub(crate) command: &'static str,
    pub(crate) how: How,
}

/// Who runs it, and what it has to print.
pub(crate) enum How {
    /// On a machine of its own, in the sources.
    Sources(&'static str),
    /// The same, where berth is installed and containerd runs.
    Machine(&'static str),
    /// There too, in its own way.
    Special(fn(&Machine, &str)),
    /// There too: the worked example, which shows what it prints.
    Example,
    /// In the repository.
    Cargo(&'static str),
    /// Chooses among the tests that `make test` runs.
    Chooses,
    /// `make` would run this; too long for a test.
    Plan(&'static str),
    /// The same, and here with one round.
    Bench(&'static str),
    /// The same, and here for so many minutes.
    Soak(&'static str),
    /// It is what CI itself calls, or a test does with other words.
    Lane { file: &'static str, calls: &'static str },
    /// By nobody, which the README says in these words.
    Nowhere { says: &'static str },
}

impl How {
    pub(crate) fn needs_machine(&self) -> bool {
        matches!(self, Self::Sources(_) | Self::Machine(_) | Self::Special(_) | Self::Example)
    }
}

const fn row(command: &'static str, how: How) -> Row {
    Row { command, how }
}

const ALL: How = How::Lane { file: ".ci/run", calls: "exec make check test\n" };
/// tests/clients runs them with an image and arguments of its own.
const DOCKER: How =
    How::Lane { file: "tests/clients/docker.rs", calls: "&[\"run\", \"--runtime\", runtime]" };
/// The machine has no Docker: tests/clients does that to its own.
const ENGINE: How = How::Lane { file: "tests/clients/docker.rs", calls: "fn live_restore" };
const FUZZ: &str = "tests/fuzz/run.sh 60";

pub(crate) const ROWS: &[Row] = &[
    // From the sources to the program.
    row("make check", ALL),
    row("make test", ALL),
    row("make help", How::Sources("make demo")),
    row("make demo", How::Sources("nothing: no process, no mount, no cgroup, no socket, no FIFO")),
    row("packaging/picture.sh", How::Sources("drawn packaging/demo.svg")),
    row("sudo packaging/grafana/plot.py", How::Special(steps::plot)),
    row("sudo make install", How::Special(steps::install)),
    row("sudo make uninstall", How::Special(steps::uninstall)),
    row("make stage", How::Sources("")),
    row("make tarball", How::Special(steps::tarball)),
    row("sudo ./install.sh", How::Special(steps::unpacked)),
    row("sudo ./install.sh --remove", How::Special(steps::removed)),
    row("make deb tarball", How::Sources(".tar.gz")),
    row("make deb", How::Sources("built ")),
    row("sudo apt install ./target/packages/berth_*.deb", How::Special(steps::package)),
    row("containerd-shim-berth-v1 -v", How::Sources(concat!("berth ", env!("CARGO_PKG_VERSION")))),
    // A first container.
    row("containerd config dump", How::Machine("io.containerd.berth.v1")),
    row("apt install make", How::Special(steps::packages)),
    row("apt install containerd runc curl", How::Special(steps::packages)),
    row("apt install docker.io", How::Special(steps::packages)),
    row("ctr image pull docker.io/library/busybox:latest", How::Special(steps::pull)),
    row(
        "ctr run --detach --runtime io.containerd.berth.v1 docker.io/library/busybox:latest hello sleep 1000",
        How::Special(steps::hello),
    ),
    row("containerd-shim-berth-v1 ps", How::Special(steps::ps)),
    row(
        "curl --unix-socket /run/berth/default/hello.sock http://berth/metrics",
        How::Machine("berth_build_info"),
    ),
    row("ctr task delete --force hello && ctr container delete hello", How::Machine("")),
    row("ctr run --runtime io.containerd.berth.v1 IMAGE ID", How::Special(steps::run)),
    row("ctr run --log-uri", How::Special(steps::flag)),
    row("ctr run --runtime-config-path", How::Special(steps::flag)),
    row("docker run --runtime io.containerd.berth.v1 IMAGE", DOCKER),
    row("docker run --runtime berth IMAGE", DOCKER),
    row("install -D -m 0644 config/docker.json /etc/docker/daemon.json", How::Sources("")),
    row("systemctl restart docker", ENGINE),
    row(
        "nerdctl run --runtime io.containerd.berth.v1 IMAGE",
        How::Nowhere { says: "not in Debian, so not in the tests" },
    ),
    // A pod that is stuck.
    row("curl -s --unix-socket /run/berth/k8s.io/web.sock http://berth/healthz", How::Example),
    row("curl -s --unix-socket /run/berth/k8s.io/web.sock http://berth/debug/tasks", How::Example),
    row(
        "curl -s --unix-socket /run/berth/k8s.io/web.sock -X PUT -d debug http://berth/log-level",
        How::Example,
    ),
    row("containerd-shim-berth-v1 logs web", How::Example),
    row("kill -USR1 64", How::Example),
    row("containerd-shim-berth-v1 logs web | tail -n 3", How::Example),
    row("ps --ppid 64 -o pid,args | cut -c1-80", How::Example),
    row("kill -USR1 PID", How::Special(steps::signal)),
    // What a pod tells.
    row(
        "curl --unix-socket /run/berth/k8s.io/POD.sock http://berth/healthz",
        How::Special(steps::ask_health),
    ),
    row(
        "curl --unix-socket /run/berth/NAMESPACE/POD.sock http://berth/healthz",
        How::Special(steps::ask_health),
    ),
    row(
        "curl --unix-socket /run/berth/k8s.io/POD.sock http://berth/",
        How::Special(steps::ask_index),
    ),
    row(
        "curl --unix-socket /run/berth/k8s.io/POD.sock -X PUT -d debug http://berth/log-level",
        How::Special(steps::set_level),
    ),
    row("containerd-shim-berth-v1 ps -json", How::Special(steps::ps_json)),
    row("containerd-shim-berth-v1 logs ID", How::Special(steps::logs)),
    row("containerd-shim-berth-v1 metrics --listen 127.0.0.1:9190", How::Special(steps::listen)),
    row("curl http://127.0.0.1:9190/metrics", How::Special(steps::scrape)),
    row("containerd-shim-berth-v1 metrics --textfile FILE", How::Special(steps::textfile)),
    row("systemctl restart containerd", How::Special(steps::restart)),
    row("containerd-shim-berth-v1 doctor", How::Special(steps::doctor)),
    row("containerd-shim-berth-v1 doctor -fix", How::Special(steps::mended)),
    row("source <(containerd-shim-berth-v1 completions bash)", How::Special(steps::source)),
    // Configuration.
    row("containerd-shim-berth-v1 config check FILE", How::Special(steps::config_check)),
    row("containerd-shim-berth-v1 config show --origin", How::Special(steps::config_show)),
    row(
        "containerd-shim-berth-v1 config show --annotation io.containerd.berth.runtime=gvisor",
        How::Special(steps::config_annotation),
    ),
    // A cluster.
    row(
        "make tarball && docker build -t berth-node:TAG -f packaging/kubernetes/Containerfile target/packages/berth-VERSION-ARCHITECTURE",
        How::Special(steps::recipe),
    ),
    row("kubectl apply -f config/runtimeclass.yaml", How::Sources("")),
    row("kubectl apply -k packaging/kubernetes/base", How::Sources("")),
    row("kubectl apply -k packaging/kubernetes/remove", How::Sources("")),
    row("kubectl -n berth-system rollout status daemonset/berth-node", How::Sources("")),
    row("kubectl delete -k packaging/kubernetes/remove", How::Sources("")),
    row(
        "cd packaging/kubernetes/base && kustomize edit set image berth-node=REGISTRY/berth-node:TAG",
        How::Special(steps::image),
    ),
    row("kubectl apply -k .", How::Special(steps::in_base)),
    row("kubectl apply -k ../remove", How::Special(steps::in_base)),
    row(
        "kubectl -n berth-system rollout status daemonset/berth-node && kubectl delete -k ../remove",
        How::Special(steps::in_base),
    ),
    // Tests.
    row(
        "make test TEST='1.7 crun berth shim-killed'",
        How::Plan("--test containerd -- 1.7 crun berth shim-killed"),
    ),
    row("make cgroup2 TEST='crun resources::'", How::Plan("--test cgroup2 -- crun resources::")),
    row("make cgroup2 TEST='here events::'", How::Plan("--test cgroup2 -- here events::")),
    row("make cgroup2 TEST='crun stats::'", How::Plan("--test cgroup2 -- crun stats::")),
    row("make bench", How::Plan("--test bench --")),
    row("make bench-check", How::Plan("--test bench -- --check")),
    row("make bench ARGS=io", How::Plan("--test bench -- io")),
    row("make bench ARGS=stats", How::Bench("a Stats call")),
    row("make bench ARGS='life --runtime crun'", How::Bench("a container that exits at once")),
    row("make pods", How::Plan("--test containerd -- --cost 2.x")),
    row("make soak MINUTES=10", How::Soak("0.1")),
    row("make soak MINUTES=60", How::Plan("--test containerd -- --soak=60")),
    row("make fuzz", How::Plan(FUZZ)),
    row("make fuzz SECONDS=60", How::Plan(FUZZ)),
    row("make fuzz SECONDS=10 TARGET=stdio_uri", How::Plan("tests/fuzz/run.sh 10 stdio_uri")),
    row("cargo update --workspace", How::Sources("")),
    row("cargo test --lib socket::", How::Cargo("test result: ok")),
    row("cargo test --test main -- exec::", How::Chooses),
    row(
        "BERTH_TEST_RUNTIME=crun cargo test --test main -- events::",
        How::Cargo("test result: ok"),
    ),
    row(
        "BERTH_TEST_SHIM=/usr/bin/containerd-shim-runc-v2 cargo test --test main -- events::",
        How::Cargo("test result: ok"),
    ),
    row("BERTH_TEST_RUNTIME=youki cargo test --test main", How::Chooses),
    row("BERTH_TEST_CYCLES=1000 cargo test --test main -- faults::cycles", How::Chooses),
    row("BERTH_TEST_SEEDS=200 cargo test --test main -- model::", How::Chooses),
    row("cargo test --test containerd -- --list", How::Cargo("2.x runc berth shim-killed")),
    row("cargo test --test containerd -- 2.x runc berth shim-killed", How::Chooses),
    row("cargo test --test clients -- docker-28 alias run", How::Chooses),
    row("cargo test --test documents", How::Chooses),
    row("cargo test --test documents -- 'berth-v1 ps'", How::Chooses),
    // The manual page, and what else the program prints of itself.
    row("containerd-shim-berth-v1 config show -origin", How::Special(steps::config_show)),
    row(
        "containerd-shim-berth-v1 config check /etc/berth/config.toml",
        How::Special(steps::config_check),
    ),
    row("containerd-shim-berth-v1 logs 0a1b2c", How::Special(steps::logs)),
    row("containerd-shim-berth-v1 metrics -listen 127.0.0.1:9190", How::Special(steps::listen)),
    row(
        "containerd-shim-berth-v1 metrics -textfile /var/lib/prometheus/node-exporter/berth.prom",
        How::Special(steps::textfile),
    ),
    row("containerd-shim-berth-v1 man | man -l -", How::Special(steps::manual)),
    row(
        "containerd-shim-berth-v1 completions bash >/etc/bash_completion.d/berth",
        How::Special(steps::completions),
    ),
];
