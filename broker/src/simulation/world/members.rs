//! Nodes come and go, change their version and lose their disks.

use crossbeam::channel::bounded;
use kentongan_cluster::GroupId;
use kentongan_cluster::membership;
use rand::RngExt as _;

use super::{Drained, Event, World};
use crate::later;
use crate::replicated::Query;
use crate::simulation::faults::{MS, SECOND};
use crate::simulation::host::{self, Process};
use crate::simulation::workload::Fault as Mark;

impl World {
    /// The others join while faults go on, and later one of the three loses its disk.
    pub(super) fn plan_growth(&mut self, from_ns: u64, until_ns: u64) {
        let third_ns = (until_ns - from_ns) / 3;
        for host in 1..self.hosts.len() {
            let at_ns = from_ns + self.random.random_range(0..third_ns);
            self.at(at_ns, Event::Join(host));
        }
        let (host, at_ns) = (self.random.random_range(0..self.hosts.len()), from_ns + 2 * third_ns);
        self.at(at_ns, Event::LoseDisk(host));
    }

    /// Each of them at some time; and one is taken back.
    pub(super) fn plan_upgrades(&mut self, from_ns: u64, until_ns: u64) {
        for host in 0..self.hosts.len() {
            let at_ns = self.random.random_range(from_ns..until_ns);
            self.at(at_ns, Event::Change { host, later: true });
        }
        let (host, at_ns) =
            (self.random.random_range(0..self.hosts.len()), self.random.random_range(from_ns..until_ns));
        self.at(at_ns, Event::Change { host, later: false });
        self.at(until_ns, Event::Change { host, later: true });
    }

    pub(super) fn change_version(&mut self, host: usize, later: bool) {
        if self.hosts[host].ahead == later {
            return;
        }
        self.count(if later { "upgraded" } else { "taken back" });
        self.kill(host);
        self.hosts[host].ahead = later;
        self.after(50 * MS, 2 * SECOND, Event::Start(host));
    }

    /// Its program does not know what the cluster uses by now.
    pub(super) fn upgrade_late(&mut self, host: usize) {
        self.count("ended for its version");
        self.change_version(host, true);
    }

    /// Asks whoever is there, until it hears that it is a member; then its process starts.
    pub(super) fn join(&mut self, host: usize) -> Result<(), String> {
        let answer = self.asked[host].take().and_then(|answer| answer.try_recv().ok());
        if let Some((membership::Wish::Fulfilled, _)) = answer {
            self.count("joined");
            self.hosts[host].is_member = true;
            return self.start(host);
        }
        let asked = self.random.random_range(0..self.hosts.len());
        if let Some(process) = &self.hosts[asked].process {
            let (answer, answered) = bounded(1);
            later::set_ahead(self.hosts[host].ahead);
            let record = host::member(host, self.network.id(host));
            process.pipeline.handle().notify(Query::Admit(record, answer));
            self.asked[host] = Some(answered);
            self.make_runnable(asked);
        }
        self.after(100 * MS, 400 * MS, Event::Join(host));
        Ok(())
    }

    /// Only where every group has three voters, and all of them know it: in the midst of the step from one to three the loss of
    /// that one is the loss of all, and who loses more than a minority may lose what was acknowledged.
    pub(super) fn lose_disk(&mut self, host: usize) {
        let can_bear = |group| {
            self.hosts.iter().all(|host| {
                let status = host.process.as_ref().and_then(|process| process.pipeline.node().status(group));
                status.is_some_and(|status| {
                    status.configuration.voters.len() == 3 && status.configuration.voters_outgoing.is_empty()
                })
            })
        };
        let mut groups = (0..self.cluster.settings.storage.groups.get()).map(GroupId).chain([GroupId::DIRECTORY]);
        if self.healed {
            return;
        }
        if !groups.all(can_bear) || self.hosts[host].process.is_none() {
            return self.after(100 * MS, 500 * MS, Event::LoseDisk(host));
        }
        self.count("disk lost");
        self.crash(host, false);
        self.hosts[host].lose_disk();
        self.after(3 * SECOND, 4 * SECOND, Event::Replace(host));
    }

