//! Nodes that come, go, lose their disks, and run other versions of the program.

use std::{
    fs,
    process::{Child, Stdio},
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kentongan_history::What;
use rand::{RngExt, seq::IndexedRandom};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    inject::{AT_ONCE, GRACE, hold},
    lab::{Lab, spawn},
    schedule::{NODES_AFTER_SHRINKING, Victim},
};

/// Groups are where they are to be within this, on a machine that has much to do.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);

/// Nodes that come, and nodes that go.
const CHANGED: usize = 2;

/// The directory's voters, where there are as many nodes.
const DIRECTORY_VOTERS: usize = 5;

const DIRECTORY: u64 = u16::MAX as u64;

/// What a process ends with that was removed, and one that does not know what its cluster uses.
const REMOVED: i32 = 3;
const TOO_OLD: i32 = 4;

impl Lab<'_> {
    /// F8.
    pub(super) fn lose_disk(&mut self, node: Victim, milliseconds: u64) -> Result<Vec<usize>> {
        let victim = self.resolve(node)?;
        self.await_settled("before a disk is lost")?;
        self.kill_and_restart(&[victim], milliseconds, |lab| lab.erase(victim))?;
        self.await_settled("after a disk was lost")?;
        Ok(vec![victim])
    }

    fn erase(&self, node: usize) -> Result<()> {
        let data = self.nodes.data(node);
        for entry in fs::read_dir(data).with_context(|| format!("reading {}", data.display()))? {
            let path = entry?.path();
            // The directory itself may be where a disk is mounted.
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }

    /// Two nodes more.
    pub(super) fn grow(&mut self, milliseconds: u64) -> Result<Vec<usize>> {
        let absent = (0..self.nodes.count()).filter(|node| !self.members.contains(node));
        let coming: Vec<_> = absent.take(CHANGED).collect();
        ensure!(coming.len() == CHANGED, "there is no place for more nodes");
        let mut victims = Vec::new();
        for node in coming {
            spawn(&mut self.nodes, &self.mesh, node)?;
            self.members.push(node);
            hold(milliseconds);
            // The one that comes as well as those it comes to.
            let victim = self.any_member(&[])?;
            self.kill_and_restart(&[victim], 500, |_| Ok(()))?;
            victims.push(victim);
            self.nodes.await_ready(node)?;
            self.stage.seats[node].pid.store(self.nodes.pid(node).unwrap_or(0), SeqCst);
            self.await_settled("after a node came")?;
        }
        Ok(victims)
    }

    /// Two nodes fewer; the newest go.
    pub(super) fn shrink(&mut self, milliseconds: u64) -> Result<Vec<usize>> {
        ensure!(self.members.len() >= NODES_AFTER_SHRINKING + CHANGED, "there are no nodes to spare");
        let mut victims = Vec::new();
        for _ in 0..CHANGED {
            let going = *self.members.last().context("a node")?;
            let asked = self.any_member(&[going])?;
            let removal = self.nodes.remover(asked, going).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            hold(milliseconds);
            let victim = self.any_member(&[going])?;
            self.kill_and_restart(&[victim], 500, |_| Ok(()))?;
            victims.push(victim);
            finish(removal)?;
            // Clients need not look for it any more.
            self.stage.seats[going].pid.store(0, SeqCst);
            let status = self.nodes.await_end(going, GRACE)?;
            if status.code() != Some(REMOVED) {
                self.finding(format!("node {going} ended with {status} after it was removed"));
            }
            self.members.retain(|&member| member != going);
            self.await_settled("after a node went")?;
            self.erase(going)?;
        }
        Ok(victims)
    }

    fn any_member(&mut self, but: &[usize]) -> Result<usize> {
        let members: Vec<_> = self.members.iter().copied().filter(|member| !but.contains(member)).collect();
        members.choose(&mut self.random).copied().context("a node")
    }

    /// F14.
    pub(super) fn upgrade(&mut self) -> Result<Vec<usize>> {
        let members = self.members.clone();
        let before = self.feature_level(members[0])?;
        for (turn, &node) in members.iter().enumerate() {
            self.change_program(node, true)?;
            if turn == 1 {
                self.change_program(node, false)?;
                self.change_program(node, true)?;
            }
            if turn + 1 < members.len() && self.feature_level(members[0])? != before {
                self.finding("the feature level was raised before all nodes knew it".into());
            }
        }
        let raised = |lab: &Self| members.iter().all(|&node| lab.feature_level(node).is_ok_and(|level| level > before));
        if !self.becomes(AT_ONCE, raised) {
            self.finding("all nodes are upgraded, and what is new is not used".into());
        }
        let late = members[self.random.random_range(0..members.len())];
        self.stop_in_order(late)?;
        self.nodes.set_program(late, None);
        spawn(&mut self.nodes, &self.mesh, late)?;
        match self.nodes.await_end(late, AT_ONCE) {
            Ok(status) if status.code() == Some(TOO_OLD) => {}
            Ok(status) => self.finding(format!("node {late} with the older version ended with {status}")),
            Err(_) => {
                self.finding(format!("node {late} runs the older version though what is new is used"));
                self.nodes.kill(late)?;
            }
        }
        self.nodes.set_program(late, self.other_program.clone());
        self.start_again(&[late])?;
        Ok(members)
    }

    fn change_program(&mut self, node: usize, other: bool) -> Result<()> {
        self.stop_in_order(node)?;
        self.nodes.set_program(node, self.other_program.clone().filter(|_| other));
        self.start_again(&[node])
    }

    fn stop_in_order(&mut self, node: usize) -> Result<()> {
        self.note(What::NodeCrashed { node: node as u16 });
        self.nodes.signal(node, Signal::TERM)?;
        let status = self.nodes.await_end(node, GRACE)?;
        if !status.success() {
            self.finding(format!("node {node} ended after SIGTERM with {status}"));
        }
        Ok(())
    }

    /// That a node says is used.
    fn feature_level(&self, node: usize) -> Result<u64> {
        let status = self.nodes.status(node)?;
        let name = format!("n{}", node + 1);
        let own = nodes(&status).find(|other| other["name"] == *name).context("it does not name itself")?;
        own["status"]["feature_level"].as_u64().context("it says nothing of feature levels")
    }

    /// Waits until there are just these members, all serve, and each group is kept by as many as it should.
    fn await_settled(&mut self, when: &str) -> Result<()> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        loop {
            let asked = *self.members.first().context("a node")?;
            let amiss = self.nodes.status(asked).map(|status| self.amiss(&status));
            match amiss {
                Ok(None) => return Ok(()),
                _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
                Ok(Some(what)) => bail!("{when}: {what}"),
                Err(error) => return Err(error.context(when.to_owned())),
            }
        }
    }

    fn amiss(&self, status: &Value) -> Option<String> {
        let count = self.members.len();
        let serving = nodes(status).filter(|node| node["status"]["standing"] == "serving").count();
        if (serving, nodes(status).count()) != (count, count) {
            return Some(format!("of {count} nodes {serving} serve, and {} are members", nodes(status).count()));
        }
        let groups: Vec<_> = nodes(status).filter_map(|node| node["status"]["groups"].as_array()).flatten().collect();
        let led: Vec<_> = groups.iter().filter(|group| group["leads"] == true).collect();
        let mut known: Vec<_> = groups.iter().filter_map(|group| group["group"].as_u64()).collect();
        known.sort_unstable();
        known.dedup();
        if led.len() != known.len() {
            return Some(format!("of {} groups {} are led", known.len(), led.len()));
        }
        let list = |group: &Value, list: &str| group[list].as_array().map_or(0, Vec::len);
        let wrong = led.iter().find(|group| {
            let most = if group["group"] == DIRECTORY { DIRECTORY_VOTERS } else { self.voters };
            let voters = most.min(count) - usize::from(most.min(count).is_multiple_of(2));
            list(group, "voters") != voters
        });
        wrong.map(|group| format!("group {} has {} voters", group["group"], list(group, "voters")))
    }
}

fn nodes(status: &Value) -> impl Iterator<Item = &Value> {
    status["nodes"].as_array().into_iter().flatten()
}

fn finish(removal: Child) -> Result<()> {
    let output = removal.wait_with_output()?;
    ensure!(output.status.success(), "removing a node: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
