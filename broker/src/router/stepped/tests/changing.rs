//! Topics that go over from the group of a persistent session to its node, or back: in which order what may come, and what
//! the client gets. Each interleaving is tried without counting as both as well, which shows what is lost or comes twice.

use super::*;
use crate::metrics::DropReason;
use crate::plants::{Plant, plant};
use crate::replicated::{DeliverPersistent, UnsubscribedPersistent};
use crate::router::changing::{CAME_BEFORE_MAX, OVERLAPS_LOOKED_AT_MAX};
use crate::router::client::OwnSubscription;

const FILTER: &str = "t/+";
/// Overlaps it.
const OTHER: &str = "t/#";
const TOPIC: &str = "t/a";

/// A client with a persistent session on one of several nodes, whose group is played by the test.
struct Subscriber {
    machine: Arc<ManualClock>,
    arbiter: SteppedArbiter,
    client: Client,
    connection: ConnectionKey,
    last_packet_id: u16,
    last_asked: PacketId,
}

/// What the client got: number of the message, and QoS.
type Got = Vec<(u64, QoS)>;

impl Subscriber {
    /// Subscribed to [`FILTER`].
    fn new(qos: QoS) -> Self {
        let mut this = Self::resumed(Vec::new());
        this.stand(FILTER, SubscriptionOptions::new(qos));
        this
    }

    /// Connected again, to a session that has these.
    fn resumed(subscriptions: Vec<SubscribeOutcome>) -> Self {
        let machine = Arc::new(ManualClock::new(0));
        let connect = connect(ProtocolVersion::V5, "c".to_owned(), 0);
        let (mut arbiter, client, connection) =
            claimant_at(&machine, Arc::new(NoPeers), Settings::default(), Authority::default(), connect);
        let opened = Opened::transient(connection, Arc::from("c"));
        let opened = Opened { epoch: 1, group: Some(0), subscriptions, ..opened };
        arbiter.state.shared.inboxes[0].push(opened.into(), 0);
        arbiter.run();
        let last_asked = PacketId::MIN;
        Self { machine, arbiter, client, connection, last_packet_id: 0, last_asked }
    }

    fn event(&mut self, event: Event) {
        self.arbiter.state.shared.inboxes[0].push(event, 0);
        self.arbiter.run();
    }

    fn say(&mut self, packet: &Packet) {
        self.client.send(packet);
        self.client.write(usize::MAX);
        self.arbiter.run();
    }

    fn subscribe(&mut self, qos: QoS) {
        self.ask(FILTER, SubscriptionOptions::new(qos));
    }

    fn ask(&mut self, filter: &str, options: SubscriptionOptions) {
        self.last_asked = self.client.packet_id();
        let filters = vec![(filter.to_owned(), options)];
        let (packet_id, user_properties) = (self.last_asked, vec![]);
        self.say(&Packet::Subscribe(Subscribe { packet_id, filters, subscription_identifier: None, user_properties }));
    }

    /// It has one more subscription, and that is over.
    fn stand(&mut self, filter: &str, options: SubscriptionOptions) {
        self.ask(filter, options);
        self.pass_barriers();
        self.answer_to(filter, options);
        self.pass_barriers();
        self.pass(60);
        packets(&mut self.client);
    }

    fn unsubscribe(&mut self, filter: &str) {
        self.last_asked = self.client.packet_id();
        let (packet_id, filters) = (self.last_asked, vec![filter.to_owned()]);
        self.say(&Packet::Unsubscribe(Unsubscribe { packet_id, filters, user_properties: vec![] }));
    }

