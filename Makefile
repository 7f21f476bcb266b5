# SPDX-License-Identifier: GPL-2.0
ifneq ($(KERNELRELEASE),)

# Read by kbuild, with M= at this directory.
obj-y += drivers/dax/
obj-$(CONFIG_DMEM_TESTS) += tests/modules/

else

# Read by people. Everything is built and run inside the lab (tests/lab), a
# Debian trixie root with its own compilers, so this machine needs none. With
# KDIR= the module is built by this machine's own tools instead.

SANDBOX := tests/lab/sandbox
LAB     := /var/lib/daxdmem-lab
CARGO    = $(SANDBOX) cargo
CRATES  := --locked --manifest-path tools/Cargo.toml
RUNNER  := $(SANDBOX) $(LAB)/target/release/dmem-runner
PROGRAMS := tool agent runner
FIGURES := Documentation/benchmarks/figures.json

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-attach test-debug test-system bench module in-tree debug-kernel $(PROGRAMS) programs install deb \
	lab lab-update lab-shell lint host-test vm-test vm-list fuzz fuzz-planted fuzz-logic clean
MAKEFLAGS += --no-print-directory

help: ## this list
	@echo 'daxdmem: guest memory without struct page. Targets (root needed, but for help):'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20
	@echo 'Variables:'
	@echo '  DAXDMEM_CACHE=DIR where the lab is kept (/var/cache/daxdmem)'
	@echo '  KDIR=DIR          make module: build by this machine against the prepared kernel tree DIR'
	@echo '  KSRC=DIR          make in-tree: the top of a Linux source tree, 7.2 or later'
	@echo '  DESTDIR= PREFIX=/usr/local DAXDMEM=FILE  make install: where to, and the tool if it is built'
	@echo '  CASES="NAME …"    make vm-test, test-debug, test-attach, test-system, bench: only these'
	@echo '  FUZZ_SECONDS=N    make fuzz-logic: for so long (60)'
	@echo '  SEED= SEEDS= OPS= make fuzz: first seed (any), how many (10), operations of each (20000);'
	@echo '                    KEEP=, HOLES=1, TRACE=1, KERNEL=debug: see Documentation/fuzzing.md'

demo: programs module ## boot two guests on page-less memory and report what it costs
	@$(RUNNER) demo

test: ## everything: checks, host tests, module build, VM cases
	@tests/lab/run-tests

test-long: ## VM cases of which make test tries a part only, in full; broken cases
	@tests/lab/run-tests long

test-debug: ## KUnit and the VM cases on a kernel with KASAN, lockdep, kmemleak
	@tests/lab/run-tests debug $(CASES)

test-attach: ## guests with disks, networks, PCI devices; migration, kexec, dumps
	@tests/lab/run-tests attach $(CASES)

test-system: ## the admin guide, boots, upgrade and purge on a whole Debian 13
	@tests/lab/run-tests system $(CASES)

bench: programs module ## count what guest memory costs, beside hugetlbfs, device_dax and memfd
	@$(CARGO) build $(CRATES) --release -p dmem-bench
	@status=0; $(RUNNER) bench $(CASES:%=--case %) --figures $(FIGURES) || status=$$?; \
	$(SANDBOX) $(LAB)/target/release/dmem-bench $(FIGURES) $(dir $(FIGURES)) && exit $$status

# ---- the kernel module ------------------------------------------------------

ifeq ($(KDIR),)

module: lab ## build dax_dmem.ko, warnings are errors
	@$(SANDBOX) make module KDIR=$(LAB)/kernel MO=$(LAB)/module TESTS=m W=e

else

