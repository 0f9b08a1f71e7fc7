//! TLS on a listener: real handshakes with certificates made here.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kentongan::api::tokens::{Role, Token};
use kentongan_proto::mqtt::codec::{self, FrameStatus, Limits, Sender};
use kentongan_proto::mqtt::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tempfile::TempDir;

use super::support::{Broker, DEADLINE, QOS0, broker_command, connect, id, publish, qos1, wait_for};

/// Certificates of an authority of its own, in a directory.
struct Certificates {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Authority of the test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// `NAME.crt` and `NAME.key` for these DNS names, with this serial number.
    fn server(&self, name: &str, names: &[&str], serial: u64) {
        self.certify(name, names, serial, ExtendedKeyUsagePurpose::ServerAuth);
    }

    /// The same of a client, whose common name is `name`.
    fn client(&self, name: &str, serial: u64) {
        self.certify(name, &[], serial, ExtendedKeyUsagePurpose::ClientAuth);
    }

    fn certify(&self, name: &str, names: &[&str], serial: u64, usage: ExtendedKeyUsagePurpose) {
        self.certify_until(name, names, serial, usage, Duration::from_secs(4_000_000_000));
    }

    /// The same, good until then (Unix time).
    fn certify_until(&self, name: &str, names: &[&str], serial: u64, usage: ExtendedKeyUsagePurpose, until: Duration) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_after = date_time_ymd(1970, 1, 1) + until;
        let key = KeyPair::generate().unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.crt")), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
    }

    /// `ca.crl`, with these serial numbers in it.
    fn revoke(&self, serials: &[u64]) {
        self.revoke_until(serials, 2099);
    }

    /// The same, to be replaced by another list in that year.
    fn revoke_until(&self, serials: &[u64], year: i32) {
        let revoked = serials.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        fs::write(self.path("ca.crl"), list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
    }

    /// Settings of a TLS listener that shows `server.crt`.
    fn settings(&self, more: &str) -> String {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[listener.tls]\ncertificate_file = {:?}\nkey_file = {:?}\n{more}",
            self.text("server.crt"),
            self.text("server.key")
        )
    }

    fn tls(&self, versions: &[&'static SupportedProtocolVersion], certificate: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = vec![CertificateDer::from_pem_file(self.path(&format!("{name}.crt"))).unwrap()];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.resumption = Resumption::in_memory_sessions(16);
        Arc::new(config)
    }
}

/// An authority and a server's certificate for `localhost`.
fn localhost() -> Certificates {
    let certificates = Certificates::new();
    certificates.server("server", &["localhost"], 1);
    certificates
}

