//! Checks whether an allocation is ready, over the path that traffic takes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

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

/// Whether `GET path` is answered 2xx; if not, why.
pub async fn http(address: SocketAddr, host: &str, path: &str) -> Result<(), String> {
    let status = match tokio::time::timeout(ONE_CHECK, get(address, host, path)).await {
        Ok(Ok(status)) => status,
        Ok(Err(why)) => return Err(why),
        Err(_) => return Err(format!("GET {path} was not answered within {ONE_CHECK:?}")),
    };
    if status.is_success() { Ok(()) } else { Err(format!("GET {path} was answered {status}")) }
}

async fn get(address: SocketAddr, host: &str, path: &str) -> Result<http::StatusCode, String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "vango-edge-readiness")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answer => return answer.map(|a| a.status()).map_err(text),
            _ = &mut connection, if open => open = false,
        }
    }
}

fn text(e: hyper::Error) -> String {
    use std::error::Error;
    e.source().map_or_else(|| e.to_string(), |cause| format!("{e}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_small_and_grow_to_a_bound() {
        assert_eq!((0..10).map(pause).max(), Some(Duration::from_millis(1)));
        assert!((10..200).all(|n| pause(n) >= pause(n - 1)));
        assert_eq!(pause(u32::MAX), Duration::from_millis(50));
    }
}
