"""cortex.toml, and the precedence of the sources of a flag."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from api.command import launch
from api.command.flags import with_server_flags
from api.flags import MODEL_ROWS, ROWS, ModelFlags, ModelOptions, Row, ServerFlags
from api.flags.config_file import read_config
from api.protocols.management.request import StartRequest
from tests.api.command.test_cli import MODEL, Cortex, InProcess, assert_fails, cortex, here, parsed, running
from tests.api.servers import SECONDS, CortexServer

__all__ = ["cortex", "here"]

SIZES = st.sampled_from(["0", "7", "512MiB", "1.5 GiB", "3MB", "4g"])
ENDPOINTS = st.sampled_from(["tcp://*:5557", "tcp://127.0.0.1:1", "tcp://[::1]:65535", "tcp://eth0:*"])
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """$CORTEX_HOME of the tests in this process. No other variable is set."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CORTEX_")]:
            patch.delenv(name)
        patch.setenv("CORTEX_HOME", str(folder))
        yield folder


def values(row: Row) -> st.SearchStrategy[Any]:
    """Valid values of a flag."""
    flag = row.flag
    if flag.choices:
        return st.sampled_from(flag.choices)
    if row.type is int:
        return st.integers(int(flag.min or 0), int(flag.max or 1 << 40))
    if row.type is float:
        return st.floats(flag.min or 0.0, flag.max or 1e9)
    if row.type is bool:
        return st.booleans()
    if row.type is list:
        return st.lists(TEXT, min_size=1, max_size=3)
    if flag.is_model:
        return st.sampled_from([MODEL, "owner/repo:Q4_0", "/models/draft.gguf", ""])
    if flag.is_endpoint:
        return ENDPOINTS
    return SIZES if flag.is_size else TEXT


def settings(rows: Mapping[str, Row]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: values(row) for name, row in rows.items()})


def as_toml(flags: Mapping[str, Any]) -> str:
    # For these values JSON is TOML.
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in flags.items())


def flags_of(*arguments: str) -> ServerFlags:
    """The flags that a command with all flags receives."""
    received: list[ServerFlags] = []
    app = typer.Typer()

    @app.command()
    @with_server_flags()
    def command(flags: ServerFlags) -> None:
        received.append(flags)

    typer.main.get_command(app).main(list(arguments), standalone_mode=False)
    return received[0]


@given(settings(ROWS))
def test_the_arguments_for_flags_are_parsed_to_the_same_flags(flags: dict[str, Any]) -> None:
    assert flags_of(*ServerFlags(**flags).arguments()) == ServerFlags(**flags)


@given(settings(ROWS))
def test_a_file_sets_the_same_flags(home: Path, flags: dict[str, Any]) -> None:
    file = home / "some.toml"
    file.write_text(as_toml(flags))
    assert read_config(str(file)) == flags
    assert flags_of(f"--config={file}") == ServerFlags(**flags)


@given(settings(MODEL_ROWS))
def test_a_start_request_sets_the_same_flags(flags: dict[str, Any]) -> None:
    body = json.loads(json.dumps(ModelFlags(**flags).start_request("m", Path("/m.gguf"))))
    request = StartRequest.model_validate(body)
    alias = {"alias": flags.get("alias", [])}
    assert (request.model, request.path, request.flags()) == ("m", "/m.gguf", ModelFlags(**flags | alias))


