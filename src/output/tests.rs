//! What is kept is within its bounds, and what is read is what was kept.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::clock::ManualClock;
use crate::line::{Cursor, Position};

fn limits(each: u64, total: u64) -> Limits {
    Limits { each, total, age: Duration::from_secs(3600), rate: 1 << 20 }
}

struct Bench {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    outputs: Arc<Outputs>,
    dropped: Arc<AtomicU64>,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new());
        let dropped = Arc::new(AtomicU64::new(0));
        let outputs = Self::open(dir.path(), limits, &clock, &dropped);
        Self { dir, clock, outputs, dropped }
    }

    fn open(
        dir: &Path,
        limits: Limits,
        clock: &Arc<ManualClock>,
        dropped: &Arc<AtomicU64>,
    ) -> Arc<Outputs> {
        let told = Arc::clone(dropped);
        let told = move |_, lines| {
            told.fetch_add(lines, Ordering::Relaxed);
        };
        Outputs::open(dir, limits, clock.clone(), Box::new(told)).unwrap()
    }

    fn print(&self, environment: &str, text: &str) {
        self.clock.advance(Duration::from_millis(1));
        let line = Line {
            at: self.clock.wall(),
            allocation: Some(id()),
            process: "web".into(),
            stream: Stream::Stdout,
            partial: false,
            text: text.into(),
        };
        let environment = environment.parse().unwrap();
        self.outputs.append(&environment, format!("{line}\n").as_bytes()).unwrap();
    }

    /// Bytes on disk, and files.
    fn on_disk(&self) -> (u64, usize) {
        fn walk(dir: &Path, all: &mut Vec<u64>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), all),
                    false => all.push(entry.metadata().unwrap().len()),
                }
            }
        }
        let mut all = Vec::new();
        walk(self.dir.path(), &mut all);
        (all.iter().sum(), all.len())
    }

    /// Every line of the app, page by page, oldest first.
    fn pages(&self, app: &Select, size: usize) -> Vec<String> {
        let mut all = Vec::new();
        let mut next = Some(self.outputs.end(app));
        while let Some(cursor) = next {
            let wanted = Wanted::default();
            let (rows, older) = self.outputs.before(app, &wanted, &cursor, size).unwrap();
            assert!(rows.len() == size || older.is_none());
            all.extend(rows.into_iter().map(|(_, line)| line.text));
            // As the API has it between two pages.
            next = older.map(|older| older.to_string().parse().unwrap());
        }
        all.reverse();
        all
    }
}

fn id() -> AllocationId {
    "al-4sz3kfbtlfb75zso".parse().unwrap()
}

fn app(name: Option<&str>) -> Select {
    Select { app: "a".parse().unwrap(), name: name.map(|n| n.parse().unwrap()) }
}

fn texts(found: read::Found) -> Vec<String> {
    found.rows.into_iter().map(|(_, line)| line.text).collect()
}

#[test]
fn an_environment_has_its_last_lines_within_its_bytes() {
    let bench = Bench::new(limits(64 << 10, 1 << 30));
    let long = "x".repeat(200);
    for n in 0..2000 {
        bench.print("a", &format!("{n} {long}"));
    }
    let (bytes, files) = bench.on_disk();
    assert!(bytes <= 64 << 10 && bytes > 48 << 10 && files <= 9, "{bytes} bytes in {files}");
    let all = bench.pages(&app(None), 7);
    let first: usize = all[0].split(' ').next().unwrap().parse().unwrap();
    let numbers: Vec<String> = (first..2000).map(|n| format!("{n} {long}")).collect();
    assert_eq!(all, numbers, "the newest, none twice, none left out");
    // A line that is longer than a file's share.
    bench.print("a", &"y".repeat(20 << 10));
    bench.print("a", "after");
    assert_eq!(bench.pages(&app(None), 1000).last().unwrap(), "after");
    assert!(bench.on_disk().0 <= 64 << 10);
}

