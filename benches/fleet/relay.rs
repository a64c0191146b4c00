//! A distant server: a relay that holds back whatever passes, in either direction, and notes when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Nothing has passed for so long: what was being read is read. Short enough that a transaction which is ended only
/// after the repository has stored everything does not count as longer than its reading.
const PAUSE: Duration = Duration::from_millis(350);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Client,
    Server,
}

pub struct Relay {
    pub port: u16,
    passed: Arc<Mutex<Vec<Passed>>>,
    connections: Arc<AtomicUsize>,
}

/// Bytes that went by.
#[derive(Debug, Clone, Copy)]
struct Passed {
    at: Instant,
    from: From,
    /// The first connection is number 0.
    connection: usize,
}

/// Bytes that passed without a pause between them.
#[derive(Debug, Clone)]
pub struct Burst {
    pub time: Duration,
    /// How often a client had to wait for the server before it said more.
    pub turns: usize,
    /// The same, on the first connection alone: the session.
    pub session_turns: usize,
    /// Seconds from the beginning, and waits so far.
    pub steps: Vec<(f64, f64)>,
}

impl Relay {
    /// `delay`: of each direction, half of a round trip.
    pub async fn start(server: u16, delay: Duration) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let passed = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&passed);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                client.set_nodelay(true).ok();
                server.set_nodelay(true).ok();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let connection = count.fetch_add(1, Ordering::Relaxed);
                let note = |from| Note { from, connection, passed: Arc::clone(&noted) };
                pass(from_client, to_server, delay, note(From::Client));
                pass(from_server, to_client, delay, note(From::Server));
            }
        });
        Relay { port, passed, connections }
    }

    /// Forgets what has passed, and who: the next connection is the first.
    pub fn clear(&self) {
        self.connections.store(0, Ordering::Relaxed);
        self.forget();
    }

    /// Forgets what has passed.
    pub fn forget(&self) {
        self.passed.lock().expect("no panic").clear();
    }

    pub fn bursts(&self) -> Vec<Burst> {
        let mut passed = self.passed.lock().expect("no panic").clone();
        passed.sort_by_key(|passed| passed.at);
        let mut bursts: Vec<Vec<Passed>> = Vec::new();
        for passed in passed {
            match bursts.last_mut() {
                Some(burst) if passed.at - burst[burst.len() - 1].at < PAUSE => burst.push(passed),
                _ => bursts.push(vec![passed]),
            }
        }
        bursts.iter().map(|burst| Burst::of(burst)).collect()
    }
}

impl Burst {
    fn of(passed: &[Passed]) -> Burst {
        let begin = passed[0].at;
        let mut last: HashMap<usize, From> = HashMap::new();
        let (mut turns, mut session_turns) = (0, 0);
        let mut steps = vec![(0.0, 0.0)];
        for passed in passed {
            if last.insert(passed.connection, passed.from) == Some(From::Client)
                && passed.from == From::Server
            {
                turns += 1;
                session_turns += usize::from(passed.connection == 0);
                let at = (passed.at - begin).as_secs_f64();
                #[allow(clippy::cast_precision_loss)]
                steps.extend([(at, (turns - 1) as f64), (at, turns as f64)]);
            }
        }
        Burst { time: passed[passed.len() - 1].at - begin, turns, session_turns, steps }
    }
}

/// Where it is noted what passes.
struct Note {
    from: From,
    connection: usize,
    passed: Arc<Mutex<Vec<Passed>>>,
}

fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration, note: Note) {
    let (sender, mut held) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, bytes)) = held.recv().await {
            sleep_until(at).await;
            // When the client says it, and when the client hears it.
            let at = if note.from == From::Client { at - delay } else { at };
            let passed = Passed { at, from: note.from, connection: note.connection };
            note.passed.lock().expect("no panic").push(passed);
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
}
