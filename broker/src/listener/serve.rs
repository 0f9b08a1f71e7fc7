//! From settings to a running broker, and from a signal to its end.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::num::NonZeroU32;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, Instant};

use actix_rt::{Arbiter, System};
use anyhow::Context;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::accept::{Acceptor, Bound, bind, has_ipv6};
use super::supervised::Supervised;
use super::{ListenerContext, certificates};
use crate::api;
use crate::api::tokens::Tokens;
use crate::audit::AuditFile;
use crate::auth::{Authority, FetchedKeys};
use crate::config::{self, ApiConfig, Reload, Settings};
use crate::descriptors::{self, Descriptors};
use crate::ending::Ending;
use crate::groups::{self, Health};
use crate::http::{self, Readiness};
use crate::log_lines;
use crate::metrics::{CertificateUse, LoadAverages, Metrics, ReloadOutcome};
use crate::moving::mover;
use crate::operator::control::{Reloaded, Wanted};
use crate::router::keep_alive::Standstill;
use crate::router::log_rate::LogRate;
use crate::router::pace::RESUME_INTERVAL;
use crate::router::{ArbiterState, Changed, Event, Shared, Silence, sys};
use crate::service_manager::ServiceManager;
use crate::tls::{self, Endpoint, Watch};

/// The condition of readiness that this module answers for.
const SERVING: &str = "serving";

/// Likewise: the node holds a lease.
const LEASE: &str = "lease";

/// Likewise: its disk has room for new work.
const DISK: &str = "disk";

/// Likewise: clients may come, since the node is not drained.
const NEW_CLIENTS: &str = "new clients";

/// Likewise: each group in which it votes has a leader.
const LEADERS: &str = "leaders";

/// Likewise: it has what was committed while it was away.
const CAUGHT_UP: &str = "caught up";

/// Likewise: its arbiters take in what is asked of them.
const ARBITERS: &str = "arbiters";

/// How often readiness looks at these.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How often they are looked at while all is well: each look wakes the other threads.
const CALM_LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often the files of certificates are looked at. What changed there is used at the look after the one that saw it.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(2);

/// A broker that serves.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    /// Of the files that keys of tokens are in.
    key_watch: Watch,
    started: Arc<Settings>,
    last: Settings,
    metrics: Metrics,
    groups: groups::Running,
    stop_accepting: watch::Sender<bool>,
    http: Option<http::HttpServer>,
    api: Option<api::ApiServer>,
    arbiters: Vec<Arbiter>,
    readiness: Arc<Readiness>,
}

/// A listening socket's context, as it can be replaced for the connections to come.
#[derive(Debug)]
pub(super) struct Listener {
    name: config::ListenerName,
    pub(super) context: watch::Sender<Arc<ListenerContext>>,
    /// Of the files that its certificates are in.
    pub(super) watch: Watch,
    /// What the log has said of that a list in it has run out.
    pub(super) expired: Option<Weak<Endpoint>>,
}

/// Serves as `settings` say until SIGTERM or SIGINT; on SIGHUP they are read again by `reloading`.
///
/// # Errors
/// What kept it from starting, and what to do about it.
pub fn serve(settings: Settings, reloading: &dyn Reload, authority: Authority) -> anyhow::Result<()> {
    let descriptors = raise_descriptor_limit();
    descriptors::check(descriptors, number_of_arbiters(&settings))?;
    let stop = stop_on_signal()?;
    end_with_this_thread();
    let system = System::new();
    system.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Before the start, so that one that comes early does not end the process.
        let mut hangup = signal(SignalKind::hangup())?;
        let mut ignored = Ignored::listen()?;
        let mut broker = match Broker::start(settings, authority, descriptors, &stop) {
            Ok(broker) => broker,
            Err(_) if stop.load(Ordering::Relaxed) => {
                tracing::info!("stopped before it had started");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut supervised = Supervised::new(ServiceManager::of_environment());
        let mut wanted = broker.groups.operator().listen();
        let mut removed = false;
        let mut look = tokio::time::interval(CERTIFICATES_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    broker.look_at_certificates();
                    broker.look_at_keys();
                    continue;
                }
                () = supervised.step(&broker) => continue,
                () = is_removed(&broker.shared) => removed = true,
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
                _ = hangup.recv() => {
                    // What came of it is logged.
                    supervised.reload(|| drop(broker.reload(reloading, json!({ "signal": "SIGHUP" }))));
                    continue;
                }
                name = ignored.recv() => {
                    ignored.log(name, broker.shared.clock.wall_ms());
                    continue;
                }
                Some(wanted) = wanted.recv() => {
                    broker.obey(wanted, reloading);
                    continue;
                }
            }
            break;
        }
        supervised.stopping();
        broker.stop().await?;
        if removed { Err(Ending::Removed.into()) } else { Ok(()) }
    })
}

