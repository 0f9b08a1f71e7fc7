use super::*;

fn batch(previous: u64, last: u64) -> Batch {
    Batch { previous, last, items: (last - previous) as u32, round: 0, payload: Bytes::new() }
}

mod outgoing {
    use super::*;
    use bytes::BufMut as _;

    fn lane(items: &[&str]) -> Outgoing {
        let mut lane = Outgoing::new(100, 100);
        push(&mut lane, items);
        lane
    }

    fn push(lane: &mut Outgoing, items: &[&str]) {
        for item in items {
            lane.push(|buffer| buffer.put_slice(item.as_bytes()));
        }
    }

    fn sent(previous: u64, last: u64, round: u32, payload: &'static str) -> Batch {
        let items = (last - previous) as u32;
        Batch { previous, last, items, round, payload: Bytes::from_static(payload.as_bytes()) }
    }

    fn send(lane: &mut Outgoing) -> Vec<Batch> {
        std::iter::from_fn(|| lane.next_batch()).collect()
    }

    #[test]
    fn what_gathers_becomes_one_batch() {
        let mut lane = lane(&["a", "b"]);
        assert_eq!(send(&mut lane), [sent(0, 2, 0, "ab")]);
        assert_eq!(send(&mut lane), []);
        push(&mut lane, &["c"]);
        assert_eq!(send(&mut lane), [sent(2, 3, 0, "c")]);
    }

    #[test]
    fn answers_settle_in_order_and_once() {
        let mut lane = lane(&["a", "b"]);
        send(&mut lane);
        push(&mut lane, &["c"]);
        send(&mut lane);
        assert_eq!(lane.on_answer(2), Some(1..=2));
        assert_eq!(lane.on_answer(2), None);
        assert_eq!(lane.on_answer(3), Some(3..=3));
        assert!(lane.is_settled());
        assert_eq!(lane.bytes(), 0);
        push(&mut lane, &["d"]);
        assert_eq!(send(&mut lane), [sent(3, 4, 0, "d")]);
    }

    #[test]
    fn what_was_never_sent_cannot_be_answered() {
        let mut lane = lane(&["a"]);
        assert_eq!(lane.on_answer(9), None);
        send(&mut lane);
        push(&mut lane, &["b"]);
        assert_eq!(lane.on_answer(9), Some(1..=1));
        assert_eq!(send(&mut lane), [sent(1, 2, 0, "b")]);
    }

    #[test]
    fn after_a_reset_what_is_not_answered_is_sent_again_as_it_was_cut() {
        let mut lane = lane(&["a", "b"]);
        send(&mut lane);
        push(&mut lane, &["c"]);
        send(&mut lane);
        push(&mut lane, &["d", "e"]);
        lane.on_reset();
        assert_eq!(lane.next_batch(), Some(sent(0, 2, 1, "ab")));
        assert_eq!(lane.on_answer(3), Some(1..=3), "answered before the link broke");
        assert_eq!(send(&mut lane), [sent(3, 5, 1, "de")]);
    }

    #[test]
    fn a_batch_that_is_answered_in_part_is_kept_whole() {
        let mut lane = lane(&["a", "b"]);
        send(&mut lane);
        assert!(!lane.is_answered_in_part());
        assert_eq!(lane.on_answer(1), Some(1..=1));
        assert!(lane.is_answered_in_part());
        lane.on_reset();
        assert_eq!(send(&mut lane), [sent(0, 2, 1, "ab")]);
        assert_eq!(lane.on_answer(2), Some(2..=2));
        assert!(!lane.is_answered_in_part());
    }

    #[test]
    fn many_refusals_of_one_round_send_again_once() {
        let mut lane = lane(&["a"]);
        send(&mut lane);
        push(&mut lane, &["b"]);
        send(&mut lane);
        assert_eq!(lane.on_gap(0, 0), Ok(()));
        assert_eq!(send(&mut lane), [sent(0, 1, 1, "a"), sent(1, 2, 1, "b")]);
        assert_eq!(lane.on_gap(0, 0), Ok(()));
        assert_eq!(send(&mut lane), []);
        assert_eq!(lane.on_gap(1, 0), Ok(()));
        assert_eq!(send(&mut lane).len(), 2);
    }

    #[test]
    fn a_target_that_forgot_what_it_answered_is_not_the_target_it_was() {
        let mut lane = lane(&["a"]);
        send(&mut lane);
        lane.on_answer(1);
        assert_eq!(lane.on_gap(0, 0), Err(LaneForgotten { last: 0, answered: 1 }));
    }

