"""The clients of scripts/bench/sockets."""
import asyncio
import os
import random
import signal
import sys
import time

HEAD = (
    "GET /live?sid=s-{} HTTP/1.1\r\nHost: bench.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def private_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return sum(int(l.split()[1]) for l in lines if l.startswith("Private"))


async def connect(address, n):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HEAD.format(n).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        writer.close()
        raise ConnectionError(head.split(b"\r\n")[0].decode())
    return reader, writer


async def open_all(address, sockets):
    gate = asyncio.Semaphore(64)

    async def one(n):
        async with gate:
            return await connect(address, n)

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


async def page(address):
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nHost: bench.localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


async def herd(sockets, address, pid):
    opened = await open_all(address, sockets)
    # An app that dies right after its start backs off; this one has proved itself.
    await asyncio.sleep(12)
    back, refused, slowest, pages, statuses = [], 0, 0.0, 0, {}
    over = asyncio.Event()

    async def client(n, reader, writer):
        nonlocal refused
        while await reader.read(4096):
            pass
        writer.close()
        while True:
            # At once: worse than any browser.
            try:
                socket = await connect(address, n)
                back.append(time.monotonic())
                return socket
            except (OSError, asyncio.IncompleteReadError):
                refused += 1
                await asyncio.sleep(random.uniform(0.2, 0.6))

    async def visitor():
        nonlocal slowest, pages
        while not over.is_set():
            began = time.monotonic()
            answer = await page(address)
            status = answer[9:12].decode()
            statuses[status] = statuses.get(status, 0) + 1
            slowest = max(slowest, time.monotonic() - began)
            pages += 1
            await asyncio.sleep(0.02)

    visiting = asyncio.create_task(visitor())
    killed = time.monotonic()
    os.kill(int(pid), signal.SIGKILL)
    kept = await asyncio.gather(*(client(n, *socket) for n, socket in enumerate(opened)))
    over.set()
    await visiting
    first, last = min(back) - killed, max(back) - killed
    half = sorted(back)[len(back) // 2] - killed
    print(f"all {len(kept)} back after {last:.2f} s (the first after {first:.2f} s, half after {half:.2f} s); told to come later: {refused}")
    print(f"pages meanwhile: {pages}, by status {statuses}, the slowest {slowest * 1000:.0f} ms")
    print("what the new allocation saw:", (await page(address)).rsplit(b"\r\n", 1)[1].decode())


if sys.argv[1] == "idle":
    asyncio.run(idle(int(sys.argv[2]), sys.argv[3:]))
else:
    asyncio.run(herd(int(sys.argv[2]), sys.argv[3], sys.argv[4]))