/// Signals that mosquitto and others have a use for, and that end a process which says nothing of them.
struct Ignored {
    user_1: Signal,
    user_2: Signal,
    lines: LogRate,
}

impl Ignored {
    fn listen() -> std::io::Result<Self> {
        let (user_1, user_2) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
        Ok(Self { user_1, user_2, lines: LogRate::default() })
    }

    /// The name of one that came.
    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.user_1.recv() => "SIGUSR1",
            _ = self.user_2.recv() => "SIGUSR2",
        }
    }

    fn log(&mut self, signal: &str, wall_ms: u64) {
        if self.lines.admits((wall_ms / 1000) as u32) {
            tracing::info!("{signal} means nothing here, and is ignored");
        }
    }
}

/// Fetches the keys of tokens that a server has, if there are any and nobody does.
fn fetch_keys(shared: &Shared) {
    let keys = shared.authority.fetched_keys();
    if let Some(fetching) = keys.as_ref().and_then(FetchedKeys::fetching) {
        actix_rt::spawn(fetching);
    }
}

/// Waits until this node is no member of its cluster any more.
async fn is_removed(shared: &Shared) {
    let mut look = tokio::time::interval(CALM_LOOK_INTERVAL);
    loop {
        look.tick().await;
        if shared.cluster.as_ref().is_some_and(|cluster| cluster.removed.load(Ordering::Acquire)) {
            return;
        }
    }
}

/// Becomes true when the process is told to stop: starting may wait for other nodes, on the thread that would hear of it.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let wait = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait))?;
    Ok(stop)
}

