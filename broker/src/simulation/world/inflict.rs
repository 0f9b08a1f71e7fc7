//! Faults begin and end.

use std::collections::{BTreeMap, BTreeSet};

use kentongan_cluster::GroupId;
use kentongan_cluster::group::Role;
use kentongan_cluster::transport::LinkEpoch;
use rand::RngExt as _;

use super::{Deferred, Event, RESERVE_BYTES, World};
use crate::groups::machine::Machine;
use crate::simulation::faults::{APART_NS, Fault, MS, Plot, SECOND};
use crate::simulation::host::Host;
use crate::simulation::workload::{Fault as Mark, Hurry};

/// For how long no node may serve where all that is wrong is that disks are slow.
const SLOW_GAP_NS_MAX: u64 = 3 * SECOND;

/// How long a client may wait for an answer where two nodes have not heard each other for long.
const APART_WAIT_NS_MAX: u64 = 4 * SECOND;

impl World {
    /// Who decides who is dead.
    pub(super) fn directory_leader(&self) -> Option<usize> {
        let leads = |host: &Host| {
            let status = host.process.as_ref()?.pipeline.node().status(GroupId::DIRECTORY)?;
            matches!(status.role, Role::Leader { .. }).then_some(status.term)
        };
        let leaders = self.hosts.iter().filter_map(|host| Some((leads(host)?, host.index)));
        leaders.max().map(|(_, host)| host)
    }

    pub(super) fn plot(&mut self, plot: Plot) {
        let Some(leader) = self.directory_leader() else {
            return;
        };
        let nodes = self.hosts.len();
        let mut others = [(leader + 1) % nodes, (leader + 2) % nodes];
        if self.random.random() {
            others.reverse();
        }
        let led = |host: &Host| {
            let machine = host.process.as_ref().map(|process| process.pipeline.machine().machine());
            machine.map_or(0, Machine::groups_led)
        };
        let busiest = (0..nodes).max_by_key(|&host| led(&self.hosts[host])).unwrap_or(leader);
        for planned in plot.acts(self.now_ns, leader, busiest, others, &mut self.random) {
            let number = self.faults.len();
            self.faults.push(planned);
            self.at(planned.at_ns, Event::Begin(number));
            self.at(planned.at_ns + planned.lasts_ns, Event::End(number));
        }
    }

