//! A full disk: what must be recorded is refused, hot traffic goes on, and room is used again without a
//! restart. Needs a small file system of its own, and so the right to mount one; without it the test
//! says so and passes.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use crate::support::{Artifact, Edge, eventually};

/// A tmpfs of 256 MiB, room for two artifacts with programs of a debug build, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("vef-").tempdir_in("/tmp").unwrap();
        let options = ["-t", "tmpfs", "-o", "size=256m,mode=700", "tmpfs"];
        match Command::new("mount").args(options).arg(dir.path()).output() {
            Ok(out) if out.status.success() => Ok(Self(dir)),
            Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).unwrap();
        for size in [1 << 20, 4096, 512] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_what_must_be_recorded_and_nothing_else() {
    let small = match Small::mount() {
        Ok(small) => small,
        Err(e) => {
            println!("skipped: no file system can be mounted here: {e}");
            return;
        }
    };
    let edge = Edge::start_on(small.0.path());
    edge.deploy(&Artifact::new());
    assert_eq!(edge.get("/dashboard").status, 200);
    small.fill();

    let another = Artifact::new().env("ANOTHER", "1");
    let refused = edge.command(&["deploy", another.write().to_str().unwrap()]);
    assert!(!refused.status.success());
    assert!(!refused.stderr.is_empty(), "it says why");
    for _ in 0..200 {
        assert_eq!(edge.get("/dashboard").status, 200, "hot traffic goes on");
    }
    // A wake is recorded before anything starts: it is refused, or there was room for it still.
    edge.command(&["sleep", "studylab"]);
    for _ in 0..5 {
        let page = edge.get("/dashboard");
        if page.status != 200 {
            page.retryable(page.json()["type"].as_str().unwrap().rsplit('/').next().unwrap());
        }
    }

    small.empty();
    eventually("it is served again", || edge.get("/dashboard").status == 200);
    eventually("it takes deployments again", || {
        edge.command(&["deploy", another.write().to_str().unwrap()]).status.success()
    });
    assert_eq!(edge.list(&["deployments"]).len(), 2);
}
