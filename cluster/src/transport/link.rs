//! The outgoing half of a link: dialling, and dialling again.
//!
//! Every node dials every other for its own sending direction, one connection a class. So who sends is who notices that
//! a link broke and who mends it, no rule is needed for two dials that cross, and a cut that works one way only ends
//! both directions by the keep-alive of each.
//!
//! Each node says in its hellos where others find it. One that says another address than the peers were set with is dialled at
//! both in turn: it was started with another one, and must be reached before it can register there. Who answers must be that
//! node wherever it is dialled.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kentongan_proto::peer::wire;
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::codec::open_link;
use super::connection::{Connection, LinkError, dial};
use super::copies::{COPIED_KEY, Copied};
use super::event::{Class, Direction, Event, LinkEpoch};
use super::identity::PeerHello;
use super::outbox::Outbox;
use super::peers::{Peer, Place, Shared};
use super::refusal::REMOVED;
use super::stats::count;

/// Keeps the link to a peer for one class up, until its outbox is finished.
pub(super) async fn keep(shared: Arc<Shared>, peer: Arc<Peer>, class: Class) {
    let mut backoff = Backoff::new(shared.config.backoff_min, shared.config.backoff_max);
    let mut failures = Failures::default();
    // Dials in a row.
    let mut failed = 0;
    loop {
        let begun = Instant::now();
        let place = peer.place(failed);
        failed += 1;
        let ended = run(&shared, &peer, class, &place, &mut failed).await;
        if begun.elapsed() > shared.config.backoff_max {
            backoff.reset();
            failures = Failures::default();
        }
        if peer.outboxes[class.index()].is_finishing() {
            return;
        }
        if is_removal(&ended) {
            shared.sink.on_event(Event::Removed { by: peer.node });
        }
        if let Some(how) = copied(&ended) {
            shared.sink.on_event(Event::Copied { by: peer.node, how });
        }
        failures.count += 1;
        report(&peer, class, &place, &ended, &mut failures);
        tokio::select! {
            () = sleep(backoff.next()) => {}
            // It is there now, and not where it was.
            () = peer.has_moved.notified() => failed = 1,
        }
    }
}

fn is_removal(ended: &Result<(), LinkError>) -> bool {
    matches!(ended, Err(LinkError::EndedByPeer(status)) if status.code() == REMOVED)
}

fn copied(ended: &Result<(), LinkError>) -> Option<Copied> {
    match ended {
        Err(LinkError::EndedByPeer(status)) => Copied::of(status.metadata().get(COPIED_KEY)?.to_str().ok()?),
        _ => None,
    }
}

/// Failures in a row of which nothing is said aloud: nodes that start together do not know each other at once.
const FAILURES_EXPECTED: u32 = 3;

/// Time in which a peer may say that it does not know this node yet, or any cluster: it hears of both from others.
const UNKNOWN_MAX: Duration = Duration::from_secs(10);

/// Those of a class since there was a link, or since the peer was known.
struct Failures {
    count: u32,
    since: Instant,
    /// What was said of them, at either of the peer's two addresses.
    said: [Option<String>; 2],
}

impl Default for Failures {
    fn default() -> Self {
        Self { count: 0, since: Instant::now(), said: Default::default() }
    }
}

impl Failures {
    /// Once for each reason: an unreachable peer is dialled for days.
    fn are_to_be_said(&self, place: &Place, text: &str, will_pass: bool, now: Instant) -> bool {
        let is_expected = self.count < FAILURES_EXPECTED || (will_pass && now.duration_since(self.since) < UNKNOWN_MAX);
        !is_expected && self.said[usize::from(place.is_own_word)].as_deref() != Some(text)
    }
}

/// Whether the peer has only not heard yet of what it needs to know for a link.
fn will_pass(ended: &Result<(), LinkError>) -> bool {
    matches!(ended, Err(LinkError::EndedByPeer(status)) if matches!(status.code(), Code::Unavailable | Code::NotFound))
}

fn report(peer: &Peer, class: Class, place: &Place, ended: &Result<(), LinkError>, failures: &mut Failures) {
    let text = match ended {
        Ok(()) => "the peer ended the link".to_owned(),
        Err(error) => error.to_string(),
    };
    if failures.are_to_be_said(place, &text, will_pass(ended), Instant::now()) {
        tracing::warn!(peer = %peer.node, name = peer.name, address = place.address, ?class, "no link: {text}");
        failures.said[usize::from(place.is_own_word)] = Some(text.clone());
    }
    *peer.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
}

/// One life of a link, from dialling to its end. `failed` begins anew once it is up.
async fn run(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    class: Class,
    place: &Place,
    failed: &mut u32,
) -> Result<(), LinkError> {
    let epoch = shared.next_epoch();
    count(&shared.stats.dials);
    let opened = open(shared, peer, class, place, epoch).await;
    let (connection, mut frames, hello) = opened.inspect_err(|_| count(&shared.stats.dials_failed))?;
    *failed = 0;
    peer.was_reached_at(place);

    let up = Up::begin(shared, peer, class, epoch, hello);
    // Nothing comes back over a link but its end.
    let ended = loop {
        tokio::select! {
            frame = frames.message() => match frame {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(status) => break Err(status.into()),
            },
            () = peer.fell_silent.notified(), if class != Class::Control => break Err(LinkError::Silent),
        }
    };
    if class == Class::Control && ended.as_ref().is_err_and(LinkError::is_break) {
        peer.fell_silent.notify_waiters();
    }
    drop(up);
    drop(connection);
    ended
}

