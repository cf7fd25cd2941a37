"""The app under scripts/bench/sockets: echoes, and knows how many asked for a socket at once.

GET / says it; GET /anew says it and counts anew.
"""
import asyncio
import base64
import hashlib
import json
import os
import time

asking = 0
most = 0
accepted = []


async def serve(reader, writer):
    global asking, most
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade: websocket" not in head.lower():
            tenths = {}
            for at in accepted:
                tenths[int(at * 10)] = tenths.get(int(at * 10), 0) + 1
            body = json.dumps({"at_once": most, "in_100_ms": max(tenths.values(), default=0), "accepted": len(accepted)}).encode()
            if head.startswith(b"GET /anew "):
                most = 0
                accepted.clear()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
            return await writer.drain()
        asking += 1
        most = max(most, asking)
        # What accepting costs a small app; others may ask meanwhile.
        await asyncio.sleep(0.002)
        key = next(l for l in head.split(b"\r\n") if l.lower().startswith(b"sec-websocket-key:")).split(b":", 1)[1].strip()
        proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n")
        await writer.drain()
        asking -= 1
        accepted.append(time.monotonic())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), backlog=4096)
    async with server:
        await server.serve_forever()


asyncio.run(main())
