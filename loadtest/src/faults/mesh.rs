//! A proxy on every link between nodes, so that each direction of each pair can be cut, slowed or reset by itself.
//!
//! A node has one address for all that dial it, so there is one listener for each node, which others are told to dial. Who
//! dials is what the kernel says: the socket at the other end belongs to a process, see [`dialler`]. What nobody of the
//! nodes dialled (a tool that asks for status) passes.
//!
//! A cut holds bytes back and loses none, like a network whose packets TCP sends again: what comes through after the
//! heal is what a node said before. [`Mesh::reset`] is the other end of a cut, where something on the way forgot the connection.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, netlink};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream, tcp},
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

/// Pieces that are under way in one direction of one connection: what a network holds.
const PIECES_MAX: usize = 64;

/// Bytes of a piece.
const PIECE: usize = 16 * 1024;

/// Of `linux/netlink.h`, `linux/sock_diag.h` and `linux/in.h`.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;

/// Bytes of `struct nlmsghdr`.
const DIAG_HEADER_BYTES: usize = 16;

/// Where the inode stands in an answer: `struct inet_diag_msg` behind the header.
const INODE_AT: usize = DIAG_HEADER_BYTES + 68;

/// What happens to what goes one way between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Way {
    /// It passes.
    #[default]
    Open,
    /// It is held back.
    Cut,
    /// It passes later, and not much of it at a time.
    Slow {
        /// How much later.
        delay: Duration,
        /// How much a second, on each connection.
        bytes_per_second: u32,
    },
}

/// One direction between two nodes, and how often its connections were reset.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    way: Way,
    resets: u64,
}

/// The links between all nodes. Dropping it breaks them.
#[derive(Debug)]
pub struct Mesh {
    links: Arc<Links>,
    addresses: Vec<SocketAddr>,
    _stop: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Links {
    /// The process of each node; 0 while there is none.
    pids: Vec<AtomicU32>,
    targets: Vec<SocketAddr>,
    /// From node to node: `from * nodes + to`.
    ways: Vec<watch::Sender<State>>,
}

impl Links {
    fn way(&self, from: usize, to: usize) -> &watch::Sender<State> {
        &self.ways[from * self.targets.len() + to]
    }
}

impl Mesh {
    /// Listens for each node at the address that others are told, and passes on to where the node listens.
    pub fn start(listeners: &[SocketAddr], targets: Vec<SocketAddr>) -> Result<Self> {
        let count = targets.len();
        let links = Arc::new(Links {
            pids: (0..count).map(|_| AtomicU32::new(0)).collect(),
            targets,
            ways: (0..count * count).map(|_| watch::channel(State::default()).0).collect(),
        });
        let bound: Vec<_> = listeners
            .iter()
            .map(|&address| {
                let listener =
                    std::net::TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .collect::<Result<_>>()?;
        let addresses = bound.iter().map(std::net::TcpListener::local_addr).collect::<io::Result<_>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&links);
        thread::Builder::new().name("mesh".into()).spawn(move || {
            runtime.block_on(async move {
                for (node, listener) in bound.into_iter().enumerate() {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => drop(tokio::spawn(accept(listener, node, Arc::clone(&shared)))),
                        Err(error) => eprintln!("the proxy of node {node} cannot listen: {error}"),
                    }
                }
                // The other end is dropped with the mesh.
                let _ = stopped.await;
            });
        })?;
        Ok(Self { links, addresses, _stop: stop })
    }

    /// Where others dial each node.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The process that is this node from now on.
    pub fn set_process(&self, node: usize, pid: u32) {
        self.links.pids[node].store(pid, SeqCst);
    }

    /// What happens from now on to what `from` says to `to`.
    pub fn set(&self, from: usize, to: usize, way: Way) {
        self.links.way(from, to).send_modify(|state| state.way = way);
    }

    /// All connections between the two end at once.
    pub fn reset(&self, one: usize, other: usize) {
        self.links.way(one, other).send_modify(|state| state.resets += 1);
        self.links.way(other, one).send_modify(|state| state.resets += 1);
    }

