#!/bin/sh
# A container under berth, from nothing to nothing: installs what is missing, builds, starts a
# private containerd, runs a container, looks at it, and leaves the machine as it was.
#   DEMO_RUNTIME     the shim to show; io.containerd.runc.v2 is the one that comes with containerd
#   DEMO_CONTAINERD  a directory with containerd and ctr, where the ones on PATH are not to be used
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo 'demo: containers need root: run `sudo make demo`' >&2; exit 1; }

runtime=${DEMO_RUNTIME:-io.containerd.berth.v1}
namespace=demo-$$
dir=
daemon=
watcher=

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
ctr() { command ctr --address "$dir/containerd.sock" --namespace "$namespace" "$@"; }

# Polls a condition for ten seconds.
await() {
    tries=200
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { echo "demo: waited in vain: $*" >&2; return 1; }
        sleep 0.05
    done
}

# Every process of this demo but the demo: its shims, and what runs in its containers.
processes() {
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        [ "$pid" != $$ ] || continue
        if grep -qs "/$namespace/" "$entry/cgroup" ||
            tr '\0' ' ' 2>/dev/null <"$entry/cmdline" | grep -q -e "-namespace $namespace "; then
            echo "$pid"
        fi
    done
}

cgroups() { find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$namespace" 2>/dev/null; }

# What is left of the demo, a line each.
leftovers() {
    for pid in $(processes); do echo "process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline")"; done
    sed -n "s,^[^ ]* [^ ]* [^ ]* [^ ]* \($dir/[^ ]*\) .*,mount \1," /proc/self/mountinfo
    for group in $(cgroups); do find "$group" -mindepth 1 -type d; done
    socket=/run/containerd/s/$(printf %s "$dir/containerd.sock/$namespace/hello" | sha256sum | cut -d' ' -f1)
    [ ! -e "$socket" ] || echo "socket $socket"
    find "$dir/state/io.containerd.runtime.v2.task/$namespace" "$dir/fifo" -mindepth 1 2>/dev/null || true
}

# Stops what was started, however the demo ends; kills no process that is not its own.
clean_up() {
    status=$?
    trap - EXIT INT TERM
    [ -n "$dir" ] || exit $status
    if [ -n "$daemon" ]; then
        ctr task kill --signal KILL hello >/dev/null 2>&1 || true
        ctr task delete --force hello >/dev/null 2>&1 || true
        for pid in $watcher $daemon; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
    fi
    left=$(leftovers)
    if [ -n "$left" ]; then
        printf 'demo: left behind, now removed:\n%s\n' "$left" >&2
        for pid in $(processes); do kill -KILL "$pid" 2>/dev/null || true; done
        sed -n "s,^[^ ]* [^ ]* [^ ]* [^ ]* \($dir/[^ ]*\) .*,\1,p" /proc/self/mountinfo | sort -r |
            while read -r mount; do umount -l "$mount"; done
        [ $status -ne 0 ] || status=1
    fi
    for group in $(cgroups); do find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true; done
    rmdir "/run/containerd/runc/$namespace" 2>/dev/null || true
    if [ $status -ne 0 ]; then
        echo "demo: failed; the last words of containerd:" >&2
        tail -n 15 "$dir/log" >&2 || true
    fi
    rm -rf "$dir"
    exit $status
}

descriptor() {
    digest=$(sha256sum "$2" | cut -d' ' -f1)
    printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s}' \
        "$1" "$digest" "$(stat -c %s "$2")"
    mv "$2" "$dir/layout/blobs/sha256/$digest"
}

# An OCI image of one static program, busybox, with a link for each of its commands.
make_image() {
    tree=$dir/tree
    mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/sys" "$dir/layout/blobs/sha256"
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for name in cat echo hostname ls ps sh sleep uname; do ln -s busybox "$tree/bin/$name"; done
    tar -C "$tree" -cf "$dir/blob" .
    diff_id=$(sha256sum "$dir/blob" | cut -d' ' -f1)
    layer=$(descriptor layer.v1.tar "$dir/blob")
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(dpkg --print-architecture)" "$diff_id" >"$dir/blob"
    config=$(descriptor config.v1+json "$dir/blob")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
        "$config" "$layer" >"$dir/blob"
    manifest=$(descriptor manifest.v1+json "$dir/blob")
    printf '{"schemaVersion":2,"manifests":[%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
        "${manifest%\}}" "$image" >"$dir/layout/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$dir/layout/oci-layout"
    tar -C "$dir/layout" -cf "$dir/image.tar" .
}

start_containerd() {
    cat >"$dir/config.toml" <<-CONFIG
	version = 2
	root = "$dir/root"
	state = "$dir/state"
	disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
	[grpc]
	address = "$dir/containerd.sock"
	CONFIG
    containerd --config "$dir/config.toml" >"$dir/log" 2>&1 &
    daemon=$!
    await ctr version
}

has_event() { grep -q "$1" "$dir/events"; }

image=demo.local/busybox:1
trap clean_up EXIT
trap 'exit 130' INT TERM

step 'Install what is missing and build the shim'
packaging/setup.sh demo
make --no-print-directory build
shim=$(make --no-print-directory -s where)
PATH=${DEMO_CONTAINERD:+$DEMO_CONTAINERD:}$PATH:/usr/sbin:/sbin
export PATH
dir=$(mktemp -d /run/demo.XXXXXX)

step "Start a private $(containerd --version | cut -d' ' -f1,3) that finds the shim on its PATH"
PATH=$(dirname "$shim"):$PATH
start_containerd
echo "its socket: $dir/containerd.sock; the shim: $runtime"

step 'Make an image of busybox and import it'
make_image
ctr image import "$dir/image.tar" >/dev/null
ctr image list -q
ctr events >"$dir/events" 2>/dev/null &
watcher=$!

step 'Run a container to its end'
show ctr run --rm --runtime "$runtime" --fifo-dir "$dir/fifo" "$image" hello \
    sh -c 'echo "hello from $(hostname), Linux $(uname -r)"'

step 'Start one that stays'
show ctr run --detach --null-io --runtime "$runtime" --fifo-dir "$dir/fifo" "$image" hello sleep 1000
show ctr task list

step 'Its shim: one small process'
pid=$(ctr task list | sed -n 's/^hello *\([0-9]*\) .*/\1/p')
parent=$(sed -n 's/^PPid:\t//p' "/proc/$pid/status")
sed -n 's/^\(Name\|Pid\|Threads\|VmRSS\):/  &/p' "/proc/$parent/status"

step 'Run a second program in it'
show ctr task exec --exec-id look --fifo-dir "$dir/fifo" hello ps

step 'Ask what it uses'
show ctr task metrics hello

step 'Kill it and delete it'
show ctr task kill --signal KILL hello
await has_event '/tasks/exit.*"container_id":"hello".*"exit_status":137'
show ctr task delete hello
ctr container delete hello

step 'What containerd was told meanwhile'
await has_event '/tasks/delete.*137'
sed -n 's,^.* \(/tasks/[a-z-]* .*\),\1,p' "$dir/events" | cut -c1-150

step 'Stop containerd and look for anything left'
kill "$watcher" "$daemon"
wait "$daemon" || true
daemon=
left=$(leftovers)
[ -z "$left" ] || exit 1
echo 'nothing: no process, no mount, no cgroup, no socket, no FIFO'
