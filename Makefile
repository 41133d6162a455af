# One file to learn them by: `make help`. CI runs `check` and `test`, see .ci/run.
PREFIX ?= /usr/local
export DESTDIR SYSCONFDIR
# Words that choose among the containerd tests, such as TEST='1.7 crun berth shim-killed', or among
# those of `make cgroup2`: tests/cgroup2/main.rs.
TEST ?=
# Words and options for `make bench`, such as ARGS='io terminal --runtime crun': tests/bench/main.rs.
ARGS ?=

# How long `make soak` takes.
MINUTES ?= 10
# How long each fuzzer runs, and which.
SECONDS ?= 60
TARGET ?=

# cargo where rustup puts it; one static program, which runs on every distribution. The explicit
# target keeps the flags away from what runs only while building.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
export CARGO_BUILD_TARGET = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
export RUSTFLAGS = -C target-feature=+crt-static -C relocation-model=static
BUILT = $(or $(CARGO_TARGET_DIR),target)/$(CARGO_BUILD_TARGET)/release/containerd-shim-berth-v1

# Where `install`, `tarball` and `deb` lay out what they take, and leave what they make.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
STAGE = $(or $(CARGO_TARGET_DIR),target)/packages/berth-$(VERSION)-$(firstword $(subst -, ,$(CARGO_BUILD_TARGET)))

.DEFAULT_GOAL := build
.PHONY: help demo build check test cgroup2 bench bench-check fuzz soak pods install uninstall tarball deb stage clean
.PHONY: where

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: ## run a container with berth and look at it, step by step; as root; installs what is missing
	@packaging/demo.sh

build: ## the static program
	@packaging/setup.sh build
	cargo build --locked --release
	@! grep -q /ld-linux $(BUILT) || { echo "$(BUILT) is not static" >&2; exit 1; }
	@echo "built $(BUILT)"

check: ## format, lints, licences
	@packaging/setup.sh check
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test containerd --test clients --test documents --test cgroup2 --test bench -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings
	packaging/check-licences.sh

test: ## every test, with real containerds; as root; installs what is missing
	@packaging/setup.sh test
	tests/again.sh --test-threads=4 # most of the time they wait
	cargo test --locked --test containerd -- $(TEST)
	cargo test --locked --test clients
	cargo test --locked --test documents
	cargo test --locked --test cgroup2

cgroup2: ## the part of `make test` on a cgroup v2 host, such as TEST='crun stats::'; as root
	@packaging/setup.sh test
	cargo test --locked --test cgroup2 -- $(TEST)

bench: build ## what berth costs beside the stock shim, such as ARGS=io; as root
	@packaging/setup.sh test
	BERTH_TEST_SHIM=$$(realpath $(BUILT)) cargo test --quiet --locked --test bench -- $(ARGS)

bench-check: ## the same; fails when it misses a budget
	@$(MAKE) --no-print-directory bench ARGS='--check $(ARGS)'

fuzz: ## the fuzzers of tests/fuzz for SECONDS each (60), or one of them: TARGET=stdio_uri
	@packaging/setup.sh build
	tests/fuzz/run.sh $(SECONDS) $(TARGET)

soak: build ## a mixed load with faults for MINUTES (10), and what it leaves; as root
	@packaging/setup.sh test
	BERTH_TEST_SHIM=$$(realpath $(BUILT)) cargo test --locked --test containerd -- --soak=$(MINUTES) $(TEST)

pods: build ## what a pod costs: with the stock shim, berth, and berth without pause container; as root
	@packaging/setup.sh test
	BERTH_TEST_SHIM=$$(realpath $(BUILT)) cargo test --locked --test containerd -- --cost $(or $(TEST),2.x)

install: stage ## put the program into PREFIX/bin (/usr/local/bin), its configuration into /etc/berth; as root
	PREFIX=$(PREFIX) $(STAGE)/install.sh
	@echo "installed $(DESTDIR)$(PREFIX)/bin/containerd-shim-berth-v1"

uninstall: stage ## take away what `install` has put there, but for a configuration that was changed; as root
	PREFIX=$(PREFIX) $(STAGE)/install.sh --remove

tarball: stage ## the same tree, with install.sh, for machines without a compiler
	tar -C $(STAGE)/.. --owner=0 --group=0 --sort=name -czf $(STAGE).tar.gz $(notdir $(STAGE))
	@echo "built $(STAGE).tar.gz"

deb: stage ## a Debian package
	@packaging/setup.sh package
	packaging/deb.sh $(STAGE) $(dir $(STAGE))

# What gets installed.
stage: build
	@packaging/stage.sh $(BUILT) $(STAGE)

clean: ## remove what was built and fetched
	cargo clean

# Where `build` puts the program, for scripts.
where:
	@realpath -m $(BUILT)
