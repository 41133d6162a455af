//! How each command of the documents is run, in the order in which it is.

use std::fs;
use std::path::Path;

use crate::machine::{Machine, SOURCES, filled};
use crate::{command, commands, host, read};

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
const FUZZ: &str = "tests/fuzz/run.sh 60";

pub(crate) const ROWS: &[Row] = &[
    // From the sources to the program.
    row("make check", ALL),
    row("make test", ALL),
    row("make help", How::Sources("make demo")),
    row("make demo", How::Sources("nothing: no process, no mount, no cgroup, no socket, no FIFO")),
    row("sudo make install", How::Special(install)),
    row("sudo make uninstall", How::Special(uninstall)),
    row("make stage", How::Sources("")),
    row("make tarball", How::Special(tarball)),
    row("sudo ./install.sh", How::Special(unpacked)),
    row("sudo ./install.sh --remove", How::Special(removed)),
    row("make deb tarball", How::Sources(".tar.gz")),
    row("make deb", How::Sources("built ")),
    row("sudo apt install ./target/packages/berth_*.deb", How::Special(package)),
    row("containerd-shim-berth-v1 -v", How::Sources(concat!("berth ", env!("CARGO_PKG_VERSION")))),
    // A first container.
    row("containerd config dump", How::Machine("io.containerd.berth.v1")),
    row("ctr image pull docker.io/library/busybox:latest", How::Special(pull)),
    row(
        "ctr run --detach --runtime io.containerd.berth.v1 docker.io/library/busybox:latest hello sleep 1000",
        How::Special(hello),
    ),
    row("containerd-shim-berth-v1 ps", How::Special(ps)),
    row(
        "curl --unix-socket /run/berth/default/hello.sock http://berth/metrics",
        How::Machine("berth_build_info"),
    ),
    row("ctr task delete --force hello && ctr container delete hello", How::Machine("")),
    row("ctr run --runtime io.containerd.berth.v1 IMAGE ID", How::Special(run)),
    row("ctr run --log-uri", How::Special(flag)),
    row("ctr run --runtime-config-path", How::Special(flag)),
    row("docker run --runtime io.containerd.berth.v1 IMAGE", DOCKER),
    row("docker run --runtime berth IMAGE", DOCKER),
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
    row("kill -USR1 PID", How::Special(signal)),
    // What a pod tells.
    row(
        "curl --unix-socket /run/berth/k8s.io/POD.sock http://berth/healthz",
        How::Special(ask_health),
    ),
    row(
        "curl --unix-socket /run/berth/NAMESPACE/POD.sock http://berth/healthz",
        How::Special(ask_health),
    ),
    row("curl --unix-socket /run/berth/k8s.io/POD.sock http://berth/", How::Special(ask_index)),
    row(
        "curl --unix-socket /run/berth/k8s.io/POD.sock -X PUT -d debug http://berth/log-level",
        How::Special(set_level),
    ),
    row("containerd-shim-berth-v1 ps -json", How::Special(ps_json)),
    row("containerd-shim-berth-v1 logs ID", How::Special(logs)),
    row("containerd-shim-berth-v1 metrics --listen 127.0.0.1:9190", How::Special(listen)),
    row("containerd-shim-berth-v1 metrics --textfile FILE", How::Special(textfile)),
    // Configuration.
    row("containerd-shim-berth-v1 config check FILE", How::Special(config_check)),
    row("containerd-shim-berth-v1 config show --origin", How::Special(config_show)),
    row(
        "containerd-shim-berth-v1 config show --annotation io.containerd.berth.runtime=gvisor",
        How::Special(config_annotation),
    ),
    // A cluster.
    row(
        "make tarball && docker build -t berth-node:TAG -f packaging/kubernetes/Containerfile target/packages/berth-VERSION-ARCHITECTURE",
        How::Special(recipe),
    ),
    row("kubectl apply -f config/runtimeclass.yaml", How::Sources("")),
    row("kubectl apply -k packaging/kubernetes/base", How::Sources("")),
    row("kubectl apply -k packaging/kubernetes/remove", How::Sources("")),
    row("kubectl -n berth-system rollout status daemonset/berth-node", How::Sources("")),
    row("kubectl delete -k packaging/kubernetes/remove", How::Sources("")),
    row(
        "cd packaging/kubernetes/base && kustomize edit set image berth-node=REGISTRY/berth-node:TAG",
        How::Special(image),
    ),
    row("kubectl apply -k .", How::Special(in_base)),
    row("kubectl apply -k ../remove", How::Special(in_base)),
    row(
        "kubectl -n berth-system rollout status daemonset/berth-node && kubectl delete -k ../remove",
        How::Special(in_base),
    ),
    // Tests.
    row(
        "make test TEST='1.7 crun berth shim-killed'",
        How::Plan("--test containerd -- 1.7 crun berth shim-killed"),
    ),
    row("make cgroup2 TEST='crun resources::'", How::Plan("--test cgroup2 -- crun resources::")),
    row("make cgroup2 TEST='crun stats::'", How::Plan("--test cgroup2 -- crun stats::")),
    row("make bench", How::Plan("--test bench --")),
    row("make bench-check", How::Plan("--test bench -- --check")),
    row("make bench ARGS=io", How::Plan("--test bench -- io")),
    row("make bench ARGS=stats", How::Plan("--test bench -- stats")),
    row("make bench ARGS='life --runtime crun'", How::Bench("a container that exits at once")),
    row("make pods", How::Plan("--test containerd -- --cost 2.x")),
    row("make soak MINUTES=10", How::Plan("--test containerd -- --soak=10")),
    row("make soak MINUTES=60", How::Plan("--test containerd -- --soak=60")),
    row("make fuzz", How::Plan(FUZZ)),
    row("make fuzz SECONDS=60", How::Plan(FUZZ)),
    row("make fuzz SECONDS=10 TARGET=stdio_uri", How::Plan("tests/fuzz/run.sh 10 stdio_uri")),
    row("cargo update --workspace", How::Sources("")),
    row("cargo test --lib socket::", How::Cargo("test result: ok")),
    row("cargo test --test main -- exec::", How::Chooses),
    row("BERTH_TEST_RUNTIME=crun cargo test --test main -- exec::", How::Chooses),
    row(
        "BERTH_TEST_SHIM=/usr/bin/containerd-shim-runc-v2 cargo test --test main -- exec::",
        How::Chooses,
    ),
    row("BERTH_TEST_RUNTIME=youki cargo test --test main", How::Chooses),
    row("BERTH_TEST_CYCLES=1000 cargo test --test main -- faults::cycles", How::Chooses),
    row("BERTH_TEST_SEEDS=200 cargo test --test main -- model::", How::Chooses),
    row("cargo test --test containerd -- --list", How::Cargo("2.x runc berth shim-killed")),
    row("cargo test --test containerd -- 2.x runc berth shim-killed", How::Chooses),
    row("cargo test --test clients -- docker-28 alias run", How::Chooses),
    row("cargo test --test documents", How::Chooses),
    row("cargo test --test documents -- 'berth-v1 ps'", How::Chooses),
];

