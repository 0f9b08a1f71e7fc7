//! Processes that were started from copies of a node's data directory.

use super::*;

fn started(number: u64, start_number: u64) -> Node {
    start(TransportConfig { start: start_number, ..config(number) })
}

/// What a node is told of its data directory, and by whom.
fn told(node: &Node) -> (NodeId, Copied) {
    node.find("that it has a copy", |event| match event {
        // The other way it begins, and ends before anything is said: the dialler must hear first who answers.
        Event::LinkUp { direction: Direction::Outgoing, .. } => panic!("it has a link"),
        Event::Batch(_) => panic!("something is said to it"),
        Event::Copied { by, how } => Some((by, how)),
        _ => None,
    })
}

#[test]
fn an_older_copy_is_refused_and_told_so() {
    let (one, two) = join(started(1, 1), started(2, 5));
    drop(two);
    for copied in [4, 5] {
        let copy = started(2, copied);
        copy.know(&[&one]);
        one.know(&[&copy]);
        assert_eq!(told(&copy), (one.node, Copied::Older));
        let began = one.events.try_iter().any(|event| matches!(event, Event::LinkUp { .. }));
        assert!(!began, "nor a link the other way");
    }
    let again = started(2, 6);
    one.know(&[&again]);
    again.know(&[&one]);
    again.wait_all_up();
}

/// Whoever says nothing of it may be of a version before, also if the node's next one was known.
#[test]
fn who_does_not_say_how_often_it_was_started_is_no_copy() {
    let (one, two) = join(started(1, 1), started(2, 5));
    drop(two);
    let before = started(2, 0);
    one.know(&[&before]);
    before.know(&[&one]);
    before.wait_all_up();
}

#[test]
fn a_copy_of_a_living_nodes_is_kept_out_and_told_so_in_the_end() {
    let quick = TransportConfig {
        keep_alive_interval: Duration::from_millis(200),
        keep_alive_timeout: Duration::from_millis(300),
        ..config(1)
    };
    let (one, two) = join(start(quick), started(2, 5));
    let copy = started(2, 6);
    copy.transport.set_peers([one.address()]);
    eventually("it asks", || copy.last_error().contains("that have not ended"));
    assert_eq!(told(&copy), (one.node, Copied::Living));
    for node in [&one, &two] {
        assert!(node.events.is_empty(), "the links with the one that lives stay");
    }
    drop((copy, two));

    let again = started(2, 7);
    one.know(&[&again]);
    again.know(&[&one]);
    again.wait_all_up();
}
