//! Links begin, carry messages in order, break and begin anew.

use super::proxy::Proxy;
use super::*;

#[test]
fn three_nodes_exchange_all_classes_in_order() {
    const MESSAGES: u64 = 2_000;
    let nodes = [node(1), node(2), node(3)];
    for node in &nodes {
        node.know(&[&nodes[0], &nodes[1], &nodes[2]]);
    }
    nodes.iter().for_each(Node::wait_all_up);
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.node != from.node) {
            for (class, number) in Class::ALL.into_iter().flat_map(|class| (0..MESSAGES).map(move |n| (class, n))) {
                from.send(to, class, numbered(number)).unwrap();
            }
        }
    }
    for to in &nodes {
        let mut came: BTreeMap<(NodeId, Class), Vec<u64>> = BTreeMap::new();
        to.find("all messages", |event| {
            if let Event::Batch(incoming) = event {
                let numbers = came.entry((incoming.from, incoming.class)).or_default();
                numbers.extend(incoming.messages.iter().map(|message| number_of(&message.body)));
            }
            (came.values().map(Vec::len).sum::<usize>() >= 6 * MESSAGES as usize).then_some(())
        });
        assert_eq!(came.len(), 6);
        assert!(came.values().all(|numbers| numbers.iter().copied().eq(0..MESSAGES)));
    }
}

#[test]
fn both_ends_learn_of_each_other_and_of_the_same_epoch() {
    let (one, two) = (node(1), node(2));
    one.know(&[&two]);
    two.know(&[&one]);
    let sender = one.up(&two, Class::Forward, Direction::Outgoing);
    let receiver = two.up(&one, Class::Forward, Direction::Incoming);
    assert_eq!(sender.epoch, receiver.epoch);
    assert_eq!((sender.hello.name.as_str(), sender.hello.incarnation), ("n2", Some(Incarnation(102))));
    assert_eq!((receiver.hello.node, receiver.hello.cluster), (NodeId(1), Some(CLUSTER)));
}

/// A node that lost its disk comes back as another one at the same address, while the others still dial the one it was.
#[test]
fn a_dial_that_means_a_nodes_predecessor_ends_no_link_with_the_node_itself() {
    let (one, two) = (node(1), node(2));
    two.know(&[&one]);
    let predecessor = PeerAddress { node: NodeId(0x77), ..two.address() };
    one.transport.set_peers([two.address(), predecessor]);
    eventually("the links are up", || {
        let peers = one.transport.peers();
        peers.iter().any(|status| status.peer.node == two.node && status.outgoing.len() == Class::COUNT)
    });

    let failed = value(&one.transport.stats().dials_failed);
    eventually("the predecessor is dialled again and again", || {
        value(&one.transport.stats().dials_failed) >= failed + 9
    });
    assert!(!two.events.try_iter().any(|event| matches!(event, Event::LinkDown { .. })));
    assert!(!one.events.try_iter().any(|event| matches!(event, Event::LinkDown { .. })));
}

#[test]
fn a_reset_gives_both_ends_a_new_epoch_and_nothing_older_follows_it() {
    let (one, two) = (node(1), node(2));
    let proxy = Proxy::before(two.transport.local_address());
    one.transport.set_peers([two.address_behind(proxy.address)]);
    two.know(&[&one]);
    let before = one.up(&two, Class::Forward, Direction::Outgoing).epoch;
    assert_eq!(two.up(&one, Class::Forward, Direction::Incoming).epoch, before);

    // Some of these are under way when the network is cut.
    (0..1_000).for_each(|number| one.send(&two, Class::Forward, numbered(number)).unwrap());
    proxy.cut();
    assert_eq!(one.down(&two, Class::Forward, Direction::Outgoing), before);
    let after = one.up(&two, Class::Forward, Direction::Outgoing).epoch;
    assert!(before.is_before(after));
    one.send(&two, Class::Forward, numbered(5_000)).unwrap();

    let mut events = Vec::new();
    two.find("the first message of the new epoch", |event| {
        let last = matches!(&event, Event::Batch(incoming) if incoming.epoch == after);
        match event {
            Event::Batch(incoming) if incoming.class == Class::Forward => events.push(("batch", incoming.epoch)),
            Event::LinkDown { class: Class::Forward, direction: Direction::Incoming, epoch, .. } => {
                events.push(("down", epoch))
            }
            Event::LinkUp { class: Class::Forward, direction: Direction::Incoming, epoch, .. } => {
                events.push(("up", epoch))
            }
            _ => {}
        }
        last.then_some(())
    });
    events.dedup();
    let end = [("down", before), ("up", after), ("batch", after)];
    assert!(events.ends_with(&end), "{events:?}");
    assert!(events[..events.len() - 3].iter().all(|event| *event == ("batch", before)), "{events:?}");
}

