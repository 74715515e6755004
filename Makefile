# Two commands do all the set-up on a fresh Debian 12 machine, as root:
#   make demo   builds everything, runs the promise script, shows what the host sees
#   make test   all tests, end to end too
# The second run of either is quick: what is there already is not made again.

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET := target/x86_64-unknown-linux-gnu
BIN := $(TARGET)/release
# Cases mostly wait; how many VMs run at a time is the suite's own affair.
TEST_THREADS ?= 6

.PHONY: demo test test-unit test-e2e test-e2e-all test-reference test-kvm test-rig fuzz lint build guest guest-kernel bench setup setup-test setup-bench clean-state

setup:
	@scripts/setup.sh build

setup-test:
	@scripts/setup.sh test

setup-bench:
	@scripts/setup.sh bench

# The whole workspace at once: cargo would build dependencies again for other selections.
build: setup
	@echo "==> building (release)"
	@cargo build --release --locked --workspace

# The guest kernel and the initramfs with our agent.
guest: build
	@echo "==> guest kernel and initramfs"
	@$(BIN)/xtask guest --agent $(BIN)/bulkhead-agent

# The kernel that every later `make guest` takes instead of Debian's; some minutes.
guest-kernel: build
	@scripts/setup.sh kernel
	@$(BIN)/xtask guest-kernel
	@$(BIN)/xtask guest --agent $(BIN)/bulkhead-agent

demo: build guest
	@scripts/demo.sh $(BIN)

# One profile for everything: the dependencies are compiled once.
lint:
	@echo "==> format and lints"
	@cargo fmt --all --check
	@cargo clippy --release --workspace --all-targets --locked --quiet -- -D warnings

test-unit:
	@echo "==> tests of the crates"
	@cargo test --release --locked --workspace --exclude bulkhead-e2e

test-e2e:
	@echo "==> end to end, every isolation and client"
	@cargo test --release --locked --workspace --test e2e -- \
	    --test-threads $(TEST_THREADS)

# With our own client's VMs in the cases that do not depend on the client.
test-e2e-all: setup-test guest
	@cargo test --release --locked --workspace --test e2e -- \
	    --test-threads $(TEST_THREADS) --include-ignored

# In an emulated machine with KVM and cgroup v2 alone: the whole suite, which takes hours, or
# the cases that are named.
RIG_CASES ?=
RIG_SECONDS ?= 36000
test-kvm: setup-test guest
	@echo "==> on KVM and cgroup v2"
	@scripts/rig.sh $(RIG_SECONDS) "tiny_guests machine filter attacker" "$(RIG_CASES)"

# The same machine, and of that what tells most: it takes minutes, all of it would an hour.
test-rig:
	@echo "==> on KVM and cgroup v2: machines, and a case of each kind"
	@scripts/rig.sh 900 \
	    "tiny_guests filter machine:a_guest_talks:a_panic:a_disk_that_hangs:many_cpus:what_cannot_boot" \
	    "exec::exit_codes::hyperv::docker exec::exit_codes::process::docker \
	    promise::the_host_sees_what_it_should::hyperv::docker \
	    promise::the_host_sees_what_it_should::process::docker \
	    failure::a_guest_that failure::the_guests_kernel failure::a_cpu_of \
	    failure::the_worker_is_killed::hyperv \
	    failure::kvm_is_not_permitted limits::running_out_of_memory_is_137"

# Unit tests of the VM crates boot real machines: the guest image comes first.
test: setup-test lint guest test-unit test-e2e test-rig

# The same cases against Debian's dockerd: our expectations are Docker's.
test-reference: setup-test
	@scripts/reference.sh

# The tests run every fuzz target for a moment; this is by coverage, and for longer.
FUZZ_SECONDS ?= 60
fuzz: setup
	@scripts/fuzz.sh $(FUZZ_SECONDS)

# The kvm engine's part runs in the rig: `xtask bench --only machines` for that alone.
bench: setup-bench build guest
	@$(BIN)/xtask bench
