"""paho-mqtt: what MQTT 5 adds."""

import time
import unittest

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

import support
from support import V5, BrokerTest, properties, unique, wait_for


class Properties(BrokerTest):
    def exchange(self, qos=1, **values):
        topic = unique("properties")
        subscriber, publisher = self.client(V5), self.client(V5)
        subscriber.subscribe(topic, 2)
        publisher.publish(topic, "x", qos, **values)
        return subscriber.take_one().properties

    def test_user_properties_keep_their_order(self):
        pairs = [("b", "1"), ("a", "2"), ("b", "3"), ("", ""), ("ключ", "значение"), ("a", "2")]
        for qos in (0, 1, 2):
            self.assertEqual(self.exchange(qos, UserProperty=pairs).UserProperty, pairs)

    def test_request_and_response(self):
        topic, answers = unique("request"), unique("answers")
        requester, responder = self.client(V5), self.client(V5)
        requester.subscribe(answers, 1)
        responder.subscribe(topic, 1)
        requester.publish(topic, "question", 1, ResponseTopic=answers, CorrelationData=b"\x00\xff\x01")
        request = responder.take_one().properties
        self.assertEqual((request.ResponseTopic, request.CorrelationData), (answers, b"\x00\xff\x01"))
        responder.publish(request.ResponseTopic, "answer", 1, CorrelationData=request.CorrelationData)
        answer = requester.take_one()
        self.assertEqual((answer.payload, answer.properties.CorrelationData), (b"answer", b"\x00\xff\x01"))

    def test_content_type_and_payload_format(self):
        got = self.exchange(PayloadFormatIndicator=1, ContentType="text/plain")
        self.assertEqual((got.PayloadFormatIndicator, got.ContentType), (1, "text/plain"))

    def test_retained_keeps_its_properties(self):
        topic = unique("properties")
        publisher, late = self.client(V5), self.client(V5)
        pairs = [("z", "1"), ("a", "2")]
        publisher.publish(topic, "x", 1, True, UserProperty=pairs, ContentType="text/plain", CorrelationData=b"\x01")
        late.subscribe(topic, 1)
        got = late.take_one().properties
        self.assertEqual((got.UserProperty, got.ContentType, got.CorrelationData), (pairs, "text/plain", b"\x01"))
        publisher.publish(topic, b"", 1, True)

    def test_a_will_keeps_its_properties_and_waits_its_delay(self):
        topic = unique("will")
        watcher = self.client(V5)
        watcher.subscribe(topic, 1)
        more = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=1, UserProperty=[("why", "gone")])
        victim = self.client(V5, expiry=300, will={"topic": topic, "payload": "x", "qos": 1, "properties": more})
        vanished = time.monotonic()
        victim.vanish()
        self.assertEqual(watcher.take_one().properties.UserProperty, [("why", "gone")])
        self.assertGreater(time.monotonic() - vanished, 0.9)

    def test_a_resumed_session_cancels_its_delayed_will(self):
        topic = unique("will")
        watcher = self.client(V5)
        watcher.subscribe(topic, 1)
        more = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=2)
        client_id = unique("resumer")
        will = {"topic": topic, "payload": "x", "qos": 1, "properties": more}
        self.client(V5, client_id, clean=False, expiry=300, will=will).vanish()
        back = self.client(V5, client_id, clean=False, expiry=300)
        self.assertTrue(back.session_present)
        # Another will with the same delay, begun later, must be the only one.
        other = dict(will, payload="other")
        self.client(V5, expiry=300, will=other).vanish()
        self.assertEqual(watcher.take_one().payload, b"other")