RUSTC  ?= rustc
MO     ?= $(CURDIR)/build
# BTF of a module needs the kernel's vmlinux, which no package has. The
# configuration names the compiler that built the kernel.
KCC     = $(shell sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' $(KDIR)/.config)
REFUSAL = $(shell drivers/dax/dmem/check-rustc.sh $(KDIR)/.config '$(RUSTC)' 2>&1)

module:
	$(if $(REFUSAL),$(error $(REFUSAL)))
	@$(MAKE) -s -C $(KDIR) M=$(CURDIR) MO=$(MO) CC=$(KCC) RUSTC='$(RUSTC)' \
		CONFIG_DEV_DAX_DMEM=m CONFIG_DEV_DAX_DMEM_GUARD=m CONFIG_DMEM_TESTS=$(TESTS) \
		CONFIG_DEBUG_INFO_BTF_MODULES= modules
	@for ko in drivers/dax/dmem/dax_dmem.ko drivers/dax/dmem-guard/dax_dmem_guard.ko \
		$(if $(TESTS),tests/modules/dmem_leaf_probe.ko tests/modules/dmem_stall_probe.ko); do \
		cp $(MO)/$$ko $(MO)/$${ko##*/}.new && \
		mv $(MO)/$${ko##*/}.new $(MO)/$${ko##*/} && \
		echo "built $(MO)/$${ko##*/}" || exit; \
	done

endif

in-tree: ## put the driver's sources into the kernel tree KSRC
	@tests/lab/in-tree '$(KSRC)'

# Incremental: builds what has changed here since the last time.
debug-kernel: lab ## build the debug kernel, with the driver in it
	@$(SANDBOX) tests/lab/debug-kernel

# ---- programs ---------------------------------------------------------------

tool: lab ## build the operator's tool, daxdmem
	@$(CARGO) build $(CRATES) --release -p daxdmem

# Static: it is /init of an initramfs that holds nothing else.
agent: lab ## build the program that runs inside the VMs
	@RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build $(CRATES) --release \
		--target x86_64-unknown-linux-gnu -p dmem-agent

runner: lab ## build the program that boots the VMs
	@$(CARGO) build $(CRATES) --release -p dmem-runner

# Tool and runner at once: the one compiles while the other is linked.
programs: agent lab
	@$(CARGO) build $(CRATES) --release -p daxdmem -p dmem-runner

# ---- packages ---------------------------------------------------------------

DESTDIR ?=
PREFIX  ?= /usr/local
DAXDMEM ?= tools/target/release/daxdmem

# By this machine's own cargo, as the tool is to run on this machine.
tools/target/release/daxdmem: FORCE
	@cargo build $(CRATES) --target-dir tools/target --release -p daxdmem

install: $(DAXDMEM) ## install the tool, its unit, settings, man pages and completions
	@tools/packaging/install '$(DESTDIR)' '$(PREFIX)' '$(DAXDMEM)'

deb: lab ## build the Debian packages
	@tools/packaging/make-deb

FORCE:

# ---- the lab and its tests --------------------------------------------------

lab: ## set up the lab, or what is missing of it
	@tests/lab/setup

lab-update: ## set up the lab anew from today's archive
	@tests/lab/setup --update

lab-shell: programs module ## a prompt inside a VM with reserved memory
	@$(RUNNER) shell

lint: ## formatting, clippy, rustdoc, shellcheck, kernel style
	@tests/lab/run-tests lint

host-test: ## tests that need no VM
	@tests/lab/run-tests host

vm-test: ## VM cases
	@tests/lab/run-tests vm $(CASES)

vm-list: programs ## names of the VM cases and what each shows
	@$(RUNNER) run --list

fuzz: programs module ## random operations in VMs against a model
	@$(SANDBOX) tests/fuzz/run seed=$(SEED) seeds=$(SEEDS) ops=$(OPS) keep=$(KEEP) \
		holes=$(HOLES) trace=$(TRACE) kernel=$(KERNEL)

fuzz-planted: programs module ## whether that finds the bugs of tests/fuzz/planted
	@$(SANDBOX) tests/fuzz/run-planted $(CASES)

fuzz-logic: lab ## coverage-guided fuzzing of the pure logic
	@$(SANDBOX) mm/dmem/fuzz/run $(FUZZ_SECONDS)

clean: ## drop this checkout's build output; the lab stays
	@$(SANDBOX) sh -c 'rm -rf $(LAB)/module/* $(LAB)/module/.[!.]* $(LAB)/debug/* $(LAB)/target/* $(LAB)/run/*'

endif
