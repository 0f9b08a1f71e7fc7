//! MQTT 3.1, and what clients of 3.x need that cannot say so.

use kentongan_proto::mqtt::*;

use crate::support::*;

/// CONNECT of MQTT 3.1, its flags, no keep-alive, the Client Identifier `old`.
fn connect_3_1(flags: u8) -> Vec<u8> {
    [&[0x10, 17][..], b"\0\x06MQIsdp\x03", &[flags, 0, 0], b"\0\x03old"].concat()
}

fn expect_bytes(client: &mut Client, expected: &[u8]) {
    use std::io::Read;
    client.stream.set_read_timeout(Some(DEADLINE)).expect("a socket option");
    let mut bytes = vec![0; expected.len()];
    client.stream.read_exact(&mut bytes).expect("bytes from the broker");
    assert_eq!(bytes, expected);
}

/// Every packet of MQTT 3.1, as its specification draws it: what is sent a second time carries DUP, and there is no Session
/// Present.
#[test]
fn a_client_of_mqtt_3_1_is_served_as_its_specification_has_it() {
    let broker = Broker::start();
    let mut client = Client::raw(&broker, ProtocolVersion::V3_1);
    client.send_bytes(&connect_3_1(0x00));
    expect_bytes(&mut client, &[0x20, 2, 0, 0]);
    // SUBSCRIBE at QoS 2, twice, the second time with DUP.
    for first_byte in [0x82, 0x8A] {
        client.send_bytes(&[&[first_byte, 6, 0, 1][..], b"\0\x01t\x02"].concat());
        expect_bytes(&mut client, &[0x90, 3, 0, 1, 2]);
    }
    // PUBLISH at QoS 2, its PUBREL twice.
    client.send_bytes(b"\x34\x06\0\x01t\0\x02x");
    expect_bytes(&mut client, &[0x50, 2, 0, 2]);
    client.send_bytes(&[0x62, 2, 0, 2]);
    let mut others = 0;
    let mut completed = false;
    while others < 1 || !completed {
        match client.receive() {
            Packet::PubComp(ack) if ack.packet_id == id(2) => completed = true,
            Packet::Publish(publish) => {
                assert_eq!((publish.payload.as_ref(), publish.delivery), (&b"x"[..], qos2(1)));
                others += 1;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    client.send_bytes(&[0x6A, 2, 0, 2]);
    expect_bytes(&mut client, &[0x70, 2, 0, 2]);
    client.send_bytes(&[0x50, 2, 0, 1]);
    expect_bytes(&mut client, &[0x62, 2, 0, 1]);
    client.send_bytes(&[0x70, 2, 0, 1]);
    client.send_bytes(&[0xC0, 0]);
    expect_bytes(&mut client, &[0xD0, 0]);
    client.send_bytes(&[0xE0, 0]);
    client.expect_closed();

    // Resumed, and yet the byte before the return code stays 0.
    let mut client = Client::raw(&broker, ProtocolVersion::V3_1);
    client.send_bytes(&connect_3_1(0x00));
    expect_bytes(&mut client, &[0x20, 2, 0, 0]);
    Client::v5(&broker, "p").publish_acknowledged("t", "still subscribed", qos1(1));
    assert_eq!(client.take_publish().payload, "still subscribed");
    for first_byte in [0xA2, 0xAA] {
        client.send_bytes(&[&[first_byte, 5, 0, 3][..], b"\0\x01t"].concat());
        expect_bytes(&mut client, &[0xB0, 2, 0, 3]);
    }
}

/// A SUBSCRIBE behind CONNECT in the same segment is one of MQTT 3.1 already.
#[test]
fn a_client_of_mqtt_3_1_need_not_wait_for_connack() {
    let broker = Broker::start();
    let mut client = Client::raw(&broker, ProtocolVersion::V3_1);
    client.send_bytes(&[&connect_3_1(0x02)[..], &[0x8A, 6, 0, 1], b"\0\x01t\x00"].concat());
    expect_bytes(&mut client, &[0x20, 2, 0, 0]);
    expect_bytes(&mut client, &[0x90, 3, 0, 1, 0]);
}

/// Only MQTT 5 can tell a client to send more often than it meant to: one that cannot be told must not be cut off.
#[test]
fn the_longest_keep_alive_cuts_off_only_those_who_were_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kentongan.toml");
    std::fs::write(&file, "[[listener]]\naddress = \"127.0.0.1:0\"\nkeep_alive_seconds_max = 1\n").expect("written");
    let broker = Broker::with_file(&file);
    let mut silent = Vec::new();
    for (version, keep_alive) in
        [(ProtocolVersion::V3_1, 600), (ProtocolVersion::V3_1_1, 600), (ProtocolVersion::V3_1_1, 0)]
    {
        let client_id = format!("{version:?}-{keep_alive}");
        silent.push(Client::accepted(&broker, Connect { keep_alive, ..connect(version, &client_id) }));
    }
    // Connected last and cut off: by then the others have been silent for longer.
    for keep_alive in [600, 0] {
        let asked = Connect { keep_alive, ..connect(ProtocolVersion::V5, "told") };
        let (mut told, connack) = Client::open(&broker, asked);
        assert_eq!(connack.properties.server_keep_alive, Some(1));
        told.expect_disconnect(ReasonCode::KeepAliveTimeout);
    }
    for mut client in silent {
        client.expect_nothing();
    }
}

/// Two brokers that forward to each other would otherwise do so for ever, and forget what is retained.
#[test]
fn a_bridge_gets_nothing_back_and_keeps_retain() {
    let broker = Broker::start();
    for (version, clean_start) in
        [(ProtocolVersion::V3_1_1, true), (ProtocolVersion::V3_1_1, false), (ProtocolVersion::V3_1, true)]
    {
        let asked = Connect { bridge: true, clean_start, ..connect(version, "bridge") };
        let mut bridge = Client::accepted(&broker, asked);
        let mut plain = Client::v311(&broker, "plain");
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            bridge.subscribe("#", qos);
            plain.subscribe("#", qos);
            bridge.publish_acknowledged("from/there", "x", qos1(1));
            assert_eq!(plain.take_publish().payload, "x");
            bridge.expect_nothing();

            let mut kept = publish("from/here", "y", qos1(2));
            kept.retain = true;
            plain.send(&Packet::Publish(kept));
            let mut copies = Vec::new();
            while copies.len() < 2 {
                match plain.receive() {
                    Packet::PubAck(ack) if ack.packet_id == id(2) => copies.push(None),
                    Packet::Publish(publish) => {
                        if let Some(packet_id) = publish.delivery.packet_id() {
                            plain.send(&Packet::PubAck(Ack::success(packet_id)));
                        }
                        copies.push(Some(publish.retain));
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
            assert!(copies.contains(&Some(false)), "a client is told that it is new");
            let forwarded = bridge.take_publish();
            assert_eq!((forwarded.payload.as_ref(), forwarded.retain), (&b"y"[..], true));

            let mut gone = publish("from/here", "", qos1(3));
            gone.retain = true;
            let mut cleaner = Client::v5(&broker, "cleaner");
            cleaner.send(&Packet::Publish(gone));
            cleaner.complete(qos1(3));
            assert!(plain.take_publish().payload.is_empty());
            assert!(bridge.take_publish().payload.is_empty());
        }
        // The shared subscription of a bridge is its own too: nobody else would take the message.
        assert_eq!(bridge.subscribe("$share/g/shared", QoS::AtLeastOnce), ReasonCode::GrantedQos1);
        bridge.unsubscribe("#");
        bridge.unsubscribe("$share/g/shared");
    }
}
