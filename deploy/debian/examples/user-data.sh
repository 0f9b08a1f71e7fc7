#!/bin/sh
# User data of a cloud machine (Debian, Ubuntu): at its first boot it becomes a broker that anybody may try, MQTT on port 1883, WebSocket on 8089.
# Both ports must be open in the cloud's firewall. Say where the package is:
set -eu
PACKAGE=https://example.net/kentongan_0.1.0-1_amd64.deb

export DEBIAN_FRONTEND=noninteractive
cd "$(mktemp -d)"
chmod 755 .
apt-get update
apt-get install --yes curl ca-certificates
curl --fail --location --remote-name "$PACKAGE"

# Before the package, so that the first start of the broker has it. For a trial only: they may read and write every topic.
mkdir -p /etc/kentongan/kentongan.toml.d
cat >/etc/kentongan/kentongan.toml.d/open.toml <<'END'
allow_anonymous = true

[[listener]]
address = "0.0.0.0:1883"

[[listener]]
address = "0.0.0.0:8089"
websocket = {}
END

apt-get install --yes ./kentongan_*.deb
