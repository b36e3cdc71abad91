"""A fake router as a command, with SMG's flags: every node in turn, and the next one if a node cannot be reached."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.error import URLError
from urllib.request import Request, urlopen


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    nodes: list[str] = []  # noqa: RUF012 - one handler for each connection, one list for the process
    numbers = count()

    def do_GET(self) -> None:
        if self.path == "/workers":
            self._send(json.dumps({"workers": [{"url": url, "is_healthy": True} for url in self.nodes]}).encode())
        else:
            self._forward(None)

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers["content-length"])))

    def _forward(self, body: bytes | None) -> None:
        first = next(self.numbers)
        for number in range(len(self.nodes)):
            url = self.nodes[(first + number) % len(self.nodes)] + self.path
            try:
                with urlopen(Request(url, body, {"content-type": "application/json"})) as answer:
                    self._send(answer.read())
                    return
            except URLError:
                continue
            except OSError:
                return  # it ended while it answered

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None: ...


if __name__ == "__main__":
    flags = sys.argv
    Handler.nodes = [each for each in flags if each.startswith("http://")]
    ThreadingHTTPServer(("127.0.0.1", int(flags[flags.index("--port") + 1])), Handler).serve_forever()
