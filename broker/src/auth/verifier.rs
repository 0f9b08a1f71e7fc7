//! Threads that do what takes long, verifying passwords, while the arbiters go on.
//!
//! What waits for them waits in a [`FairQueue`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::fair_queue::{FairAddress, FairQueue, Waits};

/// A thing to do that waits for a thread.
pub struct Job {
    /// Where it comes from.
    pub address: FairAddress,
    /// Whom it is about.
    pub user: Box<str>,
    /// Nobody waits for it any more once this is gone.
    pub awaited: Weak<()>,
    /// Does it. `false`: there was no room, it is not to be done but to be answered.
    pub act: Box<dyn FnOnce(bool) + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Waits for Job {
    fn address(&self) -> FairAddress {
        self.address
    }

    fn user(&self) -> &str {
        &self.user
    }
}

#[derive(Debug)]
struct State {
    waiting: FairQueue<Job>,
    is_over: bool,
}

#[derive(Debug)]
struct Common {
    state: Mutex<State>,
    work: Condvar,
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads, and the queue before them. They end with it.
#[derive(Debug)]
pub struct Verifier(Arc<Common>);

impl Verifier {
    /// Starts `threads`, for at most `count_max` jobs that wait.
    ///
    /// # Errors
    /// The system gave no thread.
    pub fn start(threads: usize, count_max: usize) -> std::io::Result<Self> {
        let state = State { waiting: FairQueue::new(count_max), is_over: false };
        let common = Arc::new(Common { state: Mutex::new(state), work: Condvar::new() });
        for _ in 0..threads {
            let common = Arc::clone(&common);
            std::thread::Builder::new().name("passwords".into()).spawn(move || work(&common))?;
        }
        Ok(Self(common))
    }

    /// Lets a thread do `job`, or answers it, or those that give way for it, at once.
    pub fn submit(&self, job: Job) {
        let give_way = self.0.lock().waiting.push(job);
        self.0.work.notify_one();
        for job in give_way {
            (job.act)(false);
        }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.work.notify_all();
    }
}

fn work(common: &Common) {
    // Messages go first: on Linux this is of the thread alone. Where it is not allowed, passwords are verified all the same.
    let _ = rustix::process::nice(10);
    loop {
        let mut state = common.lock();
        let job = loop {
            if state.is_over {
                return;
            }
            match state.waiting.pop() {
                Some(job) => break job,
                None => state = common.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(state);
        if job.awaited.strong_count() > 0 {
            (job.act)(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::mpsc;

    use super::*;

    fn job(awaited: &Arc<()>, address: u8, user: &str) -> Job {
        Job {
            address: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, address))),
            user: Box::from(user),
            awaited: Arc::downgrade(awaited),
            act: Box::new(|_| {}),
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_done_and_the_rest_is() {
        let verifier = Verifier::start(1, 10).expect("started");
        let (tell, told) = mpsc::channel();
        let act = |text: &'static str| {
            let tell = tell.clone();
            Box::new(move |is_done| tell.send((text, is_done)).expect("the test waits")) as Box<dyn FnOnce(bool) + Send>
        };
        let awaited = Arc::new(());
        let gone = Arc::downgrade(&Arc::new(()));
        verifier.submit(Job { awaited: gone, act: act("gone"), ..job(&awaited, 1, "a") });
        verifier.submit(Job { act: act("awaited"), ..job(&awaited, 1, "a") });
        assert_eq!(told.recv(), Ok(("awaited", true)));
    }
}
