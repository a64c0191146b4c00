# Everything a developer runs. `make` alone lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Installed when missing. This cargo-nextest builds with the oldest Rust that the program does (rust-version in Cargo.toml);
# cargo-deny wants Rust 1.88, for the linters only: earlier ones cannot read today's advisories.
NEXTEST_VERSION := 0.9.100
DENY_VERSION := 0.20.2
FUZZ_VERSION := 0.13.1
CARGO_DEB_VERSION := 3.8.0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: prerequisites ## build the program: target/release/powa-collector
	cargo build --release --locked

.PHONY: test
test: prerequisites nextest ## run all tests on real PoWA 4 and PoWA 5, which are installed if missing (ARGS: for cargo nextest)
	tests/support/run $(ARGS)

.PHONY: chaos
chaos: prerequisites nextest ## let every message of a snapshot go wrong in every way, and everything at once for ten minutes
	SWEEP=whole CHAOS_SECONDS=600 tests/support/run --profile chaos -E 'binary(sweep) + binary(kills) + binary(chaos)' $(ARGS)

.PHONY: demo
demo: prerequisites ## watch the collector at work on throwaway servers (DEMO_SECONDS=30: end by itself)
	@demo/run

.PHONY: bench
bench: prerequisites ## measure it against the Python collector, which takes more than an hour (ARGS: a case, --runs N)
	tests/support/postgresql install
	tests/support/postgresql powa5
	cargo bench --bench fleet --locked -- $(ARGS)

.PHONY: bench-quick
bench-quick: prerequisites ## the same for two cases, in three minutes and the build's
	$(MAKE) bench ARGS=--quick

.PHONY: fuzz
fuzz: fuzzer ## feed random bytes to the parsers of what comes from outside, FUZZ_SECONDS (60) each
	fuzz/run

.PHONY: lint
lint: deny ## check format, clippy, dependencies
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo deny check bans licenses sources # .ci/run checks the advisories too, which takes the network

.PHONY: deb
deb: build cargo-deb ## make the Debian package: target/debian/powa-collector_VERSION_ARCHITECTURE.deb
	packaging/build

.PHONY: deb-test
deb-test: deb ## install it into a clean Debian 12 and over the Python collector's package there (needs Docker)
	packaging/test

.PHONY: clean
clean: ## remove all that was built, the PoWA 5 folder included
	tests/support/postgresql clean
	cargo clean

.PHONY: prerequisites
prerequisites:
	@{ command -v cc && pkg-config --exists openssl; } >/dev/null 2>&1 || tests/support/postgresql build

.PHONY: nextest
nextest: prerequisites
	@cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest@$(NEXTEST_VERSION)

.PHONY: deny
deny: prerequisites
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny@$(DENY_VERSION)

.PHONY: fuzzer
fuzzer: prerequisites
	@command -v c++ >/dev/null || tests/support/postgresql fuzz
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz@$(FUZZ_VERSION)

.PHONY: cargo-deb
cargo-deb: prerequisites
	@command -v dpkg-shlibdeps >/dev/null || tests/support/postgresql deb
	@cargo deb --version >/dev/null 2>&1 || cargo install --locked cargo-deb@$(CARGO_DEB_VERSION)