    pub(super) fn begin(&mut self, number: usize) {
        if let Some(leader) = self.directory_leader().filter(|_| self.faults[number].of_leader) {
            self.faults[number].fault = self.faults[number].fault.of_leader(leader);
        }
        let fault = self.faults[number].fault;
        if self.plan.trace {
            eprintln!("{:>12.6} FAULT {fault:?}", self.now_ns as f64 / 1e9);
        }
        self.count(fault.name());
        if fault.is_marked() {
            self.workload.on_fault(self.now_ns, Mark::Began { fault: number as u32, kind: fault.name() });
        }
        match fault {
            Fault::Kill(host) => self.kill(host),
            Fault::PowerCut(host) => self.cut_power(host),
            Fault::KillAll => (0..self.hosts.len()).for_each(|host| self.kill(host)),
            Fault::PowerCutAll => (0..self.hosts.len()).for_each(|host| self.cut_power(host)),
            Fault::Pause(host) => {
                if self.hosts[host].process.is_some() && !self.hosts[host].paused {
                    self.hosts[host].paused = true;
                    for link in self.network.between() {
                        let (from, to, epoch) = self.network.with(link, |link| (link.from, link.to, link.epoch));
                        if from == host || to == host {
                            self.after(2 * SECOND, 3_500 * MS, Event::Silent { link, epoch });
                        }
                    }
                }
            }
            Fault::Break(one, other) => {
                for link in self.network.between() {
                    let (from, to) = self.network.with(link, |link| (link.from, link.to));
                    if (from, to) == (one, other) || (from, to) == (other, one) {
                        let late_ns = self.random.random_range(0..100 * MS);
                        self.break_link(link, late_ns);
                    }
                }
            }
            Fault::BreakOne(drawn) => {
                let links = self.network.between();
                self.break_link(links[drawn % links.len()], 0);
            }
            Fault::OneWay(from, to) => self.cut(from, to),
            Fault::Apart(one, other) => {
                self.cut(one, other);
                self.cut(other, one);
            }
            Fault::Isolate(host) => {
                for other in (0..self.hosts.len()).filter(|&other| other != host) {
                    self.cut(host, other);
                    self.cut(other, host);
                }
            }
            Fault::Delay => self.network.set_delay(200 * MS),
            Fault::WallJump(host, on) => {
                let by_ms = if on { 3_600_000 } else { -3_600_000 };
                let now_ns = self.now_ns;
                self.hosts[host].jump_wall(now_ns, by_ms);
            }
            Fault::DiskFull(host, whole) => {
                self.hosts[host].set_free_bytes(Some(if whole { 4096 } else { RESERVE_BYTES / 2 }));
                self.hosts[host].disk_fails |= whole;
                self.hosts[host].is_disk_full = true;
            }
            Fault::DiskError(host) => {
                if self.hosts[host].process.is_some() {
                    let operations = self.random.random_range(0..6);
                    self.hosts[host].fail_disk_after(operations);
                    self.hosts[host].disk_fails = true;
                }
            }
            Fault::DiskStall(host) => {
                self.hosts[host].disk_stalls += 1;
                let late = self.random.random_ratio(3, 4);
                if let Some(process) = &mut self.hosts[host].process {
                    process.stalls_late = late;
                }
            }
            Fault::DiskSlow(which, by_ms) => {
                for host in which.map_or(0..self.hosts.len(), |host| host..host + 1) {
                    self.hosts[host].slow_ms.push(by_ms);
                }
            }
            Fault::Drain(host) => self.drain(host),
            Fault::Transfer(host) => self.transfer(host),
            Fault::Plot(plot) => self.plot(plot),
            Fault::Rush | Fault::Whisper => {
                let hurry = if fault == Fault::Rush { Hurry::Anything } else { Hurry::Whisper };
                self.workload.rush(self.now_ns, self.faults[number].lasts_ns, hurry);
                self.wake_clients();
            }
            Fault::Hush => self.workload.hush(self.now_ns + self.faults[number].lasts_ns),
            Fault::ResetClients(host) => {
                for stream in 0..self.streams.len() {
                    if self.streams[stream].host == host && !self.streams[stream].over {
                        self.after(0, 50 * MS, Event::Reset(stream));
                    }
                }
            }
            Fault::CutClients(host) => {
                self.clients_cut[host] += 1;
                self.streams.iter_mut().filter(|stream| stream.host == host).for_each(|stream| stream.cut = true);
            }
        }
    }

    pub(super) fn end(&mut self, number: usize) -> Result<(), String> {
        let fault = self.faults[number].fault;
        if self.plan.trace {
            eprintln!("{:>12.6} HEAL {fault:?}", self.now_ns as f64 / 1e9);
        }
        match fault {
            Fault::Kill(host) | Fault::PowerCut(host) => self.at(self.now_ns, Event::Start(host)),
            Fault::KillAll | Fault::PowerCutAll => {
                for host in 0..self.hosts.len() {
                    self.after(0, 300 * MS, Event::Start(host));
                }
            }
            Fault::Pause(host) => self.resume(host),
            Fault::OneWay(from, to) => self.mend(from, to),
            Fault::Apart(one, other) => {
                if self.faults[number].lasts_ns == APART_NS {
                    self.serve_without_one_of(one, other)?;
                }
                self.mend(one, other);
                self.mend(other, one);
            }
            Fault::Isolate(host) => {
                for other in (0..self.hosts.len()).filter(|&other| other != host) {
                    self.mend(host, other);
                    self.mend(other, host);
                }
            }
            Fault::Delay => self.network.set_delay(0),
            Fault::DiskFull(host, _) => {
                self.hosts[host].set_free_bytes(None);
                self.hosts[host].is_disk_full = false;
            }
            Fault::CutClients(host) => {
                self.clients_cut[host] = self.clients_cut[host].saturating_sub(1);
                self.pass_clients(host);
            }
            Fault::DiskStall(host) => {
                self.hosts[host].disk_stalls = self.hosts[host].disk_stalls.saturating_sub(1);
                if let Some(process) = &mut self.hosts[host].process {
                    process.stalls_late = false;
                }
                self.make_runnable(host);
            }
            Fault::DiskSlow(which, by_ms) => {
                if self.faults[number].lasts_ns == Plot::SlowDisks.lasts_ns() {
                    self.serve_on_slow_disks()?;
                }
                for host in which.map_or(0..self.hosts.len(), |host| host..host + 1) {
                    let slow_ms = &mut self.hosts[host].slow_ms;
                    if let Some(own) = slow_ms.iter().position(|&own_ms| own_ms == by_ms) {
                        slow_ms.swap_remove(own);
                    }
                }
            }
            Fault::Drain(host) => self.end_drain(host),
            Fault::DiskError(_)
            | Fault::Rush
            | Fault::Whisper
            | Fault::Hush
            | Fault::Transfer(_)
            | Fault::Plot(_)
            | Fault::Break(..)
            | Fault::BreakOne(_)
            | Fault::ResetClients(_)
            | Fault::WallJump(..) => {}
        }
        if fault.is_marked() {
            self.workload.on_fault(self.now_ns, Mark::Healed { fault: number as u32 });
        }
        Ok(())
    }

