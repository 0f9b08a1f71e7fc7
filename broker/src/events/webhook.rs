//! The server that is told: one request at a time, tried again until it is taken or too old.
//!
//! A thread of its own sends what waits, in batches. While the server cannot be told, one try after each pause is all that it sees, so
//! there is no need of a breaker beside that; what comes meanwhile waits, within its bounds. A batch keeps its number when it is tried
//! again, by which a receiver knows one whose answer got lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::RETRY_AFTER;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::BeginError;
use super::signature::Signer;
use super::waiting::{Batch, Waiting};
use crate::clock::Clock;
use crate::config::{HttpUrl, WebhookConfig};
use crate::http_client::{HttpAnswer, HttpClient, HttpClientOptions, HttpError};
use crate::metrics::{EventDrop, EventMetrics, WebhookOutcome};

/// What a receiver has to say is not looked at.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The first pause before another try.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Time for what waits when the process ends.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// The queue, and the thread behind it. The thread ends with it.
#[derive(Debug)]
pub(super) struct Webhook {
    common: Arc<Common>,
    stop: Mutex<Option<Stop>>,
}

#[derive(Debug)]
struct Stop {
    tell: oneshot::Sender<()>,
    ended: crossbeam::channel::Receiver<()>,
}

#[derive(Debug)]
struct Common {
    waiting: Mutex<Waiting>,
    work: Notify,
    metrics: EventMetrics,
}

impl Common {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Webhook {
    /// Starts the thread; `None` if there is no server to tell.
    pub(super) fn start(node: &str, config: &WebhookConfig, metrics: EventMetrics) -> Result<Option<Self>, BeginError> {
        let Some(url) = config.url.clone() else {
            return Ok(None);
        };
        if url.is_exposed() {
            tracing::warn!(%url, "what is said to the webhook's server is not encrypted on its way; use https");
        }
        let options = HttpClientOptions {
            ca_file: config.ca_file.clone(),
            timeout: Duration::from_millis(config.timeout_milliseconds.get().into()),
            body_bytes_max: ANSWER_BYTES_MAX,
            ..HttpClientOptions::default()
        };
        let (events_max, bytes_max) = (config.queue_events_max.get() as usize, config.queue_bytes_max.get() as usize);
        let waiting = Mutex::new(Waiting::new(events_max, bytes_max));
        let common = Arc::new(Common { waiting, work: Notify::new(), metrics });
        let mut sender = Sender {
            common: Arc::clone(&common),
            client: HttpClient::new(&options)?,
            url,
            signer: Signer::new(&config.key().map_err(BeginError::Key)?),
            node: serde_json::Value::from(node).to_string(),
            batch_events_max: config.batch_events_max.get() as usize,
            linger: Duration::from_millis(config.linger_milliseconds.into()),
            pause_max: Duration::from_secs(config.retry_seconds_max.get().into()),
            give_up: Duration::from_secs(config.give_up_seconds.get().into()),
            under_way: None,
            clock: Clock::real(),
            is_failing: false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = oneshot::channel();
        let (end, ended) = crossbeam::channel::bounded(1);
        std::thread::Builder::new().name("webhook".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = sender.run() => {}
                    // An error means that whoever would stop it is gone.
                    _ = told => {}
                }
                // What is left is counted by what comes behind.
                let _ = tokio::time::timeout(LAST_WORDS_MAX, sender.last_words()).await;
                sender.leave_out_the_rest();
            });
            runtime.shutdown_background();
            let _ = end.send(());
        })?;
        Ok(Some(Self { common, stop: Mutex::new(Some(Stop { tell, ended })) }))
    }

    /// Takes an event in, if there is room for it.
    pub(super) fn offer(&self, event: String) {
        let taken = {
            let mut waiting = self.common.waiting();
            let taken = waiting.push(event);
            self.common.metrics.waiting(waiting.len(), waiting.bytes());
            taken
        };
        match taken {
            Ok(()) => self.common.work.notify_one(),
            Err(reason) => self.common.metrics.dropped(reason, 1),
        }
    }

    /// Gives what waits its last chance, and returns when that is over.
    pub(super) fn finish(&self) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Stop { tell, ended }) = stop {
            let _ = tell.send(());
            if ended.recv_timeout(LAST_WORDS_MAX + Duration::from_secs(1)).is_err() {
                tracing::warn!("the webhook's thread does not end");
            }
        }
    }
}