#[test]
fn a_peer_that_restarts_at_another_port_is_found_there() {
    let (one, two) = pair();
    let address = two.address();
    two.transport.stop(Duration::ZERO);
    let lost = one.down(&two, Class::Forward, Direction::Outgoing);
    assert_eq!(one.send(&two, Class::Forward, numbered(0)), Err(SendError::Down));

    let two = node(2);
    assert_ne!(two.address(), address);
    one.know(&[&two]);
    two.know(&[&one]);
    assert_ne!(one.up(&two, Class::Forward, Direction::Outgoing).epoch, lost);
    two.wait_all_up();
    one.send(&two, Class::Forward, numbered(7)).unwrap();
    assert_eq!(two.numbers(&one, Class::Forward, 1), [7]);
}

/// Where nobody listens.
const NOWHERE: &str = "127.0.0.1:1";

/// Has `to` hear of where a node says that it is, from a process with this identity that listens elsewhere.
fn say_address(to: &Node, identity: LocalIdentity, address: &str) {
    let advertise = address.to_owned();
    let speaks = start(TransportConfig { advertise, ..TransportConfig::new(loopback(), identity) });
    speaks.transport.who(to.address().address).recv_timeout(DEADLINE).unwrap().unwrap();
}

fn places(at: &Node, peer: NodeId) -> [String; 4] {
    let peer = at.transport.inner.shared.peer(peer).unwrap();
    [0, 1, 2, 3].map(|failed| peer.place(failed).address)
}

#[test]
fn a_peer_is_dialled_where_it_says_that_it_is_until_others_know_that() {
    // It must know where it will be before it listens; no other process of the tests has this address.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let listen = SocketAddr::from(([127, 128 + high % 64, middle, low], 7000));
    let one = node(1);
    let two = start(TransportConfig { listen, advertise: listen.to_string(), ..config(2) });
    let before = PeerAddress { address: NOWHERE.to_owned(), ..two.address() };
    one.transport.set_peers([before.clone(), PeerAddress { address: "me:1".to_owned(), ..one.address() }]);
    assert_eq!(one.transport.own_address().as_deref(), Some("me:1"));
    two.know(&[&one]);
    let there = listen.to_string();
    one.up(&two, Class::Control, Direction::Outgoing);
    two.wait_all_up();
    assert_eq!(one.transport.peers()[0].peer, before, "it has not registered there");
    assert_eq!(places(&one, two.node), [&there, NOWHERE, &there, NOWHERE], "where it was reached is dialled first");
    let fetched: Vec<_> = one.transport.fetch_snapshot(two.node, GroupId(3), 77).collect();
    assert!(fetched.iter().all(Result::is_ok) && !fetched.is_empty(), "and asked");

    one.know(&[&two]);
    assert_eq!(places(&one, two.node), [(); 4].map(|()| &*there));
    one.wait_all_up();
}

/// Abuse: [peers-tls]
#[test]
fn a_wrong_word_of_where_a_peer_is_cuts_it_off_from_nobody() {
    let (one, two) = (node(1), node(2));
    let proxy = Proxy::before(two.transport.local_address());
    one.transport.set_peers([two.address_behind(proxy.address)]);
    two.know(&[&one]);
    let links_up = |count| {
        let mut up = 0;
        one.find("its links", |event| {
            up += usize::from(matches!(event, Event::LinkUp { .. }));
            (up == count).then_some(())
        });
    };
    links_up(2 * Class::COUNT);
    let there = proxy.address.to_string();
    for stranger in [
        LocalIdentity { cluster: Some(ClusterId(0xc2)), ..config(2).identity },
        LocalIdentity { cluster: None, ..config(2).identity },
        LocalIdentity { name: "n9".to_owned(), ..config(2).identity },
        config(3).identity,
    ] {
        say_address(&one, stranger, NOWHERE);
        assert_eq!(places(&one, two.node), [(); 4].map(|()| &*there), "it is not its word");
    }
    // Without TLS anybody can say so.
    say_address(&one, config(2).identity, NOWHERE);
    assert_eq!(places(&one, two.node), [&there, NOWHERE, &there, NOWHERE]);
    assert!(one.events.is_empty(), "its links stay");
    let failed = value(&one.transport.stats().dials_failed);
    proxy.cut();
    links_up(Class::COUNT);
    assert_eq!(value(&one.transport.stats().dials_failed), failed, "it is dialled where it was reached");
    say_address(&one, config(2).identity, &there);
    assert_eq!(places(&one, two.node), [(); 4].map(|()| &*there), "it is where it was");
}

