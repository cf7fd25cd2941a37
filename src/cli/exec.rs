//! `exec`: runs a command beside an app, and is that command as far as a shell can tell.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::admin::{ExecFrame, ExecRequest};
use crate::id::Environment;

use super::client::Client;

/// The edge, or this command, failed: not the command that was to run. As `env`, `timeout` and Docker have it.
const FAILED: u8 = 125;
/// Its time was over. As `timeout` has it.
const TIMED_OUT: u8 = 124;
/// What it printed is read no longer. As 128 + SIGPIPE.
const CLOSED: u8 = 141;

/// Runs `command`; its exit code, or one that says why there is none.
pub fn run(
    client: &Client,
    environment: &Environment,
    command: Vec<String>,
    stdin: bool,
    timeout: Option<&str>,
) -> ExitCode {
    match exec(client, environment, command, stdin, timeout) {
        Ok(code) => ExitCode::from(code),
        // The command is ended for it, done or not: no success, and what a shell says of `yes` in `yes | head`.
        Err(e) if super::is_closed_pipe(&e) => ExitCode::from(CLOSED),
        Err(e) => {
            eprintln!("vango-edge: {e:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn exec(
    client: &Client,
    environment: &Environment,
    command: Vec<String>,
    stdin: bool,
    timeout: Option<&str>,
) -> Result<u8> {
    let timeout_s = timeout.map(seconds).transpose()?;
    let request = ExecRequest { command, stdin, timeout_s };
    let mut answer = client.stream(&format!("/v1/environments/{environment}/exec"), &request)?;
    let mut content = Vec::new();
    while let Some(kind) = frame(&mut answer, &mut content)? {
        match kind {
            1 => print(io::stdout(), &content)?,
            2 => print(io::stderr(), &content)?,
            0 if !content.is_empty() => {
                let word: ExecFrame = serde_json::from_slice(&content)?;
                match word.id {
                    Some(id) if stdin => feed(client.clone(), id),
                    Some(_) => {}
                    None => return code(&word),
                }
            }
            _ => {}
        }
    }
    bail!("the edge's answer broke off: the command is ended, and its exit is not known")
}

fn seconds(text: &str) -> Result<u64> {
    match crate::document::duration(text) {
        Some(time) => Ok(time.as_secs()),
        None => bail!("--timeout {text}: expected a time such as 30s, 15m or 2h"),
    }
}

/// The next frame's kind, and its content; `None` at the end of the answer.
fn frame(answer: &mut impl Read, content: &mut Vec<u8>) -> Result<Option<u8>> {
    let mut head = [0; 8];
    match answer.read_exact(&mut head) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e).context("the edge's answer broke off"),
    }
    let [kind, _, _, _, length @ ..] = head;
    content.clear();
    answer.take(u32::from_be_bytes(length).into()).read_to_end(content)?;
    Ok(Some(kind))
}

/// As it is: what the command says is meant for who runs it.
fn print(mut to: impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)?;
    to.flush()?;
    Ok(())
}

/// Gives the command what this one reads, for as long as both run.
fn feed(client: Client, id: String) {
    thread::spawn(move || {
        let fed = client.put_stream(&format!("/v1/exec/{id}/stdin"), &mut io::stdin().lock());
        // A command that has ended meanwhile has no input any more.
        if let Err(e) = fed {
            log::debug!("{e:#}");
        }
    });
}

fn code(word: &ExecFrame) -> Result<u8> {
    if word.timed_out {
        eprintln!("vango-edge: its time was over, and it was ended (--timeout)");
        return Ok(TIMED_OUT);
    }
    match (word.code, word.signal) {
        (Some(code), _) => Ok(u8::try_from(code & 0xff)?),
        (None, Some(signal)) => Ok(u8::try_from(128 + signal)?),
        (None, None) => bail!("how the command ended is not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_one_by_one_and_a_part_of_one_is_no_end() {
        let mut bytes: &[u8] = b"\x01\0\0\0\0\0\0\x02ab\x02\0\0\0\0\0\0\0\x01\0\0";
        let mut content = Vec::new();
        assert_eq!(frame(&mut bytes, &mut content).unwrap(), Some(1));
        assert_eq!(content, b"ab");
        assert_eq!(frame(&mut bytes, &mut content).unwrap(), Some(2));
        assert_eq!(content, b"");
        assert_eq!(frame(&mut bytes, &mut content).unwrap(), None);
    }

    #[test]
    fn the_code_is_the_commands_or_says_why_there_is_none() {
        let word = |code, signal, timed_out| ExecFrame { id: None, code, signal, timed_out };
        assert_eq!(code(&word(Some(7), None, false)).unwrap(), 7);
        assert_eq!(code(&word(None, Some(15), false)).unwrap(), 143);
        assert_eq!(code(&word(None, Some(15), true)).unwrap(), TIMED_OUT);
        assert!(code(&word(None, None, false)).is_err());
        assert!(seconds("1h").unwrap() == 3600 && seconds("soon").is_err());
    }
}
