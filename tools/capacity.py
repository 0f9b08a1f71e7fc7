#!/usr/bin/env python3
"""The model of capacity in docs/design/capacity.md: what a cluster of so many nodes would come to with so many clients.

    capacity.py write    puts the tables into the page
    capacity.py check    fails if they are not what this makes of the constants

What the code fixes is read from the code, so that the page is stale when that changes. What was measured stands below, as docs/benchmarks.md
has it. Nothing here was run at these sizes: it is arithmetic.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design" / "capacity.md"


def constant(path, name):
    """A constant of the code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return int(re.search(rf"const {name}: \w+ = ([\d_]+);", text)[1].replace("_", ""))


def default(setting):
    """The default of a setting that is a number."""
    text = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    return int(re.search(rf"^### `{re.escape(setting)}`\n.*?^- Default: `(\d+)`$", text, re.M | re.S)[1])


SLOTS = constant("cluster/src/directory/mod.rs", "SLOTS")
VOTERS = default("cluster.voters")
GROUPS_DEFAULT = default("storage.groups")
RENEW_SECONDS = constant("cluster/src/lease/mod.rs", "RENEW_INTERVAL_NS") / 1e9

# Measured: docs/benchmarks.md, in the sections of these rows. Bytes are those of the heap or resident, seconds those of the CPU.
CONNECTION_TLS_BYTES = 6_859
SUBSCRIPTION_OWN_BYTES = 407
SUBSCRIPTION_ELSEWHERE_BYTES = 127
SESSION_BYTES = 3_400
MESSAGE_DURABLE_SECONDS = 21e-6
CONNECT_SECONDS = 147e-6
HANDSHAKE_SECONDS = 182e-6
IDLE_CPU = 0.011
IDLE_CPU_A_REPLICA = 0.000_065

# Assumed: what the clients are like, and the machines.
CLIENTS = 100_000_000
FILTER_BYTES = 24
SECONDS_BETWEEN_MESSAGES = 10
MEMORY_BYTES = 48 * 2**30

# What `entry_bytes` in cluster/src/interest/mod.rs reckons for an entry beside its filter.
ENTRY_BYTES = 16


def groups(nodes):
    """Eight for each node that votes, so that what a lost node kept is spread over all others; at most one a slot."""
    return min(SLOTS, max(GROUPS_DEFAULT, 8 * nodes // VOTERS * VOTERS))


def node_bytes(clients, nodes, persistent):
    """Memory of a node: connections with a subscription of their own each, what others want, and the sessions that it keeps."""
    here = clients / nodes
    kept = here * VOTERS * SESSION_BYTES if persistent else 0
    own = here * (CONNECTION_TLS_BYTES + SUBSCRIPTION_OWN_BYTES)
    return own + (clients - here) * SUBSCRIPTION_ELSEWHERE_BYTES + kept


def gib(size):
    return f"{size / 2**30:,.1f}"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def by_nodes():
    header = [
        "nodes", "clients a node", "connections, GiB", "interest of others, GiB", "sessions kept, GiB", "groups", "replicas a node", "sessions a group",
        "idle, of a core", "messages a second and node", "cores for them", "a lost node's clients, CPU s of each other", "a joiner is sent, GiB",
    ]  # fmt: skip
    rows = []
    for nodes in (10, 30, 100, 300, 1000):
        here, many = CLIENTS / nodes, groups(nodes)
        messages = here / SECONDS_BETWEEN_MESSAGES
        back = here * (CONNECT_SECONDS + HANDSHAKE_SECONDS) / (nodes - 1)
        rows.append([
            f"{nodes:,}",
            f"{here:,.0f}",
            gib(here * (CONNECTION_TLS_BYTES + SUBSCRIPTION_OWN_BYTES)),
            gib((CLIENTS - here) * SUBSCRIPTION_ELSEWHERE_BYTES),
            gib(here * VOTERS * SESSION_BYTES),
            f"{many:,}",
            f"{many * VOTERS / nodes:,.0f}",
            f"{CLIENTS / many:,.0f}",
            f"{100 * (IDLE_CPU + IDLE_CPU_A_REPLICA * many * VOTERS / nodes):.1f} %",
            f"{messages:,.0f}",
            f"{messages * MESSAGE_DURABLE_SECONDS:,.1f}",
            f"{back:,.1f}",
            gib(CLIENTS * (FILTER_BYTES + ENTRY_BYTES)),
        ])  # fmt: skip
    return table(header, rows)


def most_clients():
    """The most clients that fit into the memory of so many nodes."""

    def most(nodes, persistent):
        # What a node takes grows evenly with the clients.
        return MEMORY_BYTES / node_bytes(1, nodes, persistent)

    rows = [
        [f"{nodes:,}", *(f"{most(nodes, persistent) / 1e6:,.0f} million" for persistent in (False, True))]
        for nodes in (3, 10, 30, 100, 300, 1000)
    ]
    limit = MEMORY_BYTES / SUBSCRIPTION_ELSEWHERE_BYTES / 1e6
    rows.append(["without end", f"{limit:,.0f} million", f"{limit:,.0f} million"])
    return table(["nodes", "sessions that end with their connection", "persistent sessions"], rows)


TABLES = {"by nodes": by_nodes, "most clients": most_clients}


def renewed(page):
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: made by tools/capacity.py -->\n", f"<!-- end of {name} -->"
        if begin not in page or end not in page:
            sys.exit(f"{PAGE.relative_to(ROOT)}: there is no place for the table {name!r}")
        before, _, rest = page.partition(begin)
        page = before + begin + "\n" + make() + "\n\n" + end + rest.partition(end)[2]
    return page


def main():
    page = PAGE.read_text(encoding="utf-8")
    match sys.argv[1:]:
        case ["write"]:
            PAGE.write_text(renewed(page), encoding="utf-8")
        case ["check"]:
            if renewed(page) != page:
                sys.exit(f"{PAGE.relative_to(ROOT)} is stale: tools/capacity.py write")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
