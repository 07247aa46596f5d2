//! A TCP proxy before a Redis that can make its push channel silent: connections stay open, and what the server says on
//! those that subscribed never arrives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub struct Proxy {
    pub address: SocketAddr,
    mute: Arc<AtomicBool>,
}

impl Proxy {
    /// Its threads end with the connections.
    pub fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
        let address = listener.local_addr().expect("local address");
        let mute = Arc::new(AtomicBool::new(false));
        let muted = mute.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(upstream) = TcpStream::connect(server) else { continue };
                let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
                let subscribed = Arc::new(AtomicBool::new(false));
                let (a, b) = (client.try_clone().expect("socket"), upstream.try_clone().expect("socket"));
                let heard = subscribed.clone();
                thread::spawn(move || {
                    carry(client, upstream, |piece| {
                        if piece.windows(9).any(|w| w.eq_ignore_ascii_case(b"SUBSCRIBE")) {
                            heard.store(true, Ordering::SeqCst);
                        }
                        true
                    });
                });
                let muted = muted.clone();
                thread::spawn(move || {
                    carry(b, a, |_| !(muted.load(Ordering::SeqCst) && subscribed.load(Ordering::SeqCst)));
                });
            }
        });
        Proxy { address, mute }
    }

    pub fn mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::SeqCst);
    }
}

/// Until one side hangs up. `passes` is asked about each piece.
fn carry(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        if passes(&piece[..n]) && to.write_all(&piece[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(std::net::Shutdown::Both), to.shutdown(std::net::Shutdown::Both));
}
