//! Every setting there is, with its default. The comments here are the reference page.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use kentongan_cluster::transport::TlsFiles;
use kentongan_proto::mqtt;

use super::address::{FileMode, ListenAddress};
use super::events::EventsConfig;
use super::http_url::HttpUrl;
use super::schema::{choices, settings};
use super::secret::Secret;
use super::tokens::JwtConfig;
use crate::connection::networks::Network;
use crate::mount::MountPoint;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The largest packet that MQTT can express: Remaining Length 268,435,455 and five bytes of fixed header.
pub const PACKET_BYTES_LIMIT: u32 = 268_435_460;

/// The longest name of a node: that of a DNS name.
pub const NODE_NAME_BYTES_MAX: usize = 253;

/// Where the first of several nodes on one machine listens for the others.
pub const DEFAULT_PEER_PORT: u16 = 7001;

const fn nonzero_u16(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).expect("a default that must not be zero")
}

const fn nonzero_u32(value: u32) -> NonZeroU32 {
    NonZeroU32::new(value).expect("a default that must not be zero")
}

fn loopback_listeners() -> Vec<ListenerConfig> {
    let at = |ip: IpAddr| ListenerConfig { address: SocketAddr::new(ip, 1883).into(), ..ListenerConfig::default() };
    vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())]
}

