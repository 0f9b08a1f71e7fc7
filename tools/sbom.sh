#!/usr/bin/env bash
# Writes what the broker is made of as a CycloneDX document (SBOM), with versions, licences and checksums.
#
#   tools/sbom.sh sbom.json
#
# Installs cargo-cyclonedx, in the version below, if it is missing.
set -euo pipefail
output="$(realpath "$1")"
cd "$(dirname "$0")/.."

readonly VERSION=0.5.9
[[ "$(cargo cyclonedx --version 2>/dev/null)" == *" $VERSION" ]] ||
    cargo install --quiet --locked --target-dir "${CARGO_TARGET_DIR:-target}/cargo-cyclonedx" --version "$VERSION" cargo-cyclonedx

# It writes beside each Cargo.toml; what belongs to the broker is one of them.
name=sbom-of-the-broker
trap 'find . -name "$name.json" -not -path "./target/*" -delete' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --target x86_64-unknown-linux-gnu \
    --manifest-path broker/Cargo.toml --override-filename "$name"
# Where it was written is nobody's business.
sed "s#file://$PWD/#file:///#g" "broker/$name.json" >"$output"