#[test]
fn all_together_have_a_bound_and_the_oldest_go_first() {
    let bench = Bench::new(limits(64 << 10, 256 << 10));
    let long = "x".repeat(1000);
    for n in 0..20 {
        for line in 0..30 {
            bench.print(&format!("app-{n}"), &format!("{n}.{line} {long}"));
        }
    }
    let (bytes, _) = bench.on_disk();
    assert!(bytes <= 256 << 10 && bytes > 200 << 10, "{bytes}");
    assert_eq!(bytes, bench.outputs.total.load(Ordering::Relaxed));
    let of = |n| Select { app: format!("app-{n}").parse().unwrap(), name: None };
    assert_eq!(bench.pages(&of(0), 100), [""; 0]);
    assert_eq!(bench.pages(&of(19), 100).len(), 30);
}

#[test]
fn the_next_process_goes_on_where_one_was_killed() {
    let bench = Bench::new(limits(64 << 10, 1 << 20));
    bench.print("a/pr-7", "before");
    let end = bench.outputs.end(&app(None));
    let file = bench.dir.path().join("a/pr-7/0000000001.log");
    let mut torn = fs::read(&file).unwrap();
    torn.extend_from_slice(b"2023-11-14T22:1");
    fs::write(&file, torn).unwrap();
    let limits = limits(64 << 10, 1 << 20);
    let outputs = Bench::open(bench.dir.path(), limits, &bench.clock, &bench.dropped);
    let bench = Bench { outputs, ..bench };
    bench.print("a/pr-7", "after");
    assert_eq!(bench.pages(&app(None), 10), ["before", "after"]);
    let mut cursor = end;
    let found = bench.outputs.after(&app(None), &Wanted::default(), &mut cursor).unwrap();
    assert!(!found.missed);
    assert_eq!(texts(found), ["after"]);
    assert_eq!(bench.outputs.total.load(Ordering::Relaxed), bench.on_disk().0);
}

#[test]
fn who_follows_reads_on_over_new_files_and_is_told_what_was_missed() {
    let bench = Bench::new(limits(64 << 10, 1 << 20));
    let (all, wanted) = (app(None), Wanted::default());
    bench.print("a", "earlier");
    let mut cursor = bench.outputs.end(&all);
    let (mut seen, mut missed) = (Vec::new(), false);
    let long = "x".repeat(300);
    for n in 0..1000 {
        bench.print(if n % 2 == 0 { "a" } else { "a/pr-7" }, &format!("{n} {long}"));
        if n % 20 == 19 {
            let found = bench.outputs.after(&all, &wanted, &mut cursor).unwrap();
            missed |= found.missed;
            seen.extend(texts(found));
        }
    }
    let printed: Vec<_> = (0..1000).map(|n| format!("{n} {long}")).collect();
    assert_eq!((seen, missed), (printed, false));
    // Away for longer than what is kept.
    for n in 0..1000 {
        bench.print("a", &format!("{n} {long}"));
    }
    let found = bench.outputs.after(&all, &wanted, &mut cursor).unwrap();
    assert!(found.missed && found.rows.len() > 100);
    let again = bench.outputs.after(&all, &wanted, &mut cursor).unwrap();
    assert!(!again.missed && !again.more && again.rows.is_empty());
}

#[test]
fn a_look_forward_reads_a_part_and_says_that_there_is_more() {
    let bench = Bench::new(limits(8 << 20, 16 << 20));
    let (all, wanted) = (app(None), Wanted::default());
    let long = "x".repeat(1000);
    let mut cursor = Cursor::default();
    for n in 0..2000 {
        bench.print("a", &format!("{n} {long}"));
    }
    let mut seen = Vec::new();
    loop {
        let found = bench.outputs.after(&all, &wanted, &mut cursor).unwrap();
        assert!(found.rows.len() < 300);
        let more = found.more;
        seen.extend(texts(found));
        if !more {
            break;
        }
    }
    assert_eq!(seen.len(), 2000);
}

