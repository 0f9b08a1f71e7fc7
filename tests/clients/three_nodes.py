"""paho-mqtt and mosquitto's command line clients on three nodes, some of which are killed."""

import subprocess
import unittest

from cluster import Cluster
from support import DEADLINE_SECONDS, V5, BrokerTest, Client, unique, wait_for


class ThreeNodes(BrokerTest):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        cls.addClassCleanup(cls.cluster.stop)

    def setUp(self):
        self.cluster.restart_killed()

    def at(self, node, version=V5, **options):
        """A client of one node, which comes again while that has no majority for a moment."""

        def connected():
            try:
                return Client(version, address=self.cluster.nodes[node].address, **options)
            except ConnectionError:
                return None

        client = wait_for("a node that is available", connected)
        self.addCleanup(client.disconnect)
        return client

    def mosquitto(self, program, node, *arguments):
        host, port = self.cluster.nodes[node].address
        return subprocess.Popen(
            [program, "-h", host, "-p", str(port), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def test_the_tutorial_on_two_nodes(self):
        subscriber = self.mosquitto("mosquitto_sub", 0, "-t", "test", "-C", "1")
        self.addCleanup(subscriber.stdout.close)
        self.addCleanup(subscriber.kill)

        # Nothing tells when it has subscribed: say it until it is heard.
        def heard():
            publisher = self.mosquitto("mosquitto_pub", 1, "-t", "test", "-m", "mqtt test")
            output, _ = publisher.communicate(timeout=DEADLINE_SECONDS)
            self.assertEqual((publisher.returncode, output), (0, ""))
            return subscriber.poll() is not None

        wait_for("the message", heard)
        self.assertEqual(subscriber.stdout.read(), "mqtt test\n")

    def test_every_qos_across_nodes(self):
        def run(version):
            subscriber, publisher = self.at(0, version), self.at(1, version)
            for qos in (0, 1, 2):
                topic = unique("across")
                subscriber.subscribe(topic, qos)
                publisher.publish(topic, "hello", qos)
                message = subscriber.take_one()
                self.assertEqual((message.topic, message.payload, message.qos), (topic, b"hello", qos))

        self.for_both_versions(run)

    def test_a_session_survives_the_node_that_served_it(self):
        name, topic = unique("session"), unique("kept")
        subscriber = self.at(0, client_id=name, clean=False, expiry=3600)
        subscriber.subscribe(topic, 1)
        publisher = self.at(1)
        publisher.publish(topic, "0", 1)
        self.assertEqual(subscriber.take_one().payload, b"0")

        self.cluster.nodes[0].kill()
        wait_for("the end of the connection", lambda: subscriber.disconnected is not None)
        for number in range(1, 20):
            publisher.publish(topic, f"{number}", 1)
        subscriber = self.at(2, client_id=name, clean=False, expiry=3600)
        self.assertTrue(subscriber.session_present)
        numbers = [int(message.payload) for message in subscriber.take(19)]
        # The acknowledgement of the first one may have been lost with the node.
        self.assertEqual([number for number in numbers if number], list(range(1, 20)))

    def test_a_newer_connection_on_another_node_takes_over(self):
        name = unique("session")
        older = self.at(1, client_id=name, clean=False, expiry=3600)
        newer = self.at(2, client_id=name, clean=False, expiry=3600)
        self.assertTrue(newer.session_present)
        reason = wait_for("the end of the older connection", lambda: older.disconnected)
        self.assertEqual(reason.value, 0x8E)

    def test_what_is_retained_on_one_node_is_read_on_another_though_one_is_killed(self):
        topic = unique("retained")
        self.at(0).publish(topic, "kept", 1, retain=True)
        self.cluster.nodes[0].kill()
        for node in (1, 2):
            reader = self.at(node)
            reader.subscribe(topic, 1)
            message = reader.take_one()
            self.assertEqual((message.payload, message.retain), (b"kept", True))
        self.at(1).publish(topic, "", 1, retain=True)
        reader = self.at(2)
        reader.subscribe(topic, 1)
        reader.assert_nothing_until(unique("end"))

    def test_a_node_that_starts_three_hours_ahead_ends_nothing(self):
        # Enough for each group to have some.
        names = [unique("away") for _ in range(40)]
        for name in names:
            client = self.at(0, client_id=name, clean=False, expiry=7200)
            client.subscribe(name, 1)
            client.disconnect()
        publisher = self.at(0)
        for name in names:
            publisher.publish(name, "kept", 1, retain=True, MessageExpiryInterval=7200)

        wrong = self.cluster.nodes[2]
        wrong.kill()
        wrong.set_clock_ahead(3 * 3600)
        self.addCleanup(wrong.kill)
        self.addCleanup(wrong.environment.clear)
        wrong.restart()
        wait_for("the metric", lambda: abs(wrong.metric("kentongan_wall_clock_ahead_seconds") - 3 * 3600) < 2)
        wait_for("a warning", lambda: "the clock of this machine differs" in wrong.log.read_text(encoding="utf-8"))

        for name in names:
            client = self.at(2, client_id=name, clean=False, expiry=7200)
            self.assertTrue(client.session_present)
            self.assertEqual(client.take_one().payload, b"kept")
        reader = self.at(2)
        for name in names:
            reader.subscribe(name, 1)
            self.assertEqual(reader.take_one().payload, b"kept")


if __name__ == "__main__":
    unittest.main()
