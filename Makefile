# SPDX-License-Identifier: GPL-2.0-only
# The front door: everything the repository can build, run and check.
#
# Heavy things live in $XDG_CACHE_HOME/kvm-clock-guest (see scripts/lib.sh), outputs in build/.
# KDIR=/path/to/tree uses a kernel of your own instead of the one in the cache.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

KDIR ?=
override KDIR := $(if $(KDIR),$(abspath $(KDIR)))
kdir_option := $(if $(KDIR),--kdir '$(KDIR)')
# The test host whose CPU scales a guest's TSC.
SCALING ?=
scaling_option := $(if $(SCALING),--scaling)
# QEMU for guests inside the test host; never by a variable of the environment.
QEMU :=
qemu_option := $(if $(QEMU),--qemu)
# Kernels that look closer at the module; never by a variable of the environment.
DEBUG :=
debug_option := $(if $(DEBUG),--debug)
# Debian's own kernel; never by a variable of the environment.
DEBIAN :=
debian_option := $(if $(DEBIAN),--debian)
# What fuzzes on this machine.
FUZZ :=
fuzz_option := $(if $(FUZZ),--fuzz)
# Kernels to be measured.
BENCH :=
bench_option := $(if $(BENCH),--bench)
# What looks at the page of a report.
BROWSER :=
browser_option := $(if $(BROWSER),--browser)
# Known only after setup, hence asked for in the recipes.
kdir = $(if $(KDIR),'$(KDIR)',"$$(scripts/env kdir)")

CARGO := scripts/env -- cargo
rust_files = $$(find rust tools samples -name '*.rs' ! -name '*generated*' 2>/dev/null)
# A page is as old as the last change to what it tells of, where git knows it.
page_date = $(addprefix --date ,$(shell git log -1 --format=%cs -- tools/clockguest 2>/dev/null))
# Where below build/ the module for this kernel goes.
MODULE := module
# $(call kbuild,FOLDER,ARGUMENTS): build the module into build/FOLDER.
kbuild = mkdir -p build/$(1) && \
	scripts/env --kdir $(kdir) -- $(MAKE) -C $(kdir) M='$(CURDIR)' MO='$(CURDIR)/build/$(1)' $(2)

.PHONY: help
help: ## this text
	@echo "kvm-clock-guest: a KVM guest's TSC and kvmclock, saved and restored as one"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  KDIR=/path/to/tree   use a kernel tree of your own (in place, or its O= folder)"
	@echo "  RUN='command'        what 'make vm' runs; without it, a shell"
	@echo "  SCALING=1            'make vm' and 'make setup' with a CPU that scales a guest's TSC"
	@echo "  QEMU=1               'make setup' with the two QEMUs that 'make qemu-check' compares"
	@echo "  SECONDS=N            how long 'make fuzz' gives each target ($(SECONDS))"
	@echo "  DEBUG=1              'make setup' with the kernels of 'make check-debug'"
	@echo "  DEBIAN=1             'make setup' with the kernel of 'make check-debian'"
	@echo "  CYCLES=N             how often 'make demo' saves and restores ($(CYCLES))"

# Enough to see the difference; the promise is tested with more.
CYCLES ?= 20

.PHONY: demo
demo: modules tools ## the main job: a guest's clocks over pause, snapshot and migration
	@rm -f build/demo/demo.json; \
	tools/vm/run $(kdir_option) --timeout 1800 --results build/demo \
		'target/release/clockguest demo --cycles $(CYCLES) --json-file build/demo/demo.json'; \
	status=$$?; \
	if [[ -e build/demo/demo.json ]]; then \
		if page=$$(target/release/clockguest report --out build/report build/demo/demo.json); then \
			echo "report: $$page"; \
		else \
			status=1; \
		fi; \
	fi; \
	exit $$status

.PHONY: check
check: browser_option := --browser
check: setup ## every test; the last line counts them
	@scripts/check $(kdir_option)

.PHONY: check-scaling
check-scaling: scaling_option := --scaling
check-scaling: setup ## the tests in a test host whose CPU scales a guest's TSC (5 min)
	@scripts/check $(kdir_option) scaling

.PHONY: check-intel
check-intel: intel_option := --intel
check-intel: setup ## the tests that one CPU is enough for, on an emulated Intel CPU (4 min)
	@scripts/check $(kdir_option) intel

.PHONY: check-migrations
check-migrations: scaling_option := --scaling
check-migrations: setup ## all migrations between two emulated hosts, and live updates (10 min)
	@scripts/check $(kdir_option) migrations

.PHONY: qemu-check
qemu-check: qemu_option := --qemu
qemu-check: setup ## Linux guests in QEMU, stock and with samples/qemu (15 min; first 3 to build it)
	@scripts/check $(kdir_option) qemu

.PHONY: check-debug
check-debug: debug_option := --debug
check-debug: scaling_option := --scaling
check-debug: setup ## the test host's tests, longer, on kernels with KASAN, lockdep, KCSAN (80 min; first 30 to build)
	@scripts/check $(kdir_option) debug kcsan

.PHONY: bench
bench: bench_option := --bench
bench: tools ## what it costs, in instructions of the test host (5 min; first 12 min to build its kernels)
	@$(MAKE) KDIR="$$(scripts/env kdir-bench)" MODULE=module-bench modules
	@tools/bench/run