    #[test]
    fn publishers_pause_at_the_bound_and_go_on_at_half_of_it() {
        let mut lane = Outgoing::new(4, 100);
        push(&mut lane, &["aa"]);
        send(&mut lane);
        assert!(!lane.is_paused());
        push(&mut lane, &["b"]);
        send(&mut lane);
        push(&mut lane, &["c"]);
        assert!(lane.is_paused());
        send(&mut lane);
        push(&mut lane, &["d"]);
        send(&mut lane);
        lane.on_answer(1);
        assert!(lane.is_paused(), "{} bytes", lane.bytes());
        lane.on_answer(3);
        assert!(!lane.is_paused(), "{} bytes", lane.bytes());
    }

    /// A target that is slow would be slower by each copy of what it has before it.
    #[test]
    fn to_a_silent_target_little_is_sent_again_until_it_answers() {
        let mut lane = Outgoing::new(100, 100);
        for item in ["a", "b", "c", "d", "e"] {
            push(&mut lane, &[item]);
            assert_eq!(send(&mut lane).len(), 1);
        }
        for round in 1..=3 {
            lane.on_silence();
            push(&mut lane, &["f"]);
            assert_eq!(send(&mut lane), [sent(0, 1, round, "a")]);
            assert!(lane.is_trying());
        }
        assert_eq!(lane.on_answer(1), Some(1..=1));
        assert_eq!(send(&mut lane), [sent(1, 2, 3, "b"), sent(2, 3, 3, "c")]);
        assert_eq!(lane.on_answer(2), Some(2..=2));
        assert_eq!(send(&mut lane), [sent(3, 4, 3, "d"), sent(4, 5, 3, "e"), sent(5, 8, 3, "fff")]);
        assert!(!lane.is_trying(), "all of it is under way");
        push(&mut lane, &["g"]);
        assert_eq!(send(&mut lane), [sent(8, 9, 3, "g")]);
    }

    #[test]
    fn a_silent_target_that_answers_everything_gets_what_is_new() {
        let mut lane = lane(&["a"]);
        send(&mut lane);
        lane.on_silence();
        push(&mut lane, &["b"]);
        assert_eq!(send(&mut lane), [sent(0, 1, 1, "a")]);
        assert_eq!(lane.on_answer(1), Some(1..=1));
        assert_eq!(send(&mut lane), [sent(1, 2, 1, "b")]);
        lane.on_silence();
        push(&mut lane, &["c"]);
        assert_eq!(send(&mut lane), [sent(1, 2, 2, "b")]);
        assert_eq!(lane.on_answer(2), Some(2..=2));
        assert_eq!(send(&mut lane), [sent(2, 3, 2, "c")]);
        lane.on_silence();
        lane.on_reset();
        push(&mut lane, &["d"]);
        assert_eq!(send(&mut lane).len(), 2, "its link is another one: everything is sent again");
    }

    /// One that no frame can hold would be sent again for ever. So it is while nothing is sent, too.
    #[test]
    fn a_batch_is_cut_when_there_is_enough() {
        let mut lane = Outgoing::new(100, 4);
        push(&mut lane, &["aa", "b", "cc", "d"]);
        assert_eq!(send(&mut lane), [sent(0, 3, 0, "aabcc"), sent(3, 4, 0, "d")]);
        lane.on_silence();
        push(&mut lane, &["eee", "ff", "g"]);
        assert_eq!(send(&mut lane), [sent(0, 3, 1, "aabcc")]);
        lane.on_reset();
        let all = [sent(0, 3, 2, "aabcc"), sent(3, 4, 2, "d"), sent(4, 6, 2, "eeeff"), sent(6, 7, 2, "g")];
        assert_eq!(send(&mut lane), all);
        push(&mut lane, &["longer than that"]);
        assert!(!lane.is_sent());
        assert_eq!(send(&mut lane), [sent(7, 8, 2, "longer than that")]);
        assert!(lane.is_sent());
    }

    #[test]
    fn a_lost_target_settles_everything() {
        let mut lane = lane(&["a"]);
        send(&mut lane);
        push(&mut lane, &["b"]);
        send(&mut lane);
        push(&mut lane, &["c"]);
        lane.on_answer(1);
        assert_eq!(lane.on_lost(), Some(2..=3));
        assert_eq!(Outgoing::new(4, 100).on_lost(), None);
    }

