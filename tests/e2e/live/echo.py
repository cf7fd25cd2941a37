"""An app for tests and scripts/bench/sockets: accepts any upgrade and sends every byte back as it came,
frames or not. With ?say in the target it first says, in one text frame, which Vango-Edge-* headers it saw.

Any other request is told how many sockets were accepted, how many of them in 100 ms, and how many asked at
once; GET /anew counts anew. Accepting takes $ACCEPT_TAKES seconds, in which others may ask.
"""
import asyncio
import base64
import hashlib
import json
import os
import time

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
asking = 0
most = 0
accepted = []


def upgrades(headers):
    return headers.get(b"upgrade", b"").lower() == b"websocket"


def switch(writer, headers):
    """Accepts an upgrade (RFC 6455 section 4.2.2)."""
    proof = base64.b64encode(hashlib.sha1(headers.get(b"sec-websocket-key", b"") + GUID).digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(head + b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n")


def answer(writer, body, status=b"200 OK", kind=b"application/json"):
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    writer.write(head % (status, kind, len(body)) + body)


async def serve(conversation):
    """Hands the target and the fields of one request of each connection to `conversation`, for good."""

    async def one(reader, writer):
        try:
            line, *fields = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            pairs = (field.partition(b":") for field in fields)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            await conversation(reader, writer, line.split(b" ")[1].decode(), headers)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    port = int(os.environ["PORT"])
    server = await asyncio.start_server(one, "127.0.0.1", port, limit=1 << 20, backlog=4096)
    async with server:
        await server.serve_forever()


async def echo(reader, writer, target, headers):
    global asking, most
    if not upgrades(headers):
        tenths = {}
        for at in accepted:
            tenths[int(at * 10)] = tenths.get(int(at * 10), 0) + 1
        seen = {"at_once": most, "in_100_ms": max(tenths.values(), default=0), "accepted": len(accepted)}
        if target == "/anew":
            most = 0
            accepted.clear()
        return answer(writer, json.dumps(seen).encode())
    asking += 1
    most = max(most, asking)
    await asyncio.sleep(float(os.environ.get("ACCEPT_TAKES", "0")))
    switch(writer, headers)
    await writer.drain()
    asking -= 1
    accepted.append(time.monotonic())
    if "say" in target:
        saw = {n.decode(): v.decode() for n, v in headers.items() if n.startswith((b"vango-edge-", b"sec-"))}
        text = json.dumps(saw).encode()
        writer.write(b"\x81\x7e" + len(text).to_bytes(2, "big") + text)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


if __name__ == "__main__":
    asyncio.run(serve(echo))
