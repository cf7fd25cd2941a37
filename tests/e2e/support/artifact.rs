//! Artifact directories of the sample app, each with a contract of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use super::{Gate, binary};

/// The shipped contract, which tests change a key at a time.
const CONTRACT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/studylab/app/vango-edge.toml"));

/// A directory that can be deployed.
pub struct Artifact {
    dir: TempDir,
    contract: String,
    env: Vec<(String, String)>,
}

impl Artifact {
    /// The sample app as it is shipped, with its debug routes.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/studylab/app"), dir.path());
        fs::copy(studylab(), dir.path().join("studylab")).unwrap();
        let artifact = Self { dir, contract: CONTRACT.into(), env: Vec::new() };
        artifact.env("STUDYLAB_DEBUG", "1")
    }

    /// One whose start waits at `gate`, for as long as a request may be held at most.
    pub fn behind(gate: &Gate) -> Self {
        Self::new().set("process", "command", &gate.command()).set("wake", "budget", "\"5m\"")
    }

    /// A program of Perl in place of the sample app: it takes one connection after the other, reads a
    /// request's head from it, and runs `answer`, which sees the head's first `$line`.
    pub fn perl(answer: &str) -> Self {
        let artifact = Self::new().set("process", "command", "[\"perl\", \"app.pl\"]");
        let program = format!(
            r#"
            use IO::Socket::INET;
            $SIG{{PIPE}} = 'IGNORE';
            my $port = IO::Socket::INET->new(
                LocalAddr => '127.0.0.1', LocalPort => $ENV{{PORT}}, Listen => 64, ReuseAddr => 1)
                or die $!;
            my $ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            while (my $client = $port->accept) {{
                my $line = <$client>;
                while (my $field = <$client>) {{ last if $field =~ /^\r?\n$/ }}
                {answer}
                close $client;
            }}
            "#
        );
        fs::write(artifact.path().join("app.pl"), program).unwrap();
        artifact
    }

    /// With a switch of the app's.
    pub fn env(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.env.push((name.into(), value.as_ref().into()));
        let all: Vec<_> = self.env.iter().map(|(n, v)| format!("{n} = {v:?}")).collect();
        self.set("process", "env", &format!("{{ {} }}", all.join(", ")))
    }

    /// With `key = value` in `[table]`; the value is TOML.
    pub fn set(mut self, table: &str, key: &str, value: &str) -> Self {
        let mut out = String::new();
        let (mut inside, mut found) = (false, false);
        for line in self.contract.lines() {
            let is_key = line.split_once('=').is_some_and(|(k, _)| k.trim() == key);
            if !(inside && is_key) {
                out.push_str(&format!("{line}\n"));
            }
            if line.starts_with('[') {
                inside = line == format!("[{table}]");
            }
            if inside && line.starts_with('[') {
                found = true;
                out.push_str(&format!("{key} = {value}\n"));
            }
        }
        assert!(found, "the sample app's contract has no [{table}]");
        self.contract = out;
        self
    }

    /// With another word somewhere in the contract.
    pub fn replace(mut self, from: &str, to: &str) -> Self {
        assert!(self.contract.contains(from), "the sample app's contract has no {from}");
        self.contract = self.contract.replace(from, to);
        self
    }

    /// Whose sessions are written under the schema with this hash, or under none that it declares; and
    /// which reads those under `accepts` too.
    pub fn schema(self, hash: Option<&str>, accepts: &[&str]) -> Self {
        let file = self.dir.path().join("vango_state_schema.json");
        let this = match hash {
            Some(hash) => {
                fs::write(file, format!("{{\"schemaHash\": {hash:?}}}\n")).unwrap();
                self
            }
            None => {
                fs::remove_file(file).unwrap();
                self.replace("schema_file = \"vango_state_schema.json\"\n", "")
            }
        };
        this.set("state", "accepts", &format!("{accepts:?}"))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Its directory, ready to be deployed.
    pub fn write(&self) -> &Path {
        fs::write(self.dir.path().join("vango-edge.toml"), &self.contract).unwrap();
        self.dir.path()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The sample app without its debug information, which would make each artifact ten times as large.
fn studylab() -> &'static Path {
    static STRIPPED: OnceLock<PathBuf> = OnceLock::new();
    STRIPPED.get_or_init(|| {
        let built = binary().with_file_name("studylab");
        assert!(
            built.is_file(),
            "{} is not there: build the whole workspace, as in `cargo test --workspace`",
            built.display()
        );
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let part = target.join(format!("studylab.{}", std::process::id()));
        fs::copy(&built, &part).unwrap();
        // Where there is no strip, the tests take longer.
        let _ = Command::new("strip").arg("--strip-debug").arg(&part).status();
        let stripped = target.join("studylab");
        // At once, for another run of these tests.
        fs::rename(&part, &stripped).unwrap();
        stripped
    })
}
