//! Requests to the server, on a thread of their own: so many at a time, fairly, and none while the breaker is open.
//!
//! Nobody waits here for an answer: whoever asks is told by a call, from this thread. What waits for its turn waits in a
//! [`FairQueue`]; what nobody awaits any more when its turn comes is not asked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::super::fair_queue::{FairAddress, FairQueue, Waits};
use super::breaker::{Breaker, BreakerState, Permission};
use super::contract::{self, Decision};
use crate::clock::Clock;
use crate::config::{HttpAuthConfig, HttpUrl};
use crate::http_client::{HttpAnswer, HttpClient, HttpError};
use crate::metrics::{HttpAuthMetrics, HttpAuthNotAsked, HttpAuthOutcome};
use crate::router::log_rate::LogRate;

/// Of what is asked, in one place of the queue: several times what is usual.
const PLACE_BYTES: usize = 1024;

/// Why there is no decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// Too much waits for the server.
    Busy,
    /// It was not asked, since it did not answer before; or it did not answer now, or nothing that was understood.
    Unavailable,
}

/// Is told what came of it.
pub type Tell = Box<dyn FnOnce(Result<Decision, Undecided>) + Send>;

/// A request that waits.
pub struct Job {
    /// Made with this.
    pub client: HttpClient,
    /// To here.
    pub url: HttpUrl,
    /// With this.
    pub json: Bytes,
    /// Where the client is that it is about.
    pub address: FairAddress,
    /// Who it is, or says to be.
    pub user: Box<str>,
    /// Nobody waits for it any more once this is gone.
    pub awaited: Weak<()>,
    /// By whom the answer is awaited.
    pub tell: Tell,
}

/// Without what is asked.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Waits for Job {
    fn address(&self) -> FairAddress {
        self.address
    }

    fn user(&self) -> &str {
        &self.user
    }

    /// One for every kilobyte that is begun: nobody has logged in yet who makes it wait here.
    fn places(&self) -> usize {
        self.json.len().div_ceil(PLACE_BYTES).max(1)
    }
}

#[derive(Debug)]
struct Common {
    queue: Mutex<FairQueue<Job>>,
    work: Notify,
    breaker: Mutex<Breaker>,
    failure_lines: Mutex<LogRate>,
    clock: Clock,
    metrics: HttpAuthMetrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread, and the queue before it. It ends with it.
#[derive(Debug)]
pub struct Asker {
    common: Arc<Common>,
    /// Gone, the thread ends.
    _running: oneshot::Sender<()>,
}

impl Asker {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gave none.
    pub fn start(config: &HttpAuthConfig, metrics: HttpAuthMetrics) -> std::io::Result<Self> {
        let pause_ms = u64::from(config.breaker_seconds.get()) * 1000;
        let common = Arc::new(Common {
            queue: Mutex::new(FairQueue::new(config.queue_max.get() as usize)),
            work: Notify::new(),
            breaker: Mutex::new(Breaker::new(config.breaker_failures, pause_ms)),
            failure_lines: Mutex::default(),
            clock: Clock::real(),
            metrics,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (running, is_over) = oneshot::channel::<()>();
        let (asking, requests_max) = (Arc::clone(&common), config.requests_max.get() as usize);
        std::thread::Builder::new().name("auth-http".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = ask_in_turn(asking, requests_max) => {}
                    _ = is_over => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { common, _running: running })
    }

    /// Whether it makes sense to ask now.
    #[must_use]
    pub fn is_available(&self) -> bool {
        let is_available = lock(&self.common.breaker).would_admit(self.common.clock.now_ms());
        if !is_available {
            self.common.metrics.not_asked(HttpAuthNotAsked::BreakerOpen);
        }
        is_available
    }

    /// Whether much waits already, so that what can wait should.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        lock(&self.common.queue).is_crowded()
    }

    /// Asks when it is its turn. Too much waiting, it is told at once, or others that give way for it.
    pub fn submit(&self, job: Job) {
        let give_way = {
            let mut queue = lock(&self.common.queue);
            let give_way = queue.push(job);
            self.common.metrics.waiting(queue.count());
            give_way
        };
        self.common.work.notify_one();
        for job in give_way {
            self.common.metrics.not_asked(HttpAuthNotAsked::Busy);
            (job.tell)(Err(Undecided::Busy));
        }
    }

    /// The settings were read again: the server is tried at once.
    pub fn close_breaker(&self) {
        self.common.change_breaker("the settings were read again", Breaker::close);
    }

    /// The decision was known.
    pub fn count_remembered(&self) {
        self.common.metrics.not_asked(HttpAuthNotAsked::Remembered);
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &HttpAuthMetrics {
        &self.common.metrics
    }
}

async fn ask_in_turn(common: Arc<Common>, requests_max: usize) {
    let slots = Arc::new(Semaphore::new(requests_max));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return; // It is never closed.
        };
        let job = common.next().await;
        if job.awaited.strong_count() == 0 {
            common.metrics.not_asked(HttpAuthNotAsked::Gone);
            continue;
        }
        let permission = common.change_breaker("it is tried again", |breaker| breaker.admit(common.clock.now_ms()));
        let Some(permission) = permission else {
            common.metrics.not_asked(HttpAuthNotAsked::BreakerOpen);
            (job.tell)(Err(Undecided::Unavailable));
            continue;
        };
        let common = Arc::clone(&common);
        tokio::spawn(async move {
            common.ask(job, permission).await;
            drop(slot);
        });
    }
}

impl Common {
    async fn next(&self) -> Job {
        loop {
            let job = {
                let mut queue = lock(&self.queue);
                let job = queue.pop();
                self.metrics.waiting(queue.count());
                job
            };
            match job {
                Some(job) => return job,
                None => self.work.notified().await,
            }
        }
    }

