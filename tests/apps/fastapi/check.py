"""JSON, a large upload, an event stream and a WebSocket, with httpx and websockets."""
import hashlib
import os

from lib import check, client, sleep_app, socket

with client() as http:
    answer = http.post("/items", json={"name": "x", "price": 1.5})
    check("a JSON POST", answer.status_code == 201 and answer.json() == {"name": "x", "price": 1.5}, answer)
    body = os.urandom(20_000_000)
    answer = http.post("/upload", files={"file": ("x.bin", body)})
    check("20 MB as a form", answer.json().get("sha256") == hashlib.sha256(body).hexdigest(), answer)
    sleep_app()
    with http.stream("GET", "/events") as answer:
        lines = [line for line in answer.iter_lines() if line]
    check("an event stream", lines == [f"data: {n}" for n in range(5)], lines)
    sleep_app()
    with socket("/ws") as ws:
        ws.send("hello")
        check("a WebSocket", ws.recv(timeout=20) == "HELLO")
    check("the document", http.get("/openapi.json").json()["openapi"].startswith("3."))