const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// A client over TLS.
struct TlsClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl TlsClient {
    /// Shakes hands.
    fn dial(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Self> {
        Self::dial_behind(b"", address, config, name)
    }

    /// The same behind a balancer that says `header` first.
    fn dial_behind(
        header: &[u8],
        address: SocketAddr,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.write_all(header)?;
        Self::dial_on(socket, config, name)
    }

    fn dial_on(mut socket: TcpStream, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<Self> {
        socket.set_read_timeout(Some(DEADLINE))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self { stream: StreamOwned::new(connection, socket), buffer: Vec::new() })
    }

    /// Shakes hands, connects, and waits for CONNACK.
    fn open(address: SocketAddr, config: &Arc<ClientConfig>, client_id: &str) -> std::io::Result<Self> {
        let mut client = Self::dial(address, config, "localhost")?;
        client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, client_id))))?;
        match client.receive()? {
            Packet::ConnAck(connack) if connack.reason_code == ReasonCode::Success => Ok(client),
            other => panic!("CONNACK expected, got {other:?}"),
        }
    }

    fn send(&mut self, packet: &Packet) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        codec::encode(packet, ProtocolVersion::V5, &mut bytes).unwrap();
        self.stream.write_all(&bytes)?;
        self.stream.flush()
    }

    fn receive(&mut self) -> std::io::Result<Packet> {
        let limits = Limits { packet_bytes_max: 268_435_460, ..Limits::default() };
        loop {
            if let FrameStatus::Complete(frame) = codec::split_frame(&self.buffer, Sender::Server, &limits).unwrap() {
                let packet = codec::decode(&frame, None, ProtocolVersion::V5, Sender::Server, &limits).unwrap();
                let length = frame.len();
                self.buffer.drain(..length);
                return Ok(packet);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn subscribe(&mut self, filter: &str) {
        self.send(&Packet::Subscribe(Subscribe {
            packet_id: id(9),
            filters: vec![(filter.to_owned(), SubscriptionOptions::new(QoS::AtMostOnce))],
            subscription_identifier: None,
            user_properties: Vec::new(),
        }))
        .unwrap();
        assert!(matches!(self.receive().unwrap(), Packet::SubAck(_)));
    }

    fn expect_publish(&mut self) -> Publish {
        match self.receive().unwrap() {
            Packet::Publish(publish) => publish,
            other => panic!("PUBLISH expected, got {other:?}"),
        }
    }

    /// The certificate that the server showed.
    fn server_certificate(&self) -> CertificateDer<'static> {
        self.stream.conn.peer_certificates().unwrap()[0].clone()
    }

    fn kind(&self) -> HandshakeKind {
        self.stream.conn.handshake_kind().unwrap()
    }
}

fn certificate_in(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[test]
fn messages_of_any_size_pass_over_tls_1_2_and_1_3() {
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    for version in [&TLS12, &TLS13] {
        let config = certificates.tls(&[version], None);
        let mut client = TlsClient::open(broker.address, &config, "one").unwrap();
        assert_eq!(client.stream.conn.protocol_version(), Some(version.version));
        client.subscribe("size/#");
        for bytes in [0, 1, 100, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 100_000, 900_000] {
            let payload: String = (0..bytes).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
            client.send(&Packet::Publish(publish("size/x", &payload, QOS0))).unwrap();
            let got = client.expect_publish().payload;
            assert!(got == payload.as_bytes(), "{bytes} bytes became {} others", got.len());
        }
    }
    broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"full\"}", |count| count >= 2.0);
    broker.wait_for_metric("kentongan_tls_handshakes_in_progress", |count| count == 0.0);
}

/// The socket takes no more in the middle of a record, over and over: nothing is lost, doubled or stuck.
#[test]
fn a_subscriber_that_reads_late_gets_everything_in_order() {
    const MESSAGES: u16 = 1500;
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let config = certificates.tls(BOTH, None);
    let mut subscriber = TlsClient::open(broker.address, &config, "late").unwrap();
    subscriber.subscribe("late/#");
    let mut publisher = TlsClient::open(broker.address, &config, "publisher").unwrap();
    let payload = |number: u16| format!("{number} {}", "x".repeat(usize::from(number) * 7 % 5000));
    for number in 0..MESSAGES {
        publisher.send(&Packet::Publish(publish("late/x", &payload(number), qos1(1 + number % 20)))).unwrap();
        assert!(matches!(publisher.receive().unwrap(), Packet::PubAck(_)));
    }
    for number in 0..MESSAGES {
        assert_eq!(subscriber.expect_publish().payload, payload(number).as_bytes(), "message {number}");
    }
}

/// The client hears that the stream ends here by the server's will, and not that somebody cut it.
#[test]
fn the_end_of_a_connection_is_said() {
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let mut client = TlsClient::open(broker.address, &certificates.tls(BOTH, None), "leaves").unwrap();
    client.stream.write_all(&[0xe0, 0]).unwrap();
    let mut rest = Vec::new();
    // Without close_notify this is an error.
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "nothing but the end");
}

/// Abuse: [certificates]
#[test]
fn certificates_reload_without_a_restart_and_an_invalid_one_keeps_the_old() {
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let config = certificates.tls(BOTH, None);
    let shown = || {
        // A session that is resumed shows no certificate.
        let config = certificates.tls(BOTH, None);
        TlsClient::dial(broker.address, &config, "localhost").unwrap().server_certificate()
    };
    let mut connected = TlsClient::open(broker.address, &config, "stays").unwrap();
    let first = shown();

    certificates.server("server", &["localhost"], 2);
    wait_for("the new certificate is shown", || shown() != first);
    let second = certificate_in(&certificates.path("server.crt"));
    assert_eq!(shown(), second);

    fs::write(certificates.path("server.crt"), "no certificate").unwrap();
    let line = broker.wait_for_log("new certificates cannot be used");
    assert!(line.contains("server.crt: holds no certificate in PEM"), "{line}");
    assert_eq!(shown(), second);
    broker.hang_up();
    broker.wait_for_log("new certificates cannot be used");
    assert_eq!(shown(), second);
    assert!(broker.metric("kentongan_tls_reloads_total{outcome=\"refused\"}") >= 2.0);

    // The key of another.
    certificates.server("other", &["localhost"], 3);
    fs::copy(certificates.path("other.crt"), certificates.path("server.crt")).unwrap();
    let line = broker.wait_for_log("new certificates cannot be used");
    assert!(line.contains("server.crt: does not go with its key"), "{line}");
    assert_eq!(shown(), second);

    fs::copy(certificates.path("other.key"), certificates.path("server.key")).unwrap();
    broker.hang_up();
    broker.wait_for_log("new certificates are in use");
    assert_eq!(shown(), certificate_in(&certificates.path("other.crt")));
    connected.send(&Packet::PingReq).unwrap();
    assert_eq!(connected.receive().unwrap(), Packet::PingResp, "who was there stays");
}

