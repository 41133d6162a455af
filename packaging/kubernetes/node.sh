#!/bin/sh
# Makes berth a runtime of this Kubernetes node, or takes it away again; the program of the DaemonSet.
#   node.sh install [once]    program, handlers in containerd's configuration, label of the node
#   node.sh remove [once]     the same backwards, once no pod runs with berth any more: the files are then
#                             what they were, byte for byte
# Without `once` it stays until it is terminated, so that the DaemonSet's pod does; with it `remove` does not wait
# for pods, but ends with 3.
#
# It needs root, the node's PID namespace and nsenter: what it writes is under /proc/HOST_PID/root, what it
# runs is run there. containerd is restarted only when its configuration has changed, after it has
# accepted the new one (`containerd config dump`) with all that was in the old. If it does not answer
# within WAIT seconds then, it gets the old one back. Containers run on meanwhile.
#
# From the environment:
#   HOST_PID           1; a process of the node
#   CONTAINERD_CONFIG  /etc/containerd/config.toml; its drop-in is conf.d/berth.toml beside it
#   CONTAINERD, CTR    containerd, ctr; the node's programs
#   BIN_DIR            /usr/local/bin; for berth's own; on the PATH of containerd
#   RESTART            "systemctl restart containerd"
#   WAIT               60
#   PAUSELESS          false; true adds the handler berth-pauseless, where containerd is 2.x
#   NODE_NAME          the node to label; without it none is
set -eu
HOST_PID=${HOST_PID:-1}
CONTAINERD_CONFIG=${CONTAINERD_CONFIG:-/etc/containerd/config.toml}
CONTAINERD=${CONTAINERD:-containerd}
CTR=${CTR:-ctr}
BIN_DIR=${BIN_DIR:-/usr/local/bin}
RESTART=${RESTART:-systemctl restart containerd}
WAIT=${WAIT:-60}
PAUSELESS=${PAUSELESS:-false}
# These matter to tests only.
RUN_DIR=${RUN_DIR:-/run/berth}
RANCHER=${RANCHER:-/var/lib/rancher}
READY=${READY:-/tmp/ready}
API=${API:-https://${KUBERNETES_SERVICE_HOST:-}:${KUBERNETES_SERVICE_PORT:-443}}
CREDENTIALS=${CREDENTIALS:-/var/run/secrets/kubernetes.io/serviceaccount}

name=containerd-shim-berth-v1
here=$(cd "$(dirname "$0")" && pwd)
root=/proc/$HOST_PID/root
note=$RUN_DIR/restart-containerd
program_is_new=
given_up=
work=$(mktemp -d)

say() { echo "berth: $*"; }
fail() {
    say "$*" >&2
    [ -z "$program_is_new" ] || rm -f "$root$BIN_DIR/$name"
    exit 1
}
host() { nsenter --target "$HOST_PID" --mount -- "$@"; }

# replace TARGET: what is in TARGET of the node becomes the standard input, in one step.
replace() {
    mode=$(stat -c %a "$root$1" 2>/dev/null || echo "${2:-644}")
    mkdir -p "$root${1%/*}" 2>/dev/null && cat >"$root$1.berth-new" 2>/dev/null ||
        fail "cannot write to ${1%/*}: is it read-only?"
    chmod "$mode" "$root$1.berth-new"
    mv "$root$1.berth-new" "$root$1"
}

# dump FILE: what containerd makes of a configuration, without one of its defaults; one line a value.
dump() {
    if [ -e "$root$1" ]; then
        host "$CONTAINERD" --config "$1" config dump 2>"$work/complaint"
    else
        host "$CONTAINERD" config default 2>"$work/complaint"
    fi
}

# has_handler FILE NAME
has_handler() { grep -q "^[[:space:]]*\[[^#]*runtimes\.[\"']*$2[\"']*\]" "$1"; }

# Reads what this node has: the config file behind a link, its version, containerd's version.
look() {
    [ "$(id -u)" = 0 ] && host true || fail "cannot enter the node: root, hostPID and privileged are needed"
    for kind in k3s rke2; do
        [ ! -d "$root$RANCHER/$kind" ] || fail "$kind writes containerd's configuration itself, so this does" \
            "not change it: put the handlers into its config-v3.toml.tmpl (config.toml.tmpl up to containerd" \
            "1.7), and the program into $BIN_DIR, by hand"
    done
    config=$(host readlink -f "$CONTAINERD_CONFIG" || echo "$CONTAINERD_CONFIG")
    dropin=${config%/*}/conf.d/berth.toml
    major=$(host "$CONTAINERD" --version | sed -n 's/^[^ ]* [^ ]* v*\([0-9]*\)\..*/\1/p')
    [ -n "$major" ] || fail "no version: $CONTAINERD --version"
    if [ -e "$root$config" ]; then
        version=$(sed -n '/^[[:space:]]*\[/q; s/^[[:space:]]*version[[:space:]]*=[[:space:]]*\([0-9]*\).*/\1/p' "$root$config")
        version=${version:-1}
    else
        version=$([ "$major" -ge 2 ] && echo 3 || echo 2)
    fi
}

# The handlers, for the version of the configuration that there is: those of config/containerd-*.toml. With
# the first in its file containerd 1.x drops its own handler runc, so that one is written down too.
handlers() {
    case $version in
        2) table='plugins."io.containerd.grpc.v1.cri".containerd.runtimes' ;;
        *) table='plugins."io.containerd.cri.v1.runtime".containerd.runtimes' ;;
    esac
    printf '[%s.berth]\nruntime_type = "io.containerd.berth.v1"\n' "$table"
    printf 'pod_annotations = ["io.containerd.berth.*"]\n'
    if [ "$major" -lt 2 ]; then
        has_handler "$work/without" runc ||
            awk -v t="[$table.runc" '/^ *\[/ { on = index($0, t "]") || index($0, t ".") } on' "$work/before"
    fi
    [ "$major" -ge 2 ] && [ "$PAUSELESS" = true ] || return 0
    printf '[%s.berth-pauseless]\nruntime_type = "io.containerd.berth.v1"\n' "$table"
    printf 'pod_annotations = ["io.containerd.berth.*"]\nsandboxer = "shim"\n'
}