    /// The group answers an UNSUBSCRIBE.
    fn answer_end(&mut self, filter: &str) {
        let ticket = *self.asked().first().expect("it was asked");
        let outcomes = vec![(filter.to_owned(), ReasonCode::Success)];
        let (connection, packet_id) = (self.connection, self.last_asked);
        self.event(Event::Unsubscribed(UnsubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes }));
    }

    /// Tickets of what the group was asked and has not answered.
    fn asked(&mut self) -> Vec<u64> {
        let served = self.arbiter.state.served(self.connection).expect("it is served");
        served.unanswered.iter().map(|&(ticket, _)| ticket).collect()
    }

    /// Every node has heard of what waits for that.
    fn pass_barriers(&mut self) {
        let served = self.arbiter.state.served(self.connection).expect("it is served");
        let waiting = served.unasked.iter().map(|unasked| unasked.ticket);
        let tickets: Vec<u64> = waiting.chain(served.barriers.iter().map(|&(ticket, _)| ticket)).collect();
        if let Some(ticket) = tickets.into_iter().max() {
            self.event(Event::Barrier { ticket });
        }
    }

    /// The group answers the SUBSCRIBE that it was asked first.
    fn answer(&mut self, qos: QoS) {
        self.answer_to(FILTER, SubscriptionOptions::new(qos));
    }

    fn answer_to(&mut self, filter: &str, options: SubscriptionOptions) {
        let ticket = *self.asked().first().expect("it was asked");
        let outcome = outcome(filter, options);
        let (connection, packet_id) = (self.connection, self.last_asked);
        let subscribed = SubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes: vec![outcome] };
        self.event(Event::Subscribed(subscribed));
    }

    /// A publisher's node sent it to this one.
    fn directly(&mut self, number: u64) {
        self.message_directly(message(number));
    }

    fn message_directly(&mut self, message: Arc<Message>) {
        self.event(Event::Route { message, weight: 0 });
    }

    /// The group moved it into the window.
    fn by_group(&mut self, number: u64) {
        self.message_by_group(message(number), false);
    }

    fn message_by_group(&mut self, message: Arc<Message>, retain: bool) {
        self.copy_by_group(message, retain, Some(false));
    }

    fn copy_by_group(&mut self, message: Arc<Message>, retain: bool, shared: Option<bool>) {
        self.copy_at(QoS::AtLeastOnce, message, retain, shared);
    }

    fn copy_at(&mut self, qos: QoS, message: Arc<Message>, retain: bool, shared: Option<bool>) {
        self.last_packet_id += 1;
        let delivery = DeliverPersistent {
            connection: self.connection,
            epoch: 1,
            packet_id: PacketId::new(self.last_packet_id).expect("not zero"),
            qos,
            dup: false,
            retain,
            subscription_identifiers: Vec::new(),
            message,
            expires_at_ms: None,
            shared,
        };
        self.event(Event::Deliver(vec![delivery]));
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.arbiter.state.counters.messages_dropped.unflushed(reason)
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.machine.advance(Duration::from_secs(1));
            self.arbiter.on_second();
            self.arbiter.run();
        }
    }

    fn got(&mut self) -> Got {
        let publishes = packets(&mut self.client).into_iter().filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(publish),
            _ => None,
        });
        let number = |publish: &Publish| std::str::from_utf8(&publish.payload).ok()?.parse().ok();
        publishes.map(|publish| (number(&publish).expect("a number"), publish.delivery.qos())).collect()
    }

    /// What the group was told that the client acknowledged, by number of acknowledgement.
    fn acknowledged(&mut self) -> usize {
        let said = commands_to_group(&mut self.arbiter);
        let items = said.iter().map(|command| match command {
            SessionCommand::Acknowledge(acknowledge) => acknowledge.items.len(),
            _ => 0,
        });
        items.sum()
    }
}

fn outcome(filter: &str, options: SubscriptionOptions) -> SubscribeOutcome {
    let reason = crate::session::subscribing::granted(options.qos);
    SubscribeOutcome { filter: filter.to_owned(), reason, options, identifier: None, read: None }
}

fn message(number: u64) -> Arc<Message> {
    Arc::new(Message {
        identity: MessageIdentity { lane: 7, number },
        topic: Arc::from(TOPIC),
        payload: Bytes::from(number.to_string()),
        qos: QoS::AtLeastOnce,
        retain: false,
        publisher: Arc::from("p"),
        properties: None,
        expires_at_ms: None,
    })
}

fn retained(number: u64) -> Arc<Message> {
    Arc::new(Message { retain: true, ..Message::clone(&message(number)) })
}

/// One that came by no publisher's lane, as whoever leads its group routes it.
fn will(number: u64) -> Arc<Message> {
    let will = Arc::new(Message { identity: MessageIdentity::default(), ..Message::clone(&message(number)) });
    crate::groups::machine::identified(&will, 3, number)
}

/// What a client gets with the product's way, and where a subscription goes over at once.
fn both(from: QoS, interleaving: impl Fn(&mut Subscriber)) -> (Got, Got) {
    let run = |planted: Option<Plant>| {
        plant(planted);
        let mut subscriber = Subscriber::new(from);
        interleaving(&mut subscriber);
        subscriber.pass(5);
        plant(None);
        subscriber.got()
    };
    (run(None), run(Some(Plant::ChangeAtOnce)))
}

const ONCE: QoS = QoS::AtLeastOnce;
const MOST: QoS = QoS::AtMostOnce;

/// 1 → 0. The group applies the SUBSCRIBE, then the message: not for this session any more. What comes directly came before the
/// group's answer.
#[test]
fn what_the_group_does_not_hand_over_any_more_is_not_lost() {
    let (got, at_once) = both(ONCE, |subscriber| {
        subscriber.subscribe(MOST);
        subscriber.pass_barriers();
        subscriber.directly(1);
        subscriber.answer(MOST);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
}

/// 1 → 0. The group applies the message, then the SUBSCRIBE, and each of the two ways may be the faster one.
#[test]
fn what_the_group_handed_over_before_does_not_come_directly_as_well() {
    let (got, at_once) = both(ONCE, |subscriber| {
        subscriber.by_group(1);
        subscriber.subscribe(MOST);
        subscriber.pass_barriers();
        subscriber.directly(2);
        subscriber.by_group(2);
        subscriber.by_group(3);
        subscriber.answer(MOST);
        (1..=3).for_each(|number| subscriber.directly(number));
    });
    assert_eq!(got, [(1, ONCE), (2, ONCE), (3, ONCE)]);
    assert_eq!(at_once, [(1, ONCE), (2, ONCE), (3, ONCE), (1, MOST), (2, MOST), (3, MOST)]);
}

/// 1 → 0. What stood behind the window comes by the group when it was here already.
#[test]
fn what_came_directly_does_not_come_from_the_queue_as_well_and_is_acknowledged() {
    let (got, at_once) = both(ONCE, |subscriber| {
        subscriber.subscribe(MOST);
        subscriber.pass_barriers();
        subscriber.directly(1);
        subscriber.answer(MOST);
        subscriber.directly(2);
        subscriber.by_group(1);
        subscriber.by_group(2);
        if plants_nothing() {
            assert_eq!(subscriber.acknowledged(), 2);
            let served = subscriber.arbiter.state.served(subscriber.connection).expect("it is served");
            assert!(served.sent.is_empty());
        }
    });
    assert_eq!(got, [(1, MOST), (2, MOST)]);
    assert_eq!(at_once, [(2, MOST), (1, ONCE), (2, ONCE)]);
}

fn plants_nothing() -> bool {
    !crate::plants::is_planted(Plant::ChangeAtOnce)
}

/// 0 → 1. Publishers' nodes send it both ways until they have heard that the node wants it directly no more.
#[test]
fn what_came_directly_does_not_come_by_the_group_as_well() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.directly(1);
        subscriber.subscribe(ONCE);
        subscriber.directly(2);
        subscriber.by_group(1);
        subscriber.by_group(2);
        subscriber.by_group(3);
        subscriber.directly(3);
        subscriber.answer(ONCE);
        subscriber.directly(4);
        subscriber.by_group(4);
        subscriber.by_group(5);
    });
    assert_eq!(got, [(1, MOST), (2, MOST), (3, ONCE), (4, ONCE), (5, ONCE)]);
    let twice = [(1, MOST), (2, MOST), (1, ONCE), (2, ONCE), (3, ONCE), (3, MOST), (4, ONCE), (5, ONCE)];
    assert_eq!(at_once, twice);
}

