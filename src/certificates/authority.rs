//! How an authority is spoken to: HTTPS by the system's roots or the operator's, each answer within a time and a
//! size. The protocol is `instant-acme`'s.

use std::error::Error as _;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::config;

/// For one answer, from the connection to its last byte.
const WITHIN: Duration = Duration::from_secs(30);
/// Most bytes of an answer.
const MOST: usize = 1024 * 1024;
/// Most characters of what an authority says that are kept.
const SAID_MOST: usize = 500;

/// Why an order, or a step of it, came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub why: String,
    /// How long the authority said to wait.
    pub told_to_wait: Option<Duration>,
}

impl Refusal {
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: shortened(why.into()), told_to_wait: None }
    }
}

/// Without line breaks, and no longer than a line of a log should be.
fn shortened(text: String) -> String {
    let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    one_line.take(SAID_MOST).collect()
}

/// What is remembered of an authority's answers during one order.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<Mutex<Option<Duration>>>);

impl Heard {
    fn wait(&self, told: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    /// What an error of the protocol means for the order.
    pub fn refusal(&self, doing: &str, e: &Error) -> Refusal {
        let told_to_wait = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Refusal { why: shortened(format!("{doing}: {e}")), told_to_wait }
    }
}

/// The connections of one order.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    heard: Heard,
}

impl Http {
    /// Trusts `ca_file`, or without it whom the system trusts.
    ///
    /// # Errors
    /// Why no one can be trusted.
    pub async fn new(ca_file: Option<PathBuf>, heard: Heard) -> Result<Self, String> {
        let roots = tokio::task::spawn_blocking(move || roots(ca_file));
        let roots = roots.await.map_err(|e| e.to_string())??;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), heard })
    }
}

fn roots(ca_file: Option<PathBuf>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (all, why): (Vec<CertificateDer<'static>>, _) = match ca_file {
        Some(file) => (config::roots(&file)?, format!("{}: no certificate", file.display())),
        None => {
            let found = rustls_native_certs::load_native_certs();
            let why = found.errors.first().map(ToString::to_string).unwrap_or_default();
            (found.certs, format!("the system has no root certificates (ca-certificates) {why}"))
        }
    };
    let (added, _) = roots.add_parsable_certificates(all);
    if added == 0 { Err(format!("{why} can be used")) } else { Ok(roots) }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let (answer, heard) = (self.client.request(request), self.heard.clone());
        Box::pin(async move {
            let whole = async {
                let (parts, body) = answer.await.map_err(|e| with_sources(&e))?.into_parts();
                let body = Limited::new(body, MOST).collect().await.map_err(|e| e.to_string())?;
                Ok::<_, String>((parts, body.to_bytes()))
            };
            let answered = tokio::time::timeout(WITHIN, whole).await;
            let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {WITHIN:?}")));
            let (parts, body) = answered.map_err(|why| other(format!("{host}: {why}")))?;
            let waits = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
            if waits.contains(&parts.status)
                && let Some(told) = seconds(parts.headers.get(header::RETRY_AFTER))
            {
                heard.wait(told);
            }
            // What a proxy in between says is no problem document, and would be read as one.
            let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let json = kind.is_some_and(|k| k.contains("json"));
            if !parts.status.is_success() && !json {
                return Err(other(format!("{host} answered {}", parts.status)));
            }
            Ok(BytesResponse::from(Response::from_parts(parts, Full::new(body))))
        })
    }
}

fn other(why: String) -> Error {
    Error::Other(why.into())
}

fn seconds(value: Option<&http::HeaderValue>) -> Option<Duration> {
    value?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// hyper's own words end where the cause begins.
fn with_sources(e: &hyper_util::client::legacy::Error) -> String {
    let mut said = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    said
}