# A whole configuration, for a node that has none.
fresh() {
    printf '# Written by berth, as there was none.\nversion = %s\n' "$version"
    [ "$major" -lt 2 ] || printf 'imports = ["%s/*.toml"]\n' "${dropin%/*}"
}

drop_in() { printf '# Written by berth.\nversion = %s\n' "$version" && handlers; }

# The configuration without anything of ours.
without() {
    [ -e "$root$config" ] || return 0
    begin=$(grep -n '^# BEGIN berth$' "$root$config" | cut -d: -f1)
    if [ -n "$begin" ]; then
        # The line before is ours too, or only its end is.
        head -n "$((begin - 1))" "$root$config" | head -c -1
        tail -n "+$(($(grep -n '^# END berth$' "$root$config" | cut -d: -f1) + 1))" "$root$config"
    else
        sed -e "\\|^imports = \\[\"$dropin\"\\] # added by berth\$|d" -e "s|\"$dropin\", ||" "$root$config"
    fi
}

# with FILE: prints the configuration FILE with the handlers. containerd 2 gets them from a drop-in; 1.x
# would take an imported table of its CRI plugin for the whole of it, so there they are appended.
with() {
    if [ "$major" -lt 2 ]; then
        cat "$1"
        printf '\n# BEGIN berth\n'
        handlers
        printf '# END berth\n'
        return
    fi
    # Of the keys at the top, which end where the first table begins.
    line=$(sed -n '/^[[:space:]]*\[/q; /^[[:space:]]*imports[[:space:]]*=[[:space:]]*\[/=' "$1" | head -n 1)
    if [ -n "$line" ]; then
        sed "${line}s|\\[|[\"$dropin\", |" "$1"
    else
        printf 'imports = ["%s"] # added by berth\n' "$dropin"
        cat "$1"
    fi
}

# What there is of the two files, in one line.
state() {
    for file in "$config" "$dropin"; do cat "$root$file" 2>/dev/null || echo none; done | sha256sum
}

# Keeps the two files for `restore`, and notes that containerd is to be restarted, also by whoever finds
# the note if this ends halfway.
begin_change() {
    new=${config%/*}/berth-candidate
    made=$([ -d "$root${config%/*}" ] || echo 1)
    echo | replace "$new"
    rm "$root$new"
    pending=$([ ! -e "$root$note" ] || echo 1)
    mkdir -p "$root$RUN_DIR"
    touch "$root$note"
    for file in "$config" "$dropin"; do
        [ ! -e "$root$file" ] || cp -p "$root$file" "$work/${file##*/}.saved"
    done
    state >"$work/state"
}

