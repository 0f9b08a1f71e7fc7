//! What those who reach an HTTP port may cost together, and each of them.
//!
//! One connection too many takes the place of the oldest, not of the one that comes: whoever holds places keeps nobody out. Who has
//! shown a good token keeps his.

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};

/// What a port is worth to those who are nobody in particular.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections at once; one more ends the oldest of those that are not [`Known`].
    pub connections_max: usize,
    /// Time for the head of a request, and for a connection that asks for nothing more.
    pub head_max: Duration,
    /// Bytes of the head of a request.
    pub head_bytes_max: usize,
    /// Time for a connection in all, however often it asks, unless it is [`Known`]. An answer that is under way then has as long again.
    pub connection_max: Duration,
    /// Time for which nothing of what is written may be taken.
    pub unread_max: Duration,
}

/// Whether the last request of a connection that needed a token had a good one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known(Arc<AtomicBool>);

impl Known {
    /// What a request showed.
    pub fn set(&self, is_known: bool) {
        self.0.store(is_known, Ordering::Relaxed);
    }

    fn is_known(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns when whoever is not known has had his time.
    async fn has_had(&self, time: Duration) {
        loop {
            sleep(time).await;
            if !self.is_known() {
                return;
            }
        }
    }
}

/// The connections that there are.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first. Some of them may have ended by themselves.
    by_age: VecDeque<(AbortHandle, Known)>,
}

impl Connections {
    /// Serves one more, in the place of the oldest that is not known if there are as many as may be. `false`: all are known, and it is
    /// not served.
    pub fn add(
        &mut self,
        serving: impl Future<Output = ()> + Send + 'static,
        known: Known,
        connections_max: usize,
    ) -> bool {
        if self.by_age.len() >= connections_max {
            self.by_age.retain(|(task, _)| !task.is_finished());
        }
        while self.by_age.len() >= connections_max {
            let oldest = self.by_age.iter().position(|(_, known)| !known.is_known());
            let Some((oldest, _)) = oldest.and_then(|at| self.by_age.remove(at)) else {
                return false;
            };
            oldest.abort();
        }
        self.by_age.push_back((self.tasks.spawn(serving), known));
        true
    }

    /// Returns when one has ended; never if there is none.
    pub async fn one_ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Returns when all have ended, or the time is over.
    pub async fn all_ended(&mut self, within: Duration) {
        // Those that take longer are cut off.
        let _ = timeout(within, async { while self.tasks.join_next().await.is_some() {} }).await;
    }
}

/// Answers the requests of one connection until it ends, or has had its time, or the server `stops`.
pub(crate) async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    routes: Router,
    mut stops: watch::Receiver<bool>,
    known: Known,
    bounds: Bounds,
) -> hyper::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head_max).max_buf_size(bounds.head_bytes_max);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    tokio::select! {
        outcome = serving.as_mut() => return outcome,
        _ = stops.wait_for(|&stops| stops) => {}
        () = known.has_had(bounds.connection_max) => {}
    }
    serving.as_mut().graceful_shutdown();
    // One that does not read its answer is cut off.
    timeout(bounds.connection_max, serving).await.unwrap_or(Ok(()))
}

/// A stream on which writing fails once nobody has taken anything of it for a time.
#[derive(Debug)]
pub(crate) struct Taken<S> {
    stream: S,
    unread_max: Duration,
    /// While something waits.
    over: Option<Pin<Box<Sleep>>>,
}

impl<S> Taken<S> {
    pub fn new(stream: S, unread_max: Duration) -> Self {
        Self { stream, unread_max, over: None }
    }

    fn within_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.over = None;
            return written;
        }
        let unread_max = self.unread_max;
        let over = self.over.get_or_insert_with(|| Box::pin(sleep(unread_max)));
        over.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "what was written is not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.within_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.within_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    #[test]
    fn writing_fails_once_nobody_reads_for_long_and_not_before() {
        runtime().block_on(async {
            let (here, mut there) = duplex(16);
            let mut taken = Taken::new(here, Duration::from_millis(50));
            let reading = tokio::spawn(async move {
                there.read_exact(&mut [0; 64]).await.expect("written");
                there
            });
            taken.write_all(&[0; 64]).await.expect("all of it is read");
            let _there = reading.await.expect("read");
            let error = taken.write_all(&[0; 64]).await.expect_err("nobody reads it");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn the_oldest_who_is_not_known_makes_room() {
        runtime().block_on(async {
            let mut connections = Connections::default();
            let all: Vec<Known> = (0..4).map(|_| Known::default()).collect();
            let mut add = |at: usize| connections.add(std::future::pending(), all[at].clone(), 2);
            all[0].set(true);
            assert!(add(0) && add(1) && add(2), "the second one made room");
            all[2].set(true);
            assert!(!add(3), "nobody makes room");
            all[0].set(false);
            assert!(add(3), "nor does one keep its place that has shown a token once");
            let known = connections.by_age.iter().map(|(_, known)| known.is_known());
            assert_eq!(known.collect::<Vec<_>>(), [true, false]);
        });
    }
}