/// What POST to the API of `broker`, at `address`, comes to: status and body.
fn post(address: SocketAddr, token: &Token, path: &str) -> (u16, serde_json::Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let token = token.expose();
    let head =
        format!("POST /api/v1{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// A reload by which certificates are refused is refused as a whole, and whoever asked for it is told; one that takes the API's tokens
/// away closes the API.
///
/// Abuse: [certificates]
#[test]
fn a_reload_is_applied_as_a_whole_or_not_and_says_so() {
    let certificates = localhost();
    let token = Token::draw();
    fs::write(certificates.path("tokens"), token.line("putu", Role::Administrator)).unwrap();
    let audit = certificates.path("audit");
    let listener = certificates.settings("");
    let write = |level: &str, tokens_file: &str| {
        let api = format!("[api]\naddress = \"127.0.0.1:0\"\n{tokens_file}");
        let text = format!("{listener}{api}[log]\nfilter = {level:?}\naudit_file = {audit:?}\n");
        fs::write(certificates.path("kentongan.toml"), text).unwrap();
    };
    let tokens_file = format!("tokens_file = {:?}\n", certificates.path("tokens"));
    write("info", &tokens_file);
    let broker = Broker::with_file(&certificates.path("kentongan.toml"));
    let api = broker.api.unwrap();
    let reload = || post(api, &token, "/reload").1["data"][0].clone();
    assert_eq!(reload()["applied"], true);

    fs::write(certificates.path("server.crt"), "no certificate").unwrap();
    write("debug", &tokens_file);
    let refused = reload();
    assert_eq!(refused["applied"], false, "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("server.crt: holds no certificate"), "{refused}");
    wait_for("the audit log says so", || {
        let log = fs::read_to_string(&audit).unwrap();
        log.lines().any(|line| line.contains("refused: ") && line.contains("server.crt"))
    });
    assert!(broker.metric("kentongan_settings_reloads_total{outcome=\"refused\"}") >= 1.0);

    certificates.server("server", &["localhost"], 2);
    let applied = reload();
    assert_eq!(applied["applied"], true, "{applied}");
    assert_eq!(applied["changed"], serde_json::json!(["log.filter"]), "nothing of the one before was in force");

    write("debug", "");
    broker.hang_up();
    wait_for("nobody is heard any more", || post(api, &token, "/reload").0 == 401);
}

/// Behind a balancer one client has no more than its share of the handshakes either, as far as the balancer says who it is.
///
/// Abuse: [connect-flood]
#[test]
fn a_client_behind_a_balancer_does_not_take_all_handshakes() {
    let certificates = localhost();
    let settings = certificates.settings("handshakes_max = 8\n");
    let settings = settings.replace("[listener.tls]", "proxy_protocol_from = [\"127.0.0.0/8\"]\n[listener.tls]");
    let broker = Broker::with_settings(&settings);
    let announced = |client: &str| {
        let mut stream = TcpStream::connect(broker.address).unwrap();
        write!(stream, "PROXY TCP4 {client} 10.0.0.1 50000 8883\r\n").unwrap();
        stream
    };
    let greedy: Vec<_> = (0..8).map(|_| announced("192.0.2.1")).collect();
    broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"refused\"}", |refused| refused >= 4.0);
    let config = certificates.tls(BOTH, None);
    let connection = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
    let mut other = StreamOwned::new(connection, announced("192.0.2.2"));
    other.sock.set_read_timeout(Some(DEADLINE)).unwrap();
    while other.conn.is_handshaking() {
        other.conn.complete_io(&mut other.sock).unwrap();
    }
    drop(greedy);
}

/// Abuse: [certificates]
#[test]
fn the_day_on_which_a_certificate_ends_is_shown() {
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let series = |what: &str| format!("kentongan_certificate_expires_timestamp_seconds{{use={what:?}}}");
    let (year, month) = (60.0 * 60.0 * 24.0 * 365.0, 60.0 * 60.0 * 24.0 * 30.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    broker.wait_for_metric(&series("listener"), |ends| ends > now + 10.0 * year);
    assert_eq!(broker.metric(&series("peers")), 0.0);
    assert_eq!(broker.metric(&series("api")), 0.0);

    let until = Duration::from_secs_f64(now + month);
    certificates.certify_until("server", &["localhost"], 2, ExtendedKeyUsagePurpose::ServerAuth, until);
    broker.wait_for_metric(&series("listener"), |ends| (ends - now - month).abs() < 600.0);
}

/// Abuse: [api]
#[test]
fn the_certificate_of_the_api_reloads_without_a_restart_and_an_invalid_one_keeps_the_old() {
    let certificates = localhost();
    let token = Token::draw();
    fs::write(certificates.path("tokens"), token.line("wayan", Role::Viewer)).unwrap();
    let file = |name: &str| certificates.text(name);
    let broker = Broker::with_settings(&format!(
        "[api]\naddress = \"127.0.0.1:0\"\ntokens_file = {:?}\ncertificate_file = {:?}\nkey_file = {:?}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\n",
        file("tokens"),
        file("server.crt"),
        file("server.key")
    ));
    let api = broker.api.unwrap();
    let dial = || TlsClient::dial(api, &certificates.tls(BOTH, None), "localhost").unwrap();
    let ask = |client: &mut TlsClient| {
        let request =
            format!("GET /api/v1/clients HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", token.expose());
        client.stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 15];
        client.stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    };
    let mut connected = dial();
    let first = connected.server_certificate();

    // As the files change.
    certificates.server("server", &["localhost"], 2);
    wait_for("the new certificate is shown", || dial().server_certificate() != first);
    let second = certificate_in(&certificates.path("server.crt"));
    assert_eq!(dial().server_certificate(), second);

    // Told so.
    fs::write(certificates.path("server.crt"), "no certificate").unwrap();
    broker.hang_up();
    let line = broker.wait_for_log("everything stays as it was");
    assert!(line.contains("server.crt: holds no certificate in PEM"), "{line}");
    assert_eq!(dial().server_certificate(), second);
    assert!(broker.metric("kentongan_settings_reloads_total{outcome=\"refused\"}") >= 1.0);
    certificates.server("server", &["localhost"], 3);
    broker.hang_up();
    broker.wait_for_log("the settings were read again");
    let mut client = dial();
    assert_eq!(client.server_certificate(), certificate_in(&certificates.path("server.crt")));
    ask(&mut client);
    ask(&mut connected);
}

#[test]
fn a_certificate_that_cannot_be_used_refuses_the_start_and_is_named() {
    let certificates = localhost();
    let refusal = |change: &dyn Fn()| {
        certificates.server("server", &["localhost"], 1);
        change();
        let file = certificates.path("kentongan.toml");
        let more = "client_certificate = \"required\"\nclient_ca_file = \"/nowhere/ca.crt\"\n";
        fs::write(&file, certificates.settings(if certificates.path("asks").exists() { more } else { "" })).unwrap();
        let mut command = broker_command();
        command.args(["serve", "--http", "127.0.0.1:0", "--data-dir"]).arg(certificates.path("data"));
        let output = command.arg("--config").arg(&file).stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let server = certificates.text("server.crt");
    let text = refusal(&|| fs::remove_file(certificates.path("server.crt")).unwrap());
    assert!(text.contains(&format!("{server}: cannot be read")) && text.contains("[listener.tls]"), "{text}");
    let text = refusal(&|| fs::write(certificates.path("server.key"), "-----BEGIN").unwrap());
    assert!(text.contains(&certificates.text("server.key")), "{text}");
    let text = refusal(&|| fs::write(certificates.path("asks"), "").unwrap());
    assert!(text.contains("/nowhere/ca.crt: cannot be read"), "{text}");
}

#[test]
fn clients_show_certificates_as_the_listener_demands() {
    let certificates = localhost();
    certificates.client("device-7", 70);
    certificates.client("device-8", 80);
    certificates.revoke(&[80]);
    let stranger = Certificates::new();
    stranger.client("device-9", 90);
    fs::copy(certificates.path("ca.crt"), stranger.path("ca.crt")).unwrap();
    for (demand, without) in [("optional", true), ("required", false)] {
        let more = format!(
            "client_certificate = \"{demand}\"\nclient_ca_file = {:?}\ncrl_file = {:?}\n",
            certificates.text("ca.crt"),
            certificates.text("ca.crl")
        );
        let broker = Broker::with_settings(&certificates.settings(&more));
        for version in [&TLS12, &TLS13] {
            let versions = &[version];
            let lets_in = |authority: &Certificates, certificate: Option<&str>| {
                TlsClient::open(broker.address, &authority.tls(versions, certificate), "client").is_ok()
            };
            assert_eq!(lets_in(&certificates, None), without, "{demand}, none");
            assert!(lets_in(&certificates, Some("device-7")), "{demand}");
            let line = broker.wait_for_log("\"certificate\":\"device-7\"");
            assert!(line.contains("connected"), "{line}");
            assert!(!lets_in(&certificates, Some("device-8")), "{demand}, revoked");
            assert!(!lets_in(&stranger, Some("device-9")), "{demand}, of another authority");
        }
        broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"failed\"}", |count| count >= 4.0);
    }
}

/// A header of the PROXY protocol, version 2, of a balancer that found a certificate of "meter-7" good.
const OF_METER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1E\xC0\0\x02\x08\x0A\0\0\x01\xC3\x51\x07\x5B\
    \x20\0\x0F\x03\0\0\0\0\x22\0\x07meter-7";

/// Abuse: [certificates]
#[test]
fn who_shows_a_certificate_is_not_whom_the_balancer_names() {
    let certificates = localhost();
    certificates.client("device-7", 70);
    let more = format!("client_certificate = \"optional\"\nclient_ca_file = {:?}\n", certificates.text("ca.crt"));
    let believed = "proxy_protocol_from = [\"127.0.0.0/8\"]\nproxy_protocol_identity = true\n[listener.tls]";
    let broker = Broker::with_settings(&certificates.settings(&more).replace("[listener.tls]", believed));
    for (certificate, expected) in [(Some("device-7"), "device-7"), (None, "meter-7")] {
        let config = certificates.tls(BOTH, certificate);
        let mut client = TlsClient::dial_behind(OF_METER, broker.address, &config, "localhost").unwrap();
        client.send(&Packet::Connect(Box::new(connect(ProtocolVersion::V5, "client")))).unwrap();
        assert!(matches!(client.receive().unwrap(), Packet::ConnAck(_)));
        let line = broker.wait_for_log("\"connected\"");
        assert!(line.contains(&format!("\"certificate\":\"{expected}\"")), "{line}");
    }
}

#[test]
fn a_certificate_counts_under_a_websocket_too() {
    let certificates = localhost();
    certificates.client("device-7", 70);
    let more = format!(
        "client_certificate = \"required\"\nclient_ca_file = {:?}\n[listener.websocket]\n",
        certificates.text("ca.crt")
    );
    let broker = Broker::with_settings(&certificates.settings(&more));
    let config = certificates.tls(BOTH, Some("device-7"));
    let mut client = TlsClient::dial(broker.address, &config, "localhost").unwrap();
    let mut bytes = b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: mqtt\r\n\r\n"
        .to_vec();
    let mut packet = Vec::new();
    let asked = Packet::Connect(Box::new(connect(ProtocolVersion::V5, "client")));
    codec::encode(&asked, ProtocolVersion::V5, &mut packet).unwrap();
    // A binary frame whose mask changes nothing.
    bytes.extend([0x82, 0x80 | u8::try_from(packet.len()).unwrap(), 0, 0, 0, 0]);
    bytes.extend(packet);
    client.stream.write_all(&bytes).unwrap();
    client.stream.flush().unwrap();
    let line = broker.wait_for_log("\"connected\"");
    assert!(line.contains("\"certificate\":\"device-7\""), "{line}");
}

/// By default a list that nobody renewed locks nobody out that it does not name; it is said that it should have been renewed.
#[test]
fn a_list_that_has_run_out_counts_as_the_setting_says() {
    let certificates = localhost();
    certificates.client("device-7", 70);
    certificates.client("device-8", 80);
    for (crl_expired, lets_in) in [("", true), ("crl_expired = \"refuse\"\n", false)] {
        certificates.revoke_until(&[80], 2025);
        let more = format!(
            "client_certificate = \"required\"\nclient_ca_file = {:?}\ncrl_file = {:?}\n{crl_expired}",
            certificates.text("ca.crt"),
            certificates.text("ca.crl")
        );
        let broker = Broker::with_settings(&certificates.settings(&more));
        broker.wait_for_log("a list of revoked certificates (tls.crl_file) has run out");
        broker.wait_for_metric("kentongan_tls_expired_lists", |count| count == 1.0);
        let is_let_in = |name: &str| {
            let config = certificates.tls(&[&TLS13], Some(name));
            TlsClient::open(broker.address, &config, "client").is_ok()
        };
        assert_eq!((is_let_in("device-7"), is_let_in("device-8")), (lets_in, false), "{crl_expired}");
        certificates.revoke(&[80]);
        broker.hang_up();
        broker.wait_for_log("settings were read again");
        assert_eq!((is_let_in("device-7"), is_let_in("device-8")), (true, false), "a new list");
        broker.wait_for_metric("kentongan_tls_expired_lists", |count| count == 0.0);
    }
}

/// A ticket does not outlive the right to have got it.
#[test]
fn a_certificate_that_is_revoked_does_not_come_back_by_a_ticket() {
    let certificates = localhost();
    certificates.client("device-7", 70);
    certificates.revoke(&[]);
    let more = format!(
        "client_certificate = \"required\"\nclient_ca_file = {:?}\ncrl_file = {:?}\n",
        certificates.text("ca.crt"),
        certificates.text("ca.crl")
    );
    let broker = Broker::with_settings(&certificates.settings(&more));
    for version in [&TLS12, &TLS13] {
        let config = certificates.tls(&[version], Some("device-7"));
        certificates.revoke(&[]);
        broker.hang_up();
        broker.wait_for_log("settings were read again");
        let mut client = TlsClient::open(broker.address, &config, "client").unwrap();
        client.subscribe("x");
        let client = TlsClient::open(broker.address, &config, "client").unwrap();
        assert_eq!(client.kind(), HandshakeKind::Resumed);
        broker.wait_for_log("\"certificate\":\"device-7\"");
        broker.wait_for_log("\"certificate\":\"device-7\"");
        certificates.revoke(&[70]);
        broker.hang_up();
        broker.wait_for_log("settings were read again");
        assert!(TlsClient::open(broker.address, &config, "client").is_err());
    }
}

/// The nodes of a cluster get a new secret one after the other: clients go on resuming meanwhile, and get tickets of the new one.
#[test]
fn tickets_of_a_secret_that_was_replaced_are_good_for_a_while() {
    let certificates = localhost();
    let more = |name: &str| format!("ticket_key_file = {:?}\n", certificates.text(name));
    for name in ["tickets", "others"] {
        fs::write(certificates.path(name), [7; 48]).unwrap();
    }
    let renewed = Broker::with_settings(&certificates.settings(&more("tickets")));
    let behind = Broker::with_settings(&certificates.settings(&more("others")));
    for (version, byte) in [(&TLS12, 8), (&TLS13, 9)] {
        let config = certificates.tls(&[version], None);
        let kind = |broker: &Broker| {
            let mut client = TlsClient::open(broker.address, &config, "client").unwrap();
            client.subscribe("x");
            client.kind()
        };
        assert_eq!(kind(&behind), HandshakeKind::Full);
        fs::write(certificates.path("tickets"), [byte; 48]).unwrap();
        renewed.hang_up();
        renewed.wait_for_log("settings were read again");
        assert_eq!(kind(&renewed), HandshakeKind::Resumed, "by a ticket of the secret before");
        assert_eq!(kind(&renewed), HandshakeKind::Resumed, "by one of the new secret");
        assert_eq!(kind(&behind), HandshakeKind::Full, "which the other node does not have yet");
        fs::write(certificates.path("others"), [byte; 48]).unwrap();
        behind.hang_up();
        behind.wait_for_log("settings were read again");
        assert_eq!(kind(&renewed), HandshakeKind::Resumed);
        assert_eq!(kind(&behind), HandshakeKind::Resumed);
    }
}

/// Tickets go on for hours, each got by the one before; the certificate of a device may be good for less.
#[test]
fn a_certificate_that_runs_out_does_not_come_back_by_a_ticket() {
    const USAGE: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;
    let certificates = localhost();
    let more = format!("client_certificate = \"required\"\nclient_ca_file = {:?}\n", certificates.text("ca.crt"));
    let broker = Broker::with_settings(&certificates.settings(&more));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for version in [&TLS12, &TLS13] {
        let open = |config: &Arc<ClientConfig>| {
            let mut client = TlsClient::open(broker.address, config, "client")?;
            // Tickets of TLS 1.3 come behind the handshake.
            client.subscribe("x");
            Ok::<_, std::io::Error>(client.kind())
        };
        // As short as the machine lets it be.
        let (config, until) = (3..30)
            .find_map(|seconds| {
                let until = now() + Duration::from_secs(seconds);
                certificates.certify_until("short", &[], 70, USAGE, until);
                let config = certificates.tls(&[version], Some("short"));
                let kinds = [(); 3].map(|()| open(&config).ok());
                let expected = [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed].map(Some);
                (kinds == expected && now() < until).then_some((config, until))
            })
            .expect("three handshakes in less time than that");
        wait_for("the certificate runs out", || now().as_secs() > until.as_secs());
        let failed = broker.metric("kentongan_tls_handshakes_total{outcome=\"failed\"}");
        let error = open(&config).expect_err("refused");
        assert!(error.to_string().contains("CertificateExpired"), "{error}");
        broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"failed\"}", |count| count > failed);
    }
}

/// `--tls-use-os-certs` counts beside the other flags that name authorities.
#[test]
fn the_client_trusts_the_authorities_of_the_system_beside_others() {
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let stranger = Certificates::new();
    let publishes = |flags: &[&str]| {
        let mut command = broker_command();
        command.args(["pub", "-h", "localhost", "-p", &broker.address.port().to_string(), "-t", "x", "-m", "x"]);
        command.args(["--cafile", &stranger.text("ca.crt")]).args(flags);
        // Where the system's authorities are.
        command.env("SSL_CERT_FILE", certificates.path("ca.crt")).stdin(Stdio::null());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (trusted, text) = publishes(&[]);
    assert!(!trusted && text.contains("invalid peer certificate"), "{text}");
    let (trusted, text) = publishes(&["--tls-use-os-certs"]);
    assert!(trusted, "{text}");
}

#[test]
fn sessions_are_resumed_on_another_node_that_has_the_same_ticket_key() {
    let certificates = localhost();
    fs::write(certificates.path("tickets"), [7; 48]).unwrap();
    let more = format!("ticket_key_file = {:?}\n", certificates.text("tickets"));
    let nodes: Vec<Broker> = (0..2).map(|_| Broker::with_settings(&certificates.settings(&more))).collect();
    let alone = Broker::with_settings(&certificates.settings(""));
    for version in [&TLS12, &TLS13] {
        let config = certificates.tls(&[version], None);
        let kind = |broker: &Broker| {
            let mut client = TlsClient::open(broker.address, &config, "client").unwrap();
            // Tickets of TLS 1.3 come behind the handshake.
            client.subscribe("x");
            client.kind()
        };
        assert_eq!(kind(&nodes[0]), HandshakeKind::Full);
        assert_eq!(kind(&nodes[1]), HandshakeKind::Resumed);
        assert_eq!(kind(&nodes[0]), HandshakeKind::Resumed);
        assert_eq!(kind(&alone), HandshakeKind::Full, "a secret of its own");
        assert_eq!(kind(&alone), HandshakeKind::Resumed);
    }
    nodes[1].wait_for_metric("kentongan_tls_handshakes_total{outcome=\"resumed\"}", |count| count == 2.0);
}

#[test]
fn the_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let certificates = localhost();
    certificates.server("fleet", &["*.fleet.example"], 2);
    let more = format!(
        "[[listener.tls.sni]]\ncertificate_file = {:?}\nkey_file = {:?}\n",
        certificates.text("fleet.crt"),
        certificates.text("fleet.key")
    );
    let broker = Broker::with_settings(&certificates.settings(&more));
    for (name, file) in [("localhost", "server.crt"), ("a.fleet.example", "fleet.crt")] {
        let client = TlsClient::dial(broker.address, &certificates.tls(BOTH, None), name).unwrap();
        assert_eq!(client.server_certificate(), certificate_in(&certificates.path(file)), "{name}");
    }
}

#[test]
fn versions_suites_and_protocols_are_those_of_the_settings() {
    let certificates = localhost();
    let more = "minimum_version = \"1.3\"\ncipher_suites = [\"TLS_CHACHA20_POLY1305_SHA256\"]\n";
    let broker = Broker::with_settings(&certificates.settings(more));
    let dial = |config: &Arc<ClientConfig>| TlsClient::dial(broker.address, config, "localhost");
    let client = dial(&certificates.tls(BOTH, None)).unwrap();
    let suite = client.stream.conn.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    assert!(dial(&certificates.tls(&[&TLS12], None)).is_err());

    let mut config = ClientConfig::clone(&certificates.tls(BOTH, None));
    config.alpn_protocols = vec![b"other".to_vec(), b"mqtt".to_vec()];
    let client = dial(&Arc::new(config.clone())).unwrap();
    assert_eq!(client.stream.conn.alpn_protocol(), Some(&b"mqtt"[..]));
    config.alpn_protocols.pop();
    assert!(dial(&Arc::new(config)).is_err(), "a client of another protocol");
}

/// The time from accepting a connection to its CONNECT includes the handshake, and handshakes that go on are bounded: of one
/// address by half, so that others get in beside it.
/// Abuse: [slow-connect]
#[test]
fn stalled_tls_handshakes_end_in_time_and_are_bounded() {
    let certificates = localhost();
    let settings = certificates.settings("handshakes_max = 40\n");
    let settings = settings.replacen("[listener.tls]", "connect_timeout_seconds = 5\n[listener.tls]", 1);
    let broker = Broker::with_settings(&settings);
    let begun = Instant::now();
    let mut stalled: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(broker.address).unwrap()).collect();
    for (number, socket) in stalled.iter_mut().enumerate() {
        // The beginning of a record, more or less of it.
        socket.write_all(&[22, 3, 1, 0, 200, 1][..number % 7]).unwrap();
    }
    broker.wait_for_metric("kentongan_tls_handshakes_in_progress", |count| count == 20.0);
    let config = certificates.tls(BOTH, None);
    assert!(TlsClient::open(broker.address, &config, "too many").is_err());
    assert!(broker.metric("kentongan_tls_handshakes_total{outcome=\"refused\"}") >= 1.0);
    let beside = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    beside.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    beside.connect(&broker.address.into()).unwrap();
    TlsClient::dial_on(beside.into(), &config, "localhost").unwrap();
    for socket in &mut stalled {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        assert!(matches!(socket.read(&mut [0; 16]), Ok(0) | Err(_)));
    }
    assert!(begun.elapsed() >= Duration::from_secs(4), "not before they had their time");
    broker.wait_for_metric("kentongan_tls_handshakes_in_progress", |count| count == 0.0);
    broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"given_up\"}", |count| count == 20.0);
    TlsClient::open(broker.address, &config, "now").unwrap();
}