    /// P12: by then nodes have served, unless something else keeps them from it. Not at each moment: a round takes up to three syncs, and
    /// more where a segment is begun, and a lease no longer than that.
    fn serve_on_slow_disks(&self) -> Result<(), String> {
        let has_ended = self.hosts.iter().any(|host| host.process.is_none());
        if has_ended || self.now_ns - self.served_ns < SLOW_GAP_NS_MAX {
            return Ok(());
        }
        Err(format!("P12: no node serves, though all that is wrong is that disks are slow{}", self.describe_hosts()))
    }

    /// P12: by then one of two that do not hear each other is left out, and all others serve, unless something else keeps them from it.
    fn serve_without_one_of(&self, one: usize, other: usize) -> Result<(), String> {
        let serves = |host: &Host| host.process.as_ref().map(|process| !host.paused && process.serves());
        let serving: Vec<_> = self.hosts.iter().map(serves).collect();
        let is_whole = ![one, other].iter().any(|&left_out| self.lacks_majority_without(left_out));
        if serving.contains(&None) || !is_whole {
            return Ok(());
        }
        let is_serving = |&host: &usize| serving[host] == Some(true);
        let served: Vec<_> = (0..serving.len()).filter(is_serving).collect();
        if served.len() + 1 != serving.len() || (is_serving(&one) && is_serving(&other)) {
            let hosts = self.describe_hosts();
            return Err(format!(
                "P12: {served:?} serve, though all that is wrong is that {one} and {other} do not hear each other{hosts}"
            ));
        }
        let before_ns = self.now_ns - APART_WAIT_NS_MAX;
        let waits: Vec<_> = served.into_iter().flat_map(|host| self.workload.waits(host, before_ns)).collect();
        match waits.first() {
            Some(first) => Err(format!(
                "P12: {} waits, and {} others, though all that is wrong is that {one} and {other} do not hear each other{}",
                first,
                waits.len() - 1,
                self.describe_hosts()
            )),
            None => Ok(()),
        }
    }

    /// Whether some group has no majority where that node is left out: one that was replaced may still count among its voters.
    fn lacks_majority_without(&self, left_out: usize) -> bool {
        let statuses = self.hosts.iter().filter_map(|host| host.process.as_ref()).flat_map(|process| {
            let node = process.pipeline.node();
            node.groups().filter_map(|group| Some((group, node.status(group)?))).collect::<Vec<_>>()
        });
        let mut newest = BTreeMap::new();
        for (group, status) in statuses {
            let known = newest.entry(group).or_insert_with(|| status.clone());
            if known.handed_out.index < status.handed_out.index {
                *known = status;
            }
        }
        let there: BTreeSet<_> =
            (0..self.hosts.len()).filter(|&host| host != left_out).map(|host| self.network.id(host)).collect();
        newest.values().any(|status| {
            let voters = &status.configuration.voters;
            voters.iter().filter(|voter| there.contains(voter)).count() * 2 <= voters.len()
        })
    }