class Aliases(BrokerTest):
    def test_a_topic_alias_stands_for_its_topic(self):
        topics = [unique("alias"), unique("alias")]
        subscriber, publisher = self.client(V5), self.client(V5)
        self.assertGreaterEqual(getattr(publisher.connack[2], "TopicAliasMaximum", 0), 2)
        for topic in topics:
            subscriber.subscribe(topic, 1)
        for alias, topic in enumerate(topics, 1):
            publisher.publish(topic, "named", 1, TopicAlias=alias)
        # paho refuses an empty topic at its door, though the standard has it: say it a level deeper.
        for alias, topic in enumerate(topics, 1):
            self.publish_by_alias(publisher, alias)
        got = [(message.topic, message.payload) for message in subscriber.take(4)]
        self.assertEqual(got, [(t, b"named") for t in topics] + [(t, b"aliased") for t in topics])

    @staticmethod
    def publish_by_alias(client, alias):
        mid = client.paho._mid_generate()
        more = properties(PacketTypes.PUBLISH, TopicAlias=alias)
        client.paho._send_publish(mid, b"", b"aliased", 0, False, False, paho.MQTTMessageInfo(mid), more)

    def test_the_broker_may_use_aliases_for_what_it_sends(self):
        topic = unique("alias")
        subscriber, publisher = self.client(V5, TopicAliasMaximum=10), self.client(V5)
        subscriber.subscribe(topic, 1)
        for number in range(5):
            publisher.publish(topic, f"{number}", 1)
        subscriber.take(5)


class Expiry(BrokerTest):
    def test_a_queued_message_expires_and_others_count_down(self):
        client_id, topic = unique("expiry"), unique("expiry")
        self.client(V5, client_id, clean=False, expiry=300).subscribe(topic, 1)
        self.client(V5, client_id, clean=False, expiry=300).disconnect()
        publisher = self.client(V5)
        publisher.publish(topic, "short", 1, MessageExpiryInterval=1)
        publisher.publish(topic, "long", 1, MessageExpiryInterval=100)
        publisher.publish(topic, "forever", 1)
        time.sleep(2.2)  # The time itself is what is tested.
        back = self.client(V5, client_id, clean=False, expiry=300)
        got = back.take(2)
        self.assertEqual([message.payload for message in got], [b"long", b"forever"])
        self.assertTrue(90 <= got[0].properties.MessageExpiryInterval <= 98, got[0].properties)
        self.assertFalse(hasattr(got[1].properties, "MessageExpiryInterval"))
        back.assert_nothing_until(unique("end"))
        back.disconnect()
        self.client(V5, client_id)

    def test_a_retained_message_expires(self):
        topic = unique("expiry")
        self.client(V5).publish(topic, "short", 1, True, MessageExpiryInterval=3)
        early = self.client(V5)
        early.subscribe(topic, 1)
        early.take_one()
        time.sleep(4.2)  # The time itself is what is tested.
        late = self.client(V5)
        late.subscribe(topic, 1)
        late.assert_nothing_until(unique("end"))

    def test_a_session_expires(self):
        client_id = unique("expiry")
        self.client(V5, client_id, clean=False, expiry=1).disconnect()

        # Expiry may be a few seconds late, and asking ends the session: so ask once, late enough.
        time.sleep(6.2)
        self.assertFalse(self.client(V5, client_id, clean=False, expiry=0).session_present)


