use super::*;
use std::sync::Arc;
use crate::router::*;
use crate::router::client::PersistentSession;
use crate::message::Message;
use kentongan_proto::mqtt::*;
use kentongan_proto::mqtt::codec::AckKind;
#[derive(Debug, Default)]
pub struct Submitter {}
impl Submitter {
  pub fn is_overloaded(&self)->bool{false}
  pub fn is_full(&self)->bool{false}
  pub fn claim(&self, _r: ClaimRequest){}
  pub fn released(&self, _c:&Arc<str>){}
  pub fn disconnect(&self, _c:&Arc<str>, _p: PersistentSession, _w: bool, _e: Option<u32>){}
  pub fn retained_page(&self, _k: ConnectionKey, _n: u64, _f: &str, _c: RetainedCursor){}
  pub fn propose(&self, _g: u16, _c: &command::Command){}
  pub fn acknowledge(&self, _s: PersistentSession, _c:&Arc<str>, _i: impl Iterator<Item=(AckKind, PacketId, ReasonCode)>){}
  pub fn receive(&self, _m:&Arc<Message>, _p: PersistentSession, _k: ConnectionKey, _id: PacketId, _now: u64){}
  pub fn subscribe(&self, _p: PersistentSession, _k: ConnectionKey, _c:&Arc<str>, _s:&Subscribe, _r:&[Option<ReasonCode>]){}
  pub fn unsubscribe(&self, _p: PersistentSession, _k: ConnectionKey, _c:&Arc<str>, _s:&Unsubscribe){}
}
#[derive(Debug)]
pub struct Running {}
impl Running { pub fn stop(self)->anyhow::Result<()> { Ok(()) } }
pub fn start(settings:&Arc<crate::config::Settings>, authority: crate::auth::Authority, arbiters: usize, _m:&crate::metrics::Metrics)->anyhow::Result<(Arc<Shared>, Running)> {
  Ok((Arc::new(Shared::new(Arc::clone(settings), arbiters, Submitter::default(), authority, 1)), Running{}))
}
