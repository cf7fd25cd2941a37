//! Commands that run once, over HTTP: one request starts it and reads what it prints, another writes what it
//! reads. Two, since one that did both could wait for itself, and goes through fewer proxies.
//!
//! The answer's body is frames: a byte that says what it is, three zeroes, a length of four bytes, the most
//! significant first, and so many bytes. Kinds: 1 is stdout, 2 stderr, 0 is the edge's own word in JSON. Its
//! first says which command it is, its last how that ended; in between, while the command is silent, it is
//! empty and says that it still runs.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{StreamExt as _, unfold};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::control::{Command, ExecError, Execution, LIMITS, NoInput, did_all, without_secrets};
use crate::id::{AllocationId, Environment};
use crate::record::ledger::AuditEvidence;
use crate::runner::{ExitStatus, Pipes};

use super::Admin;
use super::access::By;
use super::problem::Problem;
use super::records::Named;
use super::types::Done;

/// Type of the answer's body.
pub const FRAMES: &str = "application/vnd.vango-edge.exec";

/// How often a silent command is said to run still.
const STILL: Duration = Duration::from_secs(15);

/// Bytes in one frame at most.
const CHUNK: usize = 32 * 1024;

/// How long what a command printed is read after its end: longer only if a process that could not be ended
/// holds the pipe.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A command that is to run once.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments: found as those of the contract are, in the artifact or on the PATH.
    pub command: Vec<String>,
    /// Whether it reads what `PUT /v1/exec/{id}/stdin` brings; nothing otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// Seconds it may take, 1 to 86400; an hour if it is not said.
    #[serde(default)]
    pub timeout_s: Option<u64>,
}

/// The edge's own word about a command: the first frame has `id`, the last one all else.
#[derive(Debug, Default, Serialize, Deserialize, PartialEq, Eq, utoipa::ToSchema)]
pub struct ExecFrame {
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// It ended by itself, with this code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// It was ended by this signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The edge ended it, since its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}

impl From<ExecError> for Problem {
    fn from(e: ExecError) -> Self {
        let status = match &e {
            ExecError::Invalid(_) => StatusCode::BAD_REQUEST,
            ExecError::NotDeployed(_) => StatusCode::NOT_FOUND,
            ExecError::NotStarted(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ExecError::Full(_) | ExecError::Read(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, e.to_string())
    }
}

/// Runs a command once in the artifact that an environment's owner has, with the app's environment, HOME and
/// limits; it wakes nothing. The body is what it prints, as it does, in frames: a byte (1 stdout, 2 stderr,
/// 0 an ExecFrame in JSON, or nothing while it is silent), three zeroes, four bytes of length, and the bytes. The
/// first frame has its id, the last one its exit. Closing the connection ends it: SIGTERM, and after the
/// contract's process.stop_timeout SIGKILL. What it prints waits until it is read.
#[utoipa::path(post, path = "/v1/environments/{app}/{name}/exec", tag = "commands",
    request_body = ExecRequest,
    params(Named),
    responses(
        (status = 200, description = "It runs, or did", body = Vec<u8>,
            content_type = "application/vnd.vango-edge.exec"),
        (status = 400, description = "It is no command, or its time has no such value"),
        (status = 404, description = "There is no such environment"),
        (status = 409, description = "This edge does not run it"),
        (status = 422, description = "It could not be started"),
        (status = 503, description = "As many commands run as may, or it cannot be recorded")))]
pub async fn exec(
    State(admin): State<Admin>,
    by: By,
    Path(named): Path<Named>,
    Json(request): Json<ExecRequest>,
) -> Result<Response, Problem> {
    let environment = named.ours(&admin)?;
    let limit = Duration::from_secs(request.timeout_s.unwrap_or(3600));
    if !LIMITS.contains(&limit) {
        return Err(Problem::bad("timeout_s: expected 1 to 86400 seconds"));
    }
    let shown = without_secrets(&request.command);
    let command = Command { words: request.command, stdin: request.stdin };
    let mut told =
        Told { admin: admin.clone(), environment: environment.clone(), shown, over: true };
    // On record before it can do anything.
    let row = told.row("exec", &format!("{by} runs it once"));
    admin.audit.before_answer(&row).await.map_err(Problem::unavailable)?;
    told.over = false;
    let execution = match admin.commands.one_offs.exec(&environment, &command).await {
        Ok(execution) => execution,
        Err(e) => {
            told.say(&format!("it did not run: {e}"));
            return Err(e.into());
        }
    };
    let frames = Frames::new(execution, limit, told);
    let stream = unfold(frames, async |mut frames| {
        let frame = frames.next().await?;
        Some((Ok::<_, Infallible>(frame), frames))
    });
    let headers = [(header::CONTENT_TYPE, FRAMES), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Writes the body to the command that reads it; the end of the body is the end of what it reads. One that breaks
/// off is no end. Once only.
#[utoipa::path(put, path = "/v1/exec/{id}/stdin", tag = "commands",
    params(("id" = String, Path, description = "The command, as the first frame names it")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "How much it took: all of it, or what came before it closed its input",
            body = Done),
        (status = 404, description = "No such command runs, or it reads nothing"),
        (status = 409, description = "Another request wrote to it")))]
