//! The audit log: who did what to this node, and what became of it.
//!
//! One line of JSON each, in a file of its own (`log.audit_file`). Nobody waits for it: a thread writes what comes through a bounded
//! queue, and what finds no room there is counted. Refused logins are many when somebody tries passwords, so only some of each second
//! have a line of their own; how many have not is said in another.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use crossbeam::channel::{Receiver, Sender};
use serde_json::{Value, json};

use crate::connection::Origin;
use crate::router::log_rate::{LogRate, excerpt};

/// Lines that may wait to be written.
const WAITING_MAX: usize = 4096;

/// Time for what waits when the process ends.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// The audit log of a node; one that was not begun records nothing.
#[derive(Debug, Default)]
pub struct Audit {
    writer: OnceLock<Sender<Message>>,
    /// Lines that were lost since somebody last asked.
    dropped: Arc<AtomicU64>,
    refusals: Mutex<LogRate>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    /// Somebody has renamed the file.
    Reopen,
    /// Everything before this is to be in the file.
    Flush(Sender<()>),
}

/// One line.
#[derive(serde::Serialize)]
struct Line<'a> {
    time: String,
    event: &'a str,
    who: Value,
    what: Value,
    result: &'a str,
}

/// A CONNECT that was refused for who sent it.
#[derive(Debug)]
pub struct RefusedLogin<'a> {
    /// As it said.
    pub client_id: &'a str,
    /// As it said.
    pub user: Option<&'a str>,
    /// From where it came.
    pub origin: &'a Origin,
    /// Who would not have it, if it was somebody else's to say.
    pub server: Option<&'a str>,
    /// Why.
    pub reason: &'a str,
}

/// A file that lines can be added to.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    file: File,
}

