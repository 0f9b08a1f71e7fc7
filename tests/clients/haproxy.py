"""HAProxy, as deploy/haproxy/haproxy.cfg has it, in front of three nodes: it spreads clients, and those of a node that is
drained or stops come back through it to the others."""

import collections
import pathlib
import re
import signal
import socket
import subprocess
import threading
import unittest

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes

from cluster import Cluster
from support import DEADLINE_SECONDS, V5, V311, properties, unique, wait_for

CONFIGURATION = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"

SUBSCRIBERS = 18
MESSAGES_A_SECOND = 50
UNACKNOWLEDGED_MAX = 10


class Proxy:
    """The program, with the ports of the nodes instead of those in the file."""

    def __init__(self, cluster):
        host, port = cluster.nodes[0].host, cluster.nodes[-1].port + 10
        self.address = (host, port)
        text = CONFIGURATION.read_text(encoding="utf-8")
        text, bound = re.subn(r"bind \S+", f"bind {host}:{port}", text)
        servers = "".join(
            f"    server n{number} {node.host}:{node.port} port {node.http.rsplit(':', 1)[1]}\n"
            for number, node in enumerate(cluster.nodes)
        )
        text, replaced = re.subn(r"(    server n\d \S+ port \d+\n)+", servers, text)
        assert (bound, replaced) == (1, 1), "the file names one listener, and its servers one after the other"
        file = pathlib.Path(cluster.directory.name, "haproxy.cfg")
        file.write_text(text, encoding="utf-8")
        self.log = pathlib.Path(cluster.directory.name, "haproxy.log")
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(["haproxy", "-db", "-f", file], stdout=log, stderr=log)
        wait_for("HAProxy", self._listens)

    def _listens(self):
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        try:
            socket.create_connection(self.address, timeout=1).close()
            return True
        except OSError:
            return False

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE_SECONDS)


class Returning:
    """A client with a session, which comes back as often as its connection ends."""

    def __init__(self, version, address):
        self.name = unique("returning")
        clean = {"clean_session": False} if version != V5 else {}
        self.paho = paho.Client(paho.CallbackAPIVersion.VERSION2, self.name, protocol=version, **clean)
        self.paho.reconnect_delay_set(min_delay=0.1, max_delay=1)
        self.received = collections.Counter()
        self.connected = threading.Event()
        self.ends = []
        self.subscribed = threading.Event()
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_message = lambda _c, _u, message: self.received.update([int(message.payload)])
        self.paho.on_subscribe = lambda *_: self.subscribed.set()
        if version == V5:
            expiry = properties(PacketTypes.CONNECT, SessionExpiryInterval=3600)
            self.paho.connect(*address, clean_start=False, properties=expiry)
        else:
            self.paho.connect(*address)
        self.paho.loop_start()
        assert self.connected.wait(DEADLINE_SECONDS), "no CONNACK"

    def _on_connect(self, _client, _userdata, _flags, reason_code, _properties):
        if not reason_code.is_failure:
            self.connected.set()

    def _on_disconnect(self, _client, _userdata, _flags, reason_code, _properties):
        self.connected.clear()
        self.ends.append(reason_code.value)

    def subscribe(self, topic):
        self.paho.subscribe(topic, 1)
        assert self.subscribed.wait(DEADLINE_SECONDS), "no SUBACK"

    def stop(self):
        self.paho.disconnect()
        self.paho.loop_stop()


class Publishing(threading.Thread):
    """Publishes numbers at QoS 1."""

    def __init__(self, version, address, topic):
        super().__init__(daemon=True)
        self.client = Returning(version, address)
        self.topic = topic
        self.stopping = threading.Event()
        self.numbers = {}
        self.client.paho.on_publish = lambda _c, _u, mid, *_: mids.append(mid)
        mids = self.mids = []
        self.start()

    def run(self):
        number = 0
        while not self.stopping.wait(1 / MESSAGES_A_SECOND):
            if len(self.mids) + UNACKNOWLEDGED_MAX <= number:
                continue
            # What is published during a break waits for its end.
            info = self.client.paho.publish(self.topic, str(number), 1)
            self.numbers[info.mid] = number
            number += 1

    def stop(self):
        """Returns the numbers that were acknowledged."""
        self.stopping.set()
        self.join()
        self.client.stop()
        # Each identifier stands for the message that was sent by it last: there are more of them than messages here.
        return [self.numbers[mid] for mid in self.mids]


class Behind(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.stop)
        cls.proxy = Proxy(cls.cluster)
        cls.addClassCleanup(cls.proxy.stop)

    def wait_for_spread(self, *least):
        """Waits until all clients are connected, and at least so many to each node; `None` is for a node that has none.

        /metrics is up to a second behind.
        """

        def is_spread():
            counts = [node.connections() for node in self.cluster.nodes]
            enough = all(count == 0 if wanted is None else count >= wanted for count, wanted in zip(counts, least))
            return sum(counts) == SUBSCRIBERS + 2 and enough

        wait_for(f"at least {least} clients at the nodes", is_spread)

    def crowd(self):
        """Subscribers of both versions and two publishers, all through the proxy."""
        topic = unique("numbers")
        subscribers = [Returning((V311, V5)[number % 2], self.proxy.address) for number in range(SUBSCRIBERS)]
        for subscriber in subscribers:
            self.addCleanup(subscriber.stop)
            subscriber.subscribe(topic)
        publishers = [Publishing(version, self.proxy.address, topic) for version in (V311, V5)]
        return subscribers, publishers

    def settle(self, subscribers, publishers):
        """Everything that was acknowledged reaches every subscriber. Both publishers count from 0."""
        owed = [number for publisher in publishers for number in publisher.stop()]
        self.assertGreater(len(owed), MESSAGES_A_SECOND)
        owed = collections.Counter(owed)
        for subscriber in subscribers:
            # A duplicate may follow a break, so there may be more.
            wait_for(f"all that {subscriber.name} is owed", lambda one=subscriber: not owed - one.received)

    def test_clients_are_spread_and_come_back_to_others_when_a_node_is_drained(self):
        subscribers, publishers = self.crowd()
        self.wait_for_spread(5, 5, 5)

        output = self.cluster.administer(1, "drain", "n0", "--wait-seconds", "20")
        self.assertIn("n0 is drained", output)
        wait_for("all to be back", lambda: all(one.connected.is_set() for one in subscribers))
        self.wait_for_spread(None, 7, 7)
        moved = [one for one in subscribers if one.ends]
        self.assertGreaterEqual(len(moved), 4)
        # Use another server, which is all that 3.1.1 has no word for.
        reasons = {end for one in moved if one.paho.protocol == V5 for end in one.ends}
        self.assertEqual(reasons, {0x9C})
        self.settle(subscribers, publishers)
        self.cluster.administer(1, "drain", "n0", "--undo")
        self.cluster.nodes[0].wait_until_ready()

    def test_nodes_restarted_in_turn_lose_nothing_that_was_acknowledged(self):
        subscribers, publishers = self.crowd()
        self.wait_for_spread(0, 0, 0)
        for number, node in enumerate(self.cluster.nodes):
            node.process.send_signal(signal.SIGTERM)
            self.assertEqual(node.process.wait(2 * DEADLINE_SECONDS), 0)
            node.process = None
            # HAProxy may not have found the one before ready yet, so how many each of the others gets is for chance to say.
            self.wait_for_spread(*(None if other == number else 0 for other in range(3)))
            node.restart()
        self.settle(subscribers, publishers)


if __name__ == "__main__":
    unittest.main()
