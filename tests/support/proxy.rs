//! A proxy before a server on which a connection goes wrong at a given message.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a message is held back by [`Fault::Delay`].
const DELAY: Duration = Duration::from_millis(1500);

/// The codes of requests that come before a session's startup.
const TLS_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Messages of which many come in a row: rows, and data of a `COPY`.
const SERIAL: [u8; 2] = [b'D', b'd'];

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Closed on both sides.
    Cut,
    /// The same, by a reset.
    Reset,
    /// Nothing passes any more, in either direction, until one side closes.
    Stall,
    /// Half of the message passes, and then it is closed.
    Truncate,
    /// Half of the message passes, and then nothing.
    Half,
    /// The message comes late.
    Delay,
}

impl Fault {
    pub const ALL: [Fault; 6] =
        [Fault::Cut, Fault::Reset, Fault::Stall, Fault::Truncate, Fault::Half, Fault::Delay];
}

/// What a fault waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum When {
    /// The message with this number.
    Number(usize),
    /// The answer that a command is complete, by the command's tag.
    Complete(&'static str),
}

pub struct Proxy {
    pub port: u16,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

/// What all connections over a proxy have in common.
struct Line {
    /// Messages so far, in both directions of all connections; of several of one kind in a row the first.
    count: AtomicUsize,
    armed: Mutex<Option<(When, Fault)>>,
    /// How many faults there have been.
    fired: watch::Sender<usize>,
}

impl Proxy {
    pub async fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let line = Arc::new(Line {
            count: AtomicUsize::new(0),
            armed: Mutex::new(None),
            fired: watch::Sender::new(0),
        });
        let of_task = Arc::clone(&line);
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let line = Arc::clone(&of_task);
                tokio::spawn(async move {
                    // A server that is away closes at once.
                    if let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await {
                        let _ = connection(client, server, &line).await;
                    }
                });
            }
        });
        Proxy { port, line, task }
    }

    /// The messages since this was called last, or since a fault was armed.
    pub fn take_count(&self) -> usize {
        self.line.count.swap(0, Ordering::SeqCst)
    }

    /// Lets the message with this number from now on, beginning with 0, go wrong.
    pub fn arm(&self, number: usize, fault: Fault) {
        *self.line.armed.lock().expect("no panic") = Some((When::Number(number), fault));
        self.line.count.store(0, Ordering::SeqCst);
    }

    /// Lets the next answer go wrong that says that such a command is complete: `COMMIT`.
    pub fn arm_answer(&self, tag: &'static str, fault: Fault) {
        *self.line.armed.lock().expect("no panic") = Some((When::Complete(tag), fault));
    }

    /// Lets nothing go wrong any more. True when something would have.
    pub fn disarm(&self) -> bool {
        self.line.armed.lock().expect("no panic").take().is_some()
    }

    /// How many faults there have been.
    pub fn fired(&self) -> usize {
        *self.line.fired.borrow()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// Counts a message. Gives what is to happen to it.
    fn step(&self, message: &[u8]) -> Option<Fault> {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let mut armed = self.armed.lock().expect("no panic");
        let (_, fault) = armed.take_if(|(when, _)| match when {
            When::Number(at) => *at == number,
            When::Complete(tag) => {
                message[0] == b'C' && message[5..].strip_suffix(b"\0") == Some(tag.as_bytes())
            }
        })?;
        self.fired.send_modify(|fired| *fired += 1);
        Some(fault)
    }
}

/// How a direction of a connection ended.
enum End {
    /// One side closed, or is closed.
    Closed,
    Reset,
    /// Nothing passes any more.
    Stalled,
}

async fn connection(mut client: TcpStream, mut server: TcpStream, line: &Line) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    if startup(&mut client, &mut server).await.is_err() {
        return Ok(());
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let end = tokio::select! {
        end = pump(&mut from_client, &mut to_server, line) => end,
        end = pump(&mut from_server, &mut to_client, line) => end,
    };
    let (client, server) = (
        from_client.reunite(to_client).expect("both of the client"),
        from_server.reunite(to_server).expect("both of the server"),
    );
    match end {
        Ok(End::Reset) => {
            for stream in [&client, &server] {
                let socket = socket2::SockRef::from(stream);
                socket.set_linger(Some(Duration::ZERO))?;
            }
        }
        Ok(End::Stalled) => {
            let (mut client, mut server) = (client, server);
            tokio::select! {
                () = closed(&mut client) => {}
                () = closed(&mut server) => {}
            }
        }
        Ok(End::Closed) | Err(_) => {}
    }
    Ok(())
}

/// Reads what comes and throws it away, until the end.
async fn closed(stream: &mut TcpStream) {
    let mut thrown_away = vec![0; 1 << 16];
    while matches!(stream.read(&mut thrown_away).await, Ok(1..)) {}
}

/// Lets everything pass up to the message that opens a session, or that asks to cancel something.
async fn startup(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    loop {
        let length = client.read_u32().await?;
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        client.read_exact(&mut body).await?;
        server.write_all(&length.to_be_bytes()).await?;
        server.write_all(&body).await?;
        let code = body.first_chunk().map_or(0, |code| u32::from_be_bytes(*code));
        if ![TLS_REQUEST, GSS_REQUEST].contains(&code) {
            return Ok(());
        }
        let answer = server.read_u8().await?;
        assert_eq!(answer, b'N', "what is encrypted cannot be told apart");
        client.write_u8(answer).await?;
    }
}

/// Hands on message by message.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, line: &Line) -> io::Result<End> {
    let mut before = 0;
    loop {
        let kind = from.read_u8().await?;
        let length = from.read_u32().await?;
        let mut message = vec![kind];
        message.extend_from_slice(&length.to_be_bytes());
        message.resize(1 + length as usize, 0);
        from.read_exact(&mut message[5..]).await?;
        let is_counted = kind != before || !SERIAL.contains(&kind);
        before = kind;
        let half = message.len() / 2;
        match if is_counted { line.step(&message) } else { None } {
            Some(Fault::Cut) => return Ok(End::Closed),
            Some(Fault::Reset) => return Ok(End::Reset),
            Some(Fault::Stall) => return Ok(End::Stalled),
            Some(Fault::Truncate) => {
                to.write_all(&message[..half]).await?;
                return Ok(End::Closed);
            }
            Some(Fault::Half) => {
                to.write_all(&message[..half]).await?;
                return Ok(End::Stalled);
            }
            Some(Fault::Delay) => tokio::time::sleep(DELAY).await,
            None => {}
        }
        to.write_all(&message).await?;
    }
}
