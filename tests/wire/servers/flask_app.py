"""Flask, for gunicorn. Answers what it saw as JSON, and prints a line for each request it carried out."""

import json

from flask import Flask, Response, request

app = Flask(__name__)


@app.route("/", defaults={"path": ""}, methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
@app.route("/<path:path>", methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
def any_path(path):
    headers = {}
    for name, value in request.headers:
        headers.setdefault(name.lower(), []).append(value)
    seen = {
        "server": "gunicorn",
        "method": request.method,
        "target": request.environ["RAW_URI"],
        "headers": headers,
        "body": request.get_data().hex(),
        "trailers": {},
    }
    print(json.dumps({"method": seen["method"], "target": seen["target"]}), flush=True)
    if request.path == "/stream":
        return Response(iter(["one,", "two"]))
    return Response(json.dumps(seen), mimetype="application/json")