/// 0 → 1. It was sent directly before its publisher's node heard of the group, and comes behind the group's answer.
#[test]
fn what_was_on_its_way_directly_is_not_lost() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.subscribe(ONCE);
        subscriber.answer(ONCE);
        subscriber.directly(1);
        assert_eq!(subscriber.got(), [], "the group may have it");
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
    // After SUBACK nothing is on its way from then: the group has it, however long it takes.
    let (got, _) = both(MOST, |subscriber| {
        subscriber.subscribe(ONCE);
        subscriber.answer(ONCE);
        subscriber.pass_barriers();
        subscriber.directly(1);
        subscriber.pass(10);
        subscriber.by_group(1);
    });
    assert_eq!(got, [(1, ONCE)]);
}

/// 1 → 0 and 0 → 1. The two copies of a will are one message.
#[test]
fn a_will_comes_once() {
    let (got, at_once) = both(ONCE, |subscriber| {
        subscriber.subscribe(MOST);
        subscriber.pass_barriers();
        subscriber.message_directly(will(1));
        subscriber.message_directly(will(2));
        subscriber.message_by_group(will(1), false);
        subscriber.answer(MOST);
        subscriber.message_directly(will(3));
        subscriber.message_by_group(will(3), false);
    });
    assert_eq!(got, [(1, ONCE), (2, MOST), (3, MOST)]);
    assert_eq!(at_once, [(1, ONCE), (3, MOST), (3, ONCE)]);
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.subscribe(ONCE);
        subscriber.message_directly(will(1));
        subscriber.message_by_group(will(1), false);
        subscriber.answer(ONCE);
        subscriber.message_directly(will(2));
    });
    assert_eq!(got, [(1, MOST), (2, MOST)]);
    assert_eq!(at_once, [(1, MOST), (1, ONCE)]);
}

/// The end of a subscription with a QoS leaves what it has in common with one without to that, as 1 → 0 does.
#[test]
fn what_a_subscription_that_ends_leaves_to_another_comes_once() {
    let (got, at_once) = both(ONCE, |subscriber| {
        subscriber.stand(OTHER, SubscriptionOptions::new(MOST));
        subscriber.by_group(1);
        subscriber.unsubscribe(FILTER);
        // The group has applied it, and then the message.
        subscriber.directly(2);
        // The other way round.
        subscriber.by_group(3);
        subscriber.answer_end(FILTER);
        [1, 3, 4].into_iter().for_each(|number| subscriber.directly(number));
    });
    assert_eq!(got, [(1, ONCE), (3, ONCE), (2, MOST), (4, MOST)]);
    assert_eq!(at_once, [(1, ONCE), (3, ONCE), (1, MOST), (3, MOST), (4, MOST)]);
}

/// The beginning of one takes it from that, as 0 → 1 does.
#[test]
fn what_a_subscription_that_begins_takes_from_another_comes_once() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.directly(1);
        subscriber.ask(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.directly(2);
        [1, 2, 3].into_iter().for_each(|number| subscriber.by_group(number));
        subscriber.directly(3);
        subscriber.answer_to(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.directly(4);
    });
    assert_eq!(got, [(1, MOST), (2, MOST), (3, ONCE), (4, MOST)]);
    assert_eq!(at_once, [(1, MOST), (2, MOST), (1, ONCE), (2, ONCE), (3, ONCE), (3, MOST)]);
}

/// What came directly just before its filter goes over counts, also while another filter of the session is remembered.
#[test]
fn what_came_before_a_second_filter_goes_over_does_not_come_twice() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.stand("u/+", SubscriptionOptions::new(MOST));
        subscriber.ask("u/+", SubscriptionOptions::new(ONCE));
        subscriber.answer_to("u/+", SubscriptionOptions::new(ONCE));
        subscriber.pass_barriers();
        subscriber.directly(1);
        subscriber.subscribe(ONCE);
        subscriber.by_group(1);
        subscriber.answer(ONCE);
    });
    assert_eq!(got, [(1, MOST)]);
    assert_eq!(at_once, [(1, MOST), (1, ONCE)]);
}

