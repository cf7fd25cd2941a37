"""The clients of scripts/bench/sockets."""
import asyncio
import json
import os
import random
import signal
import sys
import time

HEAD = (
    "GET /live?sid=s-{} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def private_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(l.split()[1]) for l in lines if l.startswith("Private"))


async def connect(address, n, name="bench.localhost"):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HEAD.format(n, name).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        writer.close()
        raise ConnectionError(head.split(b"\r\n")[0].decode())
    return reader, writer


async def open_all(address, sockets, name="bench.localhost"):
    gate = asyncio.Semaphore(64)

    async def one(n):
        async with gate:
            return await connect(address, n, name)

    return await asyncio.gather(*(one(n) for n in range(sockets)))


async def idle(sockets, targets):
    print(f"{'':14} {'before':>9} {'open':>9} {'each':>7} {'after':>9} {'kept each':>9}")
    for target in targets:
        name, address, pid = target.split("=")
        # Once, so that what is made once is made.
        for _, writer in await open_all(address, 64):
            writer.close()
        await asyncio.sleep(2)
        before = private_kib(pid)
        opened = await open_all(address, sockets)
        await asyncio.sleep(2)
        during = private_kib(pid)
        for _, writer in opened:
            writer.close()
        await asyncio.sleep(4)
        after = private_kib(pid)
        print(f"{name:14} {before:9} {during:9} {(during - before) / sockets:7.1f} {after:9} {(after - before) / sockets:9.1f}")


async def page(address, name="bench.localhost", path="/"):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def seen(address, path="/"):
    return json.loads((await page(address, path=path)).split(b"\r\n\r\n", 1)[1])


async def several(sockets, address, pid, survivors):
    """As many sockets for each of the allocations; the one with that process is killed."""
    opened = await open_all(address, sockets * (len(survivors) + 1), "pool.localhost")
    before = [(await seen(s, "/anew"))["accepted"] for s in survivors]
    lost = len(opened) - sum(before)
    await come_back(opened, lost, address, pid, "pool.localhost")
    for survivor, had in zip(survivors, before):
        now = await seen(survivor)
        print(f"a survivor with {had} sockets was given {now['accepted']} more: asked for at most {now['at_once']} at once, accepted at most {now['in_100_ms']} in 100 ms")


async def herd(sockets, address, pid):
    opened = await open_all(address, sockets)
    # An app that dies right after its start backs off; this one has proved itself.
    await asyncio.sleep(12)
    await come_back(opened, len(opened), address, pid, "bench.localhost")
    print("what the new allocation saw:", (await page(address)).rsplit(b"\r\n", 1)[1].decode())


async def come_back(opened, lost, address, pid, name):
    back, refused, slowest, pages, statuses = [], 0, 0.0, 0, {}
    over, all_back = asyncio.Event(), asyncio.Event()

    async def client(n, reader, writer):
        nonlocal refused
        while await reader.read(4096):
            pass
        writer.close()
        while True:
            # At once: worse than any browser.
            try:
                socket = await connect(address, n, name)
                back.append(time.monotonic())
                if len(back) == lost:
                    all_back.set()
                return socket
            except (OSError, asyncio.IncompleteReadError):
                refused += 1
                await asyncio.sleep(random.uniform(0.2, 0.6))

    async def visitor():
        nonlocal slowest, pages
        while not over.is_set():
            began = time.monotonic()
            answer = await page(address, name)
            status = answer[9:12].decode()
            statuses[status] = statuses.get(status, 0) + 1
            slowest = max(slowest, time.monotonic() - began)
            pages += 1
            await asyncio.sleep(0.02)

    visiting = asyncio.create_task(visitor())
    killed = time.monotonic()
    os.kill(int(pid), signal.SIGKILL)
    clients = [asyncio.create_task(client(n, *socket)) for n, socket in enumerate(opened)]
    await all_back.wait()
    over.set()
    await visiting
    for one in clients:
        # Those that were not on it are open as before.
        one.cancel()
    first, last = min(back) - killed, max(back) - killed
    half = sorted(back)[len(back) // 2] - killed
    print(f"all {len(back)} back after {last:.2f} s (the first after {first:.2f} s, half after {half:.2f} s); told to come later: {refused}")
    print(f"pages meanwhile: {pages}, by status {statuses}, the slowest {slowest * 1000:.0f} ms")


if sys.argv[1] == "idle":
    asyncio.run(idle(int(sys.argv[2]), sys.argv[3:]))
elif sys.argv[1] == "several":
    asyncio.run(several(int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
else:
    asyncio.run(herd(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
