//! The broker over real sockets: real processes, one behaviour a test.

mod support;

mod abuse;
mod client_events;
mod cluster;
mod conformance;
mod ctl;
mod durability;
mod first_light;
mod http_auth;
mod long_queue;
mod mounts;
mod old_clients;
mod operation;
mod overload;
mod plugged;
mod powercut;
mod proxy_protocol;
mod pub_sub;
mod refusals;
mod resume;
mod rights;
mod rumqttc;
mod service_manager;
mod sessions;
mod settings;
mod shared;
mod tls;
mod tokens;
mod unix_socket;
mod users;
mod websocket;
