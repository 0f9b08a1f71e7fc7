#!/usr/bin/env python3
"""Writes dashboards/*.json, which Grafana (10 or later) imports as they are.

    deploy/grafana/generate.py            after a change of this file
    deploy/grafana/generate.py --check    whether they are what this file says

Each panel is a line here: what it shows, in which unit, and the queries with the legends of their series. `$job` and
`$instance` are chosen at the top of a dashboard.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8

# What every selector begins with.
OF = 'job=~"$job",instance=~"$instance"'
NODE = "{{instance}}"
GROUP = 'group=~"$group"'


def select(metric, *labels):
    """The chosen nodes' series of a metric."""
    return f"{metric}{{{','.join([OF, *labels])}}}"


def rate(metric, *labels):
    return f"rate({select(metric, *labels)}[$__rate_interval])"


def total(expression, *by):
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def quantiles(metric, *labels, by=()):
    """The median and the 99th percentile of a histogram."""
    grouped = total(rate(f"{metric}_bucket", *labels), "le", *by)
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return [(f"histogram_quantile({share}, {grouped})", f"{name} {legend}".strip()) for share, name in ((0.5, "p50"), (0.99, "p99"))]


def panel(title, unit, *queries, says="", kind="timeseries", width=8, stack=False):
    """`unit` as Grafana names them; `says`: what the small i in the corner tells."""
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if stack else "none"}}
    one = {
        "title": title,
        "type": kind,
        "description": says,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, **({"custom": custom} if kind == "timeseries" else {})}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(queries)
        ],
        "gridPos": {"w": width, "h": HEIGHT},
    }
    if kind == "stat":
        one["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
        one["gridPos"]["h"] = HEIGHT // 2
    return one


def stat(title, unit, query, says=""):
    return panel(title, unit, (query, ""), says=says, kind="stat", width=4)


def variable(name, label, query, **more):
    return {
        "name": name, "label": label, "type": "query", "datasource": DATASOURCE, "refresh": 2, "sort": 1,
        "query": {"query": query, "refId": name}, "definition": query, "includeAll": True, "multi": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, **more,
    }


def dashboard(uid, title, about, *panels, variables=()):
    """Panels from left to right, as many in a row as have room."""
    x = y = row = 0
    for number, one in enumerate(panels, 1):
        position = one["gridPos"]
        if x + position["w"] > WIDTH:
            x, y, row = 0, y + row, 0
        one["id"] = number
        position.update(x=x, y=y)
        x, row = x + position["w"], max(row, position["h"])
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["kentongan"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["kentongan"], "title": "Kentongan", "asDropdown": True, "includeVars": True, "keepTime": True}],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
                variable("job", "Job", "label_values(kentongan_build_info, job)"),
                variable("instance", "Node", 'label_values(kentongan_build_info{job=~"$job"}, instance)'),
                *variables,
            ]
        },
        "panels": list(panels),
    }


def by_reason(title, metric, label="reason", says="", **more):
    return panel(title, "ops", (total(rate(metric), label), f"{{{{{label}}}}}"), says=says, **more)


def by_node(title, unit, expression, says="", **more):
    return panel(title, unit, (expression, NODE), says=says, **more)


def times(title, metric, says="", by=()):
    return panel(title, "s", *quantiles(metric, by=by), says=says)


ACK = times(
    "From PUBLISH to its acknowledgement", "kentongan_publish_ack_seconds",
    "QoS 1 and 2, where the log or another node must have the message first. Sampled.",
)
DELIVER = times(
    "From PUBLISH to its delivery", "kentongan_publish_deliver_seconds",
    "On one node: from reading a message to writing it to the sockets of its subscribers. Sampled once a turn of an arbiter.",
)
COMMIT = times("From a command to its commit", "kentongan_commit_seconds", "On a majority's disks. Sampled.")
SYNC = times("Syncs of the log", "kentongan_log_sync_seconds", "What the disk takes.", by=("instance",))

