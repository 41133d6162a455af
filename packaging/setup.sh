#!/bin/sh
# Installs what a Debian or Ubuntu machine lacks: packages, and a Rust toolchain where there is none
# or one older than Cargo.toml asks for. Does nothing where everything is there.
#   setup.sh build   to build berth
#   setup.sh check   to look at its format and lints too
#   setup.sh package to make the Debian package too
#   setup.sh demo    to run `make demo` too
#   setup.sh test    to run the tests too, with the containerds that they need
set -eu
cd "$(dirname "$0")/.."
PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/sbin:/sbin

say() { echo "setup: $*"; }
fail() { say "$*" >&2; exit 1; }

# program:package; what is on PATH from elsewhere is left alone.
build='cc:gcc make:make'
demo='containerd:containerd ctr:containerd runc:runc busybox:busybox-static ps:procps'
package='dh:debhelper dpkg-buildpackage:dpkg-dev'
test='crun:crun tar:tar mkfs.erofs:erofs-utils mkfs.ext4:e2fsprogs fuse-overlayfs:fuse-overlayfs
    fusermount3:fuse3 strace:strace patchelf:patchelf setpriv:util-linux curl:curl strip:binutils
    zsh:zsh fish:fish man:man-db mandoc:mandoc python3:python3 /usr/lib/cni/ptp:containernetworking-plugins'

# Boots the cgroup v2 host of the tests. Only Debian has it, so without it that part is skipped.
second_kernel=user-mode-linux

# Prints the packages of those programs that are missing.
missing() {
    for entry; do command -v "${entry%:*}" >/dev/null || echo "${entry#*:}"; done
    # A static program needs the C library's archive, which has no program of its own.
    [ -n "$(find /usr/lib -name libc.a 2>/dev/null | head -n 1)" ] || echo libc6-dev
}

# install PACKAGE..: reads the package lists once, and only when something is to be installed.
install() {
    [ "$(id -u)" = 0 ] || fail "missing packages: $*. Install them, or run this as root"
    command -v apt-get >/dev/null || fail "missing: $*. Install them: there is no apt-get here"
    if [ -z "${lists_read:-}" ]; then
        say 'reading the package lists'
        quietly apt-get -q update
        lists_read=1
    fi
    say "installing $*"
    DEBIAN_FRONTEND=noninteractive quietly apt-get -q install -y --no-install-recommends "$@"
}

# Shows what a command prints only if it fails.
quietly() {
    output=$("$@" 2>&1) || { printf '%s\n' "$output" >&2; fail "\`$*\` failed"; }
}

# at_least WANTED FOUND: whether version FOUND is as new as WANTED.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

rust_is_there() {
    command -v cargo >/dev/null && found=$(rustc --version 2>/dev/null | cut -d' ' -f2) &&
        at_least "$wanted" "$found"
}

# The version that apt would install of a package; empty where it has none.
candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9][^ ]*\)$/\1/p'; }

install_rust() {
    if at_least "$wanted" "$(candidate rustc)" && at_least "$wanted" "$(candidate cargo)"; then
        install rustc cargo
    elif [ -n "$(candidate rustup)" ]; then
        install rustup
        say 'installing the stable Rust toolchain with rustup'
        quietly rustup default stable
    else
        command -v curl >/dev/null || install curl ca-certificates
        say 'installing the stable Rust toolchain with the installer of rustup.rs'
        quietly sh -c 'curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --profile default --no-modify-path'
    fi
    rust_is_there || fail "Rust $wanted or newer is needed; found: ${found:-none}"
}

install_second_kernel() {
    (install "$second_kernel") ||
        say "NO $second_kernel: NOTHING WILL BE TESTED ON CGROUP V2 on this machine" >&2
}

# The two parts of the toolchain that only `make check` needs.
install_lints() {
    if command -v rustup >/dev/null && rustup show active-toolchain >/dev/null 2>&1; then
        say 'adding rustfmt and clippy to the toolchain'
        quietly rustup component add rustfmt clippy
    else
        install rustfmt rust-clippy
    fi
}

case ${1:-} in
    build | check) programs=$build ;;
    package) programs="$build $package" ;;
    demo) programs="$build $demo" ;;
    test) programs="$build $package $demo $test" ;;
    *) sed -n '2,8s/^# *//p' "$0" >&2; exit 2 ;;
esac
# shellcheck disable=SC2086 # a word for each program
packages=$(missing $programs | sort -u)
# shellcheck disable=SC2086
[ -z "$packages" ] || install $packages
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
rust_is_there || install_rust
[ "$1" != check ] || { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 ||
    install_lints
[ "$1" != test ] || command -v linux.uml >/dev/null || install_second_kernel
[ "$1" != test ] || packaging/fetch-containerd.sh
say "ready: Rust $found"
