"""A client of another language: the library `websockets`, against the running edge.

Reads commands, one a line, from stdin and answers each with one line of JSON on stdout:
open [COOKIE] | inc | closed | quit
"""
import asyncio
import json
import sys

import websockets


async def main(port):
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    socket = None
    while line := (await lines.readline()).decode().strip():
        command, _, argument = line.partition(" ")
        if command == "open":
            socket = await websockets.connect(
                "ws://studylab.localhost/vango/live",
                host="127.0.0.1",
                port=port,
                origin="http://studylab.localhost",
                additional_headers={"Cookie": argument} if argument else {},
            )
            answer = json.loads(await socket.recv())
            answer["cookie"] = (socket.response.headers.get("Set-Cookie") or "").split(";")[0]
            # What it negotiates is the app's business, whatever is in between.
            answer["extensions"] = [e.name for e in socket.protocol.extensions]
        elif command == "inc":
            await socket.send(json.dumps({"type": "inc"}))
            answer = json.loads(await socket.recv())
        elif command == "closed":
            try:
                while True:
                    await socket.recv()
            except websockets.ConnectionClosed as end:
                answer = {"code": end.rcvd.code if end.rcvd else None}
        else:
            break
        print(json.dumps(answer), flush=True)


asyncio.run(main(int(sys.argv[1])))