@given(settings(ROWS))
def test_a_file_accepts_the_values_of_other_sources(flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        assert ROWS[name].checked(value) == value


# Precedence

SOURCES = ("request", "flag", "environment", "cortex.toml", "model.yaml", "built-in")


def options_by_source(
    sources: tuple[str, ...], model_path: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelOptions]:
    """The options of a model. Each of these sources sets ctx_len and gpu_layers by its place in SOURCES."""
    monkeypatch.setenv("CORTEX_HOME", str(folder))
    monkeypatch.setattr(launch, "require_free_address", lambda _: None)
    model = folder / "m.gguf"
    model.symlink_to(model_path)
    number = {source: SOURCES.index(source) for source in sources}
    arguments = []
    if "flag" in sources:
        arguments = [f"--ctx-len={100 + number['flag']}", f"--gpu-layers={number['flag']}"]
    if "environment" in sources:
        monkeypatch.setenv("CORTEX_CTX_LEN", str(100 + number["environment"]))
        monkeypatch.setenv("CORTEX_GPU_LAYERS", str(number["environment"]))
    if "cortex.toml" in sources:
        value = number["cortex.toml"]
        (folder / "cortex.toml").write_text(f"ctx_len = {100 + value}\ngpu_layers = {value}\nport = 0\n")
    if "model.yaml" in sources:
        value = number["model.yaml"]
        (folder / "model.yaml").write_text(f"ctx_len: {100 + value}\nngl: {value}\n")
    server = parsed([*arguments, "--on-demand", "--port=0", str(model)], monkeypatch)
    body: dict[str, Any] = {"model": "n", "path": str(model)}
    if "request" in sources:
        body |= {"ctx_len": 100 + number["request"], "gpu_layers": number["request"]}
    else:
        yield server.first
    yield StartRequest.model_validate(body).flags().model_options("n", model, server.model_flags)


@pytest.mark.parametrize("first", SOURCES)
def test_each_source_overrides_the_later_ones(
    first: str, model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SOURCES.index(first)
    for options in options_by_source(SOURCES[place:], model_path, tmp_path, monkeypatch):
        expected = (None, -1) if first == "built-in" else (100 + place, place)
        assert (options.engine.ctx_len, options.engine.gpu_layers) == expected


@pytest.mark.parametrize("source", SOURCES[:-1])
def test_each_source_alone_sets_a_flag(
    source: str, model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SOURCES.index(source)
    for options in options_by_source((source,), model_path, tmp_path, monkeypatch):
        assert (options.engine.ctx_len, options.engine.gpu_layers) == (100 + place, place)


def test_a_flag_set_to_its_default_overrides_the_file(home: Path) -> None:
    file = home / "some.toml"
    file.write_text('kv_type = "q8_0"\non_demand = true\ngrace = 5\nalias = ["a"]\n')
    assert flags_of(f"--config={file}").grace == 5.0
    flags = flags_of(f"--config={file}", "--kv-type=f16", "--no-on-demand", "--grace=30", "--alias=b")
    assert (flags.kv_type, flags.on_demand, flags.grace, flags.alias) == ("f16", False, 30.0, ["b"])


def test_models_loaded_later_inherit_the_servers_flags_except_aliases(home: Path) -> None:
    server = ServerFlags(threads=1, kv_type="q8_0", alias=["a"], on_demand=True)
    options = server.options("m", Path("/m.gguf"))
    assert options.first.aliases == ("a",)
    found = options.on_demand(MODEL)
    assert found is not None
    started = ModelFlags(kv_type="f16", alias=["b"]).model_options("n", Path("/n.gguf"), options.model_flags)
    assert (found.engine.threads, found.engine.kv_type, found.aliases) == (1, "q8_0", ())
    assert (started.engine.threads, started.engine.kv_type, started.aliases) == (1, "f16", ("b",))
    # Inherited flags are not compared: a model that runs with other flags satisfies the same request.
    other = ModelFlags(threads=2, kv_type="f16", alias=["b"]).model_options("n", Path("/n.gguf"))
    assert other.difference(started) == ""
    assert started.difference(other) == "its --threads differs"
    # A running model's inherited flags are compared.
    assert started.difference(ModelFlags(threads=1).model_options("n", Path("/n.gguf"))) == ""


def test_models_started_later_get_the_running_servers_flags(tmp_path: Path, tiny_model_path: str) -> None:
    for name in ("two", "three"):
        (tmp_path / f"{name}.gguf").symlink_to(tiny_model_path)
    (tmp_path / "cortex.toml").write_text('ctx_len = 512\nmax_seqs = 2\nkv_layout = "pool"\nhost_cache = "0"\n')
    with CortexServer(tmp_path, "--ctx-len=256") as server:
        for body in ({"model": "two"}, {"model": "three", "ctx_len": 128}):
            body |= {"path": str(tmp_path / f"{body['model']}.gguf")}
            answer = httpx.post(f"{server.url}/models/start", json=body, headers=server.owner, timeout=SECONDS)
            assert answer.status_code == 200, answer.text
        contexts = [server.health(name)["context_length"] for name in (MODEL, "two", "three")]
    assert contexts == [256, 256, 128]


# The path of the file


def test_the_path_of_the_file_comes_from_flag_then_variable_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path))
    assert flags_of() == ServerFlags()
    for name, threads in (("cortex.toml", 1), ("variable.toml", 2), ("flag.toml", 3)):
        (tmp_path / name).write_text(f"threads = {threads}")
    assert flags_of().threads == 1
    monkeypatch.setenv("CORTEX_CONFIG", "")
    assert flags_of().threads == 1
    monkeypatch.setenv("CORTEX_CONFIG", str(tmp_path / "variable.toml"))
    assert flags_of().threads == 2
    assert flags_of(f"--config={tmp_path / 'flag.toml'}").threads == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert flags_of("--config=~/flag.toml").threads == 3


def test_a_command_with_some_flags_takes_only_these_from_the_file(home: Path, here: InProcess) -> None:
    file = home / "some.toml"
    file.write_text('threads = 1\nkv_type = "q8_0"\n')
    received: list[ServerFlags] = []
    app = typer.Typer()

    @app.command()
    @with_server_flags("kv_type")
    def command(flags: ServerFlags) -> None:
        received.append(flags)

    typer.main.get_command(app).main([f"--config={file}"], standalone_mode=False)
    assert received == [ServerFlags(kv_type="q8_0")]
    file.write_text("threads = 0")
    assert_fails(here("tune", f"--config={file}", MODEL), 2, f"{file}: threads: must be from 1 to 1024")


def test_a_background_server_gets_the_files_values_and_reads_no_file(cortex: Cortex) -> None:
    cortex.home.mkdir()
    (cortex.home / "cortex.toml").write_text("grace = 0\nport = 0\nmax_waiting = 7\n")
    (cortex.folder / "other.toml").write_text("port = 0\nmax_waiting = 8\n")
    assert cortex("run", "-d", "--config=other.toml", MODEL).returncode == 0
    assert (running().max_waiting, running().grace_seconds) == (8, 30.0)
    assert_fails(cortex("run", "-d", MODEL), 1, "the server already runs with --max-waiting 8")
    assert_fails(cortex("run", "-d", "--max-waiting=8", MODEL), 1, "the server already runs with --grace 30.0")
    assert "already runs" in cortex("run", "-d", "--max-waiting=8", "--grace=30", MODEL).stdout
    (cortex.folder / "other.toml").write_text("ctx_len = 666\n")
    assert_fails(cortex("run", "-d", "--config=other.toml", MODEL), 1, "it takes too much memory")
    assert cortex("stop").returncode == 0
    assert cortex("run", "-d", MODEL).returncode == 0
    assert (running().max_waiting, running().grace_seconds) == (7, 0.0)


# Invalid files


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ctx_lne = 128", "the key 'ctx_lne' is unknown"),
        ("ctx-len = 128", "the key 'ctx-len' is unknown; did you mean 'ctx_len'?"),
        ("config = 'other.toml'", "the key 'config' is unknown"),
        ("[server]\nport = 1", "the key 'server' is unknown"),
        ("port = 0\nctx_len = '128'", "ctx_len: must be an integer"),
        ("ctx_len = 128.0", "ctx_len: must be an integer"),
        ("ctx_len = true", "ctx_len: must be an integer"),
        ("[ctx_len]\nmin = 1", "ctx_len: must be an integer"),
        ("ctx_len = 63", "ctx_len: must be at least 64"),
        ("max_seqs = 256", "max_seqs: must be from 1 to 255"),
        ("port = -1", "port: must be from 0 to 65535"),
        ("itl_target = '1 s'", "itl_target: must be a number"),
        ("itl_target = false", "itl_target: must be a number"),
        ("itl_target = 0", "itl_target: must be from 0.001 to 3600"),
        ("grace = nan", "grace: must be from 0 to 86400"),
        ("idle_limit = inf", "idle_limit: must be at least 0"),
        pytest.param(f"idle_limit = {'9' * 400}", "idle_limit: must be a number", id="an integer that no float holds"),
        ("kv_type = 16", "kv_type: must be a string"),
        ("kv_type = 'f17'", "kv_type: 'f17' is not one of f16, bf16"),
        ("host_cache = '4 gigs'", "host_cache: '4 gigs' is not a size such as 512MiB, 4GiB or 0."),
        ("host_cache = 0", 'host_cache: must be a size in quotes, such as "4GiB" or "0"'),
        ("disk_cache = '9999999999TiB'", "disk_cache: '9999999999TiB' is too large; it must be less than 8 EiB."),
        ("host = 1979-05-27", "host: must be a string"),
        ("alias = 'a'", "alias: must be a list of strings"),
        ("alias = ['a', 1]", "alias: must be a list of strings"),
        ("alias = ['a', '']", "alias: a name has 1 to 512 characters."),
        ("on_demand = 1", "on_demand: must be true or false"),
        ("port = 1\nport =", "is not TOML: Invalid value (at line 2, column "),
        ("ctx_len = 1\n\nctx_len = 2", "(at line 3"),
        pytest.param(f"alias = {'[' * 10_000}", "is not TOML: ", id="too deep"),
        pytest.param(f"ctx_len = {'9' * 10_000}", "is not TOML: ", id="more digits than Python reads"),
        (b"host = '\xff'", "is not UTF-8: invalid start byte at byte 8"),
    ],
)
def test_an_invalid_file_fails_with_one_line(text: str | bytes, reason: str, tmp_path: Path, here: InProcess) -> None:
    file = tmp_path / "some.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_fails(here("serve", f"--config={file}", MODEL), 2, f"cortex: {file}", reason)