OVERVIEW = dashboard(
    "kentongan-overview", "Kentongan: overview", "The whole cluster on one page.",
    stat("Nodes ready", "short", f"sum(min by (instance) ({select('kentongan_ready')}))", "Those to which balancers send clients."),
    stat("Nodes missing", "short", f"max({select('kentongan_cluster_members')}) - count({select('kentongan_cluster_members')})", "Members of the cluster that Prometheus does not see."),
    stat("Clients", "short", total(select("kentongan_connections"))),
    stat("Messages in", "mps", total(rate("kentongan_messages_received_total"))),
    stat("Messages out", "mps", total(rate("kentongan_messages_sent_total"))),
    stat("Dropped", "mps", total(rate("kentongan_messages_dropped_total"))),
    stat("Groups without a leader", "short", f"sum(1 - max by (group) ({select('kentongan_raft_has_leader')}))"),
    panel("Messages from clients", "mps", (total(rate("kentongan_messages_received_total"), "qos"), "QoS {{qos}}"), stack=True),
    panel("Messages to clients", "mps", (total(rate("kentongan_messages_sent_total"), "qos"), "QoS {{qos}}"), stack=True),
    by_reason("Messages dropped", "kentongan_messages_dropped_total", says="What each reason means: docs/reference/metrics.md."),
    by_node("Clients by node", "short", select("kentongan_connections"), stack=True),
    panel(
        "Sessions and subscriptions", "short",
        (total(select("kentongan_sessions")), "sessions"), (total(select("kentongan_subscriptions")), "subscriptions"),
    ),
    panel(
        "Connections made and ended", "ops",
        (total(rate("kentongan_connects_accepted_total")), "accepted"),
        (total(rate("kentongan_connects_refused_total")), "refused"),
        (total(rate("kentongan_connections_closed_total")), "closed"),
    ),
    ACK, DELIVER, COMMIT,
    panel(
        "Messages that wait", "short",
        (total(select("kentongan_queued_messages")), "queued"), (total(select("kentongan_inflight_messages")), "in flight"),
        (total(select("kentongan_delayed_messages")), "delayed"),
    ),
    panel("Retained messages", "short", (total(select("kentongan_retained_messages")), "messages")),
    panel(
        "Bytes of clients", "Bps",
        (total(rate("kentongan_received_bytes_total")), "received"), (total(rate("kentongan_sent_bytes_total")), "sent"),
    ),
)

NODES = dashboard(
    "kentongan-node", "Kentongan: node", "What each process has and does.",
    by_node("CPU", "short", f"{rate('process_cpu_seconds_total')} and on (job, instance) {select('kentongan_build_info')}", "Cores in use."),
    panel(
        "Memory", "bytes",
        (select("process_resident_memory_bytes"), "resident " + NODE), (select("process_heap_bytes"), "allocated " + NODE),
        (f"{select('kentongan_memory_high_water_bytes')}", "mark " + NODE),
        says="Allocated is what the mark (limits.memory_bytes_high_water) is held against; resident less that is what the allocator keeps for later. A mark of 0 is none.",
    ),
    by_node("Memory over its mark", "short", select("kentongan_memory_level"), "1: new clients are refused, 2: publishers are not read, 3: the slowest subscribers are closed."),
    times("Turns of arbiters", "kentongan_arbiter_turn_seconds", "From the first packet of a turn to its last write.", by=("instance",)),
    times("Lateness of arbiters", "kentongan_arbiter_late_seconds", "How long everything else on an arbiter waits, too.", by=("instance",)),
    by_node("Overloaded", "short", select("kentongan_overloaded"), "1: publishers are not read until others have caught up."),
    panel(
        "Between arbiters", "ops",
        (total(rate("kentongan_arbiter_batches_total"), "instance"), "batches " + NODE),
        (total(rate("kentongan_arbiter_wakeups_total"), "instance"), "wake-ups " + NODE),
        (total(rate("kentongan_flushes_total"), "instance"), "writes " + NODE),
    ),
    by_node(
        "Subscribers found in the cache", "percentunit",
        f"{rate('kentongan_route_cache_hits_total')} / ({rate('kentongan_route_cache_hits_total')} + {rate('kentongan_route_cache_misses_total')} > 0)",
    ),
    panel("Filters and what wants them", "short", (select("kentongan_index_filters"), "filters " + NODE), (select("kentongan_index_subscriptions"), "wanted by " + NODE)),
    SYNC,
    by_node("Sync under way", "s", select("kentongan_log_sync_oldest_seconds"), "A disk that does not answer is seen here only."),
    panel("Log and disk", "bytes", (select("kentongan_log_size_bytes"), "log " + NODE), (select("kentongan_disk_free_bytes"), "free " + NODE), (select("kentongan_disk_reserve_bytes"), "kept free " + NODE), (select("kentongan_log_in_flight_bytes"), "not applied " + NODE)),
    panel(
        "Commands and checkpoints", "ops",
        (rate("kentongan_log_commands_total"), "commands " + NODE), (rate("kentongan_checkpoints_total"), "checkpoints " + NODE),
        (rate("kentongan_log_descriptors_missing_total"), "without descriptors " + NODE),
        (rate("kentongan_log_segments_purged_total"), "segments purged " + NODE),
    ),
    panel("Links with other nodes", "short", (select("kentongan_peer_up"), NODE + " to {{peer}}")),
    panel("Sent to other nodes", "Bps", (total(rate("kentongan_peer_bytes_sent_total"), "instance", "class"), NODE + " {{class}}")),
    panel(
        "Messages for other nodes that were not sent", "ops",
        (total(rate("kentongan_peer_messages_lost_total"), "instance", "reason"), NODE + " {{reason}}"),
        says="What must arrive is sent again.",
    ),
    panel("Faults of links", "ops", (total(rate("kentongan_peer_failures_total"), "instance", "reason"), NODE + " {{reason}}")),
    panel(
        "Lanes without an answer", "short",
        (total(select("kentongan_lane_group_backlog"), "instance"), "groups " + NODE),
        (total(select("kentongan_lane_node_backlog"), "instance"), "nodes " + NODE),
        (select("kentongan_shared_messages_elsewhere"), "shared " + NODE),
    ),
    panel("Descriptors", "short", (select("process_open_fds"), "open " + NODE), (select("process_max_fds"), "allowed " + NODE), (select("kentongan_connections_max"), "for clients " + NODE)),
    by_node("Threads", "short", select("process_threads")),
    by_node("Up for", "s", f"time() - {select('process_start_time_seconds')} and on (job, instance) {select('kentongan_build_info')}"),
    panel("Readiness", "short", (select("kentongan_ready"), NODE + " {{condition}}"), says="A node is ready if all are 1."),
)

