"""An app for tests: accepts any upgrade and sends every byte back as it came, frames or not.

With ?say in the target it first says, in one text frame, which Vango-Edge-* headers it saw.
"""
import asyncio
import base64
import hashlib
import json
import os


def accept(key):
    guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1(key + guid).digest())


async def serve(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            body = b"an echo\n"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
            return await writer.drain()
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(answer + b"Sec-WebSocket-Accept: " + accept(headers.get(b"sec-websocket-key", b"")) + b"\r\n\r\n")
        if b"say" in lines[0]:
            saw = {n.decode(): v.decode() for n, v in headers.items() if n.startswith(b"vango-edge-") or n.startswith(b"sec-")}
            text = json.dumps(saw).encode()
            writer.write(b"\x81\x7e" + len(text).to_bytes(2, "big") + text)
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), limit=1 << 20, backlog=4096)
    async with server:
        await server.serve_forever()


asyncio.run(main())
