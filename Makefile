# The commands of people; `make` alone lists them. CI runs .ci/run, which calls these.
# Needs Rust, make and curl; the tests and the demo find or fetch Consul themselves (tests/support/consul.rs).

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# The machine's own architecture and libc; asked only by the targets that need it.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC = $(TARGET_DIR)/$(HOST)/release/convene

.PHONY: help demo test lost-write e2e chaos bench bench-cluster lint static clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## three Consul servers come together on this machine; one is killed and returns
	@# An example does not make cargo build the program it starts.
	cargo build --locked --bin convene --example demo
	cargo run --locked --quiet --example demo

# A signal that was ignored when make was started (nohup, a job in the background) would be ignored by what the tests start too.
SIGNALS := $(shell env --default-signal true 2>/dev/null && echo env --default-signal)

# Runs the cargo calls of $(1), all of them although one failed, and tells what was skipped in any case; $@.log and
# $@.skipped stay. Only stdout goes through tee, so that cargo shows its progress; the status goes through a file, since a
# plain sh has no pipefail.
define tested
	@mkdir -p $(TARGET_DIR) && rm -f $(TARGET_DIR)/$@.status && : >$(TARGET_DIR)/$@.skipped
	@export CONVENE_SKIPPED=$(TARGET_DIR)/$@.skipped; \
	{ status=0; $(1) echo $$status >$(TARGET_DIR)/$@.status; } | tee $(TARGET_DIR)/$@.log
	@cd $(TARGET_DIR) && ! grep -q '^test result: ' $@.log || { sort -u -o $@.skipped $@.skipped; \
	  if [ -s $@.skipped ]; then echo "skipped on this machine:"; sed 's/^/    /' $@.skipped; else echo "nothing was skipped"; fi; \
	  awk -v skipped="$$(cut -d: -f1 $@.skipped | sort -u | wc -l)" \
	    '/^test result: / { passed += $$4; failed += $$6; ignored += $$8 } \
	    END { printf "%d passed, %d failed, %d skipped\n", passed - skipped, failed, skipped + ignored }' $@.log; }
	@exit $$(cat $(TARGET_DIR)/$@.status)
endef

# The documentation's tests run first: there may be none, and the closing line should be that of the others.
test: ## all tests; ends with what this machine could not run, and why
	$(call tested,\
	  cargo test --locked --doc || status=$$?; \
	  $(SIGNALS) cargo test --locked --lib --bins --tests --no-fail-fast || status=$$?;)

lost-write: ## twenty runs each of the schedule in which an empty disk loses an acknowledged write: plain Consul, convene
	CONVENE_REPEAT=20 cargo test --locked --test lost_write -- --nocapture --test-threads=1

# tests/e2e/with-cluster says which cluster, and ends with 69 when there is none.
ON_CLUSTER = CONVENE_E2E_BINARY=$(STATIC) CONVENE_E2E_TARGET=$(TARGET_DIR) tests/e2e/with-cluster

# Most of a test is waiting: three at once keep two cores busy.
e2e: static ## the tests on a real Kubernetes cluster; what failed leaves its logs in target/e2e
	$(call tested,$(ON_CLUSTER) cargo test --locked --features e2e --test e2e -- --test-threads=3 --show-output || status=$$?;)

# How long the servers are disturbed; CONVENE_CHAOS_SEED=… does the same again.
SECONDS ?= 600

chaos: static ## random disturbances under writers on a real cluster, for SECONDS=600; fails when a write is lost, or all is not well again
	cargo build --locked --quiet --features e2e --example chaos
	@CONVENE_CHAOS_SECONDS=$(SECONDS) $(ON_CLUSTER) $(TARGET_DIR)/debug/examples/chaos

bench: static ## size, memory and speed beside tini and dumb-init; fails when an aim is missed
	cargo build --locked --quiet --example bench --example bench_formation
	@status=0; $(TARGET_DIR)/debug/examples/bench $(STATIC) || status=$$?; \
	$(TARGET_DIR)/debug/examples/bench_formation $(STATIC) || status=$$?; exit $$status

bench-cluster: static ## formation, restarts, losses and clients on a real cluster, beside the usual pattern; fails when an aim is missed
	cargo build --locked --quiet --features e2e --example bench_cluster --example bench_stops --example bench_clients
	@status=0; $(ON_CLUSTER) $(TARGET_DIR)/debug/examples/bench_cluster || status=$$?; \
	$(ON_CLUSTER) $(TARGET_DIR)/debug/examples/bench_stops || status=$$?; \
	$(ON_CLUSTER) $(TARGET_DIR)/debug/examples/bench_clients || status=$$?; exit $$status

lint: ## formatting, clippy, documentation, and the dependencies when cargo-deny is installed
	cargo fmt --check
	cargo clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check bans licenses sources; \
	else echo "not checked: licences, bans and sources (cargo install --locked cargo-deny)"; fi

# Who aborts at a panic unwinds nothing, and needs neither the tables for it (static.ld) nor their index (126 kB). What a server calls
# lies together (hot.ld), so that little else is resident: 2.7 MB less.
static: ## the release binary, static, as it goes into the image
	RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,static.ld -C link-arg=-Wl,-T,hot.ld" cargo build --locked --release --bin convene --target $(HOST)
	@ls -l $(STATIC)

clean: ## remove what was built
	cargo clean
