// MQTT.js, MQTT 3.1.1 and 5: what every client does. Reads MQTT_HOST and MQTT_PORT, and MQTT_PROTOCOL: mqtt, ws or wss.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { after, describe, test as nodeTest } from "node:test";

import mqtt from "mqtt";

const HOST = process.env.MQTT_HOST ?? "127.0.0.1";
const PORT = Number(process.env.MQTT_PORT ?? 1883);
const PROTOCOL = process.env.MQTT_PROTOCOL ?? "mqtt";

/** Time within which anything that should happen has happened. */
const DEADLINE_MS = 10_000;

/** A publish that is never acknowledged never ends by itself. */
const test = (name, body) => nodeTest(name, { timeout: 3 * DEADLINE_MS }, body);

/** A name that no other test uses: the tests share one broker. */
const unique = (name) => `${name}-${randomUUID().slice(0, 8)}`;

const open = new Set();
after(() => open.forEach((client) => client.end(true)));

/** A connected client that remembers what came. */
async function connect(protocolVersion, options = {}) {
  const client = mqtt.connect({
    host: HOST,
    port: PORT,
    protocol: PROTOCOL,
    path: "/mqtt",
    protocolVersion,
    clientId: unique("mqttjs"),
    // A break is part of some tests: coming back unasked would hide it.
    reconnectPeriod: 0,
    connectTimeout: DEADLINE_MS,
    ...options,
  });
  open.add(client);
  client.came = [];
  client.on("message", (topic, payload, packet) => client.came.push({ ...packet, topic, text: payload.toString() }));
  client.on("error", () => {});
  const [connack] = await once(client, "connect", { signal: AbortSignal.timeout(DEADLINE_MS) });
  client.sessionPresent = connack.sessionPresent;
  return client;
}

/** A session that outlives its connection. */
const persistent = (version, clientId) =>
  connect(version, {
    clientId,
    clean: false,
    ...(version === 5 ? { properties: { sessionExpiryInterval: 300 } } : {}),
  });

/** Waits for as many messages; returns and forgets all that came. */
async function take(client, count) {
  const signal = AbortSignal.timeout(DEADLINE_MS);
  while (client.came.length < count) {
    await once(client, "message", { signal }).catch(() => {
      throw new Error(`${client.came.length} of ${count} messages came`);
    });
  }
  return client.came.splice(0);
}

async function takeOne(client) {
  const messages = await take(client, 1);
  assert.equal(messages.length, 1);
  return messages[0];
}

/** Nothing comes before a message that was published after all else. */
async function assertNothing(client) {
  const sentinel = unique("end");
  await client.subscribeAsync(sentinel, { qos: 1 });
  await client.publishAsync(sentinel, "sentinel", { qos: 1 });
  assert.equal((await takeOne(client)).topic, sentinel);
}

/** The connection breaks without DISCONNECT. */
async function vanish(client) {
  client.stream.destroy();
  await once(client, "close");
}

