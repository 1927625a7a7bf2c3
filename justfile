# The one door. `just` lists it; each line is a command that also works by itself.

_list:
    @just --list --unsorted

# Format, lint and document: everything short of running it.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# SQS and SNS: lints, documents and tests the relay with the AWS SDK in it, on emulators that are fetched.
aws:
    cargo clippy --workspace --all-targets --features outbox-tests/aws -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features outbox-tests/aws
    cargo test -p outbox-tests --features aws --test suite -- aws:: aws_ --include-ignored

# Pulsar: lints, documents and tests the relay with its client in it, on a broker that is fetched.
pulsar:
    cargo clippy --workspace --all-targets --features outbox-tests/pulsar -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features outbox-tests/pulsar
    cargo test -p outbox-tests --features pulsar --test suite -- pulsar --include-ignored

# Every test, on real servers that start and stop by themselves.
test *args:
    cargo test --workspace {{args}}

# The relay against its yardsticks, on real servers; `just bench --help` lists the options.
bench *args:
    cargo run --release -p outbox-bench -- drain {{args}}

# What remembering messages costs a consumer, on real servers.
bench-inbox *args:
    cargo run --release -p outbox-bench -- inbox {{args}}

# What others' refused events cost a healthy lane
bench-neighbours *args:
    cargo run --release -p outbox-bench -- neighbours {{args}}

# The examples through the relay, all of them killed again and again, and the books balanced.
books *args:
    examples/run {{args}}

# Minutes of fuzzing a target: pgoutput or route.
fuzz target minutes="1":
    fuzz/run {{target}} $(( {{minutes}} * 60 ))

# Licences, bans, sources; needs cargo-deny.
deny:
    cargo deny check

# The published libraries with each feature alone, none and all: some ten minutes the first time.
features:
    .ci/features

# What would be published, compiled from its packages alone; needs a clean checkout. Uploads nothing.
packages:
    .ci/packages --verify

# Whether a change of the libraries' interfaces needs a new version; needs cargo-semver-checks.
# Before a first version is published, compare with a commit: `just semver --baseline-rev v0.1.0`.
semver *args:
    cargo semver-checks -p outbox-idempotency -p outbox-migrations {{args}}

# What CI runs.
ci:
    .ci/run

# What takes longer than CI may (some two hours): run before a release, and put seed and figures into the docs.
long seed="7" minutes="20":
    OUTBOX_TEST_AT_ONCE=3 cargo test -p outbox-tests --test suite -- --ignored matrix:: --test-threads 1
    cargo test -p outbox-tests --test suite -- --ignored remedies::
    OUTBOX_CONFORMANCE_SCALE=33 cargo test -p outbox-tests --test suite conformance::
    cargo test -p outbox-tests --features aws --test suite -- aws:: aws_ --include-ignored
    cargo test -p outbox-tests --features pulsar --test suite -- pulsar --include-ignored
    OUTBOX_SIM_SEEDS=100000 cargo test -p outbox-relay --lib sim::
    cargo run --release -p outbox-bench -- soak --minutes {{minutes}} --seed {{seed}}
    cargo run --release -p outbox-bench -- soak --sink nats --minutes {{minutes}} --seed {{seed}}
    cargo run --release -p outbox-bench -- soak --sink rabbitmq --minutes {{minutes}} --seed {{seed}}
    cargo run --release -p outbox-bench -- storm --minutes 5 --seed {{seed}}
