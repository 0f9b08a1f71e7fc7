//! The promises, one by one: a history that keeps each, and ones that break it.

mod acknowledged;
mod copies;
mod retained;
mod script;
mod sessions;
mod shared;
mod wills;

use kentongan_history::{History, Settings, What, check};

use script::pair;

/// A violation names the promise, the message and the session, and shows the events.
#[test]
fn a_violation_can_be_read() {
    let mut lost = pair(1);
    lost.publish("pub", 1, 1);
    lost.mark(What::Quiesced);
    let text = check(&lost.history, &Settings::default())[0].to_string();
    assert!(text.starts_with("P1: message m1 on plant/1/temp (QoS 1)"), "{text}");
    assert!(text.contains("the session of sub") && text.contains("-> PUBLISH") && text.contains("quiesced"), "{text}");
}

/// What is written is what is read.
#[test]
fn a_history_survives_its_file() {
    let history = kentongan_history::model::record(7, 500).history;
    let mut file = Vec::new();
    history.write_json_lines(&mut file).expect("memory takes all");
    let read = History::read_json_lines(file.as_slice()).expect("what was written is a history");
    let mut again = Vec::new();
    read.write_json_lines(&mut again).expect("memory takes all");
    assert_eq!(read.events().len(), history.events().len());
    assert_eq!(again, file);
    assert!(History::read_json_lines(&b"{\"at\":1}\n"[..]).is_err());
}
