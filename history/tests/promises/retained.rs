//! A retained topic is a register (P6).

use kentongan_history::{Action, Delivery, MessageId, Promise, Publish, Subscribe, Subscription, What};

use super::script::{EVER, Script, TOPIC};

#[test]
fn p6_a_retained_topic_is_a_linearizable_register() {
    let reads = |message: u64| {
        let mut script = Script::default();
        script.connect("pub", 0);
        script.retain("pub", 1, false);
        script.retain("pub", 2, false);
        script.connect("sub", 0);
        script.subscribe("sub", TOPIC, 1);
        script.deliver_as("sub", message, 1, 7, false, true);
        script
    };
    reads(2).keeps_all();
    reads(1).breaks(Promise::P6);
}

/// What was not read to its end is read anew when another connection takes the session up, and both copies may come after a
/// SUBSCRIBE that would not have found them (found by simulation, seed 29393).
#[test]
fn p6_a_reading_that_is_begun_anew_brings_a_copy_of_its_own() {
    let reads_twice = |is_resumed: bool| {
        let mut script = Script::default();
        script.connect("pub", 0);
        script.retain("pub", 1, false);
        script.connect("sub", EVER);
        script.subscribe("sub", TOPIC, 1);
        if is_resumed {
            script.close("sub");
            script.resume("sub", EVER);
        }
        script.deliver_as("sub", 1, 1, 7, false, true);
        script.retain("pub", 2, false);
        script.subscribe("sub", "#", 1);
        script.deliver_as("sub", 1, 1, 8, false, true);
        script
    };
    reads_twice(true).keeps_all();
    reads_twice(false).breaks(Promise::P6);
}

#[test]
fn p6_an_acknowledged_retained_message_is_not_missing() {
    let mut script = Script::default();
    script.connect("pub", 0);
    script.retain("pub", 1, false);
    script.connect("sub", 0);
    script.subscribe("sub", TOPIC, 1);
    script.keeps_all();
    script.mark(What::Quiesced);
    script.breaks(Promise::P6);
}

/// What comes by a shared subscription does not wait for the retained messages of another (found by simulation, seed 1200).
#[test]
fn p6_a_message_that_a_shared_subscription_may_have_brought_is_no_end_of_reading() {
    let lacking = |shared: &'static str| {
        let mut script = Script::default();
        script.connect("pub", 0);
        script.retain("pub", 1, false);
        script.connect("sub", EVER);
        let filters = [shared, TOPIC].map(|filter| Subscription {
            filter,
            qos: 1,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        });
        script.line("sub", Action::SubscribeSent(Box::new(Subscribe { packet_id: 90, filters: filters.to_vec() })));
        script.line("sub", Action::SubAck { packet_id: 90, reasons: Box::new([1, 1]) });
        script.publish("pub", 2, 1);
        script.deliver("sub", 2, 1);
        script
    };
    lacking("$share/h/#").keeps_all();
    lacking("$share/h/other").breaks(Promise::P6);
}

/// A retained message drives those of its topic that wait before it; other topics may still be to be read (found by simulation, seeds
/// 12327, and 16537 where it waited for acknowledgements until its connection was over).
#[test]
fn p6_a_message_that_goes_before_the_retained_one_of_its_topic_is_no_end_of_reading() {
    const OTHER: &str = "other";
    let script = |published: usize, sent: usize| {
        let mut script = Script::default();
        script.connect("pub", 0);
        script.retain("pub", 1, false);
        script.connect("sub", 0);
        script.subscribe("sub", "#", 1);
        for (message, retain) in [(2, false), (3, true)].into_iter().take(published) {
            let (packet_id, number) = (50 + message as u16, MessageId(message));
            let (topic, expiry) = (OTHER, None);
            let publish =
                Publish { packet_id, dup: false, qos: 1, retain, topic, expiry, message: number, empty: false };
            script.line("pub", Action::PublishSent(publish));
            script.acknowledge("pub", packet_id, 1, 0);
        }
        for (message, retain) in [(2, false), (3, true)].into_iter().take(sent) {
            let delivery = Delivery {
                packet_id: 1_000 + message as u16,
                dup: false,
                qos: 1,
                retain,
                topic: OTHER,
                message: Some(MessageId(message)),
                expiry: None,
                identifiers: Box::default(),
            };
            script.line("sub", Action::Delivered(delivery));
        }
        script.close("sub");
        script
    };
    script(2, 2).keeps_all();
    script(2, 1).keeps_all();
    script(1, 1).breaks(Promise::P6);
}

/// UNSUBSCRIBE stops what had not begun to be sent [MQTT-3.10.4-2, MQTT-3.10.4-3], and so does a SUBSCRIBE that wants nothing
/// retained. One that only wants nothing twice does not.
#[test]
fn p6_a_subscription_that_is_given_up_is_owed_no_retained_message() {
    let script = |then: fn(&mut Script)| {
        let mut script = Script::default();
        script.connect("pub", 0);
        script.retain("pub", 1, false);
        script.connect("sub", 0);
        script.subscribe("sub", TOPIC, 1);
        then(&mut script);
        script.mark(What::Quiesced);
        script
    };
    script(|script| script.unsubscribe("sub", TOPIC)).keeps_all();
    script(|script| script.subscribe_handling("sub", TOPIC, 1, 2)).keeps_all();
    script(|script| script.subscribe_handling("sub", TOPIC, 1, 1)).breaks(Promise::P6);
    script(|_| ()).breaks(Promise::P6);
}

/// What a subscription reads may still be on its way when another SUBSCRIBE counts on it.
#[test]
fn p2_a_retained_message_may_come_for_a_subscription_that_reads_by_the_one_before() {
    let script = |retain_handling| {
        let mut script = Script::default();
        script.connect("pub", 0);
        script.connect("sub", 0);
        script.subscribe("sub", TOPIC, 1);
        script.subscribe_handling("sub", TOPIC, 1, retain_handling);
        script.retain("pub", 1, false);
        script.deliver_as("sub", 1, 1, 7, false, true);
        script
    };
    script(1).keeps_all();
    script(2).breaks(Promise::P2);
}

#[test]
fn p6_a_delete_never_comes_back() {
    let mut script = Script::default();
    script.connect("pub", 0);
    script.retain("pub", 1, false);
    script.retain("pub", 2, true);
    script.connect("sub", 0);
    script.subscribe("sub", TOPIC, 1);
    let quiet = Script { history: script.history.clone(), now: script.now, ..Script::default() };
    quiet.keeps_all();
    script.deliver_as("sub", 1, 1, 7, false, true);
    script.breaks(Promise::P6);
}

#[test]
fn p6_reads_are_monotonic_although_the_write_is_not_acknowledged() {
    let mut script = Script::default();
    script.connect("pub", 0);
    script.retain("pub", 1, false);
    script.packet_id += 1;
    let publish = Publish {
        packet_id: script.packet_id,
        dup: false,
        qos: 1,
        retain: true,
        topic: TOPIC,
        expiry: None,
        message: MessageId(2),
        empty: false,
    };
    script.line("pub", Action::PublishSent(publish));
    script.connect("new", 0);
    script.subscribe("new", TOPIC, 1);
    script.deliver_as("new", 2, 1, 7, false, true);
    script.connect("old", 0);
    script.subscribe("old", TOPIC, 1);
    script.keeps_all();
    script.deliver_as("old", 1, 1, 7, false, true);
    script.breaks(Promise::P6);
}
