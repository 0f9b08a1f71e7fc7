//! A network between two nodes that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Forwards connections to a target. Its threads end with their sockets.
pub(super) struct Proxy {
    pub address: SocketAddr,
    sockets: Arc<Mutex<Vec<TcpStream>>>,
    stalled: Arc<AtomicBool>,
    closed: Arc<AtomicBool>,
}

impl Proxy {
    pub(super) fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Self { address, sockets: Arc::default(), stalled: Arc::default(), closed: Arc::default() };
        let (sockets, stalled, closed) =
            (Arc::clone(&proxy.sockets), Arc::clone(&proxy.stalled), Arc::clone(&proxy.closed));
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(onward) = TcpStream::connect(target) else { continue };
                sockets.lock().unwrap().extend([socket.try_clone().unwrap(), onward.try_clone().unwrap()]);
                forward(socket.try_clone().unwrap(), onward.try_clone().unwrap(), Arc::clone(&stalled));
                forward(onward, socket, Arc::clone(&stalled));
            }
        });
        proxy
    }

    /// Resets every connection.
    pub(super) fn cut(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Lets nothing through, and ends nothing.
    pub(super) fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        self.stall(false);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, stalled: Arc<AtomicBool>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            while stalled.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        // The other direction ends as well.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}
