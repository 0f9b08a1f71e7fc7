#!/usr/bin/env bash
# Builds the broker for 64-bit ARM, such as a gateway in a plant has, on another machine; makes its Debian package; and tries both under
# qemu: a message goes through.
#
#   tools/arm64.sh [PROFILE]        release, unless another profile is named
#
# Installs Debian's cross compiler and qemu, Rust's standard library for that platform, and cargo-deb, if they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/debian.sh

readonly PLATFORM=aarch64-unknown-linux-gnu
readonly SYSROOT=/usr/aarch64-linux-gnu
profile="${1:-release}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}"

install_missing gcc-aarch64-linux-gnu:aarch64-linux-gnu-gcc qemu-user-static:qemu-aarch64-static mosquitto-clients:mosquitto_pub
[ -e "$SYSROOT/include/stdio.h" ] || install_packages libc6-dev-arm64-cross
rustup target list --installed | grep -qx "$PLATFORM" || rustup target add "$PLATFORM"
install_c_compiler
install_cargo_deb

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
cargo build --locked --profile "$profile" --target "$PLATFORM" --package kentongan --bin kentongan

# cargo-deb would use this machine's strip.
broker="$CARGO_TARGET_DIR/$PLATFORM/$profile/kentongan"
whole="$(mktemp)"
mv "$broker" "$whole"
trap 'mv "$whole" "$broker"' EXIT
aarch64-linux-gnu-strip --strip-debug -o "$broker" "$whole"
tools/deb.sh --profile "$profile" --target "$PLATFORM" --no-strip

directory="$(mktemp -d)"
run=(qemu-aarch64-static -L "$SYSROOT" "$broker")
"${run[@]}" serve --mqtt 127.0.0.1:0 --http 127.0.0.1:0 --data-dir "$directory/data" 2>"$directory/log" &
pid=$!
trap 'kill $pid 2>/dev/null || true; wait $pid || true; rm -r "$directory"; mv "$whole" "$broker"' EXIT
for _ in $(seq 300); do
    port="$(sed -n 's/.*listening for MQTT.*"address":"127.0.0.1:\([0-9]*\)".*/\1/p' "$directory/log")"
    [ -z "$port" ] || break
    kill -0 $pid || { cat "$directory/log" >&2; exit 1; }
    sleep 0.1
done
[ -n "$port" ] || { cat "$directory/log" >&2; exit 1; }
mosquitto_pub -p "$port" -q 1 -r -t gateway -m "from 64-bit ARM"
[ "$(mosquitto_sub -p "$port" -q 1 -t gateway -C 1 -W 20)" = "from 64-bit ARM" ]
echo "it serves under qemu"
