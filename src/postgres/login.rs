//! Watches a connection until its login is over: which way of authentication the server asks for, and whether
//! that is allowed. tokio-postgres does the login itself; it does not say, and would give a password to whoever
//! asks for one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::conninfo::values::{AuthMethod, RequireAuth};

/// Why a login is broken off from our side.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum LoginError {
    #[error("the server asks for authentication by {0}, which require_auth does not allow")]
    NotAllowed(AuthMethod),
    #[error("the server asks for no authentication, which require_auth does not allow")]
    Unasked,
    #[error("the server asks for authentication by {0}, which is not supported")]
    Unsupported(&'static str),
}

/// How far a login has come.
#[derive(Debug, Default)]
pub struct Progress {
    was_asked: AtomicBool,
    is_in: AtomicBool,
}

impl Progress {
    /// Whether the server has asked for a password or the like.
    pub fn was_asked(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed)
    }

    /// Whether the server has let us in.
    pub fn is_in(&self) -> bool {
        self.is_in.load(Ordering::Relaxed)
    }
}

/// Any connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is ready for PostgreSQL's protocol, encrypted or not.
pub struct Wire {
    stream: Box<dyn Duplex>,
    channel_binding: Option<Vec<u8>>,
    /// `None` once the login is over.
    watch: Option<Watch>,
}

impl Wire {
    /// `progress`: is kept up to date.
    pub fn new(
        stream: Box<dyn Duplex>,
        channel_binding: Option<Vec<u8>>,
        allowed: RequireAuth,
        progress: Arc<Progress>,
    ) -> Self {
        let watch = Watch { allowed, progress, head: Vec::new(), skip: 0 };
        Self { stream, channel_binding, watch: Some(watch) }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(watch) = &mut self.watch {
            // Whatever is not allowed is found before tokio-postgres sees it, and answers.
            if watch.see(&buf.filled()[before..]).map_err(io::Error::other)? {
                self.watch = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.stream).poll_write(cx, data)) {
            // As in libpq: what a server said before it hung up tells more, and is still to be read.
            Err(_) if self.watch.is_some() => Poll::Ready(Ok(data.len())),
            written => Poll::Ready(written),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_flush(cx)) {
            Err(_) if self.watch.is_some() => Poll::Ready(Ok(())),
            flushed => Poll::Ready(flushed),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.channel_binding {
            Some(digest) => ChannelBinding::tls_server_end_point(digest.clone()),
            None => ChannelBinding::none(),
        }
    }
}

/// Tells tokio-postgres that TLS has been seen to.
pub struct Ready;

impl TlsConnect<Wire> for Ready {
    type Stream = Wire;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Wire>>;

    fn connect(self, wire: Wire) -> Self::Future {
        std::future::ready(Ok(wire))
    }
}

/// Reads along in what the server says. Source: "Message Formats" of PostgreSQL's manual.
struct Watch {
    allowed: RequireAuth,
    progress: Arc<Progress>,
    /// The beginning of a message: its type, its length, and of an authentication request its code.
    head: Vec<u8>,
    /// What is left of a message that is of no interest, in bytes.
    skip: usize,
}

impl Watch {
    /// True when the login is over.
    fn see(&mut self, mut bytes: &[u8]) -> Result<bool, LoginError> {
        const AUTHENTICATION: u8 = b'R';
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.head.first() == Some(&AUTHENTICATION) { 9 } else { 5 };
            let missing = wanted - self.head.len();
            if bytes.len() < missing {
                self.head.extend_from_slice(bytes);
                return Ok(false);
            }
            self.head.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if wanted == 5 && self.head[0] == AUTHENTICATION {
                continue;
            }
            let number = |at: usize| u32::from_be_bytes(self.head[at..at + 4].try_into().expect("4 bytes"));
            // The length counts itself, and not the type.
            self.skip = (number(1) as usize).saturating_sub(wanted - 1);
            let code = (wanted == 9).then(|| number(5));
            self.head.clear();
            if let Some(code) = code {
                if self.request(code)? {
                    return Ok(true);
                }
            }
        }
    }

    /// What an authentication request asks. True when it asks nothing more.
    fn request(&mut self, code: u32) -> Result<bool, LoginError> {
        let method = match code {
            0 if self.progress.was_asked() || self.allowed.allows_none() => {
                self.progress.is_in.store(true, Ordering::Relaxed);
                return Ok(true);
            }
            0 => return Err(LoginError::Unasked),
            2 => return Err(LoginError::Unsupported("Kerberos V5")),
            3 => AuthMethod::Password,
            5 => AuthMethod::Md5,
            7 => AuthMethod::Gss,
            9 => AuthMethod::Sspi,
            10 => AuthMethod::Scram,
            // The rest of an exchange; of what is none, tokio-postgres says so.
            _ => return Ok(false),
        };
        self.progress.was_asked.store(true, Ordering::Relaxed);
        match method {
            method if !self.allowed.allows(method) => Err(LoginError::NotAllowed(method)),
            AuthMethod::Gss => Err(LoginError::Unsupported("GSSAPI")),
            AuthMethod::Sspi => Err(LoginError::Unsupported("SSPI")),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(code: u32, rest: &[u8]) -> Vec<u8> {
        let length = 8 + u32::try_from(rest.len()).unwrap();
        [b"R", &length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
    }

    fn see(bytes: &[u8], piece: usize, allowed: &RequireAuth) -> (Result<bool, LoginError>, bool) {
        let progress = Arc::new(Progress::default());
        let mut watch =
            Watch { allowed: allowed.clone(), progress: Arc::clone(&progress), head: Vec::new(), skip: 0 };
        let outcome = bytes.chunks(piece).map(|piece| watch.see(piece)).find(|seen| *seen != Ok(false));
        (outcome.unwrap_or(Ok(false)), progress.is_in())
    }

    #[test]
    fn a_login_is_followed_in_pieces_of_any_size() {
        let notice = [b"N", &9_u32.to_be_bytes()[..], b"hello"].concat();
        let scram = request(10, b"SCRAM-SHA-256\0\0");
        let login = [notice, scram, request(11, b"..."), request(12, b"..."), request(0, b"")].concat();
        let only = |method| RequireAuth::Only { methods: vec![method], or_none: false };
        for piece in 1..=login.len() {
            assert_eq!(see(&login, piece, &RequireAuth::Any), (Ok(true), true));
            assert_eq!(see(&login, piece, &only(AuthMethod::Scram)), (Ok(true), true));
            let refused = LoginError::NotAllowed(AuthMethod::Scram);
            assert_eq!(see(&login, piece, &only(AuthMethod::Md5)), (Err(refused), false));
        }
    }

    #[test]
    fn being_let_in_unasked_is_a_thing_to_allow() {
        let never = RequireAuth::Not { methods: vec![], nor_none: true };
        let unasked = request(0, b"");
        assert_eq!(see(&unasked, 1, &never), (Err(LoginError::Unasked), false));
        assert_eq!(see(&unasked, 1, &RequireAuth::Any), (Ok(true), true));
        let asked = [request(3, b""), unasked].concat();
        assert_eq!(see(&asked, 1, &never), (Ok(true), true));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let gss = see(&request(7, b""), 9, &RequireAuth::Any).0.unwrap_err();
        assert!(gss.to_string().contains("GSSAPI"));
    }
}
