//! `logs`: what apps print, as it was kept and as it comes.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::admin::{FollowQuery, LogBatch, LogFilter, LogRow};
use crate::clock::Wall;
use crate::id::{AllocationId, AppName, Environment};

use super::client::{Away, Client};
use super::{PAGE, show};

/// Pause before an edge that is away is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Longest line of an event: a thousand lines of output are well below it.
const EVENT: u64 = 256 << 20;

/// Which lines.
#[derive(Debug, clap::Args)]
pub struct Logs {
    /// An app, app/environment, or an allocation
    #[arg(required_unless_present = "allocation")]
    pub of: Option<String>,
    /// Only this allocation, as `ps` shows it
    #[arg(long)]
    pub allocation: Option<AllocationId>,
    /// Only this process: web, or the name of another
    #[arg(long)]
    pub process: Option<String>,
    /// Only this stream: stdout, stderr, or edge
    #[arg(long, value_parser = ["stdout", "stderr", "edge"])]
    pub stream: Option<String>,
    /// Not earlier than this: 15m, 24h, or a time such as 2026-11-30T18:00:00Z
    #[arg(long)]
    pub since: Option<String>,
    /// How many [default: 100; with --since all of them]
    #[arg(short = 'n', long)]
    pub limit: Option<usize>,
    /// Go on printing new ones until interrupted
    #[arg(short, long)]
    pub follow: bool,
}

/// Prints what is kept, and what comes if that is asked for.
///
/// # Errors
/// Why it cannot be read.
pub fn logs(client: &Client, wanted: &Logs, json: bool) -> Result<()> {
    let filter = filter(wanted)?;
    let print = Print { json, names: filter.environment.is_none() && filter.app.is_some() };
    let limit = wanted.limit.unwrap_or(if wanted.since.is_some() { usize::MAX } else { 100 });
    if !wanted.follow {
        return print.rows(&kept(client, &filter, limit)?);
    }
    let mut from = match limit {
        // From the beginning of what is kept; the edge leaves out what is earlier.
        usize::MAX => FollowQuery { tail: None, after: Some(String::new()) },
        limit => FollowQuery { tail: Some(limit.min(PAGE)), after: None },
    };
    follow(client, &filter, &mut from, &print)?;
    loop {
        // It was stopped or killed: what was not printed yet is printed once it is there again.
        std::thread::sleep(AGAIN);
        match follow(client, &filter, &mut from, &print) {
            Err(e) if e.downcast_ref::<Away>().is_none() => return Err(e),
            _ => {}
        }
    }
}

fn filter(wanted: &Logs) -> Result<LogFilter> {
    let mut filter = LogFilter {
        allocation: wanted.allocation.as_ref().map(ToString::to_string),
        process: wanted.process.clone(),
        stream: wanted.stream.clone(),
        since_ms: wanted.since.as_deref().map(since_ms).transpose()?,
        ..LogFilter::default()
    };
    let Some(of) = wanted.of.as_deref() else { return Ok(filter) };
    if let Ok(id) = of.parse::<AllocationId>() {
        if filter.allocation.is_some() {
            bail!("{of}: expected an app or app/environment before --allocation");
        }
        filter.allocation = Some(id.to_string());
    } else if of.contains('/') {
        let environment: Environment = of.parse()?;
        filter.app = Some(environment.app().to_string());
        filter.environment = Some(environment.name().to_string());
    } else {
        filter.app = Some(of.parse::<AppName>()?.to_string());
    }
    Ok(filter)
}

/// A time ago, or a time.
fn since_ms(text: &str) -> Result<u64> {
    match text.parse::<Wall>() {
        Ok(at) => Ok(at.0),
        Err(_) if crate::document::duration(text).is_some() => super::since_ms(text),
        Err(_) => bail!("--since {text}: expected 15m, 24h, or 2026-11-30T18:00:00Z (in UTC)"),
    }
}

/// What is kept, oldest first.
fn kept(client: &Client, filter: &LogFilter, limit: usize) -> Result<Vec<LogRow>> {
    let mut rows: Vec<LogRow> = client.rows(&super::query("logs", limit, filter)?, limit)?;
    rows.reverse();
    Ok(rows)
}

/// Prints one stream to its end; `from` goes on with what was printed.
fn follow(
    client: &Client,
    filter: &LogFilter,
    from: &mut FollowQuery,
    print: &Print,
) -> Result<()> {
    let filter = serde_urlencoded::to_string(filter)?;
    let begin = serde_urlencoded::to_string(&*from)?;
    let body = client.events(&format!("/v1/logs/stream?{filter}&{begin}"))?;
    let mut lines = BufReader::new(body);
    let (mut id, mut line) = (None, String::new());
    loop {
        line.clear();
        // The edge was stopped or killed: that is the stream's end too.
        if !matches!(lines.by_ref().take(EVENT).read_line(&mut line), Ok(1..)) {
            return Ok(());
        }
        if let Some(place) = line.strip_prefix("id:") {
            id = Some(place.trim().to_owned());
        } else if let Some(data) = line.strip_prefix("data:") {
            let batch: LogBatch = serde_json::from_str(data)?;
            if batch.missed {
                eprintln!("vango-edge: lines were removed from the disk before they were read");
            }
            print.rows(&batch.rows)?;
        } else if line.trim().is_empty() && id.is_some() {
            from.after = id.take();
        }
    }
}

/// How lines are printed.
struct Print {
    json: bool,
    /// Each with the name of its environment.
    names: bool,
}

impl Print {
    fn rows(&self, rows: &[LogRow]) -> Result<()> {
        if self.json {
            return show::lines(rows);
        }
        show::text(&rows.iter().map(|row| self.line(row)).collect::<String>())
    }

    fn line(&self, row: &LogRow) -> String {
        let LogRow { at, environment, process, stream, text, partial, .. } = row;
        let name = match environment.split_once('/') {
            Some((_, name)) if self.names => format!("{name} "),
            _ => String::new(),
        };
        let allocation = row.allocation.as_deref().unwrap_or("-");
        let goes_on = if *partial { "…" } else { "" };
        format!("{at} {name}{allocation} {process} {stream}  {text}{goes_on}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        assert_eq!(since_ms("2023-11-14T22:13:20Z").unwrap(), 1_700_000_000_000);
        let hour = SystemClock::new().wall().0 - since_ms("1h").unwrap();
        assert!((3_600_000..3_660_000).contains(&hour), "{hour}");
        let said = since_ms("yesterday").unwrap_err().to_string();
        assert!(said.contains("--since yesterday: expected"), "{said}");
    }

    #[test]
    fn an_app_an_environment_and_an_allocation_are_told_apart() {
        let asked = |of: &str| {
            let of = Some(of.to_owned());
            let (allocation, process, stream) = (None, None, None);
            let (since, limit, follow) = (None, None, false);
            filter(&Logs { of, allocation, process, stream, since, limit, follow })
        };
        assert_eq!(asked("studylab").unwrap().app.as_deref(), Some("studylab"));
        let preview = asked("studylab/pr-7").unwrap();
        assert_eq!(
            (preview.app.unwrap(), preview.environment.unwrap()),
            ("studylab".into(), "pr-7".into())
        );
        let allocation = asked("al-4sz3kfbtlfb75zso").unwrap();
        assert_eq!((allocation.app, allocation.allocation.is_some()), (None, true));
        assert!(asked("Study Lab").is_err() && asked("a/b/c").is_err());
    }
}