settings! {
    /// Keys that stand before the first section.
    pub struct Settings {
        /// Where sessions, retained messages and the log are kept. Made if it does not exist; one process at a time.
        pub data_dir: PathBuf = PathBuf::from("./kentongan-data"),
        /// What this node is called: a label for people, its own among the nodes of a cluster. With TLS between nodes, one
        /// of the DNS names in its certificate. Unset: the name of the host.
        pub node: Option<String> = None,
        /// Threads that serve connections. 0 means one a core.
        pub arbiters: usize = 0,
        /// What an acknowledgement of QoS 1 and 2 means: `"fsync"`, the message is on the disks of a majority;
        /// `"memory"`, a majority has it in memory and the disk follows. Under `"memory"` only, a power cut of all nodes, or of
        /// one just before the others lose one more, loses acknowledged messages.
        pub durability: Durability = Durability::Fsync,
        /// Whether clients may connect without a user name. Unset: only where nothing says who users are
        /// (`auth.password_file`, `auth.jwt`, `auth.http.url`), and only on listeners of a loopback address or a Unix socket
        /// that no proxy speaks for others on (`proxy_protocol_from`, `websocket.forwarded_from`). A listener may say
        /// otherwise for itself.
        pub allow_anonymous: Option<bool> = None => reloaded,
        /// Where MQTT clients connect. Unset: port 1883 of the loopback addresses, 127.0.0.1 and, where there is
        /// one, ::1. A source that names listeners replaces all those of the weaker ones.
        pub listener: Vec<ListenerConfig> = loopback_listeners(),
        /// Who clients are, and what they may do.
        pub auth: AuthConfig = AuthConfig::default(),
        /// Limits and ways of every client session.
        pub session: SessionConfig = SessionConfig::default(),
        /// Shared subscriptions (`$share/NAME/FILTER`).
        pub shared: SharedConfig = SharedConfig::default(),
        /// Bounds on retained messages.
        pub retained: RetainedConfig = RetainedConfig::default(),
        /// Delayed publication (`$delayed/SECONDS/TOPIC`).
        pub delayed: DelayedConfig = DelayedConfig::default(),
        /// The broker's account of itself under `$SYS`.
        pub sys: SysConfig = SysConfig::default(),
        /// What is told of clients, and to whom.
        pub events: EventsConfig = EventsConfig::default(),
        /// The other nodes.
        pub cluster: ClusterConfig = ClusterConfig::default(),
        /// Sending clients to other nodes.
        pub moving: MovingConfig = MovingConfig::default(),
        /// The log and the state on disk.
        pub storage: StorageConfig = StorageConfig::default(),
        /// What the whole process may use.
        pub limits: LimitsConfig = LimitsConfig::default(),
        /// What the broker counts.
        pub metrics: MetricsConfig = MetricsConfig::default(),
        /// Metrics and health over HTTP.
        pub http: HttpConfig = HttpConfig::default(),
        /// What operators ask and do over HTTP.
        pub api: ApiConfig = ApiConfig::default(),
        /// The log of events, on standard error.
        pub log: LogConfig = LogConfig::default(),
    }

    /// Where MQTT clients connect; stands once for each address.
    pub struct ListenerConfig {
        /// Address and port, such as `"0.0.0.0:1883"` for every IPv4 address or `"[::]:1883"` for all of both
        /// families. Port 0 lets the system choose; the log names the port. `"unix:/run/kentongan.sock"` is a Unix socket; a file
        /// of that name that nobody answers on is replaced.
        pub address: ListenAddress = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1883).into(),
        /// Permissions of a Unix socket: who may write it may connect.
        pub unix_mode: FileMode = FileMode(0o660),
        /// Connections that the kernel may hold before they are accepted (it caps this at
        /// `net.core.somaxconn`).
        pub backlog: NonZeroU32 = nonzero_u32(4096),
        /// Whether small packets leave at once (`TCP_NODELAY`).
        pub nodelay: bool = true,
        /// Idle time after which the kernel asks whether the peer is still there. 0 turns it off.
        pub tcp_keepalive_seconds: u32 = 60,
        /// How long sent bytes may stay unacknowledged before the kernel gives the connection up
        /// (`TCP_USER_TIMEOUT`). 0 leaves it to the system.
        pub tcp_user_timeout_seconds: u32 = 0,
        /// Connections at a time on this listener; one more is closed at once. 0 means no bound but that of the
        /// process.
        pub connections_max: u32 = 0 => reloaded,
        /// New connections a second that this listener accepts, in place of `limits.connect_rate_per_second`; others wait in its
        /// backlog. 0 means no bound. Unset: that of `[limits]`.
        pub connect_rate_per_second: Option<u32> = None => reloaded,
        /// The same of one address, in place of `limits.connect_rate_per_address`; more are closed at once.
        pub connect_rate_per_address: Option<u32> = None => reloaded,
        /// The shortest Keep Alive. MQTT 5 clients that ask for less are told this one (Server Keep Alive); older
        /// clients are simply given that long.
        pub keep_alive_seconds_min: u16 = 0 => reloaded,
        /// The longest Keep Alive; also for clients that ask for none. MQTT 5 clients are told (Server Keep
        /// Alive); older clients that ask for more, or none, are held to what they asked for. 0 means no bound.
        pub keep_alive_seconds_max: u16 = 0 => reloaded,
        /// Bounds the Session Expiry Interval on this listener below that of `[session]`.
        pub session_expiry_seconds_max: Option<u32> = None => reloaded,
        /// Bounds the messages that may wait for a client of this listener below the bound of `[session]`. Kept with
        /// the session until its client comes again, perhaps by another listener.
        pub queue_messages_max: Option<u32> = None => reloaded,
        /// The same for their bytes.
        pub queue_bytes_max: Option<u64> = None => reloaded,
        /// PUBLISH packets a second from all clients of this listener together. Those that send more are not read for so
        /// long that they keep to it. 0 means no bound.
        pub publish_rate_max: u32 = 0 => reloaded,
        /// The same for their bytes.
        pub publish_bytes_rate_max: u64 = 0 => reloaded,
        /// What stands in front of every topic of the clients of this listener, within the broker: they do not see it, and nothing
        /// that is not below it. It ends with `/`; `%u` stands for the user, `%c` for the Client Identifier, at most one of
        /// them in a level. Unset: nothing.
        pub mount_point: Option<MountPoint> = None => reloaded,
        /// Whether clients of this listener may connect without a user name. Unset: as at the top of the file.
        pub allow_anonymous: Option<bool> = None => reloaded,
        /// How clients of this listener show who they are: methods in the order in which they are asked. One that
        /// has nothing to go by is passed over; the first that accepts or refuses decides. `"certificate"`: whom the
        /// client certificate names, or a balancer that checked one; `"jwt"`: a token, as `[auth.jwt]` has it, where what does not
        /// look like one is left to the methods behind it; `"password"`: user name and password of `auth.password_file`, where an
        /// unknown user is left to the methods behind it; `"http"`: what the server of `auth.http` says, which is asked about
        /// every client. Unset: all of them, in that order.
        pub authentication: Option<Vec<AuthenticationMethod>> = None => reloaded,
        /// Time from accepting a connection to its complete CONNECT, in all.
        pub connect_timeout_seconds: NonZeroU32 = nonzero_u32(10) => reloaded,
        /// The protocol versions that are spoken here.
        pub protocol_versions: Vec<ProtocolVersion>
            = vec![ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5] => reloaded,
        /// TLS on this listener. Unset: none.
        pub tls: Option<TlsConfig> = None => reloaded,
        /// Balancers that say by the PROXY protocol, version 1 or 2, for whom they connect: addresses and networks, such as
        /// `["10.0.0.7", "10.1.0.0/16"]`. Their connections must begin with its header, before TLS if there is TLS, and the
        /// client is then known by the address in it. From others such a header is refused.
        pub proxy_protocol_from: Vec<Network> = Vec::new() => reloaded,
        /// Whether the Common Name of a client certificate that such a balancer has verified, as version 2 tells it, counts
        /// as one that was verified here.
        pub proxy_protocol_identity: bool = false => reloaded,
        /// Makes it a listener for MQTT over WebSocket. Unset: it is none.
        pub websocket: Option<WebSocketConfig> = None,
    }

    /// TLS 1.2 and 1.3 on a listener. The files are PEM; they are read again when one of them changes, and on SIGHUP.
    pub struct TlsConfig {
        /// The server's certificate, followed by those between it and the authority.
        pub certificate_file: Option<PathBuf> = None => reloaded,
        /// Its private key.
        pub key_file: Option<PathBuf> = None => reloaded,
        /// The oldest version that is spoken.
        pub minimum_version: TlsVersion = TlsVersion::V1_2 => reloaded,
        /// The suites that may be used, of either version. Empty: all of them.
        pub cipher_suites: Vec<CipherSuite> = Vec::new() => reloaded,
        /// Whether clients show a certificate of an authority in `client_ca_file`: `"none"`, they are not asked; `"optional"`,
        /// those that show one must have one that is good; `"required"`, all do.
        pub client_certificate: ClientCertificate = ClientCertificate::None => reloaded,
        /// Certificates of the authorities that clients' certificates come from.
        pub client_ca_file: Option<PathBuf> = None => reloaded,
        /// Lists of certificates that were revoked (CRL): one of every authority whose certificates clients show, or those of
        /// the others are refused. Certificates between a client's and the authority are looked up where there is a list of
        /// whoever issued them. Unset: none are revoked.
        pub crl_file: Option<PathBuf> = None => reloaded,
        /// What a list means whose time is over (nextUpdate): `"use"`, it still says who is refused, and a warning and
        /// `kentongan_tls_expired_lists` say that a newer one is missing; `"refuse"`, until one comes, clients with
        /// certificates of that authority are refused, all of them.
        pub crl_expired: ExpiredList = ExpiredList::Use => reloaded,
        /// Which name in a client's certificate says who the client is: `"cn"`, the common name; `"san-dns"`, `"san-uri"`,
        /// `"san-email"`, the first alternative name of that kind; `"none"`, no name does.
        pub identity: CertificateIdentity = CertificateIdentity::CommonName => reloaded,
        /// Handshakes that may go on at a time on this listener; one more connection is closed at once. An address, or a /64 of
        /// IPv6, has no more of them than are still free, so that alone it gets half. 0 means no bound.
        pub handshakes_max: u32 = 16_384 => reloaded,
        /// A secret that all nodes have in common, 32 bytes or more (`openssl rand -out FILE 48`): with it a client resumes its
        /// TLS session on any of them. Replace it as often as you would a key. Unset: each process has its own, and sessions
        /// are resumed where they began.
        pub ticket_key_file: Option<PathBuf> = None => reloaded,
        /// More certificates, for other names of the server (SNI).
        pub sni: Vec<SniConfig> = Vec::new() => reloaded,
    }

    /// A certificate that is shown to clients that ask for one of its DNS names. Those that ask for another name, or none, are
    /// shown that of `[listener.tls]`.
    pub struct SniConfig {
        /// The certificate, followed by those between it and the authority.
        pub certificate_file: Option<PathBuf> = None => reloaded,
        /// Its private key.
        pub key_file: Option<PathBuf> = None => reloaded,
    }

    /// MQTT over WebSocket on a listener, subprotocols `mqtt` and `mqttv3.1`; over TLS if it has that too.
    pub struct WebSocketConfig {
        /// Path of the WebSocket; others are answered with 404.
        pub path: String = String::from("/mqtt") => reloaded,
        /// Origins of the web pages that may connect, such as `["https://example.org"]`; others are answered with 403.
        /// Programs that are no browsers send none, and may connect in any case. Empty: pages of all origins.
        pub origins: Vec<String> = Vec::new() => reloaded,
        /// Payload of one frame; a longer one ends the connection (1009). Frames are not gathered, so this bounds nothing that
        /// a packet's bound (`session.packet_bytes_max`) does not, and several packets may share a frame.
        pub frame_bytes_max: NonZeroU32 = nonzero_u32(16 * MIB as u32) => reloaded,
        /// Proxies that say by `X-Forwarded-For` for whom they connect: addresses and networks. The client is then known by
        /// the last address in it that is none of theirs. Others are not believed.
        pub forwarded_from: Vec<Network> = Vec::new() => reloaded,
    }

    /// Who clients are, and what they may do. The files are read at the start, which fails if anything is wrong with them,
    /// and again on SIGHUP, when whatever is wrong leaves everything as it was.
    pub struct AuthConfig {
        /// Users and their passwords, as `kentongan passwd` or mosquitto_passwd writes them. Unset: there are no users.
        pub password_file: Option<PathBuf> = None => reloaded,
        /// Who may what, as mosquitto's ACL file. Unset, and no `rules_file` either: everybody may do everything.
        pub acl_file: Option<PathBuf> = None => reloaded,
        /// Who may what, as a TOML file of rules (docs/guide/security.md). They come before those of `acl_file`, and the
        /// first that fits decides; what no rule fits is denied.
        pub rules_file: Option<PathBuf> = None => reloaded,
        /// Tokens that clients show. Unset: none are known.
        pub jwt: Option<JwtConfig> = None => reloaded,
        /// How SUBSCRIBE is judged: `"covered"`, a filter is granted if everything that it matches may be read;
        /// `"filter"`, as mosquitto does it, every filter is granted and each message is looked at.
        pub acl_subscribe: AclSubscribe = AclSubscribe::Covered => reloaded,
        /// Threads that verify passwords. 0 means one for every two cores.
        pub verify_threads: u32 = 0,
        /// CONNECTs that may wait for them. Beyond it, whoever has most waiting is refused (0x89): addresses take turns,
        /// and the users of one.
        pub verify_queue_max: NonZeroU32 = nonzero_u32(1024),
        /// How long a password that was right, or a token whose signature was good, is not verified again: its keyed hash is kept in
        /// memory that long, at most until the files are read again. What a token claims is looked at each time. 0 turns it off.
        pub remember_seconds: u32 = 300,
        /// How many of them are kept.
        pub remember_max: u32 = 100_000,
        /// A server of yours that says who may come in, and what they may.
        pub http: HttpAuthConfig = HttpAuthConfig::default(),
    }

    /// A server of yours that says who may come in, and what they may: the method `"http"` of a listener. What it is asked and
    /// how it answers stands in docs/reference/http-authentication.yaml. One that does not answer lets nobody in.
    pub struct HttpAuthConfig {
        /// Where logins are asked about, such as `https://auth.example/mqtt`. Over `http` passwords are not encrypted: for a
        /// server on this machine only. Unset: nobody is asked.
        pub url: Option<HttpUrl> = None => reloaded,
        /// Where the rights of a connected client are asked for again, every `rights_seconds`; it may be the same URL. What is
        /// new counts at once, and who may not be here any more is disconnected. Unset: what the answer to the login said goes
        /// on to count.
        pub rights_url: Option<HttpUrl> = None => reloaded,
        /// Whether also clients that another method lets in have their rights from `rights_url`, from their login on.
        pub rights_for_all: bool = false => reloaded,
        /// About how long rights count until they are asked for again; spread, so that it is not for all at once.
        pub rights_seconds: NonZeroU32 = nonzero_u32(300) => reloaded,
        /// How long the server may not answer about a client until that is disconnected; at least twice `rights_seconds`. 0: for
        /// ever, its rights stay as they were.
        pub rights_outdated_seconds_max: u32 = 86_400 => reloaded,
        /// Authorities (PEM) that a server of `https` is trusted by. Unset: those that the system trusts.
        pub ca_file: Option<PathBuf> = None => reloaded,
        /// A header of every request, by which the server knows the broker. It goes with `header_value`.
        pub header: String = String::from("Authorization") => reloaded,
        /// Its value, such as `Bearer 3f9…` or `Basic a2V…`. Unset, and no `header_value_file` either: it is not sent.
        pub header_value: Option<Secret> = None => reloaded,
        /// The same in a file of its own.
        pub header_value_file: Option<PathBuf> = None => reloaded,
        /// Time for a request, from connecting to the last byte of its answer.
        pub timeout_milliseconds: NonZeroU32 = nonzero_u32(3000) => reloaded,
        /// Requests at a time.
        pub requests_max: NonZeroU32 = nonzero_u32(32),
        /// Requests that may wait for their turn; one that is larger than a kilobyte counts as several. Beyond it, whoever has
        /// most waiting is refused (0x89): addresses take turns, and the users of one.
        pub queue_max: NonZeroU32 = nonzero_u32(16_384),
        /// How long an answer that lets somebody in is not asked for again, at most until the settings are read again. What it
        /// was about, password and address included, must be the same. 0 turns it off.
        pub remember_seconds: u32 = 60 => reloaded,
        /// The same for an answer that does not.
        pub remember_denied_seconds: u32 = 5 => reloaded,
        /// How many answers are kept.
        pub remember_max: u32 = 100_000,
        /// Requests in a row that find nobody, no answer in time, or a server that says that it is overloaded (429, 502, 503,
        /// 504), until it is left alone for `breaker_seconds`; clients are refused at once (0x88) meanwhile. 0 means never.
        pub breaker_failures: u32 = 10,
        /// How long. Then one request tries whether it is there again.
        pub breaker_seconds: NonZeroU32 = nonzero_u32(10),
    }

    /// Limits and ways of every client session.
    pub struct SessionConfig {
        /// QoS 1 and 2 messages that a client may have unacknowledged towards us at once; announced to MQTT 5
        /// clients as Receive Maximum. Larger values cost memory per connection.
        pub receive_maximum: NonZeroU16 = nonzero_u16(1024) => reloaded,
        /// QoS 1 and 2 messages that we may have unacknowledged towards a client at once; the client's Receive
        /// Maximum applies if it is lower. Also the number of duplicates a resumed session may see.
        pub inflight_messages_max: NonZeroU16 = nonzero_u16(128) => reloaded,
        /// Messages that may wait for a client, beside those in flight.
        pub queue_messages_max: u32 = 100_000,
        /// Their bytes: payload, topic, properties and a constant for each.
        pub queue_bytes_max: u64 = 64 * MIB,
        /// Memory of a node for messages that wait in persistent sessions, about. Beyond it the middle of long queues is in the
        /// data directory only, and read back when its turn comes. What waits for a checkpoint, and what is in flight,
        /// is in memory in any case.
        pub queue_memory_bytes_max: u64 = 256 * MIB,
        /// What gives way when the queue is full: `"drop-new"`, the message that comes; `"drop-oldest"`, the one
        /// that waited longest. Either way QoS 0 goes first. Every drop is counted.
        pub queue_drop_policy: QueueDropPolicy = QueueDropPolicy::DropNew,
        /// Session Expiry Interval of MQTT 3.x sessions with Clean Session 0. 4294967295 means that they never expire.
        pub session_expiry_seconds_default: u32 = u32::MAX => reloaded,
        /// The longest Session Expiry Interval; MQTT 5 clients that ask for more are told. 4294967295 means no bound.
        pub session_expiry_seconds_max: u32 = u32::MAX => reloaded,
        /// Subscriptions of one session; one more is refused with 0x97.
        pub subscriptions_max: u32 = 10_000 => reloaded,
        /// Bytes of their Topic Filters together; one more filter is refused with 0x97. Each byte takes about three in memory, and as many at
        /// each node that has the session's group.
        pub subscription_bytes_max: u64 = 2 * MIB => reloaded,
        /// Filters in one SUBSCRIBE or UNSUBSCRIBE.
        pub filters_per_subscribe_max: u32 = 1024 => reloaded,
        /// Topic Aliases that an MQTT 5 client may use towards us; announced as Topic Alias Maximum.
        pub topic_alias_maximum: u16 = 64 => reloaded,
        /// Topic Aliases that we use towards an MQTT 5 client; its Topic Alias Maximum applies if it is lower.
        pub topic_alias_out_maximum: u16 = 64 => reloaded,
        /// PUBLISH packets a second from one connection. One that sends more is not read for so long that it keeps to it. 0
        /// means no bound.
        pub publish_rate_max: u32 = 0 => reloaded,
        /// The same for their bytes. A single packet may be larger, and is paid back before the next is read.
        pub publish_bytes_rate_max: u64 = 0 => reloaded,
        /// Seconds in a row that a connection may exceed these rates before it is closed (0x96). 0 means that it is only
        /// slowed down.
        pub publish_rate_seconds_max: u32 = 0 => reloaded,
        /// Time for which a connection's socket may take nothing of what waits for it before the connection is closed.
        /// 0 means no bound.
        pub stalled_seconds_max: u32 = 60,
        /// Length of a Client Identifier.
        pub client_id_bytes_max: NonZeroU16 = nonzero_u16(65_535) => reloaded,
        /// Size of a packet from a client, with its header; announced to MQTT 5 clients as Maximum Packet Size. At most
        /// 268435460; with `cluster.address` 12582912.
        pub packet_bytes_max: NonZeroU32 = nonzero_u32(MIB as u32) => reloaded,
        /// Size of a packet before a CONNECT was accepted, that is, of the CONNECT itself.
        pub packet_bytes_before_connect_max: NonZeroU32 = nonzero_u32(64 * KIB as u32) => reloaded,
        /// Bytes that may wait for the socket of a client that reads too slowly, before its messages go to its
        /// queue instead. Of a persistent session also what is sent before the client acknowledges some: so many bytes,
        /// or one message that is larger. A client far away gets no more than that in each of its round trips.
        pub out_buffer_bytes_max: u64 = 4 * MIB,
        /// User Properties of one packet.
        pub user_properties_max: u32 = 128 => reloaded,
        /// Levels of a Topic Name or Topic Filter; what stands before that of a shared subscription is not counted.
        pub topic_levels_max: NonZeroU16 = nonzero_u16(128) => reloaded,
        /// What a client gets whose subscriptions overlap: `"one-copy"` at the highest QoS of them, or
        /// `"one-each"`.
        pub overlapping: Overlapping = Overlapping::OneCopy,
        /// Whether payloads that claim to be UTF-8 (Payload Format Indicator 1) are checked; refused with 0x99.
        pub check_payload_format: bool = false,
        /// Given to MQTT 5 clients that ask for Response Information.
        pub response_information: Option<String> = None => reloaded,
        /// Where MQTT 5 clients are sent (Server Reference) when this node shuts down, is drained or has too many of them: a
        /// balancer, say. Unset: to other nodes, where their `cluster.advertise_clients` says.
        pub server_reference: Option<String> = None,
    }

    /// Shared subscriptions (`$share/NAME/FILTER`).
    pub struct SharedConfig {
        /// Which member of a shared subscription gets a message: `"round-robin"`, each in turn; `"random"`;
        /// `"sticky"`, one until it goes; `"hash-client"`, the same member for the same publisher; `"hash-topic"`,
        /// the same member for the same topic; `"least-inflight"`, the one with the fewest unacknowledged
        /// messages.
        pub strategy: SharedStrategy = SharedStrategy::RoundRobin,
    }

    /// Bounds on retained messages.
    pub struct RetainedConfig {
        /// Retained messages in all. One more is delivered and acknowledged like any other, but not kept; it is counted in
        /// `kentongan_retained_not_kept_total`. 0 means no bound.
        pub messages_max: u64 = 1_000_000,
        /// Their bytes in all. One that would exceed them is delivered and not kept, nor is the one that it was to
        /// replace; counted likewise. 0 means no bound.
        pub bytes_max: u64 = 1024 * MIB,
        /// Payload of one. A message with RETAIN and a larger one is refused with 0x97 and reaches nobody. 0 means no
        /// bound but that of a packet.
        pub payload_bytes_max: u32 = 0,
        /// Age at which one is forgotten, even if it has no Message Expiry Interval. 0 means never.
        pub age_seconds_max: u32 = 0,
    }

    /// Delayed publication: what is published to `$delayed/SECONDS/TOPIC` reaches TOPIC that much later.
    pub struct DelayedConfig {
        /// Whether it is offered. If not, such a PUBLISH is refused with 0x87.
        pub enabled: bool = true,
        /// The longest delay; a longer one is refused with 0x97.
        pub seconds_max: u32 = 31 * 24 * 3600,
        /// Messages that may wait at a time; one more is refused with 0x97 (before MQTT 5 the connection ends). Each of `storage.groups` has an equal part and an
        /// eighth of that more, and one topic is of one group.
        pub messages_max: u64 = 1_000_000,
        /// Bytes of these messages in all, shared out likewise; one that would exceed them is refused likewise. 0 means no bound, and so does a
        /// cluster that was formed by a version without this setting.
        pub bytes_max: u64 = 1024 * MIB,
    }

    /// The broker's account of itself under `$SYS`.
    pub struct SysConfig {
        /// Time between two updates. 0 turns `$SYS` off.
        pub interval_seconds: u32 = 10,
    }

    /// The other nodes, and how they and this one find and trust each other.
    pub struct ClusterConfig {
        /// Where other nodes connect. Unset: this node is alone. Without the three files below, a loopback address, and
        /// all nodes on this machine.
        pub address: Option<SocketAddr> = None,
        /// Where other nodes dial this one, as `"HOST:PORT"`. Unset: `address`, which then must be one that they can dial.
        pub advertise: Option<String> = None,
        /// Where clients reach this node from wherever they are, as `"HOST:PORT"`: other nodes name it to those that they send
        /// away (Server Reference). Unset: they name this node to nobody.
        pub advertise_clients: Option<String> = None,
        /// Where the nodes are that form the cluster, each as `"HOST:PORT"`, this one among them: the same list, in the same
        /// order, on all of them. They form one cluster of all of them, once, when all of them are there; the first decides.
        /// Where one of them belongs to a cluster already, this node joins that one. Empty: this node forms a cluster of its
        /// own.
        pub seeds: Vec<String> = Vec::new(),
        /// What this node shares its fate with: a rack, a room, a site. What is kept by several nodes is kept in different
        /// zones, if there are as many. Unset: a zone of its own.
        pub zone: Option<String> = None,
        /// Nodes that keep each group of sessions and topics and decide by majority, an odd number: one of 3, or two of 5, may be
        /// lost. Fewer as long as there are fewer nodes. Fixed when the cluster forms.
        pub voters: NonZeroU16 = nonzero_u16(3),
        /// Certificates (PEM) of the authorities that make nodes members of this cluster. Give all three files, or none.
        pub ca_file: Option<PathBuf> = None,
        /// This node's certificate (PEM), followed by those between it and the authority. It must be for the node's name.
        pub certificate_file: Option<PathBuf> = None,
        /// Its private key (PEM).
        pub key_file: Option<PathBuf> = None,
    }

    /// Sending clients to other nodes: all of them when this node is drained or stops, the surplus when it has clearly more
    /// than others. MQTT 5 clients are told so (0x9C), with where to go if `session.server_reference` or the other nodes'
    /// `cluster.advertise_clients` say; older ones are closed.
    pub struct MovingConfig {
        /// Clients that are sent away a second. When the process stops it is as many as must be to be done in time.
        pub clients_per_second: NonZeroU32 = nonzero_u32(500),
        /// Time between the moment from which this node is not ready (`/readyz`) and refuses clients, because it is drained or
        /// stops, and the first client that is sent away: a balancer that has noticed does not send it back here.
        pub notice_seconds: u32 = 2,
        /// Time that the process takes to stop after SIGTERM, about. Most of it is for moving leadership and clients to other
        /// nodes, if there are any and as long as it takes; who is left then is closed.
        pub stop_seconds_max: NonZeroU32 = nonzero_u32(10),
        /// Who is sent away because this node has clearly more clients than the mean of those that take some, after another
        /// one returned, say: `"told"`, clients that can be told where to go; `"all"`, anyone; `"off"`, nobody.
        pub balance: Balance = Balance::Told,
        /// How much more that is, in percent of the mean; in any case more than ten clients.
        pub balance_percent: u32 = 20,
    }

    /// The log and the state on disk.
    pub struct StorageConfig {
        /// Raft groups that sessions and topics are spread over. Fixed when the cluster forms. At most 4096.
        pub groups: NonZeroU16 = nonzero_u16(16),
        /// Length from which on a segment of the log is full and the next one is begun. Up to 256 KiB of it are written ahead.
        pub segment_bytes: u64 = 64 * MIB,
        /// Log that a group may gather before it writes a checkpoint.
        pub checkpoint_log_bytes: u64 = 64 * MIB,
        /// Time between two checkpoints of a group that changed.
        pub checkpoint_seconds: NonZeroU32 = nonzero_u32(60),
        /// Free space below which new work is refused with 0x97, so that what is accepted can still be settled. Unset: 512 MiB, or an eighth of
        /// the file system, if that is less.
        pub free_bytes_reserve: Option<u64> = None,
    }

    /// What the whole process may use.
    pub struct LimitsConfig {
        /// Memory that the process has from its allocator at which new clients are refused (0x89); at 110 % of it publishers
        /// are no longer read, at 120 % the clients that hold most of it are closed: the slowest subscribers, and those in the
        /// midst of a large packet. What the system counts as resident is more, by
        /// the program itself, its stacks and what is free between allocations. 0 turns it off.
        pub memory_bytes_high_water: u64 = 0 => reloaded,
        /// File descriptors kept free beside those that the log, links with other nodes, HTTP, the API and an authentication server
        /// may need by their own bounds, which are kept anyway. Clients are refused beyond what is left of the process's limit.
        pub descriptors_reserve: u32 = 64,
        /// New connections a second that a listener accepts, unless it says otherwise for itself; others wait in its backlog. 0
        /// means no bound.
        pub connect_rate_per_second: u32 = 0 => reloaded,
        /// New connections a second from one IPv4 address or one IPv6 network of 64 bits, on each listener, unless it says
        /// otherwise for itself; more are closed at once. 0 means no bound.
        pub connect_rate_per_address: u32 = 0 => reloaded,
        /// How often connections may take one Client Identifier from each other within `flap_window_seconds` before it
        /// is banned (0x8A). 0 means as often as they like.
        pub flap_takeovers_max: u32 = 20,
        /// How often a Client Identifier may connect to a node as one user's within `flap_window_seconds`, whether or not anybody
        /// had it, before it is banned likewise, for that user alone (or for all who are nobody in particular). 0 means as often
        /// as it likes.
        pub flap_connects_max: u32 = 0,
        /// See `flap_takeovers_max`.
        pub flap_window_seconds: NonZeroU32 = nonzero_u32(10),
        /// How long such a Client Identifier is banned, by the node that saw it. Whoever holds it at that moment keeps it.
        pub flap_ban_seconds: NonZeroU32 = nonzero_u32(60),
    }

    /// What the broker counts.
    pub struct MetricsConfig {
        /// Whether the broker counts what it does. If not, every counter is passed over where it would count;
        /// `/metrics` then tells of the log, the checkpoints and the process only, `$SYS` of version, uptime and heap.
        pub enabled: bool = true,
    }

    /// Metrics and health over HTTP: `/metrics` for Prometheus, `/livez` and `/readyz`.
    pub struct HttpConfig {
        /// Address and port. Port 0 lets the system choose; the log names the port.
        pub address: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090),
        /// Whether there is an HTTP server at all.
        pub enabled: bool = true,
        /// What `/metrics` wants to see as `Authorization: Bearer TOKEN`. Unset: nothing. `/livez` and `/readyz`
        /// are always open.
        pub token: Option<Secret> = None,
        /// The same, read from a file at start.
        pub token_file: Option<PathBuf> = None,
    }

    /// What operators ask and do over HTTP, over the whole cluster from any of its nodes. See docs/guide/api.md; what there is
    /// stands in docs/reference/api.json.
    pub struct ApiConfig {
        /// Address and port. Port 0 lets the system choose; the log names the port. Without TLS it must be an address of this
        /// machine: a token could be read on its way.
        pub address: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 18083),
        /// Who may ask: names, roles and hashes of tokens, as `kentongan ctl token` makes them. Read again on SIGHUP. Unset:
        /// there is no API.
        pub tokens_file: Option<PathBuf> = None => reloaded,
        /// The server's certificate (PEM), followed by those between it and the authority. Unset: no TLS. The file is read again on
        /// SIGHUP, and when it changes.
        pub certificate_file: Option<PathBuf> = None,
        /// Its private key, read again likewise.
        pub key_file: Option<PathBuf> = None,
        /// Connections at a time. One more ends the oldest whose last request had no good token, and is closed if there is none.
        pub connections_max: NonZeroU32 = nonzero_u32(64),
    }

    /// The log of events, on standard error.
    pub struct LogConfig {
        /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or several with modules, such as
        /// `"info,kentongan::session=debug"`.
        pub filter: String = String::from("info") => reloaded,
        /// `"human"` for people, `"json"` for machines; `"auto"` is the former on a terminal and the latter
        /// elsewhere.
        pub format: LogFormat = LogFormat::Auto,
        /// Where it is recorded who did what to this node: what operators wanted and what became of it, reloads, and who was
        /// refused, each as one line of JSON at the end of this file. It is opened again on SIGHUP. Unset: nowhere.
        pub audit_file: Option<PathBuf> = None,
    }
}

