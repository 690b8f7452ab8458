# The commands of people; `make` alone lists them. CI runs .ci/run, which calls these.
# Needs Rust, make and curl; the tests and the demo find or fetch Consul themselves (tests/support/consul.rs).

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# The machine's own architecture and libc; asked only by the targets that need it.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
STATIC = $(TARGET_DIR)/$(HOST)/release/convene
SKIPPED = $(TARGET_DIR)/skipped
TEST_LOG = $(TARGET_DIR)/test.log
TEST_STATUS = $(TARGET_DIR)/test.status

.PHONY: help demo test bench lint static clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## three Consul servers come together on this machine; one is killed and returns
	@# An example does not make cargo build the program it starts.
	cargo build --locked --bin convene --example demo
	cargo run --locked --quiet --example demo

# All tests run although one failed, and what was skipped is told in any case. Only stdout goes through tee, so that
# cargo shows its progress; the status goes through a file, since a plain sh has no pipefail. The documentation's tests
# run first: there may be none, and the closing line should be that of the others.
test: ## all tests; ends with what this machine could not run, and why
	@mkdir -p $(TARGET_DIR) && rm -f $(TEST_STATUS) && : >$(SKIPPED)
	@export CONVENE_SKIPPED=$(SKIPPED); \
	{ status=0; \
	  cargo test --locked --doc || status=$$?; \
	  cargo test --locked --lib --bins --tests --no-fail-fast || status=$$?; \
	  echo $$status >$(TEST_STATUS); } | tee $(TEST_LOG)
	@sort -u -o $(SKIPPED) $(SKIPPED)
	@if [ -s $(SKIPPED) ]; then echo "skipped on this machine:"; sed 's/^/    /' $(SKIPPED); else echo "nothing was skipped"; fi
	@awk -v skipped="$$(cut -d: -f1 $(SKIPPED) | sort -u | wc -l)" \
	    '/^test result: / { passed += $$4; failed += $$6; ignored += $$8 } \
	    END { printf "%d passed, %d failed, %d skipped\n", passed - skipped, failed, skipped + ignored }' $(TEST_LOG)
	@exit $$(cat $(TEST_STATUS))

bench: static ## size, memory and speed beside tini and dumb-init; fails when an aim is missed
	cargo build --locked --quiet --example bench --example bench_formation
	@status=0; $(TARGET_DIR)/debug/examples/bench $(STATIC) || status=$$?; \
	$(TARGET_DIR)/debug/examples/bench_formation $(STATIC) || status=$$?; exit $$status

lint: ## formatting, clippy, documentation, and the dependencies when cargo-deny is installed
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check bans licenses sources; \
	else echo "not checked: licences, bans and sources (cargo install --locked cargo-deny)"; fi

static: ## the release binary, static, as it goes into the image
	RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs" cargo build --locked --release --bin convene --target $(HOST)
	@ls -l $(STATIC)

clean: ## remove what was built
	cargo clean
