//! A client's hello, read before its handshake begins, where some names have no certificate. rustls tells such a
//! client `access_denied`, which reads as if it were its own fault; RFC 6066 §3 has an alert that says it.

use std::io;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::tls::Certificates;

/// Most bytes of a hello: rustls takes no longer one.
const MOST: usize = 64 * 1024;

/// A fatal alert in a record of its own: unrecognized_name (RFC 8446 §6, §5.1).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Reads the hello; what was read, for the handshake, or `None` where there is no certificate for it: the client
/// was told. What is no hello is left to the handshake, which says so.
///
/// # Errors
/// The client is gone.
pub(crate) async fn read(
    tcp: &mut TcpStream,
    certificates: &Certificates,
) -> io::Result<Option<Vec<u8>>> {
    let (mut acceptor, mut read) = (Acceptor::default(), Vec::new());
    let mut some = [0; 2048];
    loop {
        let n = tcp.read(&mut some).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&some[..n]);
        let mut rest = &some[..n];
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest)? == 0 {
                return Ok(Some(read));
            }
            match acceptor.accept() {
                Ok(None) if read.len() < MOST => {}
                Ok(Some(said)) if !certificates.has_for(&said.client_hello()) => {
                    tcp.write_all(&UNRECOGNIZED_NAME).await?;
                    tcp.shutdown().await?;
                    return Ok(None);
                }
                _ => return Ok(Some(read)),
            }
        }
    }
}
