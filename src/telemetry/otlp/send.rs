//! One POST to a collector, and what it came to (OTLP 1.10, "OTLP/HTTP").

use std::time::Duration;

use prost::Message;
use ureq::Agent;

use super::message::{ExportRequest, ExportResponse};

/// To connect.
const CONNECT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are looked at.
const ANSWER: u64 = 64 * 1024;
/// A collector may ask to be left alone for so long at most.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// What became of a request to the collector.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// It took the request.
    Taken {
        /// Spans that it did not take.
        rejected: u64,
        /// Why, in its words.
        why: String,
    },
    /// It will not take it, however often it is sent.
    Refused(String),
    /// It may take it later.
    Later {
        why: String,
        /// It said for how long it wants to be left alone.
        after: Option<Duration>,
    },
}

pub struct Collector {
    agent: Agent,
    url: String,
}

impl Collector {
    /// The collector at `base`, such as `http://127.0.0.1:4318`; traces go to `/v1/traces` below it.
    pub fn at(base: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("vango-edge/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), url: format!("{}/v1/traces", base.trim_end_matches('/')) }
    }

    /// Sends `request`, which may take `within` with everything.
    pub fn send(&self, request: &ExportRequest, within: Duration) -> Sent {
        let later = |why: String, after| Sent::Later { why, after };
        let call = self.agent.post(&self.url).config().timeout_global(Some(within)).build();
        let call = call.header("content-type", "application/x-protobuf");
        let mut answer = match call.send(&request.encode_to_vec()[..]) {
            Ok(answer) => answer,
            Err(e) => return later(e.to_string(), None),
        };
        let status = answer.status().as_u16();
        match status {
            200..=299 => {
                let body = answer.body_mut().with_config().limit(ANSWER).read_to_vec();
                // What it took is taken, also when its answer is not understood.
                let said = body.ok().and_then(|b| ExportResponse::decode(&*b).ok());
                let partly = said.and_then(|s| s.partial_success).unwrap_or_default();
                Sent::Taken {
                    rejected: u64::try_from(partly.rejected_spans).unwrap_or(0),
                    why: partly.error_message.chars().take(200).collect(),
                }
            }
            429 | 502 | 503 | 504 => {
                let header = answer.headers().get("retry-after").and_then(|v| v.to_str().ok());
                let after = header.and_then(|v| v.parse().ok()).map(Duration::from_secs);
                later(format!("it answered {status}"), after.map(|a| a.min(LONGEST_REST)))
            }
            _ => Sent::Refused(format!("it answered {status}")),
        }
    }
}
