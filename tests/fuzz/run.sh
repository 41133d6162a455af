#!/bin/sh
# Fuzzes with every target, or with those that are named, each for so many seconds on all cores.
#   run.sh SECONDS [TARGET]...
# It begins with the samples in corpus/ and what earlier runs kept in target/fuzz/corpus. The input of a crash is left
# in target/fuzz/crashes; put into corpus/TARGET it is a test (src/fuzz.rs).
set -eu
cd "$(dirname "$0")"
seconds=$1
shift
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
# Not those of the static program; Rust's own checks are enough where no code is unsafe.
unset RUSTFLAGS CARGO_BUILD_TARGET
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/fuzz
export CARGO_TARGET_DIR
cargo fuzz build --fuzz-dir . --sanitizer none
[ $# -gt 0 ] || set -- $(cargo fuzz list --fuzz-dir .)
host=$(rustc -vV | sed -n 's/^host: //p')
for target; do
    found=$CARGO_TARGET_DIR/corpus/$target
    mkdir -p "$found" "$CARGO_TARGET_DIR/crashes"
    echo "fuzz: $target for $seconds s"
    "$CARGO_TARGET_DIR/$host/release/$target" -fork="$(nproc)" -max_total_time="$seconds" -timeout=10 \
        -artifact_prefix="$CARGO_TARGET_DIR/crashes/$target-" "$found" "corpus/$target" 2>&1 |
        { grep -aE 'panicked|SUMMARY|^#.* DONE|INFO: exiting' || true; } | tail -n 5
    if ls "$CARGO_TARGET_DIR/crashes/$target-"* >/dev/null 2>&1; then
        echo "fuzz: $target FAILED, see $CARGO_TARGET_DIR/crashes" >&2
        exit 1
    fi
done
