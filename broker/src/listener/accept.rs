//! Accepting, without spinning when there is nothing to accept with.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::rate::{self, AddressRates};
use super::{Accepted, AcceptedSocket, ListenerContext, unix};
use crate::config::{FileMode, ListenAddress, ListenerConfig, Settings};
use crate::connection::ConnectionActor;
use crate::router::{ArbiterState, Event, Shared};

/// Sockets accepted before they are handed over.
const ACCEPTED_A_WAKEUP_MAX: usize = 64;

/// Pause after the process or the system ran out of descriptors; doubled while it lasts.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Time between two log lines about the same trouble.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// An address for a listener, where nobody can connect before [`Self::listen`]: a client that came before there is anybody to
/// answer would wait, and a balancer would send more of them.
#[derive(Debug)]
pub struct Bound(BoundTo);

#[derive(Debug)]
enum BoundTo {
    Ip {
        socket: Socket,
        address: SocketAddr,
        backlog: i32,
    },
    /// Nothing yet: a name whose socket does not listen looks like one that a process left there.
    Unix {
        path: PathBuf,
        mode: FileMode,
        backlog: i32,
    },
}

/// Takes the address of `config`. IPv6 addresses take IPv4 clients too where the address is unspecified.
///
/// # Errors
/// The address cannot be had; the message says which and why.
pub fn bind(config: &ListenerConfig, settings: &Settings) -> anyhow::Result<(Bound, Arc<ListenerContext>)> {
    let backlog = i32::try_from(config.backlog.get()).unwrap_or(i32::MAX);
    let (bound, address) = match &config.address {
        ListenAddress::Ip(address) => {
            let socket = open(*address, config).map_err(|error| cannot_listen(address, &error))?;
            let address = socket.local_addr()?.as_socket().context("an address of IP")?;
            (BoundTo::Ip { socket, address, backlog }, address.into())
        }
        ListenAddress::Unix(path) => {
            let bound = BoundTo::Unix { path: path.clone(), mode: config.unix_mode, backlog };
            (bound, config.address.clone())
        }
    };
    Ok((Bound(bound), Arc::new(ListenerContext::new(config.clone(), settings, address))))
}

impl Bound {
    /// From here on clients can connect.
    ///
    /// # Errors
    /// The address cannot be had after all; the message says which and why.
    pub fn listen(self) -> anyhow::Result<OwnedFd> {
        match self.0 {
            BoundTo::Ip { socket, address, backlog } => {
                socket.listen(backlog).map_err(|error| cannot_listen(&address, &error))?;
                Ok(socket.into())
            }
            BoundTo::Unix { path, mode, backlog } => unix::open(&path, mode, backlog).with_context(|| {
                format!(
                    "cannot listen on unix:{}: does another program, or may this one not write there?",
                    path.display()
                )
            }),
        }
    }
}

/// Whose fault it is, and what to do.
fn cannot_listen(address: &SocketAddr, error: &io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": another program listens there, perhaps another broker: stop that one, or listen elsewhere (--mqtt ADDRESS:PORT)"
        }
        io::ErrorKind::AddrNotAvailable => {
            ": this machine has no such address: name one that it has, or 0.0.0.0 for all of them"
        }
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            ": ports below 1024 are for root and for programs with CAP_NET_BIND_SERVICE: give it that, or use another port"
        }
        _ => "",
    };
    anyhow::anyhow!("cannot listen on {address}: {error}{advice}")
}

