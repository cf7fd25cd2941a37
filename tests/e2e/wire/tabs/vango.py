"""An app for tests that speaks as a Vango app does (protocol 2.0), as far as a counter needs it.

Frames are `type:u8 flags:u8 length:u16be payload` in binary messages: 0 handshake, 1 event, 2 patches,
3 control. The state of a tab is in this process; it is also written to $SESSIONS, and read from there
by another process when the edge says "hydrate". As Vango's server it says goodbye with 1000 at SIGTERM.
Asked for a session it takes $STORE_TAKES seconds, and answers one question after the other.
"""
import asyncio
import os
import pathlib
import secrets
import signal
import struct
import sys

# Nothing is written beside the app: the edge would say so, and clean up.
sys.dont_write_bytecode = True
import echo

SESSIONS = pathlib.Path(os.environ["SESSIONS"])
PAGE = pathlib.Path(__file__).with_name("vango.html").read_bytes()
counts = {}
open_sockets = set()
store = asyncio.Lock()


def string(payload, at):
    length, shift = 0, 0
    while True:
        byte = payload[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return payload[at : at + length].decode(), at + length
        shift += 7


def message(kind, payload):
    body = struct.pack(">BBH", kind, 0, len(payload)) + payload
    head = b"\x82" + bytes([len(body)]) if len(body) < 126 else b"\x82\x7e" + struct.pack(">H", len(body))
    return head + body


async def frame(reader):
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
    mask = await reader.readexactly(4)
    payload = await reader.readexactly(length)
    return first & 0x0F, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


async def live(reader, writer, headers):
    echo.switch(writer, headers)
    _, hello = await frame(reader)
    _csrf, at = string(hello, 6)
    sid, _ = string(hello, at)
    told = headers.get(b"vango-edge-resume", b"").decode() + ": " + headers.get(b"vango-edge-resume-reason", b"").decode()
    file = SESSIONS / (sid or "none")
    if sid not in counts:
        if told.startswith("hydrate") and file.exists():
            counts[sid] = int(file.read_text())
        else:
            sid = secrets.token_hex(16)
            counts[sid] = 0
    writer.write(message(0, bytes([0, len(sid)]) + sid.encode() + bytes(14)))

    def patch():
        text = f"{os.environ['VANGO_EDGE_ALLOCATION']} {counts[sid]} {told}".encode()
        writer.write(message(2, text))

    patch()
    open_sockets.add(writer)
    try:
        while True:
            opcode, payload = await frame(reader)
            if opcode == 8:
                return writer.write(b"\x88\x02\x03\xe8")
            if opcode == 2 and payload[0] == 1:
                counts[sid] += 1
                (SESSIONS / sid).write_text(str(counts[sid]))
                patch()
            if opcode == 2 and payload[0] == 3:
                writer.write(message(3, b"\x02" + payload[5:]))
            await writer.drain()
    finally:
        open_sockets.discard(writer)


async def vango(reader, writer, target, headers):
    if echo.upgrades(headers):
        return await live(reader, writer, headers)
    asked = target.removeprefix("/internal/sessions/")
    if asked == target:
        return echo.answer(writer, PAGE, kind=b"text/html")
    async with store:
        await asyncio.sleep(float(os.environ.get("STORE_TAKES", "0")))
    echo.answer(writer, b"", b"200 OK" if (SESSIONS / asked).exists() else b"404 Not Found")


async def main():
    def terminate():
        for writer in open_sockets:
            writer.write(b"\x88\x02\x03\xe8")
        asyncio.get_running_loop().call_later(0.1, os._exit, 0)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    await echo.serve(vango)


asyncio.run(main())
