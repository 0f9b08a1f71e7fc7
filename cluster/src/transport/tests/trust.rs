//! Who is believed, and who is turned away.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

/// An authority, and a directory for the files of the nodes that it vouches for.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Writes the files of a node whose certificate is for this name.
    fn write(&self, directory: &Path, name: &str) -> TlsFiles {
        let files = TlsFiles {
            ca: directory.join("ca.pem"),
            certificate: directory.join("node.pem"),
            key: directory.join("node.key"),
        };
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        fs::write(&files.ca, self.issuer.pem()).unwrap();
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// A node with TLS, and the directory of its certificates.
fn secure(number: u64, authority: &Authority) -> (Node, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let tls = Some(authority.write(directory.path(), &format!("n{number}")));
    (start(TransportConfig { tls, ..config(number) }), directory)
}

#[test]
fn nodes_of_one_authority_speak_with_each_other() {
    let authority = Authority::new();
    let ((one, _one), (two, _two)) = (secure(1, &authority), secure(2, &authority));
    let (one, two) = join(one, two);
    one.send(&two, Class::Append, numbered(7)).unwrap();
    assert_eq!(two.numbers(&one, Class::Append, 1), [7]);
    assert_eq!(one.transport.who(two.address().address).recv_timeout(DEADLINE).unwrap().unwrap().name, "n2");
    assert_eq!(one.transport.fetch_snapshot(two.node, GroupId(3), 77).filter(Result::is_ok).count(), 50);
}

/// Abuse: [peers-tls]
#[test]
fn a_node_of_another_authority_is_refused_from_both_sides() {
    let ((one, _one), (two, _two)) = (secure(1, &Authority::new()), secure(2, &Authority::new()));
    one.know(&[&two]);
    two.know(&[&one]);
    for node in [&one, &two] {
        assert!(node.last_error().contains("TLS"), "{}", node.last_error());
        eventually("it is counted", || value(&node.transport.stats().failed_handshakes) > 0);
        assert!(node.events.is_empty(), "no link began");
    }
}

/// Abuse: [peers-tls]
#[test]
fn a_node_without_a_certificate_is_refused() {
    let (secure, _directory) = secure(1, &Authority::new());
    let plain = node(2);
    secure.know(&[&plain]);
    plain.know(&[&secure]);
    secure.last_error();
    plain.last_error();
    assert!(secure.events.is_empty() && plain.events.is_empty(), "no link began");
}

/// Abuse: [peers-tls]
#[test]
fn strangers_have_lines_in_the_log_at_a_bounded_rate() {
    let (node, _directory) = secure(1, &Authority::new());
    let address = node.transport.local_address();
    eventually("some are not named", || {
        let mut stranger = TcpStream::connect(address).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        node.transport.inner.shared.lines.take_unlogged() > 0
    });
}

/// Whoever says nothing has a place until another one comes.
///
/// Abuse: [peers-tls]
#[test]
fn strangers_keep_no_peer_out() {
    let authority = Authority::new();
    let with = |number: u64| {
        let directory = tempfile::tempdir().unwrap();
        let tls = Some(authority.write(directory.path(), &format!("n{number}")));
        let connect_timeout = 4 * DEADLINE;
        (start(TransportConfig { tls, connections_max: 8, connect_timeout, ..config(number) }), directory)
    };
    let ((one, _one), (two, _two)) = (with(1), with(2));
    let address = one.transport.local_address();
    let _strangers: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    let (one, two) = join(one, two);
    two.send(&one, Class::Append, numbered(7)).unwrap();
    assert_eq!(one.numbers(&two, Class::Append, 1), [7]);
    let strangers: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    strangers[10].set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!((&strangers[10]).read(&mut [0]).unwrap(), 0, "it made room for those behind it");
    two.send(&one, Class::Append, numbered(8)).unwrap();
    assert_eq!(one.numbers(&two, Class::Append, 1), [8], "no peer made room for them");
}

/// Far below what all may have, who has shown nothing makes room for the next: else they would take the descriptors that others need.
///
/// Abuse: [peers-tls]
#[test]
fn strangers_have_a_bound_of_their_own() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let tls = Some(authority.write(directory.path(), "n1"));
    let one = start(TransportConfig { tls, strangers_max: 4, connect_timeout: 4 * DEADLINE, ..config(1) });
    let address = one.transport.local_address();
    let strangers: Vec<_> = (0..6).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (number, mut stranger) in strangers.iter().enumerate().take(2) {
        stranger.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(stranger.read(&mut [0]).unwrap(), 0, "{number} made room");
    }
    for mut stranger in &strangers[2..] {
        stranger.set_nonblocking(true).unwrap();
        assert_eq!(stranger.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// Abuse: [peers-tls]
#[test]
fn a_node_of_another_cluster_is_refused() {
    let mut other = config(2);
    other.identity.cluster = Some(ClusterId(0xbad));
    let (one, two) = (node(1), start(other));
    one.know(&[&two]);
    two.know(&[&one]);
    for node in [&one, &two] {
        let error = node.last_error();
        assert!(error.contains(&CLUSTER.to_string()) && error.contains(&ClusterId(0xbad).to_string()), "{error}");
        assert!(node.events.is_empty(), "no link began");
    }
}

/// F14: both sides say what is wrong, whoever dialled.
#[test]
fn a_node_whose_program_does_not_know_the_feature_level_is_refused_from_both_sides() {
    let mut later = config(1);
    later.identity.feature_levels = FeatureLevels { min: 1, max: 2 };
    let (one, two) = join(start(later), node(2));
    let (three, four) = (node(3), start(config(4)));
    one.transport.set_feature_level(2);
    one.know(&[&two, &three]);
    three.know(&[&one]);
    for node in [&one, &three] {
        let last = || node.transport.peers().into_iter().find(|peer| peer.peer.node != two.node);
        eventually("it is told why", || {
            let error = last().and_then(|peer| peer.last_error).unwrap_or_default();
            error.contains("the cluster uses feature level 2, and the program of this node knows none above 1")
        });
    }
    let is_spoken_over = |event: &Event| match event {
        Event::LinkUp { direction, .. } => *direction == Direction::Outgoing,
        other => matches!(other, Event::Batch(_)),
    };
    assert!(
        !three.events.try_iter().any(|event| is_spoken_over(&event)),
        "whoever does not know better may be dialled"
    );
    let fetched: Vec<_> = three.transport.fetch_snapshot(one.node, GroupId(3), 77).collect();
    assert!(fetched.iter().all(Result::is_err), "nor is it sent what others have");

    one.know(&[&four]);
    one.transport.set_feature_level(1);
    four.know(&[&one]);
    four.wait_all_up();
}

#[test]
fn a_node_that_was_removed_is_told_so_when_it_comes_back() {
    let (one, two) = (node(1), node(2));
    one.transport.set_removed([two.node].into());
    two.know(&[&one]);
    two.find("that it was removed", |event| match event {
        Event::Removed { by } => (by == one.node).then_some(()),
        _ => None,
    });
    assert!(two.last_error().contains("was removed from the cluster"), "{}", two.last_error());
}

/// Abuse: [peers-tls]
#[test]
fn another_node_at_a_members_address_is_not_taken_for_it() {
    let (one, two) = (node(1), node(2));
    let mut address = two.address();
    address.node = NodeId(0x77);
    one.transport.set_peers([address]);
    two.know(&[&one]);
    eventually("it is told why", || {
        one.last_error().contains("wants node 0000000000000077, but here is 0000000000000002")
    });
    let begun =
        one.events.try_iter().any(|event| matches!(event, Event::LinkUp { direction: Direction::Outgoing, .. }));
    assert!(!begun);
}

/// Abuse: [peers-tls]
#[test]
fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let ((one, _one), (two, _two)) = (secure(1, &authority), secure(2, &authority));
    // Node 3 of the cluster says that it is node 2. Its own start would refuse that, so the lie is told by hand.
    let mut liar = config(2).identity.hello(9);
    let certificate_of_two = by_hand(async {
        let tls = one.transport.inner.shared.tls.as_ref();
        dial(&two.address().address, tls, config(1).timing()).await.unwrap().certificate.unwrap()
    });
    assert!(PeerHello::verify(Some(liar.clone()), Some(&certificate_of_two)).is_ok());
    liar.name = "n3".into();
    let refused = PeerHello::verify(Some(liar.clone()), Some(&certificate_of_two));
    assert_eq!(refused, Err(Refusal::WrongCertificate { name: "n3".into() }));

    // The same over the wire: node 1 knows a node 3, and the holder of node 2's certificate says that it is that one.
    let three = PeerAddress { node: NodeId(3), name: "n3".into(), address: "127.0.0.1:1".into() };
    one.transport.set_peers([three]);
    liar.node_id = 3;
    let status = by_hand(async {
        let tls = two.transport.inner.shared.tls.as_ref();
        let connection = dial(&one.address().address, tls, config(1).timing()).await.unwrap();
        let mut client = PeerClient::with_origin(connection.channel.clone(), Channel::origin());
        let opening =
            wire::Opening { hello: Some(liar), class: wire::TrafficClass::Control.into(), epoch: 1 << 32 | 1, to: 1 };
        let first = wire::Frame { opening: Some(opening), batch: Bytes::new() };
        client.link(futures_util::stream::iter([first])).await.map(drop).unwrap_err()
    });
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
    assert!(one.events.is_empty(), "no link began");
}

fn by_hand<T>(talk: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(DEADLINE, talk).await.unwrap() })
}

