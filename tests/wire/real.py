"""Real servers behind a real edge, asked by real clients: what each server saw must be what was sent.

The servers are Node's http, Flask on gunicorn, Go's net/http and PHP's built-in one (tests/wire/servers); the
clients curl, Python's http.client, the Python library h2, Node's fetch, Chromium, and raw sockets where a
client would correct what is wrong. `scripts/wire` makes the environment and starts this.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from probe import CASES

BIN = os.environ["VANGO_EDGE_BIN"]
WORK = os.environ["WORK"]
HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 60
started = []
failures = []
checks = 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(name, command, **more):
    log = open(f"{WORK}/{name}.log", "wb")
    environment = dict(os.environ, **more.pop("env", {}))
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, **more)
    started.append(process)
    return process


def until(what, condition):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise SystemExit(f"not within {PATIENCE} s: {what}")


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def check(name, condition, found=None):
    global checks
    checks += 1
    if not condition:
        failures.append(name)
        print(f"  NOT: {name}: {str(found)[:600]}")


class Server:
    """One of the servers, and what it has carried out."""

    def __init__(self, name, command, env=None, cwd=None):
        self.name, self.port = name, free_port()
        command = [part.replace("{port}", str(self.port)) for part in command]
        start(name, command, env=dict(env or {}, PORT=str(self.port)), cwd=cwd)
        until(f"{name} listens", lambda: listens(self.port))

    @property
    def host(self):
        return f"{self.name}.localhost"

    def carried_out(self):
        with open(f"{WORK}/{self.name}.log", errors="replace") as log:
            lines = [line[line.index("{"):] for line in log if '"target"' in line]
        return [json.loads(line) for line in lines]


def raw(port, data, shut=False, timeout=20):
    """All that comes back for these bytes, until the connection ends or nothing more is owed."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as s:
        s.sendall(data)
        if shut:
            s.shutdown(socket.SHUT_WR)
        got = b""
        try:
            while more := s.recv(65536):
                got += more
        except TimeoutError:
            got += b" (timed out)"
        except ConnectionResetError:
            got += b" (reset)"
    return got


def closing(server, line, headers="", body=b"", shut=False):
    head = f"{line}\r\nHost: {server.host}\r\nConnection: close\r\n{headers}\r\n"
    return raw(edge.port, head.encode("latin-1") + body, shut)


def status_of(answer):
    finals = re.findall(rb"HTTP/1\.[01] ([2-5]\d\d)", answer)
    return int(finals[0]) if finals else None


def seen_in(answer):
    body = answer.split(b"\r\n\r\n", 1)[1] if b"\r\n\r\n" in answer else b""
    start_, end = body.find(b"{"), body.rfind(b"}")
    try:
        return json.loads(body[start_:end + 1])
    except ValueError:
        return {}


