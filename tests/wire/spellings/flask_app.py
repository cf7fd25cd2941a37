"""A Flask app that says which handler took a request."""

import sys

from flask import Flask

app = Flask(__name__)


@app.post("/webhooks/stripe")
def stripe():
    return "took stripe"


@app.post("/actions/<name>")
def action(name):
    return "took action"


app.run("127.0.0.1", int(sys.argv[1]))
