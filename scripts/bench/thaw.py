"""Wakes an app again and again, and says where the time goes. Called by scripts/bench/thaw."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

binary, file, app, count = *sys.argv[1:4], int(sys.argv[4])
with open(file) as said:
    said = json.load(said)
host, port = said["listen"][0].rsplit(":", 1)
admin = f"http://{said['admin']}"
GET = b"GET /dashboard HTTP/1.1\r\nHost: studylab.localhost\r\n\r\n"


def command(*arguments):
    done = subprocess.run(
        [binary, *arguments], env={**os.environ, "VANGO_EDGE_ADMIN": admin}, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{arguments}: {done.stderr}")
    return done.stdout


def ask(s):
    """Milliseconds to the first byte, and the request's id."""
    began = time.perf_counter()
    s.sendall(GET)
    read = s.recv(65536)
    first = time.perf_counter() - began
    while b"\r\n\r\n" not in read:
        read += s.recv(65536)
    head, body = read.split(b"\r\n\r\n", 1)
    fields = dict(f.split(b": ", 1) for f in head.lower().split(b"\r\n")[1:])
    left = int(fields[b"content-length"]) - len(body)
    while left > 0:
        left -= len(s.recv(65536))
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(head.decode())
    return first * 1e3, fields[b"x-request-id"].decode()


def get(path):
    with urllib.request.urlopen(admin + path, timeout=10) as answer:
        found = json.load(answer)
    return found.get("items", []) if isinstance(found, dict) else found


def trace(request):
    """It is written after its answer."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for found in get(f"/v1/traces?request={request}"):
            return found
        time.sleep(0.002)
    sys.exit(f"no trace of {request}")


def wakes(what, parts):
    s = socket.create_connection((host, int(port)))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ask(s)
    seen = {}
    for n in range(-5, count):
        command("sleep", "studylab")
        if what == "start":
            # The first froze it; this one stops it.
            command("sleep", "studylab")
        first, request = ask(s)
        found = trace(request)
        op = next(o for o in get("/v1/operations?limit=10") if o["id"] == found["operation"])
        at = {step["action"].split()[0]: step["at_us"] / 1e3 for step in found["steps"]}
        phases = {k.removesuffix("_us"): (v or 0) / 1e3 for k, v in op["phases"].items()}
        if (phases["thaw"] > 0) != (what == "thaw"):
            sys.exit(f"not a {what}: {op}")
        if n >= 0:
            for name, value in parts(first, at, phases).items():
                seen.setdefault(name, []).append(value)
    print(f"{count} {what}s, milliseconds:{'':32} {'p50':>7} {'p90':>7} {'p99':>7} {'most':>7}")
    for name, values in seen.items():
        values.sort()
        p = [values[min(count - 1, int(count * share))] for share in (0.5, 0.9, 0.99, 1)]
        print(f"  {name:<52} " + " ".join(f"{v:7.2f}" for v in p))


def of_a_thaw(first, at, phases):
    recorded, released, answered = at["Create"], at["Hold"], at["Run"]
    return {
        "request parsed, until the wake's answer": recorded,
        "  of it: reading what is in memory": phases["reserve"],
        "  of it: thawing": phases["thaw"],
        "request parsed, until it is released": released,
        "released, until the app's head": answered - released,
        "first byte, as the client sees it": first,
    }


def of_a_start(first, at, phases):
    own = phases["artifact"] + phases["spawn"] + phases["ready"]
    return {
        "artifact checked, allocation planned": phases["artifact"],
        "process spawned": phases["spawn"],
        "spawned, until it is ready": phases["ready"],
        "released, until the app's head": at["Run"] - at["Hold"],
        # No less than from ready to the first byte: what comes before the claim is in it too.
        "all of the edge's beside those (ready -> first byte)": first - own,
        "first byte, as the client sees it": first,
    }


command("deploy", app)
wakes("thaw", of_a_thaw)
wakes("start", of_a_start)