/// Where `make install` puts the program.
const LOCAL: &str = "/usr/local/bin/containerd-shim-berth-v1";

fn install(machine: &Machine, text: &str) {
    machine.sources(text, &format!("installed {LOCAL}"));
    machine.sources(&format!("{LOCAL} -v"), "berth ");
    machine.sources(&format!("{LOCAL} config check /etc/berth/config.toml"), "");
}

fn uninstall(machine: &Machine, text: &str) {
    machine.sources(text, "");
    assert!(!Path::new(LOCAL).exists() && !Path::new("/etc/berth").exists());
}

fn tarball(machine: &Machine, text: &str) {
    machine.sources(text, ".tar.gz");
    machine.sources("mkdir -p /run/home/unpacked && tar -C /run/home/unpacked -xf target/packages/berth-*.tar.gz", "");
}

/// In the directory that the tarball unpacks to.
fn in_tarball(machine: &Machine, text: &str) {
    machine.well(SOURCES, &format!("cd /run/home/unpacked/berth-* && {text}"), "");
}

fn unpacked(machine: &Machine, text: &str) {
    in_tarball(machine, text);
    machine.sources(&format!("{LOCAL} -v"), "berth ");
}

fn removed(machine: &Machine, text: &str) {
    in_tarball(machine, text);
    assert!(!Path::new(LOCAL).exists());
}

fn package(machine: &Machine, text: &str) {
    machine.sources(text, "Setting up berth");
    assert!(Path::new("/usr/bin/containerd-shim-berth-v1").exists());
}

/// There is no registry here: it gets as far as looking for one.
fn pull(machine: &Machine, text: &str) {
    machine.containerd();
    let said = machine.run(SOURCES, text).refused();
    assert!(said.contains("failed to resolve") || said.contains("failed to do request"), "{said}");
}

fn hello(machine: &Machine, text: &str) {
    machine.says(text, "");
    command::until("its socket", || {
        Path::new("/run/berth/default/hello.sock").exists().then_some(())
    });
}

/// The first container, and the line of the worked example.
fn ps(machine: &Machine, text: &str) {
    let said = machine.says(text, "NAMESPACE");
    assert!(
        said.lines().any(|line| line.starts_with("default") && line.contains("hello")),
        "{said}"
    );
    crate::example::check_columns(text, &said);
}