fn open(address: SocketAddr, config: &ListenerConfig) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let SocketAddr::V6(v6) = address {
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    set_options(&socket, config)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What every connection has: accepted sockets inherit it from the listening one, which spares each of them the system
/// calls.
fn set_options(socket: &Socket, config: &ListenerConfig) -> io::Result<()> {
    socket.set_tcp_nodelay(config.nodelay)?;
    if config.tcp_keepalive_seconds > 0 {
        let idle = Duration::from_secs(u64::from(config.tcp_keepalive_seconds));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    if config.tcp_user_timeout_seconds > 0 {
        let timeout = Duration::from_secs(u64::from(config.tcp_user_timeout_seconds));
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

/// Accepts one connection, non-blocking from the start.
fn accept_one(listener: &OwnedFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = rustix::net::acceptfrom_with(listener, flags)?;
    Ok((socket, peer.and_then(|peer| peer.try_into().ok())))
}

/// Accepts for one listener.
#[derive(Debug)]
pub struct Acceptor {
    socket: AsyncFd<OwnedFd>,
    context: watch::Receiver<Arc<ListenerContext>>,
    shared: Arc<Shared>,
    connections_max: usize,
    tokens: f64,
    refilled: Instant,
    addresses: AddressRates,
    logged: Option<Instant>,
    /// Since then.
    unlogged: u64,
}

impl Acceptor {
    /// Must be called on the runtime that will run it. Connections get the `context` of their time. `connections_max` bounds the connections of the process.
    ///
    /// # Errors
    /// The runtime could not watch one more descriptor.
    pub fn new(
        listener: OwnedFd,
        context: watch::Receiver<Arc<ListenerContext>>,
        shared: Arc<Shared>,
        connections_max: usize,
    ) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` returns the same descriptor for as long as it lives, and `AsyncFd` owns it from here on.
        // tokio's own listener is no way round: it would register every accepted socket with the acceptor's poller, to be
        // taken out again for its arbiter, two system calls a connection.
        let socket = unsafe { AsyncFd::register(listener)? };
        Ok(Self {
            socket,
            context,
            shared,
            connections_max,
            tokens: 0.0,
            refilled: Instant::now(),
            addresses: AddressRates::default(),
            logged: None,
            unlogged: 0,
        })
    }

    /// Accepts until `stop` says so, or is gone.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.accept() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    async fn accept(&mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.accept_some().await {
                Ok(()) => backoff = BACKOFF_MIN,
                Err(error) => {
                    self.shared.descriptors_exhausted.fetch_add(1, Ordering::Relaxed);
                    self.log_seldom(&format!("accepting failed, pausing: {error}"));
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
            // As long as clients wait in the backlog, nothing above waits for anything: the connections that are there, and
            // whoever stops this, have their turn in between.
            tokio::task::yield_now().await;
        }
    }

    async fn accept_some(&mut self) -> io::Result<()> {
        let accepted_max = self.wait_for_rate().await;
        let mut guard = self.socket.readable().await?;
        let mut accepted = Vec::new();
        let mut failure = None;
        // Those that fail count too, or they could go on without an end.
        for _ in 0..accepted_max {
            match accept_one(guard.get_inner()) {
                Ok(pair) => accepted.push(pair),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                    break;
                }
                // That connection came to nothing before we came to it; the next one is there all the same.
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        drop(guard);
        self.deal_out(accepted);
        failure.map_or(Ok(()), Err)
    }

    fn deal_out(&mut self, sockets: Vec<(OwnedFd, Option<SocketAddr>)>) {
        let arbiters = self.shared.inboxes.len();
        // One look for all of them: connections are many, changes of settings are not.
        let context = Arc::clone(&self.context.borrow());
        let mut batches: Vec<Vec<Accepted>> = (0..arbiters).map(|_| Vec::new()).collect();
        // Never below zero: without a rate there are none to be had, and one that comes later is not to make up for it.
        self.tokens = (self.tokens - sockets.len() as f64).max(0.0);
        let now = Instant::now();
        for (socket, peer) in sockets {
            if peer.is_some_and(|peer| self.shared.bans.has_address(peer.ip(), || self.shared.wall_seconds())) {
                self.shared.connections_banned.fetch_add(1, Ordering::Relaxed);
                self.log_seldom("an address is banned: its connections are closed");
                continue;
            }
            let counted = peer.filter(|&peer| !context.speaks_for_others(peer));
            let rate = context.connect_rate_per_address;
            if counted.is_some_and(|peer| !self.addresses.admits(peer.ip(), rate, now)) {
                self.shared.connections_too_fast.fetch_add(1, Ordering::Relaxed);
                self.log_seldom("an address connects more often than connect_rate_per_address allows");
                continue;
            }
            // Counted from here on, not by its arbiter: a flood must not find the same room many times.
            let Some(arbiter) = self.shared.try_open_connection(&context, self.connections_max) else {
                self.shared.connections_too_many.fetch_add(1, Ordering::Relaxed);
                self.log_seldom("as many connections as allowed: new ones are closed");
                continue;
            };
            let listener = Arc::clone(&context);
            let origin = counted.map(|peer| rate::origin(peer.ip()));
            let handshake = context.tls.as_ref().map(|tls| tls.begin_handshake(origin));
            if matches!(handshake, Some(None)) {
                self.shared.connection_closed(&listener, arbiter);
                self.log_seldom("as many TLS handshakes as tls.handshakes_max allows, in all or from one address: new connections are closed");
                continue;
            }
            let socket = AcceptedSocket { socket, handshake: handshake.flatten() };
            batches[usize::from(arbiter)].push(Accepted { socket, listener, peer });
        }
        // Those that stay on this thread need no wake-up. The others, on a thread that is no arbiter all, go by inbox.
        ArbiterState::with(|arbiter| {
            let own = std::mem::take(&mut batches[usize::from(arbiter.id)]);
            ConnectionActor::start_all(arbiter, own);
        });
        for (arbiter, batch) in batches.into_iter().enumerate() {
            if !batch.is_empty() {
                self.shared.inboxes[arbiter].push(Event::Accepted(batch), 0);
            }
        }
    }

    /// A token bucket of one second: clients beyond the rate wait in the backlog. Returns how many may be accepted now.
    async fn wait_for_rate(&mut self) -> usize {
        loop {
            let rate = f64::from(self.context.borrow().connect_rate_per_second);
            let now = Instant::now();
            if rate == 0.0 {
                (self.tokens, self.refilled) = (0.0, now);
                return ACCEPTED_A_WAKEUP_MAX;
            }
            self.tokens = (self.tokens + rate * now.duration_since(self.refilled).as_secs_f64()).min(rate);
            self.refilled = now;
            if self.tokens >= 1.0 {
                return (self.tokens as usize).min(ACCEPTED_A_WAKEUP_MAX);
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs_f64((1.0 - self.tokens) / rate)) => {}
                // Perhaps there is another rate now.
                Ok(()) = self.context.changed() => {}
            }
        }
    }

    fn log_seldom(&mut self, text: &str) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(Instant::now());
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(listener = %self.context.borrow().address, unlogged, "{text}");
    }
}

/// Errors that a network left at a connection in the backlog, and that come out of accepting it (accept(2), "Error handling").
const OF_THE_CONNECTION: [i32; 9] = [
    libc::ECONNABORTED,
    libc::ENETDOWN,
    libc::EPROTO,
    libc::ENOPROTOOPT,
    libc::EHOSTDOWN,
    libc::ENONET,
    libc::EHOSTUNREACH,
    libc::EOPNOTSUPP,
    libc::ENETUNREACH,
];

/// Whether accepting failed for one connection only, rather than for want of something that all of them need.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
        || error.raw_os_error().is_some_and(|number| OF_THE_CONNECTION.contains(&number))
}

/// Whether this system has IPv6 on the loopback interface at all.
#[must_use]
pub fn has_ipv6() -> bool {
    rustix::net::socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None).is_ok_and(|socket| {
        let loopback = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
        rustix::net::bind(&socket, &loopback).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::io::Read as _;
    use std::net::TcpStream;
    use std::sync::atomic::AtomicBool;
    use std::task::{Context, Poll, Waker};

    use kentongan_cluster::PipelineHandle;

    use super::*;
    use crate::auth::Authority;
    use crate::clock::Clock;
    use crate::config::{LimitsConfig, Settings};
    use crate::descriptors::Descriptors;
    use crate::groups;
    use crate::metrics::Metrics;
    use crate::replicated::{Slots, Submitter};

    /// The kernel reads the options back as they were set, and hands them on to what it accepts.
    #[test]
    fn options_of_a_listener_reach_its_connections() {
        for (nodelay, keepalive, timeout) in [(true, 60, 0), (false, 0, 7), (true, 123, 30)] {
            let config = ListenerConfig {
                address: SocketAddr::from(([127, 0, 0, 1], 0)).into(),
                nodelay,
                tcp_keepalive_seconds: keepalive,
                tcp_user_timeout_seconds: timeout,
                ..ListenerConfig::default()
            };
            let (bound, context) = bind(&config, &Settings::default()).unwrap();
            let listener = bound.listen().unwrap();
            let _client = TcpStream::connect(context.address.ip().unwrap()).unwrap();
            // Non-blocking, and the connection may take a moment to appear.
            let accepted = std::iter::from_fn(|| {
                std::thread::sleep(Duration::from_millis(1));
                Some(accept_one(&listener))
            })
            .take(5_000)
            .find_map(Result::ok);
            let socket = Socket::from(accepted.expect("a connection").0);
            assert_eq!(socket.tcp_nodelay().unwrap(), nodelay);
            assert_eq!(socket.keepalive().unwrap(), keepalive > 0);
            if keepalive > 0 {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(keepalive.into()));
            }
            let timeout = (timeout > 0).then(|| Duration::from_secs(timeout.into()));
            assert_eq!(socket.tcp_user_timeout().unwrap(), timeout);
        }
    }

    #[test]
    fn nobody_can_connect_before_the_listener_listens_and_nobody_else_has_its_address() {
        let at = |address: SocketAddr| ListenerConfig { address: address.into(), ..ListenerConfig::default() };
        let (bound, context) = bind(&at(SocketAddr::from(([127, 0, 0, 1], 0))), &Settings::default()).unwrap();
        let address = context.address.ip().unwrap();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _listener = bound.listen().unwrap();
        TcpStream::connect(address).unwrap();
        let in_use = bind(&at(address), &Settings::default()).unwrap_err().to_string();
        assert!(in_use.contains(&address.to_string()) && in_use.contains("another program listens there"), "{in_use}");
    }

    /// Each reason has an advice of its own; one of them says nothing of other brokers.
    #[test]
    fn an_address_that_this_machine_lacks_is_told_from_one_that_is_taken() {
        // For documentation, RFC 5737.
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 0)).into();
        let config = ListenerConfig { address: elsewhere, ..ListenerConfig::default() };
        let error = bind(&config, &Settings::default()).unwrap_err().to_string();
        assert!(error.contains("this machine has no such address") && !error.contains("another"), "{error}");
    }

    /// What has nothing to do with the next connection does not keep it waiting.
    #[test]
    fn an_error_of_one_connection_is_told_from_a_want_of_descriptors() {
        for number in
            [libc::EPROTO, libc::ENETDOWN, libc::EHOSTUNREACH, libc::ECONNABORTED, libc::EINTR, libc::EOPNOTSUPP]
        {
            assert!(is_of_the_connection(&io::Error::from_raw_os_error(number)), "{number}");
        }
        for number in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EBADF] {
            assert!(!is_of_the_connection(&io::Error::from_raw_os_error(number)), "{number}");
        }
    }

    /// What the kernel holds before it is accepted is bounded by the listener.
    #[test]
    fn the_backlog_is_that_of_the_settings() {
        let config = ListenerConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 0)).into(),
            backlog: std::num::NonZeroU32::MIN,
            ..ListenerConfig::default()
        };
        let (bound, context) = bind(&config, &Settings::default()).unwrap();
        let _listener = bound.listen().unwrap();
        let wait = Duration::from_millis(200);
        let held =
            (0..20).map(|_| TcpStream::connect_timeout(&context.address.ip().unwrap(), wait)).take_while(Result::is_ok);
        // The kernel takes one more than it is told.
        assert!(held.count() <= 3);
    }

    /// A flood is counted as it is accepted: no arbiter has looked at any of it yet.
    #[test]
    fn a_flood_does_not_pass_the_bound_before_its_arbiters_have_counted_it() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            ListenerConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)).into(), ..ListenerConfig::default() };
        let settings = Settings { data_dir: directory.path().join("data"), ..Settings::default() };
        let (bound, context) = bind(&config, &settings).unwrap();
        let listener = bound.listen().unwrap();
        let address = context.address.ip().unwrap();
        let settings = Arc::new(settings);
        let (shared, groups) = groups::start(
            &settings,
            Authority::default(),
            1,
            &Descriptors::default(),
            &Metrics::isolated(),
            &AtomicBool::new(false),
        )
        .unwrap();
        let refused = || shared.connections_too_many.load(Ordering::Relaxed);
        let mut taken = 0;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_keep, context) = watch::channel(context);
            let mut acceptor = Acceptor::new(listener, context, Arc::clone(&shared), 4).unwrap();
            let _flood: Vec<_> = (0..10).map(|_| TcpStream::connect(address).unwrap()).collect();
            while taken + refused() < 10 {
                acceptor.accept_some().await.unwrap();
                while let Some(event) = shared.inboxes[0].pop() {
                    if let Event::Accepted(sockets) = event {
                        taken += sockets.len() as u64;
                    }
                }
            }
        });
        assert_eq!((taken, refused()), (4, 6));
        groups.stop();
    }

    /// An acceptor, where it listens, and what it tells of its connections.
    struct Accepting {
        acceptor: Acceptor,
        address: SocketAddr,
        context: watch::Sender<Arc<ListenerContext>>,
        shared: Arc<Shared>,
        _directory: tempfile::TempDir,
    }

    impl Accepting {
        /// Must be called on a runtime.
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let config =
                ListenerConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)).into(), ..ListenerConfig::default() };
            let settings = Arc::new(Settings { data_dir: directory.path().join("data"), ..Settings::default() });
            let (bound, context) = bind(&config, &settings).unwrap();
            let listener = bound.listen().unwrap();
            let address = context.address.ip().unwrap();
            let slots = Slots::new(settings.storage.groups.get());
            let clock = Clock::real();
            let submitter = Submitter::new(PipelineHandle::ended(), slots, clock.clone());
            let shared = Arc::new(Shared::new(settings, 1, submitter, Authority::default(), 1, None, clock));
            let (context, contexts) = watch::channel(context);
            let acceptor = Acceptor::new(listener, contexts, Arc::clone(&shared), usize::MAX).unwrap();
            Self { acceptor, address, context, shared, _directory: directory }
        }

        fn set_rate(&self, connect_rate_per_second: u32) {
            let settings = Settings {
                limits: LimitsConfig { connect_rate_per_second, ..LimitsConfig::default() },
                ..Settings::default()
            };
            let before = Arc::clone(&self.context.borrow());
            self.context.send_replace(Arc::new(before.reloaded(before.config.clone(), &settings)));
        }

        fn connections(&self) -> u64 {
            self.shared.connections.load(Ordering::Relaxed) as u64
        }
    }

    /// What is accepted without a rate is not held against the one that comes by SIGHUP.
    #[test]
    fn a_rate_that_is_turned_on_does_not_make_the_listener_deaf() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut accepting = Accepting::new();
            let _flood: Vec<_> = (0..100).map(|_| TcpStream::connect(accepting.address).unwrap()).collect();
            while accepting.connections() < 100 {
                accepting.acceptor.accept_some().await.unwrap();
            }
            accepting.set_rate(2);
            let within = Duration::from_secs(5);
            let next = tokio::time::timeout(within, accepting.acceptor.wait_for_rate()).await;
            assert!(matches!(next, Ok(1..=2)), "{next:?}");
        });
    }

    /// The first arbiter has other things to do than to accept.
    #[test]
    fn a_full_backlog_lets_others_have_their_turn() {
        const FLOOD: u64 = 4 * ACCEPTED_A_WAKEUP_MAX as u64;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Accepting { acceptor, address, context: _context, shared, _directory } = Accepting::new();
            let _flood: Vec<_> = (0..FLOOD).map(|_| TcpStream::connect(address).unwrap()).collect();
            let (stop, stopped) = watch::channel(false);
            let connections = || shared.connections.load(Ordering::Relaxed) as u64;
            let accepting = tokio::task::LocalSet::new();
            let running = accepting.spawn_local(acceptor.run(stopped));
            let others = async {
                let mut turns = Vec::new();
                while connections() < FLOOD / 2 {
                    turns.push(connections());
                    tokio::task::yield_now().await;
                }
                stop.send_replace(true);
                running.await.unwrap();
                turns
            };
            let turns = accepting.run_until(others).await;
            assert!(turns.iter().any(|count| (1..FLOOD / 2).contains(count)), "turns of others: {turns:?}");
            assert!(connections() < FLOOD, "it went on, although it was stopped");
        });
    }

    /// Accepted before the acceptor was stopped, and taken in after all connections were ended: nobody would end that one.
    #[test]
    fn a_connection_that_comes_behind_the_end_of_all_is_closed() {
        let system = actix_rt::System::new();
        system.block_on(async {
            let mut accepting = Accepting::new();
            let mut client = TcpStream::connect(accepting.address).unwrap();
            let inbox = &accepting.shared.inboxes[0];
            inbox.push(Event::EndAll, 0);
            // On this thread, which is no arbiter, it goes by inbox.
            accepting.acceptor.accept_some().await.unwrap();
            assert_eq!(accepting.connections(), 1);
            let counters = Metrics::isolated().arbiter();
            ArbiterState::new(0, Arc::clone(&accepting.shared), counters).take_events();
            assert_eq!(accepting.connections(), 0);
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        });
    }

    /// Whoever takes a rate back wants that to count now.
    #[test]
    fn another_rate_counts_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut accepting = Accepting::new();
            accepting.set_rate(1);
            accepting.acceptor.refilled = Instant::now();
            let mut cx = Context::from_waker(Waker::noop());
            let mut waits = Box::pin(accepting.acceptor.wait_for_rate());
            assert!(waits.as_mut().poll(&mut cx).is_pending());
            let before = Arc::clone(&accepting.context.borrow());
            accepting.context.send_replace(Arc::new(before.reloaded(before.config.clone(), &Settings::default())));
            assert_eq!(waits.as_mut().poll(&mut cx), Poll::Ready(ACCEPTED_A_WAKEUP_MAX));
        });
    }

    /// Long connections spread evenly; one that comes and goes alone stays where it is accepted.
    #[test]
    fn a_connection_goes_to_the_arbiter_that_has_the_fewest() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            ListenerConfig { address: SocketAddr::from(([127, 0, 0, 1], 0)).into(), ..ListenerConfig::default() };
        let settings = Settings { data_dir: directory.path().join("data"), ..Settings::default() };
        let (_bound, context) = bind(&config, &settings).unwrap();
        let (shared, groups) = groups::start(
            &Arc::new(settings),
            Authority::default(),
            2,
            &Descriptors::default(),
            &Metrics::isolated(),
            &AtomicBool::new(false),
        )
        .unwrap();
        let opened = |count| (0..count).map(|_| shared.try_open_connection(&context, 9)).collect::<Vec<_>>();
        assert_eq!(opened(4), [Some(0), Some(1), Some(0), Some(1)]);
        shared.connection_closed(&context, 1);
        shared.connection_closed(&context, 1);
        assert_eq!(opened(3), [Some(1), Some(1), Some(0)]);
        for _ in 0..3 {
            shared.connection_closed(&context, 0);
            assert_eq!(opened(1), [Some(0)], "alone, it comes back to the first");
        }
        groups.stop();
    }
}
