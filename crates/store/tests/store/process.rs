//! This test binary, started again as a process of its own that can be killed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const DIR: &str = "VANGO_EDGE_TEST_STORE_DIR";
/// Marks the child's own lines among those of the test harness.
const MARK: &str = "child: ";

/// In a child: the directory it was given. None if the child's test was run by hand.
pub fn dir() -> Option<PathBuf> {
    std::env::var_os(DIR).map(PathBuf::from)
}

/// In a child: says a line, as a whole.
pub fn say(line: &str) {
    // The harness writes a line's beginning before the test runs.
    let line = format!("\n{MARK}{line}\n");
    let mut out = std::io::stdout().lock();
    // The parent may have what it wanted and be gone.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// In a child: waits until the parent kills it or dies.
pub fn until_killed() {
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

/// A running child. Dropping it kills it.
pub struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

/// Runs the ignored test `name` with `dir`.
pub fn start(name: &str, dir: &Path) -> Process {
    start_with(name, dir, &[])
}

/// The same with more in its environment.
pub fn start_with(name: &str, dir: &Path, env: &[(&str, &str)]) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    Process { child, lines }
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's next whole line; none once it has ended. A line cut off by a kill is left out.
    pub fn next_line(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            let whole = line.strip_suffix('\n')?;
            if let Some(said) = whole.strip_prefix(MARK) {
                return Some(said.to_owned());
            }
        }
    }

    /// SIGKILL, and until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