choices! {
    /// What an acknowledgement of QoS 1 and 2 means.
    pub enum Durability {
        /// A majority has it on disk.
        Fsync = "fsync",
        /// A majority has it in memory.
        Memory = "memory",
    }

    /// A protocol version in a listener's list.
    pub enum ProtocolVersion {
        /// MQTT 3.1.
        V3_1 = "3.1",
        /// MQTT 3.1.1.
        V3_1_1 = "3.1.1",
        /// MQTT 5.0.
        V5 = "5",
    }

    /// How SUBSCRIBE is judged.
    pub enum AclSubscribe {
        /// All that the filter matches must be allowed.
        Covered = "covered",
        /// It is granted, and messages are left out.
        Filter = "filter",
    }

    /// How a client shows who it is.
    pub enum AuthenticationMethod {
        /// Client certificate, or what a balancer says of one.
        Certificate = "certificate",
        /// Token.
        Jwt = "jwt",
        /// User name and password.
        Password = "password",
        /// A server of the operator's.
        Http = "http",
    }

    /// A version of TLS.
    pub enum TlsVersion {
        /// TLS 1.2.
        V1_2 = "1.2",
        /// TLS 1.3.
        V1_3 = "1.3",
    }

    /// A cipher suite, by the name that IANA has it under.
    pub enum CipherSuite {
        /// TLS 1.3.
        Aes256GcmSha384 = "TLS_AES_256_GCM_SHA384",
        /// TLS 1.3.
        Aes128GcmSha256 = "TLS_AES_128_GCM_SHA256",
        /// TLS 1.3.
        Chacha20Poly1305Sha256 = "TLS_CHACHA20_POLY1305_SHA256",
        /// TLS 1.2.
        EcdheEcdsaAes256GcmSha384 = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        /// TLS 1.2.
        EcdheEcdsaAes128GcmSha256 = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        /// TLS 1.2.
        EcdheEcdsaChacha20Poly1305Sha256 = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        /// TLS 1.2.
        EcdheRsaAes256GcmSha384 = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        /// TLS 1.2.
        EcdheRsaAes128GcmSha256 = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        /// TLS 1.2.
        EcdheRsaChacha20Poly1305Sha256 = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    }

    /// Whether clients show a certificate.
    pub enum ClientCertificate {
        /// They are not asked.
        None = "none",
        /// They may.
        Optional = "optional",
        /// They must.
        Required = "required",
    }

    /// What a list of revoked certificates means whose time is over.
    pub enum ExpiredList {
        /// What it says.
        Use = "use",
        /// Nobody is known not to be revoked.
        Refuse = "refuse",
    }

    /// Which name in a client's certificate says who it is.
    pub enum CertificateIdentity {
        /// None.
        None = "none",
        /// The common name.
        CommonName = "cn",
        /// The first alternative name that is one of DNS.
        DnsName = "san-dns",
        /// Likewise a URI.
        Uri = "san-uri",
        /// Likewise an e-mail address.
        Email = "san-email",
    }

    /// What gives way when a session's queue is full; QoS 0 first in any case.
    pub enum QueueDropPolicy {
        /// The message that comes.
        DropNew = "drop-new",
        /// The one that waited longest.
        DropOldest = "drop-oldest",
    }

    /// What a client gets whose subscriptions overlap.
    pub enum Overlapping {
        /// One copy at the highest QoS.
        OneCopy = "one-copy",
        /// One for each subscription.
        OneEach = "one-each",
    }

    /// Which member of a shared subscription gets a message.
    pub enum SharedStrategy {
        /// Each in turn.
        RoundRobin = "round-robin",
        /// Any.
        Random = "random",
        /// One until it goes.
        Sticky = "sticky",
        /// The same for the same publisher.
        HashClient = "hash-client",
        /// The same for the same topic.
        HashTopic = "hash-topic",
        /// The one with the fewest unacknowledged messages.
        LeastInflight = "least-inflight",
    }

    /// Who is sent to other nodes because this one has clearly more clients.
    pub enum Balance {
        /// Nobody.
        Off = "off",
        /// MQTT 5 clients for which there is a Server Reference.
        Told = "told",
        /// Anyone.
        All = "all",
    }

    /// How events are written.
    pub enum LogFormat {
        /// `human` on a terminal, `json` elsewhere.
        Auto = "auto",
        /// For people.
        Human = "human",
        /// For machines, one object a line.
        Json = "json",
    }
}

