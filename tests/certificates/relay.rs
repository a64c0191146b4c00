//! Somebody on the line: ends the client's TLS with a certificate of his own, and goes on to the server with
//! TLS that verifies nothing.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use openssl::ssl::{NameType, Ssl, SslAcceptor, SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_openssl::SslStream;

const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub struct Relay {
    pub port: u16,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What came by.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// What clients said, in the clear.
    pub said: Vec<u8>,
    /// Which server clients asked for in their TLS.
    pub names: Vec<Option<String>>,
}

impl Seen {
    pub fn has(&self, text: &str) -> bool {
        self.said.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

impl Relay {
    /// A relay to a server on this machine that shows `certificate`, a path without `.crt` and `.key`.
    pub async fn start(server: u16, certificate: &Path) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("TLS");
        acceptor.set_certificate_chain_file(certificate.with_extension("crt")).expect("a certificate");
        let key = certificate.with_extension("key");
        acceptor.set_private_key_file(key, SslFiletype::PEM).expect("a key");
        let acceptor = acceptor.build();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let known = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, known) = (acceptor.clone(), Arc::clone(&known));
                // What goes wrong here, the client tells.
                tokio::spawn(async move { relay(client, server, &acceptor, &known).await });
            }
        });
        Relay { port, seen, task }
    }

    /// What came by since the last time this was asked.
    pub fn seen(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut client: TcpStream, server: u16, acceptor: &SslAcceptor, seen: &Mutex<Seen>) -> Option<()> {
    let mut request = [0; 8];
    client.read_exact(&mut request).await.ok()?;
    assert_eq!(request, TLS_REQUEST, "without TLS, the relay is of no use");
    client.write_all(b"S").await.ok()?;
    let mut client = SslStream::new(Ssl::new(acceptor.context()).ok()?, client).ok()?;
    Pin::new(&mut client).accept().await.ok()?;
    let name = client.ssl().servername(NameType::HOST_NAME).map(str::to_owned);
    seen.lock().expect("no panic").names.push(name);

    let mut server = TcpStream::connect(("127.0.0.1", server)).await.ok()?;
    server.write_all(&TLS_REQUEST).await.ok()?;
    assert_eq!(server.read_u8().await.ok()?, b'S', "the server has TLS");
    let mut connector = SslConnector::builder(SslMethod::tls()).ok()?;
    connector.set_verify(SslVerifyMode::NONE);
    let ssl = connector.build().configure().ok()?.verify_hostname(false).into_ssl("localhost").ok()?;
    let mut server = SslStream::new(ssl, server).ok()?;
    Pin::new(&mut server).connect().await.ok()?;

    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = copy(&mut from_client, &mut to_server, |bytes| {
        seen.lock().expect("no panic").said.extend_from_slice(bytes);
    });
    let down = copy(&mut from_server, &mut to_client, |_| {});
    tokio::select! { it = up => it, it = down => it }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut see: impl FnMut(&[u8]),
) -> Option<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        see(&buffer[..count]);
        to.write_all(&buffer[..count]).await.ok()?;
        to.flush().await.ok()?;
    }
}
