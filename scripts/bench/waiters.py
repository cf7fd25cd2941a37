"""Opens N GETs to a sleeping app, and reports what holding them cost. Called by scripts/bench/waiters."""

import asyncio
import json
import sys
import time
import urllib.request
from datetime import datetime

listen, admin, pid, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
host, port = listen.rsplit(":", 1)
GET = b"GET /dashboard HTTP/1.1\r\nHost: studylab.localhost\r\nConnection: close\r\n\r\n"


def rss_kib():
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def held():
    """Requests held now, by the edge's own metric."""
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("vango_edge_held{") and "requests" in line:
                return int(float(line.split()[-1]))
    return 0


def operations():
    with urllib.request.urlopen(f"http://{admin}/v1/operations", timeout=10) as answer:
        found = json.load(answer)
    return found.get("items", []) if isinstance(found, dict) else found


async def get(gate, opened):
    """One GET; its status and when its answer was complete."""
    async with gate:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(GET)
        await writer.drain()
    opened.append(1)
    try:
        head = await reader.readuntil(b"\r\n")
        while await reader.read(65536):
            pass
        return int(head.split()[1]), time.time()
    finally:
        writer.close()


async def main():
    before = rss_kib()
    gate, opened = asyncio.Semaphore(200), []
    started = time.time()
    asked = [asyncio.create_task(get(gate, opened)) for _ in range(count)]
    peak, most_held, holding = before, 0, before
    while not all(task.done() for task in asked):
        now = await asyncio.to_thread(held)
        rss = rss_kib()
        peak = max(peak, rss)
        if now >= most_held:
            most_held, holding = now, rss
        await asyncio.sleep(0.2)
    done = await asyncio.gather(*asked, return_exceptions=True)
    answers = [a for a in done if isinstance(a, tuple)]
    last = max((at for _, at in answers), default=started)
    await asyncio.sleep(15)
    after = rss_kib()
    statuses = {}
    for status, _ in answers:
        statuses[status] = statuses.get(status, 0) + 1
    ops = operations()
    hot = next((o for o in ops if o["state"] == "hot"), None)
    rows = [
        ("requests opened", len(opened)),
        ("most held at once", most_held),
        ("answered 200", statuses.get(200, 0)),
        ("other answers", {s: n for s, n in statuses.items() if s != 200} or "none"),
        ("failed connections", count - len(answers)),
        ("wake operations", len(ops)),
        ("starts", sum(o["attempt"] for o in ops)),
        ("edge RSS before, MiB", f"{before / 1024:.1f}"),
        ("edge RSS while they are held, MiB", f"{holding / 1024:.1f}"),
        ("edge RSS at peak, MiB", f"{peak / 1024:.1f}"),
        ("edge RSS 15 s after, MiB", f"{after / 1024:.1f}"),
        ("KiB for each held request", f"{(holding - before) / max(most_held, 1):.1f}"),
        ("KiB at peak for each", f"{(peak - before) / max(most_held, 1):.1f}"),
    ]
    if hot:
        asked_at = datetime.fromisoformat(hot["requested"].replace("Z", "+00:00")).timestamp()
        ready_at = asked_at + sum(v or 0 for v in hot["phases"].values()) / 1e6
        rows += [
            ("wake, s", f"{ready_at - asked_at:.2f}"),
            ("ready to last answer, s", f"{last - ready_at:.2f}"),
        ]
    rows.append(("first GET to last answer, s", f"{last - started:.2f}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    return 0 if statuses.get(200, 0) == count and sum(o["attempt"] for o in ops) == 1 else 1


sys.exit(asyncio.run(main()))