    async fn ask(&self, job: Job, permission: Permission) {
        let Job { client, url, json, tell, .. } = job;
        self.metrics.begun();
        let begun = self.clock.elapsed();
        let answer = client.post_json(&url, json).await;
        let took = self.clock.elapsed().saturating_sub(begun);
        let heard = Heard::of(answer);
        self.metrics.ended(heard.outcome, took);
        self.note_outcome(&url, permission, &heard, took);
        tell(heard.decision.ok_or(Undecided::Unavailable));
    }

    fn note_outcome(&self, url: &HttpUrl, permission: Permission, heard: &Heard, took: Duration) {
        let now_ms = self.clock.now_ms();
        self.change_breaker(&heard.text, |breaker| breaker.on_outcome(permission, heard.was_there, now_ms));
        if heard.decision.is_none() && lock(&self.failure_lines).admits((now_ms / 1000) as u32) {
            let milliseconds = took.as_millis() as u64;
            tracing::warn!(%url, error = heard.text, milliseconds, "the authentication server decided nothing");
        }
    }

    /// Does something with the breaker, and says so once if it changes by that.
    fn change_breaker<T>(&self, reason: &str, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = lock(&self.breaker);
        let before = breaker.state();
        let done = act(&mut breaker);
        let after = breaker.state();
        if before != after {
            self.metrics.breaker(after);
            match after {
                BreakerState::Open => tracing::error!(reason, "the authentication server is not asked for a while"),
                BreakerState::Probing => tracing::info!("the authentication server is tried again"),
                BreakerState::Closed => tracing::info!("the authentication server is asked again"),
            }
        }
        done
    }
}

/// What an answer, or none, amounts to.
struct Heard {
    decision: Option<Decision>,
    outcome: HttpAuthOutcome,
    /// For the log, where nothing was decided.
    text: String,
    was_there: bool,
}

impl Heard {
    fn of(answer: Result<HttpAnswer, HttpError>) -> Self {
        let none = |outcome, text, was_there| Self { decision: None, outcome, text, was_there };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error @ HttpError::Timeout(_)) => return none(HttpAuthOutcome::Timeout, error.to_string(), false),
            Err(error @ HttpError::TooLarge(_)) => return none(HttpAuthOutcome::Invalid, error.to_string(), true),
            Err(error) => return none(HttpAuthOutcome::Unreachable, error.to_string(), false),
        };
        if answer.status != StatusCode::OK {
            let is_overload = matches!(answer.status.as_u16(), 429 | 502..=504);
            return none(HttpAuthOutcome::Status, format!("status {}", answer.status), !is_overload);
        }
        match contract::parse(&answer.body) {
            Ok(decision) => {
                let outcome = match decision {
                    Decision::Allow(_) => HttpAuthOutcome::Allow,
                    Decision::Deny => HttpAuthOutcome::Deny,
                    Decision::Ignore => HttpAuthOutcome::Ignore,
                };
                Self { decision: Some(decision), outcome, text: String::new(), was_there: true }
            }
            Err(error) => none(HttpAuthOutcome::Invalid, error, true),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;
    use crate::http_client::HttpClientOptions;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A server that answers one connection after the other, each with what `answer` gives for its number.
    fn server(answer: impl Fn(usize) -> &'static str + Send + 'static) -> HttpUrl {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a URL");
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                let mut stream = stream;
                let _ = stream.read(&mut [0; 4096]);
                let body = answer(number);
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length";
                let _ = write!(stream, "{head}: {}\r\n\r\n{body}", body.len());
            }
        });
        url
    }

    fn config() -> HttpAuthConfig {
        toml::from_str("breaker_failures = 2\nbreaker_seconds = 1\nrequests_max = 1\nqueue_max = 3").expect("settings")
    }

    type Told = mpsc::Receiver<(&'static str, Result<Decision, Undecided>)>;

    struct Scene {
        asker: Asker,
        client: HttpClient,
        awaited: Arc<()>,
        tell: mpsc::Sender<(&'static str, Result<Decision, Undecided>)>,
        told: Told,
    }

    impl Scene {
        fn new() -> Self {
            let options = HttpClientOptions { timeout: DEADLINE, ..HttpClientOptions::default() };
            let asker = Asker::start(&config(), HttpAuthMetrics::default()).expect("started");
            let (tell, told) = mpsc::channel();
            Self { asker, client: HttpClient::new(&options).expect("a client"), awaited: Arc::new(()), tell, told }
        }

        fn submit(&self, url: &HttpUrl, user: &'static str) {
            let tell = self.tell.clone();
            self.asker.submit(Job {
                client: self.client.clone(),
                url: url.clone(),
                json: Bytes::from_static(b"{}"),
                address: None,
                user: Box::from(user),
                awaited: Arc::downgrade(&self.awaited),
                tell: Box::new(move |answer| tell.send((user, answer)).expect("the test waits")),
            });
        }

        fn told(&self) -> (&'static str, Result<Decision, Undecided>) {
            self.told.recv_timeout(DEADLINE).expect("told")
        }
    }

    const DENY: &str = r#"{"result":"deny"}"#;

    #[test]
    fn a_server_that_is_not_there_is_left_alone_for_a_while() {
        let scene = Scene::new();
        let nobody = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            format!("http://{}/", listener.local_addr().expect("bound")).parse::<HttpUrl>().expect("a URL")
        };
        for _ in 0..2 {
            assert!(scene.asker.is_available());
            scene.submit(&nobody, "a");
            assert_eq!(scene.told(), ("a", Err(Undecided::Unavailable)));
        }
        assert!(!scene.asker.is_available());
        let url = server(|_| DENY);
        scene.submit(&url, "b");
        assert_eq!(scene.told(), ("b", Err(Undecided::Unavailable)), "not asked");
        let opened = std::time::Instant::now();
        while !scene.asker.is_available() {
            assert!(opened.elapsed() < DEADLINE, "it never opens again");
            std::thread::sleep(Duration::from_millis(5));
        }
        scene.submit(&url, "c");
        assert_eq!(scene.told(), ("c", Ok(Decision::Deny)), "the probe");
        scene.submit(&url, "d");
        assert_eq!(scene.told(), ("d", Ok(Decision::Deny)));
    }

    /// Abuse: [http-authentication]
    #[test]
    fn garbage_decides_nothing_and_locks_nobody_out() {
        let scene = Scene::new();
        let url = server(|number| if number < 5 { "garbage" } else { DENY });
        for _ in 0..5 {
            scene.submit(&url, "a");
            assert_eq!(scene.told(), ("a", Err(Undecided::Unavailable)));
            assert!(scene.asker.is_available());
        }
        scene.submit(&url, "b");
        assert_eq!(scene.told(), ("b", Ok(Decision::Deny)));
    }

    #[test]
    fn what_finds_no_room_is_told_so_and_what_nobody_awaits_is_not_asked() {
        let mut scene = Scene::new();
        let (begin, begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let url = server(move |_| {
            let _ = begin.send(());
            let _ = may_go.recv();
            DENY
        });
        scene.submit(&url, "asked");
        begun.recv_timeout(DEADLINE).expect("asked");
        for user in ["a", "a", "a"] {
            scene.submit(&url, user);
        }
        scene.submit(&url, "b");
        assert_eq!(scene.told(), ("a", Err(Undecided::Busy)), "who has most waiting gives way");
        scene.awaited = Arc::new(());
        scene.submit(&url, "c");
        assert_eq!(scene.told(), ("a", Err(Undecided::Busy)));
        drop(go);
        assert_eq!(scene.told(), ("asked", Ok(Decision::Deny)), "it was under way");
        assert_eq!(scene.told(), ("c", Ok(Decision::Deny)), "the others are gone");
    }
}
