#!/usr/bin/env python3
"""What subscriptions and sessions take of the memory of each of three nodes; docs/benchmarks.md has the figures.

    KENTONGAN=target/release/kentongan tools/cluster_memory.py

Bytes are those that the process has from its allocator (`process_heap_bytes`).
"""

import asyncio
import pathlib
import re
import struct
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "clients"))

from cluster import Cluster

FILTERS = 300_000
FILTERS_A_CLIENT = 10_000
FILTERS_A_PACKET = 500
SESSIONS_A_ROUND = 30_000
ROUNDS = 4
AT_A_TIME = 60

# /metrics is up to a second behind, and what a round leaves to be done is done soon after.
REST_SECONDS = 4

CONNACK, SUBACK, DISCONNECT = 0x20, 0x90, bytes([0xE0, 0])


def text(value):
    return struct.pack(">H", len(value.encode())) + value.encode()


def packet(first, body):
    length, rest = b"", len(body)
    while True:
        rest, low = divmod(rest, 128)
        length += bytes([low | (128 if rest else 0)])
        if not rest:
            return bytes([first]) + length + body


async def expect(reader, kind):
    """Answers here are shorter than 128 bytes, or all of the same kind: their length is read as one of two bytes at most."""
    first, length = await reader.readexactly(2)
    if length > 127:
        length = length - 128 + 128 * (await reader.readexactly(1))[0]
    body = await reader.readexactly(length)
    assert first == kind and 0x80 not in body[2:], (first, body)


async def client(node, name, filters, qos, clean):
    """Connects and subscribes; returns the connection."""
    reader, writer = await asyncio.open_connection(*node.address)
    writer.write(packet(0x10, text("MQTT") + bytes([4, 2 if clean else 0, 0, 0]) + text(name)))
    await expect(reader, CONNACK)
    for begin in range(0, len(filters), FILTERS_A_PACKET):
        some = b"".join(text(one) + bytes([qos]) for one in filters[begin : begin + FILTERS_A_PACKET])
        writer.write(packet(0x82, b"\x00\x01" + some))
        await expect(reader, SUBACK)
    return writer


async def session(node, number):
    """One that outlives its connection, with a subscription."""
    writer = await client(node, f"session-{number:06}", [f"plant/{number:06}/command"], 1, clean=False)
    writer.write(DISCONNECT)
    await writer.drain()
    writer.close()


async def together(coroutines):
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(coroutine):
        async with gate:
            return await coroutine

    return await asyncio.gather(*(one(coroutine) for coroutine in coroutines))


def heaps(cluster):
    time.sleep(REST_SECONDS)
    found = []
    for node in cluster.nodes:
        page = urllib.request.urlopen(f"http://{node.http}/metrics", timeout=REST_SECONDS).read().decode()
        found.append(float(re.search(r"^process_heap_bytes (\S+)$", page, re.M)[1]))
    return found


async def subscriptions(cluster):
    before = heaps(cluster)
    clients = [
        client(cluster.nodes[0], f"client-{one}", [f"devices/{one:03}{number:05}/command" for number in range(FILTERS_A_CLIENT)], 0, clean=True)
        for one in range(FILTERS // FILTERS_A_CLIENT)
    ]
    held = await together(clients)
    print("bytes a subscription of a session that ends with its connection, at its node and at two others:")
    print("   ", [round((after - first) / FILTERS) for after, first in zip(heaps(cluster), before)])
    for writer in held:
        writer.close()


async def sessions(cluster):
    before = heaps(cluster)
    for number in range(ROUNDS):
        first = number * SESSIONS_A_ROUND
        await together(session(cluster.nodes[one % 3], one) for one in range(first, first + SESSIONS_A_ROUND))
        count = first + SESSIONS_A_ROUND
        print(f"bytes a persistent session with one subscription, of {count:,}, at each node:")
        print("   ", [round((after - first) / count) for after, first in zip(heaps(cluster), before)], flush=True)


def main():
    for measure in (subscriptions, sessions):
        cluster = Cluster()
        try:
            asyncio.run(measure(cluster))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
