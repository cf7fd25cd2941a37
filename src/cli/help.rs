//! What `vango-edge COMMAND --help` and the manual pages say after the arguments: what the command
//! really does, what it prints, what can go wrong, and an example. A test holds every command to it.

pub(super) const OVERVIEW: &str = "\
Environment:
  VANGO_EDGE_ADMIN       the admin API, instead of --admin
  VANGO_EDGE_TOKEN       its token, where it wants one
  VANGO_EDGE_TOKEN_FILE  a file with it, instead of --token-file
  VANGO_EDGE_LOG         the log's level, instead of log.level; per module as env_logger has it

Exit codes:
  0  done
  1  failed; the reason is on stderr
  2  wrong usage

Examples:
  vango-edge check -c conf/edge.toml --artifact app/
  vango-edge run -c conf/edge.toml
  vango-edge deploy app/
  vango-edge explain GET http://studylab.localhost/dashboard
  vango-edge traces --steps -n 1";

pub(super) const RUN: &str = "\
It prints one JSON line with the addresses it got, and logs to stderr. One process at a time owns
state.dir; a second one says so and exits with 1.

Signals:
  SIGHUP            reads the configuration again; what is wrong with it changes nothing
  SIGTERM, SIGINT   /readyz says 503, listeners close, what is in flight and held finishes within
                    server.grace; a second one cuts that short

Example:
  vango-edge run -c /etc/vango-edge/edge.toml";

pub(super) const RELOAD: &str = "\
It answers once the files are in force, or says with file, line and column why they are not; then
everything stays as it was. Keys that need a restart are named.

Example:
  vango-edge reload";

pub(super) const CHECK: &str = "\
It reads the files as `run` would, with the apps' files below apps.dir, and starts nothing. With --artifact
it says what `deploy` would refuse and what the first start would fail for: links that lead out, a program
that is not there or not executable, a missing folder of static files, an app or a secret that the operator
does not have (values in the environment are not looked at). Every error is said at once, as
FILE:LINE:COLUMN: KEY: WHY; with --json each is an object. It exits with 0 only where there is none.

Examples:
  vango-edge check -c conf/edge.toml
  vango-edge check -c conf/edge.toml --artifact app/";

pub(super) const DEPLOY: &str = "\
The same directory makes the same digest anywhere; symbolic links between its files are kept. What the edge
has is not uploaded again. The first deployment of an app owns its hosts at once, and sleeps until asked for.
A later one takes them over: a process of it is made ready first, then it serves, then what served before
drains; where it does not become ready nothing changes, and the command exits with 1. What is served already
changes nothing. If the app's file has `promotion`, production moves only by `promote`: the deployment is
stored, and the commands that come next are printed; --promote asks for it at once. A preview's deployment
needs preview_hosts in the app's file.

Examples:
  vango-edge deploy app/
  vango-edge deploy app/ --preview pr-7";

pub(super) const PROMOTE: &str = "\
Production gets exactly that artifact, under a new epoch: an allocation of it is made ready first, then
the owner moves, then what served before drains, for at most process.drain_timeout. It waits until
the move is over. The app's promotion policy (`promotion` in its file) is asked of the evidence; where it is
not satisfied, or the new allocation does not become ready, production stays where it is, and the command
exits with 1.

Examples:
  vango-edge promote studylab pr-7
  vango-edge promote studylab sha256:b97c0abf0c69…";

pub(super) const REMOVE: &str = "\
Its deployments go when nothing needs their artifacts; production cannot be removed.

Example:
  vango-edge remove studylab/pr-7";

pub(super) const COLLECT: &str = "\
It prints what was removed: deployments, blobs of artifacts, unpacked trees. What assets.retention and
assets.keep_deployments keep stays.

Example:
  vango-edge collect";

pub(super) const ROLLBACK: &str = "\
As `promote`, to the artifact that owned the routes before, under a new epoch; no evidence is asked for.
Twice in a row goes there and back again.

Example:
  vango-edge rollback studylab";

pub(super) const EVIDENCE: &str = "\
Requests and errors are counted by the edge; checks are named by what runs them, and the last word on each
name counts. It says whether the app's policy is satisfied, and what it misses.

Examples:
  vango-edge evidence studylab pr-7
  vango-edge evidence studylab pr-7 --check smoke=passed --note 'run 4711'
  vango-edge evidence studylab production --statement";

pub(super) const OPENAPI: &str = "\
OpenAPI 3.1, made from the code that serves it; no edge has to run.