.PHONY: check-debian
check-debian: debian_option := --debian
check-debian: setup ## the test host's tests on Debian's own kernel, with KVM patched out of tree (12 min; first 10 to build)
	@scripts/check $(kdir_option) debian

.PHONY: bench-arithmetic
bench-arithmetic: setup ## the arithmetic's instructions and ns beside the kernel's C, on this machine (1 min)
	@scripts/get-packages valgrind
	@tools/bench/arithmetic/run $(kdir_option)

# Longer finds more: each target goes on from what it reached before.
SECONDS ?= 60

.PHONY: fuzz
fuzz: fuzz_option := --fuzz
fuzz: setup ## coverage-guided fuzzing on this machine: arithmetic, validation, streams (7 min)
	@tools/fuzz/run --seconds $(SECONDS)

.PHONY: check-all
check-all: scaling_option := --scaling
check-all: intel_option := --intel
check-all: qemu_option := --qemu
check-all: debug_option := --debug
check-all: browser_option := --browser
check-all: debian_option := --debian
check-all: setup ## every test there is: check, check-scaling, check-intel, check-migrations, qemu-check, check-debug, check-debian, check-series
	@scripts/check $(kdir_option) standard scaling intel migrations qemu debug kcsan debian series

.PHONY: vm
vm: modules tools ## the test host: a shell in it, or RUN='command' (tools/vm/run --help)
	@tools/vm/run $(kdir_option) $(scaling_option) $(if $(RUN),'$(subst ','\'',$(RUN))')

.PHONY: setup
setup: ## install and build all that is missing
	@scripts/setup $(kdir_option) $(scaling_option) $(intel_option) $(qemu_option) $(debug_option) $(fuzz_option) $(bench_option) $(browser_option) $(debian_option)

.PHONY: modules
modules: setup ## kvm_clock_guest.ko, in build/module
	@$(call kbuild,$(MODULE),modules) >&2
	@test -e build/$(MODULE)/kvm_clock_guest.ko || { echo "error: Kbuild made no build/$(MODULE)/kvm_clock_guest.ko" >&2; exit 1; }

.PHONY: tools
tools: setup ## the clockguest tool and the tests, in target/release
	@$(CARGO) build --release --locked --workspace --bins

.PHONY: selftests
selftests: setup ## the kernel's own KVM selftests that concern clocks
	@scripts/build-kvm-selftests $(if $(KDIR),'$(KDIR)')

.PHONY: fmt
fmt: setup ## format all Rust sources
	@scripts/env -- rustfmt --edition 2021 $(rust_files)

.PHONY: fmt-check
fmt-check: setup ## fail if 'make fmt' would change something
	@scripts/env -- rustfmt --edition 2021 --check $(rust_files)

.PHONY: clippy
clippy: setup ## lint the module (CLIPPY=1) and the tools; warnings are errors
	@$(call kbuild,clippy,CLIPPY=1 KRUSTFLAGS=-Dwarnings modules)
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: prove
prove: setup ## prove the arithmetic with z3 (1 min); tools/prove/prove --help
	@tools/prove/prove

.PHONY: doc
doc: setup ## rustdoc of the crates, in target/doc
	@RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items

.PHONY: man
man: tools ## man pages of clockguest, and shell completion, in build/man and build/completion
	@rm -rf build/man build/completion && mkdir -p build/completion
	@target/release/clockguest man --to build/man $(page_date)
	@target/release/clockguest completion bash >build/completion/clockguest
	@target/release/clockguest completion zsh >build/completion/_clockguest
	@target/release/clockguest completion fish >build/completion/clockguest.fish
	@echo "read: man build/man/clockguest-cycle.1    complete, in this shell: source build/completion/clockguest" >&2
	@echo "install: build/man/* to share/man/man1; build/completion/* to share/bash-completion/completions," \
		"share/zsh/site-functions (_clockguest), share/fish/vendor_completions.d (.fish)" >&2

.PHONY: docs
docs: doc man ## all documentation as one set of pages, in build/docs; warnings and dead links are errors
	@scripts/build-docs
	@echo "read: build/docs/index.html" >&2

.PHONY: check-unchanged
check-unchanged: setup ## prove that KVM without the option compiles to what it was (3 min)
	@scripts/check-unchanged

.PHONY: series
series: setup ## what would be posted for Linux, hook, module, documentation and tests, in build/series
	@scripts/make-series

.PHONY: check-series
check-series: setup ## apply it to Linux 7.3, build it with the option m, y and n, boot that (15 min)
	@scripts/check $(kdir_option) series

.PHONY: patch
patch: ## apply the hook series to the tree in KDIR
	@$(if $(KDIR),scripts/patch-tree '$(KDIR)',echo "usage: make KDIR=/path/to/tree patch" >&2; exit 2)

.PHONY: clean
clean: ## remove what was built in this folder
	@rm -rf build target

.PHONY: distclean
distclean: clean ## remove the cache as well
	@cache=$$(scripts/env cache); \
	if [[ -e $$cache ]]; then du -sh "$$cache" | sed 's/^/removing /'; rm -rf "$$cache"; fi
