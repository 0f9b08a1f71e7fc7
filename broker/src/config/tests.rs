//! Settings as people get them wrong and right.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

struct Scene {
    directory: tempfile::TempDir,
    sources: Sources,
}

impl Scene {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), sources: Sources::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(mut self, text: &str) -> Self {
        fs::write(self.path("k.toml"), text).unwrap();
        self.sources.file = Some(self.path("k.toml"));
        self
    }

    fn drop_in(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(self.path("k.toml.d")).unwrap();
        fs::write(self.path("k.toml.d").join(name), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, text: &str) -> Self {
        self.sources.environment.push((OsString::from(name), OsString::from(text)));
        self
    }

    fn flag(mut self, flag: &'static str, key: &str, value: impl Into<toml::Value>) -> Self {
        self.sources.flags.push(FlagValue::new(flag, key, value));
        self
    }

    fn load(&self) -> Effective {
        Effective::load(&self.sources).unwrap()
    }

    /// Everything that is wrong, without the directory's name.
    fn complaints(&self) -> String {
        let error = Effective::load(&self.sources).expect_err("these settings are wrong");
        error.to_string().replace(&format!("{}/", self.directory.path().display()), "")
    }
}

#[test]
fn without_any_source_the_defaults_hold() {
    let effective = Scene::new().load();
    assert_eq!(effective.settings, Settings::default());
    assert_eq!(effective.origin("session.receive_maximum"), &Origin::Default);
    assert!(effective.listeners_are_defaults());
    let addresses: Vec<_> = effective.settings.listener.iter().map(|one| one.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:1883", "[::1]:1883"]);
}

#[test]
fn flags_win_over_environment_over_drop_in_over_file_over_default() {
    let scene = Scene::new()
        .file("arbiters = 1\n[session]\nsubscriptions_max = 1\nuser_properties_max = 1\ntopic_alias_maximum = 1\n")
        .drop_in("a.toml", "[session]\nsubscriptions_max = 2\nuser_properties_max = 2\n")
        .variable("KENTONGAN_SESSION__SUBSCRIPTIONS_MAX", "3")
        .variable("KENTONGAN_ARBITERS", "3")
        .flag("--arbiters", "arbiters", 4);
    let effective = scene.load();

    let session = &effective.settings.session;
    assert_eq!(effective.settings.arbiters, 4);
    assert_eq!(session.subscriptions_max, 3);
    assert_eq!(session.user_properties_max, 2);
    assert_eq!(session.topic_alias_maximum, 1);
    assert_eq!(session.receive_maximum.get(), 1024);

    let line = |name: &str, line| Origin::File { path: scene.path(name), line: Some(line) };
    assert_eq!(effective.origin("arbiters"), &Origin::Flag("--arbiters"));
    let variable = Origin::Environment(String::from("KENTONGAN_SESSION__SUBSCRIPTIONS_MAX"));
    assert_eq!(effective.origin("session.subscriptions_max"), &variable);
    assert_eq!(effective.origin("session.user_properties_max"), &line("k.toml.d/a.toml", 3));
    assert_eq!(effective.origin("session.topic_alias_maximum"), &line("k.toml", 5));
    assert_eq!(effective.origin("session.receive_maximum"), &Origin::Default);
}

#[test]
fn drop_ins_are_read_in_the_order_of_their_names() {
    let scene = Scene::new()
        .file("")
        .drop_in("20-b.toml", "arbiters = 20")
        .drop_in("10-a.toml", "arbiters = 10\ndata_dir = \"/ten\"")
        .drop_in("30-c.conf", "this is not TOML")
        .drop_in(".40-hidden.toml", "nor = this");
    let settings = scene.load().settings;
    assert_eq!((settings.arbiters, settings.data_dir.as_path()), (20, Path::new("/ten")));
}

#[test]
fn a_list_of_listeners_is_taken_whole_from_the_strongest_source() {
    let scene = Scene::new()
        .file("[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:2\"\nnodelay = false\n")
        .variable("KENTONGAN_LISTENER", "[{ address = \"127.0.0.1:3\" }]");
    let effective = scene.load();
    let addresses: Vec<_> = effective.settings.listener.iter().map(|one| one.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:3"]);
    assert!(!effective.listeners_are_defaults());
    let variable = Origin::Environment(String::from("KENTONGAN_LISTENER"));
    assert_eq!(effective.origin("listener[0].address"), &variable);
    assert_eq!(effective.origin("listener[0].nodelay"), &Origin::Default);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_what_was_probably_meant() {
    let cases = [
        (
            "[session]\nrecieve_maximum = 1",
            "k.toml:2: unknown key `session.recieve_maximum`; did you mean `receive_maximum`?",
        ),
        ("datadir = 1", "k.toml:1: unknown key `datadir`; did you mean `data_dir`?"),
        ("\n\n[sesion]\na = 1", "k.toml:3: unknown key `sesion`; did you mean `session`?"),
        ("receive_maximum = 1", "k.toml:1: unknown key `receive_maximum`; did you mean `session.receive_maximum`?"),
        ("[[listener]]\nadress = 1", "k.toml:2: unknown key `listener[0].adress`; did you mean `address`?"),
        (
            "listener = [{ port = 1883 }]",
            "k.toml:1: unknown key `listener[0].port`; docs/reference/settings.md lists all keys",
        ),
        ("[log]\nlevel = 1", "k.toml:2: unknown key `log.level`; docs/reference/settings.md lists all keys"),
        ("session.queue_max = 1", "k.toml:1: unknown key `session.queue_max`; did you mean `queue_bytes_max`?"),
    ];
    for (text, expected) in cases {
        assert_eq!(Scene::new().file(text).complaints(), expected);
    }
}

#[test]
fn everything_unknown_is_reported_at_once() {
    let scene = Scene::new()
        .file("datadir = 1\n[session]\nrecieve_maximum = 1")
        .drop_in("a.toml", "arbitres = 2")
        .variable("KENTONGAN_ARBITER", "2");
    assert_eq!(scene.complaints().lines().count(), 4, "{}", scene.complaints());
}

#[test]
fn a_wrong_value_is_blamed_on_its_place() {
    let cases = [
        ("\narbiters = \"two\"", "k.toml:2: `arbiters`: invalid type: string \"two\", expected usize"),
        ("durability = \"fsnyc\"", "k.toml:1: `durability`: unknown variant `fsnyc`, expected `fsync` or `memory`"),
        (
            "[session]\nreceive_maximum = 0",
            "k.toml:2: `session.receive_maximum`: invalid value: integer `0`, expected a nonzero u16",
        ),
        (
            "[[listener]]\naddress = \"localhost\"",
            "k.toml:2: `listener[0].address`: \"localhost\" must be an IP address of this machine and a port, such as ",
        ),
        (
            "[[listener]]\naddress = \"127.0.0.1\"",
            "k.toml:2: `listener[0].address`: \"127.0.0.1\" has no port: write it behind the address, such as \"127.0.0.1:1883\"",
        ),
        ("[http]\ntoken = 4711", "k.toml:2: `http.token` must be text"),
        (
            "\n[listener]\naddress = \"127.0.0.1:1\"",
            "k.toml:2: `listener`: there may be several, so each begins with two brackets: [[listener]]",
        ),
        ("session = 3", "k.toml:1: `session`: invalid type: integer `3`, expected struct SessionConfig"),
        ("arbiters = ", "k.toml:1: "),
    ];
    for (text, expected) in cases {
        let found = Scene::new().file(text).complaints();
        assert!(found.starts_with(expected), "{found}\nis not\n{expected}");
    }
}

#[test]
fn contradictions_are_blamed_on_the_source_that_said_them() {
    let scene = Scene::new()
        .file("[[listener]]\naddress = \"127.0.0.1:1\"\nkeep_alive_seconds_min = 9\nkeep_alive_seconds_max = 3\n")
        .variable("KENTONGAN_SESSION__PACKET_BYTES_MAX", "268435461")
        .flag("--data-dir", "data_dir", "")
        .flag("--log", "log.filter", "=");
    let complaints = scene.complaints();
    for expected in [
        "k.toml:3: `listener[0].keep_alive_seconds_min`: larger than `keep_alive_seconds_max`",
        "environment KENTONGAN_SESSION__PACKET_BYTES_MAX: `session.packet_bytes_max`: MQTT allows at most 268435460",
        "flag --data-dir: `data_dir`: it is empty; name a directory",
        "flag --log: `log.filter`: ",
    ] {
        assert!(complaints.contains(expected), "{expected} in\n{complaints}");
    }
}

#[test]
fn two_settings_that_would_listen_at_one_address_are_named() {
    let listeners = |addresses: &[&str]| {
        addresses.iter().map(|address| format!("[[listener]]\naddress = \"{address}\"\n")).collect::<String>()
    };
    let tokens = "tokens_file = \"tokens\"\n";
    for (text, expected) in [
        (
            listeners(&["127.0.0.1:1", "127.0.0.1:1"]),
            "k.toml:4: `listener[1].address`: 127.0.0.1:1 is taken by `listener[0].address`: give one of them another port",
        ),
        (
            listeners(&["127.0.0.1:1", "127.0.0.1:2", "0.0.0.0:1"]),
            "k.toml:6: `listener[2].address`: 0.0.0.0:1 has 127.0.0.1:1 in it, which is `listener[0].address`: give one",
        ),
        (
            listeners(&["[::]:1", "127.0.0.1:1"]),
            "k.toml:4: `listener[1].address`: 127.0.0.1:1 is in [::]:1, which is `listener[0].address`: give one of them",
        ),
        (
            listeners(&["unix:/k", "unix:/k"]),
            "k.toml:4: `listener[1].address`: unix:/k is taken by `listener[0].address`",
        ),
        (
            listeners(&["0.0.0.0:1883"]) + "[http]\naddress = \"127.0.0.1:1883\"\n",
            "k.toml:4: `http.address`: 127.0.0.1:1883 is in 0.0.0.0:1883, which is `listener[0].address`",
        ),
        (
            listeners(&["0.0.0.0:8090"]),
            "k.toml:2: `listener[0].address`: 0.0.0.0:8090 has 127.0.0.1:8090 in it, which is `http.address`",
        ),
        (
            format!("[api]\naddress = \"127.0.0.1:1883\"\n{tokens}"),
            "k.toml:2: `api.address`: 127.0.0.1:1883 is taken by `listener[0].address`",
        ),
        (
            format!("[api]\naddress = \"127.0.0.1:8090\"\n{tokens}"),
            "k.toml:2: `api.address`: 127.0.0.1:8090 is taken by `http.address`",
        ),
        (
            "[cluster]\naddress = \"127.0.0.1:8090\"\n".to_owned(),
            "k.toml:2: `cluster.address`: 127.0.0.1:8090 is taken by `http.address`",
        ),
    ] {
        let found = Scene::new().file(&text).complaints();
        assert!(found.starts_with(expected) && found.trim_end().lines().count() == 1, "{text}{found}");
    }
    for text in [
        listeners(&["127.0.0.1:0", "127.0.0.1:0", "0.0.0.0:0"]),
        listeners(&["127.0.0.1:1", "127.0.0.2:1", "[::1]:1"]),
        listeners(&["0.0.0.0:1", "[::1]:1"]),
        listeners(&["127.0.0.1:18083"]),
        listeners(&["127.0.0.1:8090"]) + "[http]\nenabled = false\n",
    ] {
        Scene::new().file(&text).load();
    }
}

/// A server that answers every time must not be too late.
#[test]
fn rights_are_asked_for_again_before_they_are_outdated() {
    let section = |seconds: u32, outdated: u32| {
        format!("[auth.http]\nrights_seconds = {seconds}\nrights_outdated_seconds_max = {outdated}\n")
    };
    for outdated in [1, 300, 599] {
        let complaints = Scene::new().file(&section(300, outdated)).complaints();
        assert!(complaints.starts_with("k.toml:3: `auth.http.rights_outdated_seconds_max`: "), "{complaints}");
    }
    for outdated in [0, 600] {
        let settings = Scene::new().file(&section(300, outdated)).load().settings;
        assert_eq!(settings.auth.http.rights_outdated_seconds_max, outdated);
    }
}

#[test]
fn environment_values_have_the_type_of_their_setting() {
    let settings = Scene::new()
        .variable("KENTONGAN_DATA_DIR", "123")
        .variable("KENTONGAN_ALLOW_ANONYMOUS", "true")
        .variable("KENTONGAN_LOG__FILTER", "debug")
        .variable("KENTONGAN_HTTP__TOKEN", "9")
        .variable("KENTONGAN_LISTENER", "[{ address = \"0.0.0.0:1\", protocol_versions = [\"5\"] }]")
        .variable("PATH", "/bin")
        .load()
        .settings;
    assert_eq!(settings.data_dir, Path::new("123"));
    assert_eq!(settings.allow_anonymous, Some(true));
    assert_eq!(settings.log.filter, "debug");
    assert_eq!(settings.http.token.unwrap().expose(), "9");
    assert_eq!(settings.listener[0].protocol_versions, [ProtocolVersion::V5]);
}

#[test]
fn a_mistake_in_the_environment_is_refused() {
    let meant = "there is no such setting; did you mean KENTONGAN_SESSION__RECEIVE_MAXIMUM?";
    let cases = [
        ("KENTONGAN_SESSION__RECIEVE_MAXIMUM", "1", meant),
        ("KENTONGAN_SESSION_RECEIVE_MAXIMUM", "1", meant),
        ("KENTONGAN_DATADIR", "1", "there is no such setting; did you mean KENTONGAN_DATA_DIR?"),
        ("KENTONGAN_GAMELAN", "1", "there is no such setting; docs/reference/settings.md lists all of them"),
        ("KENTONGAN_RETAINED", "1", "this is a section; set a key of it, such as KENTONGAN_RETAINED__MESSAGES_MAX"),
        ("KENTONGAN_ARBITERS", "two", "`arbiters`: invalid type: string \"two\", expected usize"),
    ];
    for (name, text, expected) in cases {
        assert_eq!(Scene::new().variable(name, text).complaints(), format!("environment {name}: {expected}"));
    }
}

/// A Service called `kentongan` makes Kubernetes put these into every pod beside it.
#[test]
fn variables_that_kubernetes_makes_up_are_passed_over() {
    let scene = Scene::new()
        .variable("KENTONGAN_SERVICE_HOST", "10.0.0.1")
        .variable("KENTONGAN_SERVICE_PORT_MQTT", "1883")
        .variable("KENTONGAN_PORT", "tcp://10.0.0.1:1883")
        .variable("KENTONGAN_PORT_1883_TCP_ADDR", "10.0.0.1")
        .variable("KENTONGAN_HEADLESS_SERVICE_HOST", "10.0.0.1");
    assert_eq!(scene.load().settings, Settings::default());
}

#[test]
fn secrets_are_redacted_wherever_settings_are_shown() {
    let scene = Scene::new();
    fs::write(scene.path("token"), "tabuh-7\n").unwrap();
    let path = scene.path("token").display().to_string();
    let scene = scene.file(&format!("[http]\ntoken_file = \"{path}\"\n"));
    let effective = scene.load();

    assert_eq!(effective.settings.http.token.as_ref().unwrap().expose(), "tabuh-7");
    let shown = effective.show(true);
    assert!(shown.contains("token = \"<redacted>\""), "{shown}");
    assert!(!shown.contains("tabuh-7") && !format!("{effective:?}").contains("tabuh-7"));

    fs::write(scene.path("token"), "").unwrap();
    assert!(scene.complaints().starts_with("k.toml:2: `http.token_file`: cannot use "), "{}", scene.complaints());
}

#[test]
fn what_is_shown_names_the_source_of_each_value_and_is_a_file_again() {
    let scene = Scene::new().file("arbiters = 3\n").variable("KENTONGAN_SESSION__RECEIVE_MAXIMUM", "7");
    let effective = scene.load();
    let shown = effective.show(true);
    let source_of = |start: &str| {
        let line = shown.lines().find(|line| line.starts_with(start)).unwrap();
        line.split_once('#').unwrap().1.trim().replace(&format!("{}/", scene.directory.path().display()), "")
    };
    assert_eq!(source_of("arbiters = 3"), "k.toml:1");
    assert_eq!(source_of("receive_maximum = 7"), "environment KENTONGAN_SESSION__RECEIVE_MAXIMUM");
    assert_eq!(source_of("data_dir = "), "default");

    assert_eq!(effective.show(false).lines().filter(|line| line.contains('#')).count(), 2, "what somebody said");
    let again = Scene::new().file(&shown).load();
    assert_eq!(again.settings, effective.settings);
}

/// Also a section within a listener, and one within that.
#[test]
fn sections_within_a_listener_are_shown_as_they_are_written() {
    let tls = "[[listener]]\naddress = \"127.0.0.1:1\"\n[listener.tls]\ncertificate_file = \"c\"\nkey_file = \"k\"\n";
    let sni = "[[listener.tls.sni]]\ncertificate_file = \"d\"\nkey_file = \"l\"\n";
    let effective = Scene::new().file(&format!("{tls}{sni}")).load();
    assert_eq!(effective.origin("listener[0].tls.sni[0].key_file").to_string().rsplit(':').next(), Some("8"));
    for everything in [true, false] {
        let shown = effective.show(everything);
        assert!(shown.contains("\n[listener.tls]\n") && shown.contains("\n[[listener.tls.sni]]\n"), "{shown}");
        assert_eq!(Scene::new().file(&shown).load().settings, effective.settings, "{shown}");
    }
    let complaints =
        Scene::new().file(&tls.replace("key_file = \"k\"", "client_certificate = \"required\"")).complaints();
    for expected in ["`listener[0].tls.key_file`", "k.toml:4: `listener[0].tls.client_ca_file`"] {
        assert!(complaints.contains(expected), "{expected} in\n{complaints}");
    }
}

#[test]
fn what_is_no_origin_path_or_network_is_refused() {
    let listener = "[[listener]]\naddress = \"127.0.0.1:1\"\n";
    for (more, expected) in [
        ("proxy_protocol_from = [\"10.0.0.0/99\"]\n", "neither an address nor a network"),
        ("proxy_protocol_identity = true\n", "means nothing without `proxy_protocol_from`"),
        ("mount_point = \"tenant\"\n", "\"tenant\" is no mount point: it must end with \"/\""),
        ("[listener.websocket]\npath = \"mqtt\"\n", "k.toml:4: `listener[0].websocket.path`"),
        ("[listener.websocket]\norigins = [\"https://a.example/x\"]\n", "k.toml:4: `listener[0].websocket.origins`"),
        ("[listener.websocket]\norigins = [\"*\"]\n", "must be an origin such as https://example.org"),
        ("[listener.websocket]\nframe_bytes_max = 0\n", "frame_bytes_max"),
        ("[listener.websocket]\npth = \"/x\"\n", "did you mean"),
    ] {
        let complaints = Scene::new().file(&format!("{listener}{more}")).complaints();
        assert!(complaints.contains(expected), "{more}: {complaints}");
    }
    let everything = "proxy_protocol_from = [\"10.0.0.7\", \"2001:db8::/32\"]\n[listener.websocket]\n";
    let effective = Scene::new().file(&format!("{listener}{everything}")).load();
    assert_eq!(effective.settings.listener[0].websocket, Some(WebSocketConfig::default()));
    assert_eq!(Scene::new().file(&effective.show(true)).load().settings, effective.settings);
}

#[test]
fn every_setting_is_on_the_reference_page() {
    let page = reference_page();
    for (section, field) in Settings::FIELDS
        .iter()
        .flat_map(|section| section.children.unwrap_or_default().iter().map(move |field| (section, field)))
    {
        let key = if section.repeated { field.name.to_owned() } else { format!("{}.{}", section.name, field.name) };
        let heading = match field.children {
            None => format!("### `{key}`"),
            Some(_) => format!("## `[{}.{}]`", section.name, field.name),
        };
        assert!(page.contains(&heading), "{heading}");
        assert!(!field.doc.is_empty(), "{key} says nothing");
    }
    let websocket = page.split("## `[listener.websocket]`").nth(1).unwrap();
    assert!(websocket.contains("### `path`") && websocket.contains("- Default: `\"/mqtt\"`"), "{websocket}");
    let tls = page.split("## `[listener.tls]`").nth(1).unwrap();
    assert!(tls.contains("### `minimum_version`") && tls.contains("- Default: `\"1.2\"`"), "{tls}");
    assert!(page.contains("## `[[listener.tls.sni]]`"));
}

#[test]
fn anonymous_clients_may_come_over_loopback_unless_somebody_says_otherwise() {
    let listener = |address: &str, own| ListenerConfig {
        address: address.parse().unwrap(),
        allow_anonymous: own,
        ..ListenerConfig::default()
    };
    let settings = |said, users: Option<&str>| {
        let mut settings = Settings { allow_anonymous: said, ..Settings::default() };
        settings.auth.password_file = users.map(Into::into);
        settings
    };
    let users = Some("users");
    for (address, own, said, users, expected) in [
        ("127.0.0.1:1", None, None, None, true),
        ("[::1]:1", None, None, None, true),
        ("unix:/run/k.sock", None, None, None, true),
        ("0.0.0.0:1", None, None, None, false),
        ("0.0.0.0:1", None, Some(true), None, true),
        ("0.0.0.0:1", Some(false), Some(true), None, false),
        ("127.0.0.1:1", None, Some(false), None, false),
        ("127.0.0.1:1", Some(true), Some(false), None, true),
        // Whoever names users means users.
        ("127.0.0.1:1", None, None, users, false),
        ("unix:/run/k.sock", None, None, users, false),
        ("127.0.0.1:1", None, Some(true), users, true),
        ("127.0.0.1:1", Some(true), None, users, true),
        ("0.0.0.0:1", None, None, users, false),
    ] {
        let found = listener(address, own).allows_anonymous(&settings(said, users));
        assert_eq!(found, expected, "{address} {own:?} {said:?} {users:?}");
    }
    let tokens = AuthConfig { jwt: Some(JwtConfig::default()), ..AuthConfig::default() };
    let url = Some("https://auth.example/mqtt".parse().unwrap());
    let server = HttpAuthConfig { url, ..HttpAuthConfig::default() };
    for auth in [tokens, AuthConfig { http: server, ..AuthConfig::default() }] {
        let settings = Settings { auth, ..Settings::default() };
        assert!(!listener("127.0.0.1:1", None).allows_anonymous(&settings), "{:?}", settings.auth);
    }
    let proxies = vec!["127.0.0.1".parse().unwrap()];
    for (address, own, expected) in
        [("127.0.0.1:1", None, false), ("unix:/x", None, false), ("127.0.0.1:1", Some(true), true)]
    {
        let balanced = ListenerConfig { proxy_protocol_from: proxies.clone(), ..listener(address, own) };
        let websocket = WebSocketConfig { forwarded_from: proxies.clone(), ..WebSocketConfig::default() };
        let forwarded = ListenerConfig { websocket: Some(websocket), ..listener(address, own) };
        for listener in [balanced, forwarded] {
            assert_eq!(listener.allows_anonymous(&settings(None, None)), expected, "{address} {own:?}");
        }
    }
}

#[test]
fn how_nodes_find_each_other_is_checked() {
    let cluster = |text: &str| Scene::new().file(&format!("[cluster]\n{text}\n")).complaints();
    for (text, expected) in [
        ("seeds = [\"a:1\"]", "k.toml:2: `cluster.seeds`: means nothing without `cluster.address` (--cluster)"),
        ("advertise = \"a:1\"", "k.toml:2: `cluster.advertise`: means nothing without `cluster.address`"),
        ("address = \"127.0.0.1:1\"\nseeds = [\"a\"]", "k.toml:3: `cluster.seeds`: \"a\" must be HOST:PORT"),
        ("address = \"127.0.0.1:1\"\nseeds = [\"a:1\", \"a:1\"]", "`cluster.seeds`: a:1 stands there twice"),
        ("address = \"127.0.0.1:1\"\nadvertise = \"a:0\"", "k.toml:3: `cluster.advertise`: \"a:0\" must be HOST:PORT"),
        ("address = \"192.0.2.1:1\"", "k.toml:2: `cluster.address`: without `cluster.ca_file`"),
        (
            "address = \"127.0.0.1:1\"\nadvertise = \"192.0.2.1:1\"",
            "k.toml:3: `cluster.advertise`: without `cluster.ca_file`",
        ),
        (
            "address = \"127.0.0.1:1\"\nadvertise = \"[::]:1\"",
            "k.toml:3: `cluster.advertise`: without `cluster.ca_file`",
        ),
        ("address = \"0.0.0.0:1\"", "k.toml:2: `cluster.address`: others cannot dial 0.0.0.0:1"),
        ("key_file = \"k\"", "k.toml:2: `cluster.ca_file`: give all of"),
        (
            "address = \"127.0.0.1:1\"\n[session]\npacket_bytes_max = 12582913",
            "k.toml:4: `session.packet_bytes_max`: at most 12582912 with `cluster.address`",
        ),
        ("[storage]\ngroups = 4097", "k.toml:3: `storage.groups`: at most 4096"),
        ("voters = 2", "k.toml:2: `cluster.voters`: an odd number"),
        ("zone = \"\"", "k.toml:2: `cluster.zone`: 1 to 253 bytes"),
    ] {
        let found = cluster(text);
        assert!(found.contains(expected), "{text}: {found}");
    }
    for name in ["", "a\nb", &"n".repeat(254)] {
        let found = Scene::new().flag("--node", "node", name).complaints();
        assert!(found.starts_with("flag --node: `node`: 1 to 253 bytes"), "{found}");
    }
}

#[test]
fn a_node_that_others_can_reach_says_where_and_as_whom() {
    let files = "ca_file = \"/ca\"\ncertificate_file = \"/certificate\"\nkey_file = \"/key\"";
    let text = format!("node = \"n1\"\n[cluster]\naddress = \"[::]:7001\"\nadvertise = \"n1.example:7001\"\n{files}\n");
    let settings = Scene::new().file(&text).load().settings;
    assert_eq!(
        (settings.node_name().as_str(), settings.cluster.advertised().as_deref()),
        ("n1", Some("n1.example:7001"))
    );
    assert!(settings.cluster.tls().is_some_and(|files| files.key == Path::new("/key")));
    let alone = Settings::default();
    assert!(alone.cluster.advertised().is_none() && alone.cluster.tls().is_none() && !alone.node_name().is_empty());
}