impl Broker {
    /// Starts everything and returns once clients can connect. Must run inside an actix system. A node of a cluster waits
    /// for the others until `stop` is true.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn start(
        settings: Settings,
        mut authority: Authority,
        descriptors: u64,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::install(settings.metrics.enabled);
        authority = authority.with_http_metrics(metrics.http_auth());
        authority.open(&settings.auth).context("users and rights")?;
        let settings = Arc::new(settings);
        let mut places = Vec::new();
        let mut listeners = Vec::new();
        for (index, config) in settings.listener.iter().enumerate() {
            if config.address.ip().is_some_and(|address| address.is_ipv6()) && !has_ipv6() && !is_asked_for(&settings) {
                continue;
            }
            let (bound, context) = bind(config, &settings)?;
            let context = certificates::start(&context, &settings, &metrics.tls())?;
            let name = settings.listener_name(index).expect("an index of that list");
            let (context, _) = watch::channel(context);
            listeners.push(Listener { name, context, watch: Watch::default(), expired: None });
            places.push(bound);
        }
        anyhow::ensure!(!places.is_empty(), "there is no address to listen on: give one with --mqtt ADDRESS:PORT");
        let readiness = Arc::new(Readiness::new(&[SERVING]));
        let arbiters = number_of_arbiters(&settings);
        let limit = descriptors;
        let descriptors = Descriptors::of(limit, &settings, arbiters);
        descriptors::announce(limit, &descriptors, &settings);
        // Before what takes its time: that this process lives must not depend on how much there is to replay, or on others.
        let http = if settings.http.enabled {
            let address = settings.http.address;
            let started = http::start(&settings.http, metrics.clone(), Arc::clone(&readiness), descriptors.http);
            let started = started.with_context(|| {
                format!("cannot serve HTTP on {address}: is another program there? --http ADDRESS:PORT says where else")
            })?;
            Some(started)
        } else {
            None
        };
        if let Some(http) = &http {
            tracing::info!(address = %http.address(), "listening for HTTP");
        }
        let audit = settings.log.audit_file.as_deref().map(AuditFile::open).transpose()?;
        let (shared, mut groups) = groups::start(&settings, authority, arbiters, &descriptors, &metrics, stop)?;
        shared.events.begin(&settings, metrics.events())?;
        if let Some(file) = audit {
            shared.audit.begin(file)?;
        }
        let arbiters = start_arbiters(&shared, arbiters, &metrics);
        start_sys(&shared, &metrics);
        let api = api::start(&bounded_api(&settings.api, descriptors.api), groups.operator(), metrics.api())?;
        if let Some(api) = &api {
            tracing::info!(address = %api.address(), tls = settings.api.certificate_file.is_some(), "listening for operators");
        }
        // Not before there is somebody to answer: whoever cannot connect tries another node, and whoever waits for an answer does not.
        let sockets = places.into_iter().map(Bound::listen).collect::<anyhow::Result<Vec<_>>>()?;
        let sockets = sockets.into_iter().zip(listeners.iter().map(|one| one.context.subscribe())).collect();
        metrics.show_connections_max(descriptors.clients);
        let stop_accepting = start_acceptors(sockets, &shared, &arbiters, descriptors.clients)?;
        watch_node(&shared, groups.health(), &readiness);
        readiness.set(SERVING, true);
        mover::start(&shared);
        fetch_keys(&shared);
        for listener in &listeners {
            let listener = listener.context.borrow();
            let tls = listener.tls.is_some();
            let (anonymous, websocket) = (listener.allow_anonymous, listener.websocket.is_some());
            tracing::info!(address = %listener.address, anonymous, tls, websocket, "listening for MQTT");
        }
        let last = Settings::clone(&settings);
        Ok(Self {
            shared,
            listeners,
            key_watch: Watch::default(),
            started: settings,
            last,
            metrics,
            groups,
            stop_accepting,
            http,
            api,
            arbiters,
            readiness,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<ListenerContext>> {
        self.listeners.iter().map(|listener| Arc::clone(&listener.context.borrow())).collect()
    }

    /// Whether it has come to serve, as far as that comes by itself: a disk that is full, or a node that an operator drained, may
    /// stay so.
    pub(super) fn has_started(&self) -> bool {
        self.readiness.missing().iter().all(|condition| [DISK, NEW_CLIENTS].contains(condition))
    }

    /// What its threads share.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Reads the settings again and takes in what can change in a running broker. If anything is wrong with them,
    /// nothing changes. The audit log is begun anew in any case: whoever has renamed it goes by that, and may delete it soon.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn reload(&mut self, reloading: &dyn Reload, who: serde_json::Value) -> Result<Reloaded, String> {
        self.shared.audit.reopen();
        let settings = match reloading.read() {
            Ok(settings) => settings,
            Err(error) => {
                self.metrics.reloaded(ReloadOutcome::Refused);
                self.audit_reload(who, json!({}), &format!("refused: {error}"));
                tracing::error!(%error, "reload: the settings are wrong, everything stays as it was");
                return Err(error.to_string());
            }
        };
        let endpoints = match self.take_up(&settings) {
            Ok(endpoints) => endpoints,
            Err(error) => {
                self.metrics.reloaded(ReloadOutcome::Refused);
                self.audit_reload(who, json!({}), &format!("refused: {error:#}"));
                let error = format!("{error:#}");
                tracing::error!(error, "reload: a file that they name cannot be used, everything stays as it was");
                return Err(error);
            }
        };
        self.tell_policy_changed(Changed::WhoMayWhat);
        fetch_keys(&self.shared);
        let changes = config::changes(&self.started, &self.last, &settings);
        let mut is_closed_to_anonymous = false;
        for (listener, tls) in self.listeners.iter_mut().zip(endpoints) {
            if let Some(config) = settings.listener_like(&listener.name) {
                let before = Arc::clone(&listener.context.borrow());
                listener.reload(config, &settings, tls, &self.metrics.tls());
                is_closed_to_anonymous |= before.allow_anonymous && !before.lets_anonymous_stay();
            }
        }
        if is_closed_to_anonymous {
            self.tell_policy_changed(Changed::WhoMayStay);
        }
        self.shared.has_publish_rates.store(settings.has_publish_rates(), Ordering::Relaxed);
        self.shared.memory_bytes_high_water.store(settings.limits.memory_bytes_high_water, Ordering::Relaxed);
        if settings.log.filter != self.last.log.filter {
            reloading.change_log_filter(&settings);
        }
        self.last = settings;
        self.metrics.reloaded(ReloadOutcome::Applied);
        for change in &changes {
            if change.reloaded {
                tracing::info!(key = change.key, "a setting changed");
            } else {
                tracing::warn!(key = change.key, "a setting changed that needs a restart");
            }
        }
        let keys = |reloaded| changes.iter().filter(move |one| one.reloaded == reloaded).map(|one| one.key.clone());
        let (changed, needs_restart): (Vec<_>, Vec<_>) = (keys(true).collect(), keys(false).collect());
        self.audit_reload(who, json!({ "changed": changed, "needs_restart": needs_restart }), "applied");
        tracing::info!(changes = changes.len(), "reload: the settings were read again");
        Ok(Reloaded { changed, needs_restart })
    }

    /// Does what an operator wants of whoever reads the settings.
    fn obey(&mut self, wanted: Wanted, reloading: &dyn Reload) {
        // Who gave up waiting needs no answer.
        match wanted {
            Wanted::Reload(answer) => {
                let _ = answer.send(self.reload(reloading, json!({ "api": true })));
            }
            Wanted::Log(None, answer) => {
                let _ = answer.send(Ok(self.last.log.filter.clone()));
            }
            Wanted::Log(Some(filter), answer) => {
                self.last.log.filter.clone_from(&filter);
                reloading.change_log_filter(&self.last);
                let _ = answer.send(Ok(filter));
            }
        }
    }

    /// Takes in users, rights, tokens and certificates, or nothing, if one of the files cannot be used. What the listeners are to serve with.
    fn take_up(&mut self, settings: &Settings) -> anyhow::Result<Vec<Option<Arc<Endpoint>>>> {
        let tokens = match &settings.api.tokens_file {
            Some(file) if self.api.is_some() => Tokens::read(file)?,
            // Nobody is heard any more.
            _ => Tokens::default(),
        };
        let policy = self.shared.authority.read(&settings.auth)?;
        let metrics = self.metrics.tls();
        let endpoint = |listener: &Listener| match settings.listener_like(&listener.name) {
            Some(config) => {
                let context = || format!("cannot serve TLS on {}", listener.context.borrow().address);
                listener.prepare(config, &metrics).with_context(context)
            }
            None => Ok(None),
        };
        let endpoints = self.listeners.iter().map(endpoint).collect::<anyhow::Result<_>>()?;
        let of_api = self.api.as_ref().map_or(Ok(None), api::ApiServer::read_certificate);
        let of_api = of_api.context("`api.certificate_file`, `api.key_file`")?;
        let of_links = self.groups.reload_certificates().inspect_err(|_| metrics.reloaded(ReloadOutcome::Refused));
        of_links.context("the certificates for the links between nodes")?;
        // All has been read. This fails only for want of a thread.
        self.shared.authority.change(policy, &settings.auth)?;
        if let Some(api) = &mut self.api {
            api.api().change_tokens(tokens);
            if let Some(certificate) = of_api {
                api.take_certificate(certificate, &metrics);
            }
        }
        Ok(endpoints)
    }

    /// Takes up certificates of listeners, of the API and of the links between nodes whose files have changed; call it every few seconds.
    pub fn look_at_certificates(&mut self) {
        let metrics = self.metrics.tls();
        // What came of it is logged.
        match self.groups.look_at_certificates() {
            Some(Ok(())) => metrics.reloaded(ReloadOutcome::Applied),
            Some(Err(_)) => metrics.reloaded(ReloadOutcome::Refused),
            None => {}
        }
        for listener in &mut self.listeners {
            listener.look_at_certificates(&self.last, &self.metrics.tls());
        }
        if let Some(api) = &mut self.api {
            api.look_at_certificate(&self.metrics.tls());
        }
        let now_seconds = i64::try_from(self.shared.wall_seconds()).unwrap_or(i64::MAX);
        let expired = self.listeners.iter_mut().map(|listener| listener.has_expired_list(now_seconds));
        metrics.expired_lists(expired.filter(|&expired| expired).count());
        let of_listener = |one: &Listener| one.context.borrow().tls.as_ref()?.expires_seconds();
        metrics.expires(CertificateUse::Listener, self.listeners.iter().filter_map(of_listener).min());
        metrics.expires(CertificateUse::Peers, self.groups.certificate_expires_seconds());
        let of_api = self.started.api.certificate_file.as_deref().filter(|_| self.api.is_some());
        metrics.expires(CertificateUse::Api, of_api.and_then(tls::expires_seconds_in));
    }

    /// Takes up keys of tokens whose files have changed, likewise.
    pub fn look_at_keys(&mut self) {
        if self.shared.authority.look_at_keys(&mut self.key_watch) {
            self.tell_policy_changed(Changed::WhoMayStay);
        }
    }

    /// Whoever is connected is looked at again.
    fn tell_policy_changed(&self, changed: Changed) {
        for inbox in &self.shared.inboxes {
            inbox.push(Event::PolicyChanged(changed), 0);
        }
    }

    fn audit_reload(&self, who: serde_json::Value, what: serde_json::Value, result: &str) {
        let shared = &self.shared;
        shared.audit.record(shared.clock.wall_ms(), "reload", who, what, result);
    }

    /// Where HTTP is served.
    #[must_use]
    pub fn http_address(&self) -> Option<std::net::SocketAddr> {
        self.http.as_ref().map(http::HttpServer::address)
    }

    /// Where operators ask, if they may.
    #[must_use]
    pub fn api_address(&self) -> Option<std::net::SocketAddr> {
        self.api.as_ref().map(api::ApiServer::address)
    }

    /// Moves leadership and clients to other nodes, if there are any, tells every client that is left, flushes every state, ends
    /// every thread.
    ///
    /// # Errors
    /// The state could not be written at the end; what was acknowledged is in the log all the same.
    pub async fn stop(self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.shared.settings.moving.stop_seconds_max.get().into());
        self.readiness.set(SERVING, false);
        // Clients that come meanwhile hear that there are others.
        mover::move_everything(&self.shared, || self.groups.leads_for_others()).await;
        self.stop_accepting.send_replace(true);
        if let Some(api) = self.api {
            api.shutdown();
        }
        for inbox in &self.shared.inboxes {
            inbox.push(Event::EndAll, 0);
        }
        while self.shared.connections.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        for arbiter in self.arbiters {
            drop(arbiter.join());
        }
        self.groups.stop();
        self.shared.events.finish();
        self.shared.audit.flush();
        if let Some(http) = self.http {
            http.shutdown();
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// A node that holds no lease, lags behind others, refuses new work because its disk is full, or waits for a disk that does not answer,
/// is not ready.
fn watch_node(shared: &Arc<Shared>, mut health: Option<Health>, readiness: &Arc<Readiness>) {
    let (shared, readiness) = (Arc::clone(shared), Arc::clone(readiness));
    readiness.set(DISK, true);
    readiness.set(ARBITERS, true);
    if shared.cluster.is_some() {
        for condition in [LEASE, NEW_CLIENTS, LEADERS, CAUGHT_UP] {
            readiness.set(condition, false);
        }
    }
    actix_rt::spawn(async move {
        let mut silence = Silence::default();
        let mut is_disk_silent = false;
        let mut is_calm = false;
        loop {
            tokio::time::sleep(if is_calm { CALM_LOOK_INTERVAL } else { LOOK_INTERVAL }).await;
            let looks = silence.look(&shared);
            match looks {
                SILENT_LOOKS_MAX => {
                    tracing::error!("an arbiter has done nothing for five seconds: who is connected there waits")
                }
                STUCK_LOOKS => tracing::error!("an arbiter has done nothing for thirty seconds: /livez says so"),
                _ => {}
            }
            readiness.set(ARBITERS, looks < SILENT_LOOKS_MAX);
            readiness.set_stuck(looks >= STUCK_LOOKS);
            let was_silent = std::mem::replace(&mut is_disk_silent, shared.submitter.disk_waited() > DISK_WAIT_MAX);
            match (was_silent, is_disk_silent) {
                (false, true) => tracing::error!(
                    "the disk has not answered a write or sync of the log for ten seconds: nothing is acknowledged until it does"
                ),
                (true, false) => tracing::warn!("the disk answers again"),
                _ => {}
            }
            readiness.set(DISK, !shared.submitter.is_full() && !is_disk_silent);
            is_calm = looks == 0 && readiness.is_ready();
            let (Some(cluster), Some(health)) = (&shared.cluster, &mut health) else { continue };
            let has_lease = cluster.may_acknowledge();
            health.look(has_lease);
            readiness.set(LEASE, has_lease);
            readiness.set(NEW_CLIENTS, !cluster.elsewhere.is_drained());
            readiness.set(LEADERS, health.has_leaders());
            readiness.set(CAUGHT_UP, health.has_caught_up());
        }
    });
}

/// Time for one write or sync of the log after which clients are to go elsewhere.
const DISK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Looks in a row at an arbiter that has not answered, after which clients are to go elsewhere: five seconds.
const SILENT_LOOKS_MAX: u32 = 50;

/// After so many nobody believes that it ever will: thirty seconds.
const STUCK_LOOKS: u32 = 300;

/// Whether somebody named the listeners, rather than the default.
fn is_asked_for(settings: &Settings) -> bool {
    settings.listener != Settings::default().listener
}

fn number_of_arbiters(settings: &Settings) -> usize {
    match settings.arbiters {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
        number => number,
    }
    .min(256)
}

/// The API's settings for at most so many connections.
fn bounded_api(config: &ApiConfig, connections_max: usize) -> ApiConfig {
    let bound = u32::try_from(connections_max).ok().and_then(NonZeroU32::new);
    ApiConfig {
        connections_max: bound.map_or(config.connections_max, |bound| bound.min(config.connections_max)),
        ..config.clone()
    }
}

/// Raises the soft limit of descriptors to the hard one and returns it.
#[must_use]
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of file descriptors could not be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

thread_local! {
    /// Whether the node cannot go on without this thread.
    static IS_VITAL: Cell<bool> = const { Cell::new(false) };
}

/// From here on a panic on this thread ends the process. The runtime would catch it and go on without the task that panicked: one that
/// takes nothing out of its inbox any more, or a connection that nobody reads, while `/readyz` says that all is well.
fn end_with_this_thread() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Who reads standard error, or does not, must not hold up the end.
            if !log_lines::say(&described(panic)) {
                before(panic);
            }
            // A thread that is ending has nothing of its own any more, and runs nothing of ours.
            if IS_VITAL.try_with(Cell::get).unwrap_or(false) {
                // Not by the log, which may be what panicked.
                let last =
                    "kentongan: this is a fault of the program; the process ends rather than serve half a node\n";
                if !log_lines::say(last) {
                    eprint!("{last}");
                }
                kentongan_cluster::ending::abort();
            }
        }));
    });
    IS_VITAL.set(true);
}

