"""mosquitto and Kentongan side by side: the same password file, the same ACL file, the same acts, the same messages.

Passwords are written by mosquitto_passwd, in both of its forms. Users, ACL and acts are drawn from a seed (SEED in the
environment; one is fixed, so that a failure repeats). Kentongan runs with `acl_subscribe = "filter"`, which is mosquitto's
way: subscriptions are granted, messages are looked at.
"""

import json
import os
import pathlib
import random
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import paho.mqtt.client as paho

SEED = int(os.environ.get("SEED", "5"))
MOSQUITTO = os.environ.get("MOSQUITTO", "/usr/sbin/mosquitto")
ACTS = 320
DEADLINE_SECONDS = 15
# For what one broker sent and the other may still send.
LATE_SECONDS = 2

USERS = ["ana", "budi", "citra", "dewi"]
LEVELS = ["a", "b", "c", "ana", "budi", "citra"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(what, condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.005)


def topic(chance):
    return "/".join(chance.choice(LEVELS) for _ in range(chance.randint(1, 3)))


def topic_filter(chance):
    levels = [chance.choice([*LEVELS, "+"]) for _ in range(chance.randint(1, 3))]
    if chance.random() < 0.3:
        levels.append("#")
    return "#" if chance.random() < 0.1 else "/".join(levels)


def acl_file(chance):
    """A few lines for everybody without a name, for each user and for all."""
    access = ["read ", "write ", "readwrite ", "deny ", ""]

    def line(word, pattern):
        return f"{word} {chance.choice(access)}{pattern}"

    lines = ["# drawn", *(line("topic", topic_filter(chance)) for _ in range(4)), ""]
    for user in [*USERS, chance.choice(USERS)]:
        lines += [f"user {user}", *(line("topic", topic_filter(chance)) for _ in range(chance.randint(1, 5))), ""]
    for _ in range(4):
        levels = [chance.choice(["%u", "%c", "+", *LEVELS]) for _ in range(2)]
        lines.append(line("pattern", "/".join(levels) + chance.choice(["", "/#"])))
    # What tells that an act is over: no wildcard drawn above reaches what begins with `$`.
    lines += ["pattern readwrite $over/#", "user dewi", "topic #"]
    return "\n".join(lines) + "\n"


class Broker:
    """One of the two."""

    def __init__(self, name, command):
        self.name = name
        self.port = None
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            fields = {**entry, **entry.get("fields", {})}
            if self.port is None and "listening for MQTT" in str(fields.get("message")):
                self.port = int(fields["address"].rsplit(":", 1)[1])

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.reader.join()
        self.process.stderr.close()


class Client:
    """A connected client that remembers what came."""

    def __init__(self, port, client_id, user, password, protocol=paho.MQTTv311):
        self.messages = []
        self.answers = {}
        self.connected = None
        version = paho.CallbackAPIVersion.VERSION2
        self.paho = paho.Client(version, client_id, protocol=protocol, reconnect_on_failure=False)
        if user:
            self.paho.username_pw_set(user, password)
        self.paho.on_connect = lambda _c, _u, _f, code, _p: setattr(self, "connected", code)
        self.paho.on_message = lambda _c, _u, message: self.messages.append(message)
        self.paho.on_subscribe = lambda _c, _u, mid, codes, _p: self.answers.__setitem__(mid, codes)
        self.paho.on_unsubscribe = lambda _c, _u, mid, _codes, _p: self.answers.__setitem__(mid, [])
        self.paho.on_socket_open = lambda _c, _u, opened: opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        wait_for(f"CONNACK of {client_id}", lambda: self.connected is not None)

    def subscribe(self, what, qos):
        _, mid = self.paho.subscribe(what, qos)
        wait_for(f"SUBACK of {what}", lambda: mid in self.answers)
        return [code.value for code in self.answers[mid]]

    def unsubscribe(self, what):
        _, mid = self.paho.unsubscribe(what)
        wait_for(f"UNSUBACK of {what}", lambda: mid in self.answers)

    def publish(self, what, payload, qos, retain):
        info = self.paho.publish(what, payload, qos, retain)
        if qos:
            wait_for(f"the acknowledgement of {payload}", info.is_published)

    def stop(self):
        self.paho.disconnect()
        self.paho.loop_stop()


class Run:
    """All acts on one broker."""

    def __init__(self, port, passwords):
        self.port = port
        self.clients = {}
        for user, password in [*passwords.items(), ("", "")]:
            for number, version in ((1, paho.MQTTv311), (2, paho.MQTTv5)):
                # Client Identifiers that stand in topics as well.
                client_id = LEVELS[(len(self.clients)) % len(LEVELS)] if number == 1 and user else f"{user}-{number}"
                while client_id in [name for name, _ in self.clients.values()]:
                    client_id += "x"
                self.clients[(user, number)] = (client_id, Client(port, client_id, user, password, version))

    def act(self, number, act, expected):
        """Does one act. What it brought: to the client that did it the answer, to everybody the messages.

        All have come when what was published behind them has, and as many as `expected` on the other broker: retained
        messages may come later than what is published after SUBACK.
        """
        who, what, *more = act
        client = self.clients[who][1]
        answer = None
        if what == "subscribe":
            answer = client.subscribe(*more)
        elif what == "unsubscribe":
            client.unsubscribe(*more)
        else:
            client.publish(more[0], f"{number}", *more[1:])
        self.settle(client, f"$over/{number}")
        brought = {}
        for name, (_, other) in self.clients.items():
            wanted = len(expected[name]) if expected else 0
            deadline = time.monotonic() + LATE_SECONDS
            while len(other.messages) < wanted + 1 and time.monotonic() < deadline:
                time.sleep(0.002)
            got, other.messages = other.messages, []
            got = [(m.topic, m.payload.decode(), m.qos, m.retain) for m in got if not m.topic.startswith("$over/")]
            # Retained ones come in any order.
            brought[name] = sorted(got)
        return answer, brought

    def settle(self, client, over):
        """QoS 0 behind it, by the same connection, to a topic of its own that everybody may read."""
        client.paho.publish(over, "over", 0)
        for name, (_, other) in self.clients.items():
            wait_for(f"{over} at {name}", lambda other=other: any(m.topic == over for m in list(other.messages)))

    def stop(self):
        for _, client in self.clients.values():
            client.stop()


def draw_acts(chance):
    acts = []
    everybody = [(user, number) for user in [*USERS, ""] for number in (1, 2)]
    filters = {}
    for _ in range(ACTS):
        who = chance.choice(everybody)
        own = filters.setdefault(who, [])
        kind = chance.random()
        if kind < 0.3:
            own.append(topic_filter(chance))
            acts.append((who, "subscribe", own[-1], chance.randint(0, 2)))
        elif kind < 0.36 and own:
            acts.append((who, "unsubscribe", own.pop(chance.randrange(len(own)))))
        else:
            acts.append((who, "publish", topic(chance), chance.randint(0, 2), chance.random() < 0.2))
    return acts


class SideBySide(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="kentongan-side-by-side-")
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.chance = random.Random(SEED)

    def write_passwords(self):
        """By mosquitto_passwd, as a fleet has it."""
        passwords = {user: f"pass-{self.chance.randrange(10**6)}" for user in USERS}
        path = self.directory / "passwords"
        for number, (user, password) in enumerate(passwords.items()):
            form = ["sha512-pbkdf2", "sha512"][number % 2]
            create = [] if number else ["-c"]
            command = ["mosquitto_passwd", "-H", form, *create, "-b", path, user, password]
            subprocess.run(command, check=True, capture_output=True)
        path.chmod(0o644)
        return path, passwords

    def start_both(self, passwords, acl):
        port = free_port()
        configuration = self.directory / "mosquitto.conf"
        lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", f"password_file {passwords}", f"acl_file {acl}"]
        # Without a bound on what is queued (0), mosquitto 2.0.11 ends the connection of whoever it denies a PUBLISH.
        lines += ["user root", "max_inflight_messages 0", "max_queued_messages 100000"]
        lines += ["allow_duplicate_messages true", "set_tcp_nodelay true"]
        configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        mosquitto = Broker("mosquitto", [MOSQUITTO, "-c", configuration])
        self.addCleanup(mosquitto.stop)
        mosquitto.port = port
        own = self.directory / "kentongan.toml"
        own.write_text(
            f'[[listener]]\naddress = "127.0.0.1:0"\nallow_anonymous = true\n'
            f'[auth]\npassword_file = "{passwords}"\nacl_file = "{acl}"\nacl_subscribe = "filter"\n'
            '[session]\noverlapping = "one-each"\n[http]\nenabled = false\n[log]\nformat = "json"\n',
            encoding="utf-8",
        )
        data = self.directory / "data"
        kentongan = Broker("kentongan", [os.environ["KENTONGAN"], "serve", "--config", own, "--data-dir", data])
        self.addCleanup(kentongan.stop)
        wait_for("kentongan", lambda: kentongan.port or kentongan.process.poll() is not None)
        self.assertIsNotNone(kentongan.port, "".join(kentongan.log))

        def listens():
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                return False
            return True

        wait_for("mosquitto", listens)
        return mosquitto, kentongan

    def test_the_same_files_and_acts_bring_the_same_messages(self):
        passwords_file, passwords = self.write_passwords()
        acl = self.directory / "acl"
        acl.write_text(acl_file(self.chance), encoding="utf-8")
        acts = draw_acts(self.chance)
        brought, count = [], 0
        for broker in self.start_both(passwords_file, acl):
            run = Run(broker.port, passwords)
            self.addCleanup(run.stop)
            for name, (_, client) in run.clients.items():
                self.assertFalse(client.connected.is_failure, f"{broker.name}: {client.connected}")
                self.assertEqual(client.subscribe("$over/#", 0), [0], name)
            expected = brought[0] if brought else [(None, None)] * len(acts)
            brought.append([run.act(number, act, expected[number][1]) for number, act in enumerate(acts)])
            for user, password in (("ana", "wrong"), ("nobody", "x"), ("budi", "")):
                refused = Client(broker.port, "refused", user, password)
                refused.stop()
                self.assertTrue(refused.connected.is_failure, f"{broker.name} let {user} in")
        for number, (expected, got) in enumerate(zip(*brought, strict=True)):
            where = f"seed {SEED}, act {number}, {acts[number]}; the ACL:\n{acl.read_text(encoding='utf-8')}"
            self.assertEqual(expected, got, where)
            count += sum(len(messages) for messages in expected[1].values())
        self.assertGreater(count, 150, "too little was delivered to compare anything")


if __name__ == "__main__":
    unittest.main()
