//! Commands that run once, beside what an environment serves: an operator's, and those of releases. They get what
//! the app's own process gets but for a port, wake nothing and keep nothing awake.
//!
//! None has a record: what a process of the edge leaves of them is ended by the next one as what no record
//! names ([`crate::wake::Inheritance`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::Semaphore;

use crate::contract::{self, Release};
use crate::id::{AllocationId, Environment, OperationId};
use crate::node::{Node, ReadError};
use crate::record::Failure;
use crate::runner::{ExitStatus, Once, OnceSpec, Prints, Room, Runner, StartError};
use crate::wake::{NotStarted, StartRequest, Starts};

/// Words of a command at most, and bytes of all of them.
const WORDS: usize = 1000;
const BYTES: usize = 64 * 1024;

/// Bytes of what a release command printed that are kept with its failure.
const PRINTED: usize = 2048;

/// A command that an operator asks for.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments, found as those of the contract are.
    pub words: Vec<String>,
    /// Whether it reads what the operator sends; nothing otherwise.
    pub stdin: bool,
}

/// Why a command does not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It is no command.
    #[error("{0}")]
    Invalid(String),
    /// There is no artifact to run it in.
    #[error("{0} was never deployed: `vango-edge deploy DIR` does that")]
    NotDeployed(Environment),
    /// As many run as may.
    #[error("this node runs {0} commands, its maximum (runner.max_commands)")]
    Full(usize),
    /// It could not be started.
    #[error("{0}")]
    NotStarted(String),
    /// What is there could not be read.
    #[error("{0}")]
    Read(#[from] ReadError),
}

impl From<NotStarted> for ExecError {
    fn from(e: NotStarted) -> Self {
        Self::NotStarted(e.to_string())
    }
}

impl From<StartError> for ExecError {
    fn from(e: StartError) -> Self {
        let hint = match &e {
            StartError::Spawn { program, source }
                if source.kind() == std::io::ErrorKind::NotFound && !program.contains('/') =>
            {
                format!("; a program of the artifact is ./{program}")
            }
            _ => String::new(),
        };
        Self::NotStarted(format!("{e}{hint}"))
    }
}

/// A command that runs. Dropped before its end, it is ended.
pub struct Execution {
    pub id: AllocationId,
    pub once: Once,
    inputs: Arc<Inputs>,
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.inputs.lock().remove(&self.id);
    }
}

/// What is asked for an input that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoInput {
    /// No such command runs, or it reads nothing.
    Unknown,
    /// Another request writes to it, or has.
    Taken,
}

/// The inputs of commands; `None` while one is written to.
#[derive(Default)]
struct Inputs(Mutex<HashMap<AllocationId, Option<pipe::Sender>>>);

impl Inputs {
    fn lock(&self) -> MutexGuard<'_, HashMap<AllocationId, Option<pipe::Sender>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs commands, so many at a time.
pub struct OneOffs {
    node: Node,
    starts: Arc<Starts>,
    runner: Arc<dyn Runner>,
    most: usize,
    places: Arc<Semaphore>,
    /// Release commands wait for these: an operator's commands take none away.
    releasing: Arc<Semaphore>,
    inputs: Arc<Inputs>,
}

impl OneOffs {
    /// At most `most` at a time, and as many release commands.
    pub fn new(node: Node, starts: Arc<Starts>, runner: Arc<dyn Runner>, most: usize) -> Arc<Self> {
        let (places, releasing) = (Semaphore::new(most), Semaphore::new(most.max(1)));
        let (places, releasing) = (Arc::new(places), Arc::new(releasing));
        Arc::new(Self { node, starts, runner, most, places, releasing, inputs: Arc::default() })
    }

    /// Runs `command` in the artifact of the environment's owner.
    ///
    /// # Errors
    /// [`ExecError`]; nothing runs then.
    pub async fn exec(
        &self,
        environment: &Environment,
        command: &Command,
    ) -> Result<Execution, ExecError> {
        check(&command.words).map_err(ExecError::Invalid)?;
        let Some(owner) = self.node.newest_owner(environment).await? else {
            return Err(ExecError::NotDeployed(environment.clone()));
        };
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| ExecError::Full(self.most))?;
        let wanted = StartRequest {
            environment: environment.clone(),
            deployment: owner.deployment,
            digest: owner.digest,
            epoch: owner.epoch,
            // It is of no operation.
            operation: OperationId::random(&*self.node.entropy),
        };
        let prints = Prints::Piped { stdin: command.stdin };
        let (id, mut once) = self.start(&wanted, &command.words, prints, Room::of(place)).await?;
        if let Some(stdin) = once.pipes.stdin.take() {
            self.inputs.lock().insert(id.clone(), Some(stdin));
        }
        Ok(Execution { id, once, inputs: Arc::clone(&self.inputs) })
    }