/// A client may end a subscription before it hears that it has begun.
#[test]
fn what_a_subscription_takes_and_leaves_at_once_is_not_lost() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.ask(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.unsubscribe(OTHER);
        subscriber.answer_to(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.pass_barriers();
        // The group has applied the end.
        subscriber.directly(1);
        subscriber.answer_end(OTHER);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
    // Also one that had nothing to take when it was asked for.
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.unsubscribe(FILTER);
        subscriber.answer_end(FILTER);
        subscriber.pass(60);
        subscriber.ask(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.ask(FILTER, SubscriptionOptions::new(MOST));
        subscriber.unsubscribe(OTHER);
        for (filter, qos) in [(OTHER, ONCE), (FILTER, MOST)] {
            subscriber.answer_to(filter, SubscriptionOptions::new(qos));
            subscriber.pass_barriers();
        }
        subscriber.directly(1);
        subscriber.answer_end(OTHER);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
    // Or one that was there, and was just told to take.
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.stand(OTHER, SubscriptionOptions::new(MOST));
        subscriber.ask(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.unsubscribe(OTHER);
        subscriber.answer_to(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.pass_barriers();
        subscriber.pass(3);
        subscriber.directly(1);
        subscriber.answer_end(OTHER);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
}

/// Or begin one while another one that overlaps it has no answer yet.
#[test]
fn what_a_subscription_takes_from_another_that_was_just_asked_for_is_not_lost() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.unsubscribe(FILTER);
        subscriber.answer_end(FILTER);
        subscriber.pass(60);
        subscriber.ask(OTHER, SubscriptionOptions::new(MOST));
        subscriber.ask(FILTER, SubscriptionOptions::new(ONCE));
        subscriber.answer_to(OTHER, SubscriptionOptions::new(MOST));
        subscriber.pass_barriers();
        subscriber.answer(ONCE);
        // Its node had not heard of the group.
        subscriber.directly(1);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
}

/// Or while one that overlaps it is on its way from the group to directly.
#[test]
fn what_a_subscription_takes_from_another_that_goes_over_is_not_lost() {
    let (got, at_once) = both(ONCE, |subscriber| {
        subscriber.subscribe(MOST);
        subscriber.ask(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.pass_barriers();
        subscriber.answer(MOST);
        subscriber.pass_barriers();
        subscriber.answer_to(OTHER, SubscriptionOptions::new(ONCE));
        // Between the two it was nobody's but this node's.
        subscriber.directly(1);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![]));
}

/// What another subscription has come by the group is not in doubt, also if that one has gone over itself just before.
#[test]
fn what_the_group_has_for_another_subscription_waits_as_long_as_it_takes() {
    let (got, _) = both(ONCE, |subscriber| {
        subscriber.stand(OTHER, SubscriptionOptions::new(MOST));
        subscriber.ask(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.answer_to(OTHER, SubscriptionOptions::new(ONCE));
        subscriber.pass_barriers();
        subscriber.pass(3);
        subscriber.subscribe(MOST);
        subscriber.pass_barriers();
        subscriber.directly(1);
        subscriber.answer(MOST);
        subscriber.pass(10);
        subscriber.by_group(1);
    });
    assert_eq!(got, [(1, ONCE)]);
}

/// [MQTT-3.8.3-3]: a subscription by which a session does not get what it published itself decides nothing about that.
#[test]
fn what_a_session_published_itself_does_not_wait_for_a_subscription_that_leaves_it_out() {
    let own = |number| Arc::new(Message { publisher: Arc::from("c"), ..Message::clone(&message(number)) });
    let run = |no_local| {
        let (got, _) = both(ONCE, |subscriber| {
            subscriber.stand(OTHER, SubscriptionOptions { no_local, ..SubscriptionOptions::new(ONCE) });
            subscriber.subscribe(MOST);
            subscriber.pass_barriers();
            subscriber.message_directly(own(1));
            subscriber.answer(MOST);
        });
        got
    };
    assert_eq!(run(true), [(1, MOST)]);
    assert_eq!(run(false), [], "the group hands it over for the sake of the other one");
}

/// QoS 2 as well: the group forgets the copy, and nobody takes that for a packet that is too large.
#[test]
fn a_copy_at_qos_2_that_came_directly_is_settled() {
    let mut subscriber = Subscriber::new(MOST);
    subscriber.subscribe(QoS::ExactlyOnce);
    subscriber.directly(1);
    commands_to_group(&mut subscriber.arbiter);
    subscriber.copy_at(QoS::ExactlyOnce, message(1), false, Some(false));
    assert_eq!((subscriber.acknowledged(), subscriber.dropped(DropReason::PacketTooLarge)), (1, 0));
    let served = subscriber.arbiter.state.served(subscriber.connection).expect("it is served");
    assert!(served.sent.is_empty());
    assert_eq!(subscriber.got(), [(1, MOST)]);
}

/// A filter that has nothing in common with any other changes nothing for others when it comes or goes.
#[test]
fn what_overlaps_nothing_goes_over_by_no_way() {
    let mut subscriber = Subscriber::new(MOST);
    subscriber.ask("u/+", SubscriptionOptions::new(ONCE));
    subscriber.answer_to("u/+", SubscriptionOptions::new(ONCE));
    subscriber.unsubscribe("u/+");
    subscriber.answer_end("u/+");
    assert!(subscriber.arbiter.state.changing.is_empty());
}

/// What is read as retained is owed whatever came live; a live message with RETAIN as published is none of that.
#[test]
fn a_retained_message_comes_beside_the_live_one_and_retain_as_published_is_live() {
    let (got, _) = both(MOST, |subscriber| {
        subscriber.message_directly(retained(1));
        subscriber.subscribe(ONCE);
        subscriber.message_by_group(retained(1), true);
        subscriber.answer(ONCE);
    });
    assert_eq!(got, [(1, MOST), (1, ONCE)]);
    let (got, at_once) = both(ONCE, |subscriber| {
        let options = SubscriptionOptions { retain_as_published: true, ..SubscriptionOptions::new(MOST) };
        subscriber.stand(FILTER, options);
        let options = SubscriptionOptions { retain_as_published: true, ..SubscriptionOptions::new(ONCE) };
        subscriber.message_directly(retained(1));
        subscriber.ask(FILTER, options);
        subscriber.message_by_group(retained(1), true);
        subscriber.answer_to(FILTER, options);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![(1, MOST), (1, ONCE)]));
    // The group knows before this node that RETAIN is kept.
    let (got, at_once) = both(MOST, |subscriber| {
        let options = SubscriptionOptions { retain_as_published: true, ..SubscriptionOptions::new(ONCE) };
        subscriber.ask(FILTER, options);
        subscriber.message_directly(retained(1));
        subscriber.message_by_group(retained(1), true);
        subscriber.answer_to(FILTER, options);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![(1, MOST), (1, ONCE)]));
}

/// 1 → 0, with what is retained still to be read. The group has heard of that before a page comes, and would take nothing in.
#[test]
fn what_is_retained_is_not_lost_when_its_subscription_goes_over() {
    let mut subscriber = Subscriber::resumed(Vec::new());
    subscriber.arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let first = SubscriptionOptions::new(ONCE);
    subscriber.ask(FILTER, first);
    let ticket = *subscriber.asked().first().expect("it was asked");
    let outcomes = vec![SubscribeOutcome { read: Some(9), ..outcome(FILTER, first) }];
    let (connection, packet_id) = (subscriber.connection, subscriber.last_asked);
    // The read's.
    let number = subscriber.arbiter.state.message_number + 1;
    subscriber.event(Event::Subscribed(SubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes }));
    subscriber.pass_barriers();

    let second = SubscriptionOptions { retain_handling: RetainHandling::IfNew, ..SubscriptionOptions::new(MOST) };
    subscriber.ask(FILTER, second);
    subscriber.pass_barriers();
    let asked = RetainedCursor { group: 0, after: None };
    let page = RetainedPage { connection, number, asked, messages: vec![retained(1)], next: None };
    subscriber.event(Event::RetainedPage(page));
    assert_eq!(subscriber.got(), []);
    subscriber.answer_to(FILTER, second);
    subscriber.pass_barriers();
    assert_eq!(subscriber.got(), [(1, MOST)]);
    let said = commands_to_group(&mut subscriber.arbiter);
    let pages = said.iter().filter_map(|command| match command {
        SessionCommand::RetainedPage(page) => Some((page.messages.len(), page.last)),
        _ => None,
    });
    assert_eq!(pages.collect::<Vec<_>>(), [(0, true)], "that was all");
}

/// One whose session's group has agreed to a filter, and knows the read of what is retained for it by 9; its connection; and the number
/// of the read here.
fn reading() -> (Subscriber, ConnectionKey, u64) {
    let mut subscriber = Subscriber::resumed(Vec::new());
    subscriber.arbiter.state.shared.retained_possible.store(true, Ordering::Relaxed);
    let (options, connection) = (SubscriptionOptions::new(ONCE), subscriber.connection);
    subscriber.ask(FILTER, options);
    let ticket = *subscriber.asked().first().expect("it was asked");
    let outcomes = vec![SubscribeOutcome { read: Some(9), ..outcome(FILTER, options) }];
    let packet_id = subscriber.last_asked;
    let number = subscriber.arbiter.state.message_number + 1;
    subscriber.event(Event::Subscribed(SubscribedPersistent { connection, epoch: 1, packet_id, ticket, outcomes }));
    subscriber.pass_barriers();
    (subscriber, connection, number)
}

/// Pages of retained messages that were handed to the group by now.
fn pages_to_group(subscriber: &mut Subscriber) -> Vec<command::RetainedPage> {
    let said = commands_to_group(&mut subscriber.arbiter).into_iter();
    let pages = said.filter_map(|command| match command {
        SessionCommand::RetainedPage(page) => Some(page),
        _ => None,
    });
    pages.collect()
}

/// The terms of a filter are asked for by what names it: its retained messages do not wait for the answers to others, of which there
/// may be some at any time.
#[test]
fn what_is_retained_waits_for_no_answer_about_another_filter() {
    let (mut subscriber, connection, number) = reading();

    let handed_over = |subscriber: &mut Subscriber| {
        let pages = pages_to_group(subscriber).into_iter();
        pages.map(|page| (page.messages.len(), page.last)).collect::<Vec<_>>()
    };
    let asked = RetainedCursor { group: 0, after: None };
    let next = RetainedCursor { group: 0, after: Some(TOPIC.to_owned()) };
    let messages = (1..=3).map(retained).collect();
    let page = RetainedPage { connection, number, asked, messages, next: Some(next) };
    subscriber.unsubscribe(OTHER);
    subscriber.event(Event::RetainedPage(page));
    let mut all = vec![(0, false)];
    assert_eq!(handed_over(&mut subscriber), all, "how much room there is");
    for (messages_free, handed) in [(4, 2), (1, 1)] {
        let queue = QueueAtGroup { queued: 0, messages_free, bytes_free: 1_000_000, window_free: Some(1) };
        let answer = PageAnswer { read: 9, page: 0, overflows: 0, queue };
        subscriber.event(Event::RetainedTaken { connection, epoch: 1, answer });
        all.push((handed, false));
        assert_eq!(handed_over(&mut subscriber), all, "half of the room, and one where nothing waits");
    }
}

/// The group let live messages go on that had waited: it refuses what was read before, which is read again, and a page that was asked for
/// before counts no more. The read ends when the group has everything.
#[test]
fn what_is_retained_is_read_again_when_live_messages_went_before_it() {
    let (mut subscriber, connection, number) = reading();

    let answer = |subscriber: &mut Subscriber, overflows| {
        let page = pages_to_group(subscriber).last().expect("there is one").number;
        let queue = QueueAtGroup { queued: 0, messages_free: 100, bytes_free: 1_000_000, window_free: Some(20) };
        let answer = PageAnswer { read: 9, page, overflows, queue };
        subscriber.event(Event::RetainedTaken { connection, epoch: 1, answer });
    };
    let read = |subscriber: &mut Subscriber, number, after: Option<&str>, message, next: Option<&str>| {
        let cursor = |after: &str| RetainedCursor { group: 0, after: Some(after.to_owned()) };
        let asked = RetainedCursor { group: 0, after: after.map(str::to_owned) };
        let page = RetainedPage { connection, number, asked, messages: vec![message], next: next.map(cursor) };
        subscriber.event(Event::RetainedPage(page));
    };
    let said = |subscriber: &mut Subscriber| {
        let pages = pages_to_group(subscriber).into_iter();
        pages
            .map(|page| (page.messages.first().map(|message| message.number), page.overflows, page.last))
            .collect::<Vec<_>>()
    };
    read(&mut subscriber, number, None, retained(1), Some(TOPIC));
    answer(&mut subscriber, 0);
    let mut all = vec![(None, 0, false), (Some(1), 0, false)];
    assert_eq!(said(&mut subscriber), all);
    answer(&mut subscriber, 1);
    let again = subscriber.arbiter.state.message_number;
    read(&mut subscriber, number, Some(TOPIC), retained(2), None);
    assert_eq!(said(&mut subscriber), all, "read before that was known");
    read(&mut subscriber, again, None, retained(3), None);
    all.push((Some(3), 1, false));
    assert_eq!(said(&mut subscriber), all);
    answer(&mut subscriber, 1);
    all.push((None, 1, true));
    assert_eq!(said(&mut subscriber), all);
}

/// An answer that a leader took with it is asked for, or the read would have no end.
#[test]
fn a_read_ends_although_the_answer_to_its_last_page_is_lost() {
    let (mut subscriber, connection, number) = reading();

    let handed_over = |subscriber: &mut Subscriber| {
        let pages = pages_to_group(subscriber).into_iter();
        pages.map(|page| (page.messages.len(), page.last)).collect::<Vec<_>>()
    };
    let queue = QueueAtGroup { queued: 0, messages_free: 100, bytes_free: 1_000_000, window_free: Some(20) };
    let taken = |page| {
        let answer = PageAnswer { read: 9, page, overflows: 0, queue };
        Event::RetainedTaken { connection, epoch: 1, answer }
    };
    let asked = RetainedCursor { group: 0, after: None };
    let page = RetainedPage { connection, number, asked, messages: vec![retained(1)], next: None };
    subscriber.event(Event::RetainedPage(page));
    subscriber.event(taken(subscriber.arbiter.state.message_number));
    let mut all = vec![(0, false), (1, false)];
    assert_eq!(handed_over(&mut subscriber), all);
    subscriber.arbiter.state.ask_again(0);
    subscriber.arbiter.state.continue_slow_reads();
    all.push((0, false));
    assert_eq!(handed_over(&mut subscriber), all, "what became of it");
    subscriber.event(taken(subscriber.arbiter.state.message_number));
    all.push((0, true));
    assert_eq!(handed_over(&mut subscriber), all);
}

/// [MQTT-4.8.2]: a shared subscription has a copy of its own, beside the one that comes one way or the other.
#[test]
fn what_comes_by_a_shared_subscription_is_another_copy() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.stand("$share/g/t/+", SubscriptionOptions::new(ONCE));
        subscriber.subscribe(ONCE);
        subscriber.directly(1);
        for shared in [true, false] {
            subscriber.copy_by_group(message(1), false, Some(shared));
        }
        // The copy of the shared subscription says nothing of the other one.
        subscriber.copy_by_group(message(2), false, Some(true));
        subscriber.directly(2);
        subscriber.answer(ONCE);
    });
    assert_eq!(got, [(1, MOST), (1, ONCE), (2, ONCE), (2, MOST)]);
    assert_eq!(at_once, [(1, MOST), (1, ONCE), (1, ONCE), (2, ONCE), (2, MOST)]);
    // One that was granted no QoS has its copy directly, and none of the group's is for it.
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.stand("$share/g/t/+", SubscriptionOptions::new(MOST));
        subscriber.subscribe(ONCE);
        subscriber.directly(1);
        subscriber.copy_by_group(message(1), false, None);
        subscriber.answer(ONCE);
    });
    assert_eq!((got, at_once), (vec![(1, MOST)], vec![(1, MOST), (1, ONCE)]));
}