    #[test]
    fn an_outbox_gives_its_own_numbers() {
        let mut lane = Outgoing::new(100, 100);
        lane.push_at(5, |buffer| buffer.put_u8(b'a'));
        lane.push_at(9, |buffer| buffer.put_u8(b'b'));
        let both = Batch { previous: 0, last: 9, items: 2, round: 0, payload: Bytes::from_static(b"ab") };
        assert_eq!(send(&mut lane), [both]);
        assert_eq!(lane.on_answer(5), Some(1..=5));
        lane.push_at(12, |buffer| buffer.put_u8(b'c'));
        let third = Batch { previous: 9, last: 12, items: 1, round: 0, payload: Bytes::from_static(b"c") };
        assert_eq!(send(&mut lane), [third]);
    }
}

mod incoming {
    use std::collections::BTreeMap;

    use super::*;
    use crate::identity::{Incarnation, NodeId};

    fn node(id: u64) -> NodeId {
        NodeId::new(id).expect("not zero")
    }

    /// Of node 1, over lane 0.
    fn take(incoming: &mut Incoming, incarnation: u64, batch: Batch) -> Verdict {
        incoming.on_batch(node(1), Incarnation(incarnation), LaneId(0), &batch)
    }

    fn incoming() -> Incoming {
        Incoming::new(&BTreeMap::new())
    }

    #[test]
    fn what_follows_is_applied_and_what_comes_again_is_not() {
        let mut incoming = incoming();
        assert_eq!(take(&mut incoming, 5, batch(0, 2)), Verdict::Apply { above: 0 });
        assert_eq!(take(&mut incoming, 5, batch(2, 3)), Verdict::Apply { above: 2 });
        assert_eq!(take(&mut incoming, 5, batch(0, 2)), Verdict::Duplicate { last: 3 });
        assert_eq!(take(&mut incoming, 5, batch(2, 5)), Verdict::Apply { above: 3 }, "in part");
    }

    #[test]
    fn what_overtook_a_lost_batch_is_refused() {
        let mut incoming = incoming();
        assert_eq!(take(&mut incoming, 5, batch(2, 3)), Verdict::Gap { last: 0 });
        assert_eq!(take(&mut incoming, 5, batch(0, 2)), Verdict::Apply { above: 0 });
        assert_eq!(take(&mut incoming, 5, batch(2, 3)), Verdict::Apply { above: 2 });
    }

    #[test]
    fn lanes_do_not_know_each_other() {
        let mut incoming = incoming();
        take(&mut incoming, 5, batch(0, 2));
        let verdict = incoming.on_batch(node(1), Incarnation(5), LaneId(1), &batch(0, 1));
        assert_eq!(verdict, Verdict::Apply { above: 0 });
        let verdict = incoming.on_batch(node(2), Incarnation(6), LaneId(0), &batch(0, 1));
        assert_eq!(verdict, Verdict::Apply { above: 0 });
    }

    #[test]
    fn a_new_incarnation_begins_anew_and_ends_the_old_one() {
        let mut incoming = incoming();
        take(&mut incoming, 5, batch(0, 2));
        assert_eq!(take(&mut incoming, 8, batch(0, 1)), Verdict::Apply { above: 0 });
        assert_eq!(take(&mut incoming, 5, batch(2, 3)), Verdict::Fenced);
    }

    #[test]
    fn a_fence_outlives_the_lanes() {
        let mut incoming = incoming();
        take(&mut incoming, 5, batch(0, 2));
        incoming.on_dead(node(1), Incarnation(6));
        assert_eq!(take(&mut incoming, 5, batch(2, 3)), Verdict::Fenced);
        assert_eq!(take(&mut incoming, 5, batch(0, 1)), Verdict::Fenced, "nor does it open a new one");
        assert_eq!(take(&mut incoming, 8, batch(0, 1)), Verdict::Apply { above: 0 });
        incoming.on_dead(node(1), Incarnation(6));
        assert_eq!(take(&mut incoming, 8, batch(1, 2)), Verdict::Apply { above: 1 }, "heard again");
    }

    #[test]
    fn who_was_dead_when_this_node_joined_is_refused() {
        let mut incoming = Incoming::new(&BTreeMap::from([(node(1), Incarnation(6))]));
        assert_eq!(take(&mut incoming, 5, batch(0, 1)), Verdict::Fenced);
    }

    #[test]
    fn batches_that_nobody_sends_are_refused() {
        let mut incoming = incoming();
        let empty = Batch { previous: 3, last: 3, ..batch(0, 1) };
        assert_eq!(take(&mut incoming, 5, empty), Verdict::Malformed);
        for lane in 0..=LANES {
            let verdict = incoming.on_batch(node(1), Incarnation(5), LaneId(lane), &batch(0, 1));
            let expected = if lane < LANES { Verdict::Apply { above: 0 } } else { Verdict::Malformed };
            assert_eq!(verdict, expected, "lane {lane}");
        }
    }

    /// As many as there can be groups.
    const LANES: u32 = 4096;
}