/// A request, until it is taken.
#[derive(Debug)]
struct Request {
    id: String,
    body: Bytes,
    events: u64,
    /// How many it says were left out before it.
    left_out: u64,
}

/// What came of a try.
#[derive(Debug)]
enum Tried {
    Taken,
    Refused(String),
    NotNow(String, Option<Duration>),
}

#[derive(Debug)]
struct Sender {
    common: Arc<Common>,
    client: HttpClient,
    url: HttpUrl,
    signer: Signer,
    /// As JSON.
    node: String,
    batch_events_max: usize,
    linger: Duration,
    pause_max: Duration,
    give_up: Duration,
    /// Kept here, so that it gets its last chance when the process ends.
    under_way: Option<Request>,
    clock: Clock,
    /// The last try failed, which was logged.
    is_failing: bool,
}

impl Sender {
    async fn run(&mut self) {
        loop {
            self.await_batch().await;
            self.deliver().await;
        }
    }

    /// Waits until there is something to send: a full batch, or as much as comes within the time.
    async fn await_batch(&mut self) {
        while self.common.waiting().len() == 0 {
            self.common.work.notified().await;
        }
        let common = Arc::clone(&self.common);
        let full = async {
            while common.waiting().len() < self.batch_events_max {
                common.work.notified().await;
            }
        };
        // Too few are a batch as well, when the time is over.
        let _ = tokio::time::timeout(self.linger, full).await;
        self.take_batch();
    }

    fn take_batch(&mut self) {
        let batch = {
            let mut waiting = self.common.waiting();
            let batch = waiting.take(self.batch_events_max);
            self.common.metrics.waiting(waiting.len(), waiting.bytes());
            batch
        };
        self.under_way = batch.map(|batch| self.request(batch));
    }

    fn request(&self, Batch { events, left_out }: Batch) -> Request {
        let (node, count) = (&self.node, events.len() as u64);
        let body = format!("{{\"node\":{node},\"left_out\":{left_out},\"events\":[{}]}}", events.join(","));
        Request { id: format!("evt_{:032x}", rand::random::<u128>()), body: body.into(), events: count, left_out }
    }

    /// Tries the request under way until it is taken, refused or too old.
    async fn deliver(&mut self) {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE.min(self.pause_max);
        loop {
            let (wanted, why) = match self.attempt().await {
                Some(Tried::NotNow(why, wanted)) => (wanted, why),
                _ => return,
            };
            if begun.elapsed() >= self.give_up {
                tracing::error!(url = %self.url, error = why, "events are left out, since the webhook's server takes none");
                return self.leave_out(EventDrop::GaveUp);
            }
            let wanted = wanted.map_or(pause, |wanted| wanted.clamp(pause, self.pause_max));
            // Several nodes do not come at the same moment.
            tokio::time::sleep(wanted.mul_f64(rand::random_range(0.8..1.2))).await;
            pause = (pause * 2).min(self.pause_max);
        }
    }