/// A leader of an earlier version does not say what a copy is for: nothing is lost.
#[test]
fn what_may_have_come_by_a_shared_subscription_is_not_taken_for_the_other_copy() {
    let (got, at_once) = both(MOST, |subscriber| {
        subscriber.stand("$share/g/t/+", SubscriptionOptions::new(ONCE));
        subscriber.subscribe(ONCE);
        subscriber.directly(1);
        subscriber.copy_by_group(message(1), false, None);
        subscriber.answer(ONCE);
    });
    assert_eq!((&got, got.len()), (&at_once, 2));
}

/// Whatever a client asks for while every node is to hear of something, little of it is kept here, and all of it is asked in the end.
#[test]
fn a_client_is_not_read_while_much_waits_to_be_asked() {
    const SUBSCRIBES: usize = 200;
    let mut subscriber = Subscriber::new(ONCE);
    commands_to_group(&mut subscriber.arbiter);
    subscriber.subscribe(MOST);
    for _ in 1..SUBSCRIBES {
        let subscribe = subscribe_to(&mut subscriber.client, &["u"], ONCE);
        subscriber.client.send(&subscribe);
    }
    subscriber.client.write(usize::MAX);
    subscriber.arbiter.run();
    let unasked = |subscriber: &mut Subscriber| {
        let served = subscriber.arbiter.state.served(subscriber.connection).expect("it is served");
        served.unasked.len()
    };
    assert_eq!(unasked(&mut subscriber), ASKED_MAX);
    subscriber.pass_barriers();
    assert_eq!((unasked(&mut subscriber), subscriber.asked().len()), (0, ASKED_MAX));
    for answered in 1..=SUBSCRIBES - ASKED_MAX {
        subscriber.answer(MOST);
        subscriber.pass_barriers();
        assert_eq!(subscriber.asked().len(), ASKED_MAX, "after {answered} answers");
    }
}

