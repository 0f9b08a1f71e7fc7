//! Reads pages of long queues back before they are needed, so that nobody who applies commands waits for a disk.

use std::thread::{self, JoinHandle};

use crossbeam::channel::Receiver;
use kentongan_cluster::PipelineHandle;

use crate::replicated::{PageRequest, Query};

/// What is to be read.
#[derive(Debug)]
pub(super) struct ReadAhead {
    pub(super) group: u16,
    pub(super) request: PageRequest,
}

/// Begins to read what is asked for, until nobody asks any more.
///
/// # Errors
/// The system gives no thread.
pub(super) fn start(asked: Receiver<ReadAhead>, pipeline: PipelineHandle<Query>) -> std::io::Result<JoinHandle<()>> {
    let read = move || {
        for ReadAhead { group, request } in asked {
            match request.read() {
                Ok(page) => pipeline.notify(Query::QueuePage { group, page: Box::new(page) }),
                // It may have been settled meanwhile. If not, it is read again when it is needed, and if that fails, the
                // process ends.
                Err(error) => tracing::debug!(%error, group, "a part of a session's queue is not there any more"),
            }
        }
    };
    thread::Builder::new().name("read-ahead".to_owned()).spawn(read)
}
