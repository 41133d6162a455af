#!/bin/sh
# Installs berth from the tree that this file is in, or removes it. No process is started, stopped or
# told of it: the program is replaced by rename, and what runs goes on with the one it has.
#   install.sh            or install.sh --remove
#   PREFIX      where the program goes: PREFIX/bin (/usr/local); it has to be on containerd's PATH
#   SYSCONFDIR  where the configuration goes: SYSCONFDIR/berth (/etc)
#   DESTDIR     put before both
# A configuration that is there is kept, and one that was changed is not removed.
set -eu
cd "$(dirname "$0")"
prefix=${DESTDIR:-}${PREFIX:-/usr/local}
settings=${DESTDIR:-}${SYSCONFDIR:-/etc}/berth
program=bin/containerd-shim-berth-v1

# put FILE TARGET: in one step, whoever has TARGET open or runs it.
put() {
    mkdir -p "${2%/*}"
    cp "$1" "$2.berth-new"
    chmod "$(stat -c %a "$1")" "$2.berth-new"
    mv "$2.berth-new" "$2"
}

# The number of pods and containers that run with the program.
shims() {
    for file in /proc/[0-9]*/cmdline; do
        case $(tr '\0' ' ' 2>/dev/null <"$file") in "$prefix/$program "*) echo ;; esac
    done | wc -l
}

case ${1:-} in
    '')
        find bin share -type f | while read -r file; do put "$file" "$prefix/$file"; done
        mkdir -p "$settings/presets"
        [ -e "$settings/config.toml" ] || put etc/berth/config.toml "$settings/config.toml"
        ;;
    --remove)
        find bin share -type f | while read -r file; do rm -f "$prefix/$file"; done
        rm -rf "$prefix/share/doc/berth"
        ! cmp -s etc/berth/config.toml "$settings/config.toml" || rm "$settings/config.toml"
        rmdir "$settings/presets" "$settings" 2>/dev/null || true
        [ "$(shims)" = 0 ] || echo "install: $(shims) shims of berth run on. Let containers end before" \
            'containerd is restarted: without the program it no longer knows them' >&2
        ;;
    *)
        sed -n '2,9s/^# *//p' "$0" >&2
        exit 2
        ;;
esac