/// What a transient session asks for stands here at once.
#[test]
fn of_a_transient_session_nothing_goes_over() {
    let mut subscriber = Subscriber::new(ONCE);
    let session = subscriber.arbiter.state.client(subscriber.connection).and_then(|client| client.session.as_mut());
    session.expect("it has one").persistent = None;
    let asked = [(FILTER, Some(SubscriptionOptions::new(MOST)))];
    assert!(!subscriber.arbiter.state.begin_changes(subscriber.connection, 1, &asked));
    assert!(subscriber.arbiter.state.changing.is_empty());
}

/// A filter may have gone over by the connection before: what is still in the session's queue came to its node as well.
#[test]
fn what_the_group_hands_over_to_a_resumed_session_does_not_come_directly_as_well() {
    let run = |planted: Option<Plant>| {
        plant(planted);
        let mut subscriber = Subscriber::resumed(vec![outcome(FILTER, SubscriptionOptions::new(MOST))]);
        subscriber.by_group(1);
        (1..=2).for_each(|number| subscriber.directly(number));
        plant(None);
        let got = subscriber.got();
        subscriber.pass(60);
        assert!(subscriber.arbiter.state.changing.is_empty());
        got
    };
    assert_eq!(run(None), [(1, ONCE), (2, MOST)]);
    assert_eq!(run(Some(Plant::ChangeAtOnce)), [(1, ONCE), (1, MOST), (2, MOST)]);
}

