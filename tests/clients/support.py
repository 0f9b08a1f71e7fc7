"""What the Python suites share: where the broker is, and a paho client that remembers what came.

The suites know a broker by its address only, so that they can be tried on any other broker too.
"""

import os
import socket
import threading
import time
import unittest
import uuid

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HOST = os.environ.get("MQTT_HOST", "127.0.0.1")
PORT = int(os.environ.get("MQTT_PORT", "1883"))

# Time within which anything that should happen has happened.
DEADLINE_SECONDS = 10

V311 = paho.MQTTv311
V5 = paho.MQTTv5


def unique(name):
    """A name that no other test uses: the tests share one broker."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def wait_for(what, condition, seconds=DEADLINE_SECONDS):
    """Waits until a condition holds; returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.01)


def properties(packet, **values):
    """MQTT 5 properties by paho's names, such as MessageExpiryInterval=5."""
    result = Properties(packet)
    for name, value in values.items():
        setattr(result, name, value)
    return result


class Client:
    """A connected paho client. `messages` are those that came, in their order."""

    def __init__(
        self,
        version,
        client_id=None,
        clean=True,
        expiry=None,
        will=None,
        address=(HOST, PORT),
        credentials=None,
        **connect_properties,
    ):
        self.version = version
        self.client_id = client_id or unique("paho")
        arguments = {"clean_session": clean} if version != V5 else {}
        self.paho = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            self.client_id,
            protocol=version,
            # A break is part of some tests: coming back unasked would hide it.
            reconnect_on_failure=False,
            **arguments,
        )
        self.messages = []
        self.connack = None
        self.disconnected = None
        self._suback = {}
        self._unsuback = set()
        self._lock = threading.Lock()
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_message = self._on_message
        self.paho.on_subscribe = lambda _c, _u, mid, codes, _p: self._suback.__setitem__(mid, codes)
        self.paho.on_unsubscribe = lambda _c, _u, mid, _codes, _p: self._unsuback.add(mid)
        if credentials:
            self.paho.username_pw_set(*credentials)
        if will:
            self.paho.will_set(**will)
        if version == V5:
            more = self._connect_properties(expiry, connect_properties)
            self.paho.connect(*address, clean_start=clean, properties=more)
        else:
            self.paho.connect(*address)
        self.paho.loop_start()
        _, reason_code, _ = wait_for("CONNACK", lambda: self.connack)
        if reason_code.is_failure:
            self.paho.loop_stop()
            raise ConnectionError(f"CONNECT was refused: {reason_code}")

    @staticmethod
    def _connect_properties(expiry, more):
        if expiry is not None:
            more = {**more, "SessionExpiryInterval": expiry}
        return properties(PacketTypes.CONNECT, **more)

    def _on_connect(self, _client, _userdata, flags, reason_code, connack_properties):
        self.connack = (flags, reason_code, connack_properties)

    def _on_disconnect(self, _client, _userdata, _flags, reason_code, _properties):
        self.disconnected = reason_code

    def _on_message(self, _client, _userdata, message):
        with self._lock:
            self.messages.append(message)

    @property
    def session_present(self):
        return self.connack[0].session_present

    def subscribe(self, topic_filter, qos=0, **options):
        """Subscribes, waits for SUBACK and returns its reason code."""
        if self.version == V5:
            identifier = options.pop("identifier", None)
            chosen = paho.SubscribeOptions(qos=qos, **options)
            more = properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=identifier) if identifier else None
            _, mid = self.paho.subscribe(topic_filter, options=chosen, properties=more)
        else:
            _, mid = self.paho.subscribe(topic_filter, qos)
        codes = wait_for("SUBACK", lambda: self._suback.get(mid))
        return codes[0]

    def unsubscribe(self, topic_filter):
        _, mid = self.paho.unsubscribe(topic_filter)
        wait_for("UNSUBACK", lambda: mid in self._unsuback)

    def publish(self, topic, payload, qos=0, retain=False, **values):
        """Publishes and waits until the broker has it (QoS 0: until it is sent)."""
        more = properties(PacketTypes.PUBLISH, **values) if values else None
        info = self.paho.publish(topic, payload, qos, retain, properties=more)
        info.wait_for_publish(DEADLINE_SECONDS)
        assert info.is_published(), f"QoS {qos} to {topic} was not acknowledged"

    def take(self, count):
        """Waits for as many messages and returns and forgets all that came."""
        wait_for(f"{count} messages at {self.client_id} (came: {len(self.messages)})", lambda: len(self.messages) >= count)
        with self._lock:
            taken, self.messages = self.messages, []
        return taken

    def take_one(self):
        messages = self.take(1)
        assert len(messages) == 1, [(m.topic, m.payload) for m in messages]
        return messages[0]

    def assert_nothing_until(self, sentinel):
        """Nothing comes before a message on a topic of its own, which orders after all that was sent before."""
        self.subscribe(sentinel, 1)
        self.publish(sentinel, "sentinel", 1)
        # A wildcard may have brought it a second time.
        got = {message.topic for message in self.take(1)}
        assert got == {sentinel}, got

    def disconnect(self):
        """DISCONNECT, and the end of the connection."""
        self.paho.disconnect()
        self.paho.loop_stop()

    def vanish(self):
        """The connection breaks without DISCONNECT."""
        self.paho.socket().shutdown(socket.SHUT_RDWR)
        self.paho.loop_stop()


class BrokerTest(unittest.TestCase):
    """A test whose clients are closed when it ends."""

    def client(self, *arguments, **options):
        client = Client(*arguments, **options)
        self.addCleanup(client.disconnect)
        return client

    def for_both_versions(self, test):
        for name, version in (("3.1.1", V311), ("5", V5)):
            with self.subTest(version=name):
                test(version)
