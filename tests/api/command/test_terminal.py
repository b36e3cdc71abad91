import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.command.terminal import ChatError, Conversation, event_data, print_models, spinner
from tests.api.servers import SECONDS


def event(content: str | None) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": content}}]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def conversation(answer: Callable[[dict[str, Any]], httpx.Response]) -> Conversation:
    transport = httpx.MockTransport(lambda request: answer(json.loads(request.content)))
    return Conversation(httpx.Client(transport=transport, base_url="http://server/v1"), "tiny")


def test_events_end_only_at_newlines_however_chunks_are_split() -> None:
    # U+2028 and U+0085 are line ends to Python, and plain characters to JSON.
    stream = ": ping\n\ndata: a\u2028b\x85c\x0cd\n\ndata:e\r\n\r\nevent: x\ndata: [DONE]\n\n".encode()
    whole = list(event_data([stream]))
    assert [data.decode() for data in whole] == ["a\u2028b\x85c\x0cd", "e"]
    assert list(event_data(stream[i : i + 1] for i in range(len(stream)))) == whole


def test_answers_stream_and_the_history_grows() -> None:
    requests: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> httpx.Response:
        requests.append(request)
        usage = b'data: {"choices": [], "usage": {}}\n\n'
        content = event(None) + event("Hel") + event("lo\u2028") + usage + b"data: [DONE]\n\n"
        return httpx.Response(200, content=content)

    chat = conversation(answer)
    assert [piece for piece in chat.answer("Hi") if piece] == ["Hel", "lo\u2028"]
    list(chat.answer("And?"))
    assert [message["role"] for message in requests[1]["messages"]] == ["user", "assistant", "user"]
    assert requests[1]["messages"][1]["content"] == "Hello\u2028"
    assert (requests[0]["model"], requests[0]["stream"]) == ("tiny", True)


def test_an_answer_left_early_stays_in_the_history() -> None:
    chat = conversation(lambda _: httpx.Response(200, content=event("Hel") + event("lo")))
    with contextlib.closing(chat.answer("Hi")) as pieces:
        assert next(pieces) == "Hel"
    assert chat.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (httpx.Response(400, json={"error": {"message": "too\nlong"}}), "^too long$"),
        (httpx.Response(502, text="<html>"), "the server answered 502"),
        (httpx.Response(200, content=b'data: {"error": {"message": "engine died"}}\n\n'), "engine died"),
        (httpx.Response(200, content=b"data: {oops\n\n"), "not a chat event"),
        (httpx.Response(200, content=b"data: []\n\n"), "not a chat event"),
    ],
)
def test_a_failed_answer_raises_one_line_and_drops_its_question(response: httpx.Response, message: str) -> None:
    chat = conversation(lambda _: response)
    with pytest.raises(ChatError, match=message):
        list(chat.answer("Hi"))
    assert chat.messages == []


def test_a_refused_connection_raises_one_line() -> None:
    def refuse(_: dict[str, Any]) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(ChatError, match="does not answer: connection refused"):
        list(conversation(refuse).answer("Hi"))


class ChatHandler(BaseHTTPRequestHandler):
    """Answers with the number of messages it got; a message `forever` is answered until the client leaves."""

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(event(f"\x1b[31mgot {len(messages)}"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while messages[-1]["content"] == "forever":
                self.wfile.write(event("."))
                time.sleep(0.01)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def chat_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ChatHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


CHAT = """
import sys
import httpx
from api.command.terminal import chat
with httpx.Client(base_url=sys.argv[1], trust_env=False) as client:
    chat(client, "tiny")
"""


class Terminal:
    """The chat in its own process, with a terminal as stdin and stdout."""

    def __init__(self, url: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHAT, url],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "TERM": "dumb"},
        )
        os.close(slave)
        self._seen = ""

    def expect(self, text: str) -> str:
        """Wait for `text`. Returns the output before it."""
        while text not in self._seen:
            ready, _, _ = select.select([self._master], [], [], SECONDS)
            assert ready, f"no {text!r} after {self._seen!r}"
            self._seen += os.read(self._master, 4096).decode()
        before, self._seen = self._seen.split(text, 1)
        return before

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_input(self) -> None:
        """Interrupt once the process waits: Python's input() misses a signal that arrives just before it waits."""
        process = psutil.Process(self.process.pid)
        num_waiting = 0
        while num_waiting < 10:
            num_waiting = num_waiting + 1 if process.status() == psutil.STATUS_SLEEPING else 0
            time.sleep(0.02)
        self.interrupt()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._master)


@pytest.fixture
def terminal(chat_url: str) -> Iterator[Terminal]:
    terminal = Terminal(chat_url)
    terminal.expect("> ")
    yield terminal
    terminal.close()


def test_a_terminal_shows_answers_without_control_characters(terminal: Terminal) -> None:
    terminal.type("hello\n")
    terminal.expect("got 1")
    terminal.expect("> ")
    terminal.type("\n")  # an empty line sends nothing
    terminal.expect("> ")
    terminal.type("again\n")
    assert "\x1b" not in terminal.expect("got 3")
    terminal.expect("> ")
    terminal.type("exit()\n")
    assert terminal.process.wait(SECONDS) == 0


def test_an_interrupt_stops_the_answer_and_then_the_chat(terminal: Terminal) -> None:
    terminal.type("forever\n")
    terminal.expect("got 1...")
    terminal.interrupt()
    terminal.expect("> ")
    terminal.type("and now\n")
    terminal.expect("got 3")
    terminal.expect("> ")
    terminal.type("half a line")
    terminal.expect("half a line")
    terminal.interrupt_input()
    terminal.expect("> ")
    terminal.interrupt_input()
    assert terminal.process.wait(SECONDS) == 0
    assert terminal.process.stderr is not None
    assert b"Traceback" not in terminal.process.stderr.read()


def test_the_end_of_input_ends_the_chat(terminal: Terminal) -> None:
    terminal.type("\x04")
    assert terminal.process.wait(SECONDS) == 0


def test_the_spinner_prints_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with spinner("waiting"):
        pass
    assert capsys.readouterr() == ("", "")


def test_the_table_shows_unchanged_names_and_readable_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    server: dict[str, Any] = {
        "model": "[bold]" + "long/" * 40 + "model.gguf",
        "state": "running",
        "pid": 11,
        "engine_pid": 12,
        "kv": {
            "tokens": 16384,
            "max_tokens": 16384,
            "bytes": 3 << 29,
            "held_tokens": 32,
            "cached_tokens": 1024,
            "free_tokens": 15328,
        },
        "uptime_seconds": 90061.0,
        "url": "http://localhost:39281/v1",
    }
    print_models([server, server | {"kv": None, "engine_pid": None, "uptime_seconds": 59.9}])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["MODEL", "STATE", "PID", "ENGINE", "KV", "MEMORY", "UPTIME", "ADDRESS"]
    assert server["model"] in first
    assert "1.5 GiB, 1,056 of 16,384 tokens" in first
    assert "at most" not in first
    assert "1 d 1 h" in first
    assert " 59 s " in second
    assert "http://localhost:39281/v1" in second


def test_the_table_shows_the_limit_of_memory_that_follows_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    kv = {"tokens": 4096, "max_tokens": 262_144, "bytes": 1 << 26, "free_tokens": 4000}
    server = {"model": "a", "state": "running", "pid": 1, "engine_pid": 2, "kv": kv, "uptime_seconds": 1.0, "url": "u"}
    print_models([server])
    assert "64.0 MiB, 96 of 4,096 tokens, at most 262,144" in capsys.readouterr().out
