//! PROXY protocol, version 2: the first bytes of a connection from a trusted proxy say for whom it
//! connects. Read exactly, so that not a byte of what follows is taken.

use std::io;
use std::net::SocketAddr;

use ppp::v2::{Addresses, Command, Header, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Signature, version, command, family and length.
const FIXED: usize = 16;
/// Longest header that is read: addresses, and what a proxy may add to them.
const MOST: usize = 4096;

/// What a header says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// For whom the connection is; `None` when it is the proxy's own (a health check), or from no IP
    /// address.
    pub source: Option<SocketAddr>,
    /// Whether the client's own connection is encrypted, where it says so (`PP2_TYPE_SSL`, §2.2.6 of
    /// the specification).
    pub secure: Option<bool>,
}

/// `PP2_CLIENT_SSL`: the client connected over TLS.
const CLIENT_SSL: u8 = 1;

/// Reads a header.
///
/// # Errors
/// When it is no header, or the connection ends within it.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Said> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut bytes = vec![0; FIXED];
    stream.read_exact(&mut bytes).await?;
    if !bytes.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(invalid("no PROXY header, version 2".into()));
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > MOST {
        return Err(invalid(format!("a PROXY header of {length} bytes")));
    }
    bytes.resize(FIXED + length, 0);
    stream.read_exact(&mut bytes[FIXED..]).await?;
    let header = Header::try_from(&bytes[..]).map_err(|e| invalid(format!("{e:?}")))?;
    if header.command == Command::Local {
        return Ok(Said::default());
    }
    let source = match header.addresses {
        Addresses::IPv4(a) => Some(SocketAddr::from((a.source_address, a.source_port))),
        Addresses::IPv6(a) => Some(SocketAddr::from((a.source_address, a.source_port))),
        Addresses::Unspecified | Addresses::Unix(_) => None,
    };
    let mut secure = None;
    for tlv in header.tlvs() {
        let tlv = tlv.map_err(|e| invalid(format!("{e:?}")))?;
        if tlv.kind == Type::SSL as u8 {
            secure = tlv.value.first().map(|client| client & CLIENT_SSL != 0);
        }
    }
    Ok(Said { source, secure })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ppp::v2::{Builder, IPv4, Protocol, Version};

    async fn of(bytes: &[u8]) -> (io::Result<Said>, Vec<u8>) {
        let mut stream = bytes;
        let read = read(&mut stream).await;
        (read, stream.to_vec())
    }

    #[tokio::test]
    async fn the_header_is_read_and_not_a_byte_more() {
        let head = || {
            let addresses = IPv4::new([192, 0, 2, 7], [127, 0, 0, 1], 4711, 443);
            Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses)
        };
        // The client's bit field, and four bytes of what came of its certificate (§2.2.6).
        let ssl = |client: u8| head().write_tlv(Type::SSL, &[client, 0, 0, 0, 0]).unwrap();
        for (head, secure) in [(head(), None), (ssl(1), Some(true)), (ssl(0), Some(false))] {
            let mut bytes = head.build().unwrap();
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let (read, rest) = of(&bytes).await;
            let source = Some("192.0.2.7:4711".parse().unwrap());
            assert_eq!(read.unwrap(), Said { source, secure });
            assert_eq!(rest, b"GET / HTTP/1.1\r\n");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_an_error() {
        let mut long = ppp::v2::PROTOCOL_PREFIX.to_vec();
        long.extend_from_slice(&[0x21, 0x11, 0xff, 0xff]);
        let mut cut = ppp::v2::PROTOCOL_PREFIX.to_vec();
        cut.extend_from_slice(&[0x21, 0x11, 0, 12, 1, 2, 3]);
        for bytes in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"PROXY TCP4 1.2.3.4", &long, &cut]
        {
            assert!(of(bytes).await.0.is_err(), "{bytes:?}");
        }
    }
}
