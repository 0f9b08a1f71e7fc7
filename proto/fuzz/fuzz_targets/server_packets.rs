//! Bytes as a client reads them. The first one says which version is spoken.

#![no_main]

#[path = "../../tests/judge/mod.rs"]
mod judge;

use kentongan_proto::mqtt::ProtocolVersion;
use kentongan_proto::mqtt::codec::Sender;

const VERSIONS: [ProtocolVersion; 3] = [ProtocolVersion::V3_1, ProtocolVersion::V3_1_1, ProtocolVersion::V5];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let [version, bytes @ ..] = input {
        judge::judge(bytes, VERSIONS[usize::from(*version) % VERSIONS.len()], Sender::Server);
    }
});