class Subscriptions(BrokerTest):
    def test_identifiers_say_which_subscription_matched(self):
        root = unique("identifiers")
        subscriber, publisher = self.client(V5), self.client(V5)
        subscriber.subscribe(f"{root}/a", 1, identifier=7)
        subscriber.subscribe(f"{root}/b", 1, identifier=268_435_455)
        publisher.publish(f"{root}/a", "x", 1)
        self.assertEqual(subscriber.take_one().properties.SubscriptionIdentifier, [7])
        publisher.publish(f"{root}/b", "x", 1)
        self.assertEqual(subscriber.take_one().properties.SubscriptionIdentifier, [268_435_455])
        # Overlapping ones may come as one message with both or as two with one each.
        subscriber.subscribe(f"{root}/+", 1, identifier=9)
        publisher.publish(f"{root}/a", "x", 1)
        seen = []

        def both():
            seen.extend(i for message in subscriber.take(1) for i in message.properties.SubscriptionIdentifier)
            return sorted(seen) == [7, 9]

        wait_for("both identifiers", both)

    def test_no_local(self):
        topic = unique("local")
        client, other = self.client(V5), self.client(V5)
        client.subscribe(topic, 1, noLocal=True)
        client.publish(topic, "own", 1)
        other.publish(topic, "foreign", 1)
        self.assertEqual(client.take_one().payload, b"foreign")

    def test_retain_as_published(self):
        topic = unique("published")
        keeps, clears, publisher = self.client(V5), self.client(V5), self.client(V5)
        keeps.subscribe(topic, 1, retainAsPublished=True)
        clears.subscribe(topic, 1)
        publisher.publish(topic, "x", 1, True)
        self.assertTrue(keeps.take_one().retain)
        self.assertFalse(clears.take_one().retain)
        publisher.publish(topic, b"", 1, True)

    def test_retain_handling(self):
        topic = unique("handling")
        publisher = self.client(V5)
        publisher.publish(topic, "x", 1, True)
        always, once, never = self.client(V5), self.client(V5), self.client(V5)
        for _ in range(2):
            always.subscribe(topic, 1, retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE)
            always.take_one()
        once.subscribe(topic, 1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        once.take_one()
        once.subscribe(topic, 1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        once.assert_nothing_until(unique("end"))
        never.subscribe(topic, 1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        never.assert_nothing_until(unique("end"))
        publisher.publish(topic, b"", 1, True)


class Shared(BrokerTest):
    def test_spread_and_complete(self):
        for qos in (0, 1, 2):
            topic, group = unique("shared"), unique("group")
            members = [self.client(V5) for _ in range(3)]
            alone, publisher = self.client(V5), self.client(V5)
            for member in members:
                member.subscribe(f"$share/{group}/{topic}", qos)
            alone.subscribe(topic, qos)
            for number in range(300):
                publisher.publish(topic, f"{number}", qos)
            alone.take(300)
            wait_for("all messages", lambda: sum(len(member.messages) for member in members) >= 300)
            shares = [member.take(1) for member in members]
            numbers = sorted(int(message.payload) for share in shares for message in share)
            self.assertEqual(numbers, list(range(300)))
            # Nobody has it all: a third each, give or take.
            self.assertTrue(all(30 <= len(share) <= 200 for share in shares), [len(share) for share in shares])

    def test_no_retained_message_for_a_shared_subscription(self):
        topic = unique("shared")
        publisher, member = self.client(V5), self.client(V5)
        publisher.publish(topic, "x", 1, True)
        member.subscribe(f"$share/g/{topic}", 1)
        member.assert_nothing_until(unique("end"))
        publisher.publish(topic, b"", 1, True)

    def test_a_member_that_leaves_leaves_its_share_to_others(self):
        topic = unique("shared")
        stays, leaves, publisher = self.client(V5), self.client(V5), self.client(V5)
        for member in (stays, leaves):
            member.subscribe(f"$share/g/{topic}", 1)
        leaves.unsubscribe(f"$share/g/{topic}")
        for number in range(20):
            publisher.publish(topic, f"{number}", 1)
        self.assertEqual(len(stays.take(20)), 20)
        self.assertEqual(leaves.messages, [])


class Broker(BrokerTest):
    def test_it_says_how_long_it_is_up(self):
        client = self.client(V5)
        client.subscribe("$SYS/broker/uptime", 0)
        message = wait_for("$SYS", lambda: client.messages)[0]
        self.assertRegex(message.payload.decode(), r"^\d+( seconds)?$")

    def test_wildcards_do_not_reach_into_sys(self):
        client = self.client(V5)
        client.subscribe("#", 0)
        client.assert_nothing_until(unique("end"))

    def test_a_clean_start_with_an_identifier_of_the_brokers_choice(self):
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, "", protocol=V5)
        given = []
        client.on_connect = lambda _c, _u, _f, _r, connack: given.append(connack.AssignedClientIdentifier)
        client.connect(support.HOST, support.PORT)
        client.loop_start()
        self.addCleanup(client.loop_stop)
        self.addCleanup(client.disconnect)
        self.assertTrue(wait_for("CONNACK", lambda: given)[0])


if __name__ == "__main__":
    unittest.main()
