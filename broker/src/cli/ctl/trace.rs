//! `kentongan ctl trace`: what goes on, line by line as it comes, until its time is over or somebody has seen enough.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{Asker, cell, plain, query};
use crate::config::HttpUrl;
use crate::http_client::HttpStream;

/// A line that is longer is none of a trace: its payload is cut, and a topic has 64 KiB.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// How much longer than its time a trace may take to end: nodes are asked for the last of it, and may be slow.
const GRACE: Duration = Duration::from_secs(30);

/// How much sooner than by the clock of this machine the time of a trace may be over.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

/// What a line says first, in this order.
const FIRST: [&str; 4] = ["ts", "node", "event", "clientid"];

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub(super) struct TraceArgs {
    /// The client of this Client Identifier: its packets, and what becomes of it.
    #[arg(long, value_name = "ID", group = "target")]
    client: Option<String>,
    /// What is published to topics that this Topic Filter matches, and who gets it.
    #[arg(long, value_name = "FILTER", group = "target")]
    topic: Option<String>,
    /// For how long. It ends earlier with Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Show so many bytes of each payload.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    payload: u32,
}

impl Asker {
    /// Prints a trace. Nothing is left to print when it returns.
    ///
    /// # Errors
    /// There is none, or it ended although its time was not over and nobody here ended it.
    pub(super) fn trace(&self, arguments: &TraceArgs) -> anyhow::Result<String> {
        let TraceArgs { client, topic, seconds, payload } = arguments;
        let bounds = [Some(seconds.to_string()), Some(payload.to_string())];
        let asked = [("client", client), ("topic", topic), ("seconds", &bounds[0]), ("payload", &bounds[1])];
        let url = self.url(&format!("/trace?{}", query(&asked)))?;
        let lasts = Duration::from_secs(u64::from(*seconds)) + GRACE;
        self.runtime.block_on(async {
            let mut interrupted = signal(SignalKind::interrupt())?;
            let mut terminated = signal(SignalKind::terminate())?;
            tokio::select! {
                ended = self.print_trace(&url, Duration::from_secs(u64::from(*seconds))) => ended?,
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
                () = tokio::time::sleep(lasts) => bail!("{} does not end the trace, although its time is over", self.base),
            }
            Ok(String::new())
        })
    }

    async fn print_trace(&self, url: &HttpUrl, lasts: Duration) -> anyhow::Result<()> {
        let asked = Instant::now();
        let opened = self.client.open(url).await.with_context(|| self.unreached())?;
        if !opened.status.is_success() {
            let status = opened.status;
            let body = opened.rest().await?;
            return Err(self.refusal(status, &serde_json::from_slice(&body).unwrap_or_default()));
        }
        let mut lines = Lines { stream: opened, waiting: Vec::new() };
        while let Some(some) = lines.next().await? {
            let (mut text, mut ended) = (String::new(), None);
            for line in some.lines().filter(|line| !line.is_empty()) {
                let read: Value = serde_json::from_str(line).context("the answer has a line that is no JSON")?;
                match self.is_json {
                    true => text += line,
                    false => text += &said(&read),
                }
                text.push('\n');
                if read["event"] == "trace.ended" {
                    ended = Some(cell(&read["detail"]));
                }
            }
            // Whoever looks sees it now.
            let mut out = io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // Its reader has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.context("cannot print")?,
            }
            if let Some(why) = ended {
                bail!("the trace was ended: {why}");
            }
        }
        // The node's time began later than ours; a second for clocks that do not run alike.
        ensure!(asked.elapsed() + CLOCKS_DIFFER >= lasts, "{} ended the trace before its time was over", self.base);
        Ok(())
    }
}

/// A body that is cut where its lines end.
struct Lines {
    stream: HttpStream,
    /// The beginning of a line whose end has not come yet.
    waiting: Vec<u8>,
}

impl Lines {
    /// Whole lines; `None`: there are no more.
    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let Some(more) = self.stream.next().await? else {
                ensure!(self.waiting.is_empty(), "the trace broke off");
                return Ok(None);
            };
            if let Some(lines) = cut(&mut self.waiting, &more)? {
                return Ok(Some(lines));
            }
        }
    }
}

/// Puts `more` behind what waits, and takes the lines that are whole by now.
fn cut(waiting: &mut Vec<u8>, more: &[u8]) -> anyhow::Result<Option<String>> {
    let end = more.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let (whole, rest) = more.split_at(end);
    let lines = (end > 0).then(|| [std::mem::take(waiting).as_slice(), whole].concat());
    ensure!(waiting.len() + rest.len() <= LINE_BYTES_MAX, "the answer has a line of more than {LINE_BYTES_MAX} bytes");
    waiting.extend_from_slice(rest);
    lines.map(String::from_utf8).transpose().context("the answer is no text")
}

/// A line as people read it: when, where, what, who, and what else there is to say.
fn said(line: &Value) -> String {
    let time = line["ts"].as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"));
    let first = FIRST[1..].iter().filter(|name| !line[**name].is_null()).map(|name| cell(&line[*name]));
    let mut words: Vec<String> = std::iter::once(time).chain(first).collect();
    let rest = line.as_object().into_iter().flatten();
    let rest = rest.filter(|(name, value)| !FIRST.contains(&name.as_str()) && !value.is_null());
    // Whether a map keeps the order of the line depends on how the program is built.
    let mut rest: Vec<_> = rest.map(|(name, value)| format!("{}={}", plain(name), cell(value))).collect();
    rest.sort_unstable();
    words.extend(rest);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_cut_where_they_end_however_they_come() {
        let mut waiting = Vec::new();
        let mut come = |more: &str| cut(&mut waiting, more.as_bytes()).expect("text");
        assert_eq!(come("{\"a\""), None);
        assert_eq!(come(":1}\n{\"b\":2}\n{"), Some("{\"a\":1}\n{\"b\":2}\n".to_owned()));
        assert_eq!(come("}\n"), Some("{}\n".to_owned()));
        assert_eq!(come(""), None);
        assert!(cut(&mut vec![b'x'; LINE_BYTES_MAX], b"x").is_err(), "memory is bounded");
    }

    #[test]
    fn a_line_says_when_where_what_who_and_the_rest() {
        let line = json!({
            "ts": 1_700_000_000_123_i64, "node": "n1", "event": "publish.received", "clientid": "a\u{1b}", "topic": "t/1", "qos": 1,
            "retain": false, "reason": null,
        });
        assert_eq!(said(&line), "2023-11-14T22:13:20.123Z n1 publish.received a\u{fffd} qos=1 retain=no topic=t/1");
        let line = json!({ "event": "trace.left_out", "node": "n2", "lines": 7 });
        assert_eq!(said(&line), "- n2 trace.left_out lines=7");
    }
}
