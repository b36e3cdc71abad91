import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest
from pydantic import ValidationError

from api.command import cli, launch
from api.command.terminal import print_tuning
from api.flags import ModelFlags, ModelOptions, ServerFlags, ServerOptions, num_bytes
from api.home import home
from api.protocols.management.request import StartRequest
from api.record import ServerRecord, read_record
from scheduler.config import EngineConfig
from tests.api.servers import SECONDS, is_gone, wait_until

ROOT = Path(__file__).parents[3]
MODEL = "smollm2:135m"
NO_HUB = "http://127.0.0.1:1"
"""An address without a hub."""

STAND_IN = '''
"""The cortex command with a stand-in for api.http.server, which the file `behaviour` controls at each moment."""

import json, os, signal, subprocess, sys, threading, time, types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from api.command import cli, launch
from api.record import hold_record

def behaviour():
    return Path("behaviour").read_text()

def serve(options, ahead):
    with Path("starts").open("a") as starts:
        starts.write("started\\n")
    if behaviour() == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    engine = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Path("engine.pid.tmp").write_text(str(engine.pid))
    Path("engine.pid.tmp").replace("engine.pid")
    if behaviour() == "ends":
        for number in range(1, 21):
            print("log line", number, file=sys.stderr)
        return 3
    if behaviour() == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour() == "hangs":
        time.sleep(600)
    while behaviour() == "starting":
        time.sleep(0.02)

    models = [{
        "model": options.first.name, "aliases": options.first.aliases, "path": str(options.first.path),
    }]

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code, body):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if behaviour() == "silent":
                return
            kv = dict(tokens=96, bytes=3 << 20, held_tokens=32, cached_tokens=0, free_tokens=64)
            ok = behaviour() in ("ok", "deaf")
            state = dict(
                status="ready" if ok else "loading", engine_pid=engine.pid, context_length=512, kv=kv if ok else None,
                running=1, waiting=2,
            )
            health = dict(
                status="ok" if ok else behaviour(), models=[model | state for model in models], pid=os.getpid(),
                uptime_seconds=1.0, version="0", reason="out of memory" if behaviour() == "failed" else None,
            )
            self.answer(200 if ok else 503, json.dumps(health).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/models/start":
                Path("asked").touch()
                while behaviour() == "loading":
                    time.sleep(0.02)
                if body["ctx_len"] == 666:
                    return self.answer(409, b'{"error": {"message": "it takes too much memory"}}')
                if body["model"] not in [model["model"] for model in models]:
                    models.append({"model": body["model"], "aliases": body["alias"], "path": body["path"]})
                return self.answer(200, b"{}")
            if self.path == "/v1/models/stop":
                Path("stopped").write_text(body["model"])
                if body["model"] not in [model["model"] for model in models]:
                    return self.answer(404, json.dumps({"error": {"message": f"no {body['model']}"}}).encode())
                models[:] = [model for model in models if model["model"] != body["model"]]
                return self.answer(200, b"{}")
            messages = body["messages"]
            if messages[-1]["content"] == "fail":
                return self.answer(500, b'{"error": {"message": "no answer today"}}')
            chunk = {"choices": [{"delta": {"content": f"got {len(messages)}"}}]}
            self.answer(200, b"data: " + json.dumps(chunk).encode() + b"\\n\\ndata: [DONE]\\n\\n")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((options.host, options.port), Handler)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: behaviour() == "deaf" or stopped.set())
    with hold_record(options, server.server_port):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        stopped.wait()
    engine.terminate()
    return 0

real_command = launch.server_command
launch.server_command = lambda *args: [sys.executable, __file__, *real_command(*args)[4:]]
launch.POLL_SECONDS = 0.02
started = time.monotonic()

def seconds():
    """A clock that starts when the engine exists, so that a slow machine does not count as silent."""
    return time.monotonic() if Path("engine.pid").exists() else started

launch.time = types.SimpleNamespace(monotonic=seconds, sleep=time.sleep)
if behaviour() in ("silent", "hangs", "deaf"):
    launch.SILENCE_SECONDS, launch.ABANDON_SECONDS, cli.STOP_MARGIN_SECONDS = 1.0, 0.5, 0.5
cli.Ahead = lambda config: None
sys.modules["api.http.server"] = types.SimpleNamespace(serve=serve)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have turned it off
cli.main()
'''


