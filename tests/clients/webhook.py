"""The example of a webhook's receiver (deploy/webhook), told by a broker of what its clients do.

KENTONGAN names the binary.
"""

import base64
import hashlib
import hmac
import importlib.util
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from certificates import certificate
from own_broker import OwnBroker
from support import V5, V311, Client, unique, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "deploy" / "webhook" / "receiver.py"
SECRET = "whsec_" + base64.b64encode(b"a key of twenty-four byt").decode()


def example():
    spec = importlib.util.spec_from_file_location("webhook_receiver", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECEIVER = example()


def settings(url, directory, more=""):
    secret = pathlib.Path(directory, "secret")
    secret.write_text(SECRET + "\n", encoding="utf-8")
    events = 'events = ["connected", "disconnected", "subscribed", "unsubscribed"]'
    return f'node = "n1"\n[events.webhook]\nurl = "{url}"\nsecret_file = "{secret}"\n{events}\n{more}\n'


class Own(unittest.TestCase):
    """A test with a directory and brokers of its own."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-webhook-")
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def broker(self, url, more=""):
        return OwnBroker(self.directory, [""], settings(url, self.directory, more))

    @staticmethod
    def client(broker, version=V5, **more):
        return Client(version, address=("127.0.0.1", broker.ports[0]), **more)


class Verification(unittest.TestCase):
    KEY = RECEIVER.key_of(SECRET)

    def request(self, body=b"{}", key=KEY, number="evt_1", at=1000):
        signed = f"{number}.{at}.".encode() + body
        signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return {"webhook-id": number, "webhook-timestamp": str(at), "webhook-signature": f"v1,{signature}"}

    def refusal(self, headers, body=b"{}", now=1000):
        try:
            RECEIVER.verify(self.KEY, headers, body, now)
        except RECEIVER.NotBelieved as why:
            return why.status
        return None

    def test_only_what_is_signed_and_new_is_believed(self):
        good = self.request()
        self.assertEqual(RECEIVER.verify(self.KEY, good, b"{}", 1000), "evt_1")
        self.assertIsNone(self.refusal({**good, "webhook-signature": "v1,other " + good["webhook-signature"]}))
        for name, headers, body, now, expected in (
            ("another body", good, b"{ }", 1000, 401),
            ("another number", {**good, "webhook-id": "evt_2"}, b"{}", 1000, 401),
            ("another time", {**good, "webhook-timestamp": "1001"}, b"{}", 1000, 401),
            ("another key", self.request(key=b"another"), b"{}", 1000, 401),
            ("no signature", {**good, "webhook-signature": ""}, b"{}", 1000, 401),
            ("no number", {**good, "webhook-id": ""}, b"{}", 1000, 400),
            ("no time", {**good, "webhook-timestamp": "soon"}, b"{}", 1000, 400),
            ("too old", good, b"{}", 1301, 409),
            ("from the future", good, b"{}", 699, 409),
        ):
            with self.subTest(name):
                self.assertEqual(self.refusal(headers, body, now), expected)


class Told(Own):
    def test_the_program_prints_what_clients_do_and_how_they_end(self):
        chain, key = certificate(self.directory)
        secret = pathlib.Path(self.directory, "secret")
        secret.write_text(SECRET + "\n", encoding="utf-8")
        command = [sys.executable, PROGRAM, "--secret-file", secret, "--listen", "127.0.0.1:0"]
        command += ["--certificate", chain, "--key", key]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        url = process.stderr.readline().split()[-1]
        events = []
        reader = threading.Thread(target=lambda: events.extend(json.loads(line) for line in process.stdout), daemon=True)
        reader.start()
        broker = self.broker(url, f'ca_file = "{chain}"')
        client = self.client(broker, client_id="lamp-7")
        client.subscribe("a/+", 1)
        client.unsubscribe("a/+")
        client.disconnect()
        other = self.client(broker, V311, client_id="lamp-8")
        wait_for("lamp-8", lambda: any(event["clientid"] == "lamp-8" for event in events))
        other.vanish()
        wait_for("its end", lambda: any(event.get("reason") == "connection_lost" for event in events))
        # What comes last is told before the process ends.
        self.client(broker, client_id="last")
        self.assertTrue(broker.stop())
        wait_for("the last", lambda: any(event.get("reason") == "shutting_down" for event in events))
        own = [(event["event"], event.get("topic"), event.get("reason")) for event in events if event["clientid"] == "lamp-7"]
        self.assertEqual(
            own,
            [
                ("client.connected", None, None),
                ("client.subscribed", "a/+", None),
                ("client.unsubscribed", "a/+", None),
                ("client.disconnected", None, "client_disconnect"),
            ],
        )
        self.assertEqual({(event["node"], event["ipaddress"]) for event in events}, {("n1", "127.0.0.1")})
        self.assertEqual([event["proto_ver"] for event in events if event["clientid"] == "lamp-8"], [4, 4])

    def test_a_receiver_that_is_back_gets_what_waited_each_once(self):
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            port = reserved.getsockname()[1]
        broker = self.broker(f"http://127.0.0.1:{port}/", "retry_seconds_max = 1")
        self.addCleanup(broker.stop)
        for number in range(5):
            self.client(broker, client_id=f"early-{number}").disconnect()
        broker.wait_for_log("takes no events; they wait")
        events = []
        receiver = RECEIVER.Receiver(("127.0.0.1", port), RECEIVER.key_of(SECRET), lambda batch: events.extend(batch["events"]))
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        self.addCleanup(receiver.server_close)
        self.addCleanup(receiver.shutdown)
        wait_for("ten events", lambda: len(events) >= 10)
        names = [event["clientid"] for event in events if event["event"] == "client.connected"]
        self.assertEqual(names, [f"early-{number}" for number in range(5)])
        broker.wait_for_metric("kentongan_webhook_events_delivered_total", 10)

    def test_a_receiver_that_hangs_costs_what_finds_no_room_and_nobodys_time(self):
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            url = f"http://127.0.0.1:{hanging.getsockname()[1]}/"
            broker = self.broker(url, "timeout_milliseconds = 30000\nqueue_events_max = 10\nbatch_events_max = 1\nlinger_milliseconds = 0")
            self.addCleanup(broker.stop)
            begun = time.monotonic()
            self.client(broker, client_id=unique("fast")).disconnect()
            hanging.settimeout(10)
            under_way, _ = hanging.accept()
            self.addCleanup(under_way.close)
            for _ in range(19):
                self.client(broker, client_id=unique("fast")).disconnect()
            took = time.monotonic() - begun
            # One is under way, ten wait.
            broker.wait_for_metric('kentongan_client_events_dropped_total{reason="queue_events"}', 29)
            broker.wait_for_metric("kentongan_webhook_waiting_events", 10)
            self.assertLess(took, 30, "less than one time-out of a request")


if __name__ == "__main__":
    unittest.main()
