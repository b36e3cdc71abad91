"""The sockets that a server listens on."""

import socket
import stat
from pathlib import Path

import pytest

from api.flags import ServerSettings
from api.http.sockets import listening, require_free_socket, tls_of


def unix(path: Path) -> ServerSettings:
    return ServerSettings(unix_socket=str(path))


def test_a_unix_socket_exists_while_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(unix(path)) as address:
        assert address.port == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_a_server_that_is_gone_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with listening(unix(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_the_socket_of_another_program_is_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(unix(path)):
        with pytest.raises(OSError, match="another program listens on the socket"), listening(unix(path)):
            pass
        with pytest.raises(OSError, match="another program listens"):
            require_free_socket(path)
        assert path.exists()


def test_another_file_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="is not a socket"), listening(unix(path)):
        pass
    assert path.read_text() == "mine"


def test_the_file_of_a_later_server_is_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(unix(path)):
        path.unlink()
        path.write_text("later")
    assert path.read_text() == "later"


@pytest.mark.parametrize("path", ["no/such/folder/socket", "x" * 200])
def test_a_path_that_cannot_be_used_is_named(tmp_path: Path, path: str) -> None:
    with (
        pytest.raises(OSError, match=f"cannot listen on the socket {tmp_path}/{path}: "),
        listening(unix(tmp_path / path)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_loopback_has_one_port_for_both_protocols() -> None:
    with listening(ServerSettings(port=0)) as address:
        assert {sock.getsockname()[1] for sock in address.sockets} == {address.port}
        assert address.port > 0
        assert (address.tls, address.certificate) == (None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ServerSettings(tls_cert="/cert"), "--tls-cert and --tls-key need each other"),
        (ServerSettings(tls_key="/key"), "--tls-cert and --tls-key need each other"),
        (ServerSettings(tls_cert="/cert", tls_key="/key", unix_socket="/socket"), "a Unix socket has no TLS"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: ServerSettings, message: str) -> None:
    with pytest.raises(OSError, match=message):
        tls_of(settings)