class Cortex:
    """The command with its own home folder. Every call is a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.engine_pid_file = folder / "engine.pid"
        self._script = folder / "stand_in.py"
        self._script.write_text(STAND_IN)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("CORTEX_")}
        self.environment |= {"CORTEX_HOME": str(self.home), "PYTHONPATH": str(ROOT), "HF_ENDPOINT": NO_HUB}
        self.behave("ok")

    def behave(self, behaviour: str) -> None:
        draft = self.folder / "behaviour.tmp"
        draft.write_text(behaviour)
        draft.replace(self.folder / "behaviour")

    @contextlib.contextmanager
    def popen(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, str(self._script), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        with self.popen(*arguments) as process:
            out, err = process.communicate(stdin, timeout=SECONDS)
        assert "Traceback" not in out + err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, model: str = MODEL, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self("run", "-d", "--port=0", "--grace=0", *arguments, model)

    def engine_pid(self) -> int:
        """The engine's pid of the server that started last."""
        return int(self.engine_pid_file.read_text())

    def num_starts(self) -> int:
        return len((self.folder / "starts").read_text().splitlines())


@pytest.fixture
def cortex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cortex]:
    cortex = Cortex(tmp_path)
    monkeypatch.setenv("CORTEX_HOME", str(cortex.home))
    monkeypatch.setenv("HF_ENDPOINT", NO_HUB)
    yield cortex
    record = read_record()
    if record is not None:
        os.kill(record.pid, signal.SIGKILL)
    if cortex.engine_pid_file.exists() and not is_gone(cortex.engine_pid()):
        os.kill(cortex.engine_pid(), signal.SIGKILL)


def assert_engine_ends(cortex: Cortex) -> None:
    """The engine does not end by itself for long. If it is killed with its server, it may end shortly after it."""
    wait_until(lambda: is_gone(cortex.engine_pid()), "the engine has ended")


def running() -> ServerRecord:
    record = read_record()
    assert record is not None
    return record