    async fn start(
        &self,
        wanted: &StartRequest,
        words: &[String],
        prints: Prints,
        room: Room,
    ) -> Result<(AllocationId, Once), ExecError> {
        let id = AllocationId::random(&*self.node.entropy);
        let contract = self.starts.contract(&wanted.environment, &wanted.deployment).await?;
        let mut program = self.starts.program(wanted, None, &contract).await?;
        let grace = contract.process.stop_timeout;
        let (name, command) = match prints {
            Prints::ToLog => ("release", words.to_vec()),
            // What the operator's own shell left in them is meant.
            Prints::Piped { .. } => ("exec", contract::literal(words)),
        };
        program.command = command;
        let name = name.to_owned();
        let spec = OnceSpec { id: id.clone(), name, program, prints, grace };
        Ok((id, self.runner.once(spec, room).await?))
    }

    /// Runs a release command to its end; what it prints goes into the environment's log. Dropped before, it
    /// is ended.
    ///
    /// # Errors
    /// Why it did not end well, with the last of what it printed.
    pub async fn release(&self, wanted: &StartRequest, release: &Release) -> Result<(), Failure> {
        let (limit, failed) = (release.timeout, "its release command failed");
        let place = Arc::clone(&self.releasing).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(limit, place).await else {
            let detail = format!("its release command had no place on the node within {limit:?}");
            return Err(Failure::new(failed, detail));
        };
        let started = self.start(wanted, &release.command, Prints::ToLog, Room::of(place)).await;
        let (id, once) = started.map_err(|e| {
            let detail = format!("its release command could not be started: {e}");
            Failure::new(failed, detail)
        })?;
        log::info!("{}: the release command of {} runs ({id})", wanted.environment, wanted.digest);
        let status = match tokio::time::timeout(limit, once.ended()).await {
            Ok(status) if did_all(status, once.asked()) => return Ok(()),
            // Its end is the edge's own: what it did until then nothing tells.
            Ok(_) if once.asked() => return Err(release_lost()),
            Ok(status) => format!("ended with {status}"),
            Err(_) => {
                once.end();
                let status = once.ended().await;
                format!("was not over within {limit:?} (release.timeout), and was ended: {status}")
            }
        };
        let printed = once.printed(PRINTED);
        let printed = match printed.trim() {
            "" => "; it printed nothing".to_owned(),
            printed => format!("; the last it printed:\n{printed}"),
        };
        Err(Failure::new(failed, format!("its release command {status}{printed}")))
    }

    /// What the command reads, for one writer, who says by dropping it that this is all; one who cannot go on
    /// gives it back.
    ///
    /// # Errors
    /// [`NoInput`].
    pub fn input(&self, id: &AllocationId) -> Result<pipe::Sender, NoInput> {
        let mut inputs = self.inputs.lock();
        inputs.get_mut(id).ok_or(NoInput::Unknown)?.take().ok_or(NoInput::Taken)
    }

    /// Takes an input back whose writer broke off, so that the command does not take that for the end of what
    /// it reads. It closes with the command.
    pub fn broke_off(&self, id: &AllocationId, input: pipe::Sender) {
        if let Some(place) = self.inputs.lock().get_mut(id) {
            *place = Some(input);
        }
    }
}

/// Whether a command that ended so did what it is for. One that the edge told to end may well say 0 as it does, and
/// did a part.
pub fn did_all(status: ExitStatus, told_to_end: bool) -> bool {
    status == ExitStatus::Code(0) && !told_to_end
}

/// Why a promotion fails whose release command did not come to its own end.
pub(super) fn release_lost() -> Failure {
    let detail = "the edge ended while its release command ran: whether that did anything is not known, and it \
                  is not run again by itself. Look, then deploy or promote again, which runs it once more";
    Failure::new("the outcome of its release command is unknown", detail)
}

