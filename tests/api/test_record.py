import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trustme

from api.flags import ModelOptions, ServerOptions
from api.home import home
from api.record import (
    AlreadyRunningError,
    Health,
    KvMemory,
    ModelHealth,
    ServerRecord,
    ask_health,
    hold_record,
    only_starter,
    read_record,
    started_record,
)
from scheduler.config import EngineConfig
from tests.api.servers import SECONDS

OPTIONS = ServerOptions(
    ModelOptions("tiny", Path("/models/tiny.gguf"), EngineConfig("/models/tiny.gguf"), aliases=("small", "little")),
    log_file="/logs/server.log",
)
HEALTH = Health(
    status="ok",
    models=(
        ModelHealth(
            model="tiny",
            aliases=("small",),
            path="/models/tiny.gguf",
            status="ready",
            engine_pid=2,
            context_length=512,
            kv=KvMemory(tokens=96, bytes=1024, held_tokens=32, cached_tokens=0, free_tokens=64),
            running=1,
            waiting=0,
        ),
    ),
    pid=1,
    uptime_seconds=3.5,
    version="0",
)


@pytest.fixture(autouse=True)
def cortex_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def record() -> ServerRecord:
    with hold_record(OPTIONS, port=0) as record:
        return record


def test_a_held_record_can_be_read_until_it_is_released() -> None:
    assert read_record() is None
    with hold_record(OPTIONS, port=4242) as record:
        assert read_record() == record
        assert (record.pid, record.port, record.aliases) == (os.getpid(), 4242, ("small", "little"))
    assert read_record() is None
    assert not (home() / "server.json").exists()


def test_a_second_server_gets_the_record_of_the_first() -> None:
    with hold_record(OPTIONS, port=4242) as first:
        message = r"tiny is already served at http://localhost:4242/v1 \(pid \d+\)"
        with pytest.raises(AlreadyRunningError, match=message) as raised, hold_record(OPTIONS, port=1):
            pass
        assert raised.value.record == first
        assert read_record() == first