/// One that was resumed changes nothing yet, and there may be many such, so little is remembered of it; but a change may follow, and what
/// still comes directly then is no second copy (found by simulation, seed 1609).
#[test]
fn what_a_resumed_session_had_before_it_changes_anything_does_not_come_twice() {
    let mut subscriber = Subscriber::resumed(vec![
        outcome("other", SubscriptionOptions::new(MOST)),
        outcome(FILTER, SubscriptionOptions::new(ONCE)),
    ]);
    let had = 2 * CAME_BEFORE_MAX as u64;
    (1..=had).for_each(|number| subscriber.by_group(number));
    subscriber.subscribe(MOST);
    subscriber.pass_barriers();
    subscriber.answer(MOST);
    (1..=had + 1).for_each(|number| subscriber.directly(number));
    let by_group = (1..=had).map(|number| (number, ONCE));
    assert_eq!(subscriber.got(), by_group.chain([(had + 1, MOST)]).collect::<Vec<_>>());
}

/// Few filters are remembered, however many are changed.
#[test]
fn so_many_filters_go_over_at_a_time() {
    let mut subscriber = Subscriber::new(MOST);
    for number in 0..300 {
        let filter = format!("t/{number}");
        subscriber.ask(&filter, SubscriptionOptions::new(ONCE));
        subscriber.answer_to(&filter, SubscriptionOptions::new(ONCE));
        subscriber.pass_barriers();
    }
    let session = subscriber.arbiter.state.client(subscriber.connection).and_then(|client| client.session.as_ref());
    let changes = session.and_then(|session| session.changes.as_ref()).expect("some go over");
    assert_eq!(changes.len(), 256);
    subscriber.pass(60);
    assert!(subscriber.arbiter.state.changing.is_empty());
}