def assert_fails(result: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """The command failed and printed only one line, on stderr, with these parts."""
    assert result.returncode == code
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("cortex: ")
    assert [part for part in parts if part not in line] == []


InProcess = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """The command in this process, for calls that end before they start a server."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(raised.value.code or 0), out, err)

    return call


def test_the_command_imports_nothing_heavy() -> None:
    heavy = {"llama_cpp", "quart", "quart_trio", "hypercorn", "trio", "httpx", "numpy", "pydantic", "api.http.server"}
    heavy |= {"huggingface_hub", "httpx2", "yaml"}
    script = f"import sys, api.command.cli; assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_python_m_api_is_the_command(tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text("raise SystemExit('the wrong api')")
    for arguments, expected in (("--version", "cortex "), ("--help", "serve")):
        shown = subprocess.run(
            [sys.executable, "-P", "-m", "api", arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert expected in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run",), "Missing argument 'MODEL'"),
        (("rnu",), "No such command 'rnu'"),
        (("serve", "--port=65536", MODEL), "'--port'"),
        (("serve", "--ctx-len=63", MODEL), "'--ctx-len'"),
        (("serve", "--max-seqs=256", MODEL), "'--max-seqs'"),
        (("run", "--max-seqs=0", MODEL), "'--max-seqs'"),
        (("run", "--kv-tokens=many", MODEL), "'--kv-tokens'"),
        (("serve", "--batch-tokens=31", MODEL), "'--batch-tokens'"),
        (("serve", "--batch-tokens=8193", MODEL), "'--batch-tokens'"),
        (("serve", "--threads=0", MODEL), "'--threads'"),
        (("serve", "--gpu-layers=-2", MODEL), "'--gpu-layers'"),
        (("serve", "--kv-type=f17", MODEL), "'f17' is not one of f16, bf16"),
        (("serve", "--flash-attn=maybe", MODEL), "'maybe' is not one of auto, on, off"),
        (("serve", "--max-waiting=-1", MODEL), "'--max-waiting'"),
        (("serve", "--grace=nan", MODEL), "'--grace'"),
        (("serve", "--grace=inf", MODEL), "'--grace'"),
        (("ps", "--jsno"), "No such option: --jsno"),
    ],
)
def test_wrong_usage_prints_one_line_and_exits_with_2(arguments: Sequence[str], part: str, here: InProcess) -> None:
    assert_fails(here(*arguments), 2, part)


def parsed(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> ServerOptions:
    """The options that `cortex serve` with these arguments hands to the server."""
    received: list[ServerOptions] = []

    def serve(options: ServerOptions, *, ahead: EngineConfig) -> int:
        assert ahead == options.first_engine
        received.append(options)
        return 7

    monkeypatch.setattr(cli, "Ahead", lambda config: config)
    monkeypatch.setitem(sys.modules, "api.http.server", SimpleNamespace(serve=serve))
    monkeypatch.setattr(sys, "argv", ["cortex", "serve", *arguments])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 7
    return received[0]


@pytest.mark.usefixtures("cortex")
def test_options_come_from_flags_then_the_environment_then_defaults(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CTX_LEN", "128"), ("THREADS", "2"), ("ALIAS", "a b"), ("PORT", "0"), ("GRACE", "")):
        monkeypatch.setenv(f"CORTEX_{name}", value)
    assert parsed(
        ["--threads=1", "--kv-type=q8_0", "--disk-cache=1.5GiB", "--cors-origin=*", MODEL], monkeypatch
    ) == ServerOptions(
        ModelOptions(
            MODEL,
            Path(model_path),
            EngineConfig(
                model_path,
                ctx_len=128,
                threads=1,
                kv_type="q8_0",
                disk_cache=3 << 29,
                disk_folder=str(home() / "kv"),
                tuning_folder=str(home() / "tuned"),
                proven_folder=str(home() / "proven"),
            ),
            ("a", "b"),
        ),
        port=0,
        cors_origins=("*",),
    )


@pytest.mark.usefixtures("cortex")
def test_a_background_server_gets_the_same_options(
    model_path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags = ServerFlags(host="localhost", port=0, ctx_len=100, gpu_layers=-1, alias=["my model", "-x"], grace=0.5)
    for name, value in (("HOST", "0.0.0.0"), ("GPU_LAYERS", "5"), ("ALIAS", "other"), ("GRACE", "9")):
        monkeypatch.setenv(f"CORTEX_{name}", value)
    command = launch.server_command("smollm2:135m", flags, tmp_path / "log")
    assert command[:5] == [sys.executable, "-P", "-m", "api", "serve"]
    assert parsed(command[5:], monkeypatch) == flags.options(MODEL, Path(model_path), str(tmp_path / "log"))


def test_an_unusable_model_fails_with_one_line_and_leaves_no_files(
    cortex: Cortex, here: InProcess, model_path: str
) -> None:
    page, cut = cortex.folder / "page.gguf", cortex.folder / "cut.gguf"
    page.write_text("<!doctype html>")
    with Path(model_path).open("rb") as file:
        cut.write_bytes(file.read(1 << 20))
    for model, reason in (
        ("missing.gguf", "there is no file missing.gguf"),
        (str(cut), f"{cut} is cut short"),
        (str(page), f"{page} is not a GGUF file"),
        ("llama3.1:8b-gguf-q4-km", "127.0.0.1:1 cannot be reached"),
    ):
        assert_fails(cortex("run", "-d", model), 1, reason)
        assert_fails(here("run", model), 1, reason)
        assert_fails(here("serve", model), 1, reason)
    assert not cortex.home.exists()


def test_an_unusable_address_fails_with_one_line(cortex: Cortex, here: InProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for command in (cortex("run", "-d", f"--port={port}", MODEL), here("serve", f"--port={port}", MODEL)):
            assert_fails(command, 1, f"port {port} on 127.0.0.1 is taken", "--port")
    assert_fails(here("serve", "--host=no.such.host.invalid", MODEL), 1, "cannot listen on no.such.host.invalid")
    assert_fails(here("serve", "--host=192.0.2.1", MODEL), 1, "cannot listen on 192.0.2.1")
    assert not (cortex.folder / "starts").exists()


def test_a_server_names_the_home_folder_that_it_cannot_use(tmp_path: Path, cortex: Cortex) -> None:
    home = tmp_path / "nowhere"
    home.symlink_to(tmp_path / "gone")
    command = [sys.executable, "-P", "-m", "api", "serve", "--port=0", MODEL]
    environment = cortex.environment | {"CORTEX_HOME": str(home)}
    served = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    [line] = served.stderr.splitlines()
    assert (served.returncode, served.stdout) == (1, "")
    assert f"ERROR cortex.api {home}: " in line


def test_an_unusable_home_folder_fails_with_one_line(
    tmp_path: Path, here: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "file"
    home.touch()
    monkeypatch.setenv("CORTEX_HOME", str(home))
    for command in (("ps",), ("stop",), ("run", "-d", MODEL)):
        assert_fails(here(*command), 1, str(home), "Not a directory")


def test_ps_and_stop_succeed_without_a_server(cortex: Cortex) -> None:
    for arguments, expected in (
        (("ps",), "Nothing is running.\n"),
        (("ps", "--json"), "[]\n"),
        (("stop",), "Nothing is running.\n"),
    ):
        result = cortex(*arguments)
        assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")


def test_a_server_is_started_shown_and_stopped(cortex: Cortex, model_path: str) -> None:
    result = cortex.run(MODEL, "--alias=little")
    record = running()
    url = f"http://localhost:{record.port}/v1"
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{MODEL} is ready at {url}\n", "")

    [server] = json.loads(cortex("ps", "--json").stdout)
    assert server.pop("uptime_seconds") >= 0
    assert server == {
        "model": MODEL,
        "aliases": ["little"],
        "path": model_path,
        "state": "running",
        "pid": record.pid,
        "engine_pid": cortex.engine_pid(),
        "url": url,
        "context_length": 512,
        "kv": {
            "tokens": 96,
            "bytes": 3 << 20,
            "held_tokens": 32,
            "cached_tokens": 0,
            "free_tokens": 64,
            "max_tokens": 0,
        },
        "running": 1,
        "waiting": 2,
        "log": str(cortex.home / "logs/server.log"),
    }
    _, line = cortex("ps").stdout.splitlines()
    for cell in (MODEL, "running", str(record.pid), str(cortex.engine_pid()), "3.0 MiB, 32 of 96 tokens", url):
        assert cell in line

    result = cortex("stop")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{MODEL} stopped.\n", "")
    assert is_gone(record.pid)
    assert cortex("ps", "--json").stdout == "[]\n"


def test_run_succeeds_for_any_name_of_a_running_model(cortex: Cortex, model_path: str) -> None:
    cortex.run(MODEL, "--alias=llama3.1:8b-gguf-q4-km")
    record = running()
    for name in (MODEL, model_path, "llama3.1:8b-gguf-q4-km"):
        result = cortex.run(name)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{name} already runs at {record.base_url}\n"
    assert running() == record


def test_another_server_is_refused_while_one_runs(cortex: Cortex, here: InProcess, model_path: str) -> None:
    cortex.run()
    record = running()
    (cortex.folder / "other.gguf").write_bytes(Path(model_path).read_bytes())
    other = str(cortex.folder / "other.gguf")
    assert_fails(here("serve", other), 1, f"{MODEL} is already served at {record.base_url}", "cortex stop")
    assert_fails(here("run", "-d", "missing.gguf"), 1, "there is no file")
    assert running() == record


def test_another_model_is_served_beside_the_first_and_stopped_alone(cortex: Cortex, model_path: str) -> None:
    cortex.run()
    record = running()
    other = cortex.folder / "other.gguf"
    other.write_bytes(Path(model_path).read_bytes())
    url = record.base_url
    assert cortex("run", "-d", "other.gguf", "--alias=second").stdout == f"other.gguf is ready at {url}\n"
    for name in ("other.gguf", str(other), "second"):
        assert cortex("run", "-d", name).stdout == f"{name} already runs at {url}\n"
    models = json.loads(cortex("ps", "--json").stdout)
    assert [(model["model"], model["path"]) for model in models] == [(MODEL, model_path), ("other.gguf", str(other))]
    assert cortex("run", "other.gguf", stdin="hello\n").stdout.count("got 1") == 1

    assert cortex("stop", str(other)).stdout == f"{other} stopped.\n"
    assert [model["model"] for model in json.loads(cortex("ps", "--json").stdout)] == [MODEL]
    assert running() == record
    assert cortex("stop", MODEL).stdout == f"{MODEL} stopped.\n"  # stopping the last one stops the server
    assert read_record() is None


def test_settings_that_a_running_server_cannot_meet_are_refused(cortex: Cortex, model_path: str) -> None:
    cortex.run()
    (cortex.folder / "other.gguf").write_bytes(Path(model_path).read_bytes())
    record = running()
    assert_fails(cortex("run", "-d", "other.gguf", "--ctx-len=666"), 1, "it takes too much memory")
    for flag, reason in (
        ("--port=1", f"the server already runs with --port {record.port}"),
        ("--grace=1", f"the server already runs with --grace {record.grace_seconds}"),
        ("--on-demand", "the server already runs without --on-demand"),
        ("--cors-origin=http://localhost", "the server already runs without --cors-origin"),
        ("--max-waiting=5", "the server already runs with --max-waiting 1024"),
    ):
        for model in ("other.gguf", MODEL):
            assert_fails(cortex("run", "-d", model, flag), 1, reason)
    assert_fails(cortex("stop", "nobody"), 1, "nobody")


def test_a_server_that_ends_early_is_reported_with_the_end_of_its_log(cortex: Cortex) -> None:
    cortex.behave("ends")
    result = cortex.run()
    assert (result.returncode, result.stdout) == (1, "")
    reason, *lines = result.stderr.splitlines()
    log = cortex.home / "logs/server.log"
    assert reason == f"cortex: {MODEL} did not start: the server ended with exit code 3; the end of {log}:"
    assert lines == [f"  log line {number}" for number in range(6, 21)]
    assert read_record() is None
    assert_engine_ends(cortex)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crashes", "the server ended by SIGSEGV"),
        ("failed", "the server's status is failed: out of memory"),
        ("draining", "the server's status is draining"),
        ("silent", "the server has not answered for 1 seconds"),
        ("hangs", "the server has not answered for 1 seconds"),  # and ignores SIGTERM
    ],
)
def test_a_server_that_cannot_become_ready_is_not_left_behind(cortex: Cortex, behaviour: str, reason: str) -> None:
    cortex.behave(behaviour)
    result = cortex.run()
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"cortex: {MODEL} did not start: {reason}\n"
    assert read_record() is None
    assert_engine_ends(cortex)


def test_each_start_has_its_own_log_and_the_previous_one_is_kept(cortex: Cortex) -> None:
    cortex.behave("ends")
    cortex.run()
    cortex.run()
    logs = cortex.home / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["server.1.log", "server.log"]
    assert len((logs / "server.log").read_text().splitlines()) == 20


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_an_interrupt_while_waiting_leaves_no_server(cortex: Cortex, end: signal.Signals) -> None:
    cortex.behave("loading")
    with cortex.popen("run", "-d", "--port=0", MODEL) as waiting:
        wait_until(lambda: read_record() is not None, "there is a record")
        record = running()
        waiting.send_signal(end)
        out, err = waiting.communicate(timeout=SECONDS)
    assert (waiting.returncode, out) == (130, "")
    assert err == "cortex: interrupted; the server is not left running\n"
    assert read_record() is None
    assert is_gone(record.pid)
    assert_engine_ends(cortex)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_an_interrupt_while_waiting_leaves_no_second_model(
    cortex: Cortex, model_path: str, end: signal.Signals
) -> None:
    cortex.run()
    (cortex.folder / "other.gguf").write_bytes(Path(model_path).read_bytes())
    cortex.behave("loading")
    with cortex.popen("run", "-d", "other.gguf") as waiting:
        wait_until((cortex.folder / "asked").exists, "the server is asked")
        waiting.send_signal(end)
        out, err = waiting.communicate(timeout=SECONDS)
    assert (waiting.returncode, out) == (130, "")
    assert err == "cortex: interrupted; other.gguf is not left running\n"
    assert (cortex.folder / "stopped").read_text() == "other.gguf"


def test_a_stop_waits_for_a_server_that_is_being_started(cortex: Cortex) -> None:
    cortex.behave("starting")
    with cortex.popen("run", "-d", "--port=0", MODEL) as starting:
        wait_until((cortex.folder / "starts").exists, "the server is being started")
        with cortex.popen("stop") as stopping:
            with pytest.raises(subprocess.TimeoutExpired):
                stopping.wait(0.5)
            cortex.behave("ok")
            out, _ = stopping.communicate(timeout=SECONDS)
        starting.communicate(timeout=SECONDS)
    assert (stopping.returncode, out) == (0, f"{MODEL} stopped.\n")
    assert read_record() is None


def test_run_waits_for_a_model_that_is_still_loading(cortex: Cortex) -> None:
    cortex.behave("loading")
    with cortex.popen("serve", "--port=0", MODEL) as server:
        wait_until(lambda: read_record() is not None, "there is a record")
        with cortex.popen("run", "-d", MODEL) as waiting:
            wait_until((cortex.folder / "asked").exists, "the server is asked")
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            cortex.behave("ok")
            out, err = waiting.communicate(timeout=SECONDS)
        assert (waiting.returncode, out, err) == (0, f"{MODEL} already runs at {running().base_url}\n", "")
        assert cortex("stop").returncode == 0
        server.communicate(timeout=SECONDS)
    assert (server.returncode, cortex.num_starts()) == (0, 1)


def test_run_reports_a_loading_server_that_ends(cortex: Cortex) -> None:
    cortex.behave("loading")
    with cortex.popen("serve", "--port=0", MODEL) as server:
        wait_until(lambda: read_record() is not None, "there is a record")
        with cortex.popen("run", "-d", MODEL) as waiting:
            wait_until((cortex.folder / "asked").exists, "the server is asked")
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
            server.kill()
            server.communicate(timeout=SECONDS)
            out, err = waiting.communicate(timeout=SECONDS)
    assert (waiting.returncode, out) == (1, "")
    assert err.startswith(f"cortex: the server of {MODEL} (pid {server.pid}) has ended or does not answer: ")
    assert err.count("\n") == 1


def test_two_starts_at_once_make_one_server(cortex: Cortex) -> None:
    with cortex.popen("run", "-d", "--port=0", MODEL) as one, cortex.popen("run", "-d", "--port=0", MODEL) as two:
        results = [process.communicate(timeout=SECONDS) for process in (one, two)]
    url = running().base_url
    assert (one.returncode, two.returncode) == (0, 0)
    assert sorted(results) == [(f"{MODEL} already runs at {url}\n", ""), (f"{MODEL} is ready at {url}\n", "")]
    assert cortex.num_starts() == 1


def test_a_killed_server_counts_as_stopped(cortex: Cortex) -> None:
    cortex.run()
    first = running()
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: read_record() is None, "the record is no longer held")
    assert (cortex.home / "server.json").exists()
    assert cortex("ps", "--json").stdout == "[]\n"
    assert cortex("stop").stdout == "Nothing is running.\n"
    os.kill(cortex.engine_pid(), signal.SIGKILL)
    assert "is ready" in cortex.run().stdout
    assert running().pid != first.pid


def test_a_server_that_does_not_respond_is_shown_and_can_be_stopped(cortex: Cortex) -> None:
    cortex.run()
    cortex.behave("silent")
    [server] = json.loads(cortex("ps", "--json").stdout)
    assert (server["state"], server["engine_pid"], server["kv"]) == ("not responding", None, None)
    assert "not responding" in cortex("ps").stdout
    result = cortex.run()
    assert result.returncode == 1
    assert "does not answer" in result.stderr
    assert_fails(cortex("stop", "nobody"), 1, "does not answer")
    assert cortex("stop").returncode == 0
    assert read_record() is None


def test_a_server_that_will_not_stop_is_killed_with_its_engine(cortex: Cortex) -> None:
    cortex.run()
    cortex.behave("deaf")
    record = running()
    result = cortex("stop")
    assert (result.returncode, result.stdout) == (0, f"{MODEL} stopped.\n")
    assert result.stderr == f"cortex: {MODEL} did not end within 0.5 seconds and was killed\n"
    assert is_gone(record.pid)
    assert_engine_ends(cortex)


def test_a_chat_through_a_pipe_keeps_the_history_and_the_server(cortex: Cortex) -> None:
    result = cortex("run", "--port=0", MODEL, stdin="one\n\n two \nexit()\nnever\n")
    assert (result.returncode, result.stdout) == (0, "got 1\ngot 3\n")
    assert result.stderr == f"{MODEL} still runs at {running().base_url}; stop it with 'cortex stop'.\n"


def test_a_failed_answer_prints_one_line_and_the_chat_continues(cortex: Cortex) -> None:
    result = cortex("run", "--port=0", MODEL, stdin="one\nfail\ntwo")
    assert (result.returncode, result.stdout.split()) == (1, ["got", "1", "got", "3"])
    assert result.stderr.splitlines()[0] == "cortex: no answer today"
    assert read_record() is not None


@pytest.mark.parametrize(
    ("size", "expected"), [("0", 0), ("7", 7), ("2k", 2048), ("1.5 GiB", 3 << 29), ("3MB", 3_000_000), ("1t", 1 << 40)]
)
def test_common_spellings_of_sizes_are_read(size: str, expected: int) -> None:
    assert num_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "GiB", "-1", "1 GiBs", "1e3", "1.GB"])
def test_an_invalid_size_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        num_bytes(size)


@pytest.mark.parametrize("size", ["9" * 400, "9" * 300 + "TiB", "8388608TiB"])
@pytest.mark.parametrize("flag", ["--host-cache", "--disk-cache"])
def test_a_size_that_is_too_large_fails_with_one_line(here: InProcess, flag: str, size: str) -> None:
    assert_fails(here("serve", f"{flag}={size}", MODEL), 2, f"{flag}'", "is too large")


@pytest.mark.parametrize("size", ["9" * 400, "much"])
def test_a_start_request_with_an_invalid_size_is_refused(size: str) -> None:
    with pytest.raises(ValidationError, match=r"is too large|is not a size"):
        StartRequest.model_validate({"model": "m", "host_cache": size})


def test_a_flag_has_the_same_bounds_on_the_command_line_and_in_a_start_request() -> None:
    flags = get_type_hints(ModelFlags, include_extras=True)
    fields = StartRequest.model_json_schema()["properties"]
    bounds = {name: (flag.__metadata__[0].min, flag.__metadata__[0].max) for name, flag in flags.items()}
    asked = {name: fields[name]["anyOf"][0] for name in flags}
    assert bounds == {name: (field.get("minimum"), field.get("maximum")) for name, field in asked.items()}
    assert bounds["threads"] == (1, 1024)


@pytest.mark.parametrize("name", ["", "x" * 513])
def test_an_alias_of_invalid_length_is_refused(here: InProcess, name: str) -> None:
    assert_fails(
        here("serve", "--alias=ok", f"--alias={name}", MODEL), 2, "'--alias'", "a name has 1 to 512 characters."
    )
    with pytest.raises(ValidationError, match="alias"):
        StartRequest.model_validate({"model": "m", "alias": ["ok", name]})


def test_tuning_reports_the_settings_that_it_keeps(cortex: Cortex, tiny_model_path: str) -> None:
    command = [sys.executable, "-m", "api", "tune", "--seconds=1", "--json", tiny_model_path]
    run = subprocess.run(command, env=cortex.environment, cwd=ROOT, capture_output=True, text=True, timeout=4 * SECONDS)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    outcome = json.loads(run.stdout)
    [kept] = (cortex.home / "tuned").iterdir()
    assert json.loads(kept.read_text()) == outcome["tuning"]
    assert str(outcome["tuning"]["threads"]) in outcome["measured"]["threads"]


def test_the_table_of_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"threads": {"4": 2.0, "8": 1.5}, "batch_tokens": {"512": 3.25}, "prompt_tokens": 512}
    print_tuning("m", {"measured": measured, "tuning": {"threads": 8, "batch_tokens": 512}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["THREADS", "SECONDS"],
        ["4", "2.00"],
        ["8", "1.50"],
        ["TOKENS", "PER", "STEP", "SECONDS", "FOR", "512", "TOKENS"],
        ["512", "3.25"],
        ["m", "will", "be", "served", "with", "8", "threads", "and", "steps", "of", "up", "to", "512", "tokens."],
    ]


def test_tuning_an_invalid_model_fails_with_one_line(cortex: Cortex, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    assert_fails(cortex("tune", str(broken)), 1, "broken.gguf")
    assert_fails(cortex("tune", "nothing:such"), 1, "nothing:such")


def test_tuning_is_refused_while_a_server_runs(cortex: Cortex) -> None:
    assert cortex.run().returncode == 0
    assert_fails(cortex("tune", MODEL), 1, MODEL)
