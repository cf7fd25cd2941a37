"""A real edge beside the libraries that providers publish: they sign, and both must agree.

`scripts/webhooks` runs it. Tolerances are asked for two seconds off the edge, since time goes on
between signing and checking; the very second is a unit test's, whose clock stands still.
"""
import base64
import contextlib
import datetime
import gzip
import hmac
import http.client
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import standardwebhooks
import stripe
from slack_sdk.signature import SignatureVerifier

EDGE = os.environ["VANGO_EDGE_BIN"]
HERE = pathlib.Path(__file__).parent
HOST = "webhooks.localhost"
TOLERANCE = 300
SEED = int(os.environ.get("VANGO_EDGE_TEST_SEED", "1"))
MUTATIONS = 400

PROVIDERS = ["stripe", "standard-webhooks", "github", "shopify", "slack"]
CONTRACT = """
[app]
name = "webhooks"
[process]
command = ["python3", "-u", "app.py"]
ready = { tcp = true }
""" + "".join(
    f'[[route]]\npath = "/{p}"\nclass = "webhook"\nprovider = "{p}"\nsecret = "{p.upper().replace("-", "_")}"\n'
    for p in PROVIDERS
)

STRIPE_OLD, STRIPE_NEW = "whsec_old_secret_of_a_test", "whsec_new_secret_of_a_test"
STANDARD = "whsec_" + base64.b64encode(bytes(range(24))).decode()
GITHUB, SHOPIFY, SLACK = "It's a Secret to Everybody", "shopify_secret", "8f742231b10e8888abcd99yyyzzz85a5"


