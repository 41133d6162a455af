#!/usr/bin/env python3
"""Draws packaging/grafana/berth.svg: the panels of the dashboard berth.json from a real run.

    sudo packaging/grafana/plot.py [--seconds 180] [--output packaging/grafana/berth.svg]

As root on Debian or Ubuntu, with nothing but Python's own library. It installs what is missing and builds the
shim (packaging/setup.sh, make build), starts a private containerd, lets containers come and go, asks all shims
with `metrics -textfile` every two seconds, and leaves the machine as it was. DEMO_CONTAINERD names a directory
with another containerd and ctr than those on PATH, BERTH_SHIM a shim that is built already.
"""

import argparse
import collections
import hashlib
import html
import io
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = "plot.local/busybox:1"
NAMESPACE = f"plot-{os.getpid()}"
EVERY = 2.0
CONFIG = """version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/containerd.sock"
"""
# Takes 400 lines and ends: berth starts it again.
LOGGER = "#!/bin/sh\nexec 5>&-\nexec head -n 400 <&3 >/dev/null\n"


class Bed:
    """A private containerd with its directory; what was started in it ends with it."""

    def __init__(self, shim):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="plot.", dir="/run"))
        self.shim = shim
        self.over = threading.Event()
        (self.dir / "config.toml").write_text(CONFIG.format(dir=self.dir))
        (self.dir / "berth.toml").write_text('[io]\non_full = "drop-oldest"\nbuffer = "64KiB"\n')
        logger = self.dir / "logger"
        logger.write_text(LOGGER)
        logger.chmod(0o755)
        path = os.pathsep.join(filter(None, [os.environ.get("DEMO_CONTAINERD"), os.environ["PATH"], "/usr/sbin", "/sbin"]))
        self.env = {**os.environ, "BERTH_RUN_DIR": str(self.dir / "berth"), "BERTH_CONF_FILE": str(self.dir / "berth.toml")}
        self.env["PATH"] = f"{shim.parent}{os.pathsep}{path}"
        self.log = open(self.dir / "log", "w")
        self.daemon = subprocess.Popen(
            ["containerd", "--config", str(self.dir / "config.toml")],
            stdout=self.log, stderr=self.log, env=self.env,
        )

    def ctr(self, *args, timeout=60):
        command = ["ctr", "--address", str(self.dir / "containerd.sock"), "--namespace", NAMESPACE, *args]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=timeout)

    def run(self, name, *script, options=()):
        fifos = str(self.dir / "fifo")
        flags = ["--runtime", "io.containerd.berth.v1", "--fifo-dir", fifos, *options]
        return self.ctr("run", *flags, IMAGE, name, *script)

    def exec(self, name, number, *program):
        flags = ["--exec-id", f"e{number}", "--fifo-dir", str(self.dir / "fifo")]
        return self.ctr("task", "exec", *flags, name, *program)

    def end(self):
        self.over.set()
        for name in self.ctr("container", "list", "-q").stdout.split():
            self.ctr("task", "kill", "--signal", "KILL", name)
            for _ in range(100):
                if self.ctr("task", "delete", "--force", name).returncode == 0:
                    break
                time.sleep(0.05)
            self.ctr("container", "delete", name)
        self.daemon.terminate()
        self.daemon.wait()
        for mount in sorted(mounts(self.dir), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        for group in [*pathlib.Path("/sys/fs/cgroup").glob(NAMESPACE), *pathlib.Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}")]:
            subprocess.run(["find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], capture_output=True)
        shutil.rmtree(f"/run/containerd/runc/{NAMESPACE}", ignore_errors=True)
        self.log.close()
        shutil.rmtree(self.dir)


def mounts(directory):
    for line in open("/proc/self/mountinfo"):
        target = line.split()[4]
        if target.startswith(f"{directory}/"):
            yield target


def import_image(bed):
    """An OCI image of busybox alone, with a link for each command."""
    blobs = {}

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def archive(add):
        bytes_ = io.BytesIO()
        with tarfile.open(fileobj=bytes_, mode="w") as tar:
            add(tar)
        return bytes_.getvalue()

    def tree(tar):
        tar.add(shutil.which("busybox"), "bin/busybox")
        for name in ["cat", "echo", "head", "sh", "sleep", "tail", "true", "yes"]:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)

    layer = blob("layer.v1.tar", archive(tree))
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {"architecture": arch, "os": "linux", "config": {"Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config = blob("config.v1+json", json.dumps(config).encode())
    manifest = blob("manifest.v1+json", json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode())
    manifest["annotations"] = {"io.containerd.image.name": IMAGE}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'

    def layout(tar):
        for name, data in blobs.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

    (bed.dir / "image.tar").write_bytes(archive(layout))
    done = bed.ctr("image", "import", str(bed.dir / "image.tar"))
    if done.returncode:
        sys.exit(f"plot: cannot import the image: {done.stderr}")


# The load: each of these does one thing again and again until the run is over.


def churn(bed, worker):
    """Containers that come, live for some seconds and go."""
    number = 0
    while not bed.over.is_set():
        number += 1
        seconds = random.choice(["3", "5", "8"])
        bed.run(f"churn-{worker}-{number}", "sh", "-c", f"echo begins; sleep {seconds}; echo ends", options=["--rm", "--null-io"])


def execs(bed, worker):
    """Programs run in containers that stay; some that do not exist."""
    name = f"stays-{worker}"
    bed.run(name, "sleep", "100000", options=["--detach", "--null-io"])
    number = 0
    while not bed.over.wait(0.3):
        number += 1
        bed.exec(name, number, *(["/nonesuch"] if number % 9 == 0 else ["true"]))
        if number % 4 == 0:
            bed.ctr("task", "metrics", name)
        if number % 25 == 0:
            bed.ctr("task", "pause", name)
            bed.ctr("task", "resume", name)


def output(bed, _):
    """Output through berth: into a file, in waves."""
    target = f"file://{bed.dir}/output.log"
    script = "while :; do head -c 20000000 /dev/zero; sleep 9; for n in 1 2 3 4 5 6 7 8; do head -c 2000000 /dev/zero; sleep 1; done; done"
    bed.run("writes", "sh", "-c", script, options=["--detach", "--log-uri", target])
    while not bed.over.wait(1):
        os.truncate(bed.dir / "output.log", 0) if (bed.dir / "output.log").exists() else None


def logger(bed, _):
    """Output for a logger that ends again and again."""
    script = "while :; do n=0; while [ $n -lt 50 ]; do n=$((n+1)); echo line $n; done; sleep 1; done"
    bed.run("logs", "sh", "-c", script, options=["--detach", "--log-uri", f"binary://{bed.dir}/logger"])


def unread(bed, _):
    """Output that its reader takes slowly: what is over is dropped."""
    read, write = os.pipe()
    with subprocess.Popen(
        ["ctr", "--address", str(bed.dir / "containerd.sock"), "--namespace", NAMESPACE, "run", "--rm", "--runtime", "io.containerd.berth.v1",
         "--fifo-dir", str(bed.dir / "fifo"), IMAGE, "talks", "sh", "-c", "while :; do head -c 300000 /dev/zero; sleep 2; done"],
        env=bed.env, stdout=write, stderr=subprocess.DEVNULL,
    ) as client:
        os.close(write)
        while not bed.over.wait(1):
            os.read(read, 16 << 10)
        os.close(read)
        client.kill()  # what it runs does not hear SIGTERM; the end of the bed ends it


def memory(bed, _):
    """A container with too little memory, now and then."""
    number = 0
    while not bed.over.wait(random.choice([11, 17])):
        number += 1
        options = ["--rm", "--null-io", "--memory-limit", str(24 << 20)]
        bed.run(f"hog-{number}", "sh", "-c", "sleep 3; tail /dev/zero; sleep 5", options=options)


def stuck(bed, _):
    """One shim that is stopped for a while, and one that is killed."""
    bed.run("victim", "sleep", "100000", options=["--detach", "--null-io"])
    third = bed.seconds / 3
    if bed.over.wait(third):
        return
    pids = {pod["id"]: pod["shim"]["pid"] for pod in pods(bed)}
    if "stays-1" in pids:
        os.kill(pids["stays-1"], signal.SIGSTOP)
        bed.over.wait(12)
        os.kill(pids["stays-1"], signal.SIGCONT)
    if not bed.over.wait(third) and "victim" in pids:
        os.kill(pids["victim"], signal.SIGKILL)


def pods(bed):
    done = subprocess.run([str(bed.shim), "ps", "-json"], env=bed.env, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


LOAD = [(churn, 4), (execs, 3), (output, 1), (logger, 1), (unread, 1), (memory, 1), (stuck, 1)]

# What was scraped: one dictionary a scrape, from (name, labels) to the value.


def scrape(bed):
    file = bed.dir / "berth.prom"
    subprocess.run([str(bed.shim), "metrics", "-textfile", str(file)], env=bed.env, check=True)
    samples = {}
    for line in file.read_text().splitlines():
        found = re.match(r"(\w+)\{(.*)\} (\S+)$", line)
        if found:
            labels = tuple(re.findall(r'(\w+)="([^"]*)"', found[2]))
            samples[found[1], labels] = float(found[3])
    return samples


class Run:
    """All scrapes, and what Prometheus would make of them."""

    def __init__(self):
        self.times, self.scrapes = [], []

    def add(self, at, samples):
        self.times.append(at)
        self.scrapes.append(samples)

    def gauge(self, name, by=None, how=sum):
        """A line for each value of the label `by`, or one."""
        lines = collections.defaultdict(lambda: [None] * len(self.times))
        for at, samples in enumerate(self.scrapes):
            found = collections.defaultdict(list)
            for (metric, labels), value in samples.items():
                if metric == name:
                    found[dict(labels).get(by, "")].append(value)
            for key, values in found.items():
                lines[key][at] = how(values)
        return dict(lines)

    def increases(self, name, by, window=5):
        """For each scrape but the first: how much the counters grew within the `window`, by labels."""
        steps = []
        for before, now in zip(self.scrapes, self.scrapes[1:]):
            step = collections.Counter()
            for (metric, labels), value in now.items():
                # A series that is new has grown from an earlier value that nobody saw; so Prometheus has it.
                if metric == name and (metric, labels) in before:
                    labels_ = dict(labels)
                    step[tuple(labels_.get(one, "") for one in by)] += max(0.0, value - before[metric, labels])
            steps.append(step)
        sums = []
        for at in range(len(steps)):
            first = max(0, at + 1 - window)
            total = sum(steps[first:at + 1], collections.Counter())
            sums.append((total, self.times[at + 1] - self.times[first]))
        return sums

    def rate(self, name, by=(), keep=lambda key: True):
        sums = self.increases(name, by)
        keys = sorted({key for total, _ in sums for key in total if keep(key)})
        return {" ".join(key): [None] + [total[key] / span for total, span in sums] for key in keys}

    def quantile(self, name, by, part):
        sums = self.increases(f"{name}_bucket", (by, "le"))
        keys = sorted({key[0] for total, _ in sums for key in total})
        return {key: [None] + [quantile(total, key, part) for total, _ in sums] for key in keys}


def quantile(total, key, part):
    """As histogram_quantile has it: linear within a bucket."""
    buckets = sorted((math.inf if le == "+Inf" else float(le), count) for (name, le), count in total.items() if name == key)
    if not buckets or buckets[-1][1] == 0:
        return None
    rank, low, below = part * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == math.inf or count == below:
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low


def most(lines, count=5):
    """The lines that matter most."""
    total = lambda item: sum(value or 0 for value in item[1])
    return dict(sorted(lines.items(), key=total, reverse=True)[:count])


def named(text, lines):
    return {f"{text} {key}".strip(): line for key, line in lines.items()}


def panels(run):
    rpc, command = "berth_rpc_duration_seconds", "berth_runtime_command_duration_seconds"
    calls = most(run.rate(f"{rpc}_count", ("method",)))
    fifty, last = run.quantile(rpc, "method", 0.5), run.quantile(rpc, "method", 0.99)
    ups = run.gauge("berth_up")
    downs = run.gauge("berth_up", how=lambda values: sum(1 - value for value in values))
    slow, slowest = run.quantile(command, "command", 0.5), run.quantile(command, "command", 0.99)
    commands = most(run.rate(f"{command}_count", ("command",)), 3)
    events = {what: run.rate(f"berth_events_{what}_total") for what in ["queued", "delivered"]}
    return [
        ("Shims", "", {**named("up", ups), **named("down", downs)}),
        ("Requests by method", "/s", calls),
        ("Requests that failed, by code", "/s", run.rate(f"{rpc}_count", ("code",), lambda key: key != ("OK",))),
        ("Latency of requests", "s", {f"{part} {key}": of[key] for key in list(calls)[:3] for part, of in [("p50", fifty), ("p99", last)] if key in of}),
        ("Duration of runtime commands", "s", {f"{part} {key}": of[key] for key in commands for part, of in [("p50", slow), ("p99", slowest)] if key in of}),
        ("Events", "/s", {**named("queued", events["queued"]), **named("delivered", events["delivered"]), **named("waiting", run.gauge("berth_events_waiting"))}),
        ("Output of containers", "B/s", {**named("through berth", run.rate("berth_output_bytes_total")), **named("dropped", run.rate("berth_output_dropped_bytes_total"))}),
        ("Loggers started again", "/s", named("restarts", run.rate("berth_logger_restarts_total"))),
        ("Killed for lack of memory, by limit", "/s", run.rate("berth_oom_kills_total", ("limit",))),
        ("Private memory of a shim", "B", {"largest": run.gauge("berth_process_private_dirty_bytes", how=max)[""], "mean": run.gauge("berth_process_private_dirty_bytes", how=lambda v: sum(v) / len(v))[""]}),
        ("CPU of all shims", "", named("CPUs", run.rate("berth_process_cpu_seconds_total"))),
        ("Descriptors and threads of a shim", "", {"most descriptors": run.gauge("berth_process_open_fds", how=max)[""], "most threads": run.gauge("berth_process_threads", how=max)[""]}),
    ]


# The picture.

COLOURS = ["#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#8f8f8f"]
WIDTH, HEIGHT, COLUMNS, TOP = 400, 190, 3, 46
LEFT, RIGHT, ABOVE, BELOW = 58, 10, 24, 48


def short(value):
    for power, unit in [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")]:
        if value >= power:
            return f"{value / power:.3g}{unit}"
    return f"{value:.3g}"


def amount(value, unit):
    if unit in ("B", "B/s"):
        return short(value) + unit
    if unit == "s" and value < 1:
        return f"{value * 1000:.3g}ms"
    return f"{value:.3g}{unit}"


def nice(value, unit):
    """A round number that is no less."""
    if value <= 0:
        return 1.0
    base = 10.0 ** math.floor(math.log10(value))
    if unit in ("B", "B/s"):
        base = 2.0 ** (10 * math.floor(math.log2(value) / 10))
        return next(base * step for step in (1, 2, 4, 6, 8, 16, 32, 64, 128, 256, 512, 768, 1024) if base * step >= value)
    return next(base * step for step in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if base * step >= value * 0.999)


def draw(x, y, panel, times):
    title, unit, lines = panel
    values = [value for line in lines.values() for value in line if value is not None]
    top, span = nice(max(values, default=0), unit), times[-1] - times[0]
    right, bottom = x + WIDTH - RIGHT, y + HEIGHT - BELOW
    across = lambda at: x + LEFT + (right - x - LEFT) * (at - times[0]) / span
    down = lambda value: bottom - (bottom - y - ABOVE) * value / top
    out = [f'<text x="{x + 8}" y="{y + 15}" class="t">{html.escape(title)}</text>']
    for part in (0, 0.5, 1):
        level = down(top * part)
        out.append(f'<path d="M{x + LEFT} {level:.1f}H{right}" class="g"/><text x="{x + LEFT - 5}" y="{level + 3.5:.1f}" class="y">{amount(top * part, unit)}</text>')
    for second in range(0, int(span) + 1, 60):
        out.append(f'<text x="{across(times[0] + second):.1f}" y="{bottom + 13}" class="x">{second // 60}m</text>')
    left, row = x + LEFT, bottom + 27
    for number, ((name, line), colour) in enumerate(zip(lines.items(), COLOURS)):
        dash = ' stroke-dasharray="5 3"' if number % 2 else ""  # one that covers another lets it be seen
        path, pen = "", "M"
        for time_, value in zip(times, line):
            if value is not None:
                path += f"{pen}{across(time_):.0f} {down(value):.1f}"
            pen = "M" if value is None else "L"
        out.append(f'<path d="{path}" stroke="{colour}" class="l"{dash}/>')
        wide = 18 + 5.6 * len(name)
        if left + wide > right + 6 and left > x + LEFT:
            left, row = x + LEFT, row + 12
        out.append(f'<path d="M{left:.0f} {row - 3}h8" stroke="{colour}" class="l"/><text x="{left + 11:.0f}" y="{row}" class="k">{html.escape(name)}</text>')
        left += wide
    return "".join(out)


def picture(run, about):
    all_ = panels(run)
    rows = -(-len(all_) // COLUMNS)
    wide, high = WIDTH * COLUMNS, TOP + HEIGHT * rows + 6
    times = run.times
    body = [draw(WIDTH * (n % COLUMNS), TOP + HEIGHT * (n // COLUMNS), one, times) for n, one in enumerate(all_)]
    style = ".t{font-weight:600;font-size:12px}.g{stroke:#ddd;fill:none}.y{text-anchor:end;font-size:9px;fill:#666}.x{text-anchor:middle;font-size:9px;fill:#666}.k{font-size:9px;fill:#444}.l{fill:none;stroke-width:1.3}"
    return (
        f"<!-- Made by packaging/grafana/plot.py from a real run: {html.escape(about)} -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" font-family="sans-serif" fill="#222">'
        f'<style>{style}</style><rect width="{wide}" height="{high}" fill="#fff"/>'
        f'<text x="8" y="20" font-size="15" font-weight="600">berth: all shims of a node under a mixed load</text>'
        f'<text x="8" y="37" font-size="11" fill="#666">{html.escape(about)}</text>\n' + "\n".join(body) + "\n</svg>\n"
    )


def build():
    built = os.environ.get("BERTH_SHIM")
    if built:
        return pathlib.Path(built).resolve()
    subprocess.run([ROOT / "packaging/setup.sh", "demo"], check=True)
    subprocess.run(["make", "--no-print-directory", "-C", ROOT, "build"], check=True)
    where = subprocess.run(["make", "--no-print-directory", "-s", "-C", ROOT, "where"], check=True, capture_output=True, text=True)
    return pathlib.Path(where.stdout.strip())


def measure(bed, seconds):
    """Puts the load on, and scrapes until the time is over."""
    bed.seconds = seconds
    for _ in range(200):
        if bed.ctr("version").returncode == 0:
            break
        time.sleep(0.05)
    import_image(bed)
    threads = [threading.Thread(target=work, args=(bed, number), daemon=True) for work, count in LOAD for number in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    run, began = Run(), time.monotonic()
    while time.monotonic() - began < seconds:
        next_ = time.monotonic() + EVERY
        run.add(time.monotonic() - began, scrape(bed))
        time.sleep(max(0, next_ - time.monotonic()))
    bed.over.set()
    for thread in threads:
        thread.join(timeout=60)
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "packaging/grafana/berth.svg")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("plot: containers need root")
    bed = Bed(build())
    try:
        run = measure(bed, args.seconds)
        version = subprocess.run(["containerd", "--version"], env=bed.env, capture_output=True, text=True).stdout.split()[2]
        pods_ = len({dict(labels)["sandbox"] for one in run.scrapes for name, labels in one if name == "berth_up"})
    finally:
        bed.end()
    about = f"containerd {version}, {os.cpu_count()} CPUs, Linux {os.uname().release}; {pods_} pods in {args.seconds:.0f} s, asked every {EVERY:.0f} s"
    args.output.write_text(picture(run, about))
    print(f"plot: {args.output}, {args.output.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