    /// The process ends without a word; `silently`, as when the power goes, so that others notice late.
    pub(super) fn crash(&mut self, host: usize, silently: bool) {
        self.workload.on_fault(self.now_ns, Mark::NodeCrashed { node: host });
        self.deferred[host].clear();
        let notice_ns = if silently { 2_500 * MS } else { MS };
        for link in self.network.between() {
            let (from, to, epoch) = self.network.with(link, |link| (link.from, link.to, link.epoch));
            if from == host {
                // What it had put off is forgotten with it.
                self.dialling[link] = false;
                self.network.break_off(link);
                self.network.with(link, |link| link.open = false);
                self.after(notice_ns / 4, notice_ns, Event::Unheard { link, epoch });
            } else if to == host {
                self.network.break_off(link);
                self.network.with(link, |link| link.heard = None);
                self.after(notice_ns / 4, notice_ns, Event::Closed { link, epoch });
            }
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].host == host && !self.streams[stream].over {
                self.streams[stream].cut |= silently;
                self.after(notice_ns / 4, notice_ns * 2, Event::Reset(stream));
            }
        }
    }

    // Operators.

    /// One that a node is drained, or is not any more, is said until everybody knows it: whoever is asked may not be able to decide.
    /// And until the end of all faults, as what was proposed may be committed long after it was taken back.
    pub(super) fn administer(&mut self, drained: usize) {
        let Drained { node, wanted, ref mut answer, .. } = self.drained[drained];
        let is_wanted = wanted > 0;
        let answered = answer.take().and_then(|answer| answer.try_recv().ok());
        let knows = |process: &Process| process.drains(node).is_none_or(|drains| drains == is_wanted);
        let known = self.hosts.iter().all(|host| host.process.as_ref().is_some_and(knows));
        let anybody = self.random.random_range(0..self.hosts.len());
        let asked = answered.and_then(|(wish, _)| self.named_by(&wish)).unwrap_or(anybody);
        if !known && let Some(process) = &self.hosts[asked].process {
            let (answer, answered) = bounded(1);
            later::set_ahead(self.hosts[asked].ahead);
            process.pipeline.handle().notify(Query::Drain(node, is_wanted, answer));
            self.drained[drained].answer = Some(answered);
            self.make_runnable(asked);
        }
        if !self.recovered {
            self.after(200 * MS, 500 * MS, Event::Administer(drained));
        }
    }

    /// Whom to ask instead, as operators' programs do: of five nodes one decides, and chance may not find it for long.
    fn named_by(&self, wish: &membership::Wish) -> Option<usize> {
        let membership::Wish::Elsewhere { address } = wish else { return None };
        (0..self.hosts.len()).find(|&host| host::member(host, self.network.id(host)).peer_address == *address)
    }

    pub(super) fn drain(&mut self, host: usize) {
        let node = self.network.id(host);
        match self.drained.iter_mut().find(|drained| drained.node == node) {
            Some(drained) => drained.wanted += 1,
            None => {
                self.drained.push(Drained { host, node, wanted: 1, answer: None });
                self.at(self.now_ns, Event::Administer(self.drained.len() - 1));
            }
        }
    }

    /// Whoever leads a group hands it over to that node, if it hears it.
    pub(super) fn transfer(&mut self, host: usize) {
        let to = self.network.id(host);
        for from in (0..self.hosts.len()).filter(|&from| from != host) {
            if let Some(process) = &self.hosts[from].process {
                let groups = process.pipeline.node().groups().filter(|&group| group != GroupId::DIRECTORY);
                // It is tried once, whatever comes of it.
                groups.for_each(|group| drop(process.pipeline.handle().hand_over(group, to)));
                self.make_runnable(from);
            }
        }
    }

    pub(super) fn end_drain(&mut self, host: usize) {
        if let Some(drained) = self.drained.iter_mut().find(|drained| drained.host == host && drained.wanted > 0) {
            drained.wanted -= 1;
        }
    }
}