    /// Tries it once. `None`: there is none.
    async fn attempt(&mut self) -> Option<Tried> {
        let tried = {
            let Request { id, body, .. } = self.under_way.as_ref()?;
            match self.signer.headers(id, self.clock.wall_ms() / 1000, body) {
                Err(error) => Tried::Refused(error.to_string()),
                Ok(headers) => {
                    let begun = Instant::now();
                    let answer = self.client.post_json_with(&self.url, body.clone(), &headers).await;
                    let (outcome, tried) = judge(answer);
                    self.common.metrics.requested(outcome, begun.elapsed());
                    tried
                }
            }
        };
        match &tried {
            Tried::Taken => {
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(url = %self.url, "the webhook's server takes events again");
                }
                let events = self.under_way.take().map_or(0, |request| request.events);
                self.common.metrics.delivered(events);
            }
            Tried::Refused(why) => {
                tracing::error!(url = %self.url, error = why, "the webhook's server refuses events, which are left out");
                self.leave_out(EventDrop::Refused);
            }
            Tried::NotNow(why, _) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(url = %self.url, error = why, "the webhook's server takes no events; they wait");
                }
            }
        }
        Some(tried)
    }

    /// The events under way are not told, nor how many were left out before them: that is for the next request to say.
    fn leave_out(&mut self, reason: EventDrop) {
        let (events, before) = self.under_way.take().map_or((0, 0), |request| (request.events, request.left_out));
        self.common.metrics.dropped(reason, events);
        self.common.waiting().note_left_out(events + before);
    }

    /// The process ends: each batch is tried once more, until one is not taken.
    async fn last_words(&mut self) {
        loop {
            if self.under_way.is_none() {
                self.take_batch();
            }
            match self.attempt().await {
                Some(Tried::Taken | Tried::Refused(_)) => {}
                Some(Tried::NotNow(..)) | None => return,
            }
        }
    }

    fn leave_out_the_rest(&mut self) {
        self.leave_out(EventDrop::Ended);
        self.batch_events_max = usize::MAX;
        self.take_batch();
        self.leave_out(EventDrop::Ended);
    }
}