def test_the_record_of_a_killed_server_is_ignored_even_if_its_pid_lives(cortex_home: Path) -> None:
    script = (
        "import os, signal\n"
        "from tests.api.test_record import OPTIONS\n"
        "from api.record import hold_record\n"
        "with hold_record(OPTIONS, 1):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == -9
    left = cortex_home / "server.json"
    left.write_text(json.dumps(json.loads(left.read_text()) | {"pid": os.getpid()}))
    assert read_record() is None
    with hold_record(OPTIONS, port=2) as record:
        assert read_record() == record


@pytest.mark.parametrize("content", ["", '{"pid": 1', "[]", "null", '"text"', '{"pid": 1}', "\xff\xfe"])
def test_an_invalid_record_counts_as_none(cortex_home: Path, content: str) -> None:
    with hold_record(OPTIONS, port=1):
        (cortex_home / "server.json").write_bytes(content.encode("latin-1"))
        assert read_record() is None


def test_readers_never_block_a_starting_server() -> None:
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            read_record()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for port in range(200):
            with hold_record(OPTIONS, port=port):
                pass
    finally:
        ended.set()
        reader.join()


def test_only_one_command_starts_a_server_at_a_time() -> None:
    order: list[str] = []

    def second() -> None:
        with only_starter():
            order.append("second")

    with only_starter():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_environment_sets_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_HOME", "~/somewhere")
    assert home() == Path.home() / "somewhere"
    monkeypatch.setenv("CORTEX_HOME", "")
    assert home().name == "cortex"


def test_a_search_waits_for_a_server_that_is_being_started() -> None:
    assert started_record() is None
    assert not home().exists(), "nothing is written before a server was ever started"
    found: list[ServerRecord | None] = []
    with contextlib.ExitStack() as running:
        with only_starter():
            looking = threading.Thread(target=lambda: found.append(started_record()))
            looking.start()
            looking.join(0.1)
            assert looking.is_alive()
            record = running.enter_context(hold_record(OPTIONS, 80))
        looking.join()
        assert found == [record]


@pytest.mark.parametrize(
    ("host", "to_show", "to_connect"),
    [
        ("127.0.0.1", "http://localhost:80/v1", "http://127.0.0.1:80/v1"),
        ("localhost", "http://localhost:80/v1", "http://localhost:80/v1"),
        ("0.0.0.0", "http://localhost:80/v1", "http://127.0.0.1:80/v1"),
        ("::", "http://localhost:80/v1", "http://[::1]:80/v1"),
        ("10.1.2.3", "http://10.1.2.3:80/v1", "http://10.1.2.3:80/v1"),
        ("fd00::7", "http://[fd00::7]:80/v1", "http://[fd00::7]:80/v1"),
    ],
)
def test_urls_to_show_and_to_connect_to(record: ServerRecord, host: str, to_show: str, to_connect: str) -> None:
    record = replace(record, host=host, port=80)
    assert (record.base_url, record.connect_url) == (to_show, to_connect)


@contextlib.contextmanager
def answering(body: bytes, listener: socket.socket | None = None) -> Iterator[int]:
    """A port where every connection gets an answer with this body, or such a listener of another kind."""
    with listener or socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            try:
                connection, _ = listener.accept()
            except ssl.SSLError:  # the client does not trust the server
                return
            with connection:
                connection.recv(65536)
                head = f"HTTP/1.1 503 Busy\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_health_is_read_over_a_unix_socket(record: ServerRecord, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with answering(json.dumps(asdict(HEALTH)).encode(), listener):
        assert ask_health(replace(record, unix_socket=path), SECONDS) == HEALTH


def test_health_is_read_over_tls_from_the_recorded_certificate_only(record: ServerRecord) -> None:
    authority = trustme.CA()
    own, other = authority.issue_cert("server.example"), authority.issue_cert("server.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.configure_cert(context)
    for issued, found in ((own, HEALTH), (other, None)):
        listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        certificate = issued.cert_chain_pems[0].bytes().decode()
        with answering(json.dumps(asdict(HEALTH)).encode(), listener) as port:
            assert ask_health(replace(record, port=port, tls_cert="/x", certificate=certificate), SECONDS) == found


def test_urls_say_whether_the_server_has_tls_or_a_unix_socket(record: ServerRecord) -> None:
    secure = replace(record, host="0.0.0.0", port=80, tls_cert="/cert.pem")
    assert (secure.base_url, secure.connect_url) == ("https://localhost:80/v1", "https://127.0.0.1:80/v1")
    local = replace(record, unix_socket="/run/socket")
    assert (local.base_url, local.connect_url) == ("unix:/run/socket", "http://localhost/v1")


def test_health_is_read_from_the_server(record: ServerRecord) -> None:
    body = asdict(HEALTH) | {"statistics": {"of": "a later version"}}
    with answering(json.dumps(body).encode()) as port:
        assert ask_health(replace(record, port=port), SECONDS) == HEALTH


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"ok"', b"{}", b'{"status": "ok"}', b"\xff"])
def test_an_invalid_health_answer_counts_as_none(record: ServerRecord, body: bytes) -> None:
    with answering(body) as port:
        assert ask_health(replace(record, port=port)) is None


def test_a_server_that_does_not_answer_has_no_health(record: ServerRecord) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert ask_health(replace(record, port=port), timeout=0.05) is None
    assert ask_health(replace(record, port=port)) is None


@pytest.mark.parametrize(
    ("host", "by_default"),
    [
        ("127.0.0.1", False),
        ("127.3.2.1", False),
        ("localhost", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.0.7", True),
        ("gpu.example", True),
    ],
)
def test_keys_are_demanded_where_other_machines_can_connect(host: str, by_default: bool) -> None:
    for auth, expected in ((None, by_default), (True, True), (False, False)):
        options = replace(OPTIONS, host=host, auth=auth)
        assert options.demands_keys is expected
        with hold_record(options, port=4242):
            found = read_record()
        assert found is not None
        assert found.auth is expected
