#!/usr/bin/env bash
# Three nodes, HAProxy in front of them and Prometheus, on this machine, for a look. Ctrl-C ends all of it.
#
#   deploy/look.sh [DIRECTORY]      where they keep what they keep; without one, a new one that is removed at the end
#
# MQTT: 127.0.0.1:2883. Prometheus: http://127.0.0.1:9090. Nodes: MQTT 1883-1885, HTTP 8090-8092, among themselves 7001-7003.
#
# It needs `kentongan` (KENTONGAN says where it is), `haproxy`, and `prometheus`. Figures are taken every SCRAPE_INTERVAL
# (2s), since whoever looks does not want to wait. With Grafana and in containers: deploy/compose.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
deploy="$(cd "$(dirname "$0")" && pwd)"
kentongan="${KENTONGAN:-$(command -v kentongan || echo "$deploy/../target/release/kentongan")}"
interval="${SCRAPE_INTERVAL:-2s}"

for program in "$kentongan" haproxy prometheus; do
    command -v "$program" >/dev/null || { echo "look.sh: there is no $program here" >&2; exit 1; }
done
# Each program is started elsewhere.
kentongan="$(readlink -f "$(command -v "$kentongan")")"

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    directory="$(cd "$1" && pwd)"
else
    directory="$(mktemp -d)"
    temporary="$directory"
fi

processes=()
finish() {
    [ ${#processes[@]} -eq 0 ] || kill "${processes[@]}" 2>/dev/null || true
    wait
    [ -z "${temporary:-}" ] || rm -r "$temporary"
}
trap finish EXIT
trap 'exit 0' INT TERM

# Starts a program in the background, with a log of its own.
start() {
    local name="$1"
    shift
    (cd "$directory" && exec "$@") >"$directory/$name.log" 2>&1 </dev/null &
    processes+=($!)
}

for number in 1 2 3; do
    start "node-$number" "$kentongan" --local "$number/3"
done
# Without the PROXY protocol: these nodes take clients from this machine directly as well.
sed 's/ send-proxy-v2//' "$deploy/haproxy/haproxy.cfg" >"$directory/haproxy.cfg"
start haproxy haproxy -db -f "$directory/haproxy.cfg"
sed -E "s/^( *(scrape|evaluation)_interval:).*/\1 $interval/; s|alerts.yml|$deploy/prometheus/alerts.yml|" \
    "$deploy/prometheus/prometheus.yml" >"$directory/prometheus.yml"
start prometheus prometheus --config.file="$directory/prometheus.yml" --storage.tsdb.path="$directory/prometheus" \
    --web.listen-address=127.0.0.1:9090

echo "clients: mqtt://127.0.0.1:2883   Prometheus: http://127.0.0.1:9090   logs: $directory"
# One that ends by itself ends the look.
wait -n || true
echo "look.sh: a program has ended; see $directory/*.log" >&2
tail -n 3 "$directory"/*.log >&2
exit 1
