//! `powa-collector health`: asks the collector on this machine over HTTP, at the address that the configuration has it
//! listen at, whether it is at work. An image of nothing but the collector has no other program that could.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::print;
use crate::postgres::text::one_line;

/// For all of it. A dispatcher that stands still is said to do so within five seconds.
const DEADLINE: Duration = Duration::from_secs(8);

/// So much of an answer is read, in bytes.
const LONGEST_ANSWER: u64 = 4096;

/// Why the collector is not known to be at work.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    #[error(
        "http.listen is not set, so no collector can be asked: set it, as in \"127.0.0.1:9188\", for the collector too"
    )]
    NotListening,
    #[error("no collector answers at {address}: {error}")]
    NoAnswer { address: SocketAddr, error: io::Error },
    #[error("no collector answers at {0} within {time} s", time = DEADLINE.as_secs())]
    Deadline(SocketAddr),
    #[error("what answers at {0} is not a collector: its answer is not HTTP")]
    NotHttp(SocketAddr),
    #[error("the collector at {address} is not at work: HTTP status {status}, {reason:?}")]
    NotAtWork { address: SocketAddr, status: u16, reason: String },
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
}

/// Asks the collector that listens there, and prints what it says when all is well.
///
/// # Errors
/// When it does not answer, or answers that it is not at work.
pub async fn run(listen: Option<SocketAddr>) -> Result<(), HealthError> {
    let address = reachable(listen.ok_or(HealthError::NotListening)?);
    let answer = timeout(DEADLINE, ask(address)).await.map_err(|_| HealthError::Deadline(address))?;
    let answer = answer.map_err(|error| HealthError::NoAnswer { address, error })?;
    match parse(&answer).ok_or(HealthError::NotHttp(address))? {
        (200, told) => Ok(print(&(told + "\n"))?),
        (status, reason) => Err(HealthError::NotAtWork { address, status, reason }),
    }
}

/// Where one that listens at all addresses is asked.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let mut address = listen;
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => (),
    }
    address
}

/// After an answer to HTTP/1.0 the connection is closed, and the answer is in one piece.
async fn ask(address: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /healthz HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The status of an HTTP answer, and its body in one line.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let (version, rest) = head.lines().next()?.split_once(' ')?;
    let status = rest.split(' ').next()?;
    let is_http = version.starts_with("HTTP/1.") && status.len() == 3;
    Some((status.parse().ok().filter(|_| is_http)?, one_line(body)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn one_that_listens_everywhere_is_asked_on_the_way_that_is_never_away() {
        for (listen, asked) in [
            ("0.0.0.0:9188", "127.0.0.1:9188"),
            ("[::]:9188", "[::1]:9188"),
            ("127.0.0.2:80", "127.0.0.2:80"),
            ("10.0.0.7:9188", "10.0.0.7:9188"),
            ("[fe80::1%2]:9188", "[fe80::1%2]:9188"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }

    #[test]
    fn an_answer_is_a_status_and_a_line() {
        let is = |status, body: &str| Some((status, body.to_owned()));
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"), is(200, "ok"));
        assert_eq!(
            parse(b"HTTP/1.1 503\r\n\r\nit stands\r\nstill\x1b[2J"),
            is(503, "it stands still\\u{1b}[2J")
        );
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\n\xff"), is(200, "\u{fffd}"));
        for wrong in [
            &b""[..],
            b"\r\n\r\n",
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 +20 OK\r\n\r\nx",
            b"HTTP/1.1 0200 OK\r\n\r\nx",
            b"HTTP/2 200 OK\r\n\r\nx",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46",
        ] {
            let status = parse(wrong).filter(|(status, _)| *status == 200);
            assert_eq!(status, None, "{}", wrong.escape_ascii());
        }
    }

    /// Gives the first connection these bytes, and closes it.
    async fn answers(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 64];
            assert!(
                stream.read(&mut request).await.unwrap() > 0
                    && request.starts_with(b"GET /healthz HTTP/1.0\r\n")
            );
            stream.write_all(bytes).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn only_200_is_well_and_everything_else_is_said() {
        run(Some(answers(b"HTTP/1.0 200 OK\r\n\r\nok").await)).await.unwrap();
        for (answer, told) in [
            (
                &b"HTTP/1.0 503 Service Unavailable\r\n\r\nlate"[..],
                "is not at work: HTTP status 503, \"late\"",
            ),
            (b"HTTP/1.0 302 Found\r\n\r\n", "is not at work: HTTP status 302"),
            (b"220 mail\r\n", "its answer is not HTTP"),
        ] {
            let error = run(Some(answers(answer).await)).await.unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = run(Some(nobody)).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("no collector answers at {nobody}: ")), "{error}");
        assert!(run(None).await.unwrap_err().to_string().starts_with("http.listen is not set"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_answers_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = run(Some(listener.local_addr().unwrap())).await.unwrap_err().to_string();
        assert!(error.ends_with("within 8 s"), "{error}");
    }
}
