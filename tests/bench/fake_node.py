"""A fake node as a command: `python fake_node.py PORT [hangs]`. It knows the first word of prompts that it has seen.

With `hangs`, it never answers more than the short request that a start sends.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROMPT_TOKENS = 10
WARM_UP_TOKENS = 4


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    seen: set[str] = set()  # noqa: RUF012 - one handler for each connection, one set for the process
    counts = [0, 0]  # noqa: RUF012
    hangs = False

    def do_GET(self) -> None:
        if self.path == "/metrics":
            requests, computed = self.counts
            lines = (
                f'vllm:request_success_total{{model_name="m",finished_reason="length"}} {requests}.0',
                f'vllm:prompt_tokens_total{{model_name="m"}} {requests * PROMPT_TOKENS}.0',
                f'cortex_prefill_tokens_total{{model_name="m"}} {computed}.0',
            )
            self._send("text/plain", "".join(f"{line}\n" for line in lines))
        else:
            self._send("application/json", json.dumps({"data": [{"id": "fake"}]}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.hangs and request["max_tokens"] > WARM_UP_TOKENS:
            threading.Event().wait()
        word = request["messages"][0]["content"].split()[0]
        self.counts[0] += 1
        self.counts[1] += 1 if word in self.seen else PROMPT_TOKENS
        self.seen.add(word)
        events = [
            {"choices": [{"delta": {"content": "blue"}, "finish_reason": None}]},
            {"choices": [{"delta": {}, "finish_reason": "length"}]},
            {"choices": [], "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": request["max_tokens"]}},
        ]
        self._send(
            "text/event-stream", "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
        )

    def _send(self, kind: str, body: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_request(self, *_: object) -> None: ...


if __name__ == "__main__":
    Handler.hangs = sys.argv[2:] == ["hangs"]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
