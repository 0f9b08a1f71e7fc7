//! What one node tells the others about a filter: two counts in the 32 bits that the cluster carries for it.

/// What a subscription asks other nodes to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InterestKind {
    /// Messages of any QoS: of a transient session, or of a persistent one that was granted QoS 0.
    Any,
    /// Messages of QoS 0 only: a persistent session that was granted more gets what has a QoS by its group.
    Qos0Only,
}

/// How many subscriptions of a node ask for what, of one filter.
///
/// For `$share/NAME/FILTER` these are members: those that may be picked for any QoS, and those for QoS 0 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeInterest {
    /// [`InterestKind::Any`].
    pub any: u32,
    /// [`InterestKind::Qos0Only`].
    pub qos0_only: u32,
}

impl NodeInterest {
    /// One subscription more or less.
    pub fn change(&mut self, kind: InterestKind, wanted: bool) {
        let count = match kind {
            InterestKind::Any => &mut self.any,
            InterestKind::Qos0Only => &mut self.qos0_only,
        };
        *count = if wanted { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// As it is told: counts above 65,535 are told as that. 0 exactly if nothing is wanted.
    #[must_use]
    pub fn to_value(self) -> u32 {
        halves(self.any, self.qos0_only)
    }

    /// What was told.
    #[must_use]
    pub fn from_value(value: u32) -> Self {
        Self { any: value >> 16, qos0_only: value & 0xFFFF }
    }
}

/// The persistent sessions of a group that are members of one shared subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShareSessions {
    /// All of them.
    pub members: u32,
    /// Those that are connected.
    pub online: u32,
}

impl ShareSessions {
    /// As it is told: counts above 65,535 are told as that. 0 exactly if there are no members.
    #[must_use]
    pub fn to_value(self) -> u32 {
        halves(self.members, self.online.min(self.members))
    }

    /// What was told.
    #[must_use]
    pub fn from_value(value: u32) -> Self {
        let members = value >> 16;
        Self { members, online: (value & 0xFFFF).min(members) }
    }
}

fn halves(high: u32, low: u32) -> u32 {
    const MAX: u32 = u16::MAX as u32;
    high.min(MAX) << 16 | low.min(MAX)
}