impl Settings {
    /// What this node is called.
    #[must_use]
    pub fn node_name(&self) -> String {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.node.clone().unwrap_or_else(host)
    }
}

impl Settings {
    /// Whether there are bounds on how fast clients may publish, on any listener.
    #[must_use]
    pub fn has_publish_rates(&self) -> bool {
        let of_listener = |one: &ListenerConfig| one.publish_rate_max != 0 || one.publish_bytes_rate_max != 0;
        let session = &self.session;
        session.publish_rate_max != 0 || session.publish_bytes_rate_max != 0 || self.listener.iter().any(of_listener)
    }
}

impl AuthConfig {
    /// Whether there are users, so that nobody who comes without a name is meant unless somebody says so.
    #[must_use]
    pub fn has_users(&self) -> bool {
        self.password_file.is_some() || self.jwt.is_some() || self.http.url.is_some()
    }
}

impl ClusterConfig {
    /// Where other nodes dial this one; `None` if it is alone.
    #[must_use]
    pub fn advertised(&self) -> Option<String> {
        let address = self.address?;
        Some(self.advertise.clone().unwrap_or_else(|| address.to_string()))
    }

    /// The certificates, if all three files are given.
    #[must_use]
    pub fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            ca: self.ca_file.clone()?,
            certificate: self.certificate_file.clone()?,
            key: self.key_file.clone()?,
        })
    }
}