RAFT = dashboard(
    "kentongan-raft", "Kentongan: Raft", "Leases, and the groups that keep what must not be lost.",
    stat("Groups without a leader", "short", f"sum(1 - max by (group) ({select('kentongan_raft_has_leader')}))"),
    stat("Replicas missed by leaders", "short", f"sum({select('kentongan_raft_voters')} - {select('kentongan_raft_voters_heard')})"),
    by_node("Groups led", "short", total(select("kentongan_raft_leader"), "instance"), stack=True),
    by_node("Lease left", "s", select("kentongan_lease_seconds"), "Renewed every 0.3 s; a node without one acknowledges nothing."),
    panel(
        "Leases lost", "ops",
        (rate("kentongan_lease_lapses_total"), "ran out " + NODE), (rate("kentongan_declared_dead_total"), "declared dead " + NODE),
    ),
    panel("Terms", "short", (f"max by (group) ({select('kentongan_raft_term', GROUP)})", "{{group}}")),
    panel("Leader changes", "ops", (f"max by (group) ({rate('kentongan_raft_leader_changes_total', GROUP)})", "{{group}}")),
    panel("Elections won", "ops", (total(rate("kentongan_raft_elections_won_total", GROUP), "instance"), NODE)),
    panel("Entries committed", "ops", (f"max by (group) ({rate('kentongan_raft_commit_index', GROUP)})", "{{group}}"), stack=True),
    panel("Not committed", "short", (f"max by (group) ({select('kentongan_raft_last_index', GROUP)} - {select('kentongan_raft_commit_index', GROUP)})", "{{group}}"), says="Entries of the log beyond what a node knows to be committed."),
    panel("Not applied", "short", (f"max by (instance) ({select('kentongan_raft_commit_index', GROUP)} - {select('kentongan_raft_applied_index', GROUP)})", NODE), says="Entries that are committed and not applied, of the group that has most of them."),
    panel("Replicas behind", "short", (f"max by (group) ({select('kentongan_raft_replication_lag_entries', GROUP)})", "{{group}}"), says="Entries that the voter which is furthest behind does not have."),
    panel("Voters heard", "short", (f"min by (group) ({select('kentongan_raft_voters_heard', GROUP)})", "{{group}}")),
    panel(
        "Snapshots", "ops",
        (total(rate("kentongan_raft_snapshots_installed_total", GROUP), "instance"), "installed " + NODE),
        (rate("kentongan_raft_snapshots_failed_total"), "failed " + NODE),
    ),
    COMMIT, SYNC, ACK,
    variables=[variable("group", "Group", 'label_values(kentongan_raft_term{job=~"$job"}, group)')],
)