fn judge(answer: Result<HttpAnswer, HttpError>) -> (WebhookOutcome, Tried) {
    let answer = match answer {
        Ok(answer) => answer,
        // It said something, and what it said is of no interest.
        Err(HttpError::TooLarge(_)) => return (WebhookOutcome::Taken, Tried::Taken),
        Err(error @ HttpError::Timeout(_)) => {
            return (WebhookOutcome::Timeout, Tried::NotNow(error.to_string(), None));
        }
        Err(error) => return (WebhookOutcome::Unreachable, Tried::NotNow(error.to_string(), None)),
    };
    let text = || format!("status {}", answer.status);
    let is_for_now =
        matches!(answer.status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    match answer.status {
        status if status.is_success() => (WebhookOutcome::Taken, Tried::Taken),
        status if is_for_now || status.is_server_error() => {
            let seconds = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            (WebhookOutcome::NotNow, Tried::NotNow(text(), seconds.map(Duration::from_secs)))
        }
        // Whoever changes the secret at one end has the other to come to; what is signed later has the new one.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (WebhookOutcome::Refused, Tried::NotNow(text(), None)),
        _ => (WebhookOutcome::Refused, Tried::Refused(text())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A request as it came: its headers, and its body.
    type Seen = (String, serde_json::Value);

    fn read(stream: &mut TcpStream) -> Seen {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).expect("a request");
            assert!(count > 0, "the request ended early: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..count]);
            let whole = String::from_utf8_lossy(&text).into_owned();
            let Some((head, body)) = whole.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() == length.parse::<usize>().expect("a number") {
                return (head.to_owned(), serde_json::from_str(body).expect("JSON"));
            }
        }
    }

    /// A server that answers one request after the other with the next of `answers`, and tells what it saw.
    fn server(answers: &'static [&'static str]) -> (String, mpsc::Receiver<Seen>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("bound"));
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                let _ = tell.send(read(&mut stream));
                let _ = write!(stream, "HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            }
        });
        (url, told)
    }

    fn webhook(url: &str, more: &str) -> Webhook {
        let toml = format!("url = \"{url}\"\nsecret = \"0123456789abcdef\"\n{more}");
        let config: WebhookConfig = toml::from_str(&toml).expect("settings");
        Webhook::start("n1", &config, EventMetrics::default()).expect("a thread").expect("a URL")
    }

    fn header<'a>(seen: &'a Seen, name: &str) -> &'a str {
        let line = seen.0.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.expect("the header")
    }

    #[test]
    fn what_gathers_goes_in_one_signed_request() {
        let (url, told) = server(&["200 OK"]);
        let webhook = webhook(&url, "linger_milliseconds = 10000\nbatch_events_max = 2");
        webhook.offer(String::from("{\"x\":1}"));
        webhook.offer(String::from("{\"x\":2}"));
        let seen = told.recv_timeout(DEADLINE).expect("a request");
        assert_eq!(seen.1, serde_json::json!({"node": "n1", "left_out": 0, "events": [{"x": 1}, {"x": 2}]}));
        let (id, seconds) = (header(&seen, "webhook-id"), header(&seen, "webhook-timestamp"));
        let body = "{\"node\":\"n1\",\"left_out\":0,\"events\":[{\"x\":1},{\"x\":2}]}";
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"0123456789abcdef");
        let signed = ring::hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
        use base64::Engine as _;
        let expected = format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(signed));
        assert_eq!(header(&seen, "webhook-signature"), expected);
    }

    #[test]
    fn a_request_that_is_not_taken_comes_again_under_its_number_and_before_all_others() {
        let (url, told) = server(&["503 Service Unavailable", "200 OK", "200 OK"]);
        let webhook = webhook(&url, "");
        webhook.offer(String::from("1"));
        let first = told.recv_timeout(DEADLINE).expect("a request");
        webhook.offer(String::from("2"));
        let again = told.recv_timeout(DEADLINE).expect("the same");
        assert_eq!(first.1, again.1);
        assert_eq!(header(&first, "webhook-id"), header(&again, "webhook-id"));
        let other = told.recv_timeout(DEADLINE).expect("another");
        assert_eq!(other.1["events"], serde_json::json!([2]));
        assert_ne!(header(&first, "webhook-id"), header(&other, "webhook-id"));
    }

    /// The secret was changed at the other end, and here it needs a restart, or the other way round.
    #[test]
    fn a_request_whose_signature_is_not_believed_comes_again() {
        let (url, told) = server(&["401 Unauthorized", "403 Forbidden", "200 OK"]);
        let webhook = webhook(&url, "");
        webhook.offer(String::from("1"));
        let tries: Vec<_> = (0..3).map(|_| told.recv_timeout(DEADLINE).expect("a request")).collect();
        let ids: Vec<_> = tries.iter().map(|seen| header(seen, "webhook-id")).collect();
        assert_eq!(ids, [ids[0]; 3]);
        assert!(tries.iter().all(|seen| seen.1["events"] == serde_json::json!([1])));
    }

    #[test]
    fn a_request_that_is_refused_is_left_out_and_the_next_one_says_so() {
        let (url, told) = server(&["400 Bad Request", "200 OK"]);
        let webhook = webhook(&url, "");
        webhook.offer(String::from("1"));
        told.recv_timeout(DEADLINE).expect("a request");
        webhook.offer(String::from("2"));
        let next = told.recv_timeout(DEADLINE).expect("another");
        assert_eq!(next.1, serde_json::json!({"node": "n1", "left_out": 1, "events": [2]}));
    }

    #[test]
    fn what_a_refused_request_said_to_be_left_out_the_next_one_says_too() {
        let (url, told) = server(&["400 Bad Request", "400 Bad Request", "200 OK", "200 OK"]);
        let webhook = webhook(&url, "batch_events_max = 1");
        let left_out: Vec<_> = (1..=4)
            .map(|number| {
                webhook.offer(number.to_string());
                told.recv_timeout(DEADLINE).expect("a request").1["left_out"].clone()
            })
            .collect();
        assert_eq!(left_out, [0, 1, 2, 0]);
    }

    #[test]
    fn a_server_that_is_away_costs_no_more_than_the_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        drop(listener);
        let webhook = webhook(&url, "queue_events_max = 5\nbatch_events_max = 1");
        for _ in 0..1000 {
            webhook.offer(String::from("1"));
        }
        assert!(webhook.common.waiting().len() <= 5);
        webhook.finish();
        assert_eq!(webhook.common.waiting().len(), 0, "given up when the process ends");
    }

    #[test]
    fn what_waits_when_the_process_ends_is_told() {
        let (url, told) = server(&["200 OK"]);
        let webhook = webhook(&url, "linger_milliseconds = 10000");
        webhook.offer(String::from("1"));
        webhook.finish();
        assert_eq!(told.recv_timeout(DEADLINE).expect("a request").1["events"], serde_json::json!([1]));
    }
}
