//! Connections that stay: one small thread for each, as many as clients may hold.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// Served at once; one more is closed as soon as it came.
const CONNECTIONS_MAX: usize = 256;
const STACK_BYTES: usize = 64 << 10;
const AFTER_FAILED_ACCEPT: Duration = Duration::from_secs(1);

/// Listens on a port of every address and serves each connection by `serve` until that returns.
pub fn start<F>(port: u16, serve: F) -> Result<(), String>
where
    F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|e| format!("can't listen on TCP port {port}: {e}"))?;
    spawn(listener, serve);
    Ok(())
}

/// For ever.
pub fn spawn<F>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    let (serve, open) = (Arc::new(serve), Arc::new(AtomicUsize::new(0)));
    thread::spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => connection(stream, &serve, &open),
                Err(_) => thread::sleep(AFTER_FAILED_ACCEPT),
            }
        }
    });
}

fn connection<F>(stream: TcpStream, serve: &Arc<F>, open: &Arc<AtomicUsize>)
where
    F: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    if open.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
        open.fetch_sub(1, Relaxed);
        return;
    }
    let (serve, counted) = (serve.clone(), open.clone());
    let started = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        // Small answers must not wait for each other. A client that went away has nobody left to be told.
        let _ = stream.set_nodelay(true).and_then(|()| serve(stream));
        counted.fetch_sub(1, Relaxed);
    });
    if started.is_err() {
        open.fetch_sub(1, Relaxed);
    }
}