#[test]
fn a_node_does_not_start_with_a_certificate_for_another_name() {
    let directory = tempfile::tempdir().unwrap();
    let tls = Some(Authority::new().write(directory.path(), "n9"));
    let error = try_start(TransportConfig { tls, ..config(1) }).unwrap_err().to_string();
    assert!(error.contains("no DNS name equal to the node's name") && error.contains("node.pem"), "{error}");
}

/// Abuse: [peers-tls]
#[test]
fn without_tls_nothing_leaves_the_machine() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error =
            try_start(TransportConfig { listen: listen.parse().unwrap(), ..config(1) }).unwrap_err().to_string();
        assert!(error.contains(listen) && error.contains("need TLS"), "{error}");
    }
    let one = node(1);
    let error = one.transport.who("192.0.2.1:7000".into()).recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(matches!(error, LinkError::PlainNotLoopback(_)), "{error}");
}

/// Abuse: [peers-tls]
#[test]
fn a_peer_that_is_said_to_be_on_another_machine_keeps_no_other_peer_from_its_links() {
    let (one, two) = (node(1), node(2));
    let elsewhere = PeerAddress { node: NodeId(3), name: "n3".into(), address: "192.0.2.1:7000".into() };
    one.transport.set_peers([elsewhere, two.address()]);
    two.know(&[&one]);
    one.hear_all_up(&two);
    eventually("it is said why it has no links", || {
        let errors = one.transport.peers().into_iter().filter(|status| status.peer.node == NodeId(3));
        errors.filter_map(|status| status.last_error).any(|error| error.contains("192.0.2.1:7000"))
    });
    assert!(one.transport.peers().iter().all(|status| status.peer.node == two.node || status.outgoing.is_empty()));
}

