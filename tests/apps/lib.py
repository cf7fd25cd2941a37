"""What the checks in Python share. The same variables as in lib.sh."""
import os
import ssl
import subprocess

import httpx
from websockets.sync.client import connect

URL = os.environ["URL"]
CA = os.environ["CA"]
STATE = os.environ["STATE"]


def check(what, holds, seen=""):
    if not holds:
        raise SystemExit(f"FAILED: {what} {seen}")
    print(f"ok: {what}")


def sleep_app():
    """Only where the app is to be asleep: once it is, the next request finds it so."""
    if STATE == "asleep":
        subprocess.run([os.environ["SLEEP"]], check=True)


def _context():
    return ssl.create_default_context(cafile=CA) if CA else None


def client(headers=None, timeout=30):
    two = os.environ["VERSION"] == "2"
    return httpx.Client(base_url=URL, http2=two, http1=not two, verify=_context() or True, headers=headers, timeout=timeout)


def socket(path, headers=None):
    address = URL.replace("http", "ws", 1) + path
    return connect(address, ssl=_context(), additional_headers=headers, open_timeout=40)