pub async fn stdin(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<Done>, Problem> {
    let id: AllocationId = id.parse().map_err(Problem::bad)?;
    let one_offs = &admin.commands.one_offs;
    let mut input = one_offs.input(&id).map_err(|no| match no {
        NoInput::Unknown => {
            Problem::not_found(format!("no command {id} that reads anything runs here"))
        }
        NoInput::Taken => {
            Problem::new(StatusCode::CONFLICT, format!("another request wrote to {id}"))
        }
    })?;
    let mut body = body.into_data_stream();
    let mut taken = 0;
    while let Some(bytes) = body.next().await {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(e) => {
                one_offs.broke_off(&id, input);
                return Err(Problem::bad(e));
            }
        };
        match input.write_all(&bytes).await {
            Ok(()) => taken += bytes.len(),
            // It does not want more.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
            Err(e) => return Err(Problem::unavailable(e)),
        }
    }
    Ok(Json(Done { done: format!("{taken} bytes"), operation: None }))
}

/// Puts on record what came of a command, also where its client left.
struct Told {
    admin: Admin,
    environment: Environment,
    /// The command, without secrets.
    shown: String,
    over: bool,
}

impl Told {
    fn row(&self, decision: &str, what: &str) -> AuditEvidence {
        let why = format!("{what}: {}", self.shown);
        let now = self.admin.node.clock.wall();
        AuditEvidence::of_environment(&self.environment, now, decision, &why)
    }

    fn say(&mut self, what: &str) {
        if !std::mem::replace(&mut self.over, true) {
            self.admin.audit.soon(self.row("exec-over", what));
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.say("its client left, and it is ended");
    }
}

enum Phase {
    First,
    Printing,
    Over,
}

/// The body of the answer.
struct Frames {
    execution: Execution,
    /// Its time was over, and it was ended for that.
    timed_out: Arc<AtomicBool>,
    /// When what it printed is read no longer; once it has ended.
    last_words: Option<Instant>,
    phase: Phase,
    told: Told,
}

fn frame(kind: u8, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(8 + content.len());
    bytes.put_u8(kind);
    bytes.put_bytes(0, 3);
    // A chunk is shorter than that.
    bytes.put_u32(u32::try_from(content.len()).unwrap_or(0));
    bytes.put_slice(content);
    bytes.freeze()
}

fn word(word: &ExecFrame) -> Bytes {
    frame(0, &serde_json::to_vec(word).unwrap_or_default())
}

/// What comes next of a pipe; nothing, and it is closed, at its end.
async fn printed(pipe: &mut Option<pipe::Receiver>, kind: u8) -> Option<Bytes> {
    let open = pipe.as_mut()?;
    let mut chunk = BytesMut::with_capacity(CHUNK);
    if open.read_buf(&mut chunk).await.is_ok_and(|n| n > 0) {
        return Some(frame(kind, &chunk));
    }
    *pipe = None;
    None
}

impl Frames {
    fn new(execution: Execution, limit: Duration, told: Told) -> Self {
        // Not here: this is polled only while its client reads.
        let (timed_out, phase) = (execution.once.end_after(limit), Phase::First);
        Self { execution, timed_out, last_words: None, phase, told }
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self.phase {
            Phase::First => {
                self.phase = Phase::Printing;
                let id = Some(self.execution.id.to_string());
                Some(word(&ExecFrame { id, ..ExecFrame::default() }))
            }
            Phase::Printing => Some(self.printing().await),
            Phase::Over => None,
        }
    }

    async fn printing(&mut self) -> Bytes {
        let still = Instant::now() + STILL;
        let mut ended = pin!(self.execution.once.ended());
        loop {
            let Pipes { stdout, stderr, .. } = &mut self.execution.once.pipes;
            let (out, err) = (stdout.is_some(), stderr.is_some());
            let has_ended = self.last_words.is_some();
            if has_ended && !out && !err {
                break;
            }
            tokio::select! {
                biased;
                frame = printed(stdout, 1), if out => if let Some(frame) = frame { return frame },
                frame = printed(stderr, 2), if err => if let Some(frame) = frame { return frame },
                _ = &mut ended, if !has_ended => {
                    self.last_words = Some(Instant::now() + LAST_WORDS);
                }
                () = tokio::time::sleep_until(still), if !has_ended => return frame(0, &[]),
                () = tokio::time::sleep_until(self.last_words.unwrap_or(still)), if has_ended => {
                    break;
                }
            }
        }
        self.over().await
    }

    async fn over(&mut self) -> Bytes {
        self.phase = Phase::Over;
        let status = self.execution.once.ended().await;
        let late = self.timed_out.load(Ordering::Acquire);
        let asked = self.execution.once.asked();
        let why = match (late, asked) {
            (true, _) => "its time was over: ",
            (false, true) => "the edge ended: ",
            (false, false) => "",
        };
        self.told.say(&format!("{why}{status}"));
        let (code, signal) = match status {
            // It was told to end, and a 0 would say that it did all it was to do.
            ExitStatus::Code(0) if !did_all(status, asked) => (None, Some(libc::SIGTERM)),
            ExitStatus::Code(code) => (Some(code), None),
            ExitStatus::Signal(signal) => (None, Some(signal)),
            ExitStatus::Unknown => (None, None),
        };
        word(&ExecFrame { id: None, code, signal, timed_out: late })
    }
}
