//! One QoS 1 PUBLISH for a persistent session, in its group: the command as an arbiter writes it, as the group's thread
//! reads and applies it, and the effects.

use std::collections::HashMap;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use kentongan::replicated::command::{
    self, Acknowledge, AcknowledgeItem, Command, Connect, LaneBatch, LaneMessage, MessageRecord, Owner, Subscribe,
    SubscribeFilter,
};
use kentongan::replicated::effect::Effect;
use kentongan::replicated::retained::RetainedLimits;
use kentongan::replicated::state::{GroupConfig, GroupState};
use kentongan::session::outbound::DropPolicy;
use kentongan::subscription::PickStrategy;
use kentongan_proto::mqtt::codec::AckKind;

use crate::{Counter, Row};

const OPERATIONS: u64 = 1_000;
const LANE: u64 = 1 << 12;
const TOPIC: &str = "plant/7/line/3/temperature";
const CLIENT_ID: &str = "client";

pub const ROWS: &[Row] = &[Row { name: "PUBLISH to a persistent session, in its group", run: publish_to_session }];

fn config() -> GroupConfig {
    GroupConfig {
        queue_messages_max: 1000,
        queue_bytes_max: 1_000_000,
        drop_policy: DropPolicy::New,
        retained: RetainedLimits::default(),
        one_each: false,
        share_strategy: PickStrategy::RoundRobin,
        retained_age_ms_max: 0,
        delayed_messages_max: 10,
        delayed_bytes_max: 0,
    }
}

fn apply(state: &mut GroupState, command: Command, effects: &mut Vec<Effect>) {
    effects.clear();
    state.apply(command, effects);
}

/// A group with one session, connected and subscribed, and the epoch of its claim.
fn group_with_session() -> (GroupState, u64) {
    let mut state = GroupState::new(config());
    let mut effects = Vec::new();
    let connect = Connect {
        owner: Some(Owner { incarnation: 1, connection: 1, node: 0 }),
        client_id: CLIENT_ID.to_owned(),
        session_expiry_seconds: 3600,
        window_max: 20,
        ..Connect::default()
    };
    apply(&mut state, Command::Connect(connect), &mut effects);
    let epoch = effects.iter().find_map(|effect| match effect {
        Effect::Opened(opened) => Some(opened.epoch),
        _ => None,
    });
    let epoch = epoch.expect("the claim is granted");
    let filter = SubscribeFilter { filter: TOPIC.to_owned(), qos: 1, retain_handling: 2, ..SubscribeFilter::default() };
    let subscribe = Subscribe {
        client_id: CLIENT_ID.to_owned(),
        epoch,
        packet_id: 1,
        filters: vec![filter],
        ..Subscribe::default()
    };
    apply(&mut state, Command::Subscribe(subscribe), &mut effects);
    (state, epoch)
}

fn encoded(number: u64, payload: &Bytes) -> Bytes {
    let record = MessageRecord {
        lane: LANE,
        number,
        topic: TOPIC.to_owned(),
        payload: payload.clone(),
        qos: 1,
        publisher: "publisher".to_owned(),
        ..MessageRecord::default()
    };
    let message = LaneMessage { number, message: Some(record), match_subscriptions: true, ..LaneMessage::default() };
    let head = LaneBatch { lane: LANE, incarnation: 1, previous: number - 1, ..LaneBatch::default() };
    let mut messages = BytesMut::new();
    command::encode_lane_message(&message, &mut messages);
    command::encode_lane(&head, &messages)
}

fn publish_to_session(counter: &mut Counter) {
    let (mut state, epoch) = group_with_session();
    let payload = Bytes::from_static(&[b'x'; 64]);
    let mut effects = Vec::new();
    let mut stored = HashMap::new();
    for number in 1..=OPERATIONS {
        counter.count(1, || {
            let command = command::decode(encoded(number, black_box(&payload)));
            if let Ok(command::Entry { command: Some(command), .. }) = command {
                apply(&mut state, command, &mut effects);
            }
            black_box(&effects);
        });
        let delivered = effects.iter().find_map(|effect| match effect {
            Effect::Deliver(delivery) => Some(delivery.packet_id),
            _ => None,
        });
        let packet_id = delivered.expect("there is room in the window");
        let items =
            vec![AcknowledgeItem { kind: AckKind::PubAck as u32, packet_id: packet_id.get().into(), reason: 0 }];
        let acknowledge = Acknowledge { client_id: CLIENT_ID.to_owned(), epoch, items };
        apply(&mut state, Command::Acknowledge(acknowledge), &mut effects);
        // As a checkpoint does from time to time: what changed must not pile up.
        if number % 100 == 0 {
            stored.extend(state.take_dirty());
        }
    }
}
