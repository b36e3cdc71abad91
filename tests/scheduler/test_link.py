"""The engine's side of the connection: it never waits for a slow API, and it exits if the API is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scheduler import link as link_module
from scheduler.grammar import Compiled
from scheduler.link import Link
from scheduler.messages import (
    Cancel,
    Embed,
    Embedded,
    Failed,
    Inspect,
    Message,
    Output,
    Report,
    Step,
    Stop,
    decode,
    encode,
)

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
"""Timeout of all tests, long enough for a busy machine."""
LARGE = 200_000
"""Tokens of an output that is larger than any socket buffer."""


class Api:
    """The API's side of the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._pending = b""

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(map(encode, messages)))

    def receive(self) -> Message:
        while b"\n" not in self._pending:
            data = self.socket.recv(1 << 16)
            assert data, "the connection is open"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return decode(line)

    def outputs(self) -> list[Output]:
        message = self.receive()
        assert isinstance(message, Step)
        return message.outputs

    def wait_until_blocked(self) -> None:
        """Wait until the sender has taken the pending outputs and blocks, because the rest is not read."""
        self._pending += self.socket.recv(1)


class ExitedError(BaseException):
    """Raised instead of an exit of the process. It ends the thread only."""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Link, Api, list[int]]]:
    """A link, its API, and the exit codes of its calls of os._exit."""
    codes: list[int] = []
    report = threading.excepthook

    def fake_exit(code: int) -> None:
        codes.append(code)
        raise ExitedError

    def report_other_errors(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not ExitedError:
            report(args)

    monkeypatch.setattr(os, "_exit", fake_exit)
    monkeypatch.setattr(threading, "excepthook", report_other_errors)
    before = set(threading.enumerate())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(SECONDS)
        link = Link(ours)
        threads = set(threading.enumerate()) - before
        yield link, Api(theirs), codes
        theirs.close()
        link.send(Stop())  # the sender fails and exits
        for thread in threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in threads)


Wire = tuple[Link, Api, list[int]]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_messages_arrive_in_order(wire: Wire) -> None:
    link, api, _ = wire
    sent: list[Message] = [Cancel(number) for number in range(100)]
    api.send(*sent)
    received: list[Message | Compiled] = []
    while len(received) < len(sent):
        received += link.receive(wait=True)
    assert received == sent
    assert link.receive(wait=False) == []


def test_a_message_in_pieces_is_read_as_one(wire: Wire) -> None:
    link, api, _ = wire
    for byte in encode(Cancel(7)):
        api.socket.sendall(bytes([byte]))
    assert link.receive(wait=True) == [Cancel(7)]


def test_waiting_returns_with_the_first_message(wire: Wire) -> None:
    link, api, _ = wire
    received: list[Message | Compiled] = []
    waiter = threading.Thread(target=lambda: received.extend(link.receive(wait=True)))
    waiter.start()
    api.send(Inspect())
    waiter.join(SECONDS)
    assert received == [Inspect()]


def test_outputs_of_one_step_are_sent_together(wire: Wire) -> None:
    link, api, _ = wire
    outputs = [Output(1, [11]), Output(2, [22], "stop"), Output(3, [], "error", error="no")]
    link.send_outputs(outputs)
    assert api.outputs() == outputs


