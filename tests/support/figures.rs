//! What a daemon serves for Prometheus.

use std::io::{Read, Write};
use std::net::TcpStream;

/// The page of figures at an address.
pub fn page(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, page) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    page.to_owned()
}
