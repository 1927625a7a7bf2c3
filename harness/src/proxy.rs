//! A TCP proxy between the relay and a server, to break the line on purpose.
//!
//! Carries bytes unread but for a trap's look. A broker behind it advertises the proxy's own port
//! (`kafka::Kafka::line`); PostgreSQL needs no more than another port in the URL. Everything that
//! a test changes takes effect at once, also for bytes and connections under way.

mod bent;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{oneshot, watch},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use self::bent::{Bent, Matches, lock};

/// Carried at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Under a throttle, bytes go in this many portions a second.
const PORTIONS_PER_SECOND: u64 = 20;

/// Listens from its making on; dropping it resets every connection.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

/// How a connection is cut, as both of its ends see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// RST: "connection reset by peer".
    #[default]
    Reset,
    /// FIN: the orderly end of a stream.
    Close,
}

/// From whom the bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The relay.
    Client,
    /// PostgreSQL or Kafka.
    Server,
}

/// What a trap does with the bytes that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// They are not carried: their connection is reset in front of them.
    Before,
    /// They are carried, and whatever is answered to them is lost with the connection: the other
    /// side has acted, and this one can't know.
    Answer,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// Connections that were there when this grew are gone.
    cuts: u64,
    how: Cut,
    refusing: bool,
    frozen: bool,
    /// Connections that were there when this grew are stranded.
    strandings: u64,
    delay: Duration,
    bytes_per_second: Option<u64>,
}

struct Shared {
    server: String,
    faults: watch::Sender<Faults>,
    trap: Mutex<Option<Armed>>,
    bent: Bent,
    accepted: AtomicU64,
}

struct Armed {
    from: From,
    trap: Trap,
    matches: Matches,
    sprung: oneshot::Sender<()>,
}

/// The connection is to be reset.
struct Trapped;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy on a free port, to `server` (`host:port`), which need not listen yet.
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn to(server: &str) -> Self {
        Self::on(0, server, ()).await.expect("a free loopback port")
    }

    /// A proxy on a port that the server knows as its own. `held` is dropped once the port is free again.
    ///
    /// # Errors
    /// The port is taken.
    pub(crate) async fn on(port: u16, server: &str, held: impl Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.with_context(|| format!("listening on {port}"))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            faults: watch::Sender::new(Faults::default()),
            trap: Mutex::new(None),
            bent: Bent::default(),
            accepted: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let _held = held; // Dropped after the listener, which `accept` takes with it.
            accept(listener, accepting).await;
        });
        let task = AbortOnDropHandle::new(task);
        Ok(Proxy { port, shared, _task: task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).to_string()
    }

    /// Connections accepted so far, those that were refused included.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }

    /// Cuts every connection there is; new ones are carried.
    pub fn cut(&self, how: Cut) {
        self.change(|faults| {
            faults.cuts += 1;
            faults.how = how;
        });
    }

    /// The server is away: every connection is reset, new ones too, until [`Proxy::heal`].
    pub fn refuse(&self) {
        self.change(|faults| {
            faults.refusing = true;
            faults.cuts += 1;
            faults.how = Cut::Reset;
        });
    }

    /// Nothing passes and nothing is lost: connections stay, new ones are accepted, their bytes
    /// are held until [`Proxy::heal`].
    pub fn freeze(&self) {
        self.change(|faults| faults.frozen = true);
    }

    /// The line forgets the connections there are: nothing of them is carried any more, not even
    /// their end, and [`Proxy::heal`] changes nothing. New ones are carried. So it is where what
    /// lay between has lost its memory: one side is gone, and the other can't know.
    pub fn strand(&self) {
        self.change(|faults| faults.strandings += 1);
    }

    /// Each run of bytes comes later by this, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.change(|faults| faults.delay = delay);
    }

    /// At most so many bytes pass each second, in each direction of each connection.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.change(|faults| faults.bytes_per_second = Some(bytes_per_second));
    }

    /// New connections whose first bytes match lead to another server (`host:port`), as behind a balancer, until
    /// [`Proxy::heal`]. Clients speak first.
    pub fn divert(&self, matches: impl Fn(&[u8]) -> bool + Send + 'static, server: &str) {
        self.shared.bent.divert(Box::new(matches), server);
    }

    /// Where the server sends these bytes in one run, as many others arrive, until [`Proxy::heal`].
    pub fn alter(&self, these: &[u8], others: &[u8]) {
        self.shared.bent.alter(these, others);
    }

    /// No fault any more; what was held is carried. A trap stays.
    pub fn heal(&self) {
        self.shared.bent.straighten();
        self.change(|faults| {
            let Faults { cuts, how, strandings, .. } = *faults;
            *faults = Faults { cuts, how, strandings, ..Faults::default() };
        });
    }

    /// Lays a trap for the next bytes that match. `matches` sees each run of bytes as it was read,
    /// which for a request smaller than some KB is the whole request. What is returned resolves
    /// when the connection is reset. Another trap takes the place of one that was not sprung.
    pub fn trap(
        &self,
        from: From,
        trap: Trap,
        matches: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (sprung, wait) = oneshot::channel();
        let armed = Armed { from, trap, matches: Box::new(matches), sprung };
        *lock(&self.shared.trap) = Some(armed);
        wait
    }

    fn change(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.faults.send_modify(change);
    }
}

