//! Connections: accepted, counted, served over HTTP/1.1, and taken over by faults that speak
//! below HTTP.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::routes::Cloud;

/// What went over the wire since the start.
#[derive(Debug, Default)]
pub struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Counters {
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }
}

/// What a fault does to a connection instead of letting HTTP answer.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
    pub(super) ending: Ending,
}

#[derive(Debug)]
pub(super) enum Step {
    Write(Vec<u8>),
    Trickle { bytes: Vec<u8>, pause: Duration },
    WriteForever(Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Close,
    Reset,
}

/// Lets the handler of a request take over the connection it came on.
#[derive(Debug, Clone)]
pub(super) struct Takeover(Arc<Mutex<Option<oneshot::Sender<Script>>>>);

impl Takeover {
    /// Hands the connection to the script. The handler must not answer after that.
    pub(super) fn run(&self, script: Script) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // If the connection is gone, so is the audience.
            sender.send(script).ok();
        }
    }
}

/// Serves until told to stop. Runs the thread it is called on.
pub(super) fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    cloud: Cloud,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the mock cloud");
    runtime.block_on(async {
        let listener =
            tokio::net::TcpListener::from_std(listener).expect("the listener joins the runtime");
        let acceptor = tls.map(TlsAcceptor::from);
        let counters = Arc::clone(&cloud.counters);
        let router = super::routes::router(cloud);
        tokio::select! {
            _ = stopped => {}
            () = accept(listener, acceptor, router, counters) => {}
        }
    });
}

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    counters: Arc<Counters>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: those of finished connections come back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        counters.connections.fetch_add(1, Ordering::Relaxed);
        // Without it, small answers wait for the client's acknowledgement.
        stream.set_nodelay(true).ok();
        let acceptor = acceptor.clone();
        let router = router.clone();
        let counters = Arc::clone(&counters);
        tokio::spawn(async move {
            let stream = Arc::new(stream);
            let counted = Counted {
                stream: Arc::clone(&stream),
                counters: Arc::clone(&counters),
            };
            match acceptor {
                None => converse(counted, Some(&stream), router, &counters).await,
                Some(acceptor) => {
                    // A client that does not like the certificate ends here.
                    if let Ok(secured) = acceptor.accept(counted).await {
                        converse(secured, None, router, &counters).await;
                    }
                }
            }
        });
    }
}

async fn converse<S>(io: S, raw: Option<&TcpStream>, router: Router, counters: &Counters)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, script) = oneshot::channel();
    let takeover = Takeover(Arc::new(Mutex::new(Some(sender))));
    // Kept, so that the channel stays open as long as the connection.
    let for_requests = takeover.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        counters.requests.fetch_add(1, Ordering::Relaxed);
        request.extensions_mut().insert(for_requests.clone());
        let mut router = router.clone();
        async move { router.call(request.map(Body::new)).await }
    });
    let conversation =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
    let script = tokio::select! {
        // How a client ends a conversation is its own business.
        _ = conversation => return,
        Ok(script) = script => script,
    };
    drop(takeover);
    if let Some(stream) = raw {
        // The client may hang up in the middle of any fault.
        perform(stream, script, counters).await.ok();
    }
}

async fn perform(stream: &TcpStream, script: Script, counters: &Counters) -> io::Result<()> {
    for step in script.steps {
        match step {
            Step::Write(bytes) => write(stream, &bytes, counters).await?,
            Step::Trickle { bytes, pause } => {
                for byte in bytes {
                    write(stream, &[byte], counters).await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Step::WriteForever(bytes) => loop {
                write(stream, &bytes, counters).await?;
            },
        }
    }
    match script.ending {
        Ending::Close => rustix::net::shutdown(stream, rustix::net::Shutdown::Both)?,
        // Closing with a linger time of zero sends RST.
        Ending::Reset => {
            rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

async fn write(stream: &TcpStream, mut bytes: &[u8], counters: &Counters) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => {
                counters
                    .bytes_out
                    .fetch_add(written as u64, Ordering::Relaxed);
                bytes = &bytes[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A shared stream that counts what passes. Shared, so that a fault can go on where HTTP stopped.
struct Counted {
    stream: Arc<TcpStream>,
    counters: Arc<Counters>,
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    let counter = &self.counters.bytes_in;
                    counter.fetch_add(read as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write(bytes) {
                Ok(written) => {
                    let counter = &self.counters.bytes_out;
                    counter.fetch_add(written as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
        Poll::Ready(closed.map_err(io::Error::from))
    }
}
