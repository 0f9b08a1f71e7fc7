//! What only whoever reads the settings can do: read them again, and say what is logged.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{Answered, Operator};

/// Something that is wanted of whoever reads the settings.
#[derive(Debug)]
pub enum Wanted {
    /// That they are read again, as on SIGHUP.
    Reload(oneshot::Sender<Answered<Reloaded>>),
    /// To be told what is logged, or that this is, until the settings are read again.
    Log(Option<String>, oneshot::Sender<Answered<String>>),
}

/// What came of reading the settings again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reloaded {
    /// Settings that changed and are in force.
    pub changed: Vec<String>,
    /// Settings that changed and need a restart.
    pub needs_restart: Vec<String>,
}

impl Operator {
    /// What is wanted comes here from now on. The first call holds.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<Wanted> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // Set twice, the second receiver hears that nobody speaks.
        let _ = self.control.set(sender);
        receiver
    }

    pub(super) fn reload_here(&self) -> Answered<Reloaded> {
        self.want(Wanted::Reload)
    }

    pub(super) fn log_here(&self, filter: Option<String>) -> Answered<String> {
        self.want(|answer| Wanted::Log(filter, answer))
    }

    /// Waits, on a thread that may.
    fn want<T>(&self, wanted: impl FnOnce(oneshot::Sender<Answered<T>>) -> Wanted) -> Answered<T> {
        let (answer, answered) = oneshot::channel();
        let starts = || "this node is still starting, or stops: ask again".to_owned();
        self.control.get().ok_or_else(starts)?.send(wanted(answer)).map_err(|_| starts())?;
        answered.blocking_recv().map_err(|_| starts())?
    }
}
