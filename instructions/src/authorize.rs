//! Whether a client may publish, by as many rules as its user has in an ACL file: the last of them allows it.

use std::hint::black_box;
use std::io::Write as _;

use kentongan::auth::{Action, Actor, Authority, Site, Subject};
use kentongan::config::AuthConfig;
use kentongan_proto::mqtt::QoS;

use crate::{Counter, Row};

const DECISIONS: u64 = 1_000;

pub const ROWS: &[Row] = &[
    Row { name: "authorize a PUBLISH, no rules", run: |counter| authorize(counter, 0) },
    Row { name: "authorize a PUBLISH, 10 rules", run: |counter| authorize(counter, 10) },
    Row { name: "authorize a PUBLISH, 100 rules", run: |counter| authorize(counter, 100) },
    Row { name: "authorize a PUBLISH, 1,000 rules", run: |counter| authorize(counter, 1_000) },
];

fn authorize(counter: &mut Counter, rules: usize) {
    let mut authority = Authority::default();
    if rules > 0 {
        let mut file = tempfile::NamedTempFile::new().expect("a file in the system's directory for such");
        let lines: String = (0..rules).map(|number| format!("topic plant/device-{number:04}/#\n")).collect();
        write!(file, "user ana\n{lines}").expect("it takes some lines");
        let acl_file = Some(file.path().to_owned());
        authority.open(&AuthConfig { acl_file, ..AuthConfig::default() }).expect("rules in order");
    }
    let rights = authority.rights(&Subject { identity: "ana", client_id: "c", site: Site::Away }, None);
    let actor = Actor { identity: "ana", client_id: "c", rights: rights.as_deref() };
    let topic = format!("plant/device-{:04}/line/temperature", rules.saturating_sub(1));
    counter.count(DECISIONS, || {
        for _ in 0..DECISIONS {
            let action = Action::Publish { topic: black_box(&topic), qos: QoS::AtLeastOnce, retain: false };
            assert!(authority.authorize(black_box(&actor), action));
        }
    });
}