#[test]
fn lines_are_chosen_by_time_allocation_and_environment() {
    let bench = Bench::new(limits(64 << 10, 1 << 20));
    bench.print("a", "one");
    bench.print("a/pr-7", "two");
    bench.clock.advance(Duration::from_secs(60));
    let since = bench.clock.wall();
    bench.print("a", "three");
    let other = "al-aaaaaaaaaaaaaaaa".parse().unwrap();
    let line = bench.outputs.edges(&other, "web", "ended\nso");
    bench.outputs.append(&"a".parse().unwrap(), format!("{line}\n").as_bytes()).unwrap();
    let end = bench.outputs.end(&app(None));
    let asked = |select: &Select, wanted: Wanted| {
        let (rows, _) = bench.outputs.before(select, &wanted, &end, 10).unwrap();
        rows.into_iter().map(|(_, line)| line.text).collect::<Vec<_>>()
    };
    let none = Wanted::default;
    assert_eq!(asked(&app(None), none()), ["ended so", "three", "two", "one"]);
    assert_eq!(asked(&app(Some("pr-7")), none()), ["two"]);
    assert_eq!(asked(&app(None), Wanted { since, ..none() }), ["ended so", "three"]);
    let of_it = Wanted { allocation: Some(id()), ..none() };
    assert_eq!(asked(&app(Some("production")), of_it), ["three", "one"]);
    let edge = Wanted { stream: Some(Stream::Edge), ..none() };
    assert_eq!(asked(&app(None), edge), ["ended so"]);
    let edges = bench.outputs.locate(&other).unwrap();
    assert_eq!(edges, Some("a".parse().unwrap()));
    assert_eq!(bench.outputs.locate(&"al-bbbbbbbbbbbbbbbb".parse().unwrap()).unwrap(), None);
}

#[test]
fn what_is_too_old_goes_with_its_folders() {
    let bench = Bench::new(limits(64 << 10, 1 << 20));
    bench.print("a/pr-7", "old");
    bench.clock.advance(Duration::from_secs(3000));
    bench.print("a", "new");
    let mut cursor = bench.outputs.end(&app(None));
    bench.clock.advance(Duration::from_secs(1000));
    bench.outputs.sweep_once();
    assert_eq!(bench.pages(&app(None), 10), ["new"]);
    assert!(!bench.dir.path().join("a/pr-7").exists());
    // Its files are counted from one again, and who followed it reads on.
    cursor.0.insert("pr-7".parse().unwrap(), Position { file: 3, offset: 9 });
    bench.print("a/pr-7", "again");
    let found = bench.outputs.after(&app(None), &Wanted::default(), &mut cursor).unwrap();
    assert_eq!(texts(found), ["again"]);
    bench.clock.advance(Duration::from_secs(4000));
    bench.outputs.sweep_once();
    assert_eq!((bench.on_disk(), bench.outputs.total.load(Ordering::Relaxed)), ((0, 0), 0));
    assert!(!bench.dir.path().join("a").exists());
}

#[tokio::test]
async fn a_flood_is_kept_in_part_and_what_is_dropped_is_counted_and_said() {
    use std::io::Write as _;
    let bench = Bench::new(Limits { rate: 10_000, ..limits(1 << 20, 1 << 20) });
    let at = bench.dir.path().join("pipe");
    nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let read = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(&at);
    let mut write = fs::OpenOptions::new().write(true).open(&at).unwrap();
    let source = Source {
        environment: "a".parse().unwrap(),
        allocation: id(),
        process: "web".into(),
        stream: Stream::Stdout,
    };
    let (end, ended) = tokio::sync::oneshot::channel();
    let last = Arc::new(Mutex::new(String::new()));
    let tail = Arc::clone(&last);
    let tail = move |line: &str| line.clone_into(&mut locked(&tail));
    let pumped = tokio::spawn(pump(read.unwrap(), bench.outputs.clone(), source, tail, ended));
    // The clock stands still: 40,000 bytes are a burst.
    let printed = tokio::task::spawn_blocking(move || {
        let line = format!("{}\n", "x".repeat(99));
        (0..10_000).for_each(|_| write.write_all(line.as_bytes()).unwrap());
        write.write_all(b"the end").unwrap();
    });
    tokio::time::timeout(Duration::from_secs(60), printed).await.unwrap().unwrap();
    drop(end);
    pumped.await.unwrap();
    fs::remove_file(&at).unwrap();
    let lines = bench.pages(&app(None), 1000);
    let kept = lines.iter().filter(|line| !line.contains("dropped:")).count() as u64;
    assert!((200..400).contains(&kept), "{kept}");
    let dropped = bench.dropped.load(Ordering::Relaxed);
    assert_eq!(kept + dropped, 10_001);
    let said: u64 = lines
        .iter()
        .filter(|line| line.contains("dropped: more than runner.log_rate"))
        .map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(said, dropped);
    assert_eq!(*locked(&last), "the end");
}
