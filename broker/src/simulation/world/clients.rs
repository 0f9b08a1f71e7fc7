//! Clients and their connections.

use super::{Event, World};
use crate::simulation::streams::Carried;
use crate::simulation::workload::Wish;

impl World {
    pub(super) fn wake_clients(&mut self) {
        if !self.clients_may {
            return;
        }
        if let Some(at_ns) = self.workload.next_at_ns() {
            let at_ns = at_ns.max(self.now_ns);
            if at_ns < self.clients_at_ns {
                self.clients_at_ns = at_ns;
                self.at(at_ns, Event::Clients);
            }
        }
    }

    pub(super) fn clients(&mut self) {
        if self.clients_at_ns > self.now_ns {
            return;
        }
        self.clients_at_ns = u64::MAX;
        for wish in self.workload.on_time(self.now_ns) {
            match wish {
                Wish::Open { client, node } => self.open(client, node),
                Wish::Reset { client } => {
                    if let Some(&stream) = self.stream_of.get(&client) {
                        self.streams[stream].reset();
                        self.tell_client(stream);
                    }
                }
            }
        }
        self.wake_clients();
    }

    pub(super) fn open(&mut self, client: usize, host: usize) {
        let stream = self.streams.len();
        let paused = self.hosts[host].paused;
        let reachable = self.clients_cut[host] == 0 && !paused;
        self.hosts[host].run_clock(self.now_ns);
        let process = self.hosts[host].process.as_mut().filter(|_| reachable);
        let process = process.and_then(|process| process.listens().then_some(process));
        let opened = process.and_then(|process| {
            let (carried, client_end, node_end) = Carried::new(stream, client, host, &self.ready);
            process.accept(node_end, &self.cluster).then_some((carried, client_end))
        });
        let stream = opened.map(|(carried, client_end)| {
            self.streams.push(carried);
            self.stream_of.insert(client, stream);
            client_end
        });
        self.workload.opened(self.now_ns, client, stream);
        self.make_runnable(host);
    }

    pub(super) fn tell_client(&mut self, stream: usize) {
        let client = self.streams[stream].client;
        if self.stream_of.get(&client) == Some(&stream) {
            self.workload.on_stream(self.now_ns, client);
            self.wake_clients();
        }
    }

    pub(super) fn carry(&mut self, stream: usize) {
        let host = self.streams[stream].host;
        let passed = self.streams[stream].carry();
        self.hash.number(passed.bytes_up as u64);
        self.hash.number(passed.bytes_down as u64);
        self.tell_client(stream);
        self.make_runnable(host);
    }
}
