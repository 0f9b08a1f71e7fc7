#!/usr/bin/env bash
# Runs the broker, on a machine that has only the Rust toolchain. Arguments are those of `kentongan`.
#
#   ./run.sh
#   ./run.sh --mqtt 0.0.0.0:1883 --allow-anonymous
set -euo pipefail
cd "$(dirname "$0")"
source tools/debian.sh

install_c_compiler
exec cargo run --locked --release --package kentongan --bin kentongan -- "$@"
