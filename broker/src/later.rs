//! The feature levels of this program; and, for trials of two versions side by side, a program that is one level ahead of it.
//!
//! That one (`kentongan-next`, made only with the feature `simulation`) adds a field to what it says to other nodes and proposes to groups,
//! which this one does not know, whatever the level; and once a group has the level, entries of a kind that this one does not know.

#[cfg(not(any(test, feature = "simulation")))]
use bytes::Bytes;
use kentongan_cluster::FeatureLevels;

/// What this program knows. 2: bans ([`kentongan_cluster::directory::bans`]). 3: [`ROOM_LEVEL`],
/// [`WALL_LEVEL`], [`HELD_LEVEL`], [`DELAYED_BYTES_LEVEL`], [`PIECES_LEVEL`].
const LEVELS: FeatureLevels = FeatureLevels { min: 1, max: 3 };

/// The first level, which groups have without being told.
pub const FIRST_LEVEL: u32 = 1;

/// From here on what expired makes room in a full queue of a persistent session, and what its window has room for needs none.
pub const ROOM_LEVEL: u32 = 3;

/// From here on a group knows what the wall clock should say, whatever it says, and bridges nothing from a time before this program was
/// written.
pub const WALL_LEVEL: u32 = 3;

/// From here on a group takes no retained message of a session that was read before live ones went on that had waited behind it.
pub const HELD_LEVEL: u32 = 3;

/// From here on delayed messages of a group are bounded by their bytes, too.
pub const DELAYED_BYTES_LEVEL: u32 = 3;

/// From here on who gets a message of shared subscriptions is said in pieces, if it is too long for one entry of the log.
pub const PIECES_LEVEL: u32 = 3;

/// What the program knows that runs.
#[must_use]
pub fn feature_levels() -> FeatureLevels {
    let ahead = u32::from(is_ahead());
    FeatureLevels { max: LEVELS.max + ahead, ..LEVELS }
}

#[cfg(not(any(test, feature = "simulation")))]
pub(crate) const fn is_ahead() -> bool {
    false
}

#[cfg(not(any(test, feature = "simulation")))]
pub(crate) const fn is_entry(_: &Bytes) -> bool {
    false
}

/// A message as it leaves.
#[cfg(not(any(test, feature = "simulation")))]
pub(crate) fn sent(message: Bytes) -> Bytes {
    message
}

#[cfg(any(test, feature = "simulation"))]
pub use ahead::{LEVEL_AHEAD, run_ahead, set_ahead};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use ahead::{is_ahead, is_entry, new_entry, sent};

#[cfg(any(test, feature = "simulation"))]
mod ahead {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use prost::encoding::{WireType, encode_key, encode_varint};

    use super::{LEVELS, feature_levels};
    use crate::replicated::command;

    /// What that program uses.
    pub const LEVEL_AHEAD: u32 = LEVELS.max + 1;

    /// Of a field of any message, and of a kind of entry, that no version has.
    const TAG: u32 = 1000;

    /// The whole process is ahead.
    static PROCESS: AtomicBool = AtomicBool::new(false);

    thread_local! {
        /// So is the node whose turn it is on this thread.
        static NODE: Cell<bool> = const { Cell::new(false) };
    }

    /// Makes this process one of a program that is one level ahead. For its first line.
    pub fn run_ahead() {
        PROCESS.store(true, Ordering::Relaxed);
    }

    /// Says whether the node whose turn it is now is ahead.
    pub fn set_ahead(ahead: bool) {
        NODE.set(ahead);
    }

    pub(crate) fn is_ahead() -> bool {
        PROCESS.load(Ordering::Relaxed) || NODE.get()
    }

    /// A message as it leaves: protobuf, so that fields may follow.
    pub(crate) fn sent(message: Bytes) -> Bytes {
        if is_ahead() { [message, field()].concat().into() } else { message }
    }

    fn field() -> Bytes {
        let (mut bytes, text) = (Vec::new(), b"of a later version");
        encode_key(TAG, WireType::LengthDelimited, &mut bytes);
        encode_varint(text.len() as u64, &mut bytes);
        bytes.extend_from_slice(text);
        bytes.into()
    }

    /// An entry of a kind of its own, which needs the level that this program has.
    pub(crate) fn new_entry() -> Bytes {
        [command::needing(feature_levels().max), field()].concat().into()
    }

    /// Whether an entry without a command that this program knows is of that kind.
    pub(crate) fn is_entry(bytes: &Bytes) -> bool {
        is_ahead() && bytes.ends_with(&field())
    }
}
