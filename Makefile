# SPDX-License-Identifier: GPL-2.0-only
# Builds, runs and checks everything in the repository. A target with ## is listed by `make help`, the others in
# CONTRIBUTING.rst.
#
# Toolchain, kernels and emulators are in $XDG_CACHE_HOME/kvm-clock-guest (see scripts/lib.sh), outputs in build/.
# KDIR=/path/to/tree uses that kernel instead of the one in the cache.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

KDIR ?=
override KDIR := $(if $(KDIR),$(abspath $(KDIR)))
kdir_option := $(if $(KDIR),--kdir '$(KDIR)')
# SCALING=1: the test host has a CPU that scales a guest's TSC.
SCALING ?=
scaling_option := $(if $(SCALING),--scaling)
# What 'make setup' makes beside what the goals need. These come from the command line only, never from the environment.
# QEMU=1: the QEMUs that run guests inside the test host. DEBUG=1: kernels with KASAN, lockdep and KCSAN.
# DEBIAN=1: Debian's own kernel. FUZZ=1: cargo-fuzz. BENCH=1: the kernels that 'make bench' measures.
# BROWSER=1: the browser that tests the page of a report. INTEL=1: Bochs.
QEMU :=
DEBUG :=
DEBIAN :=
FUZZ :=
BENCH :=
BROWSER :=
INTEL :=
# $(call if_goal,OPTION,GOALS,VALUE): OPTION if one of GOALS is to be made, or if VALUE is set.
if_goal = $(if $(filter $(2),$(MAKECMDGOALS))$(3),$(1))
checks := check check-scaling check-intel check-migrations check-qemu check-debug check-debian check-series check-all
setup_options = $(kdir_option) \
	$(call if_goal,--host,setup demo vm bench $(checks)) \
	$(call if_goal,--prove,setup prove check check-all) \
	$(call if_goal,--selftests,setup $(checks)) \
	$(call if_goal,--browser,check check-all,$(BROWSER)) \
	$(call if_goal,--intel,check-intel check-all,$(INTEL)) \
	$(call if_goal,--qemu,check-qemu check-all,$(QEMU)) \
	$(call if_goal,--debug,check-debug check-all,$(DEBUG)) \
	$(call if_goal,--debian,deb check-debian check-all,$(DEBIAN)) \
	$(call if_goal,--fuzz,fuzz,$(FUZZ)) \
	$(call if_goal,--bench,bench,$(BENCH))
# Known only after setup, so each recipe asks for it.
kdir = $(if $(KDIR),'$(KDIR)',"$$(scripts/env kdir)")

CARGO := scripts/env -- cargo
rust_files = $$(find rust tools samples -name '*.rs' ! -name '*generated*' 2>/dev/null)
# A man page has the date of the last change to clockguest, if git knows it.
page_date = $(addprefix --date ,$(shell git log -1 --format=%cs -- tools/clockguest 2>/dev/null))
# The folder below build/ for the module.
MODULE := module
# $(call kbuild,FOLDER,ARGUMENTS): build the module into build/FOLDER.
kbuild = mkdir -p build/$(1) && \
	scripts/env --kdir $(kdir) -- $(MAKE) -C $(kdir) M='$(CURDIR)' MO='$(CURDIR)/build/$(1)' $(2)

.PHONY: help
help: # prints what it lists
	@echo "kvm-clock-guest: save and restore a KVM guest's TSC and kvmclock as one"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "CONTRIBUTING.rst has the variables (KDIR, RUN, ...) and the rarer targets."

# begin: times

# Enough to show the difference; the tests use more.
CYCLES ?= 20

.PHONY: demo
demo: modules clockguest ## measure a guest's clocks over pauses and moves (1 min)
	@mkdir -p build/demo; rm -f build/demo/demo.json; \
	tools/vm/host run $(kdir_option) --timeout 1800 --results build/demo \
		'target/release/clockguest demo --cycles $(CYCLES) --json-file build/demo/demo.json' | tee build/demo/demo.txt; \
	status=$${PIPESTATUS[0]}; \
	if [[ -e build/demo/demo.json ]]; then \
		if page=$$(target/release/clockguest report --out build/report build/demo/demo.json); then \
			echo "report: $$page"; \
		else \
			status=1; \
		fi; \
	fi; \
	exit $$status

.PHONY: check
check: setup ## run the tests that every change must pass (7 min)
	@scripts/check $(kdir_option)

.PHONY: check-scaling
check-scaling: setup ## run the tests on a CPU that scales the TSC (5 min)
	@scripts/check $(kdir_option) scaling

.PHONY: check-intel
check-intel: setup ## run the tests on an emulated Intel CPU (4 min)
	@scripts/check $(kdir_option) intel

.PHONY: check-migrations
check-migrations: setup ## move guests between hosts, update kernels (10 min)
	@scripts/check $(kdir_option) migrations

.PHONY: check-qemu
check-qemu: setup ## test Linux guests in QEMU (20 min)
	@scripts/check $(kdir_option) qemu

.PHONY: check-debug
check-debug: setup ## run the tests with KASAN, lockdep and KCSAN (80 min)
	@scripts/check $(kdir_option) debug kcsan

.PHONY: check-debian
check-debian: setup ## run the tests on Debian's own kernel (12 min)
	@scripts/check $(kdir_option) debian

.PHONY: check-series
check-series: setup ## apply, build and boot what 'make series' writes (15 min)
	@scripts/check $(kdir_option) series