impl AuditFile {
    /// Makes it if it is not there, for nobody but this user to read.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write the audit log {} (log.audit_file)", path.display());
        Self::check(path).with_context(cannot)?;
        let file = open(path).with_context(cannot)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Whether it has a place to be. Makes nothing.
    ///
    /// # Errors
    /// It has none.
    pub fn check(path: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(path.file_name().is_some() && !path.is_dir(), "that names no file");
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        anyhow::ensure!(directory.is_dir(), "there is no directory {}: make it first", directory.display());
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Audit {
    /// Records into `file` from now on. The first call holds.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn begin(&self, file: AuditFile) -> io::Result<()> {
        let (writer, lines) = crossbeam::channel::bounded(WAITING_MAX);
        let dropped = Arc::clone(&self.dropped);
        std::thread::Builder::new().name("audit".into()).spawn(move || Writer::new(file, dropped).run(&lines))?;
        if self.writer.set(writer).is_err() {
            tracing::warn!("the audit log was begun already");
        }
        Ok(())
    }

    /// Adds a line: what happened, who did it, what exactly, and what became of it.
    pub fn record(&self, wall_ms: u64, event: &str, who: Value, what: Value, result: &str) {
        let Some(writer) = self.writer.get() else { return };
        let line = Line { time: time(wall_ms), event, who, what, result };
        let Ok(text) = serde_json::to_string(&line) else { return };
        if writer.try_send(Message::Line(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds a line about a refused CONNECT, or counts it.
    pub fn refused_login(&self, refused: &RefusedLogin<'_>, wall_ms: u64) {
        if self.writer.get().is_none() || !self.refusals().admits((wall_ms / 1000) as u32) {
            return;
        }
        let RefusedLogin { client_id, user, origin, server, reason } = refused;
        let who = json!({
            "address": origin.address.map(|address| address.to_string()),
            "client_id": excerpt(client_id),
            "user": user.map(excerpt),
            "certified": origin.certified.as_deref(),
        });
        let what = server.map_or(Value::Null, |server| json!({ "server": server }));
        self.record(wall_ms, "login", who, what, &format!("refused: {reason}"));
    }

    /// Says how many refused logins had no line. From time to time.
    pub fn note_left_out(&self, wall_ms: u64) {
        if self.writer.get().is_none() {
            return;
        }
        let left_out = self.refusals().take_unlogged();
        if left_out > 0 {
            let result = "refused; they are too many to name each";
            self.record(wall_ms, "logins", Value::Null, json!({ "count": left_out }), result);
        }
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, LogRate> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lines were lost since this was last asked.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }

    /// The file may have been renamed: what follows goes into a new one of that name.
    pub fn reopen(&self) {
        if let Some(writer) = self.writer.get() {
            // If there is no room, those that wait go into the old one, and so does this.
            let _ = writer.try_send(Message::Reopen);
        }
    }

    /// Waits until everything is written, but not for long.
    pub fn flush(&self) {
        let Some(writer) = self.writer.get() else { return };
        let (done, written) = crossbeam::channel::bounded(1);
        if writer.send_timeout(Message::Flush(done), LAST_WORDS_MAX).is_ok() {
            let _ = written.recv_timeout(LAST_WORDS_MAX);
        }
    }
}

fn time(wall_ms: u64) -> String {
    let at = i64::try_from(wall_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| format!("{at:.3}"))
}

struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    dropped: Arc<AtomicU64>,
    /// The last line could not be written, which was logged.
    fails: bool,
}

impl Writer {
    fn new(AuditFile { path, file }: AuditFile, dropped: Arc<AtomicU64>) -> Self {
        Self { path, file: BufWriter::new(file), dropped, fails: false }
    }

    fn run(&mut self, lines: &Receiver<Message>) {
        while let Ok(message) = lines.recv() {
            match message {
                Message::Line(line) => self.write(&line, lines.is_empty()),
                Message::Reopen => self.reopen(),
                Message::Flush(done) => {
                    self.note(|file| file.flush());
                    // Who gave up waiting needs no answer.
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, line: &str, is_last: bool) {
        self.note(|file| {
            writeln!(file, "{line}")?;
            if is_last { file.flush() } else { Ok(()) }
        });
    }

    fn note(&mut self, act: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        match act(&mut self.file) {
            Ok(()) => self.fails = false,
            Err(error) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::error!(%error, path = %self.path.display(), "the audit log cannot be written");
                }
            }
        }
    }

    fn reopen(&mut self) {
        self.note(|file| file.flush());
        match open(&self.path) {
            Ok(file) => self.file = BufWriter::new(file),
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "the audit log cannot be opened again: the old one is kept");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(path: &Path) -> Audit {
        let audit = Audit::default();
        audit.begin(AuditFile::open(path).unwrap()).unwrap();
        audit
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_says_when_who_what_and_what_became_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let audit = begun(&path);
        audit.record(1_700_000_000_123, "drain", json!({ "operator": "n\n1" }), json!({ "node": "n2" }), "proposed");
        audit.flush();
        let renamed = directory.path().join("audit.log.1");
        std::fs::rename(&path, &renamed).unwrap();
        audit.reopen();
        audit.record(0, "reload", Value::Null, Value::Null, "applied");
        audit.flush();
        assert_eq!(
            std::fs::read_to_string(&renamed).unwrap(),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"event\":\"drain\",\"who\":{\"operator\":\"n\\n1\"},\
             \"what\":{\"node\":\"n2\"},\"result\":\"proposed\"}\n"
        );
        assert_eq!(lines(&path)[0]["event"], "reload");
        drop(audit);
        begun(&path).flush();
        assert_eq!(lines(&path).len(), 1, "what is there stays");
    }

    #[test]
    fn refused_logins_have_some_lines_a_second_and_the_rest_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let audit = begun(&path);
        let refused = RefusedLogin {
            client_id: "meter",
            user: Some("eve"),
            origin: &Origin::default(),
            server: None,
            reason: "banned",
        };
        for _ in 0..100 {
            audit.refused_login(&refused, 5_000);
        }
        audit.note_left_out(6_000);
        audit.note_left_out(7_000);
        audit.flush();
        let lines = lines(&path);
        assert_eq!(lines.len(), 21);
        assert_eq!(lines[0]["who"]["user"], "eve");
        assert_eq!(lines[20]["what"]["count"], 80);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let audit = Audit::default();
        let (writer, lines) = crossbeam::channel::bounded(2);
        audit.writer.set(writer).unwrap();
        for _ in 0..5 {
            audit.record(0, "reload", Value::Null, Value::Null, "applied");
        }
        assert_eq!((lines.len(), audit.take_dropped(), audit.take_dropped()), (2, 3, 0));
    }

    #[test]
    fn without_a_file_nothing_is_recorded() {
        let audit = Audit::default();
        audit.record(0, "reload", Value::Null, Value::Null, "applied");
        audit.reopen();
        audit.flush();
        assert_eq!(audit.take_dropped(), 0);
        assert!(AuditFile::open(Path::new("/dev/null/audit.log")).is_err());
    }
}