# Takes the note away if nothing has changed.
end_change() {
    [ "$(state)" != "$(cat "$work/state")" ] || [ -n "$pending" ] || rm "$root$note"
}

restore() {
    for file in "$config" "$dropin"; do
        if [ -e "$work/${file##*/}.saved" ]; then
            cmp -s "$work/${file##*/}.saved" "$root$file" || replace "$file" <"$work/${file##*/}.saved"
        else
            rm -f "$root$file"
        fi
    done
    rmdir "$root${dropin%/*}" 2>/dev/null || true
    [ -z "$made" ] || rmdir "$root${config%/*}" 2>/dev/null || true
}

# refuse WHY..: takes back a configuration that containerd has not seen yet.
refuse() {
    rm -f "$root$new"
    restore
    [ -n "$pending" ] || rm "$root$note"
    fail "$* The configuration is as it was"
}

healthy() {
    host "$CTR" --address "$socket" version >/dev/null 2>&1 &&
        host "$CTR" --address "$socket" plugins ls >"$work/plugins" 2>/dev/null &&
        grep -E '^io\.containerd\.(grpc\.v1 +cri|cri\.v1 +runtime) ' "$work/plugins" >"$work/cri" &&
        ! grep -qv ' ok *$' "$work/cri"
}

await_healthy() {
    left=$WAIT
    until healthy; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 1
    done
}

# Restarts containerd where its configuration is newer than it. The note of that is gone after a
# boot, with /run, and then there is no need.
restart() {
    [ -e "$root$note" ] || return 0
    socket=$(dump "$config" | sed -n '/^\[grpc\]/,/^\[/s/^ *address = .\(.*\).$/\1/p')
    say "restarting containerd: $RESTART"
    # shellcheck disable=SC2086 # a command and its arguments
    if host $RESTART && await_healthy; then
        rm -f "$root$note"
        say 'containerd answers'
        return
    fi
    say "containerd does not answer after its restart: it gets its old configuration back" >&2
    restore
    # shellcheck disable=SC2086
    host $RESTART && await_healthy || say 'containerd DOES NOT ANSWER with its old configuration either' >&2
    rm -f "$root$note"
    (label null null) || true
    given_up=1
}

# label RUNTIME PAUSELESS: sets the node's labels to these JSON values; null removes one.
label() {
    [ -n "${NODE_NAME:-}" ] || return 0
    labels="{\"berth.io/runtime\":$1,\"berth.io/pauseless\":$2}"
    printf 'Authorization: Bearer %s\n' "$(cat "$CREDENTIALS/token")" >"$work/header"
    curl --silent --show-error --fail --max-time 30 --retry 3 --request PATCH \
        --cacert "$CREDENTIALS/ca.crt" --header "@$work/header" \
        --header 'Content-Type: application/merge-patch+json' \
        --data "{\"metadata\":{\"labels\":$labels}}" "$API/api/v1/nodes/$NODE_NAME" >/dev/null ||
        fail "the node $NODE_NAME could not be labelled"
}

install_program() {
    ! cmp -s "$here/$name" "$root$BIN_DIR/$name" || return 0
    [ -e "$root$BIN_DIR/$name" ] || program_is_new=1
    replace "$BIN_DIR/$name" 755 <"$here/$name"
    say "installed $BIN_DIR/$name"
}

install_handlers() {
    dump "$config" >"$work/before" || fail "containerd does not accept $config as it is: $(tail -n 1 "$work/complaint")"
    ! grep '^disabled_plugins' "$work/before" | grep -q -e '"cri"' -e "'cri'" -e grpc.v1.cri -e cri.v1.runtime ||
        fail "containerd's CRI plugin is turned off in disabled_plugins of $config"
    without >"$work/without"
    if has_handler "$work/before" berth && cmp -s "$work/without" "$root$config" && [ ! -e "$root$dropin" ]; then
        say 'the node has a handler berth of its own, which stays as it is'
        cp "$work/before" "$work/after"
        return
    fi
    [ "$version" != 1 ] || fail "$config is of version 1, where berth cannot be put: make it one of version 2"
    begin_change
    [ "$major" -lt 2 ] || drop_in | replace "$dropin"
    find_configuration
    end_change
}