.PHONY: check-unchanged
check-unchanged: setup ## compare KVM's code without the option (3 min)
	@scripts/check-unchanged

.PHONY: check-distros
check-distros: # bare systems of Debian 12 and 13 run 'make demo'
	@scripts/check-distros

.PHONY: check-all
check-all: setup ## run all check targets but check-unchanged (3 h)
	@scripts/check $(kdir_option) --resume standard scaling intel migrations qemu debug kcsan debian series

.PHONY: prove
prove: setup ## prove the arithmetic for all inputs with z3 (1 min)
	@tools/prove/prove

# Seconds for each target; each continues from the coverage that it reached before.
SECONDS ?= 60

.PHONY: fuzz
fuzz: setup ## fuzz arithmetic, validation and streams (7 min)
	@tools/fuzz/run --seconds $(SECONDS)

.PHONY: bench
bench: tools ## count the instructions of a save and a restore (5 min)
	@$(MAKE) KDIR="$$(scripts/env kdir-bench)" MODULE=module-bench modules
	@tools/bench/run

.PHONY: bench-arithmetic
bench-arithmetic: setup # beside the kernel's C, on this machine
	@scripts/get-packages valgrind
	@tools/bench/arithmetic/run $(kdir_option)

.PHONY: vm
vm: modules tools ## open a shell in the test host, or run RUN='command'
	@tools/vm/host run $(kdir_option) $(scaling_option) $(if $(RUN),'$(subst ','\'',$(RUN))')

.PHONY: setup
setup: # installs and builds what is missing
	@scripts/setup $(setup_options)

.PHONY: modules
modules: setup ## build kvm_clock_guest.ko in build/module
	@$(call kbuild,$(MODULE),modules) >&2
	@test -e build/$(MODULE)/kvm_clock_guest.ko || { echo "error: Kbuild made no build/$(MODULE)/kvm_clock_guest.ko" >&2; exit 1; }

.PHONY: tools
tools: setup ## build clockguest and the tests in target/release
	@$(CARGO) build --release --locked --workspace --bins

.PHONY: clockguest
clockguest: setup # of the tools, clockguest alone: what 'make demo' needs
	@$(CARGO) build --release --locked -p clockguest --bins

.PHONY: kvm-selftests
kvm-selftests: setup # the kernel's own KVM selftests that concern clocks
	@scripts/build-kvm-selftests $(if $(KDIR),'$(KDIR)')

.PHONY: fmt
fmt: setup ## format the Rust sources
	@scripts/env -- rustfmt --edition 2021 $(rust_files)

.PHONY: check-fmt
check-fmt: setup # fails if 'make fmt' would change something
	@scripts/env -- rustfmt --edition 2021 --check $(rust_files)
	@# rustfmt leaves comments as they are, and checkpatch.pl does not.
	@awk 'length > 100 && /^ *\/\// { print FILENAME ":" FNR ": over 100 columns"; bad = 1 } END { exit bad }' $(rust_files)

.PHONY: clippy
clippy: setup ## lint the Rust sources; warnings are errors
	@$(call kbuild,clippy,CLIPPY=1 KRUSTFLAGS=-Dwarnings modules)
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: rustdoc
rustdoc: setup # a part of 'make docs', in target/doc
	@RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items

.PHONY: man
man: tools # man pages of clockguest in build/man, shell completion in build/completion
	@rm -rf build/man build/completion && mkdir -p build/completion
	@target/release/clockguest man --to build/man $(page_date)
	@target/release/clockguest completion bash >build/completion/clockguest
	@target/release/clockguest completion zsh >build/completion/_clockguest
	@target/release/clockguest completion fish >build/completion/clockguest.fish
	@echo "read: man build/man/clockguest-cycle.1    complete, in this shell: source build/completion/clockguest" >&2
	@echo "install: make install" >&2

# The kernel's release, which names the folder of its modules; DESTDIR and PREFIX as usual.
release = $$(cat $(kdir)/include/config/kernel.release)
PREFIX ?= /usr/local
install_options = --release "$(release)" --destdir '$(DESTDIR)' --prefix '$(PREFIX)'

.PHONY: install
install: modules man # module and clockguest, for the kernel in KDIR
	@scripts/install $(install_options)

.PHONY: uninstall
uninstall: # what 'make install' installed
	@scripts/install --uninstall $(install_options)

.PHONY: deb
deb: man ## write Debian packages for Debian's own kernel (2 min)
	@scripts/make-debs

.PHONY: docs
docs: rustdoc man ## build all documentation in build/docs
	@scripts/build-docs
	@echo "read: build/docs/index.html" >&2

# end: times

.PHONY: tables
tables: # the numbers of runs in README.md, the pages and this file, from Documentation/data
	@scripts/tables

.PHONY: series
series: setup # the patches for Linux, in build/series
	@scripts/make-series

.PHONY: patch
patch: # applies the hook series to the tree in KDIR
	@$(if $(KDIR),scripts/patch-tree '$(KDIR)',echo "usage: make KDIR=/path/to/tree patch" >&2; exit 2)

.PHONY: clean
clean: # removes build/ and target/
	@rm -rf build target

.PHONY: distclean
distclean: clean # removes the cache as well
	@cache=$$(scripts/env cache); \
	if [[ -e $$cache ]]; then du -sh "$$cache" | sed 's/^/removing /'; rm -rf "$$cache"; fi