#[test]
fn refused_peers_have_lines_in_the_log_at_a_bounded_rate() {
    let one = node(1);
    let two = node(2);
    one.know(&[&two]);
    let service = PeerService {
        shared: Arc::clone(&one.transport.inner.shared),
        responder: Arc::new(Echo),
        snapshots: Arc::new(Semaphore::new(1)),
        backups: Arc::new(Semaphore::new(1)),
        certificate: None,
    };
    let before = one.transport.stats().refused_peers.load(Ordering::Relaxed);
    for _ in 0..100 {
        service.refuse(&Refusal::UnknownPeer { node: NodeId(3) });
    }
    assert_eq!(one.transport.stats().refused_peers.load(Ordering::Relaxed) - before, 100);
    // In two seconds, if one began meanwhile.
    assert!(one.transport.inner.shared.refusals.take_unlogged() >= 60);
    assert_eq!(one.transport.inner.shared.lines.take_unlogged(), 0, "they take none from those about strangers");
}

fn try_start(config: TransportConfig) -> Result<Transport, TransportError> {
    Transport::start(config, Arc::new(unbounded().0), Arc::new(Echo))
}

/// Abuse: [certificates]
#[test]
fn certificates_change_while_links_stay_up() {
    let (old, new) = (Authority::new(), Authority::new());
    let ((one, one_files), (two, two_files)) = (secure(1, &old), secure(2, &old));
    let (one, two) = join(one, two);
    let who = |from: &Node, whom: &Node| from.transport.who(whom.address().address).recv_timeout(DEADLINE).unwrap();

    new.write(one_files.path(), "n1");
    one.transport.reload_certificates().unwrap();
    assert!(who(&one, &two).is_err(), "one has changed, two has not");
    new.write(two_files.path(), "n2");
    two.transport.reload_certificates().unwrap();
    assert_eq!(who(&one, &two).unwrap().name, "n2");
    let (outsider, _files) = secure(3, &old);
    assert!(who(&outsider, &two).is_err(), "the old authority is no longer believed");
    assert!(one.events.is_empty() && two.events.is_empty(), "the links stayed up");
    one.send(&two, Class::Control, numbered(7)).unwrap();
    assert_eq!(two.numbers(&one, Class::Control, 1), [7]);
}

/// Abuse: [certificates]
#[test]
fn invalid_certificates_change_nothing() {
    let authority = Authority::new();
    let ((one, files), (two, _two)) = (secure(1, &authority), secure(2, &authority));
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    for (file, bytes) in [
        ("node.pem", b"nonsense".as_slice()),
        ("ca.pem", b""),
        ("node.key", other_key.as_bytes()),
        ("ca.pem", Authority::new().issuer.pem().as_bytes()),
    ] {
        authority.write(files.path(), "n1");
        fs::write(files.path().join(file), bytes).unwrap();
        let error = one.transport.reload_certificates().unwrap_err().to_string();
        assert!(error.contains(files.path().to_str().unwrap()), "{error}");
        let answer = one.transport.who(two.address().address).recv_timeout(DEADLINE).unwrap();
        assert_eq!(answer.unwrap().name, "n2");
    }
    assert!(matches!(node(4).transport.reload_certificates(), Err(TlsError::Plain)));
}
