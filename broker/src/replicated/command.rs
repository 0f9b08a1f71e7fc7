//! What is proposed to a group.
use crate::message::Message;
#[derive(Debug, Clone, Default)]
pub struct MessageRecord { pub topic: String }
impl MessageRecord { pub fn from_message(_m: &Message, _now: u64) -> Self { Self::default() } }
#[derive(Debug, Clone, Default)]
pub struct LaneMessage { pub number: u64, pub message: Option<MessageRecord>, pub match_subscriptions: bool, pub shares: Vec<String>, pub store_retained: bool, pub delay_ms: Option<u64> }
#[derive(Debug, Clone, Default)]
pub struct LaneBatch { pub lane: u64, pub incarnation: u64, pub messages: Vec<LaneMessage> }
#[derive(Debug, Clone)]
pub enum Command { Lane(LaneBatch) }
