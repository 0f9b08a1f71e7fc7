//! The seed corpus of the fuzz targets: every sample, behind a byte that says which version is spoken.
//!
//! `KENTONGAN_UPDATE=1` writes it.

mod judge;
mod samples;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use judge::{encode, judge};
use kentongan_proto::mqtt::Packet;
use kentongan_proto::mqtt::codec::Sender;
use samples::{VERSIONS, packets};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");

fn seeds() -> BTreeMap<String, Vec<u8>> {
    let mut seeds = BTreeMap::new();
    for (index, version) in VERSIONS.into_iter().enumerate() {
        let mut sessions = BTreeMap::from([("client_packets", Vec::new()), ("server_packets", Vec::new())]);
        for (number, (sender, packet)) in packets(version).into_iter().enumerate() {
            let target = if sender == Sender::Client { "client_packets" } else { "server_packets" };
            let bytes = encode(&packet, version);
            assert_eq!(judge(&bytes, version, sender), 1);
            if let Some(session) = sessions.get_mut(target) {
                session.extend_from_slice(&bytes);
            }
            let name = format!("{target}/seed-{index}-{number:02}-{}", name_of(&packet));
            seeds.insert(name, [&[index as u8], &bytes[..]].concat());
        }
        for (target, session) in sessions {
            seeds.insert(format!("{target}/seed-{index}-session"), [&[index as u8], &session[..]].concat());
        }
    }
    seeds
}

fn name_of(packet: &Packet) -> String {
    let debug = format!("{packet:?}");
    debug.split(['(', ' ']).next().unwrap_or_default().to_lowercase()
}

#[test]
fn the_seed_corpus_is_what_the_samples_make() {
    let seeds = seeds();
    if std::env::var_os("KENTONGAN_UPDATE").is_some() {
        for (name, bytes) in &seeds {
            let path = Path::new(CORPUS).join(name);
            fs::create_dir_all(path.parent().expect("a folder of a target")).expect("created");
            fs::write(path, bytes).expect("written");
        }
    }
    for (name, bytes) in &seeds {
        let stored = fs::read(Path::new(CORPUS).join(name)).unwrap_or_default();
        assert_eq!(&stored, bytes, "{name} is stale: run this test with KENTONGAN_UPDATE=1");
    }
}
