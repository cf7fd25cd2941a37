"""An app of gRPC's own library. Each call is a line in $HOME/calls, so that a test can ask what reached it."""

import os
import signal
import threading
import time
from concurrent import futures

import grpc

CALLS = os.path.join(os.environ["HOME"], "calls")


def note(line):
    with open(CALLS, "a") as calls:
        calls.write(line + "\n")


def echo(request, call):
    sent = dict(call.invocation_metadata())
    note("echo")
    call.send_initial_metadata((("seen-bin", sent.get("sent-bin", b"")), ("user", sent["user-agent"])))
    call.set_trailing_metadata((("last", "word"), ("last-bin", b"\x00\xff")))
    return request[::-1]


def left(request, call):
    """How long the client waits, in milliseconds."""
    note("left")
    return str(int(call.time_remaining() * 1000)).encode()


def fail(request, call):
    note("fail")
    call.set_trailing_metadata((("why", "so"),))
    call.abort(grpc.StatusCode.FAILED_PRECONDITION, "ünd so on 100 %")


def die(request, call):
    note("die")
    os._exit(3)


def begin(request, call):
    """Its answer begins, and breaks off."""
    call.send_initial_metadata((("begun", "yes"),))
    time.sleep(0.2)
    os._exit(3)


def calls(request, call):
    with open(CALLS) as lines:
        return lines.read().encode()


def count(request, call):
    for n in range(int(request)):
        yield str(n).encode()


def add(requests, call):
    return str(sum(len(request) for request in requests)).encode()


def refuse(requests, call):
    """Answers before the client has sent all."""
    call.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")


def talk(requests, call):
    call.add_callback(lambda: note("talk is over"))
    note("talk")
    for request in requests:
        yield request


KINDS = {
    "Echo": (grpc.unary_unary_rpc_method_handler, echo),
    "Keyed": (grpc.unary_unary_rpc_method_handler, echo),
    "Patient": (grpc.unary_unary_rpc_method_handler, echo),
    "Held": (grpc.unary_unary_rpc_method_handler, echo),
    "Left": (grpc.unary_unary_rpc_method_handler, left),
    "Fail": (grpc.unary_unary_rpc_method_handler, fail),
    "Begin": (grpc.unary_unary_rpc_method_handler, begin),
    "Die": (grpc.unary_unary_rpc_method_handler, die),
    "Calls": (grpc.unary_unary_rpc_method_handler, calls),
    "Count": (grpc.unary_stream_rpc_method_handler, count),
    "Add": (grpc.stream_unary_rpc_method_handler, add),
    "Refuse": (grpc.stream_unary_rpc_method_handler, refuse),
    "Talk": (grpc.stream_stream_rpc_method_handler, talk),
}


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        kind = KINDS.get(details.method.removeprefix("/test.Test/"))
        return kind and kind[0](kind[1])


while os.path.exists(os.environ.get("GATE", "")):
    time.sleep(0.02)
MOST = 64 << 20
sizes = [("grpc.max_receive_message_length", MOST), ("grpc.max_send_message_length", MOST)]
server = grpc.server(futures.ThreadPoolExecutor(20), handlers=[Service()], options=sizes)
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
told.wait()
server.stop(1).wait()
