"""The stream to an engine process."""

import os
import socket
from operator import index
from typing import Final

import trio

_READ_BYTES: Final = 1 << 16


class EngineStream(trio.abc.Stream):
    """A stream over a connected socket. It waits first and then reads, because the next message is rarely there yet.

    trio's own stream tries to read before it waits. For each message, this costs a system call and an exception.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and index(max_bytes) < 1:  # `index` raises TypeError, as trio's streams do
            raise ValueError("max_bytes must be at least 1")
        fd = self._stream.socket.fileno()
        if fd < 0:
            raise trio.ClosedResourceError
        while True:
            await trio.lowlevel.wait_readable(fd)
            try:
                return os.read(fd, max_bytes or _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
