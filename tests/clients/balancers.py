"""HAProxy, NGINX and Envoy, as deploy/ has them, in front of three nodes: each spreads clients, says by the PROXY protocol who they
are, and those of a node that is drained or stops come back through it to the others."""

import collections
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unittest

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes

from cluster import Cluster
from support import DEADLINE_SECONDS, V5, V311, properties, unique, wait_for

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"

SUBSCRIBERS = 18
# Of each publisher; every subscriber gets all of them. A program that is built for its tests must keep up with three nodes on one
# small machine: nodes without a lease for a moment refuse, which is none of what is tried here.
MESSAGES_A_SECOND = 10
UNACKNOWLEDGED_MAX = 10
CROWDS_MAX = 3

# Whence a client comes whose address is looked for: from the balancer's own it could not be told apart.
FROM = "127.0.0.9"


class Balancer:
    """One of the programs, with the ports of the nodes instead of those in its file."""

    file = None
    # What stands for the nodes in the file, and for the address where clients connect.
    servers = None
    listens_at = None

    def __init__(self, cluster, place):
        self.cluster = cluster
        host, port = cluster.nodes[0].host, cluster.nodes[-1].port + 10 + place
        self.address = (host, port)
        self.path = pathlib.Path(cluster.directory.name, self.file.name)
        self.log = self.path.with_suffix(".log")
        self.write()
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self.file.name, self._listens)

    def write(self, away=()):
        """The file; `away` are nodes that are to get no clients, where the program cannot find out by itself."""
        text = self.file.read_text(encoding="utf-8")
        text, bound = re.subn(self.listens_at, lambda match: match[1] + self.listener(*self.address), text)
        servers = "".join(self.server(number, node, number in away) for number, node in enumerate(self.cluster.nodes))
        text, replaced = re.subn(self.servers, lambda _: servers, text)
        assert (bound, replaced) == (1, 1), "the file names one listener, and its servers one after the other"
        self.path.write_text(text, encoding="utf-8")

    @staticmethod
    def listener(host, port):
        return f"{host}:{port}"

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


class HAProxy(Balancer):
    file = DEPLOY / "haproxy" / "haproxy.cfg"
    servers = r"(    server n\d \S+ port \d+\n)+"
    listens_at = r"(bind )\S+"

    def command(self):
        return ["haproxy", "-db", "-f", self.path]

    @staticmethod
    def server(number, node, _away):
        return f"    server n{number} {node.host}:{node.port} port {node.http.rsplit(':', 1)[1]}\n"


class NGINX(Balancer):
    file = DEPLOY / "nginx" / "nginx.conf"
    servers = r"( +server \S+ max_fails=1 fail_timeout=5s;\n)+"
    listens_at = r"(listen )\S+"

    def command(self):
        return ["nginx", "-c", self.path, "-g", f"daemon off; pid {self.cluster.directory.name}/nginx.pid;"]

    def write(self, away=()):
        super().write(away)
        text = self.path.read_text(encoding="utf-8")
        # As many descriptors as there are, wherever this runs.
        text = text.replace("worker_rlimit_nofile", "# worker_rlimit_nofile")
        self.path.write_text(text.replace("131072", "1024"), encoding="utf-8")

    @staticmethod
    def server(_number, node, away):
        return f"        server {node.host}:{node.port} max_fails=1 fail_timeout=5s{' down' if away else ''};\n"

    def leave_alone(self, *nodes):
        self.write(nodes)
        self.process.send_signal(signal.SIGHUP)


class Envoy(Balancer):
    file = DEPLOY / "envoy" / "envoy.yaml"
    endpoint = """\
              - endpoint:
                  address: {socket_address: {address: %s, port_value: %s}}
                  health_check_config: {port_value: %s}
"""
    servers = f"({re.escape(endpoint).replace('%s', '[0-9.]+')})+"
    listens_at = r"(name: mqtt\n +address: \{socket_address: )\{[^}]*\}"

    def command(self):
        program = shutil.which("envoy", path=pathlib.Path(sys.executable).parent)
        # What runs beside it on this machine may have the same number in shared memory.
        return [program, "-c", self.path, "--disable-hot-restart"]

    @staticmethod
    def listener(host, port):
        return f"{{address: {host}, port_value: {port}}}"

    def server(self, _number, node, _away):
        return self.endpoint % (node.host, node.port, node.http.rsplit(":", 1)[1])


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
        # paho calls this, with a code of its own, for a CONNECT that was refused too.
        if self.connected.is_set():
            self.ends.append(reason_code.value)
        self.connected.clear()

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
        # Once more is as good.
        self.client.stop()
        # Each identifier stands for the message that was sent by it last: there are more of them than messages here.
        return [self.numbers[mid] for mid in self.mids]


