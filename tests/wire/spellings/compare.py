"""Spellings of two guarded paths, to servers straight and through the edge (see scripts/spellings)."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

HERE = Path(__file__).parent
JUNK = ["", "x", ".", "..", "%2e", "%2e%2e", "..;", "x;y", "index.php", "%2f", "..%2f", "x/..", "%20"]
BETWEEN = ["/"] * 12 + [
    "//", "%2f", "%2F", "%5c", "/./", "/x/../", "/x/..;/", "/%2e/", ";/", ";a=b/", "%252f", "%c0%af",
]  # fmt: skip
BEHIND = [""] * 6 + [
    "/", "//", ".", ".json", ";x", "%3fx", "%23x", "%20", "%2500", "?x", "/.", "/x/..", "%2f", "/;x",
]  # fmt: skip


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spelling(dice):
    def letter(c):
        pick = dice.random()
        if pick < 0.03:
            return f"%{ord(c):02x}"
        if pick < 0.04:
            return f"%25{ord(c):02x}"
        return c.upper() if pick < 0.07 else c

    out = "/" + dice.choice(JUNK) if dice.random() < 0.2 else ""
    for segment in dice.choice([("webhooks", "stripe"), ("actions", "pay")]):
        out += dice.choice(BETWEEN) + "".join(map(letter, segment))
    out += dice.choice(BEHIND)
    return out if out.startswith("/") else "/" + out


def post(port, target, host):
    with socket.create_connection(("127.0.0.1", port), 20) as s:
        head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        s.sendall(head.encode())
        answer = b""
        while piece := s.recv(65536):
            answer += piece
    return answer


def servers(work):
    """Each server's name and command, less its port."""
    yield "flask", [sys.executable, HERE / "flask_app.py"], []
    yield "node", ["node", HERE / "folds.mjs"], []
    if shutil.which("php"):
        yield "php", ["php", "-S"], [HERE / "front.php"]
    if shutil.which("go"):
        subprocess.run(["go", "build", "-o", work / "mux", HERE / "mux.go"], check=True)
        yield "go", [work / "mux"], []


def configure(work, ports, listen):
    (work / "apps").mkdir()
    (work / "secret").write_text("whsec_a")
    (work / "edge.toml").write_text(
        f'[server]\nlisten = ["127.0.0.1:{listen}"]\n[admin]\nlisten = "127.0.0.1:0"\n'
        '[state]\ndir = "state"\n[apps]\ndir = "apps"\n'
    )
    for name, port in ports.items():
        (work / f"apps/{name}.toml").write_text(
            f'app = "{name}"\nhosts = ["{name}.test"]\nupstreams = ["127.0.0.1:{port}"]\n'
            f'secrets = {{ S = {{ file = "{work}/secret" }} }}\n'
            '[[route]]\npath = "/webhooks/stripe"\nclass = "webhook"\nprovider = "stripe"\nsecret = "S"\n'
            '[[route]]\npath = "/actions/*"\nclass = "action"\nidempotency = "app"\n'
        )


def until(what, condition):
    deadline = monotonic() + 30
    while monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        sleep(0.05)
    sys.exit(f"not within 30 s: {what}")


def main():
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    started = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        try:
            ports = {}
            for name, command, more in servers(work):
                port = ports[name] = free_port()
                at = f"127.0.0.1:{port}" if name == "php" else str(port)
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                started.append(subprocess.Popen([*command, at, *more], **quiet))
                until(f"{name} answers", lambda p=port: post(p, "/", "x"))
            listen = free_port()
            configure(work, ports, listen)
            edge = [os.environ["VANGO_EDGE_BIN"], "run", "-c", work / "edge.toml"]
            started.append(subprocess.Popen(edge, stdout=subprocess.DEVNULL))
            for name in ports:
                until(f"{name} is up", lambda n=name: b" 404 " in post(listen, "/", f"{n}.test"))
            compare(count, random.Random(seed), ports, listen)
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def compare(count, dice, ports, listen):
    took = dict.fromkeys(ports, 0)
    refused, around = 0, []

    def ask(target):
        return target, [
            (name, b"took " in post(port, target, "x"), post(listen, target, f"{name}.test"))
            for name, port in ports.items()
        ]

    with ThreadPoolExecutor(4) as pool:
        for target, answers in pool.map(ask, [spelling(dice) for _ in range(count)]):
            for name, straight, through in answers:
                took[name] += straight
                refused += b"problems/bad-path" in through
                if b"took " in through:
                    around.append(f"{name}: {target}")
    print(f"{count} spellings; carried out straight: {took}; refused as bad-path: {refused}")
    if not all(took.values()):
        sys.exit("a server carried nothing out, so that nothing was compared with it")
    if around:
        sys.exit("carried out through the edge, unsigned and without a key:\n" + "\n".join(around))


main()
