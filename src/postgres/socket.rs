//! The way to one address: a TCP connection or a Unix socket, encrypted where that is wanted.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;
use std::time::Duration;

use nix::unistd::{Uid, User};
use rand::seq::SliceRandom;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use super::conninfo::ConnInfo;
use super::conninfo::values::{Host, Keepalive, SslMode, SslNegotiation};
use super::failure::DialError;
use super::gather::Gather;
use super::login::Duplex;
use super::tls::{self, TlsError};

/// A peer that is gone is noticed after some 60 s of silence, where the system's default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// What a client sends to ask for TLS: the length, and a number that no version of the protocol has.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

#[derive(Debug, Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(unix::SocketAddr),
}

/// Where a host is. A name may stand for several addresses.
pub async fn addresses(host: &Host, shuffles: bool) -> Result<Vec<Address>, DialError> {
    if host.is_socket() {
        let file = format!("{}/.s.PGSQL.{}", host.name, host.port);
        let address = match file.strip_prefix('@') {
            Some(name) => unix::SocketAddr::from_abstract_name(name),
            None => unix::SocketAddr::from_pathname(&file),
        };
        return Ok(vec![Address::Unix(address.map_err(DialError::Connect)?)]);
    }
    let name = host.address.as_deref().unwrap_or(&host.name);
    let found = lookup_host((name, host.port)).await.map_err(DialError::Resolve)?;
    let mut found: Vec<Address> = found.map(Address::Tcp).collect();
    if shuffles {
        found.shuffle(&mut rand::rng());
    }
    if found.is_empty() {
        return Err(DialError::Resolve(io::Error::other("the name has none")));
    }
    Ok(found)
}

/// A connection on which PostgreSQL's own protocol may begin.
pub struct Opened {
    pub stream: Box<dyn Duplex>,
    pub is_encrypted: bool,
    pub channel_binding: Option<Vec<u8>>,
}

/// # Errors
/// When the address does not answer, or there is no TLS where there must be.
pub async fn open(
    conninfo: &ConnInfo,
    host: &Host,
    address: &Address,
    with_tls: bool,
) -> Result<Opened, DialError> {
    let plain = |stream: Box<dyn Duplex>| Opened { stream, is_encrypted: false, channel_binding: None };
    let address = match address {
        Address::Tcp(address) => address,
        Address::Unix(address) => {
            let stream =
                UnixStream::connect_addr(&address.clone().into()).await.map_err(DialError::Connect)?;
            if let Some(wanted) = &conninfo.peer {
                check_peer(&stream, wanted)?;
            }
            return Ok(plain(Box::new(stream)));
        }
    };
    let mut stream = TcpStream::connect(address).await.map_err(DialError::Connect)?;
    keep_alive(&stream, &conninfo.keepalive).map_err(DialError::Connect)?;
    if !with_tls {
        return Ok(plain(Box::new(Gather::new(stream))));
    }
    if conninfo.tls.negotiation == SslNegotiation::Postgres {
        stream.write_all(&TLS_REQUEST).await.map_err(DialError::Connect)?;
        match stream.read_u8().await.map_err(DialError::Connect)? {
            b'S' => {}
            // Without TLS, this same connection serves. With `allow`, that has been tried.
            b'N' if conninfo.tls.mode == SslMode::Prefer => return Ok(plain(Box::new(Gather::new(stream)))),
            b'N' => return Err(TlsError::Refused(conninfo.tls.mode).into()),
            answer => return Err(TlsError::Answer(answer).into()),
        }
        // Bytes that somebody on the line put before the handshake would be taken for what comes after it.
        if stream.try_read(&mut [0]).is_ok_and(|read| read > 0) {
            return Err(TlsError::Early.into());
        }
    }
    let secured = tls::secure(Gather::new(stream), host, &conninfo.tls).await?;
    Ok(Opened {
        stream: Box::new(secured.stream),
        is_encrypted: true,
        channel_binding: secured.channel_binding,
    })
}

fn check_peer(stream: &UnixStream, wanted: &str) -> Result<(), DialError> {
    let uid = stream.peer_cred().map_err(DialError::Connect)?.uid();
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let found = user.map_or_else(|| format!("user {uid}"), |user| user.name);
    if found == wanted { Ok(()) } else { Err(DialError::Peer { wanted: wanted.to_owned(), found }) }
}

fn keep_alive(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if keepalive.is_on {
        let settings = TcpKeepalive::new()
            .with_time(keepalive.idle.unwrap_or(KEEPALIVE_IDLE))
            .with_interval(keepalive.interval.unwrap_or(KEEPALIVE_INTERVAL))
            .with_retries(keepalive.count.unwrap_or(KEEPALIVE_COUNT));
        socket.set_tcp_keepalive(&settings)?;
    }
    if keepalive.user_timeout.is_some() {
        socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    }
    Ok(())
}