/// What the runtime would say of it.
fn described(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("thread '{name}' {panic}\n{backtrace}"),
        _ => format!("thread '{name}' {panic}\n"),
    }
}

fn start_arbiters(shared: &Arc<Shared>, count: usize, metrics: &Metrics) -> Vec<Arbiter> {
    (0..count)
        .map(|id| {
            let arbiter = Arbiter::new();
            let shared = Arc::clone(shared);
            let metrics = metrics.clone();
            arbiter.spawn_fn(move || {
                end_with_this_thread();
                ArbiterState::install(id as u16, shared, metrics.arbiter());
                spawn_tasks();
            });
            arbiter
        })
        .collect()
}

fn spawn_tasks() {
    use std::future::poll_fn;
    use std::task::Poll;
    let forever = |poll: fn(&mut ArbiterState, &mut std::task::Context<'_>) -> Poll<()>| {
        poll_fn(move |cx| ArbiterState::with(|arbiter| poll(arbiter, cx)).unwrap_or(Poll::Ready(())))
    };
    actix_rt::spawn(forever(ArbiterState::poll_flush));
    actix_rt::spawn(forever(ArbiterState::poll_events));
    actix_rt::spawn(async move {
        loop {
            forever(|arbiter, cx| arbiter.poll_paced(cx)).await;
            tokio::time::sleep(RESUME_INTERVAL).await;
            ArbiterState::with(ArbiterState::resume_paced);
        }
    });
    actix_rt::spawn(async {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut standstill = Standstill::default();
        loop {
            let due = second.tick().await;
            ArbiterState::with(|arbiter| {
                arbiter.look_for_standstill(&mut standstill);
                arbiter.counters.arbiter_late_seconds.record(due.elapsed());
                arbiter.on_second();
            });
        }
    });
}

