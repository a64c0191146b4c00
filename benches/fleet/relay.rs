//! A distant server: a relay that holds back whatever passes, in either direction, and notes when.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Nothing has passed for so long: what was being read is read.
const PAUSE: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Client,
    Server,
}

pub struct Relay {
    pub port: u16,
    passed: Arc<Mutex<Vec<(Instant, From)>>>,
}

/// Bytes that passed without a pause between them.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    pub time: Duration,
    /// How often the client had to wait for the server before it said more.
    pub turns: usize,
}

impl Relay {
    /// `delay`: of each direction, half of a round trip.
    pub async fn start(server: u16, delay: Duration) -> Relay {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let passed = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&passed);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                client.set_nodelay(true).ok();
                server.set_nodelay(true).ok();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                pass(from_client, to_server, delay, From::Client, Arc::clone(&noted));
                pass(from_server, to_client, delay, From::Server, Arc::clone(&noted));
            }
        });
        Relay { port, passed }
    }

    /// Forgets what has passed.
    pub fn clear(&self) {
        self.passed.lock().expect("no panic").clear();
    }

    pub fn bursts(&self) -> Vec<Burst> {
        let mut passed = self.passed.lock().expect("no panic").clone();
        passed.sort_by_key(|(at, _)| *at);
        let mut bursts: Vec<Vec<(Instant, From)>> = Vec::new();
        for (at, from) in passed {
            match bursts.last_mut() {
                Some(burst) if at - burst[burst.len() - 1].0 < PAUSE => burst.push((at, from)),
                _ => bursts.push(vec![(at, from)]),
            }
        }
        let burst = |burst: &Vec<(Instant, From)>| {
            let turns = burst.windows(2).filter(|two| two[0].1 == From::Client && two[1].1 == From::Server);
            Burst { time: burst[burst.len() - 1].0 - burst[0].0, turns: turns.count() }
        };
        bursts.iter().map(burst).collect()
    }
}

fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    who: From,
    passed: Arc<Mutex<Vec<(Instant, From)>>>,
) {
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
            let noted = if who == From::Client { at - delay } else { at };
            passed.lock().expect("no panic").push((noted, who));
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
}
