"""A client of gRPC's own library: client.py ADDRESS [CA]. Each line of its input is one call, as JSON, and is
answered with what came of it, as JSON."""

import base64
import json
import queue
import sys
import time

import grpc

HOST = "studylab.localhost"
MOST = 64 << 20
options = [
    ("grpc.default_authority", HOST),
    ("grpc.max_receive_message_length", MOST),
    ("grpc.max_send_message_length", MOST),
    # What comes of a call is what is looked at.
    ("grpc.enable_retries", 0),
]
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    channel = grpc.secure_channel(
        sys.argv[1], credentials, options + [("grpc.ssl_target_name_override", HOST)]
    )
else:
    channel = grpc.insecure_channel(sys.argv[1], options)


def shown(metadata):
    def text(value):
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value

    return {key: text(value) for key, value in metadata or ()}


def unary(to, said):
    message = said.get("text", "x" * said.get("size", 0)).encode()
    reply, call = channel.unary_unary(to).with_call(
        message, timeout=said.get("timeout", 60), metadata=list(said.get("metadata", {}).items()) +
        [("sent-bin", b"\x00\x01\xff")])
    got = reply.decode() if len(reply) < 10000 else len(reply)
    return call, {"reply": got, "initial": shown(call.initial_metadata())}


def count(to, said):
    call = channel.unary_stream(to)(said["text"].encode(), timeout=60)
    return call, {"reply": [piece.decode() for piece in call]}


def add(to, said):
    pieces = (b"x" * said["size"] for _ in range(said["pieces"]))
    reply, call = channel.stream_unary(to).with_call(pieces, timeout=60)
    return call, {"reply": reply.decode()}


def refuse(to, said):
    def endless():
        while True:
            yield b"x" * 1000
            time.sleep(0.01)

    reply, call = channel.stream_unary(to).with_call(endless(), timeout=60)
    return call, {"reply": reply.decode()}


def talk(to, said):
    say = queue.Queue()
    call = channel.stream_stream(to)(iter(say.get, None), timeout=60)
    heard = []
    for n in range(said["pieces"]):
        # The next is said once the one before was heard.
        say.put(f"{n}".encode())
        heard.append(next(call).decode())
    if said.get("leave"):
        call.cancel()
    else:
        say.put(None)
        heard += [piece.decode() for piece in call]
    return call, {"reply": heard}


KINDS = {"Count": count, "Add": add, "Refuse": refuse, "Talk": talk}
for line in sys.stdin:
    said = json.loads(line)
    to = "/test.Test/" + said["to"]
    try:
        call, out = KINDS.get(said["to"], unary)(to, said)
    except grpc.RpcError as error:
        call, out = error, {}
    out |= {
        "code": call.code().name,
        "details": call.details(),
        "trailing": shown(call.trailing_metadata()),
    }
    print(json.dumps(out), flush=True)