/// Whether `bytes` has `needle` in it: for [`Proxy::trap`].
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    shared.accepted.fetch_add(1, Relaxed);
                    connections.spawn(serve(client, Arc::clone(&shared)));
                }
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until it ends or is cut.
async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut faults = shared.faults.subscribe();
    let born = faults.borrow().cuts;
    let cut = async {
        let found = faults.wait_for(|faults| faults.refusing || faults.cuts != born).await;
        // The sender lives as long as `shared`.
        found.map_or(Cut::Reset, |faults| faults.how)
    };
    tokio::pin!(cut);
    let connected = tokio::select! {
        biased; // A connection that is refused does not reach the server.
        how = &mut cut => Err(how),
        connected = shared.bent.connect(&client, &shared.server) => connected.map_err(|_| Cut::Reset),
    };
    let how = match connected {
        Err(how) => how,
        Ok(mut server) => {
            let how = tokio::select! {
                biased;
                how = cut => how,
                how = carry(&mut client, &mut server, &shared) => how,
            };
            end(&server, how);
            how
        }
    };
    end(&client, how);
}

/// The socket is dropped after this.
fn end(socket: &TcpStream, how: Cut) {
    if how == Cut::Reset {
        // A socket that has gone already can't be reset, and need not be.
        let _ = socket.set_zero_linger();
    }
}

async fn carry(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> Cut {
    for socket in [&*client, &*server] {
        if socket.set_nodelay(true).is_err() {
            return Cut::Reset;
        }
    }
    let caught = Mutex::new(None);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = Pump { from: From::Client, shared, caught: &caught };
    let down = Pump { from: From::Server, ..up };
    match tokio::try_join!(up.run(from_client, to_server), down.run(from_server, to_client)) {
        Ok(_) => Cut::Close,
        Err(Trapped) => Cut::Reset,
    }
}

/// One direction of one connection.
#[derive(Clone, Copy)]
struct Pump<'a> {
    from: From,
    shared: &'a Shared,
    /// A trap of this connection whose answer is waited for.
    caught: &'a Mutex<Option<Armed>>,
}

impl Pump<'_> {
    async fn run(self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Trapped> {
        let mut faults = self.shared.faults.subscribe();
        let born = faults.borrow().strandings;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            thawed(&mut faults, born).await;
            let room = portion(&faults.borrow()).min(buffer.len());
            let room = buffer.get_mut(..room).unwrap_or_default();
            let read_bytes = match from.read(room).await {
                Ok(read_bytes) if read_bytes > 0 => read_bytes,
                // Its end, orderly or not, is passed on when all before it is.
                _ => {
                    thawed(&mut faults, born).await;
                    let _ = to.shutdown().await;
                    return Ok(());
                }
            };
            let bytes = room.get_mut(..read_bytes).unwrap_or_default();
            if self.from == From::Server {
                self.shared.bent.pass(bytes);
            }
            self.look(bytes)?;
            let delay = faults.borrow().delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            thawed(&mut faults, born).await;
            if to.write_all(bytes).await.is_err() {
                return Err(Trapped); // The other end has reset it: so do we.
            }
            let rate = faults.borrow().bytes_per_second;
            if let Some(rate) = rate {
                let seconds = bytes.len() as f64 / rate.max(1) as f64;
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
        }
    }

    /// Springs the trap, if these are the bytes it waits for.
    fn look(self, bytes: &[u8]) -> Result<(), Trapped> {
        let mut caught = lock(self.caught);
        // More from the side that sprang it is carried: only the answer is lost.
        if let Some(armed) = caught.take_if(|armed| armed.from != self.from) {
            let _ = armed.sprung.send(());
            return Err(Trapped);
        }
        let mut trap = lock(&self.shared.trap);
        match trap.take_if(|armed| armed.from == self.from && (armed.matches)(bytes)) {
            None => Ok(()),
            Some(armed) if armed.trap == Trap::Before => {
                let _ = armed.sprung.send(());
                Err(Trapped)
            }
            Some(armed) => {
                *caught = Some(armed);
                Ok(())
            }
        }
    }
}

/// Waits while nothing may pass; for ever, on a connection that is stranded.
async fn thawed(faults: &mut watch::Receiver<Faults>, born: u64) {
    // An error means that the proxy is being dropped, and this task with it.
    let _ = faults.wait_for(|faults| !faults.frozen && faults.strandings == born).await;
}

fn portion(faults: &Faults) -> usize {
    let per_second = faults.bytes_per_second.map(|rate| (rate / PORTIONS_PER_SECOND).max(1));
    per_second.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(CHUNK_BYTES)
}