def test_an_unreadable_file_fails_with_one_line(
    tmp_path: Path, here: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, folder = tmp_path / "missing.toml", tmp_path / "folder"
    folder.mkdir()
    for file, reason in ((missing, "No such file or directory"), (folder, "Is a directory")):
        assert_fails(here("serve", f"--config={file}", MODEL), 2, f"{file} cannot be read: {reason}")
        with monkeypatch.context() as patch:
            patch.setenv("CORTEX_CONFIG", str(file))
            assert_fails(here("run", "-d", MODEL), 2, f"{file} cannot be read: {reason}")
    (tmp_path / "home/cortex.toml").mkdir(parents=True)
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    assert_fails(here("serve", MODEL), 2, "home/cortex.toml cannot be read: Is a directory")


def test_an_invalid_flag_is_reported_before_the_file_is_read(here: InProcess, tmp_path: Path) -> None:
    assert_fails(here("serve", f"--config={tmp_path}", "--port=-1", MODEL), 2, "'--port'")


def test_commands_without_flags_need_no_file(cortex: Cortex) -> None:
    cortex.home.mkdir()
    (cortex.home / "cortex.toml").write_text("nonsense")
    assert cortex("ps").stdout == "Nothing is running.\n"
    assert cortex("stop").stdout == "Nothing is running.\n"