def test_a_step_without_outputs_sends_nothing(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([])
    link.send(Failed("next"))
    assert api.receive() == Failed("next")


def test_outputs_are_written_at_once_if_the_socket_takes_them(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([Output(1, [11])])
    api.socket.setblocking(False)
    assert api.outputs() == [Output(1, [11])]


def test_an_api_that_is_gone_ends_the_process_at_once(wire: Wire) -> None:
    link, api, codes = wire
    api.socket.close()
    wait_until(lambda: codes == [0])  # by the reader
    with pytest.raises(ExitedError):
        link.send_outputs([Output(1, [1])])
    assert codes == [0, 0]


def test_outputs_merge_while_the_api_does_not_read(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([Output(1, [1] * LARGE)])
    api.wait_until_blocked()
    for token in range(1000):
        link.send_outputs([Output(1, [token]), Output(2, [5000 + token])])
    link.send_outputs([Output(2, [7], "length"), Output(3, [8])])
    assert api.outputs() == [Output(1, [1] * LARGE)]
    assert api.outputs() == [
        Output(1, list(range(1000))),
        Output(2, [*range(5000, 6000), 7], "length"),
        Output(3, [8]),
    ]


def test_merging_keeps_the_cached_tokens_of_the_first_output(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([Output(9, [1] * LARGE)])
    api.wait_until_blocked()
    link.send_outputs([Output(1, [10], cached_tokens=24)])
    link.send_outputs([Output(1, [11])])
    link.send_outputs([Output(1, [], "error", error="the model failed")])
    api.outputs()
    assert api.outputs() == [Output(1, [10, 11], "error", cached_tokens=24, error="the model failed")]


def test_merged_outputs_are_sent_once(wire: Wire) -> None:
    link, api, _ = wire
    for number in range(3):
        link.send_outputs([Output(1, [number] * LARGE)])
        api.wait_until_blocked()
        assert api.outputs() == [Output(1, [number] * LARGE)]


def test_a_message_is_sent_after_pending_outputs(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([Output(1, [1] * LARGE)])
    api.wait_until_blocked()
    link.send_outputs([Output(2, [3])])
    link.send(Report({"running": 1}, {}))
    api.outputs()
    assert api.outputs() == [Output(2, [3])]
    assert api.receive() == Report({"running": 1}, {})


def test_embeddings_are_sent_in_order_and_never_merged(wire: Wire) -> None:
    link, api, _ = wire
    api.send(Embed(1, [[5, 6], [7]]))
    assert link.receive(wait=True) == [Embed(1, [[5, 6], [7]])]
    link.send_outputs([Output(9, [1] * LARGE)])
    api.wait_until_blocked()
    sent = [Embedded(1, ["AAAA"]), Embedded(2, error="no"), Embedded(1, ["BBBB", "CCCC"])]
    for embedded in sent:
        link.send(embedded)
    api.outputs()
    assert [api.receive() for _ in sent] == sent


def test_the_step_thread_never_waits_for_the_socket(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([Output(1, [1] * LARGE)])
    api.wait_until_blocked()
    done = threading.Event()

    def step() -> None:
        for _ in range(100):
            link.send_outputs([Output(1, [1] * 1000)])
        done.set()

    threading.Thread(target=step).start()
    assert done.wait(SECONDS)


def test_an_api_that_reads_nothing_for_long_is_considered_dead(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_PENDING_TOKENS", 2 * LARGE)
    link, api, codes = wire
    link.send_outputs([Output(1, [1] * LARGE)])
    api.wait_until_blocked()  # outputs that are being sent no longer count
    link.send_outputs([Output(1, [1] * LARGE), Output(2, [1] * LARGE)])
    assert codes == []
    with pytest.raises(ExitedError):
        link.send_outputs([Output(3, [1])])
    assert codes == [1]


def test_only_unsent_tokens_count_towards_the_limit(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_PENDING_TOKENS", 100)
    link, api, codes = wire
    for _ in range(20):
        link.send_outputs([Output(1, [1] * 60)])
        assert api.outputs() == [Output(1, [1] * 60)]
    assert codes == []


def test_flush_returns_when_everything_is_sent(wire: Wire) -> None:
    link, api, _ = wire
    link.flush(SECONDS)  # nothing to send
    link.send_outputs([Output(1, [1] * LARGE)])
    link.send(Failed("the end"))
    api.wait_until_blocked()
    flushed = threading.Event()

    def flush() -> None:
        link.flush(SECONDS)
        flushed.set()

    threading.Thread(target=flush).start()
    assert not flushed.is_set()
    api.outputs()
    assert api.receive() == Failed("the end")
    assert flushed.wait(SECONDS)


def test_flush_gives_up_on_an_api_that_does_not_read(wire: Wire) -> None:
    link, api, _ = wire
    link.send_outputs([Output(1, [1] * LARGE)])
    api.wait_until_blocked()
    started = time.monotonic()
    link.flush(0.05)
    assert 0.05 <= time.monotonic() - started < SECONDS / 2


def test_a_closed_connection_ends_the_process(wire: Wire) -> None:
    _, api, codes = wire
    api.socket.close()
    wait_until(lambda: codes == [0])


def test_an_api_that_dies_with_unread_messages_ends_the_process(wire: Wire) -> None:
    """In this case the kernel reports a connection reset instead of an end of file."""
    link, api, codes = wire
    link.send(Failed("nobody reads this"))
    link.flush(SECONDS)
    api.socket.close()
    wait_until(lambda: codes == [0])


def test_an_api_that_dies_while_the_engine_sends_ends_the_process(wire: Wire) -> None:
    link, api, codes = wire
    link.send_outputs([Output(1, [1] * LARGE)])
    api.wait_until_blocked()
    api.socket.close()
    wait_until(lambda: len(codes) == 2)  # both threads noticed
    assert codes == [0, 0]


def test_an_api_that_dies_within_a_message_ends_the_process(wire: Wire) -> None:
    _, api, codes = wire
    api.socket.sendall(encode(Cancel(1))[:-5])
    api.socket.close()
    wait_until(lambda: codes == [0])


def test_an_invalid_message_ends_the_process(wire: Wire) -> None:
    """An engine without a connection would run for ever, with its model in memory."""
    _, api, codes = wire
    api.socket.sendall(b'{"type":"Begin","body":{}}\n')
    wait_until(lambda: len(codes) == 1)
    assert codes == [1]


ENGINE = """
import socket, sys, time
from scheduler.grammar import Compiled
from scheduler.link import Link
from scheduler.messages import Failed, Output

link = Link(socket.socket(fileno=int(sys.argv[1])))
link.send(Failed("up"))
if sys.argv[2] == "computes":
    while True:
        sum(range(1000))
link.receive(wait=True)  # idle
time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["idles", "computes"])
@pytest.mark.parametrize("unread", [False, True])
def test_a_real_process_ends_with_its_api(doing: str, unread: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(SECONDS)
        engine = subprocess.Popen(
            [sys.executable, "-c", ENGINE, str(theirs.fileno()), doing],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        with engine:
            theirs.close()
            assert ours.recv(1, 0 if not unread else socket.MSG_PEEK)
            if not unread:
                while not ours.recv(100).endswith(b"\n"):
                    pass
            ours.close()
            try:
                assert engine.wait(SECONDS) == 0
                assert engine.stderr is not None
                assert engine.stderr.read() == b""
            finally:
                if engine.poll() is None:
                    os.kill(engine.pid, signal.SIGKILL)
