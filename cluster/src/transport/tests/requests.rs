//! Questions beside the links.

use super::*;

#[test]
fn an_address_says_who_it_is_before_there_is_a_cluster() {
    let alone = |number| {
        let mut config = config(number);
        config.identity.cluster = None;
        start(config)
    };
    let (one, two) = (alone(1), alone(2));
    let ask = |whom: &Node| one.transport.who(whom.address().address).recv_timeout(DEADLINE).unwrap().unwrap();
    let hello = ask(&two);
    assert_eq!((hello.node, hello.name.as_str(), hello.cluster), (NodeId(2), "n2", None));
    assert_eq!(ask(&one).node, one.node, "a node that asks itself can tell");
}

#[test]
fn a_hello_says_what_the_node_has_become() {
    let (one, two) = (node(1), node(2));
    two.transport.set_identity(Some(ClusterId(9)), Some(Incarnation(5)));
    let hello = one.transport.who(two.address().address).recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!((hello.cluster, hello.incarnation), (Some(ClusterId(9)), Some(Incarnation(5))));
}

#[test]
fn a_question_is_answered_or_refused_in_words() {
    let (one, two) = pair();
    let ask = |question| {
        let answer = one.transport.ask(Target::Peer(two.node), question, numbered(7));
        answer.recv_timeout(DEADLINE).unwrap()
    };
    for question in [Question::Promise, Question::Join, Question::Remove, Question::Status] {
        let (who, answer) = ask(question).unwrap();
        assert_eq!((who.node, answer), (two.node, numbered(7)));
    }
    let refused = ask(Question::Form).unwrap_err().to_string();
    assert!(refused.contains("no promise was given"), "{refused}");
}

#[test]
fn nobody_listening_is_an_error_that_names_the_address() {
    let one = node(1);
    let free = bind(loopback()).unwrap().1.to_string();
    let error = one.transport.who(free.clone()).recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(matches!(error, LinkError::Connect { .. }) && error.to_string().contains(&free), "{error}");
}

/// As of a process that got SIGSTOP: its kernel goes on taking connections.
#[test]
fn who_takes_connections_and_says_nothing_is_said_to_be_stuck() {
    let short = Duration::from_millis(100);
    let one = start(TransportConfig { keep_alive_interval: short, keep_alive_timeout: short, ..config(1) });
    let stuck = std::net::TcpListener::bind(loopback()).unwrap();
    let address = stuck.local_addr().unwrap().to_string();
    let answer = one.transport.ask(Target::Address(address), Question::Status, Bytes::new());
    let error = answer.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(matches!(error, LinkError::Silent) && error.to_string().contains("stopped or stuck"), "{error}");
}

/// As of one that ends while it is asked.
#[test]
fn a_connection_that_breaks_under_a_question_is_said_with_its_cause() {
    let one = node(1);
    let listener = std::net::TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = one.transport.ask(Target::Address(address), Question::Status, Bytes::new());
    drop(listener.accept().unwrap());
    let error = answer.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(error.is_no_node(), "{error}");
    let error = error.to_string();
    assert!(error.contains("the connection broke") && !error.ends_with("http2 error"), "{error}");
}

#[test]
fn a_checkpoint_arrives_whole_and_in_order() {
    let (one, two) = pair();
    let chunks: Vec<u8> =
        one.transport.fetch_snapshot(two.node, GroupId(3), 77).map(|chunk| chunk.unwrap()[0]).collect();
    assert!(chunks.into_iter().eq(0..50));
}

#[test]
fn a_checkpoint_that_breaks_off_ends_with_an_error() {
    let (one, two) = pair();
    let chunks: Vec<_> = one.transport.fetch_snapshot(two.node, GroupId(3), 78).collect();
    let (last, whole) = chunks.split_last().unwrap();
    assert!(whole.iter().all(Result::is_ok));
    assert!(last.as_ref().unwrap_err().to_string().contains("bad sector"));

    let none: Vec<_> = one.transport.fetch_snapshot(two.node, GroupId(4), 1).collect();
    assert!(matches!(&none[..], [Err(error)] if error.to_string().contains("no such checkpoint")), "{none:?}");

    let mut cut = one.transport.fetch_snapshot(two.node, GroupId(3), 77);
    assert!(cut.next().unwrap().is_ok());
    one.transport.stop(Duration::ZERO);
    assert!(cut.any(|chunk| chunk.is_err()), "a transport that stops does not make a checkpoint whole");
}

#[test]
fn only_so_many_checkpoints_are_sent_at_once() {
    let (one, two) = join(node(1), start(TransportConfig { snapshots_max: 1, ..config(2) }));
    let mut first = one.transport.fetch_snapshot(two.node, GroupId(3), 77);
    first.next().unwrap().unwrap();
    let second: Vec<_> = one.transport.fetch_snapshot(two.node, GroupId(3), 77).collect();
    assert!(matches!(&second[..], [Err(error)] if error.to_string().contains("busy")), "{second:?}");
    assert_eq!(first.filter(Result::is_ok).count(), 49);
}

#[test]
fn a_stranger_gets_no_checkpoint() {
    let (one, two) = (node(1), node(2));
    one.know(&[&two]);
    let chunks: Vec<_> = one.transport.fetch_snapshot(two.node, GroupId(3), 77).collect();
    assert!(matches!(&chunks[..], [Err(error)] if error.to_string().contains("no member")), "{chunks:?}");
}
