//! From a data directory to groups that are led.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use kentongan_cluster::data_dir::DataDir;
use kentongan_cluster::disk::{Disk, RealDisk};
use kentongan_cluster::pipeline::NoPeers;
use kentongan_cluster::{GroupId, Pipeline, PipelineConfig, StateStore};

use super::machine::{Machine, SharedCell};
use crate::auth::Authority;
use crate::clock::Clock;
use crate::config::{Durability, Overlapping, Settings};
use crate::metrics::Metrics;
use crate::replicated::retained::RetainedLimits;
use crate::replicated::state::{GroupConfig, GroupState};
use crate::replicated::{Query, Slots, Submitter};
use crate::router::Shared;

/// The groups' threads, running.
#[derive(Debug)]
pub struct Running {
    pipeline: Pipeline<Query>,
    _data_dir: DataDir,
}

impl Running {
    /// Writes a last checkpoint and ends the threads.
    pub fn stop(self) {
        self.pipeline.stop();
    }
}

/// Time within which the groups let go of what an earlier start held.
const FENCE_SECONDS_MAX: u64 = 600;

/// Opens the data directory, takes up what is stored there, and begins to lead its groups.
///
/// # Errors
/// The directory cannot be used, or what is stored is not whole; the message says what to do.
pub fn start(
    settings: &Arc<Settings>,
    authority: Authority,
    arbiters: usize,
    metrics: &Metrics,
) -> anyhow::Result<(Arc<Shared>, Running)> {
    let data_dir = DataDir::open(&settings.data_dir)?;
    let slots = Slots::new(settings.storage.groups.get());
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&data_dir.path().join("log"))?);
    let store = StateStore::open(&data_dir.path().join("state"), Arc::clone(&disk))?;
    let config = group_config(settings);
    let groups = (0..slots.groups())
        .map(|group| {
            let stored = store.load(GroupId(group))?;
            GroupState::restore(config, stored)
                .with_context(|| format!("the stored state of group {group} cannot be used"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let shared_cell = SharedCell::default();
    let (fenced, wait) = mpsc::channel();
    let machine = Machine::new(groups, Arc::clone(&shared_cell), metrics.arbiter(), fenced);
    let pipeline = Pipeline::start(pipeline_config(settings, &data_dir), disk, store, machine, NoPeers)?;
    metrics.show_storage(Arc::clone(pipeline.handle().stats()));
    let clock = Clock::real();
    let submitter = Submitter::new(pipeline.handle().clone(), slots, clock.clone());
    let incarnation = data_dir.incarnation();
    let shared = Arc::new(Shared::new(Arc::clone(settings), arbiters, submitter, authority, incarnation, None, clock));
    if shared_cell.set(Arc::clone(&shared)).is_err() {
        unreachable!("set once, here");
    }
    pipeline.handle().notify(Query::Begin);
    wait.recv_timeout(Duration::from_secs(FENCE_SECONDS_MAX))
        .context("the groups did not let go of the connections of the process before this one")?;
    Ok((shared, Running { pipeline, _data_dir: data_dir }))
}

/// Bounds of the whole node, shared out evenly: names spread evenly over the groups.
fn group_config(settings: &Settings) -> GroupConfig {
    let groups = u64::from(settings.storage.groups.get());
    let share = |bound: u64| if bound == 0 { 0 } else { bound.div_ceil(groups) + bound.div_ceil(groups) / 8 };
    GroupConfig {
        queue_messages_max: settings.session.queue_messages_max as usize,
        queue_bytes_max: usize::try_from(settings.session.queue_bytes_max).unwrap_or(usize::MAX),
        drop_policy: settings.session.queue_drop_policy.into(),
        retained: RetainedLimits {
            messages_max: share(settings.retained.messages_max),
            bytes_max: share(settings.retained.bytes_max),
        },
        one_each: settings.session.overlapping == Overlapping::OneEach,
        share_strategy: settings.shared.strategy.into(),
        retained_age_ms_max: u64::from(settings.retained.age_seconds_max) * 1000,
        delayed_messages_max: usize::try_from(share(settings.delayed.messages_max)).unwrap_or(usize::MAX),
    }
}

fn pipeline_config(settings: &Settings, data_dir: &DataDir) -> PipelineConfig {
    let node = data_dir.node();
    PipelineConfig {
        node,
        seed: node.0.rotate_left(32) ^ data_dir.incarnation(),
        groups: settings.storage.groups.get(),
        segment_bytes: settings.storage.segment_bytes,
        checkpoint_log_bytes: settings.storage.checkpoint_log_bytes,
        checkpoint_interval: Duration::from_secs(u64::from(settings.storage.checkpoint_seconds.get())),
        sync: settings.durability == Durability::Fsync,
        free_bytes_reserve: settings.storage.free_bytes_reserve,
    }
}
