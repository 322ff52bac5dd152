# What to run, and when. `just` alone lists it.

_default:
    @just --list

# Format everything
fmt:
    cargo fmt --all

# What CI refuses to land
lint:
    cargo fmt --all --check
    cargo clippy --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# All tests, with whatever real peers this machine has
test:
    cargo test

# All tests, and fail where a peer is missing
test-peers:
    PILOTLIGHT_REQUIRE_PEERS=1 cargo test

# A simulated rack in the browser
lab *ARGS:
    cargo run --release -- lab {{ARGS}}

# The long matrices: new random inputs, a big lab, the lab under SIGKILL and in a storm of every fault, the kill sweep, the
# image on every bus and under injected faults, power cuts by block writes
soak:
    PROPTEST_CASES=20000 cargo test --lib
    cargo run --release -- lab --machines 200 --once --timeout 2m
    cargo run --release -- lab --machines 50 --once --kill-provider-every 7s
    cargo run --release -- lab --machines 50 --once --chaos --timeout 5m
    PILOTLIGHT_SOAK=1 cargo test --test it -- kill:: net::trial update::
    board/build-image
    PILOTLIGHT_SOAK=1 PILOTLIGHT_REQUIRE_PEERS=1 cargo test --test it -- appliance:: cuts:: --test-threads 1 --nocapture

# Time and memory of the lab and of the idle provider
bench:
    tests/bench/run

# Sync, memory and latency with 10,000 machines in the Omni double
bench-omni:
    cargo bench --bench omni

# Fuzz one decoder: keys, payloads, resources, watch_events, tunnel, dhcp, ipmi, journal
fuzz TARGET SECONDS="600":
    cargo +nightly fuzz run --fuzz-dir tests/fuzz -O -s none {{TARGET}} -- -max_total_time={{SECONDS}} -max_len=2048

# The real peers of Omni and of the agent, made by the test and counted: 1 signatures and State, 2 Omni's client library,
# 3 omnictl, 4 the tunnel library and the metal agent
interop:
    #!/usr/bin/env bash
    set -euo pipefail
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    PILOTLIGHT_REQUIRE_PEERS=1 cargo test --locked --test it -- interop conformance go:: --nocapture 2>&1 | tee "$log"
    echo
    grep -o 'peer [1-9]: .*' "$log" | sort

# What CI runs
ci:
    .ci/run

# The appliance's disk image from Debian's kernel, in target/image
image-dev *ARGS:
    board/build-image {{ARGS}}

# Build the development image twice, in two directories, and compare every octet
reproducible *ARGS:
    board/reproducible {{ARGS}}

# The release image of the commit that is checked out, with Buildroot: [x86_64|aarch64] [--buildroot DIRECTORY]
image *ARGS:
    buildroot/build {{ARGS}}

# The external tree against an unpacked Buildroot and, if given, the kernel fragments against an unpacked kernel
buildroot-check BUILDROOT LINUX="":
    buildroot/check {{BUILDROOT}} {{LINUX}}

# Write an image to a disk or stick, and read it back
flash DEVICE IMAGE="target/image/pilotlight.img":
    cargo run --release -- flash {{DEVICE}} {{IMAGE}}
