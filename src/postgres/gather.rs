//! A TCP connection whose answers come in few wake-ups. Who sends many requests at once is answered piece by piece: a server
//! hands on 8 KB at a time, and what it has at the end of each answer. To wake up for each piece costs more than to read
//! it. From the third piece on that follows no new request, they are gathered for a moment.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long is gathered at most: so much later the end of many answers is noticed.
const PAUSE: Duration = Duration::from_millis(10);

/// How many bytes are enough to wake up before that.
const ENOUGH: libc::c_int = 64 << 10;

/// How many pieces are taken as they come: one answer comes in one or two.
const FEW: u32 = 2;

#[derive(Debug)]
pub struct Gather {
    stream: TcpStream,
    /// Pieces since something was sent.
    pieces: u32,
    /// Whether something came since there was last nothing to read.
    has_read: bool,
    /// Until when pieces are gathered. The socket keeps quiet as long.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Gather {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, pieces: 0, has_read: false, pause: None }
    }

    /// Lets the system wake us up only for so many bytes, or for the end of the connection.
    fn wake_for(&self, bytes: libc::c_int) -> io::Result<()> {
        let (value, length) = (&raw const bytes, size_of::<libc::c_int>());
        let length = libc::socklen_t::try_from(length).expect("the size of a number");
        // SAFETY: the socket is open as long as its stream, and the value is a c_int, which it is read as.
        let status = unsafe {
            libc::setsockopt(
                self.stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                value.cast(),
                length,
            )
        };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn end_pause(&mut self) -> io::Result<()> {
        if self.pause.take().is_some() { self.wake_for(1) } else { Ok(()) }
    }
}

impl AsyncRead for Gather {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pause.as_mut().is_some_and(|pause| pause.as_mut().poll(cx).is_ready()) {
            self.end_pause()?;
        }
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            self.has_read = true;
            return Poll::Ready(read);
        }
        if std::mem::take(&mut self.has_read) {
            self.pieces = self.pieces.saturating_add(1);
            if self.pieces > FEW {
                if self.pause.is_none() {
                    self.wake_for(ENOUGH)?;
                }
                let mut pause = Box::pin(sleep(PAUSE));
                // So that it wakes us up. It has only just begun.
                let _ = pause.as_mut().poll(cx);
                self.pause = Some(pause);
            }
        }
        Poll::Pending
    }
}

impl AsyncWrite for Gather {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        // Somebody waits for the answer to this.
        self.pieces = 0;
        self.has_read = false;
        self.end_pause()?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    /// A connection, and its other end.
    async fn pair() -> (Gather, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let theirs = theirs.unwrap().0;
        theirs.set_nodelay(true).unwrap();
        (Gather::new(ours.unwrap()), theirs)
    }

    /// Lets it come to a pause.
    async fn pause(ours: &mut Gather, theirs: &mut TcpStream) {
        for _ in 0..=FEW {
            theirs.write_all(b"x").await.unwrap();
            assert_eq!(ours.read_u8().await.unwrap(), b'x');
            // Nothing else is there yet.
            assert_eq!(there(ours), None);
        }
        assert!(ours.pause.is_some());
    }

    /// What is there to read now.
    fn there(ours: &mut Gather) -> Option<usize> {
        let mut space = [0; 16];
        let mut buf = ReadBuf::new(&mut space);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(ours).poll_read(&mut cx, &mut buf) {
            Poll::Ready(read) => {
                read.unwrap();
                Some(buf.filled().len())
            }
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn many_pieces_come_in_few_reads() {
        let (mut ours, mut theirs) = pair().await;
        let writing = async {
            for _ in 0..200 {
                theirs.write_all(b"12345678").await.unwrap();
                // The reader has its chance to see each.
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
            }
            drop(theirs);
        };
        let reading = async {
            let (mut all, mut reads, mut block) = (0, 0, [0; 4096]);
            loop {
                let length = ours.read(&mut block).await.unwrap();
                if length == 0 {
                    return (all, reads);
                }
                all += length;
                reads += 1;
            }
        };
        let ((), (all, reads)) = tokio::join!(writing, reading);
        assert_eq!(all, 1600);
        assert!(reads < 100, "{reads} reads");
    }

    #[tokio::test]
    async fn what_is_enough_comes_at_once_and_so_does_the_end() {
        let (mut ours, mut theirs) = pair().await;
        for is_end in [false, true] {
            pause(&mut ours, &mut theirs).await;
            // Nobody would live to see the end of this one.
            let long = Instant::now() + Duration::from_secs(3600);
            ours.pause.as_mut().unwrap().as_mut().reset(long);
            let mut block = vec![0; 2 << 20];
            if is_end {
                theirs.shutdown().await.unwrap();
                assert_eq!(ours.read(&mut block).await.unwrap(), 0);
            } else {
                let (sent, read) =
                    tokio::join!(theirs.write_all(&[7; 1 << 20]), ours.read_exact(&mut block[..1 << 19]));
                sent.unwrap();
                read.unwrap();
                ours.end_pause().unwrap();
                ours.read_exact(&mut block[..1 << 19]).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn the_answer_to_a_request_comes_at_once() {
        let (mut ours, mut theirs) = pair().await;
        pause(&mut ours, &mut theirs).await;
        let long = Instant::now() + Duration::from_secs(3600);
        ours.pause.as_mut().unwrap().as_mut().reset(long);
        ours.write_all(b"?").await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'?');
        theirs.write_all(b"!").await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'!');
    }

    #[tokio::test]
    async fn a_pause_ends() {
        let (mut ours, mut theirs) = pair().await;
        pause(&mut ours, &mut theirs).await;
        theirs.write_all(b".").await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'.');
    }
}
