"""Publishers and a subscriber that remember: what was acknowledged must come."""

import queue
import random
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

CONNECT_SECONDS = 10
ACKNOWLEDGE_SECONDS = 10
PAUSE_SECONDS = 0.05


class Connection:
    """A client that comes back to any node that is ready, as one behind a Service does."""

    def __init__(self, client_id, where, user, tls=None, expiry=0, on_connected=None, on_message=None):
        self.client_id, self.where, self.user, self.tls, self.expiry = client_id, where, user, tls, expiry
        self.on_connected, self.on_message = on_connected, on_message
        self.paho, self.is_connected, self.connects = None, threading.Event(), 0

    def connect(self):
        """Once; raises an error if it did not succeed."""
        self.close()
        endpoints = self.where()
        if not endpoints:
            raise ConnectionError("no pod is ready")
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, self.client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        client.username_pw_set(*self.user)
        if self.tls:
            client.tls_set(ca_certs=self.tls)
            client.tls_insecure_set(True)
        is_connected, answered = threading.Event(), queue.Queue()

        def on_connect(_client, _userdata, _flags, code, _properties):
            if not code.is_failure:
                is_connected.set()
            answered.put(code)

        client.on_connect = on_connect
        client.on_disconnect = lambda *_: is_connected.clear()
        client.on_message = lambda _c, _u, message: self.on_message(message.payload)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self.expiry
        self.paho, self.is_connected = client, is_connected
        client.connect(*random.choice(endpoints), clean_start=self.expiry == 0, properties=properties)
        client.loop_start()
        try:
            code = answered.get(timeout=CONNECT_SECONDS)
        except queue.Empty:
            raise ConnectionError("no CONNACK") from None
        if code.is_failure:
            raise ConnectionError(f"refused: {code}")
        self.connects += 1
        if self.on_connected:
            self.on_connected(client)

    def close(self):
        if self.paho:
            self.paho.disconnect()
            self.paho.loop_stop()
            self.paho = None

    def keep(self, stop):
        """Connects until it is connected."""
        while not self.is_connected.is_set() and not stop.is_set():
            try:
                self.connect()
            except (OSError, ValueError):
                stop.wait(0.1)


class Load:
    """QoS 1 publishers, and a subscriber whose session outlives its connections."""

    def __init__(self, cluster, user, publishers=3):
        self.stop, self.acknowledged, self.received, self.slowest = threading.Event(), set(), {}, (0, 0)
        self.lock = threading.Lock()
        self.subscribed = threading.Event()
        self.subscriber = Connection(
            "subscriber", cluster.endpoints, user, expiry=3600, on_connected=self._subscribe, on_message=self._take
        )
        self.publishers = [Connection(f"publisher-{number}", cluster.endpoints, user) for number in range(publishers)]
        self.threads = [threading.Thread(target=self._keep_subscribed, daemon=True)]
        self.threads += [
            threading.Thread(target=self._publish, args=(number, connection), daemon=True)
            for number, connection in enumerate(self.publishers)
        ]
        self.threads[0].start()
        assert self.subscribed.wait(30), "the subscriber did not get its SUBACK"
        for thread in self.threads[1:]:
            thread.start()

    def _subscribe(self, client):
        if self.subscribed.is_set():
            return
        client.on_subscribe = lambda *_: self.subscribed.set()
        client.subscribe("load/#", 1)
        self.subscribed.wait(CONNECT_SECONDS)

    def _take(self, payload):
        with self.lock:
            self.received[payload] = self.received.get(payload, 0) + 1

    def _keep_subscribed(self):
        while not self.stop.wait(0.05):
            self.subscriber.keep(self.stop)

    def _publish(self, number, connection):
        count = 0
        while not self.stop.is_set():
            payload, began = f"{number}/{count}".encode(), time.monotonic()
            while not self._publish_once(connection, f"load/{number}", payload):
                if self.stop.is_set():
                    return
            with self.lock:
                self.acknowledged.add(payload)
                self.slowest = max(self.slowest, (time.monotonic() - began, count))
            count += 1
            self.stop.wait(PAUSE_SECONDS)

    def _publish_once(self, connection, topic, payload):
        """Whether it was acknowledged. If not, it is published again, on another connection."""
        connection.keep(self.stop)
        if self.stop.is_set():
            return False
        try:
            info = connection.paho.publish(topic, payload, 1)
            deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
            while not info.is_published() and time.monotonic() < deadline and connection.is_connected.is_set():
                info.wait_for_publish(0.1)
            if info.is_published():
                return True
        except (OSError, RuntimeError, ValueError):
            pass
        connection.is_connected.clear()
        return False

    def progress(self):
        with self.lock:
            return len(self.acknowledged)

    def take_slowest(self):
        """The longest that a message waited for its acknowledgement since this was asked before, all attempts together."""
        with self.lock:
            seconds, self.slowest = self.slowest[0], (0, 0)
        return seconds

    def missing(self):
        with self.lock:
            return self.acknowledged - self.received.keys()

    def end(self):
        """Publishers stop first; then what is under way comes. What never came is returned."""
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
        for publisher in self.publishers:
            publisher.close()
        still = threading.Event()
        deadline = time.monotonic() + 60
        while self.missing() and time.monotonic() < deadline:
            self.subscriber.keep(still)
            time.sleep(0.1)
        self.subscriber.close()
        return self.missing()