CLIENTS = dashboard(
    "kentongan-clients", "Kentongan: clients and abuse", "Who comes, who is refused, and who asks for too much.",
    panel("Sockets and clients", "ops", (total(rate("kentongan_sockets_accepted_total")), "sockets"), (total(rate("kentongan_connects_accepted_total")), "clients")),
    by_reason("Connections refused", "kentongan_connects_refused_total"),
    by_reason("Connections ended", "kentongan_connections_closed_total"),
    by_reason("Who they are", "kentongan_authentications_total", "outcome"),
    by_reason("TLS handshakes", "kentongan_tls_handshakes_total", "outcome"),
    by_node("TLS handshakes under way", "short", select("kentongan_tls_handshakes_in_progress")),
    by_reason("Packets that break the protocol", "kentongan_packets_malformed_total"),
    by_reason("Publishes refused", "kentongan_publishes_refused_total"),
    by_reason("Subscriptions refused", "kentongan_subscribes_refused_total"),
    by_reason("Messages dropped", "kentongan_messages_dropped_total"),
    panel(
        "Held up, taken over, silent", "ops",
        (total(rate("kentongan_publishers_slowed_total")), "publishers slowed"), (total(rate("kentongan_takeovers_total")), "taken over"),
        (total(rate("kentongan_keep_alive_timeouts_total")), "silent for too long"), (total(rate("kentongan_sessions_expired_total")), "sessions expired"),
        (total(rate("kentongan_subscriptions_revoked_total")), "subscriptions revoked"), (total(rate("kentongan_wills_published_total")), "wills"),
    ),
    by_reason("Packets from clients", "kentongan_packets_received_total", "type", stack=True),
    panel(
        "What sessions hold", "bytes",
        (total(select("kentongan_queued_bytes")), "queues"), (total(select("kentongan_queue_memory_bytes")), "of them in memory"),
        (total(select("kentongan_retained_bytes")), "retained"),
    ),
    panel(
        "Short of something", "ops",
        (total(rate("kentongan_descriptors_exhausted_total")), "descriptors"), (total(rate("kentongan_audit_dropped_total")), "audit log"),
        (total(rate("kentongan_retained_not_kept_total")), "retained messages"), (total(rate("kentongan_log_lines_dropped_total")), "log"),
    ),
    panel("Publishes that nobody wants", "mps", (total(rate("kentongan_publishes_unmatched_total")), "unmatched")),
    by_reason("Authentication server", "kentongan_http_auth_requests_total", "outcome"),
    panel(
        "Authentication server: requests", "short",
        (total(select("kentongan_http_auth_requests_in_progress")), "under way"), (total(select("kentongan_http_auth_waiting")), "waiting"),
        (f"max({select('kentongan_http_auth_breaker')})", "breaker"),
    ),
    by_reason("Keys of tokens fetched", "kentongan_jwks_fetches_total", "outcome"),
    by_reason("Requests to the HTTP API", "kentongan_api_requests_total", "outcome", says="`unauthorized` is wrong tokens: the audit log says where they come from."),
    by_reason("Events of clients that were not told", "kentongan_client_events_dropped_total"),
    by_reason("Webhook: requests", "kentongan_webhook_requests_total", "outcome"),
    panel(
        "Webhook: events", "ops",
        (total(rate("kentongan_webhook_events_delivered_total")), "taken by its server"),
        (total(rate("kentongan_client_events_dropped_total", 'reason!="sys_busy"')), "left out"),
    ),
    panel(
        "Webhook: what waits", "short", (select("kentongan_webhook_waiting_events"), "events " + NODE),
        says="At most events.webhook.queue_events_max of a node; what comes then is left out.",
    ),
    panel("Webhook: bytes that wait", "bytes", (select("kentongan_webhook_waiting_bytes"), NODE), says="At most events.webhook.queue_bytes_max of a node."),
    times("Webhook: time of a request", "kentongan_webhook_request_seconds", "To the last byte of the answer, or to giving up."),
)

DASHBOARDS = {"overview": OVERVIEW, "node": NODES, "raft": RAFT, "clients": CLIENTS}


def main():
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, content in DASHBOARDS.items():
        file, text = HERE / "dashboards" / f"{name}.json", json.dumps(content, indent=1) + "\n"
        if check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            stale.append(file.name)
        elif not check:
            file.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not what generate.py writes: {', '.join(stale)}; run it")


if __name__ == "__main__":
    main()
