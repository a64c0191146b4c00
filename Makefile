# Everything a developer runs. `make` alone lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Installed when missing. This cargo-nextest builds with the oldest Rust that the program does (rust-version in Cargo.toml);
# cargo-deny wants Rust 1.88, for the linters only: earlier ones cannot read today's advisories.
NEXTEST_VERSION := 0.9.100
DENY_VERSION := 0.20.2

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: linker ## build the program: target/release/powa-collector
	cargo build --release --locked

.PHONY: test
test: linker nextest ## run all tests on real PoWA 4 and PoWA 5, which are installed if missing (ARGS: for cargo nextest)
	tests/support/run $(ARGS)

.PHONY: demo
demo: linker ## watch the collector at work on throwaway servers (DEMO_SECONDS=30: end by itself)
	@demo/run

.PHONY: lint
lint: deny ## check format, clippy, dependencies
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo deny check bans licenses sources # .ci/run checks the advisories too, which takes the network

.PHONY: clean
clean: ## remove all that was built, the PoWA 5 folder included
	tests/support/postgresql clean
	cargo clean

.PHONY: linker
linker:
	@command -v cc >/dev/null || tests/support/postgresql install

.PHONY: nextest
nextest: linker
	@cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest@$(NEXTEST_VERSION)

.PHONY: deny
deny: linker
	@cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny@$(DENY_VERSION)
