"""An app that accepts every delivery and says which event it was told."""
import http.server
import os


class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        # The edge has read it whole, and says how long it is.
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.headers.get("Vango-Edge-Webhook-Event") or self.headers["Vango-Edge-Webhook-Verdict"])

    def do_GET(self):
        self.answer("tried")

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
