//! What a slow or broken peer can and cannot do.

use std::io::Write;

use bytes::BytesMut;
use futures_util::stream;
use kentongan_proto::peer::pack;
use tonic::Code;

use super::*;

const MIB: usize = 1024 * 1024;

/// What HTTP/2 and the sockets hold beside our own queues: a window, the sender's buffer, both sockets' buffers.
const NETWORK_BYTES: usize = 24 * MIB;

#[test]
fn a_slow_receiver_bounds_what_is_sent_and_what_waits_on_both_sides() {
    let receive_bytes_max = 2 * MIB;
    let forward_queue_bytes_max = 3 * MIB;
    let sender = TransportConfig { forward_queue_bytes_max, ..config(1) };
    let receiver = TransportConfig { receive_bytes_max, ..config(2) };
    let (one, two) = join(start(sender), start(receiver));

    // Nobody takes events at `two`: each holds its credit.
    let body = Bytes::from(vec![7; 64 * 1024]);
    let (mut sent, mut refused_since) = (0, None);
    while refused_since.is_none_or(|since: Instant| since.elapsed() < A_WHILE) {
        match one.send(&two, Class::Forward, body.clone()) {
            Ok(()) => (sent, refused_since) = (sent + body.len(), None),
            Err(SendError::Full) => {
                refused_since.get_or_insert_with(Instant::now);
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent <= forward_queue_bytes_max + receive_bytes_max + NETWORK_BYTES, "{sent} bytes were taken");
    let received = value(&two.transport.stats().class(Class::Forward).bytes_received) as usize;
    assert!(received < receive_bytes_max + MIB, "{received} bytes wait at the receiver");
    assert!(value(&one.transport.stats().class(Class::Forward).refused_full) > 0);

    // Other classes are not held up.
    one.send(&two, Class::Control, numbered(1)).unwrap();
    eventually("control messages pass", || value(&two.transport.stats().class(Class::Control).messages_received) == 1);

    // Once the receiver takes them, everything that was taken arrives.
    let mut arrived = 0;
    two.find("all messages", |event| {
        if let Event::Batch(Incoming { class: Class::Forward, messages, .. }) = &event {
            arrived += messages.iter().map(|message| message.body.len()).sum::<usize>();
        }
        (arrived == sent).then_some(())
    });
    one.send(&two, Class::Forward, body).unwrap();
}

/// Lease renewals leave every 0.3 s: one that takes longer than that is worth nothing. The receiver deals with forward
/// messages at some 60 MB/s, so whoever came behind them would wait for the queue, the window and its credit.
#[test]
fn heartbeats_do_not_wait_behind_bulk_data() {
    const BOUND: Duration = Duration::from_millis(300);
    // The machine may do something else at times; what waits behind bulk data does so each time.
    let mut p99 = Vec::new();
    while p99.last().is_none_or(|&last| last >= BOUND) {
        assert!(p99.len() < 3, "p99 is {p99:?}");
        p99.push(heartbeats_p99_beside_bulk_data());
    }
}

fn heartbeats_p99_beside_bulk_data() -> Duration {
    const HEARTBEATS: usize = 200;
    let (one, two) = pair();
    let clock = Instant::now();
    let mut delays = Vec::new();
    thread::scope(|scope| {
        let (done, stop) = unbounded::<()>();
        let (bulk, bulk_waits) = unbounded::<Incoming>();
        scope.spawn(|| {
            let body = Bytes::from(vec![7; 16 * 1024]);
            let stop = stop;
            while stop.is_empty() {
                if one.send(&two, Class::Forward, body.clone()) == Err(SendError::Full) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        scope.spawn(|| {
            eventually("the queue is full", || value(&one.transport.stats().class(Class::Forward).refused_full) > 0);
            for _ in 0..HEARTBEATS {
                one.send(&two, Class::Control, numbered(clock.elapsed().as_nanos() as u64)).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(move || bulk_waits.iter().for_each(|_| thread::sleep(Duration::from_millis(4))));
        two.find("all heartbeats", |event| {
            match event {
                Event::Batch(incoming) if incoming.class == Class::Control => {
                    let now = clock.elapsed();
                    let sent = incoming.messages.iter().map(|message| number_of(&message.body));
                    delays.extend(sent.map(|sent| now.saturating_sub(Duration::from_nanos(sent))));
                }
                Event::Batch(incoming) => bulk.send(incoming).unwrap(),
                _ => {}
            }
            (delays.len() == HEARTBEATS).then_some(())
        });
        done.send(()).unwrap();
    });
    delays.sort();
    delays[HEARTBEATS * 99 / 100]
}

#[test]
fn a_frame_over_the_receivers_limit_ends_the_link_and_is_counted() {
    let small = TransportConfig { frame_bytes_max: 64 * 1024, ..config(2) };
    let (one, two) = join(node(1), start(small));
    one.send(&two, Class::Forward, vec![0; MIB]).unwrap();
    one.down(&two, Class::Forward, Direction::Outgoing);
    two.down(&one, Class::Forward, Direction::Incoming);
    assert_eq!(value(&two.transport.stats().oversize_frames), 1);
    one.wait_all_up();
}

#[test]
fn a_message_that_fits_no_frame_is_refused_to_its_sender() {
    let (one, two) = pair();
    assert_eq!(one.send(&two, Class::Forward, vec![0; 16 * MIB]), Err(SendError::TooLarge));
    let longest = Bytes::from(vec![7; 16 * MIB - 64]);
    one.send(&two, Class::Append, longest.clone()).unwrap();
    let arrived = two.find("the longest message", |event| match event {
        Event::Batch(incoming) => incoming.messages.iter().next(),
        _ => None,
    });
    assert!(arrived.body == longest);
}

/// Opens a link to a node by hand, as node 1, and sends frames; returns how the node ended it.
fn speak_badly(to: &Node, opening: wire::Opening, frames: Vec<wire::Frame>) -> tonic::Status {
    by_hand(async {
        let timing = config(1).timing();
        let connection = dial(&to.address().address, None, timing).await.unwrap();
        let mut client = PeerClient::with_origin(connection.channel.clone(), Channel::origin());
        let first = wire::Frame { opening: Some(opening), batch: Bytes::new() };
        let mut answers = client.link(stream::iter([first].into_iter().chain(frames))).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    })
}

fn by_hand(talk: impl Future<Output = Result<(), tonic::Status>>) -> tonic::Status {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, talk).await.unwrap() }).unwrap_err()
}

fn opening() -> wire::Opening {
    let hello = Some(config(1).identity.hello(1));
    wire::Opening { hello, class: wire::TrafficClass::Forward.into(), epoch: 1 << 32 | 1, to: 2 }
}

/// A node that knows node 1, which does not run.
fn listener() -> Node {
    let node = node(2);
    let one = PeerAddress { node: NodeId(1), name: "n1".into(), address: "127.0.0.1:1".into() };
    node.transport.set_peers([one]);
    node
}

#[test]
fn a_batch_that_is_none_ends_the_link_and_is_counted() {
    let two = listener();
    let mut packed = BytesMut::new();
    pack(LANE, &[numbered(7)], &mut packed);
    let good = wire::Frame { opening: None, batch: packed.freeze() };
    let bad = wire::Frame { opening: None, batch: Bytes::from_static(&[1, 0, 255, 255, 255, 255]) };
    let status = speak_badly(&two, opening(), vec![good, bad]);
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(value(&two.transport.stats().malformed_frames), 1);
    let kinds: Vec<_> = two.events.try_iter().map(|event| std::mem::discriminant(&event)).collect();
    assert_eq!(kinds.len(), 3, "up, the good batch, down");
}

#[test]
fn a_second_opening_ends_the_link() {
    let two = listener();
    let again = wire::Frame { opening: Some(opening()), batch: Bytes::new() };
    assert_eq!(speak_badly(&two, opening(), vec![again]).code(), Code::InvalidArgument);
    assert_eq!(value(&two.transport.stats().malformed_frames), 1);
}

#[test]
fn openings_that_make_no_sense_are_refused_and_counted() {
    let two = listener();
    let hello = config(1).identity.hello(1);
    let with = |hello| wire::Opening { hello: Some(hello), ..opening() };
    let cases = [
        (wire::Opening { hello: None, ..opening() }, Code::InvalidArgument),
        (wire::Opening { class: 0, ..opening() }, Code::InvalidArgument),
        (wire::Opening { class: 99, ..opening() }, Code::InvalidArgument),
        (wire::Opening { to: 7, ..opening() }, Code::PermissionDenied),
        (with(wire::Hello { node_id: 0, ..hello.clone() }), Code::InvalidArgument),
        (with(wire::Hello { protocol_min: 99, protocol_max: 100, ..hello.clone() }), Code::Unimplemented),
        (with(wire::Hello { name: "n9".into(), ..hello.clone() }), Code::PermissionDenied),
        (with(wire::Hello { node_id: 9, ..hello.clone() }), Code::NotFound),
        (with(wire::Hello { cluster_id: vec![9; 16].into(), ..hello }), Code::FailedPrecondition),
    ];
    let count = cases.len() as u64;
    for (opening, code) in cases {
        let status = speak_badly(&two, opening, vec![]);
        assert_eq!(status.code(), code, "{status}");
    }
    assert_eq!(value(&two.transport.stats().refused_peers), count);
    assert!(two.events.is_empty(), "no link began");
}

#[test]
fn bytes_that_are_no_frame_end_the_link_and_are_counted() {
    let two = listener();
    let status = by_hand(async {
        let connection = dial(&two.address().address, None, config(1).timing()).await.unwrap();
        let mut grpc = tonic::client::Grpc::with_origin(connection.channel.clone(), Channel::origin());
        grpc.ready().await.unwrap();
        // A hello's first field is bytes of any kind, where a frame has an opening.
        let wrong = wire::Hello { cluster_id: Bytes::from_static(&[255; 9]), ..Default::default() };
        let codec = tonic_prost::ProstCodec::<wire::Hello, wire::Frame>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static("/kentongan.peer.v1.Peer/Link");
        grpc.streaming(tonic::Request::new(stream::iter([wrong])), path, codec).await.map(drop)
    });
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert_eq!(value(&two.transport.stats().malformed_frames), 1);
}

#[test]
fn what_is_not_http2_is_closed_and_counted() {
    let two = listener();
    let mut socket = std::net::TcpStream::connect(two.transport.local_address()).unwrap();
    socket.write_all(&[0x10; 4096]).unwrap();
    eventually("it is counted", || value(&two.transport.stats().broken_connections) == 1);
}
