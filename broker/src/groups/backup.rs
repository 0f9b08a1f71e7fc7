//! This node's side of a backup: what is said, and why, stands in [`crate::peers::backup`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::bounded;
use kentongan_cluster::formation::Formation;
use kentongan_cluster::state::{self, PairIter, StateReader};
use kentongan_cluster::transport::Conversation;
use kentongan_cluster::{CheckpointBase, GroupId, PipelineHandle};
use prost::Message as _;

use super::why_silent;
use crate::clock::Clock;
use crate::peers::backup::{BackupOrder, Groups, Holds, Order, Released, Said};
use crate::replicated::Query;

/// Outboxes are held no longer than this, whatever becomes of whoever asked for it.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(60);

/// Time within which threads of this node answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Time within which a majority of a group answers.
const READ_MAX: Duration = Duration::from_secs(10);

/// Time within which a checkpoint is written.
const CHECKPOINT_MAX: Duration = Duration::from_secs(45);

/// Between two looks whether it is.
const CHECKPOINT_LOOK: Duration = Duration::from_millis(20);

type Captured = (CheckpointBase, PairIter);

/// What is handed out, and from where.
pub(super) struct Source {
    pub(super) pipeline: PipelineHandle<Query>,
    pub(super) reader: StateReader,
    pub(super) formation: Formation,
    /// That by which a hold ends.
    pub(super) clock: Clock,
}

impl Source {
    /// Does what is ordered until the conversation ends. It ends the hold as well, however it ends.
    pub(super) fn serve(&self, mut conversation: Conversation) {
        let mut captured = BTreeMap::new();
        let mut held: Option<(Arc<()>, Duration)> = None;
        while let Some(order) = conversation.hear() {
            let order = BackupOrder::decode(order).ok().and_then(|order| order.order);
            let done = match order {
                Some(Order::Hold(_)) => self.hold().map(|(hold, said)| {
                    held = Some(hold);
                    conversation.say(said.to_bytes())
                }),
                Some(Order::Capture(groups)) => {
                    self.capture(&groups, &mut captured).map(|()| conversation.say(Said::Captured(groups).to_bytes()))
                }
                Some(Order::Release(_)) => {
                    let held =
                        held.take().is_some_and(|(_, since)| self.clock.elapsed().saturating_sub(since) < HOLD_MAX);
                    Ok(conversation.say(Said::Released(Released { held }).to_bytes()))
                }
                Some(Order::Send(groups)) => send(&conversation, &groups, &mut captured),
                None => Err("an order that this version does not know".to_owned()),
            };
            match done {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => return conversation.refuse(reason),
            }
        }
    }

    fn hold(&self) -> Result<((Arc<()>, Duration), Said), String> {
        // Counted from before the machine counts.
        let (token, since) = (Arc::new(()), self.clock.elapsed());
        let (answer, answered) = bounded(1);
        self.pipeline.notify(Query::HoldOutboxes { token: Arc::downgrade(&token), answer });
        let incarnation = answered.recv_timeout(ANSWER_MAX).map_err(|_| self.silent())?;
        Ok(((token, since), Said::Holds(Holds { incarnation, formation: self.formation.encode() })))
    }

    fn silent(&self) -> String {
        format!("{}: try again", why_silent(self.pipeline.is_full(), "back up what it has"))
    }

    /// Opens a checkpoint of each group that has all that is committed anywhere now.
    fn capture(&self, groups: &Groups, captured: &mut BTreeMap<GroupId, Captured>) -> Result<(), String> {
        let number = |&group: &u32| u16::try_from(group).map(GroupId).map_err(|_| format!("there is no group {group}"));
        let groups: Vec<GroupId> = groups.groups.iter().map(number).collect::<Result<_, _>>()?;
        let reads: Vec<_> = (groups.iter())
            .map(|&group| {
                let (read, done) = bounded(1);
                self.pipeline.read_index(group, Query::Reached(read));
                (group, done)
            })
            .collect();
        let deadline = Instant::now() + READ_MAX;
        for (group, done) in reads {
            let no_majority = |_| format!("no majority of group {group} answers: try again");
            done.recv_deadline(deadline).map_err(no_majority)?;
        }
        let status = self.pipeline.status().recv_timeout(ANSWER_MAX).map_err(|_| self.silent())?;
        let wanted: BTreeMap<GroupId, u64> =
            status.into_iter().map(|(group, status)| (group, status.handed_out.index)).collect();
        let deadline = Instant::now() + CHECKPOINT_MAX;
        for group in groups {
            let wanted = wanted.get(&group).copied().unwrap_or(u64::MAX);
            while self.applied(group)? < wanted {
                if Instant::now() > deadline {
                    return Err(format!("group {group} has no checkpoint here that is new enough: try again"));
                }
                self.pipeline.notify(Query::WantCheckpoint);
                std::thread::sleep(CHECKPOINT_LOOK);
            }
            let opened = self.reader.open(group).map_err(|error| error.to_string())?;
            captured.insert(group, opened.ok_or_else(|| format!("group {group} is not kept here"))?);
        }
        Ok(())
    }

    fn applied(&self, group: GroupId) -> Result<u64, String> {
        self.reader.applied(group).map_err(|error| error.to_string())
    }
}