    /// Everything passes again.
    pub fn open_all(&self) {
        self.links.ways.iter().for_each(|way| way.send_modify(|state| state.way = Way::Open));
    }
}

async fn accept(listener: TcpListener, to: usize, links: Arc<Links>) {
    loop {
        match listener.accept().await {
            Ok((incoming, from)) => drop(tokio::spawn(connection(incoming, from, to, Arc::clone(&links)))),
            // Too many descriptors, which passes.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(incoming: TcpStream, from: SocketAddr, to: usize, links: Arc<Links>) {
    let Ok(own) = incoming.local_addr() else {
        return;
    };
    let pids: Vec<_> = links.pids.iter().map(|pid| pid.load(SeqCst)).collect();
    let dialler = tokio::task::spawn_blocking(move || dialler(from, own, &pids)).await;
    match dialler {
        Ok(Ok(Some(dialler))) if dialler != to => pass_between(incoming, dialler, to, &links).await,
        // A node that asks itself, or nobody of them.
        Ok(Ok(_)) => {
            if let Ok(mut outgoing) = TcpStream::connect(links.targets[to]).await {
                let mut incoming = incoming;
                // However it ends, it is over.
                let _ = tokio::io::copy_bidirectional(&mut incoming, &mut outgoing).await;
            }
        }
        Ok(Err(error)) => eprintln!("the proxy of node {to} cannot tell who dials it: {error}"),
        Err(_) => {}
    }
}

async fn pass_between(incoming: TcpStream, from: usize, to: usize, links: &Links) {
    let (mut there, mut back) = (links.way(from, to).subscribe(), links.way(to, from).subscribe());
    let resets = (there.borrow().resets, back.borrow().resets);
    // A connection that is begun during a cut comes about after it.
    let is_open = |state: &State| state.way != Way::Cut;
    if there.wait_for(is_open).await.is_err() || back.wait_for(is_open).await.is_err() {
        return;
    }
    let Ok(outgoing) = TcpStream::connect(links.targets[to]).await else {
        return reset(&incoming);
    };
    // Small messages are not to wait for each other; an error shows when it is written to.
    let _ = (incoming.set_nodelay(true), outgoing.set_nodelay(true));
    let mut forgotten = (there.clone(), back.clone());
    let (incoming_reader, incoming_writer) = incoming.into_split();
    let (outgoing_reader, outgoing_writer) = outgoing.into_split();
    let pumps = async {
        tokio::join!(pump(&incoming_reader, &outgoing_writer, there), pump(&outgoing_reader, &incoming_writer, back))
    };
    tokio::select! {
        _ = pumps => return, // Both have ended, and said so.
        _ = forgotten.0.wait_for(|state| state.resets != resets.0) => {}
        _ = forgotten.1.wait_for(|state| state.resets != resets.1) => {}
    }
    reset(incoming_reader.as_ref());
    reset(outgoing_reader.as_ref());
    // Else they would end in good order before they are reset.
    incoming_writer.forget();
    outgoing_writer.forget();
}

/// What is closed after this is reset.
fn reset(stream: &TcpStream) {
    // Where it fails, the connection is over already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Passes on what comes, until it ends.
async fn pump(reader: &tcp::OwnedReadHalf, writer: &tcp::OwnedWriteHalf, state: watch::Receiver<State>) {
    let (pieces, queued) = mpsc::channel(PIECES_MAX);
    let reader: &TcpStream = reader.as_ref();
    let writer: &TcpStream = writer.as_ref();
    tokio::join!(receive(reader, pieces), forward(writer, queued, state));
}

async fn receive(reader: &TcpStream, pieces: mpsc::Sender<(Instant, Vec<u8>)>) {
    loop {
        if reader.readable().await.is_err() {
            return;
        }
        let mut piece = vec![0; PIECE];
        match reader.try_read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                piece.truncate(count);
                if pieces.send((Instant::now(), piece)).await.is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

async fn forward(
    writer: &TcpStream,
    mut queued: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut state: watch::Receiver<State>,
) {
    while let Some((came, piece)) = queued.recv().await {
        let way = state.borrow().way;
        if let Way::Slow { delay, bytes_per_second } = way {
            sleep_until(came + delay).await;
            sleep(Duration::from_secs_f64(piece.len() as f64 / f64::from(bytes_per_second.max(1)))).await;
        }
        if state.wait_for(|state| state.way != Way::Cut).await.is_err() || write_all(writer, &piece).await.is_err() {
            return;
        }
    }
    // The end is a word too, and is held back by a cut like the rest.
    if state.wait_for(|state| state.way != Way::Cut).await.is_ok() {
        let _ = SockRef::from(writer).shutdown(std::net::Shutdown::Write);
    }
}

async fn write_all(writer: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        writer.writable().await?;
        match writer.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Which of the processes has the socket at the other end of a connection that `from` opened to `own`.
fn dialler(from: SocketAddr, own: SocketAddr, pids: &[u32]) -> io::Result<Option<usize>> {
    let Some(inode) = inode(from, own)? else {
        return Ok(None); // It is gone already.
    };
    let wanted = format!("socket:[{inode}]");
    let has = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut names = descriptors.filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok());
        names.find(|name| name.as_os_str() == wanted.as_str())
    };
    Ok(pids.iter().position(|&pid| pid != 0 && has(pid).is_some()))
}

/// The inode of the TCP socket with these ends, asked of the kernel (`sock_diag(7)`). `/proc/net/tcp` says it too, but has a line
/// for each closed connection that is still remembered, tens of thousands of them while nodes redial: to read it took longer than
/// they waited, and they dialled again.
fn inode(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (local, remote) else {
        return Ok(None);
    };
    let kernel =
        net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    net::send(&kernel, &diag_request(local, remote), net::SendFlags::empty())?;
    let mut answer = [0; 512];
    let (count, _) = net::recv(&kernel, &mut answer[..], net::RecvFlags::empty())?;
    let answer = &answer[..count];
    let number = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let message = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match message {
        Some(SOCK_DIAG_BY_FAMILY) => Ok(number(INODE_AT).filter(|inode| *inode != 0)),
        // An error's number, negative, stands behind the header.
        Some(NLMSG_ERROR) => {
            match number(DIAG_HEADER_BYTES).map(|number| io::Error::from_raw_os_error(-number.cast_signed())) {
                Some(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Some(error) => Err(error),
                None => Err(ErrorKind::UnexpectedEof.into()),
            }
        }
        _ => Err(io::Error::new(ErrorKind::InvalidData, format!("the kernel answers with message {message:?}"))),
    }
}

/// Asks for one socket: `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn diag_request(local: SocketAddrV4, remote: SocketAddrV4) -> Vec<u8> {
    let mut request = Vec::with_capacity(DIAG_HEADER_BYTES + 56);
    request.extend(72_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]); // Its number, and who asks.
    request.extend([AF_INET, IPPROTO_TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // In whatever state.
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        request.extend(address.octets());
        request.extend([0; 12]);
    }
    request.extend([0; 4]); // At any interface.
    request.extend([0xff; 8]); // With any cookie.
    request
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Long against what a busy machine needs, and waited for only where something fails.
    const DEADLINE: Duration = Duration::from_secs(20);

    /// Nothing comes within this.
    const GLANCE: Duration = Duration::from_millis(300);

    /// A mesh of two nodes, the first of which is the process `pid`, and a connection from this one to the second.
    fn linked_as(pid: u32) -> (Mesh, TcpStream, TcpStream) {
        let any = "127.0.0.1:0".parse().unwrap();
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        let mesh = Mesh::start(&[any, any], vec![any, second.local_addr().unwrap()]).unwrap();
        mesh.set_process(0, pid);
        let dialled = TcpStream::connect(mesh.addresses()[1]).unwrap();
        let (accepted, _) = second.accept().unwrap();
        (mesh, dialled, accepted)
    }

    fn linked() -> (Mesh, TcpStream, TcpStream) {
        linked_as(std::process::id())
    }

    fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").unwrap();
        arrives(to, GLANCE)
    }

    fn arrives(at: &mut TcpStream, wait: Duration) -> bool {
        at.set_read_timeout(Some(wait)).unwrap();
        let mut byte = [0];
        matches!(at.read(&mut byte), Ok(1))
    }

    #[test]
    fn a_cut_in_one_direction_holds_that_one_back_until_it_heals() {
        let (mesh, mut dialled, mut accepted) = linked();
        mesh.set(0, 1, Way::Cut);
        assert!(!passes(&mut dialled, &mut accepted));
        accepted.write_all(b"x").unwrap();
        assert!(arrives(&mut dialled, DEADLINE), "the other direction is open");
        mesh.open_all();
        assert!(arrives(&mut accepted, DEADLINE), "nothing was lost");
        mesh.set(1, 0, Way::Cut);
        assert!(!passes(&mut accepted, &mut dialled));
    }

    #[test]
    fn what_no_node_dialled_passes_a_cut() {
        let (mesh, mut dialled, mut accepted) = linked_as(0);
        mesh.set(0, 1, Way::Cut);
        dialled.write_all(b"x").unwrap();
        assert!(arrives(&mut accepted, DEADLINE));
    }

    #[test]
    fn a_reset_ends_connections_between_the_two() {
        let (mesh, mut dialled, accepted) = linked();
        mesh.reset(1, 0);
        dialled.set_read_timeout(Some(DEADLINE)).unwrap();
        let error = dialled.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        drop(accepted);
    }

    #[test]
    fn what_is_slow_comes_later() {
        let (mesh, mut dialled, mut accepted) = linked();
        let delay = GLANCE * 2;
        mesh.set(0, 1, Way::Slow { delay, bytes_per_second: 1_000_000 });
        let sent = std::time::Instant::now();
        dialled.write_all(b"x").unwrap();
        assert!(arrives(&mut accepted, DEADLINE));
        assert!(sent.elapsed() >= delay);
    }

    #[test]
    fn the_kernel_names_the_socket_of_each_end_and_nobody_for_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (from, own) = (dialled.local_addr().unwrap(), accepted.local_addr().unwrap());
        let inode_of = |socket: &TcpStream| u32::try_from(rustix::fs::fstat(socket).unwrap().st_ino).unwrap();
        assert_eq!(inode(from, own).unwrap(), Some(inode_of(&dialled)));
        assert_eq!(inode(own, from).unwrap(), Some(inode_of(&accepted)));
        let nobody = SocketAddr::new(from.ip(), 1);
        assert_eq!(inode(nobody, own).unwrap(), None);
    }

    #[test]
    fn the_end_of_a_connection_passes() {
        let (_mesh, dialled, mut accepted) = linked();
        drop(dialled);
        accepted.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    }
}
