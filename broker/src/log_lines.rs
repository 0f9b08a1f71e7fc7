//! The lines of the log on their way to standard error.
//!
//! Whoever reads standard error may stand still: a terminal after Ctrl-S, a collector of logs that hangs. Nobody here waits for it: a
//! thread of its own writes what comes through a bounded queue, and what finds no room there is counted. Where the process ends, it waits
//! for that thread, but not for long.

use std::io::{self, Write};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait, about 5,000 lines. As many may be with the thread that writes.
const WAITING_BYTES_MAX: usize = 2 << 20;

/// What a buffer keeps for the lines to come.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Time for what waits when the process ends.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// Where [`kentongan_cluster::disk::SyncSite`] tells of its syncs.
const SYNC_SITES: &str = "kentongan_cluster::disk::site";

/// Those of the process, once a thread writes them.
static OF_PROCESS: OnceLock<Arc<Lines>> = OnceLock::new();

/// Where the log writes. Without a thread it is written where it is logged, and whoever logs waits.
#[derive(Debug, Clone)]
pub(crate) struct LogWriter(Option<Arc<Lines>>);

/// Begins the thread that writes the log of this process, and has whatever ends the process wait for it.
pub(crate) fn begin() -> LogWriter {
    if let Some(lines) = OF_PROCESS.get() {
        return LogWriter(Some(Arc::clone(lines)));
    }
    let lines = Arc::new(Lines::default());
    let written = Arc::clone(&lines);
    let tell = |dropped: u64| {
        tracing::warn!(dropped, "lines were left out of the log: standard error was not read as fast as they came");
    };
    let thread = std::thread::Builder::new().name("log".into()).spawn(move || written.write(&mut io::stderr(), tell));
    match thread {
        Ok(_) => {
            let _ = OF_PROCESS.set(Arc::clone(&lines));
            kentongan_cluster::ending::before_abort(flush);
            LogWriter(Some(lines))
        }
        Err(_) => LogWriter(None),
    }
}

/// Waits until everything is written that was logged before, but not for long.
pub(crate) fn flush() {
    if let Some(lines) = OF_PROCESS.get() {
        lines.flush(LAST_WORDS_MAX);
    }
}

/// Writes `text` as it is, a line or several, behind what was logged. It goes by nothing that could have panicked. False if nobody writes
/// the log here, which has its own way to standard error then.
pub(crate) fn say(text: &str) -> bool {
    let Some(lines) = OF_PROCESS.get() else {
        return false;
    };
    lines.push(text.as_bytes());
    true
}

/// How many lines were left out.
pub(crate) fn dropped() -> u64 {
    OF_PROCESS.get().map_or(0, |lines| lines.dropped.load(Ordering::Relaxed))
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(self.0.as_deref())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter<'a> {
        // By these, a preload learns on whose behalf the thread that writes them syncs. Nobody else has them logged.
        let is_for_preload = *metadata.level() == Level::TRACE && metadata.target() == SYNC_SITES;
        LineWriter(self.0.as_deref().filter(|_| !is_for_preload))
    }
}

/// Takes a whole event at a time.
#[derive(Debug)]
pub(crate) struct LineWriter<'a>(Option<&'a Lines>);

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0 {
            Some(lines) => lines.push(bytes),
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The queue.
#[derive(Debug, Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    more: Condvar,
    /// What was taken is written.
    written: Condvar,
    /// Since the start.
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Lines, each with its end.
    text: Vec<u8>,
    /// Pushes since the start, and how many of them have been written.
    pushed: u64,
    written: u64,
    /// Left out since that was last told.
    dropped: u64,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        // One that is larger than all the room there is goes alone.
        if !waiting.text.is_empty() && waiting.text.len() + line.len() > WAITING_BYTES_MAX {
            waiting.dropped += 1;
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.text.extend_from_slice(line);
        waiting.pushed += 1;
        drop(waiting);
        self.more.notify_one();
    }

    /// Writes for as long as the process lives. `tell` hears how many lines found no room before those to come.
    fn write(&self, out: &mut impl Write, tell: impl Fn(u64)) {
        let mut text = Vec::new();
        loop {
            let mut waiting = self
                .more
                .wait_while(self.lock(), |waiting| waiting.text.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut waiting.text, &mut text);
            let upto = waiting.pushed;
            let dropped = mem::take(&mut waiting.dropped);
            drop(waiting);
            if dropped > 0 {
                // Now, while there is room, and behind what had some.
                tell(dropped);
            }
            // A line at a time: other processes may write to the same pipe.
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                if out.write_all(line).is_err() {
                    // Nobody is there to be told.
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            text.clear();
            text.shrink_to(KEPT_BYTES_MAX);
            self.lock().written = upto;
            self.written.notify_all();
        }
    }

    fn flush(&self, patience: Duration) {
        let waiting = self.lock();
        let upto = waiting.pushed;
        // Whether it came to that or not, there is nothing more to do.
        drop(self.written.wait_timeout_while(waiting, patience, |waiting| waiting.written < upto));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Standard error whose reader takes a line only when it is told to.
    struct Stalled {
        take: mpsc::Receiver<()>,
        taken: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.take.recv().map_err(io::Error::other)?;
            self.taken.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_where_it_is_missing() {
        let lines = Arc::new(Lines::default());
        let (go, take) = mpsc::channel();
        let (taken, read) = mpsc::channel();
        let written = Arc::clone(&lines);
        let told = Arc::clone(&lines);
        std::thread::spawn(move || {
            written.write(&mut Stalled { take, taken }, |dropped| told.push(format!("missing {dropped}\n").as_bytes()));
        });
        let long = |name: u8| [vec![name; WAITING_BYTES_MAX / 2 - 1], b"\n".to_vec()].concat();
        lines.push(b"first\n");
        // Taken, so that all the room is there.
        while !lines.lock().text.is_empty() {
            std::thread::yield_now();
        }
        for name in *b"abcd" {
            lines.push(&long(name));
        }
        lines.push(b"e\n");
        lines.flush(Duration::from_millis(1));
        assert_eq!(lines.dropped.load(Ordering::Relaxed), 3);
        (0..4).for_each(|_| go.send(()).unwrap());
        let lengths: Vec<_> = (0..3).map(|_| read.recv().unwrap().len()).collect();
        assert_eq!(lengths, [6, WAITING_BYTES_MAX / 2, WAITING_BYTES_MAX / 2]);
        assert_eq!(read.recv().unwrap(), b"missing 3\n");
        lines.push(b"last\n");
        go.send(()).unwrap();
        lines.flush(Duration::from_secs(60));
        assert_eq!(read.try_recv().unwrap(), b"last\n", "it was waited for");
    }

    #[test]
    fn a_line_that_is_larger_than_all_the_room_goes_alone_and_one_that_cannot_be_written_is_counted() {
        let lines = Arc::new(Lines::default());
        lines.push(&vec![b'x'; WAITING_BYTES_MAX * 2]);
        lines.push(b"no room\n");
        assert_eq!((lines.lock().pushed, lines.dropped.load(Ordering::Relaxed)), (1, 1));
        let (_, take) = mpsc::channel();
        let (taken, _) = mpsc::channel();
        let written = Arc::clone(&lines);
        std::thread::spawn(move || written.write(&mut Stalled { take, taken }, |_| ()));
        lines.flush(Duration::from_secs(60));
        assert_eq!(lines.dropped.load(Ordering::Relaxed), 2);
    }
}