class Edge:
    """A running edge with the app deployed, asleep."""

    def __init__(self, work):
        self.work = work
        (work / "apps").mkdir()
        (work / "app").mkdir()
        shutil.copy(HERE / "app.py", work / "app")
        (work / "app" / "vango-edge.toml").write_text(CONTRACT)
        (work / "edge.toml").write_text(
            '[server]\nlisten = ["127.0.0.1:0"]\n[admin]\nlisten = "127.0.0.1:0"\n'
            '[state]\ndir = "state"\n[apps]\ndir = "apps"\n[log]\nlevel = "error"\n'
        )
        self.secrets(
            STRIPE=[STRIPE_OLD], STANDARD_WEBHOOKS=[STANDARD], GITHUB=[GITHUB], SHOPIFY=[SHOPIFY], SLACK=[SLACK]
        )
        self.process = subprocess.Popen(
            [EDGE, "run", "-c", str(work / "edge.toml")], stdout=subprocess.PIPE, text=True
        )
        said = json.loads(self.process.stdout.readline())
        self.admin = f"http://{said['admin']}"
        self.client = http.client.HTTPConnection(said["listen"][0], timeout=60)
        self.command("deploy", str(work / "app"))

    def secrets(self, **values):
        """Puts secrets where the operator's file says they are."""
        sources = []
        for name, some in values.items():
            files = []
            for i, value in enumerate(some):
                file = self.work / f"{name}-{i}"
                file.write_text(value)
                files.append(f"{{ file = {json.dumps(str(file))} }}")
            sources.append(f"{name} = [{', '.join(files)}]")
        text = f'app = "webhooks"\nhosts = ["{HOST}"]\nsecrets = {{ {", ".join(sources)} }}\n'
        (self.work / "apps" / "webhooks.toml").write_text(text)

    def command(self, *arguments):
        environment = os.environ | {"VANGO_EDGE_ADMIN": self.admin}
        return subprocess.run(
            [EDGE, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    def deliver(self, provider, body, headers):
        """The status, and the event's id that the app was told."""
        chunked = "Transfer-Encoding" in headers
        self.client.request("POST", f"/{provider}", body, {"Host": HOST, **headers}, encode_chunked=chunked)
        answer = self.client.getresponse()
        return answer.status, answer.read().decode(errors="replace")

    def stop(self):
        self.process.terminate()
        try:
            assert self.process.wait(timeout=60) == 0, "the edge did not stop in order"
        finally:
            self.process.kill()


def event(n, **more):
    return json.dumps({"id": f"evt_{n}", "object": "event", **more}, ensure_ascii=False)


def signed(body, secret, at):
    return stripe.WebhookSignature.generate_signature_header(body, secret, timestamp=at)


def stripe_believes(body, header, secret):
    try:
        return stripe.Webhook.construct_event(body, header, secret).id is not None
    except (stripe.SignatureVerificationError, ValueError):
        return False


def edge_believes(edge, body, header):
    status, text = edge.deliver("stripe", body.encode(), {"Stripe-Signature": header})
    assert status in (200, 403), (status, text)
    return status == 200


def stripe_agrees(edge):
    bodies = [
        event(1),
        event(2, note="süße Grüße, 日本語, \U0001f9ea"),
        event(3, note=" \t\r\n"),
        event(4, note="x" * 100_000),
        json.dumps(json.loads(event(5)), indent=2),
    ]
    for body in bodies:
        header = signed(body, STRIPE_OLD, int(time.time()))
        assert stripe_believes(body, header, STRIPE_OLD)
        status, told = edge.deliver("stripe", body.encode(), {"Stripe-Signature": header})
        assert (status, told) == (200, json.loads(body)["id"]), (status, told)
        for other, why in [(body + " ", "body"), (body.replace("evt", "evl"), "id")]:
            assert not stripe_believes(other, header, STRIPE_OLD), why
            assert not edge_believes(edge, other, header), why
        foreign = signed(body, STRIPE_NEW, int(time.time()))
        assert not stripe_believes(body, foreign, STRIPE_OLD)
        assert not edge_believes(edge, body, foreign)

    # The tolerance: the library looks at the past only, the edge both ways.
    for off, edge_says, library_says in [
        (-TOLERANCE + 2, True, True),
        (-TOLERANCE - 2, False, False),
        (TOLERANCE - 2, True, True),
        (TOLERANCE + 4, False, True),
    ]:
        body = event(f"off{off}")
        header = signed(body, STRIPE_OLD, int(time.time()) + off)
        said = (edge_believes(edge, body, header), stripe_believes(body, header, STRIPE_OLD))
        assert said == (edge_says, library_says), (off, said)

    # Several v1, as while a secret is rolled: any of them counts; v0 never.
    now = int(time.time())
    body = event("several")
    old, new = (signed(body, s, now).split(",")[1] for s in (STRIPE_OLD, STRIPE_NEW))
    zero = old.replace("v1=", "v0=")
    for parts, believed in [
        ((new, old), True), ((old, new), True), ((new,), False), ((zero,), False), ((zero, old), True), ((), False)
    ]:
        header = ",".join([f"t={now}", *parts])
        said = (edge_believes(edge, body, header), stripe_believes(body, header, STRIPE_OLD))
        assert said == (believed, believed), (parts, said)
    print(f"stripe {stripe.VERSION}: bodies, tolerance, several signatures")


def chunked_and_compressed(edge):
    """However a body comes, what is signed is its bytes: a content coding is a part of them, chunks are not."""
    body = event("chunked", note="x" * 3000)
    header = signed(body, STRIPE_OLD, int(time.time()))
    pieces = [body.encode()[i : i + 700] for i in range(0, len(body), 700)]
    # A body without a length is sent in chunks.
    assert edge.deliver("stripe", iter(pieces), {"Stripe-Signature": header, "Transfer-Encoding": "chunked"}) == (
        200, "evt_chunked"
    )
    pieces[1], pieces[2] = pieces[2], pieces[1]
    changed = iter([pieces[0][::-1], *pieces[1:]])
    assert edge.deliver("stripe", changed, {"Stripe-Signature": header, "Transfer-Encoding": "chunked"})[0] == 403
    packed = gzip.compress(b'{"zen": "keep it logically awesome"}' * 50)
    mac = hmac.new(GITHUB.encode(), packed, "sha256").hexdigest()
    given = {"X-Hub-Signature-256": f"sha256={mac}", "X-GitHub-Delivery": "gh-gzip", "Content-Encoding": "gzip"}
    assert edge.deliver("github", packed, given) == (200, "gh-gzip")
    assert edge.deliver("github", gzip.decompress(packed), given)[0] == 403
    print("bodies: chunked, compressed")


def stripe_rotates(edge):
    def believed(secret):
        body = event(f"rotation-{time.monotonic_ns()}")
        return edge_believes(edge, body, signed(body, secret, int(time.time())))

    for current, expected in [
        ([STRIPE_OLD], (True, False)),
        ([STRIPE_NEW, STRIPE_OLD], (True, True)),
        ([STRIPE_NEW], (False, True)),
        ([STRIPE_OLD], (True, False)),
    ]:
        edge.secrets(STRIPE=current, STANDARD_WEBHOOKS=[STANDARD], GITHUB=[GITHUB], SHOPIFY=[SHOPIFY], SLACK=[SLACK])
        edge.command("reload")
        assert (believed(STRIPE_OLD), believed(STRIPE_NEW)) == expected, expected
    print("stripe: rotation")


def stripe_never_stricter(edge):
    """What a damaged header makes the edge believe, the library believes too."""
    rng = random.Random(SEED)
    accepted = refused = 0
    for n in range(MUTATIONS):
        body = event(f"m{n}")
        header = list(signed(body, STRIPE_OLD, int(time.time())))
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(header))
            kind = rng.randrange(4)
            if kind == 0:
                header[at] = rng.choice("0123456789abcdef,=tv ")
            elif kind == 1:
                del header[at]
            elif kind == 2:
                header.insert(at, rng.choice("0123456789abcdef,=tv "))
            else:
                header += list("," + "".join(header).split(",")[-1])
        text = "".join(header).strip()
        edges = edge_believes(edge, body, text)
        # Spaces after a comma are nothing to the edge, and a part of the name to the library.
        librarys = stripe_believes(body, text.replace(" ", ""), STRIPE_OLD)
        assert librarys or not edges, f"seed {SEED}, {n}: only the edge believes {text!r}"
        accepted += edges
        refused += not edges
    assert accepted > MUTATIONS // 5 and refused > MUTATIONS // 5, (accepted, refused)
    print(f"stripe: {MUTATIONS} damaged headers (seed {SEED}): {accepted} believed, {refused} not, by both")


def standard_agrees(edge):
    webhook = standardwebhooks.Webhook(STANDARD)

    def headers(identifier, at, signatures, prefix="webhook"):
        return {f"{prefix}-id": identifier, f"{prefix}-timestamp": str(at), f"{prefix}-signature": signatures}

    def both(body, given):
        status, told = edge.deliver("standard-webhooks", body.encode(), given)
        assert status in (200, 403), (status, told)
        try:
            webhook.verify(body, given)
            librarys = True
        except standardwebhooks.WebhookVerificationError:
            librarys = False
        return status == 200, librarys

    def sign(identifier, at, body):
        return webhook.sign(identifier, datetime.datetime.fromtimestamp(at, tz=datetime.timezone.utc), body)

    for off, believed in [
        (0, True), (-TOLERANCE + 2, True), (-TOLERANCE - 2, False), (TOLERANCE - 2, True), (TOLERANCE + 4, False)
    ]:
        body, at = '{"test": "ä 2432232314"}', int(time.time()) + off
        identifier = f"msg_{off}"
        good = sign(identifier, at, body)
        assert both(body, headers(identifier, at, good)) == (believed, believed), off
        other = sign("msg_other", at, body)
        assert both(body, headers(identifier, at, f"{other} {good}")) == (believed, believed), off
        assert both(body, headers(identifier, at, other)) == (False, False)
        assert both(body + " ", headers(identifier, at, good)) == (False, False)
    # Svix's own names for the same headers.
    at = int(time.time())
    given = headers("msg_svix", at, sign("msg_svix", at, "{}"), prefix="svix")
    assert edge.deliver("standard-webhooks", b"{}", given) == (200, "msg_svix")
    print("standardwebhooks: tolerance, several signatures, svix- headers")


def slack_agrees(edge):
    verifier = SignatureVerifier(SLACK)
    for off, believed in [
        (0, True), (-TOLERANCE + 2, True), (-TOLERANCE - 2, False), (TOLERANCE - 2, True), (TOLERANCE + 4, False)
    ]:
        body, at = json.dumps({"event_id": f"Ev{off}"}), str(int(time.time()) + off)
        given = {
            "X-Slack-Request-Timestamp": at,
            "X-Slack-Signature": verifier.generate_signature(timestamp=at, body=body),
        }
        status, told = edge.deliver("slack", body.encode(), given)
        assert (status == 200, verifier.is_valid_request(body, given)) == (believed, believed), (off, status)
        assert not believed or told == f"Ev{off}", told
        changed = body + " "
        assert edge.deliver("slack", changed.encode(), given)[0] == 403
        assert not verifier.is_valid_request(changed, given)
    print("slack-sdk: tolerance, bodies")


def what_is_no_event(edge):
    """Handshakes: signed ones go to the app each time, a GET goes to it like a page's."""
    body = json.dumps({"token": "t", "challenge": "3eZbrw1a", "type": "url_verification"})
    for _ in range(2):
        at = str(int(time.time()))
        signature = SignatureVerifier(SLACK).generate_signature(timestamp=at, body=body)
        given = {"X-Slack-Request-Timestamp": at, "X-Slack-Signature": signature}
        assert edge.deliver("slack", body.encode(), given) == (200, "handshake")
    for provider in PROVIDERS:
        edge.client.request("GET", f"/{provider}?hub.challenge=1", headers={"Host": HOST})
        answer = edge.client.getresponse()
        assert (answer.status, answer.read()) == (200, b"tried"), provider
    print("handshakes: slack's challenge twice, GET of each")


def large(edge):
    for size in (1_200_000, 20 << 20):
        body = b"x" * size
        mac = hmac.new(GITHUB.encode(), body, "sha256").hexdigest()
        given = {"X-Hub-Signature-256": f"sha256={mac}", "X-GitHub-Delivery": f"gh-{size}"}
        assert edge.deliver("github", body, given) == (200, f"gh-{size}")
    print("github: 1.2 and 20 MiB")


def openssl(*arguments, given):
    return subprocess.run(["openssl", *arguments], input=given, check=True, capture_output=True, timeout=60).stdout


def openssl_agrees(edge, work):
    for n, body in enumerate([b"Hello, World!", b"\xff\xfe\0 not text", b"{}" * 1000]):
        mac = openssl("dgst", "-sha256", "-hmac", GITHUB, "-binary", given=body)
        given = {"X-Hub-Signature-256": f"sha256={mac.hex()}", "X-GitHub-Delivery": f"gh-{n}"}
        assert edge.deliver("github", body, given) == (200, f"gh-{n}")
        assert edge.deliver("github", body + b"\n", given)[0] == 403
        mac = openssl("dgst", "-sha256", "-hmac", SHOPIFY, "-binary", given=body)
        given = {"X-Shopify-Hmac-Sha256": base64.b64encode(mac).decode(), "X-Shopify-Webhook-Id": f"sh-{n}"}
        assert edge.deliver("shopify", body, given) == (200, f"sh-{n}")
        assert edge.deliver("shopify", body + b"\n", given)[0] == 403

    # Standard Webhooks' asymmetric kind: the edge is given the public key, the last 32 bytes of its DER.
    private, message = work / "ed25519.pem", work / "message"
    private.write_bytes(openssl("genpkey", "-algorithm", "ed25519", given=b""))
    public = openssl("pkey", "-in", str(private), "-pubout", "-outform", "DER", given=b"")[-32:]
    edge.secrets(
        STRIPE=[STRIPE_OLD], STANDARD_WEBHOOKS=["whpk_" + base64.b64encode(public).decode()],
        GITHUB=[GITHUB], SHOPIFY=[SHOPIFY], SLACK=[SLACK],
    )
    edge.command("reload")
    at, body = int(time.time()), b'{"asymmetric": true}'
    message.write_bytes(f"msg_v1a.{at}.".encode() + body)
    signature = openssl("pkeyutl", "-sign", "-rawin", "-inkey", str(private), "-in", str(message), given=b"")
    given = {
        "webhook-id": "msg_v1a",
        "webhook-timestamp": str(at),
        "webhook-signature": "v1a," + base64.b64encode(signature).decode(),
    }
    assert edge.deliver("standard-webhooks", body, given) == (200, "msg_v1a")
    assert edge.deliver("standard-webhooks", body + b" ", given)[0] == 403
    print("openssl: github, shopify, v1a")


def main():
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ve-", dir="/tmp") as name, contextlib.ExitStack() as stack:
        work = pathlib.Path(name)
        edge = Edge(work)
        stack.callback(edge.stop)
        stripe_agrees(edge)
        chunked_and_compressed(edge)
        stripe_rotates(edge)
        stripe_never_stricter(edge)
        standard_agrees(edge)
        slack_agrees(edge)
        what_is_no_event(edge)
        large(edge)
        openssl_agrees(edge, work)
    print(f"webhooks: 9 passed, 0 failed in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