/// `false`: nobody listens any more.
fn send(
    conversation: &Conversation,
    groups: &Groups,
    captured: &mut BTreeMap<GroupId, Captured>,
) -> Result<bool, String> {
    for &group in &groups.groups {
        let opened = u16::try_from(group).ok().and_then(|number| captured.remove(&GroupId(number)));
        let (base, pairs) = opened.ok_or_else(|| format!("group {group} was not captured"))?;
        for chunk in state::cut(&base, pairs) {
            let chunk: Bytes = chunk.map_err(|error: io::Error| format!("group {group} cannot be read: {error}"))?;
            if !conversation.say(Said::Data(chunk).to_bytes()) {
                return Ok(false);
            }
        }
        if !conversation.say(Said::GroupEnd(group).to_bytes()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use kentongan_cluster::disk::{Disk, SimDisk};
    use kentongan_cluster::pipeline::{Inline, NoPeers};
    use kentongan_cluster::state::MemoryState;
    use kentongan_cluster::{NodeId, StateStore};

    use super::*;
    use crate::auth::Authority;
    use crate::clock::{Clock, ManualClock};
    use crate::config::Settings;
    use crate::groups::machine::Machine;
    use crate::groups::start::{Setting, assemble_alone, pipeline_config};
    use crate::metrics::Metrics;
    use crate::random::Random;
    use crate::replicated::command::{self, Command, Connect, MessageRecord, Owner, Receive};

    const GROUP: GroupId = GroupId(0);

    /// A node without threads.
    struct World {
        pipeline: Inline<Machine, NoPeers>,
        clock: Arc<ManualClock>,
        elapsed: Duration,
        posted: u64,
    }

    impl World {
        fn start() -> Self {
            let clock = Arc::new(ManualClock::new(1_000_000));
            let setting = Setting {
                settings: Arc::default(),
                authority: Authority::default(),
                arbiters: 1,
                clock: Clock::manual(Arc::clone(&clock)),
                random: Random::seeded(1),
                on_end: |_| (),
            };
            let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
            let store = StateStore::in_memory(&MemoryState::default(), Arc::clone(&disk)).expect("a store");
            let metrics = Metrics::isolated();
            let (assembly, machine) = assemble_alone(setting, &metrics, &store, NodeId(1)).expect("assembled");
            let config = pipeline_config(&Settings::default(), NodeId(1), 1, assembly.new_groups());
            let pipeline = Inline::start(config, disk, store, machine, NoPeers, Duration::ZERO).expect("started");
            drop(assembly.connect(pipeline.handle(), 1, None));
            let mut world = Self { pipeline, clock, elapsed: Duration::ZERO, posted: 0 };
            let owner = Some(Owner { node: 0, incarnation: 1, connection: 1 });
            let connect =
                Connect { owner, client_id: "c".to_owned(), session_expiry_seconds: 100, ..Connect::default() };
            world.pass(Duration::from_secs(1));
            world.propose(Command::Connect(connect));
            world
        }

        fn propose(&mut self, command: Command) {
            self.pipeline.handle().propose(GROUP, command::encode(command));
            self.pass(Duration::from_millis(1));
        }

        /// A message into the outbox.
        fn post(&mut self) {
            self.posted += 1;
            let message = Some(MessageRecord { topic: "t".to_owned(), qos: 2, ..MessageRecord::default() });
            let packet_id = self.posted as u32;
            self.propose(Command::Receive(Receive {
                client_id: "c".to_owned(),
                epoch: 1,
                packet_id,
                message,
                ..Receive::default()
            }));
        }

        fn pass(&mut self, time: Duration) {
            for _ in 0..50 {
                self.elapsed += time / 50;
                self.clock.advance(time / 50);
                while self.pipeline.turn(self.elapsed).expect("a disk that works") {}
            }
        }

        /// The positions that are not routed.
        fn outbox(&self) -> Vec<u64> {
            let state = &self.pipeline.machine().groups[&GROUP.0];
            (1..=self.posted).filter(|&position| state.outbox_entry(position).is_some()).collect()
        }

        fn hold(&mut self) -> Arc<()> {
            let token = Arc::new(());
            let (answer, answered) = bounded(1);
            self.pipeline.handle().notify(Query::HoldOutboxes { token: Arc::downgrade(&token), answer });
            self.pass(Duration::from_millis(1));
            assert_eq!(answered.try_recv(), Ok(1), "the incarnation that holds");
            token
        }
    }

    /// What is gone from an outbox that is captured must be where it went in every group that is captured, so nothing goes meanwhile.
    #[test]
    fn what_is_in_an_outbox_stays_there_as_long_as_it_is_held() {
        let mut world = World::start();
        world.post();
        assert_eq!(world.outbox(), [0; 0], "it has nowhere to go, which is soon done");
        let held = world.hold();
        world.post();
        world.pass(Duration::from_secs(5));
        world.post();
        assert_eq!(world.outbox(), [2, 3]);
        drop(held);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.outbox(), [0; 0]);
    }

    /// Who asked for it may be alive and hang.
    #[test]
    fn a_hold_ends_after_a_minute_in_any_case() {
        let mut world = World::start();
        let held = world.hold();
        world.post();
        world.pass(HOLD_MAX - Duration::from_secs(1));
        assert_eq!(world.outbox(), [1]);
        world.pass(Duration::from_secs(2));
        assert_eq!(world.outbox(), [0; 0]);
        drop(held);
    }
}
