//! The accepting side: who may speak, and what becomes of what they say.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use kentongan_proto::peer::{Batch, wire};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, Streaming};

use super::event::{Class, LinkEpoch};
use super::identity::{NodeId, PeerHello};
use super::outbox::max_body_bytes;
use super::peers::{IncomingLink, Shared};
use super::refusal::Refusal;
use super::requests::{Answerer, Asked, Conversation, Question, Responder, SnapshotChunks};
use super::stats::count;
use super::stubs::peer_server::Peer;
use super::tls::PeerCertificate;
use crate::GroupId;

/// Chunks that are read from a checkpoint before they can be sent.
const CHUNKS_AHEAD: usize = 2;

/// What is said over one connection.
#[derive(Clone)]
pub(super) struct PeerService {
    pub shared: Arc<Shared>,
    pub responder: Arc<dyn Responder>,
    pub snapshots: Arc<Semaphore>,
    pub backups: Arc<Semaphore>,
    pub certificate: Option<Arc<PeerCertificate>>,
}

type Answered<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type LinkStream = BoxStream<wire::Frame>;
    type BackupStream = BoxStream<wire::Answer>;
    type FetchSnapshotStream = BoxStream<wire::SnapshotChunk>;

    async fn link(&self, request: Request<Streaming<wire::Frame>>) -> Answered<Self::LinkStream> {
        let mut frames = request.into_inner();
        let first = timeout(self.shared.config.connect_timeout, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the peer's opening took too long"))?
            .inspect_err(|status| self.count_bad_frame(status))?;
        let (class, link) = self.accept_link(first).map_err(|refusal| self.refuse(&refusal))?;
        let opening =
            wire::Opening { hello: Some(self.shared.hello()), class: class.to_wire().into(), epoch: 0, to: 0 };
        let opening = wire::Frame { opening: Some(opening), batch: Default::default() };
        // The answer stays open while the link is read, so that each end learns of the other's end; dropping it, when
        // the connection breaks, ends the reading.
        let reading = stream::once(read(self.clone(), frames, link)).filter_map(|ended| async { ended.err().map(Err) });
        Ok(Response::new(Box::pin(stream::once(async { Ok(opening) }).chain(reading))))
    }

    async fn who(&self, request: Request<wire::Hello>) -> Answered<wire::Hello> {
        self.verify(Some(request.into_inner()))?;
        Ok(Response::new(self.shared.hello()))
    }

    async fn promise(&self, request: Request<wire::Question>) -> Answered<wire::Answer> {
        self.ask(Question::Promise, request.into_inner()).await
    }

    async fn form(&self, request: Request<wire::Question>) -> Answered<wire::Answer> {
        self.ask(Question::Form, request.into_inner()).await
    }

    async fn join(&self, request: Request<wire::Question>) -> Answered<wire::Answer> {
        self.ask(Question::Join, request.into_inner()).await
    }

    async fn remove(&self, request: Request<wire::Question>) -> Answered<wire::Answer> {
        self.ask(Question::Remove, request.into_inner()).await
    }

    async fn administer(&self, request: Request<wire::Question>) -> Answered<wire::Answer> {
        self.ask(Question::Administer, request.into_inner()).await
    }

    async fn status(&self, request: Request<wire::Question>) -> Answered<wire::Answer> {
        self.ask(Question::Status, request.into_inner()).await
    }

    async fn backup(&self, request: Request<Streaming<wire::Question>>) -> Answered<Self::BackupStream> {
        let mut orders = request.into_inner();
        let first = timeout(self.shared.config.connect_timeout, orders.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first order took too long"))??
            .ok_or_else(|| Refusal::Malformed("a conversation without a first order").to_status())?;
        let from = self.verify(first.hello)?;
        let permit = Arc::clone(&self.backups).try_acquire_owned().map_err(|_| Refusal::Busy.to_status())?;

        let (ordered, heard) = mpsc::channel(CHUNKS_AHEAD);
        let (said, mut answers) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            let mut next = Some(first.body);
            while let Some(order) = next
                && ordered.send(order).await.is_ok()
            {
                // However the stream ends, nothing more is ordered.
                next = orders.message().await.ok().flatten().map(|order| order.body);
            }
        });
        let responder = Arc::clone(&self.responder);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            responder.on_backup(&from, Conversation { heard, said });
        });
        let mut hello = Some(self.shared.hello());
        let answer = move |said: Result<bytes::Bytes, String>| match said {
            Ok(body) => Ok(wire::Answer { hello: hello.take(), body }),
            Err(reason) => Err(Refusal::Unavailable(reason).to_status()),
        };
        let answers = stream::poll_fn(move |context| answers.poll_recv(context)).map(answer);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_snapshot(&self, request: Request<wire::SnapshotRequest>) -> Answered<Self::FetchSnapshotStream> {
        let request = request.into_inner();
        let from = self.verify(request.hello)?;
        self.verify_member(&from).map_err(|refusal| self.refuse(&refusal))?;
        let group = u16::try_from(request.group).map_err(|_| Refusal::Malformed("a group above 65535").to_status())?;
        let permit = Arc::clone(&self.snapshots).try_acquire_owned().map_err(|_| Refusal::Busy.to_status())?;

        let (chunks, mut sent) = mpsc::channel(CHUNKS_AHEAD);
        let (responder, hello) = (Arc::clone(&self.responder), self.shared.hello());
        let data_bytes_max = max_body_bytes(self.shared.config.frame_bytes_max);
        // Checkpoints are read from a disk.
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let source = responder.open_snapshot(&from, GroupId(group), request.checkpoint);
            send_chunks(source, hello, data_bytes_max, &chunks);
        });
        Ok(Response::new(Box::pin(stream::poll_fn(move |context| sent.poll_recv(context)))))
    }
}

