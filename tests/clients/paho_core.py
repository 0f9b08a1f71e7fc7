"""paho-mqtt, MQTT 3.1.1 and 5: what every client does."""

import unittest

from support import V311, V5, BrokerTest, unique, wait_for


class Delivery(BrokerTest):
    def test_every_qos_published_and_granted(self):
        def run(version):
            subscriber, publisher = self.client(version), self.client(version)
            for granted in (0, 1, 2):
                topic = unique("qos")
                self.assertEqual(subscriber.subscribe(topic, granted).value, granted)
                for published in (0, 1, 2):
                    publisher.publish(topic, f"{published}", published)
                    message = subscriber.take_one()
                    self.assertEqual(message.topic, topic)
                    self.assertEqual(message.payload, f"{published}".encode())
                    self.assertEqual(message.qos, min(granted, published))
                    self.assertFalse(message.retain)
                    self.assertFalse(message.dup)

        self.for_both_versions(run)

    def test_between_the_versions(self):
        for one, other in ((V311, V5), (V5, V311)):
            subscriber, publisher = self.client(one), self.client(other)
            topic = unique("versions")
            subscriber.subscribe(topic, 2)
            for qos in (0, 1, 2):
                publisher.publish(topic, "across", qos)
                self.assertEqual(subscriber.take_one().qos, qos)

    def test_order_is_kept(self):
        def run(version):
            subscriber, publisher = self.client(version), self.client(version)
            for qos in (1, 2):
                topic = unique("order")
                subscriber.subscribe(topic, qos)
                sent = [f"{number}".encode() for number in range(200)]
                waiting = [publisher.paho.publish(topic, payload, qos) for payload in sent]
                for info in waiting:
                    info.wait_for_publish(10)
                self.assertEqual([message.payload for message in subscriber.take(len(sent))], sent)

        self.for_both_versions(run)

    def test_wildcards(self):
        def run(version):
            root = unique("wild")
            publisher = self.client(version)
            for topic_filter, wanted in (
                (f"{root}/+/c", ["a/c"]),
                (f"{root}/#", ["", "a/b", "a/c", "a/c/d"]),
                (f"{root}/a/+", ["a/b", "a/c"]),
                (f"{root}/a/#", ["a/b", "a/c", "a/c/d"]),
            ):
                subscriber = self.client(version)
                subscriber.subscribe(topic_filter, 1)
                for rest in ("", "a/b", "a/c", "a/c/d"):
                    publisher.publish(f"{root}/{rest}".rstrip("/"), "x", 1)
                wanted = [f"{root}/{rest}".rstrip("/") for rest in wanted]
                self.assertEqual([message.topic for message in subscriber.take(len(wanted))], wanted)
                subscriber.assert_nothing_until(unique("end"))

        self.for_both_versions(run)

    def test_nothing_after_unsubscribe(self):
        def run(version):
            subscriber, publisher = self.client(version), self.client(version)
            topic = unique("unsubscribe")
            subscriber.subscribe(topic, 1)
            publisher.publish(topic, "before", 1)
            self.assertEqual(subscriber.take_one().payload, b"before")
            subscriber.unsubscribe(topic)
            publisher.publish(topic, "after", 1)
            subscriber.assert_nothing_until(unique("end"))

        self.for_both_versions(run)

    def test_a_large_message(self):
        payload = bytes(range(256)) * 4 * 900

        def run(version):
            subscriber, publisher = self.client(version), self.client(version)
            for qos in (0, 1, 2):
                topic = unique("large")
                subscriber.subscribe(topic, qos)
                publisher.publish(topic, payload, qos)
                self.assertEqual(subscriber.take_one().payload, payload)

        self.for_both_versions(run)

    def test_an_empty_message(self):
        def run(version):
            subscriber, publisher = self.client(version), self.client(version)
            topic = unique("empty")
            subscriber.subscribe(topic, 1)
            publisher.publish(topic, b"", 1)
            self.assertEqual(subscriber.take_one().payload, b"")

        self.for_both_versions(run)


class Wills(BrokerTest):
    def test_published_when_the_connection_breaks(self):
        def run(version):
            for qos in (0, 1, 2):
                topic = unique("will")
                watcher = self.client(version)
                watcher.subscribe(topic, 2)
                victim = self.client(version, will={"topic": topic, "payload": "gone", "qos": qos})
                victim.vanish()
                message = watcher.take_one()
                self.assertEqual((message.payload, message.qos), (b"gone", qos))
                self.assertFalse(message.retain)

        self.for_both_versions(run)

    def test_not_published_after_disconnect(self):
        def run(version):
            topic = unique("will")
            watcher = self.client(version)
            watcher.subscribe(topic, 1)
            self.client(version, will={"topic": topic, "payload": "gone", "qos": 1}).disconnect()
            # A will that breaks off comes later than one that (wrongly) followed DISCONNECT would.
            other = unique("will")
            watcher.subscribe(other, 1)
            self.client(version, will={"topic": other, "payload": "gone", "qos": 1}).vanish()
            self.assertEqual([message.topic for message in watcher.take(1)], [other])

        self.for_both_versions(run)

    def test_a_retained_will_is_retained(self):
        def run(version):
            topic = unique("will")
            watcher = self.client(version)
            watcher.subscribe(topic, 1)
            self.client(version, will={"topic": topic, "payload": "gone", "qos": 1, "retain": True}).vanish()
            watcher.take_one()
            late = self.client(version)
            late.subscribe(topic, 1)
            message = late.take_one()
            self.assertTrue(message.retain)
            self.assertEqual(message.payload, b"gone")
            late.publish(topic, b"", 1, retain=True)

        self.for_both_versions(run)