class Edge:
    def __init__(self, servers):
        subprocess.run([os.path.join(HERE, "../../scripts/dev-cert"), WORK, *[server.host for server in servers]], check=True,
                       stdout=subprocess.DEVNULL)
        os.makedirs(f"{WORK}/apps")
        with open(f"{WORK}/secret", "w") as f:
            f.write("whsec_of_no_account_at_all")
        for server in servers:
            with open(f"{WORK}/apps/{server.name}.toml", "w") as f:
                f.write(f'''app = "{server.name}"
hosts = ["{server.host}"]
upstreams = ["127.0.0.1:{server.port}"]
secrets = {{ STRIPE = {{ file = "{WORK}/secret" }} }}
[[route]]
path = "/webhooks/stripe"
class = "webhook"
provider = "stripe"
secret = "STRIPE"
[[route]]
path = "/actions/pay"
class = "action"
idempotency = "edge"
principal = "header:X-Student"
[[route]]
path = "/small"
class = "page"
max_body = "1KiB"
[[route]]
path = "/*"
class = "page"
''')
        with open(f"{WORK}/edge.toml", "w") as f:
            f.write('''[server]
listen = ["127.0.0.1:0"]
[[server.tls]]
listen = "127.0.0.1:0"
certificates = [{ cert = "cert.pem", key = "key.pem" }]
[admin]
listen = "127.0.0.1:0"
[state]
dir = "state"
[apps]
dir = "apps"
[log]
level = "warn"
''')
        with open(f"{WORK}/addresses", "wb") as out, open(f"{WORK}/edge.log", "wb") as log:
            self.process = subprocess.Popen([BIN, "run", "-c", f"{WORK}/edge.toml"], stdout=out, stderr=log,
                                            start_new_session=True)
        started.append(self.process)
        text = until("the edge listens", lambda: open(f"{WORK}/addresses").read().strip())
        addresses = json.loads(text.splitlines()[0])
        listen = addresses["listen"]
        self.port = int(listen[0].rsplit(":", 1)[1])
        tls = addresses.get("tls", listen[1:])
        self.tls = int((tls if isinstance(tls, str) else tls[0]).rsplit(":", 1)[1])
        self.ca = f"{WORK}/ca.pem"

    def curl(self, server, path, *options, tls=False):
        port = self.tls if tls else self.port
        url = f"{'https' if tls else 'http'}://{server.host}:{port}{path}"
        done = subprocess.run(
            ["curl", "-sS", "-i", "-m", "30", "--path-as-is", "--cacert", self.ca,
             "--resolve", f"{server.host}:{port}:127.0.0.1", *options, url],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        return done.stdout


class H2:
    """A connection by the Python library h2, which sends the frames that it is told to."""

    def __init__(self, server):
        context = ssl.create_default_context(cafile=edge.ca)
        context.set_alpn_protocols(["h2"])
        tcp = socket.create_connection(("127.0.0.1", edge.tls), timeout=20)
        self.tls = context.wrap_socket(tcp, server_hostname=server.host)
        self.server = server
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False))
        self.h2.initiate_connection()
        self.tls.sendall(self.h2.data_to_send())

    def ask(self, method, path, headers=(), pieces=None):
        """Status and body; the pieces are DATA frames, the last of which ends the stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", self.server.host), (":path", path), *headers]
        self.h2.send_headers(stream, head, end_stream=pieces is None)
        for at, piece in enumerate(pieces or []):
            self.h2.send_data(stream, piece, end_stream=at == len(pieces) - 1)
        self.tls.sendall(self.h2.data_to_send())
        status, interim, body = None, [], b""
        while True:
            more = self.tls.recv(65536)
            if not more:
                return status, interim, body
            for event in self.h2.receive_data(more):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[":status"])
                elif isinstance(event, h2.events.InformationalResponseReceived):
                    interim.append(int(dict(event.headers)[":status"]))
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.tls.sendall(self.h2.data_to_send())
                    return status, interim, body
                elif isinstance(event, h2.events.StreamReset):
                    return ("reset", event.error_code), interim, body
            self.tls.sendall(self.h2.data_to_send())


GUARDED = [
    "//webhooks/stripe", "/webhooks//stripe", "/webhooks%2fstripe", "/webhooks/stripe/", "/webhooks/stripe;x",
    "/Webhooks/stripe", "/x/..;/webhooks/stripe", "/webhooks%252fstripe", "/webhooks\\stripe",
    "/x/../webhooks/stripe", "/x/%2e%2e/webhooks/stripe", "//actions/pay", "/actions%2Fpay", "/ACTIONS/pay", "/actions/pay/",
    "/actions/./pay", "/%61ctions//pay", "/actions/pay%2f", "/actions/pay%3bx",
]


def guarded_paths(server):
    before = len(server.carried_out())
    for path in GUARDED:
        answer = closing(server, f"POST {path} HTTP/1.1", "Content-Length: 2\r\n", b"{}")
        check(f"{server.name}: POST {path} unsigned, no key, is refused", status_of(answer) in (400, 401, 403), answer[:200])
    after = server.carried_out()[before:]
    check(f"{server.name}: none of them was carried out", after == [], after)


def bytes_of_the_target(server):
    for target in ["/caf%e8/%7Euser?x=%7E&y=%e8", "/a/b;c=1/d", "/a//b", "/%41"]:
        seen = seen_in(closing(server, f"GET {target} HTTP/1.1"))
        check(f"{server.name} sees {target} as it was sent", seen.get("target") == target, seen)
    for line in ["GET /pa th HTTP/1.1", "GET /a#b HTTP/1.1"]:
        check(f"{server.name}: {line} is 400", status_of(closing(server, line)) == 400)
    long = closing(server, f"GET /{'a' * 70000} HTTP/1.1")
    check(f"{server.name}: a target of 70,000 bytes is 414", status_of(long) == 414, long[:200])


def fields(server):
    connection = H2(server)
    status, _, body = connection.ask("GET", "/", [("cookie", "a=1"), ("cookie", "b=2")])
    cookie = json.loads(body)["headers"].get("cookie") if status == 200 else status
    check(f"{server.name}: two HTTP/2 cookie fields are one line", cookie == ["a=1; b=2"], cookie)
    answer = closing(server, "GET / HTTP/1.1", "Vango.Edge.Webhook.Verdict: new\r\nVango_Edge_Webhook_Verdict: new\r\n"
                     "VANGO-EDGE-WEBHOOK-VERDICT: new\r\nX-Forwarded-For: 6.6.6.6\r\nX.Forwarded.For: 6.6.6.6\r\n")
    headers = seen_in(answer).get("headers", {})
    folded = [n for n in headers if "verdict" in re.sub(r"[^a-z]", "-", n)]
    check(f"{server.name}: no spelling of the edge's own fields arrives", not folded and "6.6.6.6" not in str(headers), headers)
    for value in ["X-Forwarded-For", "close, X-Forwarded-Host", "a, b, c, d, e, f, g, h, i, j"]:
        head = f"GET / HTTP/1.1\r\nHost: {server.host}\r\nConnection: {value}, close\r\n\r\n"
        answer = raw(edge.port, head.encode())
        headers = seen_in(answer).get("headers", {})
        ok = status_of(answer) == 400 or headers.get("x-forwarded-for") == ["127.0.0.1"]
        check(f"{server.name}: Connection: {value} takes nothing of the edge's away", ok, answer[:300])
    answer = closing(server, "GET / HTTP/1.1", "Upgrade: websocket\r\n")
    check(f"{server.name}: Upgrade without Connection is a plain request",
          status_of(answer) == 200 and "upgrade" not in seen_in(answer).get("headers", {}), answer[:300])


def bodies(server):
    sent = bytes(range(256)) * 4000
    for version in ["--http1.0", "--http1.1"]:
        with tempfile.NamedTemporaryFile(dir=WORK) as f:
            f.write(sent)
            f.flush()
            answer = edge.curl(server, "/up", version, "--data-binary", f"@{f.name}", "-H", "Expect:")
        check(f"{server.name}: curl {version} uploads 1 MB", seen_in(answer).get("body") == sent.hex(), answer[:200])
    with tempfile.NamedTemporaryFile(dir=WORK) as f:
        f.write(sent)
        f.flush()
        for options in (["--http1.1"], ["--http1.1", "-H", "Transfer-Encoding: chunked"], ["--http2"]):
            answer = edge.curl(server, "/up", *options, "--data-binary", f"@{f.name}", "-H", "Expect: 100-continue", tls=True)
            check(f"{server.name}: curl {options} over TLS uploads 1 MB after 100", seen_in(answer).get("body") == sent.hex(), answer[:300])
    connection = H2(server)
    status, _, body = connection.ask("POST", "/up", pieces=[b"hello", b""])
    check(f"{server.name}: an upload that ends with an empty DATA frame", status == 200 and json.loads(body)["body"] == b"hello".hex(), (status, body))
    # A GET with such a body, and then requests of others on the pooled connections.
    wrong = []
    for _ in range(30):
        connection.ask("GET", "/get", pieces=[b"x", b""])
        answer = edge.curl(server, "/other")
        if status_of(answer) != 200 or seen_in(answer).get("target") != "/other":
            wrong.append(answer[:120])
    check(f"{server.name}: a GET with a body over HTTP/2 spoils no other request", not wrong, wrong[:2])
    answer = closing(server, "POST /up HTTP/1.1", "Content-Length: 3\r\nContent-Length: 3\r\n", b"abc")
    length = seen_in(answer).get("headers", {}).get("content-length", ["3"])
    check(f"{server.name}: two equal lengths are one, or 400", status_of(answer) == 400 or length == ["3"], answer[:300])
    answer = closing(server, "POST /up HTTP/1.1", "Transfer-Encoding: chunked\r\n", b"5;\nhello\r\n0\r\n\r\n")
    check(f"{server.name}: a bare LF in a chunk extension is 400", status_of(answer) == 400, answer[:200])
    big = b"x" * 20_000_000
    answer = edge.curl(server, "/small", "--http1.1", "-H", "Expect:", "--data-binary", f"@{write('big', big)}")
    check(f"{server.name}: an upload of 20 MB to a small route is told 413", status_of(answer) == 413, answer[-300:])


def write(name, data):
    path = f"{WORK}/{name}"
    if not os.path.exists(path):
        with open(path, "wb") as f:
            f.write(data)
    return path


def answers(server):
    answer = raw(edge.port, f"GET /stream HTTP/1.0\r\nHost: {server.host}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    check(f"{server.name}: an HTTP/1.0 client gets a body without chunk sizes",
          body == b"one,two" and b"transfer-encoding" not in head.lower(), answer)
    for line, body in [("GET / HTTP/1.1", b""), ("POST /half HTTP/1.1", b"hi")]:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        answer = closing(server, line, length, body, shut=True)
        check(f"{server.name}: {line} of a client that then shuts its side down is answered", status_of(answer) == 200, answer[:200])
    for method in ["HEAD", "OPTIONS", "PROPFIND", "DELETE"]:
        if (server.name, method) == ("gunicorn", "OPTIONS"):
            continue
        answer = edge.curl(server, "/m", "-X", method, *(["-I"] if method == "HEAD" else []))
        check(f"{server.name}: {method} arrives", status_of(answer) == 200, answer[:200])
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
    for n in range(200):
        connection.request("GET", f"/n{n}", headers={"Host": server.host})
        response = connection.getresponse()
        seen = json.loads(response.read())
        if seen["target"] != f"/n{n}":
            check(f"{server.name}: http.client gets its own answers", False, seen)
            break
    else:
        check(f"{server.name}: 200 requests of http.client on one connection", True)
    connection.close()


def node_only(server):
    answer = edge.curl(server, "/early", "--http1.1")
    check("103 over HTTP/1.1", b"HTTP/1.1 103" in answer and status_of(answer) == 200, answer[:300])
    status, interim, _ = H2(server).ask("GET", "/early")
    check("103 over HTTP/2", status == 200 and interim == [103], (status, interim))
    answer = raw(edge.port, f"GET /early HTTP/1.0\r\nHost: {server.host}\r\n\r\n".encode())
    check("no 103 to HTTP/1.0", b" 103" not in answer and status_of(answer) == 200, answer[:300])
    answer = edge.curl(server, "/date")
    check("the app's own Date is kept", b"Mon, 02 Jan 2006 15:04:05 GMT" in answer, answer[:300])
    script = f"""
      const url = 'http://127.0.0.1:{edge.port}'
      const { '{' } request { '}' } = await import('node:http')
      const ask = (options, body) => new Promise((done, fail) => {{
        const r = request(url + options.path, {{ ...options, headers: {{ Host: '{server.host}', ...options.headers }} }}, (answer) => {{
          let text = ''
          answer.on('data', (c) => (text += c)).on('end', () => done([answer.statusCode, text]))
        }}).on('error', fail)
        r.end(body)
      }})
      const [status, text] = await ask({{ path: '/node', method: 'POST', headers: {{ 'Transfer-Encoding': 'chunked', Expect: '100-continue' }} }}, 'abc')
      console.log(status, JSON.parse(text).body)
    """
    out = subprocess.run(["node", "--input-type=module", "-e", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60).stdout
    check("Node's client", out.strip() == f"200 {b'abc'.hex()}", out)


def chromium(server):
    program = shutil.which("chromium")
    if not program:
        print("  (no Chromium here: left out)")
        return
    profile = tempfile.mkdtemp(dir=WORK)
    done = subprocess.run(
        [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--ignore-certificate-errors",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=10000",
         f"--user-data-dir={profile}", "--dump-dom", f"https://{server.host}:{edge.tls}/page"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120,
    ).stdout
    wanted = ["get /a%e8?x=%7E", f"post {b'a=1'.hex()}", "upload 300000", "stream one,two"]
    check("Chromium's fetch over HTTPS and HTTP/2", all(w in done for w in wanted), done[-800:])


def short_keep_alive(server):
    """An app that closes its idle connections after a moment: no GET may notice."""
    wrong = []
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=20)
    for n in range(1000):
        connection.request("GET", f"/k{n}", headers={"Host": server.host})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            wrong.append((n, response.status, body[:100]))
    check("1,000 GETs of an app that closes after 1 ms", not wrong, wrong[:3])


def probe(server):
    """tests/wire/probe.py, with a request behind each that must not be taken for a part of it."""
    for name, section, data, statuses, body in CASES:
        data = data.replace("\r\nH\r\n", f"\r\nHost: {server.host}\r\n").replace("node.localhost", server.host)
        before = len(server.carried_out())
        answer = raw(edge.port, data.encode("latin-1"), shut=True)
        status = status_of(answer) or 0
        good = status in statuses
        if good and status == 200 and body is not None:
            good = bytes.fromhex(seen_in(answer).get("body", "")).decode("latin-1") == body
        if status != 200:
            good = good and len(server.carried_out()) == before
        check(f"{server.name}: {name} (RFC {section})", good, answer[:300])


def attempt(part, server):
    try:
        part(server)
    except (OSError, ValueError, KeyError, http.client.HTTPException, h2.exceptions.ProtocolError) as e:
        check(f"{server.name}: {part.__name__}", False, repr(e))


def main():
    global edge
    gunicorn = os.path.join(os.path.dirname(sys.executable), "gunicorn")
    servers = [
        Server("node", ["node", f"{HERE}/servers/node.mjs"]),
        Server("gunicorn", [gunicorn, "-w", "1", "--threads", "4", "--keep-alive", "5", "-b", "127.0.0.1:{port}", "flask_app:app"],
               cwd=f"{HERE}/servers", env={"PYTHONDONTWRITEBYTECODE": "1"}),
        Server("go", [os.environ["GO_SERVER"]]),
        Server("php", ["php", "-S", "127.0.0.1:{port}", f"{HERE}/servers/router.php"], env={"PHP_CLI_SERVER_WORKERS": "4"}),
    ]
    brief = Server("brief", ["node", f"{HERE}/servers/node.mjs"], env={"KEEP_ALIVE_MS": "1"})
    edge = Edge([*servers, brief])
    for server in servers:
        until(f"the edge answers for {server.name}", lambda: status_of(closing(server, "GET / HTTP/1.1")) == 200)
        print(server.name)
        for part in (guarded_paths, bytes_of_the_target, fields, bodies, answers):
            attempt(part, server)
    for part, server in ((probe, servers[0]), (node_only, servers[0]), (chromium, servers[0]), (short_keep_alive, brief)):
        attempt(part, server)
    print(f"{checks} checks, {len(failures)} failed")
    return 1 if failures else 0


def stop():
    for process in reversed(started):
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
    for process in started:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    status = main()
finally:
    stop()
sys.exit(status)
