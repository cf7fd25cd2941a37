//! Sends assets: the plan is [`crate::lifecycle::asset`]'s, the bytes are
//! [`crate::artifact::AssetBytes`]'s.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use crate::artifact::{ArtifactError, AssetBytes, Content};
use crate::id::RequestId;
use crate::lifecycle::asset::{Body, Plan};

/// How long the first byte may take to come from the disk or the artifact store.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why an asset was not sent.
pub enum Failed {
    /// Its bytes cannot be had; nothing was sent.
    Unavailable(String),
    /// The connection failed, or its bytes broke off; what was sent is not whole.
    Broken(Box<pingora::Error>),
}

impl From<Box<pingora::Error>> for Failed {
    fn from(e: Box<pingora::Error>) -> Self {
        Self::Broken(e)
    }
}

/// Sends what `plan` says, `mark`ed with what depends on whose it is. The bytes are opened, and so
/// checked, before the head is sent: what is damaged is an error and not half an answer.
pub async fn send(
    session: &mut Session,
    plan: &Plan,
    files: &AssetBytes,
    request: RequestId,
    body_unread: bool,
    mark: impl FnOnce(&mut ResponseHeader) -> pingora::Result<()>,
) -> Result<(), Failed> {
    let content = match (&plan.body, plan.representation) {
        (Body::None, _) | (_, None) => None,
        (_, Some(source)) => {
            let opened = files.open(&source.digest, source.size);
            match tokio::time::timeout(DEADLINE, opened).await {
                Ok(Ok(content)) => Some(content),
                Ok(Err(e)) => return Err(Failed::Unavailable(e.to_string())),
                Err(_) => {
                    return Err(Failed::Unavailable(format!(
                        "{} was not read in time",
                        source.digest
                    )));
                }
            }
        }
    };
    let mut head = ResponseHeader::build(plan.status, Some(plan.headers.len() + 2))?;
    for (name, value) in &plan.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    head.insert_header("x-request-id", request.to_string())?;
    mark(&mut head)?;
    if body_unread {
        session.set_keepalive(None);
    }
    session.write_response_header(Box::new(head), content.is_none()).await?;
    let Some(content) = content else { return Ok(()) };
    match &plan.body {
        Body::None => {}
        Body::Part(part) => copy(session, &content, part.clone()).await?,
        Body::Parts { parts, end } => {
            for (head, part) in parts {
                write(session, head.clone()).await?;
                copy(session, &content, part.clone()).await?;
            }
            write(session, end.clone()).await?;
        }
    }
    session.write_response_body(None, true).await?;
    Ok(())
}

async fn copy(session: &mut Session, content: &Content, part: Range<u64>) -> Result<(), Failed> {
    let mut at = part.start;
    // Ends: each read gives at least a byte of what is left, or an error.
    while at < part.end {
        let bytes = content.read(at..part.end).await.map_err(broke_off)?;
        at += bytes.len() as u64;
        write(session, bytes).await?;
    }
    Ok(())
}

async fn write(session: &mut Session, bytes: Bytes) -> Result<(), Failed> {
    Ok(session.write_response_body(Some(bytes), false).await?)
}

fn broke_off(e: ArtifactError) -> Failed {
    let e = pingora::Error::explain(pingora::ErrorType::FileReadError, e.to_string());
    Failed::Broken(e)
}