fn check(words: &[String]) -> Result<(), String> {
    let bytes: usize = words.iter().map(String::len).sum();
    match words.first() {
        None => Err("expected a program and its arguments".into()),
        Some(program) if program.is_empty() => Err("the program's name is empty".into()),
        Some(_) if words.len() > WORDS || bytes > BYTES => Err(format!(
            "a command has at most {WORDS} words and {BYTES} bytes, and this has {} and {bytes}: let it \
             read the rest from its input",
            words.len()
        )),
        Some(_) if words.iter().any(|w| w.contains('\0')) => {
            Err("a word of a command has no NUL in it".into())
        }
        Some(_) => Ok(()),
    }
}

/// A command as it is written down: no word in which a secret may stand. Shown are plain words of up to 64
/// characters. Hidden are a name and what belongs to it (`ada:hunter2`), an option with one dash and more than a
/// letter, in which its value may be, the word after an option with one dash or one that speaks of a secret, and
/// everything after another word that does (`set-password ada hunter2`). A program's name is cut.
pub fn without_secrets(words: &[String]) -> String {
    const MOST: usize = 20;
    const LONGEST: usize = 64;
    let plain = |w: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._/:-+@,".contains(c);
        !w.contains("//") && w.chars().all(allowed)
    };
    let pair = |w: &str| w.split_once(':').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
    let one_dash = |w: &str| w.starts_with('-') && !w.starts_with("--");
    let speaks_of_one = |w: &str| {
        let lower = w.to_ascii_lowercase();
        let names = ["pass", "pwd", "secret", "token", "key", "auth", "cred"];
        names.iter().any(|name| lower.contains(name))
    };
    let mut shown: Vec<&str> = Vec::new();
    let (mut before, mut all_after) = ("", false);
    for (n, word) in words.iter().take(MOST).enumerate() {
        let hidden = if n == 0 {
            !plain(word)
        } else {
            let value = before.starts_with('-') && (one_dash(before) || speaks_of_one(before));
            let attached = one_dash(word) && word.len() > 2;
            let long = word.len() > LONGEST;
            all_after || value || attached || long || pair(word) || !plain(word)
        };
        // What is plain has one byte for each character.
        shown.push(if hidden { "…" } else { &word[..word.len().min(LONGEST)] });
        all_after |= !word.starts_with('-') && speaks_of_one(word);
        before = word;
    }
    if words.len() > MOST {
        shown.push("…");
    }
    shown.join(" ")
}

/// How long a command may take.
pub const LIMITS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn no_secret_is_written_down() {
        for (given, shown) in [
            ("python manage.py migrate app 0002", "python manage.py migrate app 0002"),
            ("./bin/user add ada --password hunter2", "./bin/user add ada --password …"),
            ("./bin/user add ada --password=hunter2", "./bin/user add ada …"),
            ("psql postgres://u:p@h/db", "psql …"),
            ("sh -c a", "sh -c …"),
            ("env A=1 x", "env … x"),
            ("x -t s3cr3t", "x -t …"),
            ("x --api-key k --count 1", "x --api-key … --count 1"),
            ("mysql -phunter2 app", "mysql … …"),
            ("plink -pw hunter2", "plink … …"),
            ("redis-cli -a hunter2 ping", "redis-cli -a … ping"),
            ("curl --user ada:hunter2 host", "curl --user … host"),
            ("./bin/user set-password ada hunter2", "./bin/user set-password … …"),
            ("PASSWORD=hunter2 x", "… …"),
        ] {
            assert_eq!(without_secrets(&words(given)), shown);
        }
        assert!(without_secrets(&words(&"a ".repeat(50))).ends_with('…'));
        assert_eq!(without_secrets(&["sh".into(), "a b".into()]), "sh …");
        assert_eq!(
            without_secrets(&["a".repeat(100), "b".repeat(65)]),
            format!("{} …", "a".repeat(64))
        );
    }

    #[test]
    fn a_command_that_was_told_to_end_did_not_do_all() {
        assert!(did_all(ExitStatus::Code(0), false));
        for (status, told) in [
            (ExitStatus::Code(0), true),
            (ExitStatus::Code(1), false),
            (ExitStatus::Signal(15), true),
            (ExitStatus::Unknown, false),
        ] {
            assert!(!did_all(status, told), "{status}, {told}");
        }
    }

    #[test]
    fn a_command_has_bounds() {
        assert_eq!(check(&words("a b")), Ok(()));
        for bad in [vec![], vec![String::new()], words("a \0"), words(&"a ".repeat(WORDS))] {
            assert!(check(&bad).is_err());
        }
        assert!(check(&["a".repeat(BYTES + 1)]).is_err());
    }
}