fn run(machine: &Machine, text: &str) {
    machine.says(&(filled(text) + " true"), "");
    machine.says("ctr container delete ID", "");
}

/// The flag that is spoken of is one.
fn flag(machine: &Machine, text: &str) {
    let (command, flag) = text.rsplit_once(' ').unwrap();
    machine.says(&format!("{command} --help"), flag);
}

fn signal(machine: &Machine, text: &str) {
    machine.pod("web");
    let shim = machine.shim("web");
    machine.says(&text.replace("PID", &shim.to_string()), "");
    command::until("it is logged", || {
        let said = machine.says("containerd-shim-berth-v1 logs web", "");
        said.contains("events wait for containerd").then_some(())
    });
    assert!(host::exists(shim), "it lives on");
}

fn on_pod(machine: &Machine, text: &str, expected: &str) {
    machine.pod("web");
    machine.says(&filled(text), expected);
}

fn ask_health(machine: &Machine, text: &str) {
    on_pod(machine, text, "ok\n");
}

fn ask_index(machine: &Machine, text: &str) {
    for page in ["/metrics", "/containers", "/config", "/events", "/logs", "/debug/tasks"] {
        on_pod(machine, text, page);
    }
}

fn set_level(machine: &Machine, text: &str) {
    on_pod(machine, text, "debug");
}

fn ps_json(machine: &Machine, text: &str) {
    on_pod(machine, text, "\"socket\": \"/run/berth/k8s.io/web.sock\"");
}

fn logs(machine: &Machine, text: &str) {
    on_pod(machine, &text.replace("ID", "web"), " serves ");
}

fn listen(machine: &Machine, text: &str) {
    machine.pod("web");
    let mut server = machine.spawn(text, "/run/metrics.log");
    let address = text.rsplit_once(' ').unwrap().1;
    let scrape = format!("curl -s http://{address}/metrics");
    command::until("a scrape", || {
        let output = machine.run("/", &scrape);
        (output.status == 0)
            .then(|| assert!(output.text().contains("berth_up{"), "{}", output.text()))
    });
    host::signal(server.id().try_into().unwrap(), "TERM");
    command::wait(&mut server, text);
}

fn textfile(machine: &Machine, text: &str) {
    on_pod(machine, &text.replace("FILE", "/run/berth.prom"), "");
    assert!(fs::read_to_string("/run/berth.prom").unwrap().contains("berth_up{"));
}

/// The README's table of runtimes is the host's.
fn configured(machine: &Machine, text: &str, expected: &str) {
    let blocks = commands::blocks(&read("README.md"), "toml");
    let table = blocks.iter().find(|block| block.contains("[runtimes.gvisor]")).unwrap();
    fs::create_dir_all("/etc/berth").unwrap();
    fs::write("/etc/berth/config.toml", table).unwrap();
    machine.says(text, expected);
}

fn config_check(machine: &Machine, text: &str) {
    configured(machine, &text.replace("FILE", "/etc/berth/config.toml"), "");
}

fn config_show(machine: &Machine, text: &str) {
    configured(machine, text, "/etc/berth/config.toml");
}

fn config_annotation(machine: &Machine, text: &str) {
    configured(machine, text, "gvisor");
}

/// What the recipe copies is where the command looks for it; Docker itself would want its base from a registry.
fn recipe(machine: &Machine, text: &str) {
    let (tarball, build) = text.split_once(" && ").unwrap();
    machine.sources(tarball, ".tar.gz");
    let words: Vec<_> = build.split(' ').collect();
    let (file, context) = (words[words.len() - 2], words[words.len() - 1]);
    let context = context.replace(
        "VERSION-ARCHITECTURE",
        &format!("{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH),
    );
    let recipe = fs::read_to_string(Path::new(SOURCES).join(file)).unwrap();
    let copy = recipe.lines().find_map(|line| line.strip_prefix("COPY ")).unwrap();
    let copied: Vec<_> = copy.split(' ').collect();
    for source in &copied[..copied.len() - 1] {
        let path = Path::new(SOURCES).join(&context).join(source);
        assert!(path.exists(), "{}", path.display());
    }
}

fn image(machine: &Machine, text: &str) {
    let said = text.replace("REGISTRY", "registry.example").replace("TAG", "1");
    machine.sources(&said, "");
    machine.well(
        SOURCES,
        "cat packaging/kubernetes/base/kustomization.yaml",
        "registry.example/berth-node",
    );
}

/// Where the `cd` before it has led.
fn in_base(machine: &Machine, text: &str) {
    let base = format!("{SOURCES}/packaging/kubernetes/base");
    machine.well(&base, text, "");
    if text.contains(" apply ") {
        let applied = fs::read_to_string("/run/cluster/applied").unwrap();
        assert!(applied.contains("registry.example/berth-node:1"), "{applied}");
    }
}
