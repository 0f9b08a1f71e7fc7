"""Command line clients: mosquitto's, and Kentongan's own, which take the same flags.

MQTT_SUB, MQTT_PUB and MQTT_RR name the commands; mosquitto's are the default. MQTT_ADDRESS_FLAGS are what they find the broker
by, if it is not by MQTT_HOST and MQTT_PORT.
"""

import os
import queue
import shlex
import socket
import subprocess
import threading
import unittest

from support import DEADLINE_SECONDS, HOST, PORT, V5, BrokerTest, unique, wait_for

SUB = shlex.split(os.environ.get("MQTT_SUB", "mosquitto_sub"))
PUB = shlex.split(os.environ.get("MQTT_PUB", "mosquitto_pub"))
RR = shlex.split(os.environ.get("MQTT_RR", "mosquitto_rr"))
ADDRESS = shlex.split(os.environ.get("MQTT_ADDRESS_FLAGS", f"-h {HOST} -p {PORT}"))

# Holds a retained message while the tests run.
READY = unique("ready")

VERSIONS = ("mqttv311", "mqttv5")


def pub(*arguments, text=None):
    """Runs the publisher to its end, which at QoS 1 and 2 is the acknowledgement."""
    command = [*PUB, *ADDRESS, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    if done.returncode != 0:
        raise AssertionError(f"{shlex.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")


class Sub:
    """A running subscriber and the lines it wrote."""

    def __init__(self, *arguments):
        self.command = [*SUB, *ADDRESS, *arguments]
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def line(self):
        try:
            return self.lines.get(timeout=DEADLINE_SECONDS)
        except queue.Empty:
            raise AssertionError(f"{shlex.join(self.command)}: wrote nothing more") from None

    def end(self):
        """Waits until it ends by itself; returns its exit code."""
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE_SECONDS)
        self.process.stdout.close()

    def kill(self):
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)


