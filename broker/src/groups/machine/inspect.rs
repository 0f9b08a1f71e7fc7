//! What the applying thread holds, for a simulation that looks for what should be gone.

use super::Machine;

impl Machine {
    /// Whether this node leads the group, as far as this thread knows.
    pub(crate) fn leads(&self, group: u16) -> bool {
        self.led.contains(&group)
    }

    /// How many groups this node leads, as far as this thread knows.
    pub(crate) fn groups_led(&self) -> usize {
        self.led.len()
    }

    /// What nobody waits for any more, once everything came to rest.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let lists = [
            ("claims that wait for the present owner", self.waiting.len()),
            ("entries of outboxes that are not routed", self.unrouted.values().map(|entries| entries.len()).sum()),
            ("events for arbiters", self.events.iter().map(Vec::len).sum()),
            ("subscriptions that wait for a barrier", self.member.as_ref().map_or(0, |member| member.open_barriers())),
        ];
        let mut left: Vec<_> =
            lists.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect();
        for (number, group) in self.groups.iter().filter(|(number, _)| self.leads(**number)) {
            left.extend(group.leftovers().into_iter().map(|what| format!("group {number}: {what}")));
        }
        left
    }
}