class Retained(BrokerTest):
    def test_stored_delivered_replaced_deleted(self):
        def run(version):
            publisher = self.client(version)
            for qos in (0, 1, 2):
                topic = unique("retained")
                live = self.client(version)
                live.subscribe(topic, 2)
                for value in (b"old", b"new"):
                    publisher.publish(topic, value, qos, retain=True)
                    # To those subscribed already it is a message like any other.
                    self.assertFalse(live.take_one().retain)
                for topic_filter in (topic, f"{topic}/#"):
                    late = self.client(version)
                    late.subscribe(topic_filter, 2)
                    message = late.take_one()
                    self.assertEqual((message.payload, message.qos, message.retain), (b"new", qos, True))
                publisher.publish(topic, b"", qos, retain=True)
                self.assertEqual(live.take_one().payload, b"")
                later = self.client(version)
                later.subscribe(topic, 2)
                later.assert_nothing_until(unique("end"))

        self.for_both_versions(run)

    def test_many_by_wildcard(self):
        def run(version):
            root = unique("many")
            publisher = self.client(version)
            topics = [f"{root}/{number}" for number in range(100)]
            for topic in topics:
                publisher.publish(topic, topic, 1, retain=True)
            late = self.client(version)
            late.subscribe(f"{root}/+", 1)
            self.assertEqual(sorted(message.topic for message in late.take(100)), sorted(topics))
            for topic in topics:
                publisher.publish(topic, b"", 1, retain=True)

        self.for_both_versions(run)


class Resume(BrokerTest):
    def persistent(self, version, client_id):
        return self.client(version, client_id, clean=False, **({"expiry": 300} if version == V5 else {}))

    def test_queued_messages_wait(self):
        def run(version):
            client_id, topic = unique("resume"), unique("queue")
            first = self.persistent(version, client_id)
            self.assertFalse(first.session_present)
            first.subscribe(topic, 2)
            first.disconnect()
            publisher = self.client(version)
            for number in range(50):
                publisher.publish(topic, f"{number}", 1 + number % 2)
            second = self.persistent(version, client_id)
            self.assertTrue(second.session_present)
            got = second.take(50)
            # Order is promised a QoS.
            for qos in (1, 2):
                numbers = [int(message.payload) for message in got if message.qos == qos]
                self.assertEqual(numbers, [number for number in range(50) if 1 + number % 2 == qos])
            # The subscription lives on, and nothing comes twice.
            publisher.publish(topic, "live", 2)
            self.assertEqual(second.take_one().payload, b"live")
            second.disconnect()
            self.client(version, client_id)

        self.for_both_versions(run)

    def test_a_broken_connection_resumes(self):
        def run(version):
            client_id, topic = unique("resume"), unique("queue")
            first = self.persistent(version, client_id)
            first.subscribe(topic, 1)
            first.vanish()
            self.client(version).publish(topic, "while away", 1)
            second = self.persistent(version, client_id)
            self.assertTrue(second.session_present)
            self.assertEqual(second.take_one().payload, b"while away")
            second.disconnect()
            self.client(version, client_id)

        self.for_both_versions(run)

    def test_a_clean_session_forgets(self):
        def run(version):
            client_id, topic = unique("forget"), unique("queue")
            first = self.persistent(version, client_id)
            first.subscribe(topic, 1)
            first.disconnect()
            self.client(version).publish(topic, "lost", 1)
            clean = self.client(version, client_id)
            self.assertFalse(clean.session_present)
            clean.assert_nothing_until(unique("end"))
            clean.disconnect()
            again = self.persistent(version, client_id)
            self.assertFalse(again.session_present)
            again.disconnect()
            self.client(version, client_id)

        self.for_both_versions(run)

    def test_takeover(self):
        def run(version):
            client_id = unique("takeover")
            first = self.client(version, client_id)
            second = self.client(version, client_id)
            wait_for("the first connection's end", lambda: first.disconnected is not None)
            topic = unique("after")
            second.subscribe(topic, 1)
            second.publish(topic, "mine", 1)
            self.assertEqual(second.take_one().payload, b"mine")

        self.for_both_versions(run)


if __name__ == "__main__":
    unittest.main()
