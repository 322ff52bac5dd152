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

# The long matrices: a big lab, the lab under SIGKILL and in a storm of every fault, the long kill sweep
soak:
    cargo run --release -- lab --machines 200 --once --timeout 2m
    cargo run --release -- lab --machines 50 --once --kill-provider-every 3s
    cargo run --release -- lab --machines 50 --once --chaos --timeout 5m
    PILOTLIGHT_SOAK=1 cargo test --test it -- kill:: net::trial

# Time and memory of the lab and of the idle provider
bench:
    tests/bench/run

# Sync, memory and latency with 10,000 machines in the Omni double
bench-omni:
    cargo bench --bench omni

# Fuzz one decoder: keys, payloads, resources, watch_events, tunnel, dhcp, ipmi
fuzz TARGET SECONDS="600":
    cargo +nightly fuzz run --fuzz-dir tests/fuzz {{TARGET}} -- -max_total_time={{SECONDS}}

# The real peers of Omni: Go's signature library, COSI's State server, the tunnel library
interop:
    PILOTLIGHT_REQUIRE_PEERS=1 cargo test --test it -- interop conformance --nocapture

# What CI runs
ci:
    .ci/run
