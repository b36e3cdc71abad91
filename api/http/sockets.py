"""The sockets that a server listens on."""

import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.flags import ServerSettings
from api.tls import own_certificate, server_context

UNACKNOWLEDGED_LIMIT: Final = 90.0
"""Seconds that a client may leave sent bytes unread before the kernel closes its connection. Nothing else can close it,
because Hypercorn shields its sends from cancellation."""
_BACKLOG: Final = 4096
_SOCKET_MODE: Final = 0o660
"""The server's user and group, which a reverse proxy can be a member of."""


def tls_of(settings: ServerSettings) -> ssl.SSLContext | None:
    """The TLS that the settings ask for; None for plain HTTP. Raises OSError with a message for the user."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise OSError("--tls-cert and --tls-key need each other")
    if settings.unix_socket is not None:
        raise OSError("a Unix socket has no TLS: leave out --unix-socket, or --tls-cert and --tls-key")
    return server_context(settings.tls_cert, settings.tls_key)


@dataclass(frozen=True)
class Listening:
    """What a server listens on."""

    sockets: list[socket.socket]
    tls: ssl.SSLContext | None = None
    """None for plain HTTP."""
    certificate: str | None = None
    """The server's own certificate in PEM form."""

    @property
    def port(self) -> int:
        """The port; 0 for a Unix socket."""
        name = self.sockets[0].getsockname()
        return 0 if isinstance(name, str) else int(name[1])


@contextlib.contextmanager
def listening(settings: ServerSettings) -> Iterator[Listening]:
    """Listen on the Unix socket, else on the host and port, during a block.

    The loopback gets one socket for IPv4 and one for IPv6: `localhost` may resolve to either. Raises OSError with a
    message for the user.
    """
    tls = tls_of(settings)
    if settings.unix_socket is not None:
        with _unix_socket(Path(settings.unix_socket)) as sock:
            yield Listening([sock])
        return
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(_bind(settings.host, settings.port))]
        if settings.host in ("127.0.0.1", "localhost"):
            try:
                sockets.append(opened.enter_context(_bind("::1", sockets[0].getsockname()[1])))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:  # some clients would reach another server at `localhost`
                    raise
        yield Listening(sockets, tls, own_certificate(settings.tls_cert) if settings.tls_cert else None)


def _bind(host: str, port: int) -> socket.socket:
    try:
        sock = socket.create_server(
            ("127.0.0.1" if host == "localhost" else host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED_LIMIT * 1000))
    return sock


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket. Its file replaces that of a server that is gone, and is removed after the block.

    The file gets its name when the socket listens and has its mode, so that no client sees it earlier.
    """
    require_free_socket(path)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(str(draft))
            draft.chmod(_SOCKET_MODE)
            sock.listen(_BACKLOG)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise OSError(f"cannot listen on the socket {path}: {error.strerror or error}") from error
        own = path.stat()
        try:
            yield sock
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(own, path.stat()):  # not the file of a server that came later
                    path.unlink()


def require_free_socket(path: Path) -> None:
    """Raises OSError with a message for the user if the path is a socket that a program listens on, or another file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(f"cannot listen on the socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise OSError(f"{path} is not a socket; choose another path with --unix-socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return  # nobody listens: its server is gone
        except OSError as error:
            raise OSError(f"cannot listen on the socket {path}: {error.strerror or error}") from error
    raise OSError(f"another program listens on the socket {path}; choose another with --unix-socket")
