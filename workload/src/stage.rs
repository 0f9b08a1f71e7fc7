//! What the clients of a run share with whoever does something to the nodes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::habits::Habits;
use crate::recorder::Recorder;

/// With nothing more to come, nothing has come for so long. A page of retained messages that was lost is asked for again
/// within 2 s, of which a client knows nothing.
const QUIET: Duration = Duration::from_secs(5);

/// A node as clients know it.
#[derive(Debug)]
pub struct Seat {
    /// Where they connect.
    pub address: SocketAddr,
    /// Whether it is stopped, or was and may not know yet that others went on without it.
    pub stopped: AtomicBool,
    /// Its process; 0 while there is none, and is to be none: nobody goes there.
    pub pid: AtomicU32,
}

impl Seat {
    /// That of a process which runs.
    #[must_use]
    pub fn new(address: SocketAddr, pid: u32) -> Self {
        Self { address, stopped: AtomicBool::new(false), pid: AtomicU32::new(pid) }
    }
}

/// What clients do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Act {
    /// Whatever comes to their mind.
    Play,
    /// They finish what they began, and receive what they are owed.
    Settle,
    /// They go.
    End,
}

/// What the clients of a run share.
#[derive(Debug)]
pub struct Stage {
    /// Where everything is noted.
    pub recorder: Recorder,
    /// The nodes.
    pub seats: Vec<Seat>,
    /// What the clients do.
    pub habits: Habits,
    act: AtomicU8,
    pub(crate) packets: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) unsettled: AtomicUsize,
    pub(crate) is_over: AtomicBool,
    /// How often the machine did not let the nodes work.
    pub(crate) stalls: AtomicU32,
    /// The node that clients move away from.
    left: AtomicUsize,
}

/// No node has this number.
const NOBODY: usize = usize::MAX;

impl Stage {
    /// One on which the clients play.
    #[must_use]
    pub fn new(seats: Vec<Seat>, habits: Habits) -> Self {
        Self {
            recorder: Recorder::new(),
            seats,
            habits,
            act: AtomicU8::new(Act::Play as u8),
            packets: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            unsettled: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            stalls: AtomicU32::new(0),
            left: AtomicUsize::new(NOBODY),
        }
    }

    /// What clients do now.
    pub fn act(&self) -> Act {
        match self.act.load(SeqCst) {
            0 => Act::Play,
            1 => Act::Settle,
            _ => Act::End,
        }
    }

    /// What they do from now on.
    pub fn set_act(&self, act: Act) {
        self.act.store(act as u8, SeqCst);
    }

    /// QoS 1 and 2 messages that were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    /// Whether a node is one that clients may go to.
    pub(crate) fn is_there(&self, node: usize) -> bool {
        self.seats[node].pid.load(SeqCst) != 0
    }

    /// Clients that are connected to this node take their sessions over elsewhere, and see what still comes from it.
    pub fn move_from(&self, node: Option<usize>) {
        self.left.store(node.unwrap_or(NOBODY), SeqCst);
    }

    pub(crate) fn is_left(&self, node: u16) -> bool {
        self.left.load(SeqCst) == usize::from(node)
    }

    /// How often so far the machine did not let the nodes work.
    pub fn stalls(&self) -> u32 {
        self.stalls.load(SeqCst)
    }

    /// Nobody needs to look at the nodes any more.
    pub fn end_watch(&self) {
        self.is_over.store(true, SeqCst);
    }
}

/// Waits until clients that settle have all that they are owed. False if packets still came, or something was not
/// acknowledged, after `patience`.
pub fn quiet(stage: &Stage, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let (mut seen, mut since) = (0, Instant::now());
    while since.elapsed() < QUIET {
        let now = stage.packets.load(SeqCst);
        if now != seen || stage.unsettled.load(SeqCst) > 0 {
            (seen, since) = (now, Instant::now());
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