class CommandLine(BrokerTest):
    @classmethod
    def setUpClass(cls):
        pub("-t", READY, "-m", READY, "-r", "-q", "1")

    @classmethod
    def tearDownClass(cls):
        pub("-t", READY, "-n", "-r", "-q", "1")

    def sub(self, *arguments, wait=True):
        """Starts a subscriber; unless told otherwise, waits until its subscriptions stand."""
        if not wait:
            subscriber = Sub(*arguments)
            self.addCleanup(subscriber.stop)
            return subscriber
        # Its last filter holds a retained message: when that comes, the filters before it stand.
        subscriber = Sub(*arguments, "-t", READY)
        self.addCleanup(subscriber.stop)
        self.assertIn(READY, subscriber.line())
        return subscriber

    def with_both_versions(self, run):
        for version in VERSIONS:
            with self.subTest(version=version):
                run("-V", version)

    def test_the_tutorial(self):
        subscriber = self.sub("-t", "test", wait=False)

        # Nothing tells when it has subscribed: say it until it is heard.
        def heard():
            pub("-t", "test", "-m", "mqtt test")
            try:
                return subscriber.lines.get(timeout=0.2)
            except queue.Empty:
                return None

        self.assertEqual(wait_for("the message", heard), "mqtt test")

    def test_every_qos(self):
        def run(*version):
            for qos in "012":
                topic = unique("qos")
                subscriber = self.sub(*version, "-q", qos, "-v", "-t", topic)
                for text in ("one", "two", "three"):
                    pub(*version, "-q", qos, "-t", topic, "-m", text)
                    self.assertEqual(subscriber.line(), f"{topic} {text}")

        self.with_both_versions(run)

    def test_lines_of_standard_input(self):
        def run(*version):
            topic = unique("lines")
            subscriber = self.sub(*version, "-q", "1", "-t", topic)
            lines = [f"line {number}" for number in range(100)]
            pub(*version, "-q", "1", "-t", topic, "-l", text="".join(f"{line}\n" for line in lines))
            self.assertEqual([subscriber.line() for _ in lines], lines)

        self.with_both_versions(run)

    def test_a_file_as_it_is(self):
        topic = unique("stdin")
        subscriber = self.sub("-q", "1", "-t", topic)
        pub("-q", "1", "-t", topic, "-s", text="all of\nit")
        self.assertEqual([subscriber.line(), subscriber.line()], ["all of", "it"])

    def test_retained(self):
        def run(*version):
            topic = unique("retained")
            pub(*version, "-q", "1", "-r", "-t", topic, "-m", "kept")
            self.assertEqual(self.sub(*version, "-t", topic, "-C", "1", wait=False).line(), "kept")
            self.assertEqual(self.sub(*version, "-t", topic, "-C", "1", wait=False).end(), 0)
            pub(*version, "-q", "1", "-r", "-t", topic, "-n")
            subscriber = self.sub(*version, "-t", topic)
            pub(*version, "-q", "1", "-t", topic, "-m", "live")
            self.assertEqual(subscriber.line(), "live")

        self.with_both_versions(run)

    def test_a_session_resumes(self):
        def run(*version):
            for qos in "12":
                topic, client_id = unique("resume"), unique("session")
                session = [*version, "-c", "-i", client_id, "-q", qos, "-t", topic]
                if version[1] == "mqttv5":
                    session += ["-x", "300"]
                self.assertEqual(self.sub(*session, "-E", wait=False).end(), 0)
                for text in ("one", "two"):
                    pub(*version, "-q", qos, "-t", topic, "-m", text)
                subscriber = self.sub(*session, "-C", "2", wait=False)
                self.assertEqual([subscriber.line(), subscriber.line()], ["one", "two"])
                self.assertEqual(subscriber.end(), 0)
                # Without -c the session is forgotten.
                self.sub(*version, "-i", client_id, "-t", topic, "-E", wait=False).end()

        self.with_both_versions(run)

    def test_wills(self):
        def run(*version):
            topic = unique("will")
            watcher = self.sub(*version, "-q", "1", "-v", "-t", f"{topic}/#")
            for how, more in (("ended", ["-C", "1"]), ("killed", [])):
                will = ["--will-topic", f"{topic}/{how}", "--will-payload", "gone", "--will-qos", "1"]
                victim = self.sub(*version, "-q", "1", *will, *more)
                if how == "killed":
                    victim.kill()
                else:
                    self.assertEqual(victim.end(), 0)
            # Only this one is heard: the other said DISCONNECT.
            self.assertEqual(watcher.line(), f"{topic}/killed gone")

        self.with_both_versions(run)

    def test_a_shared_subscription(self):
        topic = unique("shared")
        members = [self.sub("-V", "mqttv5", "-q", "1", "-t", f"$share/group/{topic}") for _ in range(2)]
        lines = [f"{number}" for number in range(40)]
        pub("-V", "mqttv5", "-q", "1", "-t", topic, "-l", text="".join(f"{line}\n" for line in lines))
        wait_for("all messages", lambda: sum(member.lines.qsize() for member in members) == len(lines))
        self.assertTrue(all(member.lines.qsize() >= 10 for member in members))
        got = [member.line() for member in members for _ in range(member.lines.qsize())]
        self.assertEqual(sorted(got, key=int), lines)

    def test_a_request_gets_its_response(self):
        def run(*version):
            for qos in "012":
                question, answer = unique("question"), unique("answer")
                responder = self.sub(*version, "-q", qos, "-t", question)
                command = [*RR, *ADDRESS, *version, "-q", qos, "-t", question, "-e", answer, "-m", "what?", "-W", "10"]
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as asker:
                    self.assertEqual(responder.line(), "what?")
                    pub(*version, "-q", qos, "-t", answer, "-m", "that")
                    self.assertEqual(asker.communicate(timeout=DEADLINE_SECONDS)[0], "that\n")
                    self.assertEqual(asker.returncode, 0)

        self.with_both_versions(run)

    def test_a_request_without_a_response_ends_in_time(self):
        command = [*RR, *ADDRESS, "-t", unique("question"), "-e", unique("answer"), "-m", "what?", "-W", "1"]
        self.assertEqual(subprocess.run(command, capture_output=True, timeout=DEADLINE_SECONDS).returncode, 27)

    def test_properties(self):
        topic = unique("properties")
        subscriber = self.client(V5)
        subscriber.subscribe(topic, 1)
        pub(
            *("-V", "mqttv5", "-q", "1", "-t", topic, "-m", "x"),
            *("-D", "publish", "user-property", "b", "1"),
            *("-D", "publish", "user-property", "a", "2"),
            *("-D", "publish", "content-type", "text/plain"),
            *("-D", "publish", "response-topic", "answers"),
            *("-D", "publish", "message-expiry-interval", "100"),
        )
        got = subscriber.take_one().properties
        self.assertEqual(got.UserProperty, [("b", "1"), ("a", "2")])
        self.assertEqual((got.ContentType, got.ResponseTopic), ("text/plain", "answers"))
        self.assertTrue(98 <= got.MessageExpiryInterval <= 100)

    def test_properties_are_shown(self):
        topic = unique("properties")
        subscriber = self.sub("-V", "mqttv5", "-q", "1", "-t", topic, "-F", "%t|%q|%r|%C|%R|%P|%p")
        user = ["-D", "publish", "user-property", "why", "because"]
        more = ["-D", "publish", "content-type", "text/plain", "-D", "publish", "response-topic", "answers"]
        pub("-V", "mqttv5", "-q", "1", "-t", topic, "-m", "x", *user, *more)
        self.assertEqual(subscriber.line(), f"{topic}|1|0|text/plain|answers|why:because|x")


class Telnet(BrokerTest):
    """Bytes that are not MQTT."""

    def test_a_plain_connection_is_accepted(self):
        with socket.create_connection((HOST, PORT), DEADLINE_SECONDS):
            pass

    def test_what_is_not_mqtt_is_hung_up_on(self):
        for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"hello\r\n" * 4, b"\x16\x03\x01\x02\x00\x01\x00"):
            with self.subTest(garbage=garbage):
                with socket.create_connection((HOST, PORT), DEADLINE_SECONDS) as connection:
                    connection.sendall(garbage)
                    try:
                        self.assertEqual(connection.recv(1024), b"")
                    except ConnectionResetError:
                        pass


if __name__ == "__main__":
    unittest.main()
