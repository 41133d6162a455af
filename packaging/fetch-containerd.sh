#!/bin/sh
# Brings the packaged containerd generations that the tests run against into
#   TARGET/containerd/{1.6,1.7,2.x}/bin      (TARGET: $CARGO_TARGET_DIR, else target)
# each with its own ctr and stock shim. Nothing is installed: the packages are downloaded through
# lists, a cache and a sources file of their own, and unpacked. What is there already is kept.
set -eu
cd "$(dirname "$0")/.."
dest=$(realpath -m "${CARGO_TARGET_DIR:-target}")/containerd
apt=$dest/apt
suites='1.6:bookworm 1.7:trixie 2.x:forky'

say() { echo "fetch-containerd: $*"; }
fail() { say "$*" >&2; exit 1; }

# The Debian mirror that this machine uses itself. An Ubuntu mirror does not carry Debian's suites,
# so there the address has to be given.
mirror() {
    [ -z "${DEBIAN_MIRROR:-}" ] || { echo "$DEBIAN_MIRROR"; return; }
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
        grep -v -e security -e backports | head -n 1
}

# apt-get with everything it reads and writes below $apt, but for the host's proxy and keys.
private_apt() {
    apt-get -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::Lists="$apt/lists" \
        -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=0 \
        -o Acquire::Languages=none "$@"
}

# update_lists SUITE..: describes these suites of the mirror to private_apt.
update_lists() {
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -e "$keys" ] || fail "$keys is missing: install debian-archive-keyring"
    uri=$(mirror)
    [ -n "$uri" ] || fail 'no Debian mirror known to apt: set DEBIAN_MIRROR to the address of one'
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    for suite; do echo "deb [signed-by=$keys] $uri $suite main"; done >"$apt/sources.list"
    private_apt update >"$apt/log" 2>&1 || { cat "$apt/log" >&2; fail 'apt-get update failed'; }
}

# runs VERSION: whether its containerd is there and starts.
runs() { "$dest/$1/bin/containerd" --version >/dev/null 2>&1; }

# unpack VERSION SUITE: leaves only the programs, in VERSION/bin.
unpack() {
    work=$dest/.$1
    rm -rf "$work"
    mkdir -p "$work/deb"
    (cd "$work" && private_apt download "containerd/$2") >"$apt/log" 2>&1 ||
        { cat "$apt/log" >&2; fail "containerd of $2 could not be downloaded"; }
    dpkg -x "$work"/containerd_*.deb "$work/deb"
    rm -rf "${dest:?}/$1"
    mkdir -p "$dest/$1"
    mv "$work/deb/usr/bin" "$dest/$1/bin"
    rm -rf "$work"
    runs "$1" || fail "containerd $1 does not start here: $("$dest/$1/bin/containerd" --version 2>&1)"
}

missing=
for entry in $suites; do runs "${entry%:*}" || missing="$missing $entry"; done
if [ -n "$missing" ]; then
    suite_names=$(for entry in $missing; do echo "${entry#*:}"; done)
    say "reading the package lists of $(echo "$suite_names" | tr '\n' ' ')"
    # shellcheck disable=SC2086 # one word per suite
    update_lists $suite_names
    for entry in $missing; do
        say "unpacking containerd ${entry%:*} of Debian ${entry#*:}"
        unpack "${entry%:*}" "${entry#*:}"
    done
    rm -rf "$apt"
fi
for entry in $suites; do
    say "${entry%:*}: $("$dest/${entry%:*}/bin/containerd" --version | cut -d' ' -f3)"
done