Example:
  vango-edge openapi > openapi.json";

pub(super) const COMPLETIONS: &str = "\
Examples:
  vango-edge completions bash > /etc/bash_completion.d/vango-edge
  vango-edge completions zsh > /usr/local/share/zsh/site-functions/_vango-edge";

pub(super) const MAN: &str = "\
Example:
  vango-edge man /usr/local/share/man/man1 && man vango-edge-explain";

pub(super) const HEALTH: &str = "\
It asks /readyz, which needs no token: for a supervisor or a container's health check. While the edge
starts or drains it exits with 1.

Example:
  vango-edge health";

pub(super) const ROUTES: &str = "\
Columns: the host; whose it is; the owner's epoch, which only grows; its deployment and artifact; its state:
hot, asleep, frozen, failed, or that of the wake that goes on; up or down for an app with upstreams.

Example:
  vango-edge routes studylab";

pub(super) const PS: &str = "\
Columns: the allocation; whose it is; which start (generation), under which epoch, of which artifact; its
state; its address and process; requests in flight, open live sockets, requests so far.

Example:
  vango-edge ps studylab";

pub(super) const OPS: &str = "\
Of each wake: how long it took to find an executor (reserve), to have the artifact (artifact), until the
process ran (start) and until it was ready (ready), and why it failed. Of each promotion: how far it is.

Example:
  vango-edge ops studylab";

pub(super) const AUDIT: &str = "\
Each unsafe request leaves a row: what was decided, whether it was forwarded, why, under which key or event.
More than 1000 rows are read page by page. Of deliveries that are not believed a flood leaves a few
rows a minute; the metrics have the count.

Examples:
  vango-edge audit studylab --since 24h
  vango-edge audit --event evt_1PqV… --lines
  vango-edge audit studylab --key a1";

pub(super) const LEDGER: &str = "\
States: reserved (nothing was sent), forwarded (it is with the app), completed (the answer is kept),
completed_unreplayable (it was answered, the answer is not kept), refused (an event's app said no: the next
delivery is sent), released (it may be sent again), unknown (sent, and never answered: see `resolve`).

Examples:
  vango-edge ledger --state unknown
  vango-edge ledger studylab --key a1";

pub(super) const RESOLVE: &str = "\
Look into the app's own records first. The edge sends nothing now:
  carried-out      a repeat of an action is answered 409 response-not-replayable, a repeated event 200;
                   the app is not asked
  not-carried-out  the next repeat is given to the app, as the next attempt; if it was carried out after
                   all, it is then carried out twice
What is said is kept with the record and cannot be taken back. Another attempt than the one that the record
shows is refused.

Example:
  vango-edge resolve studylab/production/3a4f… 1 carried-out --note 'ada: the note is there'";

pub(super) const DEPLOYMENTS: &str = "\
Columns: the deployment; for which environment; its artifact; when it was made; its files and bytes;
whether it owns the environment's hosts.

Example:
  vango-edge deployments studylab";

pub(super) const LOGS: &str = "\
The last 64 KiB of its stdout and stderr, also of one that failed to start, as long as its environment's
log (runner.log_bytes) has them.

Example:
  vango-edge logs al-4sz3kfbtlfb75zso";

pub(super) const SLEEP: &str = "\
Requests in flight finish within the contract's process.drain_timeout; live sockets are closed with 1012
\"reconnect\", or rest where their route cuts (socket_end), until their users send something. Then the
process is stopped, or frozen where the contract says so. The owner and its epoch
stay, and the next request wakes it.

Example:
  vango-edge sleep studylab";

pub(super) const WAKE: &str = "\
It begins a wake or joins the one that goes on, and does not wait for its end: `ops` shows it. Where a start
failed a moment ago, it says for how long no new one is tried.

Example:
  vango-edge wake studylab/pr-7";

pub(super) const EXPLAIN: &str = "\
The steps are found by the same decisions that serve a request, on what is true now. A key's or an event's
record, and a session's, are not read.

Examples:
  vango-edge explain GET http://studylab.localhost/dashboard
  vango-edge explain POST http://studylab.localhost/actions/save -H 'Idempotency-Key: a1'";

pub(super) const TRACES: &str = "\
The edge keeps the last trace.ring requests in memory. Times in front of steps count from the request's
start.

Examples:
  vango-edge traces --steps -n 1
  vango-edge traces --app studylab --follow
  vango-edge traces --request 4bf92f3577b34da6a3ce929d0e0e4736";