/// Handshakes that stall, each at another point, and many of them after the broker has done its work: nobody waits for them.
///
/// Abuse: [slow-connect]
#[test]
fn a_client_comes_in_within_a_second_beside_500_handshakes_that_stall() {
    const STALLED: usize = 500;
    const WITHIN: Duration = Duration::from_secs(1);
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let config = certificates.tls(BOTH, None);
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::clone(&config), name).unwrap().write_tls(&mut hello).unwrap();
    let stall = |number: usize| {
        let mut socket = TcpStream::connect(broker.address).unwrap();
        let said = if number.is_multiple_of(3) { hello.len() } else { number % hello.len() };
        socket.write_all(&hello[..said]).unwrap();
        socket
    };
    let stalled: Vec<_> = (0..STALLED).map(stall).collect();
    broker.wait_for_metric("kentongan_tls_handshakes_in_progress", |count| count == STALLED as f64);
    let served_after = |round| {
        let began = Instant::now();
        let mut client = TlsClient::open(broker.address, &config, &format!("client{round}")).unwrap();
        client.send(&Packet::Publish(publish("nobody", "served", qos1(1)))).unwrap();
        assert!(matches!(client.receive().unwrap(), Packet::PubAck(_)));
        began.elapsed()
    };
    let mut took: Vec<_> = (0..20).map(served_after).collect();
    took.sort();
    // The machine may do something else once.
    assert!(took[18] < WITHIN, "served after {took:?}");
    assert!(broker.metric("kentongan_tls_handshakes_in_progress") >= STALLED as f64 / 2.0, "they stall all the while");
    drop(stalled);
}

