//! Packets of which the rest does not come, or comes slowly.

use super::*;

/// Payload of the packets here: more than is read at once.
const LARGE_BYTES: usize = 200_000;

/// A client of the second arbiter, which looks at no memory itself, and a large PUBLISH that it has to write.
fn with_large_publish(world: &mut World, number: usize, keep_alive: u16) -> Client {
    let mut client = world.open(1, connect(ProtocolVersion::V5, format!("c{number}"), keep_alive));
    assert_eq!(packets(&mut client).len(), 1, "CONNACK");
    let delivery = Delivery::AtLeastOnce(client.packet_id());
    let (topic, payload) = ("t".to_owned(), Bytes::from(vec![b'x'; LARGE_BYTES]));
    let properties = PublishProperties::default();
    client.send(&Packet::Publish(Publish { dup: false, delivery, retain: false, topic, properties, payload }));
    client
}

/// It writes as much as is taken of it, but for the last bytes. `true`: all that went.
fn write_but(world: &mut World, client: &mut Client, left: usize) -> bool {
    while client.to_write.len() > left && client.write(client.to_write.len() - left) {
        world.arbiters[1].run();
    }
    client.to_write.len() == left
}

/// What connections hold of packets whose rest has not come.
fn held_bytes(world: &World) -> usize {
    world.arbiters[1].state.clients.iter().map(|(_, client)| client.partial.capacity()).sum()
}

/// Once memory is short only a little more of it is taken in a second, and all go on when there is some again.
///
/// Abuse: [memory]
#[test]
fn amid_a_packet_nobody_takes_much_more_memory_while_it_is_short() {
    const CLIENTS: usize = 40;
    let mut world = World::new(1);
    let mut clients: Vec<_> = (0..CLIENTS).map(|number| with_large_publish(&mut world, number, 0)).collect();
    world.shared.pretend_memory(115, 100);
    world.arbiters[1].on_second();
    let mut before = CLIENTS * 8 * 1024;
    for _ in 0..3 {
        let finished = clients.iter_mut().filter(|client| !client.to_write.is_empty());
        let finished = finished.map(|client| write_but(&mut world, client, 1)).filter(|&all| all).count();
        assert!(finished < 8, "{finished}");
        let held = held_bytes(&world);
        assert!(held <= before + 256 * 1024 + LARGE_BYTES, "{held} bytes, {before} before");
        before = held;
        world.machine.advance(Duration::from_secs(1));
        world.arbiters[1].on_second();
        world.arbiters[1].run();
    }
    assert_eq!(world.arbiters[1].state.connections(), CLIENTS);
    world.shared.pretend_memory(100, 100);
    world.arbiters[1].run();
    for client in &mut clients {
        assert!(write_but(&mut world, client, 0));
        assert!(matches!(packets(client)[..], [Packet::PubAck(_)]));
    }
    assert_eq!(held_bytes(&world), 0);
}

/// All that memory is short of is what was begun, and little is missing: in time each is read on and handled, so that none waits for ever.
#[test]
fn amid_packets_each_has_its_turn_while_memory_is_short() {
    const CLIENTS: usize = 40;
    let mut world = World::new(1);
    let mut clients: Vec<_> = (0..CLIENTS).map(|number| with_large_publish(&mut world, number, 0)).collect();
    for client in &mut clients {
        assert!(write_but(&mut world, client, 2000));
    }
    world.shared.pretend_memory(115, 100);
    world.arbiters[1].on_second();
    world.arbiters[1].state.rest_bytes_left = 0;
    for client in &mut clients {
        write_but(&mut world, client, 1);
    }
    assert!(clients.iter_mut().all(|client| packets(client).is_empty()));
    let mut acknowledged = 0;
    for _ in 0..CLIENTS.div_ceil(16) {
        world.machine.advance(Duration::from_secs(1));
        world.arbiters[1].on_second();
        world.arbiters[1].run();
        for client in &mut clients {
            write_but(&mut world, client, 0);
            acknowledged += packets(client).iter().filter(|packet| is_puback(packet)).count();
        }
    }
    assert_eq!(acknowledged, CLIENTS);
}

/// Nobody knows who they are, and they are asked for no more than they have said.
///
/// Abuse: [memory]
#[test]
fn whoever_has_not_said_who_it_is_keeps_no_memory_while_it_is_short() {
    let mut world = World::new(1);
    let comes = |world: &mut World, bytes: usize| {
        let (here, there) = MemoryStream::pair(1 << 20);
        while world.shared.try_open_connection(&world.listener, usize::MAX) != Some(1) {}
        world.arbiters[1].add_connection(there, Arc::clone(&world.listener), None);
        let mut client = Client::new(here, ProtocolVersion::V5);
        let mut connect = connect(ProtocolVersion::V5, "stranger".to_owned(), 0);
        connect.password = Some(Bytes::from(vec![b'x'; 20_000]));
        client.send(&Packet::Connect(Box::new(connect)));
        client.write(bytes);
        world.arbiters[1].run();
        client
    };
    let there = |world: &World| world.arbiters[1].state.connections();
    let _clients = [comes(&mut world, 15_000), comes(&mut world, 1_000)];
    world.arbiters[1].on_second();
    world.arbiters[1].run();
    assert_eq!(there(&world), 2);
    world.shared.pretend_memory(105, 100);
    world.arbiters[1].on_second();
    world.arbiters[1].run();
    assert_eq!(there(&world), 1, "the one that has said little");
    let mut late = [comes(&mut world, 15_000), comes(&mut world, 1_000)];
    assert_eq!(there(&world), 2);
    late[1].write(10_000);
    world.arbiters[1].run();
    assert_eq!(there(&world), 1, "now it has said much");
}

/// Each arbiter has its part of what is over the mark, and closes in one second a sixteenth of its connections at most.
///
/// Abuse: [memory]
#[test]
fn as_many_are_closed_as_bring_memory_under_its_mark() {
    let mut world = World::new(1);
    let mut clients: Vec<_> = (0..64).map(|number| with_large_publish(&mut world, number, 0)).collect();
    for client in &mut clients {
        assert!(write_but(&mut world, client, 1));
    }
    let each = held_bytes(&world) as u64 / 64;
    assert!(each >= LARGE_BYTES as u64);
    for (over, left) in [(3 * each, 62), (100 * each, 59), (2 * each, 58)] {
        world.shared.pretend_memory(5 * over, 4 * over);
        assert_eq!(world.shared.memory_level(), 3);
        world.arbiters[1].on_second();
        world.arbiters[1].run();
        assert_eq!(world.arbiters[1].state.connections(), left, "{over} bytes over the mark");
    }
}

/// [MQTT-3.1.2-22]: bytes of a large message on a slow link are no silence; a trickle that would take days is.
#[test]
fn much_of_a_packet_shows_that_its_client_is_there() {
    for (bytes_a_second, is_heard) in [(4000, true), (100, false)] {
        let mut world = World::new(1);
        let mut client = with_large_publish(&mut world, 1, 2);
        let mut seconds = 0;
        while !client.to_write.is_empty() && world.arbiters[1].state.connections() > 0 {
            client.write(bytes_a_second);
            world.arbiters[1].run();
            world.pass(1000);
            world.arbiters[1].run();
            seconds += 1;
        }
        world.arbiters[1].run();
        let heard = packets(&mut client);
        assert_eq!(matches!(heard[..], [Packet::PubAck(_)]), is_heard, "{bytes_a_second}: {heard:?}");
        assert_eq!(seconds > 40, is_heard, "{bytes_a_second} bytes a second, over after {seconds} s");
    }
}
