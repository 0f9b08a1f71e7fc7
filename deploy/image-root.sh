#!/bin/sh
# Makes the root file system of the image: the program, the libraries that it is linked with, and nothing else.
#
#   deploy/image-root.sh target/release/kentongan DIRECTORY
set -eu
binary="$1"
root="$2"

mkdir -p "$root/usr/local/bin" "$root/etc/kentongan"
install -m 755 "$binary" "$root/usr/local/bin/kentongan"
libraries="$(ldd "$binary")"
if echo "$libraries" | grep 'not found' >&2; then
    exit 1
fi
echo "$libraries" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
# Authorities that the system trusts, for `kentongan pub --tls-use-os-certs` and the like.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -f "$authorities" ]; then
    mkdir -p "$root$(dirname "$authorities")"
    cp -L "$authorities" "$root$authorities"
fi
# The user that the manifests and the Dockerfile name.
echo 'kentongan:x:10001:10001::/data:/sbin/nologin' >"$root/etc/passwd"
echo 'kentongan:x:10001:' >"$root/etc/group"