impl PeerService {
    fn verify(&self, hello: Option<wire::Hello>) -> Result<PeerHello, Status> {
        let hello = PeerHello::verify(hello, self.certificate.as_deref()).map_err(|refusal| self.refuse(&refusal))?;
        self.shared.note_address(&hello);
        Ok(hello)
    }

    /// The node must be a peer of ours, of our cluster, under the name that we know.
    fn verify_member(&self, from: &PeerHello) -> Result<Arc<super::peers::Peer>, Refusal> {
        self.shared.verify_cluster(from)?;
        if self.shared.was_removed(from.node) {
            return Err(Refusal::Removed { node: from.node });
        }
        self.shared.verify_level(from)?;
        let peer = self.shared.peer(from.node).ok_or(Refusal::UnknownPeer { node: from.node })?;
        from.verify_node(peer.node, &peer.name)?;
        self.shared.verify_process(from)?;
        Ok(peer)
    }

    fn accept_link(&self, first: Option<wire::Frame>) -> Result<(Class, IncomingLink), Refusal> {
        let opening =
            first.and_then(|frame| frame.opening).ok_or(Refusal::Malformed("a link that begins without an opening"))?;
        let hello = PeerHello::verify(opening.hello, self.certificate.as_deref())?;
        let peer = self.verify_member(&hello)?;
        // Before it takes the place of another link: who dials the address of a node whose successor this is would else end the
        // links that it has with this one, again and again.
        let (wanted, found) = (NodeId(opening.to), self.shared.identity().node);
        if wanted != NodeId(0) && wanted != found {
            return Err(Refusal::NotTheOne { wanted, found });
        }
        peer.says_it_is_at(&hello.address);
        let class = Class::from_wire(opening.class).ok_or(Refusal::Malformed("an unknown class of traffic"))?;
        Ok((class, peer.inboxes[class.index()].accept(LinkEpoch(opening.epoch), hello)?))
    }

    pub(super) fn refuse(&self, refusal: &Refusal) -> Status {
        count(&self.shared.stats.refused_peers);
        if self.shared.has_peers() && !matches!(refusal, Refusal::NotGone { .. }) {
            self.shared.refusals.warn_refused(refusal);
        } else {
            // A cluster forms: one node knows so before the other. Or one was started again before its links were seen to end.
            tracing::debug!("a peer was refused: {refusal}");
        }
        refusal.to_status()
    }

    /// tonic ends a stream with these two codes for a message that is too long, or that prost cannot read.
    fn count_bad_frame(&self, status: &Status) {
        match status.code() {
            Code::OutOfRange => count(&self.shared.stats.oversize_frames),
            Code::Internal => count(&self.shared.stats.malformed_frames),
            _ => {}
        }
    }

    async fn ask(&self, question: Question, request: wire::Question) -> Answered<wire::Answer> {
        let from = self.verify(request.hello)?;
        let (answer, answered) = oneshot::channel();
        self.responder.on_question(Asked { from, question, body: request.body, answer: Answerer(answer) });
        let answered = timeout(self.shared.config.request_timeout, answered).await;
        let body = match answered {
            Ok(Ok(Ok(body))) => body,
            Ok(Ok(Err(reason))) => return Err(Refusal::Unavailable(reason).to_status()),
            Ok(Err(_)) | Err(_) => {
                return Err(Refusal::Unavailable("no answer to this question now".into()).to_status());
            }
        };
        Ok(Response::new(wire::Answer { hello: Some(self.shared.hello()), body }))
    }
}

/// Reads a link to its end.
async fn read(service: PeerService, mut frames: Streaming<wire::Frame>, mut link: IncomingLink) -> Result<(), Status> {
    loop {
        if !link.room().await {
            return Err(Refusal::Superseded.to_status());
        }
        let frame = tokio::select! {
            frame = frames.message() => frame.inspect_err(|status| service.count_bad_frame(status))?,
            () = link.superseded() => return Err(Refusal::Superseded.to_status()),
        };
        let Some(frame) = frame else {
            return Ok(());
        };
        if frame.opening.is_some() {
            count(&service.shared.stats.malformed_frames);
            return Err(Refusal::Malformed("a second opening on one link").to_status());
        }
        let Ok(batch) = Batch::parse(frame.batch) else {
            count(&service.shared.stats.malformed_frames);
            return Err(Refusal::Malformed("a batch that does not end where its messages do").to_status());
        };
        link.deliver(batch).map_err(|refusal| refusal.to_status())?;
    }
}

/// Sends who we are, then the chunks. Ends when the asker is gone.
fn send_chunks(
    source: Result<SnapshotChunks, String>,
    hello: wire::Hello,
    data_bytes_max: usize,
    chunks: &mpsc::Sender<Result<wire::SnapshotChunk, Status>>,
) {
    let unavailable = |reason: String| Refusal::Unavailable(reason).to_status();
    let first = source.as_ref().map(|_| wire::SnapshotChunk { hello: Some(hello), data: Default::default() });
    let mut next = Some(first.map_err(|reason| unavailable(reason.clone())));
    let mut source = source.into_iter().flatten();
    while let Some(chunk) = next {
        let ends = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || ends {
            return;
        }
        next = source.next().map(|data| match data {
            Ok(data) if data.len() > data_bytes_max => Err(unavailable("a chunk is longer than a frame may be".into())),
            Ok(data) => Ok(wire::SnapshotChunk { hello: None, data }),
            Err(error) => Err(unavailable(format!("the checkpoint cannot be read: {error}"))),
        });
    }
}
