//! Shared subscriptions (P11).

use kentongan_history::{Action, ClosedBy, Promise, What};

use super::script::{EVER, Script};

/// Two members of a shared group, and a publisher.
fn group() -> Script {
    let mut script = Script::default();
    script.connect("one", 0);
    script.connect("two", 0);
    script.connect("pub", 0);
    script.subscribe("one", "$share/group/plant/#", 1);
    script.subscribe("two", "$share/group/plant/#", 1);
    script.publish("pub", 1, 1);
    script
}

#[test]
fn p11_a_shared_group_hands_a_message_to_one_live_member() {
    let mut one = group();
    one.deliver("one", 1, 1);
    one.puback("one", 1);
    one.mark(What::Quiesced);
    one.keeps_all();

    let mut both = group();
    both.deliver("one", 1, 1);
    both.puback("one", 1);
    both.deliver("two", 1, 1);
    both.breaks(Promise::P11);

    let mut none = group();
    none.mark(What::Quiesced);
    none.breaks(Promise::P11);
}

#[test]
fn p11_another_member_gets_what_a_dead_one_had_not_acknowledged() {
    let mut handed_over = group();
    handed_over.deliver("one", 1, 1);
    handed_over.close("one");
    handed_over.wait(2);
    handed_over.deliver("two", 1, 1);
    handed_over.puback("two", 1);
    handed_over.wait(60);
    handed_over.mark(What::Quiesced);
    handed_over.keeps_all();

    let mut forgotten = group();
    forgotten.deliver("one", 1, 1);
    forgotten.close("one");
    forgotten.wait(60);
    forgotten.mark(What::Quiesced);
    forgotten.breaks(Promise::P11);

    let mut acknowledged = group();
    acknowledged.deliver("one", 1, 1);
    acknowledged.puback("one", 1);
    acknowledged.wait(10);
    acknowledged.close("one");
    acknowledged.deliver("two", 1, 1);
    acknowledged.breaks(Promise::P11);
}

/// Two nodes have a message for a transient member, and nobody has it once both are lost.
#[test]
fn p11_what_origin_and_member_had_may_be_lost_with_both_their_nodes() {
    struct Lost {
        of_member: bool,
        of_publisher: bool,
        member_expiry: u32,
        qos: u8,
    }
    let lost = |lost: &Lost| {
        let mut script = Script::default();
        script.nodes.extend([("one", 2), ("two", 3)]);
        script.connect("one", lost.member_expiry);
        script.connect("two", 0);
        script.connect("pub", EVER);
        script.subscribe("one", "$share/group/plant/#", 1);
        script.subscribe("two", "$share/group/plant/#", 1);
        script.publish("pub", 1, lost.qos);
        script.deliver("one", 1, 1);
        for (node, client, is_lost) in [(1, "pub", lost.of_publisher), (2, "one", lost.of_member)] {
            if is_lost {
                script.mark(What::NodeCrashed { node });
            }
            script.line(client, Action::ConnectionClosed { by: ClosedBy::Server });
            script.wait(10);
            if is_lost {
                script.mark(What::NodeRecovered { node });
            }
        }
        script.wait(60);
        script.mark(What::Quiesced);
        script
    };
    let both = Lost { of_member: true, of_publisher: true, member_expiry: 0, qos: 1 };
    lost(&both).keeps_all();
    lost(&Lost { of_member: false, ..both }).breaks(Promise::P11);
    lost(&Lost { of_publisher: false, ..both }).breaks(Promise::P11);
    lost(&Lost { member_expiry: 30, ..both }).breaks(Promise::P11);
    lost(&Lost { qos: 2, ..both }).breaks(Promise::P11);
}

/// Seed 20 of the simulation: a member closes its connection to a paused node, which crashes before it goes on.
#[test]
fn p11_a_node_that_is_paused_misses_nobody_who_goes() {
    let goes = |is_paused: bool| {
        let mut script = Script::default();
        script.nodes.extend([("one", 2), ("pub", 2), ("two", 3)]);
        script.connect("one", 0);
        script.connect("two", 0);
        script.connect("pub", EVER);
        script.subscribe("one", "$share/group/plant/#", 1);
        script.subscribe("two", "$share/group/plant/#", 1);
        script.publish("pub", 1, 1);
        script.deliver("one", 1, 1);
        if is_paused {
            script.mark(What::FaultBegan { fault: 1, kind: "pause" });
        }
        script.wait(1);
        script.line("one", Action::ConnectionClosed { by: ClosedBy::Client });
        script.wait(1);
        script.mark(What::NodeCrashed { node: 2 });
        script.line("pub", Action::ConnectionClosed { by: ClosedBy::Server });
        script.wait(10);
        script.mark(What::NodeRecovered { node: 2 });
        if is_paused {
            script.mark(What::FaultHealed { fault: 1 });
        }
        script.wait(60);
        script.mark(What::Quiesced);
        script
    };
    goes(true).keeps_all();
    goes(false).breaks(Promise::P11);
}

/// What a client had not read when it said DISCONNECT it may still read, after another member was given the same.
#[test]
fn p11_a_member_that_leaves_reads_what_was_on_its_way() {
    let says_disconnect = |script: &mut Script| {
        script.line("one", Action::DisconnectSent { reason: 0, session_expiry: None });
        script.wait(1);
    };
    let mut left = group();
    says_disconnect(&mut left);
    left.deliver("two", 1, 1);
    left.puback("two", 1);
    left.deliver("one", 1, 1);
    left.line("one", Action::ConnectionClosed { by: ClosedBy::Server });
    left.keeps_all();

    let mut stayed = group();
    stayed.deliver("two", 1, 1);
    stayed.puback("two", 1);
    stayed.wait(2);
    says_disconnect(&mut stayed);
    stayed.deliver("one", 1, 1);
    stayed.breaks(Promise::P11);
}