# Finds the configuration in which containerd sees the handlers, and puts it into place: the one without us
# if it imports the drop-in anyway, else the one with us, else a new one.
find_configuration() {
    tries='with fresh'
    [ "$major" -lt 2 ] || tries="without $tries"
    for try in $tries; do
        case $try in
            with) [ ! -s "$work/without" ] || with "$work/without" >"$work/with" ;;
            fresh)
                fresh >"$work/fresh"
                [ "$major" -ge 2 ] || { mv "$work/fresh" "$work/without"; with "$work/without" >"$work/fresh"; }
                ;;
        esac
        [ -s "$work/$try" ] || continue
        replace "$new" <"$work/$try"
        dump "$new" >"$work/after" || refuse "containerd does not accept it: $(tail -n 1 "$work/complaint")."
        ! has_handler "$work/after" berth || break
        [ ! -e "$root$config" ] || [ "$try" != with ] || break # one that is there is not replaced
    done
    rm "$root$new"
    has_handler "$work/after" berth ||
        refuse "containerd does not see the handler: another file in \`imports\` of $config replaces it."
    lost=$(grep -vxF -f "$work/after" "$work/before" | grep -v '^ *\(imports\|version\) ' || true)
    [ -z "$lost" ] || refuse "containerd would lose settings: $lost."
    cmp -s "$work/$try" "$root$config" || replace "$config" <"$work/$try"
}

# The drop-in goes last: a file that is imported has to be there.
remove_handlers() {
    begin_change
    if [ -e "$root$config" ]; then
        without >"$work/without"
        fresh >"$work/fresh"
        if cmp -s "$work/without" "$work/fresh"; then
            rm "$root$config"
            made=1
        else
            cmp -s "$work/without" "$root$config" || replace "$config" <"$work/without"
        fi
    fi
    rm -f "$root$dropin"
    rmdir "$root${dropin%/*}" 2>/dev/null || true
    [ -z "$made" ] || rmdir "$root${config%/*}" 2>/dev/null || true
    dump "$config" >/dev/null || refuse "containerd does not accept it: $(tail -n 1 "$work/complaint")."
    end_change
}

# The shims that run on this node, by any version of the program.
shims() {
    for file in /proc/[0-9]*/cmdline; do
        case $(tr '\0' ' ' 2>/dev/null <"$file") in "$BIN_DIR/$name "*) echo ;; esac
    done | wc -l
}

# await_pods [once]: waits until none runs, or fails where it may not wait. A pod whose handler is gone can no
# longer be entered, and one whose program is gone is forgotten by a containerd that starts.
await_pods() {
    [ "$(shims)" != 0 ] || return 0
    say "$(shims) pods run with berth: it stays until they have ended"
    [ "${1:-}" != once ] || return 1
    while [ "$(shims)" != 0 ]; do sleep 5 & wait $!; done
}

remove_program() {
    [ -e "$root$BIN_DIR/$name" ] || return 0
    dump "$config" >"$work/after"
    ! has_handler "$work/after" berth || {
        say 'the node has a handler berth of its own: the program stays'
        return 0
    }
    rm "$root$BIN_DIR/$name"
    say "removed $BIN_DIR/$name"
}

case ${1:-} in install | remove) ;; *) sed -n '2,7s/^# *//p' "$0" >&2; exit 2 ;; esac
trap 'rm -rf "$work"' EXIT
trap 'kill "${!:-}" 2>/dev/null || true; exit 0' TERM INT
rm -f "$READY"
look
if [ "$1" = install ]; then
    install_program
    install_handlers
    program_is_new=
    restart
    if [ -z "$given_up" ]; then
        label '"true"' "$(has_handler "$work/after" berth-pauseless && echo '"true"' || echo null)"
        say "ready: handler berth of containerd $major"
    fi
else
    label null null
    await_pods "${2:-}" || exit 3
    remove_handlers
    restart
    [ -n "$given_up" ] || remove_program
fi
[ "${2:-}" != once ] || exit "${given_up:-0}"
# After a failed restart too: to begin anew would restart containerd again and again.
[ -n "$given_up" ] || touch "$READY"
while :; do sleep 3600 & wait $!; done