impl From<ProtocolVersion> for mqtt::ProtocolVersion {
    fn from(version: ProtocolVersion) -> Self {
        match version {
            ProtocolVersion::V3_1 => Self::V3_1,
            ProtocolVersion::V3_1_1 => Self::V3_1_1,
            ProtocolVersion::V5 => Self::V5,
        }
    }
}

impl ListenerConfig {
    /// Whether `version` is spoken on this listener.
    #[must_use]
    pub fn speaks(&self, version: mqtt::ProtocolVersion) -> bool {
        self.protocol_versions.iter().any(|&own| mqtt::ProtocolVersion::from(own) == version)
    }

    /// Whether all its clients are on this machine. Behind a proxy that says for whom it connects may be anybody.
    #[must_use]
    pub fn is_for_this_machine(&self) -> bool {
        let forwards = |websocket: &WebSocketConfig| !websocket.forwarded_from.is_empty();
        let is_proxied = !self.proxy_protocol_from.is_empty() || self.websocket.as_ref().is_some_and(forwards);
        self.address.is_local() && !is_proxied
    }

    /// Whether clients of this listener may come without a user name: its own word, else that of `settings`, else
    /// whether they are on this machine, and nobody has said who its users are.
    #[must_use]
    pub fn allows_anonymous(&self, settings: &Settings) -> bool {
        let said = self.allow_anonymous.or(settings.allow_anonymous);
        said.unwrap_or_else(|| self.is_for_this_machine() && !settings.auth.has_users())
    }
}