type Sockets = Vec<(std::os::fd::OwnedFd, watch::Receiver<Arc<ListenerContext>>)>;

/// Acceptors live on the first arbiter: a connection that stays there costs no wake-up of another thread.
fn start_acceptors(
    sockets: Sockets,
    shared: &Arc<Shared>,
    arbiters: &[Arbiter],
    connections_max: usize,
) -> anyhow::Result<watch::Sender<bool>> {
    let (stop, stopped) = watch::channel(false);
    let shared = Arc::clone(shared);
    let first = arbiters.first().context("there is no arbiter")?;
    first.spawn_fn(move || {
        for (socket, context) in sockets {
            match Acceptor::new(socket, context, Arc::clone(&shared), connections_max) {
                Ok(acceptor) => drop(actix_rt::spawn(acceptor.run(stopped.clone()))),
                Err(error) => tracing::error!(%error, "a listener cannot be watched"),
            }
        }
    });
    Ok(stop)
}

/// `$SYS`, updated by a task of the first arbiter's system.
fn start_sys(shared: &Arc<Shared>, metrics: &Metrics) {
    let interval = shared.settings.sys.interval_seconds;
    if interval == 0 {
        return;
    }
    let shared = Arc::clone(shared);
    let metrics = metrics.clone();
    let mut process = sys::Process::new(shared.clock.clone());
    let mut loads = LoadAverages::default();
    let mut figures = move |elapsed| {
        let mut figures = process.figures();
        if metrics.is_counting() {
            let snapshot = metrics.snapshot();
            loads.advance(&snapshot, elapsed);
            figures.extend(sys::counted(&snapshot, &loads));
        }
        figures
    };
    // The first client finds them there.
    shared.sys.update(&figures(Duration::ZERO));
    let mut advanced = Instant::now();
    actix_rt::spawn(async move {
        let interval = Duration::from_secs(u64::from(interval));
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        loop {
            tick.tick().await;
            let now = Instant::now();
            let elapsed = now - std::mem::replace(&mut advanced, now);
            for message in shared.sys.update(&figures(elapsed)) {
                shared.inboxes[0].push(Event::Publish(message), 0);
            }
        }
    });
}
