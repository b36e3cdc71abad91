"""Publishes the changes of a KV cache on ZMQ sockets, in a thread of its own, so that no step waits."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

from kvcache.events import Block, Medium
from scheduler.kv_events.wire import Batch, Change, Cleared, Removed, Stored, as_events

_log = logging.getLogger("cortex.engine")

BUFFER_BATCHES: Final = 10_000
"""Batches that can be sent again. As many wait for a slow subscriber; it loses further ones, and can ask for them."""
BUFFER_BYTES: Final = 64 << 20
GATHER_SECONDS: Final = 0.005
"""The changes of this time become one batch."""
LINGER_SECONDS: Final = 1.0
"""Time for sending the last batches at the end."""
MAX_REQUEST_BYTES: Final = 4096
"""Peers send subscriptions and sequence numbers only. One that sends more is disconnected."""
SEQ_BYTES: Final = 8
END_SEQ: Final = (-1).to_bytes(SEQ_BYTES, "big", signed=True)


class Publisher:
    """Sends a batch of events as three frames: topic, sequence number (big-endian), msgpack of `wire.Batch`.

    Numbers begin at 0. A request on the replay socket is an empty frame and a number. The answer is one message for
    each batch that is kept from this number on: an empty frame, topic, number and batch. After them comes a message
    with the number -1 and no batch.
    """

    def __init__(
        self, endpoint: str, replay_endpoint: str = "", topic: str = "", *, clock: Callable[[], float] = time.time
    ) -> None:
        """Binds the sockets. `replay_endpoint` is empty for no replay. Raises zmq.ZMQError if one cannot be bound."""
        self._topic = topic.encode()
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._changes: deque[Change] = deque()
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._next_seq = 0
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        try:
            self._pub = self._bind(zmq.PUB, endpoint, BUFFER_BATCHES)
            self._replay = self._bind(zmq.ROUTER, replay_endpoint, 2 * BUFFER_BATCHES) if replay_endpoint else None
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self._woken, self._wake = os.pipe()
        self._is_woken = self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="KV events", daemon=True)

    def _bind(self, kind: int, endpoint: str, max_waiting: int) -> "zmq.Socket[bytes]":
        """`max_waiting`: how many messages may wait for each peer. The socket drops further ones, and never blocks."""
        bound: zmq.Socket[bytes] = self._context.socket(kind)
        bound.set_hwm(max_waiting)
        bound.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
        bound.setsockopt(zmq.IPV6, "[" in endpoint)
        bound.bind(endpoint)
        self._sockets.append(bound)
        return bound

    @property
    def endpoints(self) -> list[str]:
        """The bound endpoints: for events, and for replay if there is one. With numbers even if `*` was given."""
        return [bound.getsockopt_string(zmq.LAST_ENDPOINT) for bound in self._sockets]

    # -- the engine's side -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to send. The first event says that nothing is stored: an engine before this one may have ended."""
        self._changes.appendleft(Cleared())
        self._thread.start()
        self._notify()

    def stored(self, medium: Medium, block: Block) -> None:
        """See `Listener`."""
        self._changes.append(Stored(medium, block))
        self._notify()

    def removed(self, medium: Medium, digest: bytes) -> None:
        """See `Listener`."""
        self._changes.append(Removed(medium, digest))
        self._notify()

    def close(self) -> None:
        """Report that nothing is stored any more, send the rest, and close. Takes at most about 2 * LINGER_SECONDS."""
        if self._thread.is_alive():
            self._changes.append(Cleared())
            self._is_closing, self._is_woken = True, False
            self._notify()
            self._thread.join(LINGER_SECONDS)
        if not self._thread.is_alive():  # else it still uses all of this
            self._context.destroy(linger=int(1000 * LINGER_SECONDS))
            os.close(self._woken)
            os.close(self._wake)

    def _notify(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            os.write(self._wake, b"\0")

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        while not (self._is_closing and not self._changes):
            try:
                ready = dict(poller.poll())
                if self._replay is not None and self._replay in ready:
                    self._answer(self._replay)
                if self._woken in ready:
                    os.read(self._woken, 4096)
                    self._is_woken = False  # before the changes are taken, so that none is left behind
                    time.sleep(GATHER_SECONDS)
                    self._publish()
            except Exception:
                _log.exception("KV events were not sent")
                time.sleep(GATHER_SECONDS)

    def _publish(self) -> None:
        changes = [self._changes.popleft() for _ in range(len(self._changes))]
        if not changes:
            return
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        batch = self._encoder.encode(Batch(self._clock(), as_events(changes)))
        self._kept.append((seq, batch))
        self._kept_bytes += len(batch)
        while len(self._kept) > BUFFER_BATCHES or self._kept_bytes > BUFFER_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        self._pub.send_multipart((self._topic, _seq_bytes(seq), batch))

    def _answer(self, replay: "zmq.Socket[bytes]") -> None:
        frames = replay.recv_multipart()
        if len(frames) != 3 or len(frames[2]) != SEQ_BYTES:
            _log.warning("a request for KV events is not one sequence number of %d bytes", SEQ_BYTES)
            return
        peer, start = frames[0], int.from_bytes(frames[2], "big")
        for seq, batch in self._kept:
            if seq >= start:
                replay.send_multipart((peer, b"", self._topic, _seq_bytes(seq), batch))
        replay.send_multipart((peer, b"", b"", END_SEQ, b""))


def _seq_bytes(seq: int) -> bytes:
    return seq.to_bytes(SEQ_BYTES, "big")