    pub(super) fn kill(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            self.crash(host, false);
            self.hosts[host].kill();
        }
        if std::mem::take(&mut self.hosts[host].disk_fails) {
            self.hosts[host].mend_disk();
        }
    }

    pub(super) fn cut_power(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            self.crash(host, true);
        }
        self.hosts[host].cut_power(&mut self.random);
        self.hosts[host].disk_fails = false;
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.cut[from][to] += 1;
        for link in self.network.between() {
            let (one, other, epoch) = self.network.with(link, |link| (link.from, link.to, link.epoch));
            if (one, other) == (from, to) || (one, other) == (to, from) {
                self.after(2 * SECOND, 3_500 * MS, Event::Silent { link, epoch });
            }
        }
    }

    pub(super) fn mend(&mut self, from: usize, to: usize) {
        self.cut[from][to] = self.cut[from][to].saturating_sub(1);
        if self.cut[from][to] > 0 {
            return;
        }
        for link in self.network.between() {
            if self.network.with(link, |link| (link.from, link.to)) == (from, to) {
                self.network.release(link);
            }
        }
    }

    /// What came for a process that stands still waits in its sockets.
    pub(super) fn defer(&mut self, host: usize, event: Event) {
        if let Event::Frames(link) = event {
            let (from, epoch, heard) = self.network.with(link, |link| (link.from, link.epoch, link.heard));
            if self.cut[from][host] > 0 || heard != Some(epoch) {
                return self.network.hold(link);
            }
            let mut frames = Vec::new();
            let next = self.network.receive(link, &mut frames);
            self.deferred[host].push(Deferred::Frames(link, LinkEpoch(epoch), frames));
            if let Some(at_ns) = next {
                self.at(at_ns, event);
            }
            return;
        }
        self.deferred[host].push(Deferred::Event(event));
    }

    pub(super) fn resume(&mut self, host: usize) {
        if !std::mem::replace(&mut self.hosts[host].paused, false) {
            return;
        }
        let now_ns = self.now_ns;
        self.hosts[host].run_clock(now_ns);
        let mut later_ns = 0;
        for deferred in std::mem::take(&mut self.deferred[host]) {
            match deferred {
                // Threads go on when they like; what came by a socket keeps its order.
                Deferred::Event(event @ (Event::Step { .. } | Event::Tick { .. } | Event::Second { .. })) => {
                    self.after(0, 2 * MS, event);
                }
                Deferred::Event(event) => {
                    later_ns += 1_000;
                    self.at(now_ns + later_ns, event);
                }
                Deferred::Frames(link, epoch, frames) => {
                    if self.network.with(link, |link| link.heard == Some(epoch.0)) {
                        self.hand_over(link, frames);
                    }
                }
            }
        }
        self.make_runnable(host);
    }

    pub(super) fn pass_clients(&mut self, host: usize) {
        if self.clients_cut[host] > 0 {
            return;
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].host == host && self.streams[stream].cut && !self.streams[stream].over {
                self.streams[stream].cut = false;
                self.after(0, 20 * MS, Event::Carry(stream));
            }
        }
    }

    /// Everything is well again.
    pub(super) fn heal_all(&mut self) {
        self.healed = true;
        self.drained.iter_mut().for_each(|drained| drained.wanted = 0);
        self.network.set_delay(0);
        for from in 0..self.hosts.len() {
            for to in 0..self.hosts.len() {
                self.cut[from][to] = self.cut[from][to].min(1);
                self.mend(from, to);
            }
            self.hosts[from].set_free_bytes(None);
            self.hosts[from].is_disk_full = false;
            self.hosts[from].disk_stalls = 0;
            self.resume(from);
            self.make_runnable(from);
            self.clients_cut[from] = 0;
            self.pass_clients(from);
            if self.hosts[from].process.is_none() {
                self.at(self.now_ns, Event::Start(from));
            }
        }
    }
}
