//! A client in Python that is told what to do line by line, and says what came of it in JSON.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// Python with the libraries of these clients, in an environment that `scripts/test` makes.
pub fn python() -> PathBuf {
    let python = std::env::var_os("VANGO_EDGE_TEST_PYTHON").map(PathBuf::from);
    python.expect("VANGO_EDGE_TEST_PYTHON is not set: run this by `scripts/test`")
}

/// It ends with the test.
pub struct Program {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Program {
    /// `script` is below `tests/e2e`.
    pub fn start(script: &str, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e").join(script);
        let mut child = Command::new(python())
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, hear) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, say, hear: BufReader::new(hear) }
    }

    #[track_caller]
    pub fn ask(&mut self, said: impl Display) -> Value {
        writeln!(self.say, "{said}").unwrap();
        let mut line = String::new();
        self.hear.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{said}: {line:?}: {e}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
