"""Stands in for `cortex`: `fake_node.py serve --unix-socket=PATH ... -- MODEL`. The model says what it does.

`echo` answers with the request that it got, `dies` ends at once, `loads` is never ready.
"""

import json
import os
import signal
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler

MODEL = sys.argv[-1]


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._answer(503 if MODEL == "loads" else 200, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/die":
            os._exit(1)
        got = {"path": self.path, "headers": self.headers.items(), "body": body.decode(), "arguments": sys.argv}
        self._answer(418, json.dumps(got | {"home": os.environ["CORTEX_HOME"]}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Keep-Alive", "timeout=5")
        self.send_header("X-From", "node")
        self.end_headers()
        self.wfile.write(body)


if MODEL == "dies":
    sys.exit("no such model")
(path,) = [each.removeprefix("--unix-socket=") for each in sys.argv if each.startswith("--unix-socket=")]
with Server(path, Handler) as server:
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.01)
