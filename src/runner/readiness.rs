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

/// Whether `GET path` is answered 2xx; if not, why. It says of itself what traffic says: the
/// environment's `host`, and that it came over HTTPS where clients come so. An app that sends what is
/// plain on to HTTPS would never be ready otherwise.
pub async fn http(address: SocketAddr, host: &str, https: bool, path: &str) -> Result<(), String> {
    let answered = tokio::time::timeout(ONE_CHECK, get(address, host, https, path)).await;
    let (status, location) = match answered {
        Ok(Ok(answered)) => answered,
        Ok(Err(why)) => return Err(why),
        Err(_) => return Err(format!("GET {path} was not answered within {ONE_CHECK:?}")),
    };
    match location {
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

async fn get(
    address: SocketAddr,
    host: &str,
    https: bool,
    path: &str,
) -> Result<(http::StatusCode, Option<String>), String> {
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header("x-forwarded-for", "127.0.0.1")
        .header("x-forwarded-proto", if https { "https" } else { "http" })
        .header("x-forwarded-host", host)
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
            answer = &mut answer => {
                let answer = answer.map_err(text)?;
                let to = answer.headers().get(http::header::LOCATION);
                let to = to.map(|to| String::from_utf8_lossy(to.as_bytes()));
                return Ok((answer.status(), to.map(|t| t.chars().take(LOCATION).collect())));
            }
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