/// Nor is each filter of a large SUBSCRIBE held against each of a large session: what there was no time for counts as going over.
#[test]
fn so_many_filters_are_held_against_others() {
    const STANDING: usize = 1000;
    let mut subscriber = Subscriber::new(MOST);
    let session = subscriber.arbiter.state.client(subscriber.connection).and_then(|client| client.session.as_mut());
    let options = SubscriptionOptions::new(MOST);
    session.expect("it has one").subscriptions.extend(
        (1..STANDING).map(|number| (Box::from(format!("s/{number}")), OwnSubscription { options, identifier: None })),
    );
    let mut going = |number: usize| {
        let filters: Vec<String> = (0..number).map(|number| format!("u/{number}")).collect();
        let asked: Vec<_> =
            filters.iter().map(|filter| (filter.as_str(), Some(SubscriptionOptions::new(ONCE)))).collect();
        let connection = subscriber.connection;
        assert!(!subscriber.arbiter.state.begin_changes(connection, 1, &asked));
        let session = subscriber.arbiter.state.client(connection).and_then(|client| client.session.as_ref());
        session.and_then(|session| session.changes.as_ref()).map_or(0, |changes| changes.len())
    };
    // To find those that it is held against takes as long as to look at one of them for each.
    let looked_at = OVERLAPS_LOOKED_AT_MAX / STANDING - 1;
    assert_eq!((going(looked_at), going(10)), (0, 10));
    subscriber.arbiter.state.schedule_flush();
    subscriber.arbiter.run();
    assert_eq!(subscriber.arbiter.state.overlap_looks_left, OVERLAPS_LOOKED_AT_MAX, "in the next turn");
}

/// All nodes hear that this one wants the messages, and only then the group hears that the session does not. What the client
/// asks for next does not get ahead of that.
#[test]
fn the_group_is_asked_once_every_node_sends_directly_and_in_the_order_of_the_client() {
    let mut subscriber = Subscriber::new(ONCE);
    subscriber.subscribe(MOST);
    subscriber.subscribe(QoS::ExactlyOnce);
    assert!(subscriber.asked().is_empty());
    subscriber.pass_barriers();
    assert_eq!(subscriber.asked().len(), 2);
    let asked = |command: &SessionCommand| match command {
        SessionCommand::Subscribe(subscribe) => Some(subscribe.filters[0].qos),
        _ => None,
    };
    let said = commands_to_group(&mut subscriber.arbiter);
    assert_eq!(said.iter().filter_map(asked).collect::<Vec<_>>(), [1, 0, 2]);
    subscriber.answer(MOST);
    subscriber.answer(QoS::ExactlyOnce);
    // It has gone to and fro.
    subscriber.directly(1);
    subscriber.by_group(1);
    assert_eq!(subscriber.got(), [(1, ONCE)]);
}

/// P12: nothing is left of a subscription that was to go over when its client went. The group hears of it before the end.
#[test]
fn a_connection_that_ends_meanwhile_leaves_nothing() {
    let mut subscriber = Subscriber::new(ONCE);
    let subscribe = subscribe_to(&mut subscriber.client, &[FILTER], MOST);
    subscriber.client.send(&subscribe);
    subscriber.client.write(usize::MAX);
    // The connection's task, and not yet the flush, which hands the changes on.
    assert!(subscriber.arbiter.step(0));
    subscriber.arbiter.state.end(subscriber.connection, EndCause::ClosedByPeer, None);
    let told = subscriber.arbiter.state.interest.filters.clone();
    let told: Vec<_> = told.iter().map(|(filter, kind, more)| (&**filter, *kind, *more)).collect();
    let (any, little) = (InterestKind::Any, InterestKind::Qos0Only);
    assert_eq!(told, [(FILTER, any, true), (FILTER, little, false), (FILTER, any, false)]);
    let said = commands_to_group(&mut subscriber.arbiter);
    let last = said.last_chunk().expect("two at least");
    assert!(matches!(last, [SessionCommand::Subscribe(_), SessionCommand::Disconnect(_)]), "{said:?}");
}

/// P7: what the group was not asked yet is said before the session is let go, and what waits is counted.
#[test]
fn a_connection_that_is_taken_over_meanwhile_says_all_before_it_lets_go() {
    let mut subscriber = Subscriber::new(ONCE);
    subscriber.subscribe(MOST);
    subscriber.pass_barriers();
    subscriber.directly(1);
    subscriber.subscribe(ONCE);
    subscriber.subscribe(MOST);
    let before = subscriber.dropped(DropReason::Qos0Offline);
    subscriber.arbiter.state.end(subscriber.connection, EndCause::TakenOver, None);
    assert_eq!(subscriber.dropped(DropReason::Qos0Offline), before + 1);
    assert!(subscriber.arbiter.state.barriers.is_empty());
    let said = commands_to_group(&mut subscriber.arbiter);
    let last = said.last_chunk().expect("four at least");
    let [first, second, third, end] = last;
    let asked = [first, second, third].map(|command| match command {
        SessionCommand::Subscribe(subscribe) => subscribe.filters[0].qos,
        other => panic!("{other:?}"),
    });
    assert_eq!(asked, [0, 1, 0]);
    assert!(matches!(end, SessionCommand::Released(_)), "{end:?}");
    subscriber.pass(3);
    assert!(subscriber.arbiter.state.changing.is_empty());
}
