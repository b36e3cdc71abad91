"""A fake server as a command: `python fake_server.py PORT [dies | stays | parent FILE]`."""

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send("application/json", json.dumps({"data": [{"id": "fake"}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        n_tokens = request["max_tokens"]
        chunk = {"choices": [{"delta": {"content": "word "}, "finish_reason": None}]}
        last = {
            "choices": [{"delta": {}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": n_tokens},
        }
        events = [chunk] * n_tokens + [last]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._send("text/event-stream", body.encode())

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    port, *how = sys.argv[1:]
    if how == ["dies"]:
        print("no memory left")  # noqa: T201
        sys.exit(3)
    if how == ["stays"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how[:1] == ["parent"]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(how[1]).write_text(str(child.pid))
    print(sorted(name for name in os.environ if name.startswith(("CORTEX_", "LLAMA_ARG_"))), flush=True)  # noqa: T201
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