for (const version of [4, 5]) {
  describe(`MQTT ${version === 4 ? "3.1.1" : "5"}`, () => {
    test("every QoS, published and granted", async () => {
      const [subscriber, publisher] = [await connect(version), await connect(version)];
      for (const granted of [0, 1, 2]) {
        const topic = unique("qos");
        assert.equal((await subscriber.subscribeAsync(topic, { qos: granted }))[0].qos, granted);
        for (const qos of [0, 1, 2]) {
          await publisher.publishAsync(topic, `${qos}`, { qos });
          const message = await takeOne(subscriber);
          assert.deepEqual([message.topic, message.text], [topic, `${qos}`]);
          assert.deepEqual([message.qos, message.retain, message.dup], [Math.min(qos, granted), false, false]);
        }
      }
    });

    test("order is kept", async () => {
      const [subscriber, publisher] = [await connect(version), await connect(version)];
      for (const qos of [1, 2]) {
        const topic = unique("order");
        await subscriber.subscribeAsync(topic, { qos });
        const sent = Array.from({ length: 200 }, (_, number) => `${number}`);
        await Promise.all(sent.map((text) => publisher.publishAsync(topic, text, { qos })));
        assert.deepEqual((await take(subscriber, sent.length)).map((message) => message.text), sent);
      }
    });

    test("a large message", async () => {
      const [subscriber, publisher] = [await connect(version), await connect(version)];
      const payload = Buffer.alloc(900 * 1024, "kentongan");
      for (const qos of [0, 1, 2]) {
        const topic = unique("large");
        await subscriber.subscribeAsync(topic, { qos });
        await publisher.publishAsync(topic, payload, { qos });
        assert.ok(payload.equals((await takeOne(subscriber)).payload));
      }
    });

    test("nothing after unsubscribe", async () => {
      const client = await connect(version);
      const topic = unique("unsubscribe");
      await client.subscribeAsync(topic, { qos: 1 });
      await client.publishAsync(topic, "before", { qos: 1 });
      await takeOne(client);
      await client.unsubscribeAsync(topic);
      await client.publishAsync(topic, "after", { qos: 1 });
      await assertNothing(client);
    });

    test("retained: stored, delivered, replaced, deleted", async () => {
      const publisher = await connect(version);
      for (const qos of [0, 1, 2]) {
        const topic = unique("retained");
        const live = await connect(version);
        await live.subscribeAsync(topic, { qos: 2 });
        for (const value of ["old", "new"]) {
          await publisher.publishAsync(topic, value, { qos, retain: true });
          assert.equal((await takeOne(live)).retain, false);
        }
        const late = await connect(version);
        await late.subscribeAsync(topic, { qos: 2 });
        const message = await takeOne(late);
        assert.deepEqual([message.text, message.qos, message.retain], ["new", qos, true]);
        await publisher.publishAsync(topic, "", { qos, retain: true });
        await takeOne(live);
        const later = await connect(version);
        await later.subscribeAsync(topic, { qos: 2 });
        await assertNothing(later);
      }
    });

    test("a will follows a broken connection, and no DISCONNECT", async () => {
      const watcher = await connect(version);
      for (const qos of [0, 1, 2]) {
        const [silent, loud] = [unique("will"), unique("will")];
        await watcher.subscribeAsync([silent, loud], { qos: 2 });
        await (await connect(version, { will: { topic: silent, payload: "gone", qos } })).endAsync();
        await vanish(await connect(version, { will: { topic: loud, payload: "gone", qos } }));
        const message = await takeOne(watcher);
        assert.deepEqual([message.topic, message.text, message.qos], [loud, "gone", qos]);
      }
    });

    test("a session resumes with what was queued", async () => {
      const [clientId, topic] = [unique("resume"), unique("queue")];
      const first = await persistent(version, clientId);
      assert.equal(first.sessionPresent, false);
      await first.subscribeAsync(topic, { qos: 2 });
      await vanish(first);
      const publisher = await connect(version);
      for (let number = 0; number < 20; number++) {
        await publisher.publishAsync(topic, `${number}`, { qos: 1 + (number % 2) });
      }
      const second = await persistent(version, clientId);
      assert.equal(second.sessionPresent, true);
      const got = await take(second, 20);
      for (const qos of [1, 2]) {
        const numbers = got.filter((message) => message.qos === qos).map((message) => Number(message.text));
        assert.deepEqual(numbers, Array.from({ length: 10 }, (_, number) => 2 * number + qos - 1));
      }
      await publisher.publishAsync(topic, "live", { qos: 2 });
      assert.equal((await takeOne(second)).text, "live");
      await second.endAsync();
      const clean = await connect(version, { clientId });
      assert.equal(clean.sessionPresent, false);
    });
  });
}

describe("MQTT 5 only", () => {
  test("properties arrive as they were sent", async () => {
    const [subscriber, publisher] = [await connect(5), await connect(5)];
    const topic = unique("properties");
    await subscriber.subscribeAsync(topic, { qos: 1, properties: { subscriptionIdentifier: 42 } });
    const properties = {
      responseTopic: "answers",
      correlationData: Buffer.from([0, 255, 1]),
      contentType: "text/plain",
      payloadFormatIndicator: true,
      userProperties: { b: ["1", "3"], a: "2" },
    };
    await publisher.publishAsync(topic, "x", { qos: 1, properties });
    const got = (await takeOne(subscriber)).properties;
    assert.equal(got.subscriptionIdentifier, 42);
    assert.equal(got.responseTopic, "answers");
    assert.ok(properties.correlationData.equals(got.correlationData));
    assert.equal(got.contentType, "text/plain");
    assert.equal(got.payloadFormatIndicator, true);
    assert.deepEqual({ ...got.userProperties }, properties.userProperties);
  });

  test("topic aliases", async () => {
    const [subscriber, publisher] = [
      await connect(5, { properties: { topicAliasMaximum: 5 } }),
      await connect(5, { autoAssignTopicAlias: true }),
    ];
    const topics = [unique("alias"), unique("alias")];
    await subscriber.subscribeAsync(topics, { qos: 1 });
    const sent = [];
    for (let number = 0; number < 10; number++) {
      sent.push(topics[number % 2]);
      await publisher.publishAsync(topics[number % 2], `${number}`, { qos: 1 });
    }
    assert.deepEqual((await take(subscriber, 10)).map((message) => message.topic), sent);
  });

  test("a shared subscription is spread and complete", async () => {
    const topic = unique("shared");
    const members = [await connect(5), await connect(5)];
    const publisher = await connect(5);
    for (const member of members) await member.subscribeAsync(`$share/g/${topic}`, { qos: 1 });
    for (let number = 0; number < 100; number++) await publisher.publishAsync(topic, `${number}`, { qos: 1 });
    const signal = AbortSignal.timeout(DEADLINE_MS);
    while (members[0].came.length + members[1].came.length < 100) {
      await Promise.race(members.map((member) => once(member, "message", { signal })));
    }
    const numbers = members.flatMap((member) => member.came.map((message) => Number(message.text)));
    assert.deepEqual(numbers.sort((a, b) => a - b), Array.from({ length: 100 }, (_, number) => number));
    assert.ok(members.every((member) => member.came.length >= 20));
  });
});
