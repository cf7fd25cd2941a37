//! Checks whether an allocation is ready, over the path that traffic takes.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use tokio::net::TcpStream;

use crate::app;
use crate::contract::Protocol;

/// One check may take so long; an app whose port is open but does not answer yet is asked again.
const ONE_CHECK: Duration = Duration::from_secs(2);

/// Pauses between checks: ten of 1 ms, since most starts are that quick, then growing by half, to
/// 50 ms.
pub fn pause(checks: u32) -> Duration {
    let growth = 1.5f64.powi(i32::try_from(checks.saturating_sub(9)).unwrap_or(30).min(30));
    Duration::from_millis(1).mul_f64(growth).min(Duration::from_millis(50))
}

/// Whether the port accepts connections; if not, why.
pub async fn tcp(address: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(ONE_CHECK, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("no connection".into()),
    }
}

/// Whether `GET path` is answered 2xx; if not, why. It says of itself what traffic says: the
/// environment's `host`, and that it came over HTTPS where clients come so. An app that sends what is
/// plain on to HTTPS would never be ready otherwise.
pub async fn http(
    address: SocketAddr,
    protocol: Protocol,
    host: &str,
    https: bool,
    path: &str,
) -> Result<(), String> {
    let asked = get(address, protocol, host, https, path);
    let answered = tokio::time::timeout(ONE_CHECK, asked).await;
    let answer = match answered {
        Ok(answered) => answered?,
        Err(_) => return Err(format!("GET {path} was not answered within {ONE_CHECK:?}")),
    };
    let status = answer.status;
    let location = answer.headers.get(http::header::LOCATION);
    match location.map(|to| shown(to.as_bytes())) {
        _ if status.is_success() => Ok(()),
        Some(to) if status.is_redirection() => {
            let proto = if https { "https" } else { "http" };
            Err(format!(
                "GET {path} was answered {status} to {to:?}: readiness follows no redirect. Let \
                 process.ready of the contract name a path that the app answers 2xx itself; an app that \
                 asks for HTTPS or for one host has to trust X-Forwarded-Proto ({proto}) and \
                 X-Forwarded-Host ({host}) of the edge"
            ))
        }
        _ => Err(format!("GET {path} was answered {status}")),
    }
}

/// Longest `Location` that is shown.
const LOCATION: usize = 200;

fn shown(location: &[u8]) -> String {
    String::from_utf8_lossy(location).chars().take(LOCATION).collect()
}

async fn get(
    address: SocketAddr,
    protocol: Protocol,
    host: &str,
    https: bool,
    path: &str,
) -> Result<http::response::Parts, String> {
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header("x-forwarded-for", "127.0.0.1")
        .header("x-forwarded-proto", if https { "https" } else { "http" })
        .header("x-forwarded-host", host)
        .header(http::header::USER_AGENT, "vango-edge-readiness")
        .header(http::header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|e| e.to_string())?;
    app::ask(address, protocol, request).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An app that speaks HTTP/2 only, and answers `/up` 204 and other paths 404.
    async fn h2c_app() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut connection) = h2::server::handshake(tcp).await else { continue };
                tokio::spawn(async move {
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let (uri, fields) = (request.uri().to_string(), request.headers());
                        assert!(!fields.contains_key("connection") && !fields.contains_key("host"));
                        let status = if uri == "http://app.example/up" { 204 } else { 404 };
                        let answer = http::Response::builder().status(status).body(()).unwrap();
                        respond.send_response(answer, true).unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn an_app_is_asked_in_the_protocol_that_its_contract_names() {
        let address = h2c_app().await;
        let asked = |protocol, path| http(address, protocol, "app.example", false, path);
        assert_eq!(asked(Protocol::H2c, "/up").await, Ok(()));
        let other = asked(Protocol::H2c, "/").await.unwrap_err();
        assert!(other.contains("404"), "{other}");
        asked(Protocol::Http1, "/up").await.unwrap_err();
    }

    #[test]
    fn pauses_are_small_and_grow_to_a_bound() {
        assert_eq!((0..10).map(pause).max(), Some(Duration::from_millis(1)));
        assert!((10..200).all(|n| pause(n) >= pause(n - 1)));
        assert_eq!(pause(u32::MAX), Duration::from_millis(50));
    }
}