class Behind:
    """What each balancer must do; `least` clients at each node is what it calls spread."""

    balancer = None
    least = 5
    cluster = None

    @classmethod
    def setUpClass(cls):
        # One for all balancers, one after the other.
        if Behind.cluster is None:
            Behind.cluster = Cluster(', proxy_protocol_from=["127.0.0.1"], allow_anonymous=true')
            unittest.addModuleCleanup(Behind.cluster.stop)
        cls.proxy = cls.balancer(cls.cluster, BALANCERS.index(cls.balancer))
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
        publishers = []
        for version in (V311, V5):
            publishers.append(Publishing(version, self.proxy.address, topic))
            self.addCleanup(publishers[-1].stop)
        return subscribers, publishers

    def spread_crowd(self):
        """The same, spread over all nodes. On a machine that has much else to do a balancer may miss an answer of a node's health and
        give it no clients for two seconds: those that came meanwhile stay where they are, so others come instead."""
        for _ in range(CROWDS_MAX - 1):
            subscribers, publishers = self.crowd()
            try:
                self.wait_for_spread(self.least, self.least, self.least)
                return subscribers, publishers
            except AssertionError as error:
                print(f"once more, as {error}", file=sys.stderr)
            for one in subscribers + publishers:
                one.stop()
            wait_for("all to be gone", lambda: sum(node.connections() for node in self.cluster.nodes) == 0)
        subscribers, publishers = self.crowd()
        self.wait_for_spread(self.least, self.least, self.least)
        return subscribers, publishers

    def settle(self, subscribers, publishers):
        """Everything that was acknowledged reaches every subscriber. Both publishers count from 0."""
        owed = [number for publisher in publishers for number in publisher.stop()]
        self.assertGreater(len(owed), MESSAGES_A_SECOND)
        owed = collections.Counter(owed)
        for subscriber in subscribers:
            # A duplicate may follow a break, so there may be more.
            # Copied in one go, as more may come meanwhile.
            wait_for(f"all that {subscriber.name} is owed", lambda one=subscriber: not owed - collections.Counter(dict(one.received)))

    def publish(self, client_id):
        """Publishes once: it fails if the first node that it is given refuses it."""
        host, port = self.proxy.address
        command = ["mosquitto_pub", "-h", host, "-p", str(port), "-A", FROM, "-i", client_id, "-t", "t", "-m", "x", "-q", "1"]
        subprocess.run(command, check=True, timeout=DEADLINE_SECONDS)

    def before_a_drain(self):
        """What its operator does first."""

    def after_a_drain(self):
        """Undoes that."""

    def test_clients_are_known_by_their_own_addresses(self):
        """The nodes do not take a connection whose balancer does not say for whom it is."""
        client_id = unique("known")
        self.publish(client_id)
        logs = [node.log.read_text(encoding="utf-8") for node in self.cluster.nodes]
        lines = [line for log in logs for line in log.splitlines() if client_id in line]
        self.assertTrue(lines)
        for line in lines:
            self.assertIn(f'"{FROM}:', line)

    def test_clients_are_spread_and_come_back_to_others_when_a_node_is_drained(self):
        subscribers, publishers = self.spread_crowd()

        self.before_a_drain()
        # Whatever comes of it, the next ones find the cluster as it was.
        self.addCleanup(self.after_a_drain)
        self.addCleanup(self.undo_drain)
        output = self.cluster.administer(1, "drain", "n0", "--wait-seconds", "20")
        self.assertIn("n0 is drained", output)
        wait_for("all to be back", lambda: all(one.connected.is_set() for one in subscribers))
        self.wait_for_spread(None, self.least + 2, self.least + 2)
        for _ in self.cluster.nodes:
            self.publish(unique("late"))
        moved = [one for one in subscribers if one.ends]
        # The other two may be the publishers.
        self.assertGreaterEqual(len(moved), self.least - 2)
        # Use another server, which is all that 3.1.1 has no word for.
        reasons = {end for one in moved if one.paho.protocol == V5 for end in one.ends}
        self.assertLessEqual(reasons, {0x9C})
        self.settle(subscribers, publishers)

    def undo_drain(self):
        self.cluster.administer(1, "drain", "n0", "--undo")
        self.cluster.nodes[0].wait_until_ready()


class BehindHAProxy(Behind, unittest.TestCase):
    balancer = HAProxy

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


class BehindNGINX(Behind, unittest.TestCase):
    balancer = NGINX

    def before_a_drain(self):
        self.proxy.leave_alone(0)

    def after_a_drain(self):
        self.proxy.leave_alone()


class BehindEnvoy(Behind, unittest.TestCase):
    balancer = Envoy
    # Of two nodes that it draws it takes the one with fewer.
    least = 4


BALANCERS = [HAProxy, NGINX, Envoy]


if __name__ == "__main__":
    unittest.main()
