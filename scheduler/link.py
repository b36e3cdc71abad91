"""The engine's side of the connection to the API. Steps never wait for the socket: threads do what would block."""

import contextlib
import logging
import os
import queue
import socket
import threading
from typing import NoReturn

from scheduler.crash_record import EXIT_CRASHED, CrashRecord
from scheduler.failures import describe
from scheduler.grammar import Compiled
from scheduler.messages import Message, Output, Step, decode, encode

_log = logging.getLogger("cortex.engine")

MAX_PENDING_TOKENS = 1 << 20
"""Limit of unsent tokens. Beyond it the API is considered dead."""


class Link:
    """Messages from and to the API.

    Outputs are written at once if the socket takes them, so that no thread has to be woken beside the next decode.
    Otherwise the sender thread writes them. They are merged per request until it takes them, so a slow API gets fewer
    and larger Step messages. If the API closes its end or dies, this process exits, even while a model loads or
    a step runs.
    """

    def __init__(self, sock: socket.socket, record: CrashRecord | None = None) -> None:
        """`record` gets the reason if this process exits because of an error."""
        self._socket = sock
        self._record = record or CrashRecord()
        self._inbox: queue.SimpleQueue[Message | Compiled] = queue.SimpleQueue()
        self._wake = threading.Condition()
        self._outputs: dict[int, Output] = {}
        self._num_pending_tokens = 0
        self._messages: list[Message] = []
        self._rest = b""
        """What is left of a message that was written in part. It goes first."""
        self._sending = False
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._write, name="sender", daemon=True).start()

    def receive(self, *, wait: bool, seconds: float | None = None) -> list[Message | Compiled]:
        """Returns all messages that have arrived. With `wait`, waits for at least one, or for `seconds`."""
        messages: list[Message | Compiled] = []
        if wait:
            with contextlib.suppress(queue.Empty):
                messages.append(self._inbox.get(timeout=seconds))
        while not self._inbox.empty():
            messages.append(self._inbox.get_nowait())
        return messages

    def post(self, compiled: Compiled) -> None:
        """Add a compiled grammar to the received messages. May be called from any thread."""
        self._inbox.put(compiled)

    def send(self, message: Message) -> None:
        """Queue a message behind all messages and outputs that are not sent yet."""
        with self._wake:
            self._messages.append(message)
            self._wake.notify()

    def send_outputs(self, outputs: list[Output]) -> None:
        """Send outputs, or queue them for the next Step message if the socket is full.

        Exits the process if the API has not read MAX_PENDING_TOKENS, or is gone.
        """
        if not outputs:
            return
        with self._wake:
            if not self._has_unsent and self._write_now(encode(Step(outputs))):
                return
            for output in outputs:
                self._merge(output)
            if self._num_pending_tokens > MAX_PENDING_TOKENS:
                self._exit("the API does not read its messages", 1)
            self._wake.notify()

    def flush(self, seconds: float) -> None:
        """Wait until everything is sent, for at most `seconds`. Called before the process exits."""
        with self._wake:
            self._wake.wait_for(lambda: not self._has_unsent, seconds)

    @property
    def _has_unsent(self) -> bool:
        return bool(self._sending or self._rest or self._outputs or self._messages)

    def _write_now(self, data: bytes) -> bool:
        """Write what the socket takes, and leave the rest to the sender thread. Returns False if it takes nothing."""
        try:
            written = self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            os._exit(0)  # the API is gone
        if written < len(data):
            self._rest = data[written:]
            self._wake.notify()
        return True

    def _merge(self, output: Output) -> None:
        self._num_pending_tokens += len(output.tokens)
        pending = self._outputs.setdefault(output.request_id, output)
        if pending is not output:
            pending.merge(output)

    def _read(self) -> None:
        """Read messages, and exit the process when the API closes the connection, even within a message."""
        try:
            with contextlib.suppress(ConnectionError), self._socket.makefile("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        self._inbox.put(decode(line))
        except ValueError as error:
            self._exit(str(error), 1)
        os._exit(0)

    def _exit(self, reason: str, code: int) -> NoReturn:
        _log.critical("%s; the engine exits", reason)
        self._record.explain(reason)
        os._exit(code)

    def _write(self) -> None:
        try:
            self._write_all()
        except Exception as error:  # without this thread the engine would go on without being heard
            self._exit(describe(error), EXIT_CRASHED)

    def _write_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._rest or self._outputs or self._messages)
                rest, self._rest = self._rest, b""
                outputs, self._outputs, self._num_pending_tokens = list(self._outputs.values()), {}, 0
                messages, self._messages = self._messages, []
                self._sending = True
            steps = [Step(outputs)] if outputs else []
            data = rest + b"".join(map(encode, [*steps, *messages]))
            try:
                self._socket.sendall(data)
            except OSError:
                os._exit(0)  # the API is gone
            with self._wake:
                self._sending = False
                self._wake.notify_all()
