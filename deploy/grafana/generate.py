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


def dashboard(uid, title, about, *panels):
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
                variable("job", "Job", "label_values(kentongan_connections, job)"),
                variable("instance", "Node", 'label_values(kentongan_connections{job=~"$job"}, instance)'),
            ]
        },
        "panels": list(panels),
    }


OVERVIEW = dashboard(
    "kentongan-overview", "Kentongan: overview", "The whole cluster on one page.",
    stat("Clients", "short", total(select("kentongan_connections"))),
    stat("Messages in", "mps", total(rate("kentongan_messages_received_total"))),
    stat("Messages out", "mps", total(rate("kentongan_messages_sent_total"))),
    stat("Dropped", "mps", total(rate("kentongan_messages_dropped_total"))),
    panel("Messages from clients", "mps", (total(rate("kentongan_messages_received_total"), "qos"), "QoS {{qos}}"), stack=True),
    panel("Messages to clients", "mps", (total(rate("kentongan_messages_sent_total"), "qos"), "QoS {{qos}}"), stack=True),
    panel("Clients by node", "short", (select("kentongan_connections"), NODE), stack=True),
)

DASHBOARDS = {"overview": OVERVIEW}


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
