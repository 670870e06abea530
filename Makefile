# One line a target; what needs more is in tools/.

PREFIX ?= $(HOME)/.local

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

demo: ## build, mount ~/aq (or AQ_DIR) and run the tour of the README
	@tools/demo

test: setup ## lints, docs, dependencies, unit, mount and guest tests, a quarter of an hour (QEMU=bookworm-backports: with that QEMU)
	@tools/test

long: setup ## what `make test` leaves out: random sequences, random kills, load, tests as root, limits in a cgroup, a stock Debian
	@tools/test long root limits debian

check: ## lints, docs and dependencies, without running anything
	@tools/test fmt clippy doc deny

fmt: ## format the sources
	cargo fmt --all

clippy: ## lints
	@tools/test clippy

doc: ## the API's documentation
	@tools/test doc

deny: ## licences, sources and advisories of dependencies
	@tools/test deny

unit: ## tests that need neither FUSE nor QEMU
	@tools/test unit

mount-tests: setup ## tests that need /dev/fuse
	@tools/test mount

fuzz: ## each fuzz target for 30 s (FUZZ_SECONDS)
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-30} tools/test fuzz

qemu-tests: setup ## tests that boot guests
	@tools/test root qemu

compose: setup ## random sequences of all features, for SECONDS (600) from SEED
	@AQFS_COMPOSE_SECONDS=$(or $(SECONDS),600) AQFS_COMPOSE_SEED=$(or $(SEED),$$(date +%s)) tools/test compose

bench: setup ## the promises in numbers, measured (BENCH=exec: some of them)
	@tools/test bench

setup: ## install what is missing (Debian, Ubuntu)
	@tools/setup

build: ## the optimised program
	cargo build --release

install: build ## binary, completions, manual pages and a systemd user unit into PREFIX (~/.local)
	@AQ="$${CARGO_TARGET_DIR:-target}/release/aq" tools/install "$(PREFIX)"

package: ## a .deb, and an archive with a static binary for any Linux, in target/package
	@tools/package

uninstall: ## remove what install has put there
	@tools/install --remove "$(PREFIX)"

clean: ## remove what was built, and the tests' caches
	cargo clean && rm -rf /var/tmp/aqfs-test-cache-*

.PHONY: help demo test long check fmt clippy doc deny unit mount-tests fuzz qemu-tests compose bench setup build install package uninstall clean
.DEFAULT_GOAL := help