fn bytes_of(value: u8) -> Vec<u8> {
    vec![value; 40_000]
}

/// Whatever comes instead of TLS, the connection ends and the broker does not.
#[test]
fn bytes_that_are_no_tls_end_the_connection() {
    let certificates = localhost();
    let broker = Broker::with_settings(&certificates.settings(""));
    let long = vec![0x16; 100_000];
    for bytes in
        [&b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c\0\0"[..], b"GET / HTTP/1.1\r\n\r\n", &long, &[22, 3, 3, 255, 255, 1]]
    {
        let mut socket = TcpStream::connect(broker.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        drop(socket.write_all(bytes));
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    let config = certificates.tls(BOTH, None);
    broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"failed\"}", |count| count >= 4.0);
    TlsClient::open(broker.address, &config, "after").unwrap();

    // What is nearly TLS, and nonsense behind a handshake.
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::clone(&config), name).unwrap().write_tls(&mut hello).unwrap();
    for number in 0..300 {
        let mut bytes = hello.repeat(1 + number % 3);
        let at = number * 7919 % bytes.len();
        bytes[at] ^= 1 << (number % 8);
        bytes.truncate(bytes.len() - number % 11);
        let mut socket = TcpStream::connect(broker.address).unwrap();
        drop(socket.write_all(&bytes));
    }
    for nonsense in [&bytes_of(0), &bytes_of(0x17), &long, &vec![23, 3, 3, 0, 20], &hello] {
        let mut client = TlsClient::open(broker.address, &config, "nonsense").unwrap();
        drop(client.stream.sock.write_all(nonsense));
        drop(client.stream.sock.write_all(nonsense));
        drop(client.stream.sock.shutdown(std::net::Shutdown::Write));
        while client.receive().is_ok() {}
    }
    broker.wait_for_metric("kentongan_tls_handshakes_in_progress", |count| count == 0.0);
    TlsClient::open(broker.address, &config, "after").unwrap();
}

/// Only so much of a turn goes into handshakes; those that have to wait for another turn get it.
#[test]
fn a_storm_of_handshakes_is_done_turn_by_turn_to_the_end() {
    const DEVICES: usize = 400;
    let certificates = localhost();
    let broker = Broker::with_settings(&format!("arbiters = 1\n{}", certificates.settings("")));
    let config = certificates.tls(BOTH, None);
    let mut before = TlsClient::open(broker.address, &config, "before").unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut storm: Vec<_> = (0..DEVICES)
        .map(|_| {
            let socket = TcpStream::connect(broker.address).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            // No ticket: every handshake is a full one.
            let mut config = ClientConfig::clone(&config);
            config.resumption = Resumption::disabled();
            (ClientConnection::new(Arc::new(config), name.clone()).unwrap(), socket)
        })
        .collect();
    for (connection, socket) in &mut storm {
        while connection.wants_write() {
            connection.write_tls(socket).unwrap();
        }
    }
    before.send(&Packet::PingReq).unwrap();
    assert_eq!(before.receive().unwrap(), Packet::PingResp);
    for (connection, socket) in &mut storm {
        while connection.is_handshaking() {
            connection.complete_io(socket).unwrap();
        }
    }
    broker.wait_for_metric("kentongan_tls_handshakes_total{outcome=\"full\"}", |count| count == DEVICES as f64 + 1.0);
}

/// Both sides say what was spoken instead, the log says where.
#[test]
fn who_comes_to_the_wrong_port_is_known_by_what_it_speaks() {
    let certificates = localhost();
    let plain = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    let websocket = format!("{plain}[listener.websocket]\n");
    let broker = Broker::with_settings(&format!("{}{plain}{websocket}", certificates.settings("")));
    let tls = broker.address;
    let (plain, websocket) = (broker.next_listener(), broker.next_listener());
    let authority = certificates.text("ca.crt");
    let by_tls = ["--cafile", authority.as_str()];
    for (address, flags, said, logged) in [
        (
            tls,
            &[][..],
            "what came is TLS, not MQTT; the port wants TLS: say --cafile",
            "the client speaks MQTT without",
        ),
        (tls, &["--ws"], "what came is TLS, not MQTT", "the client speaks HTTP without"),
        (plain, &by_tls, "is it a port with TLS?", "the client speaks TLS, and here is MQTT"),
        (plain, &["--ws"], "is it a port with WebSocket?", "the client speaks HTTP, and here is MQTT"),
        (
            websocket,
            &[],
            "what came is HTTP, not MQTT; if it is a port with WebSocket, say --ws",
            "the client speaks MQTT, and",
        ),
        (websocket, &by_tls, "is it a port with TLS?", "the client speaks TLS, and here is WebSocket"),
    ] {
        let mut command = broker_command();
        command.args(["pub", "-h", "localhost", "-p", &address.port().to_string(), "-t", "x", "-m", "x"]);
        let output = command.args(flags).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(said), "{address} {flags:?}: {text}");
        let line = broker.wait_for_log("ended before CONNACK");
        assert!(line.contains(logged) && line.contains(&format!("\"listener\":\"{address}\"")), "{flags:?}: {line}");
    }
}