#[test]
fn a_peer_that_falls_silent_is_noticed() {
    let keep_alive_interval = Duration::from_millis(1500);
    let keep_alive_timeout = Duration::from_millis(300);
    let quick = |number| TransportConfig { keep_alive_interval, keep_alive_timeout, ..config(number) };
    let (one, two) = (start(quick(1)), start(quick(2)));
    let proxy = Proxy::before(two.transport.local_address());
    one.transport.set_peers([two.address_behind(proxy.address)]);
    two.know(&[&one]);
    one.wait_all_up();
    two.up(&one, Class::Control, Direction::Incoming);
    proxy.stall(true);
    let began = Instant::now();
    let mut left = BTreeSet::from(Class::ALL);
    while !left.is_empty() {
        let event = one.events.recv_timeout(DEADLINE).expect("all links to it end");
        if let Event::LinkDown { class, direction: Direction::Outgoing, .. } = event {
            left.remove(&class);
        }
    }
    assert!(began.elapsed() < keep_alive_interval * 3, "those that are asked less often end with the one for control");
    two.down(&one, Class::Control, Direction::Incoming);
    proxy.stall(false);
    one.up(&two, Class::Control, Direction::Outgoing);
}

/// Nothing is sent over it, and nobody is to wait for that.
#[test]
fn a_link_that_is_ended_on_purpose_begins_anew_while_it_is_idle() {
    let (one, two) = pair();
    one.transport.break_link(two.node, Class::Control);
    let before = one.down(&two, Class::Control, Direction::Outgoing);
    assert_eq!(two.down(&one, Class::Control, Direction::Incoming), before);
    let after = one.up(&two, Class::Control, Direction::Outgoing).epoch;
    assert!(before.is_before(after));
    assert_eq!(two.up(&one, Class::Control, Direction::Incoming).epoch, after);
}

#[test]
fn a_node_that_is_no_longer_a_peer_loses_its_links() {
    let (one, two) = pair();
    one.know(&[]);
    one.down(&two, Class::Forward, Direction::Incoming);
    two.down(&one, Class::Forward, Direction::Outgoing);
    assert_eq!(one.send(&two, Class::Forward, numbered(0)), Err(SendError::UnknownPeer));
    eventually("it is told why", || two.last_error().contains("is no member"));
    one.know(&[&two]);
    one.wait_all_up();
}

#[test]
fn links_that_did_not_change_stay_up_when_the_peers_are_set_again() {
    let (one, two) = pair();
    let three = node(3);
    one.know(&[&two, &three]);
    three.know(&[&one]);
    three.wait_all_up();
    one.wait_all_up();
    let changed = one.events.try_iter().any(|event| matches!(event, Event::LinkDown { .. }));
    assert!(!changed);
}

/// The opening of a link that its dialler gave up may arrive after that of the next one.
#[test]
fn a_late_opening_does_not_take_the_place_of_a_newer_link() {
    let (sink, events) = unbounded();
    let shared = Shared::new(config(1), None, Arc::new(sink));
    let peer = Peer::new(NodeId(2), "n2".into(), "127.0.0.1:1".into(), &shared);
    let inbox = &peer.inboxes[Class::Forward.index()];
    let hello = PeerHello::verify(Some(config(2).identity.hello(1)), None).unwrap();
    let accept = |epoch| inbox.accept(LinkEpoch(epoch), hello.clone());

    let newer = accept(7 << 32 | 2).unwrap();
    assert_eq!(accept(7 << 32 | 1).err(), Some(Refusal::Superseded));
    let batch = || kentongan_proto::peer::Batch::parse(Bytes::new()).unwrap();
    assert_eq!(newer.deliver(batch()), Ok(()));
    // Another process of the same node counts anew.
    let restarted = accept(6 << 32 | 1).unwrap();
    assert_eq!(newer.deliver(batch()), Err(Refusal::Superseded));
    drop(newer);
    assert_eq!(restarted.deliver(batch()), Ok(()));
    assert_eq!(events.len(), 5, "up, batch, down, up, batch");
}

#[test]
fn stopping_sends_what_waits() {
    const MESSAGES: u64 = 20_000;
    let (one, two) = pair();
    (0..MESSAGES).for_each(|number| one.send(&two, Class::Forward, numbered(number)).unwrap());
    one.transport.stop(DEADLINE);
    let numbers = two.numbers(&one, Class::Forward, MESSAGES as usize);
    assert!(numbers.into_iter().eq(0..MESSAGES));
    two.down(&one, Class::Forward, Direction::Incoming);
    let downs = one.events.try_iter().filter(|event| matches!(event, Event::LinkDown { .. })).count();
    assert_eq!(downs, 6, "each link that was up is down, and nothing follows");
}
