#!/usr/bin/env bash
# Makes the Debian package of a program that is built: the program without what debuggers need, the unit, man pages, completions.
#
#   cargo build --locked --release --package kentongan --bin kentongan
#   tools/deb.sh                                       target/debian/kentongan_VERSION-1_ARCHITECTURE.deb
#   tools/deb.sh --profile quick --output DIRECTORY    of another profile; other options are those of `cargo deb` too
#   XTASK=target/debug/xtask tools/deb.sh              with `cargo xtask` as it was built before
#
# Prints where the package is. Installs cargo-deb, in the version of tools/debian.sh, if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"

profile=release
platform=
options=("$@")
while [ $# -gt 0 ]; do
    case "$1" in
        --profile) profile="$2"; shift ;;
        --target) platform="$2"; shift ;;
    esac
    shift
done
[[ " ${options[*]} " == *" --profile "* ]] || options+=(--profile "$profile")

source tools/debian.sh
install_cargo_deb
xtask=(cargo xtask)
[ -z "${XTASK:-}" ] || xtask=("$XTASK")
"${xtask[@]}" package "$target/${platform:+$platform/}$profile/package"
cargo deb --package kentongan --no-build --strip --no-dbgsym "${options[@]}"
