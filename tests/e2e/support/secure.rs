//! A client over TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;

/// A client that trusts the certificate in this PEM file, and no other.
pub fn trusting(ca: &Path, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each handshake is a whole one, so that it shows the certificate of the moment.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// What a client that asks for `name` is shown, and what it reads of an answer; or why there was no handshake.
/// `before` is sent before it.
pub fn over_tls(
    to: SocketAddr,
    client: &Arc<ClientConfig>,
    name: &str,
    before: &[u8],
    request: &str,
) -> std::io::Result<(CertificateDer<'static>, String)> {
    let mut socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(before)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(request.as_bytes())?;
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        // A close without close_notify is how most servers end.
        Err(e) if said.is_empty() => return Err(e),
        _ => {}
    }
    let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((shown, String::from_utf8_lossy(&said).into_owned()))
}
