//! What each [`Injection`] does to the nodes, and how it is undone.

use std::{
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kentongan_history::What;
use kentongan_proto::mqtt::ProtocolVersion;
use kentongan_workload::{Link, Session};
use rand::{RngExt, seq::SliceRandom};
use rustix::process::Signal;

use super::{
    lab::{Lab, spawn},
    machine,
    mesh::Way,
    schedule::{Injection, Victim},
};

/// Time within which a process does what it must do at once, on a machine that has much to do.
pub(super) const AT_ONCE: Duration = Duration::from_secs(20);

/// A node ends within this after SIGTERM, however many clients it has.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// A checkpoint comes within this, by the settings that [`Lab::start`] gives where one is waited for.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(30);

/// A node whose majority is gone refuses a CONNECT within this (F12), ...
const REFUSED_WITHIN: Duration = Duration::from_secs(2);

/// ... once its lease has run out.
const LEASE_OVER: Duration = Duration::from_secs(4);

/// The error that a failing sync gives: EIO.
const SYNC_ERRNO: i64 = 5;

/// Threads that connect clients beside those of the load.
const CONNECTORS: usize = 8;

/// So many of them are there within this that a node has enough to do when it stops.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);

/// Pause of such a client that was refused.
const RETRY: Duration = Duration::from_millis(50);

impl Lab<'_> {
    /// Does it, undoes it, and waits until all serve again. Returns the nodes that could not serve meanwhile.
    pub(super) fn do_to_nodes(&mut self, injection: &Injection) -> Result<Vec<usize>> {
        let all = self.members.clone();
        match *injection {
            Injection::Kill { node, milliseconds } => {
                let victims = vec![self.resolve(node)?];
                self.kill_and_restart(&victims, milliseconds, |_| Ok(()))?;
                Ok(victims)
            }
            Injection::KillAll { milliseconds } => {
                self.kill_and_restart(&all, milliseconds, |_| Ok(()))?;
                Ok(all)
            }
            Injection::PowerCut => {
                self.kill_and_restart(&all, 0, |lab| all.iter().try_for_each(|&node| lab.cut_power(node)))?;
                Ok(all)
            }
            Injection::PowerCutBehindMinority { milliseconds } => self.cut_power_behind_minority(&all, milliseconds),
            Injection::Stop { node, clients_move, milliseconds } => self.stop(node, clients_move, milliseconds),
            Injection::Isolate { node, forgotten, milliseconds } => {
                let node = self.resolve(node)?;
                let pairs = others(&all, node).flat_map(|other| [(node, other), (other, node)]).collect();
                self.cut(pairs, forgotten, milliseconds)?;
                Ok(vec![node])
            }
            Injection::Halves { milliseconds } => {
                let (smaller, larger) = all.split_at(all.len() / 2);
                let between = |&one| larger.iter().flat_map(move |&other| [(one, other), (other, one)]);
                self.cut(smaller.iter().flat_map(between).collect(), false, milliseconds)?;
                Ok(smaller.to_vec())
            }
            Injection::Ring { milliseconds } => {
                self.cut(beyond_neighbours(all.len()), false, milliseconds)?;
                Ok(Vec::new())
            }
            Injection::OneWay { node, deaf, milliseconds } => {
                let node = self.resolve(node)?;
                let pair = |other| if deaf { (other, node) } else { (node, other) };
                self.cut(others(&all, node).map(pair).collect(), false, milliseconds)?;
                Ok(vec![node])
            }
            Injection::Slow { node, delay_milliseconds, bytes_per_second, milliseconds } => {
                let node = self.resolve(node)?;
                let way = Way::Slow { delay: Duration::from_millis(delay_milliseconds), bytes_per_second };
                let pairs = others(&all, node).flat_map(|other| [(node, other), (other, node)]).collect();
                self.set_ways(pairs, way, false, milliseconds, "slow")?;
                Ok(Vec::new())
            }
            Injection::Clock { node, seconds, milliseconds } => {
                let node = self.resolve(node)?;
                let fault = self.fault_begins("clock");
                self.tell(node, seconds, 0)?;
                hold(milliseconds);
                self.tell(node, 0, 0)?;
                self.fault_heals(fault);
                Ok(Vec::new())
            }
            Injection::StartWithClock { node, seconds, milliseconds } => {
                let victims = vec![self.resolve(node)?];
                self.kill_and_restart(&victims, 500, |lab| lab.tell(victims[0], seconds, 0))?;
                hold(milliseconds);
                self.tell(victims[0], 0, 0)?;
                Ok(victims)
            }
            Injection::TornEnd { node } => {
                let victims = vec![self.resolve(node)?];
                self.kill_and_restart(&victims, 0, |lab| {
                    let segment = machine::newest_segment(lab.nodes.data(victims[0]))?;
                    let torn: Vec<u8> = (0..lab.random.random_range(1..200)).map(|_| lab.random.random()).collect();
                    machine::append(&segment, &torn)
                })?;
                Ok(victims)
            }
            Injection::FlippedBit { node } => {
                let victims = vec![self.resolve(node)?];
                self.kill_and_restart(&victims, 0, |lab| lab.flip_a_bit(victims[0]))?;
                Ok(victims)
            }
            Injection::DiskFull { node, milliseconds } => self.fill_disk(node, milliseconds),
            Injection::SyncError { node } => self.fail_syncs(node),
            Injection::KillAtCheckpoint { node, times } => {
                let victims = vec![self.resolve(node)?];
                for _ in 0..times {
                    self.await_checkpoint(victims[0])?;
                    self.kill_and_restart(&victims, 0, |_| Ok(()))?;
                }
                Ok(victims)
            }
            Injection::NoQuorum { milliseconds } => {
                let survivor = self.random.random_range(0..all.len());
                let victims: Vec<_> = others(&all, survivor).collect();
                self.kill_and_restart(&victims, milliseconds, |lab| {
                    thread::sleep(LEASE_OVER);
                    lab.expect_refusals(survivor);
                    Ok(())
                })?;
                Ok(all)
            }
            Injection::Terminate { node, connections } => self.terminate(node, connections),
            Injection::LoseDisk { node, milliseconds } => self.lose_disk(node, milliseconds),
            Injection::Upgrade => self.upgrade(),
            Injection::Grow { milliseconds } => self.grow(milliseconds),
            Injection::Shrink { milliseconds } => self.shrink(milliseconds),
        }
    }

    pub(super) fn resolve(&self, victim: Victim) -> Result<usize> {
        match victim {
            Victim::Node(node) if self.members.contains(&node) => Ok(node),
            Victim::Node(node) => bail!("there is no node {node}"),
            Victim::DirectoryLeader => self.directory_leader(),
        }
    }

    fn directory_leader(&self) -> Result<usize> {
        let deadline = Instant::now() + AT_ONCE;
        loop {
            let leader = self.nodes.directory_leader(0);
            match leader {
                Ok(leader) => return Ok(leader),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    // Processes.

    /// Does something between, and lets them be down for so long in any case.
    pub(super) fn kill_and_restart(
        &mut self,
        victims: &[usize],
        milliseconds: u64,
        between: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let began = Instant::now();
        for &victim in victims {
            self.note(What::NodeCrashed { node: victim as u16 });
            self.nodes.kill(victim)?;
        }
        between(self)?;
        thread::sleep(Duration::from_millis(milliseconds).saturating_sub(began.elapsed()));
        self.start_again(victims)
    }

    pub(super) fn start_again(&mut self, victims: &[usize]) -> Result<()> {
        for &victim in victims {
            spawn(&mut self.nodes, &self.mesh, victim)?;
            self.stage.seats[victim].pid.store(self.nodes.pid(victim).unwrap_or(0), SeqCst);
        }
        for &victim in victims {
            self.nodes.await_ready(victim)?;
            self.note(What::NodeRecovered { node: victim as u16 });
        }
        Ok(())
    }

    fn stop(&mut self, node: Victim, clients_move: bool, milliseconds: u64) -> Result<Vec<usize>> {
        let node = self.resolve(node)?;
        let fault = self.fault_begins("stopped");
        self.freeze(node)?;
        if clients_move {
            self.stage.move_from(Some(node));
        }
        hold(milliseconds);
        self.stage.move_from(None);
        self.nodes.signal(node, Signal::CONT)?;
        self.fault_heals(fault);
        self.nodes.await_ready(node)?;
        self.stage.seats[node].stopped.store(false, SeqCst);
        Ok(vec![node])
    }

    fn cut_power(&self, node: usize) -> Result<()> {
        Ok(self.power.get(node).context("its disk forgets nothing")?.cut()?)
    }

    /// F6. In the end only those nodes form a majority with the minority that had not heard what was written meanwhile, and
    /// the one that may have forgotten it.
    fn cut_power_behind_minority(&mut self, all: &[usize], milliseconds: u64) -> Result<Vec<usize>> {
        let mut order = all.to_vec();
        order.shuffle(&mut self.random);
        let (minority, rest) = order.split_at(all.len() / 2);
        let &[forgetful, last, ..] = rest else {
            bail!("there is no majority beside a minority");
        };
        let fault = self.fault_begins("power cut behind a minority");
        minority.iter().try_for_each(|&node| self.freeze(node))?;
        hold(milliseconds);
        self.note(What::NodeCrashed { node: forgetful as u16 });
        self.nodes.kill(forgetful)?;
        self.cut_power(forgetful)?;
        self.freeze(last)?;
        minority.iter().try_for_each(|&node| self.nodes.signal(node, Signal::CONT))?;
        self.start_again(&[forgetful])?;
        hold(milliseconds);
        self.nodes.signal(last, Signal::CONT)?;
        self.fault_heals(fault);
        for &node in all {
            self.nodes.await_ready(node)?;
            self.stage.seats[node].stopped.store(false, SeqCst);
        }
        Ok(all.to_vec())
    }

    fn freeze(&self, node: usize) -> Result<()> {
        self.stage.seats[node].stopped.store(true, SeqCst);
        self.nodes.signal(node, Signal::STOP)
    }

    fn terminate(&mut self, node: Victim, connections: usize) -> Result<Vec<usize>> {
        let node = self.resolve(node)?;
        let address = self.nodes.address(node);
        // On a machine that does much else it takes long, and a node whose lease lapsed meanwhile refuses them. They are only to be there.
        let deadline = Instant::now() + CONNECT_WITHIN;
        let connect = move |number: usize| loop {
            match Link::open(address, ProtocolVersion::V3_1_1, &format!("idle-{number}"), Session::Transient) {
                Ok(link) => return Some(link),
                Err(_) if Instant::now() >= deadline => return None,
                Err(_) => thread::sleep(RETRY),
            }
        };
        let connectors: Vec<_> = (0..CONNECTORS)
            .map(|first| thread::spawn(move || (first..connections).step_by(CONNECTORS).filter_map(connect).collect()))
            .collect();
        let links: Vec<Vec<_>> = connectors
            .into_iter()
            .map(|connector| connector.join().map_err(|_| anyhow!("a client panicked")))
            .collect::<Result<_>>()?;
        let connected = links.iter().map(Vec::len).sum::<usize>();
        if connected < connections * 9 / 10 {
            self.finding(format!("of {connections} clients only {connected} could connect to node {node}"));
        }
        self.note(What::NodeCrashed { node: node as u16 });
        self.nodes.signal(node, Signal::TERM)?;
        let status = self.nodes.await_end(node, GRACE)?;
        if !status.success() {
            self.finding(format!("node {node} ended after SIGTERM with {status}"));
        }
        drop(links);
        self.start_again(&[node])?;
        Ok(vec![node])
    }

    // Links.

    fn cut(&mut self, pairs: Vec<(usize, usize)>, forgotten: bool, milliseconds: u64) -> Result<()> {
        self.set_ways(pairs, Way::Cut, forgotten, milliseconds, "cut")
    }

    fn set_ways(
        &mut self,
        pairs: Vec<(usize, usize)>,
        way: Way,
        forgotten: bool,
        milliseconds: u64,
        kind: &str,
    ) -> Result<()> {
        let fault = self.fault_begins(kind);
        pairs.iter().for_each(|&(from, to)| self.mesh.set(from, to, way));
        hold(milliseconds);
        if forgotten {
            pairs.iter().for_each(|&(from, to)| self.mesh.reset(from, to));
        }
        self.mesh.open_all();
        self.fault_heals(fault);
        self.members.iter().try_for_each(|&node| self.nodes.await_ready(node))
    }

    // Disks and clocks.

    fn tell(&self, node: usize, clock_seconds: i64, sync_errno: i64) -> Result<()> {
        self.preload.as_ref().context("nothing is preloaded")?.tell(node, clock_seconds, sync_errno)
    }

    /// In the log of a node that is down. The node must refuse to start; then it is flipped back.
    fn flip_a_bit(&mut self, node: usize) -> Result<()> {
        let segment = machine::newest_segment(self.nodes.data(node))?;
        let (at, bit) = (machine::middle(&segment)?, self.random.random());
        machine::flip(&segment, at, bit)?;
        spawn(&mut self.nodes, &self.mesh, node)?;
        match self.nodes.await_end(node, AT_ONCE) {
            Ok(status) if status.success() => {
                self.finding(format!("node {node} ended with success over a bit flipped at {at} of its log"));
            }
            Ok(_) => {}
            Err(_) => {
                self.finding(format!("node {node} did not notice a bit flipped at {at} of its log"));
                self.nodes.kill(node)?;
            }
        }
        machine::flip(&segment, at, bit)
    }

    fn fill_disk(&mut self, node: Victim, milliseconds: u64) -> Result<Vec<usize>> {
        let node = self.resolve(node)?;
        let fault = self.fault_begins("disk full");
        self.small_disk.as_ref().context("there is no small disk")?.fill()?;
        if !self.becomes(AT_ONCE, |lab| !lab.nodes.is_ready(node)) {
            self.finding(format!("node {node} says that it is ready, and its disk is full"));
        }
        hold(milliseconds);
        self.small_disk.as_ref().context("there is no small disk")?.empty()?;
        self.fault_heals(fault);
        if let Some(ended) = self.nodes.ended() {
            self.finding(format!("a full disk ended a node: {ended}"));
        }
        self.nodes.await_ready(node)?;
        Ok(vec![node])
    }

    fn fail_syncs(&mut self, node: Victim) -> Result<Vec<usize>> {
        let node = self.resolve(node)?;
        let fault = self.fault_begins("fsync error");
        self.tell(node, 0, SYNC_ERRNO)?;
        match self.nodes.await_end(node, AT_ONCE) {
            Ok(status) if status.success() => {
                self.finding(format!("node {node} ended with success over a failed fsync"))
            }
            Ok(_) => {}
            Err(error) => {
                self.finding(format!("node {node} goes on after a failed fsync: {error:#}"));
                self.nodes.kill(node)?;
            }
        }
        self.note(What::NodeCrashed { node: node as u16 });
        self.tell(node, 0, 0)?;
        self.fault_heals(fault);
        self.start_again(&[node])?;
        Ok(vec![node])
    }

    fn await_checkpoint(&mut self, node: usize) -> Result<()> {
        let before = machine::last_checkpoint(self.nodes.data(node));
        let came = self.becomes(CHECKPOINT_WITHIN, |lab| machine::last_checkpoint(lab.nodes.data(node)) != before);
        ensure!(came, "node {node} wrote no checkpoint");
        // Those of other groups follow at once, so any moment is one of a checkpoint.
        thread::sleep(Duration::from_millis(self.random.random_range(0..40)));
        Ok(())
    }

    // What clients meet.

    /// F12: a CONNECT is answered, and refused, in time.
    fn expect_refusals(&mut self, survivor: usize) {
        let stalls = self.stage.stalls();
        for (version, name) in [(ProtocolVersion::V5, "probe-5"), (ProtocolVersion::V3_1_1, "probe-3")] {
            let asked = Instant::now();
            let outcome = Link::open(self.nodes.address(survivor), version, name, Session::Transient);
            let took = asked.elapsed();
            let refusal = match outcome {
                Ok(_) => "accepted".to_owned(),
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionRefused => format!("not answered: {error}"),
                Err(error) if !error.to_string().contains("ServerUnavailable") => format!("refused with {error}"),
                // A machine that does not let the node work is no fault of the node.
                Err(_) if took > REFUSED_WITHIN && self.stage.stalls() == stalls => format!("refused after {took:?}"),
                Err(_) => continue,
            };
            self.finding(format!("without a quorum a CONNECT of {version:?} was {refusal}"));
        }
    }

    pub(super) fn becomes(&mut self, within: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + within;
        while !condition(self) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// The length of a fault is part of the schedule.
pub(super) fn hold(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

pub(super) fn others(all: &[usize], node: usize) -> impl Iterator<Item = usize> {
    all.iter().copied().filter(move |&other| other != node)
}

/// In a ring of so many nodes, each of which sees just a majority: who does not see whom. Of three, the first and the last.
fn beyond_neighbours(nodes: usize) -> Vec<(usize, usize)> {
    let reach = (nodes - 1).div_ceil(4);
    let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
    let is_beyond = |&(from, to): &(usize, usize)| match from.abs_diff(to) {
        apart if nodes == 3 => apart == 2,
        apart => apart.min(nodes - apart) > reach,
    };
    pairs.filter(is_beyond).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_ring_each_sees_a_majority_and_not_all_see_the_same() {
        for nodes in 3..=9 {
            let cut = beyond_neighbours(nodes);
            let sees = |node| (0..nodes).filter(|&other| !cut.contains(&(node, other))).count();
            assert!((0..nodes).all(|node| sees(node) > nodes / 2), "{nodes}: {cut:?}");
            assert!(!cut.is_empty() && cut.iter().all(|&(from, to)| cut.contains(&(to, from))), "{nodes}: {cut:?}");
        }
    }
}