type Opened = (Connection, tonic::Streaming<wire::Frame>, PeerHello);

async fn open(
    shared: &Shared,
    peer: &Peer,
    class: Class,
    place: &Place,
    epoch: LinkEpoch,
) -> Result<Opened, LinkError> {
    let connection = dial(&place.address, shared.tls.as_ref(), shared.config.timing().of(class)).await?;
    let opening =
        wire::Opening { hello: Some(shared.hello()), class: class.to_wire().into(), epoch: epoch.0, to: peer.node.0 };
    let outgoing = peer.outboxes[class.index()].open_stream(opening);
    let answer = async {
        let opened = open_link(connection.channel.clone(), outgoing, shared.config.frame_bytes_max).await?;
        let mut frames = opened.into_inner();
        Ok::<_, LinkError>((frames.message().await?, frames))
    };
    let (first, frames) =
        timeout(shared.config.connect_timeout, answer).await.map_err(|_| LinkError::Timeout("the peer's hello"))??;
    let hello = first.and_then(|frame| frame.opening).and_then(|opening| opening.hello);
    let hello = PeerHello::verify(hello, connection.certificate.as_ref())?;
    shared.verify_cluster(&hello)?;
    hello.verify_node(peer.node, &peer.name)?;
    shared.verify_level(&hello)?;
    shared.verify_process(&hello)?;
    Ok((connection, frames, hello))
}

/// A link that is up. However its task ends, the outbox closes and the node hears of it.
struct Up<'a> {
    shared: &'a Shared,
    outbox: &'a Outbox,
    down: Option<Event>,
}

impl<'a> Up<'a> {
    fn begin(shared: &'a Shared, peer: &'a Peer, class: Class, epoch: LinkEpoch, hello: PeerHello) -> Self {
        let outbox = &peer.outboxes[class.index()];
        *peer.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        count(&shared.stats.class(class).links_up);
        // Open before it is said: what is sent in answer to the event must be taken.
        outbox.up(epoch);
        let (peer, direction) = (peer.node, Direction::Outgoing);
        shared.sink.on_event(Event::LinkUp { peer, class, direction, epoch, hello });
        Self { shared, outbox, down: Some(Event::LinkDown { peer, class, direction, epoch }) }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.outbox.down();
        if let Some(down) = self.down.take() {
            self.shared.sink.on_event(down);
        }
    }
}

/// Pauses that double from a shortest to a longest, each cut at random so that nodes that lost the same peer do not all
/// dial it at once.
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::ClusterId;
    use super::super::refusal::Refusal;
    use super::*;

    /// Nodes that form a cluster, or join one, read of nothing wrong; one that stays unknown is told.
    #[test]
    fn what_a_peer_will_hear_of_by_itself_is_said_only_if_it_does_not() {
        let begun = Instant::now();
        let mut failures = Failures { count: FAILURES_EXPECTED - 1, since: begun, said: Default::default() };
        let place = Place { address: "there".to_owned(), is_own_word: false };
        let other = Place { address: "elsewhere".to_owned(), is_own_word: true };
        assert!(!failures.are_to_be_said(&place, "refused", false, begun));
        failures.count += 1;
        assert!(failures.are_to_be_said(&place, "refused", false, begun));
        assert!(!failures.are_to_be_said(&place, "no member yet", true, begun));
        assert!(failures.are_to_be_said(&place, "no member yet", true, begun + UNKNOWN_MAX));
        failures.said[0] = Some("no member yet".to_owned());
        assert!(failures.are_to_be_said(&other, "no member yet", true, begun + UNKNOWN_MAX * 2), "of each address");
        assert!(!failures.are_to_be_said(&place, "no member yet", true, begun + UNKNOWN_MAX * 2), "once");
        assert!(failures.are_to_be_said(&place, "refused", false, begun + UNKNOWN_MAX * 2));
    }

    #[test]
    fn only_of_a_node_without_a_cluster_yet_another_cluster_is_expected() {
        let ended = |ours| {
            let refusal = Refusal::WrongCluster { theirs: Some(ClusterId(1)), ours };
            Err(LinkError::EndedByPeer(Box::new(refusal.to_status())))
        };
        assert!(will_pass(&ended(None)) && !will_pass(&ended(Some(ClusterId(2)))));
        assert!(!will_pass(&Ok(())));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(min, max);
        for longest in [100, 200, 350, 350] {
            let longest = Duration::from_millis(longest);
            let pause = backoff.next();
            assert!(longest / 2 <= pause && pause <= longest, "{pause:?} of {longest:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
