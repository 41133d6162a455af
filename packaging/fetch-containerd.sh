#!/bin/sh
# Brings the packaged containerd generations that the tests run against, gVisor's runsc, a CRIU for
# today's kernels, a newer runc, two Docker Engines and kustomize into
#   TARGET/containerd/{1.6,1.7,2.x,runsc,criu,runc,docker-26,docker-28,kustomize}/bin
# (TARGET: $CARGO_TARGET_DIR, else target), each containerd with its own ctr and stock shim, each engine
# with its client. Nothing is installed: the packages are downloaded
# through lists, a cache and a sources file of their own, and unpacked. What is there already is kept.
set -eu
cd "$(dirname "$0")/.."
dest=$(realpath -m "${CARGO_TARGET_DIR:-target}")/containerd
apt=$dest/apt
# DIRECTORY:PACKAGE:SUITE. Debian 12's own runsc is too old; the newer one of its backports is this. Its
# criu 3.17 fails on newer kernels ("Unexpected rt vDSO area bounds").
packages='1.6:containerd:bookworm 1.7:containerd:trixie 2.x:containerd:forky runsc:runsc:trixie
    criu:criu:forky runc:runc:forky docker-26:docker.io:trixie docker-28:docker.io:forky
    kustomize:kustomize:trixie'

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

private_apt_cache() {
    apt-cache -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State::Lists="$apt/lists" \
        -o Dir::Cache="$apt/cache" -o Dir::State::status=/dev/null "$@"
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

# split ENTRY: sets directory, package and suite.
split() {
    directory=${1%%:*}
    suite=${1##*:}
    package=${1#*:}
    package=${package%:*}
}

# The entry's program, which has the package's name but for Docker's, says its version.
version() {
    case $package in
        docker.io) "$dest/$directory/bin/docker" --version && "$dest/$directory/bin/dockerd" --version ;;
        kustomize) "$dest/$directory/bin/kustomize" version ;;
        *) "$dest/$directory/bin/$package" --version ;;
    esac
}

# libraries: prints the libraries that the entry's package needs, by package.
libraries() {
    apt_options=--recurse\ --no-recommends\ --no-suggests\ --no-conflicts\ --no-breaks\ --no-replaces
    # shellcheck disable=SC2086 # one word each
    private_apt_cache depends $apt_options --no-enhances "$package" | sed -n 's/^\(lib[^ ]*\)$/\1/p'
}

# unpack_apart: as unpack, for programs that want a newer C library than the machine's: with all their
# libraries beside them, in DIRECTORY/lib.
unpack_apart() {
    command -v patchelf >/dev/null || fail "patchelf is missing, which $package of $suite needs"
    work=$dest/.$directory
    rm -rf "$work"
    mkdir -p "$work/deb" "$work/new/bin" "$work/new/lib"
    # shellcheck disable=SC2046 # a word for each package
    (cd "$work" && private_apt download "$package/$suite" $(libraries | sed "s,\$,/$suite,")) \
        >"$apt/log" 2>&1 || { cat "$apt/log" >&2; fail "$package of $suite could not be downloaded"; }
    for deb in "$work"/*.deb; do dpkg -x "$deb" "$work/deb"; done
    find "$work/deb" \( -path '*-linux-*/lib*.so*' -o -path '*-linux-*/ld-linux*' \) \
        -exec cp -L -t "$work/new/lib" {} + 2>/dev/null || true # links into packages that are not here
    program=$(find "$work/deb/usr/sbin" "$work/deb/usr/bin" -name "$package" -type f | head -n 1)
    cp "$program" "$work/new/bin/$package"
    rm -rf "${dest:?}/$directory"
    mv "$work/new" "$dest/$directory"
    rm -rf "$work"
    linker=$(basename "$(patchelf --print-interpreter "$dest/$directory/bin/$package")")
    patchelf --set-interpreter "$dest/$directory/lib/$linker" --force-rpath \
        --set-rpath "$dest/$directory/lib" "$dest/$directory/bin/$package"
    version >/dev/null 2>&1 || fail "$package of $suite does not start here: $(version 2>&1)"
}

# unpack: leaves only the programs of the entry, in DIRECTORY/bin.
unpack() {
    case $package in criu | runc) unpack_apart; return ;; esac
    work=$dest/.$directory
    rm -rf "$work"
    mkdir -p "$work/deb"
    client=
    [ "$package" != docker.io ] || client=docker-cli/$suite
    # shellcheck disable=SC2086 # none or one word
    (cd "$work" && private_apt download "$package/$suite" $client) >"$apt/log" 2>&1 ||
        { cat "$apt/log" >&2; fail "$package of $suite could not be downloaded"; }
    for deb in "$work"/*.deb; do dpkg -x "$deb" "$work/deb"; done
    [ -z "$client" ] || mv "$work/deb/usr/sbin/dockerd" "$work/deb/usr/bin/"
    rm -rf "${dest:?}/$directory"
    mkdir -p "$dest/$directory"
    mv "$work/deb/usr/bin" "$dest/$directory/bin"
    rm -rf "$work"
    version >/dev/null 2>&1 || fail "$package of $suite does not start here: $(version 2>&1)"
}

missing=
for entry in $packages; do
    split "$entry"
    version >/dev/null 2>&1 || missing="$missing $entry"
done
if [ -n "$missing" ]; then
    suites=$(for entry in $missing; do echo "${entry##*:}"; done | sort -u)
    say "reading the package lists of $(echo "$suites" | tr '\n' ' ')"
    # shellcheck disable=SC2086 # one word per suite
    update_lists $suites
    for entry in $missing; do
        split "$entry"
        say "unpacking $package of Debian $suite"
        # Not every architecture has a runsc, nor every mirror a CRIU; without one its tests are skipped.
        (unpack) || case $package in containerd) exit 1 ;; esac
    done
    rm -rf "$apt"
fi
for entry in $packages; do
    split "$entry"
    say "$directory: $(version 2>/dev/null | head -n 1)"
done
