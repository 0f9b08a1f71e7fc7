//! The outgoing half of a link: dialling, and dialling again.
//!
//! Every node dials every other for its own sending direction, one connection a class. So who sends is who notices that
//! a link broke and who mends it, no rule is needed for two dials that cross, and a cut that works one way only ends
//! both directions by the keep-alive of each.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kentongan_proto::peer::wire;
use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use super::codec::open_link;
use super::connection::{Connection, LinkError, dial};
use super::event::{Class, Direction, Event, LinkEpoch};
use super::identity::PeerHello;
use super::outbox::Outbox;
use super::peers::{Peer, Shared};
use super::refusal::REMOVED;
use super::stats::count;

/// Keeps the link to a peer for one class up, until its outbox is finished.
pub(super) async fn keep(shared: Arc<Shared>, peer: Arc<Peer>, class: Class) {
    let mut backoff = Backoff::new(shared.config.backoff_min, shared.config.backoff_max);
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let ended = run(&shared, &peer, class).await;
        if begun.elapsed() > shared.config.backoff_max {
            backoff.reset();
            failures = 0;
        }
        failures += 1;
        if peer.outboxes[class.index()].is_finishing() {
            return;
        }
        if is_removal(&ended) {
            shared.sink.on_event(Event::Removed { by: peer.node });
        }
        report(&peer, class, ended, failures);
        sleep(backoff.next()).await;
    }
}

fn is_removal(ended: &Result<(), LinkError>) -> bool {
    matches!(ended, Err(LinkError::EndedByPeer(status)) if status.code() == REMOVED)
}

/// Failures in a row of which nothing is said aloud: nodes that start together do not know each other at once.
const FAILURES_EXPECTED: u32 = 3;

fn report(peer: &Peer, class: Class, ended: Result<(), LinkError>, failures: u32) {
    let text = match ended {
        Ok(()) => "the peer ended the link".to_owned(),
        Err(error) => error.to_string(),
    };
    let mut last = peer.last_error.lock().unwrap_or_else(PoisonError::into_inner);
    // Once for each reason: an unreachable peer is dialled for days.
    if failures == FAILURES_EXPECTED || (failures > FAILURES_EXPECTED && last.as_ref() != Some(&text)) {
        tracing::warn!(peer = %peer.node, name = peer.name, address = peer.address, ?class, "no link: {text}");
    }
    *last = Some(text);
}

/// One life of a link, from dialling to its end.
async fn run(shared: &Arc<Shared>, peer: &Arc<Peer>, class: Class) -> Result<(), LinkError> {
    let epoch = shared.next_epoch();
    count(&shared.stats.dials);
    let opened = open(shared, peer, class, epoch).await;
    let (connection, mut frames, hello) = opened.inspect_err(|_| count(&shared.stats.dials_failed))?;

    let up = Up::begin(shared, peer, class, epoch, hello);
    // Nothing comes back over a link but its end.
    let ended = loop {
        match frames.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break Ok(()),
            Err(status) => break Err(status.into()),
        }
    };
    drop(up);
    drop(connection);
    ended
}

type Opened = (Connection, tonic::Streaming<wire::Frame>, PeerHello);

async fn open(shared: &Shared, peer: &Peer, class: Class, epoch: LinkEpoch) -> Result<Opened, LinkError> {
    let connection = dial(&peer.address, shared.tls.as_ref(), shared.config.timing()).await?;
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
    use super::*;

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
