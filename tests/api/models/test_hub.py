"""`cortex pull` against a stand-in of a model hub."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from api.command import cli
from api.command.launch import end
from api.models import hub as downloads
from api.models.files import ModelFilesError, ModelNotFoundError, NotOnDiskError, resolve, resolve_name
from api.record import ask, ask_health, read_record
from api.text.tokenizer import Tokenizer
from tests.api.models.gguf_files import gguf
from tests.api.models.hub import Hub
from tests.api.servers import SECONDS, wait_until

ROOT = Path(__file__).parents[3]
SIZE = 400_000

Cortex = Callable[..., subprocess.CompletedProcess[str]]


def model(seed: int = 0, size: int = SIZE) -> bytes:
    """A small GGUF file, filled up with random bytes of this seed."""
    head = gguf()
    return head + random.Random(seed).randbytes(size - len(head))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Path:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "home"


@pytest.fixture
def cortex(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cortex:
    """The command in this process."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["cortex", *arguments])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(raised.value.code or 0), out, err)

    return call


def spawn(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "api", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_pulled(result: subprocess.CompletedProcess[str], path: Path) -> None:
    """The command printed only one line, on stdout."""
    assert (result.returncode, result.stderr) == (0, "")
    [line] = result.stdout.splitlines()
    assert line.startswith(f"{result.args[-1]} is now on disk: ")
    assert line.endswith(f" at {path}")


def assert_fails(result: subprocess.CompletedProcess[str], *reason: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("cortex: ")
    assert [part for part in reason if part not in line] == [], line


def files_in(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def has_received(home: Path, num_bytes: int) -> bool:
    return max(map(len, files_in(home).values()), default=0) == num_bytes


@pytest.mark.parametrize(
    ("name", "repository", "revision", "folder"),
    [
        ("tiny:135m-gguf", "cortexso/tiny", "135m-gguf", "tiny/135m-gguf"),
        ("owner/repo", "owner/repo", "main", "owner/repo"),
        ("owner/repo:model.gguf", "owner/repo", "main", "owner/repo"),
        ("tiny:135m-gguf:model.gguf", "cortexso/tiny", "135m-gguf", "tiny/135m-gguf"),
    ],
)
def test_a_pulled_model_is_complete_and_found_by_its_name(
    hub: Hub, home: Path, cortex: Cortex, name: str, repository: str, revision: str, folder: str
) -> None:
    hub.add(repository, {"model.gguf": model(), "README.md": b"read me"}, revision)
    path = home / "models" / folder / "model.gguf"
    assert_pulled(cortex("pull", name), path)
    assert resolve(name) == path
    assert files_in(home) == {
        f"models/{folder}/model.gguf": model(),
        f"models/{folder}/.name": name.removesuffix(":model.gguf").encode(),
    }
    assert [(asked.file, asked.range) for asked in hub.asked] == [("model.gguf", "bytes=0-")]


def test_a_model_on_disk_is_reported_without_a_request_to_the_hub(hub: Hub, cortex: Cortex) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    cortex("pull", "owner/repo")
    hub.paths.clear()
    for name in ("owner/repo", "smollm2:135m"):
        result = cortex("pull", name)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"{name} is already on disk: ")
    assert hub.paths == []


def test_a_pull_sends_only_the_needed_requests(hub: Hub, cortex: Cortex) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    cortex("pull", "owner/repo")
    assert [path.split("/")[1] for path in hub.paths] == ["api", "owner", "cdn"]


@pytest.mark.parametrize("ending", ["connection", "interrupt", "kill"])
def test_an_interrupted_pull_is_resumed(hub: Hub, home: Path, cortex: Cortex, ending: str) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget = SIZE // 2
    if ending == "connection":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(downloads, "RETRY_SECONDS", (0.0,))
            result = cortex("pull", "owner/repo")
        assert_fails(
            result, f"{SIZE // 2:,} of {SIZE:,} bytes are on disk", "'cortex pull owner/repo' resumes the download"
        )
    else:
        hub.waits = True
        with spawn("pull", "owner/repo") as pulling:
            wait_until(lambda: has_received(home, SIZE // 2), "half of it was received")
            pulling.send_signal(signal.SIGINT if ending == "interrupt" else signal.SIGKILL)
            out, err = pulling.communicate(timeout=SECONDS)
        assert out == ""
        reason = "cortex: interrupted; 'cortex pull owner/repo' resumes the download\n" if ending == "interrupt" else ""
        assert (pulling.returncode, err) == (130 if ending == "interrupt" else -signal.SIGKILL, reason)
    with pytest.raises(NotOnDiskError):
        resolve("owner/repo")
    kept = {path: content for path, content in files_in(home).items() if not path.endswith(("/lock", "/model"))}
    assert list(kept.values()) == [model()[: SIZE // 2]]
    assert all(path.startswith("models/owner/repo/.pulls/") for path in kept)

    hub.budget, hub.waits = None, False
    hub.asked.clear()
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert [asked.range for asked in hub.asked] == [f"bytes={SIZE // 2}-"]
    assert hub.sent == SIZE
    assert files_in(home) == {"models/owner/repo/model.gguf": model(), "models/owner/repo/.name": b"owner/repo"}


def test_a_download_is_stored_on_the_disk_of_a_linked_folder(
    hub: Hub, home: Path, cortex: Cortex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    disk = tmp_path / "disk"
    disk.mkdir()
    (home / "models").mkdir(parents=True)
    (home / "models/owner").symlink_to(disk)
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget = SIZE // 2
    assert cortex("pull", "owner/repo").returncode == 1
    assert model()[: SIZE // 2] in files_in(disk).values()
    hub.budget = None
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert files_in(disk) == {"repo/model.gguf": model(), "repo/.name": b"owner/repo"}
    assert cortex("models", "remove", "owner/repo").returncode == 0
    assert [path.name for path in (home / "models").iterdir()] == ["owner"]
    assert list(disk.iterdir()) == []


def test_a_download_is_resumed_after_a_lost_connection(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", (0.0,))
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget, hub.cut_once = 100_000, True
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert [asked.range for asked in hub.asked] == ["bytes=0-", "bytes=100000-"]
    assert hub.sent == SIZE


def test_without_range_support_the_whole_file_is_sent_again(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", (0.0,))
    hub.add("owner/repo", {"model.gguf": model()})
    hub.ranges, hub.budget, hub.cut_once = False, 100_000, True
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert hub.sent == 100_000 + SIZE


REFUSALS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "repository": ({"refusal": (404, "RepoNotFound")}, ("has no repository owner/repo",)),
    "plain 404": ({"refusal": (404, "")}, ("has no repository owner/repo, or no revision main of it",)),
    "revision": ({"refusal": (404, "RevisionNotFound")}, ("owner/repo has no revision main",)),
    "unknown": ({"token": "secret"}, ("answered 401 Unauthorized for owner/repo", "set HF_TOKEN")),
    "forbidden": ({"refusal": (403, "")}, ("answered 403 Forbidden for owner/repo", "set HF_TOKEN")),
    "gated": ({"file_refusal": (403, "GatedRepo")}, ("owner/repo is gated: accept its terms at http", "set HF_TOKEN")),
    "file": ({"file_refusal": (404, "EntryNotFound")}, ("owner/repo has no file model.gguf",)),
    "trouble": ({"refusal": (500, "")}, ("answered 500 Internal Server Error",)),
    "no hub": ({"html": True}, ("is not a model hub",)),
    "damaged": ({"corrupts": True}, ("model.gguf is damaged: its checksum is ", ", the hub's is ")),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_of_the_hub_fails_with_one_line_and_leaves_no_files(
    hub: Hub, home: Path, cortex: Cortex, refusal: str
) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    behaviour, reason = REFUSALS[refusal]
    for name, value in behaviour.items():
        setattr(hub, name, value)
    assert_fails(cortex("pull", "owner/repo"), *reason)
    assert not home.exists()


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500])
def test_received_bytes_are_kept_if_the_hub_refuses_the_rest(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget = SIZE // 2
    cortex("pull", "owner/repo")
    hub.budget, hub.file_refusal = None, (code, "")
    progress = f"{SIZE // 2:,} of {SIZE:,} bytes are on disk, and 'cortex pull owner/repo' resumes the download"
    assert_fails(cortex("pull", "owner/repo"), progress)
    hub.file_refusal = None
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert hub.sent == SIZE


def test_a_file_whose_range_is_refused_is_downloaded_again(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget = SIZE // 2
    cortex("pull", "owner/repo")
    hub.budget, hub.range_refusal = None, True
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert hub.sent == SIZE // 2 + SIZE


def test_a_pull_that_receives_nothing_leaves_no_files(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget = 0
    assert_fails(cortex("pull", "owner/repo"), "cannot be reached")
    assert not home.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!doctype html>", "model.gguf is not a GGUF file"),
        (gguf()[:-1], "model.gguf is cut short"),
        (b"", "model.gguf is not a GGUF file"),
    ],
)
def test_an_invalid_model_fails_with_one_line_and_leaves_no_files(
    hub: Hub, home: Path, cortex: Cortex, content: bytes, reason: str
) -> None:
    hub.add("owner/repo", {"model.gguf": content})
    assert_fails(cortex("pull", "owner/repo"), reason)
    assert not home.exists()


def test_an_unreachable_hub_fails_with_one_line(home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint, reason in (
        ("http://127.0.0.1:1", "127.0.0.1:1 cannot be reached: "),
        ("http://[", "HF_ENDPOINT is 'http://[', which is not a valid URL"),
        ("http://localhost:99999", "which is not a valid URL"),
        ("nonsense", "HF_ENDPOINT is 'nonsense', which is not a valid URL"),
    ):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert_fails(cortex("pull", "owner/repo"), reason)
        assert_fails(cortex("run", "-d", "owner/repo"), reason)
        assert_fails(cortex("serve", "owner/repo"), reason)
    assert not home.exists()


@pytest.mark.parametrize("name", ["./model.gguf", "model", "a/b/c", "/etc/passwd"])
def test_an_invalid_name_fails_with_one_line(hub: Hub, home: Path, cortex: Cortex, name: str) -> None:
    assert_fails(cortex("pull", name), repr(name), "name:branch[:file] and owner/repo[:file]")
    assert hub.paths == []


def test_an_invalid_repository_name_fails_with_one_line(hub: Hub, cortex: Cortex) -> None:
    assert_fails(cortex("pull", "owner/a--b"), "owner/a--b is not a valid name of a repository")
    assert hub.paths == []


def test_too_little_disk_space_is_reported_before_the_download(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SIZE - 1))
    assert_fails(cortex("pull", "owner/repo"), f"needs {SIZE:,} bytes, and {SIZE - 1:,} are free")
    assert hub.asked == []
    assert not home.exists()


@pytest.mark.parametrize("already", [0, SIZE // 4])
def test_a_disk_that_fills_up_fails_with_one_line_and_leaves_no_files(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch, already: int
) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    if already:
        hub.budget = already
        monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
        cortex("pull", "owner/repo")
        hub.budget = None
    limited = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE // 2}, {SIZE // 2}))\n"
        "from api.command import cli\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-P", "-c", limited, "pull", "owner/repo"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_fails(result, f"the disk is full: owner/repo takes {SIZE:,} bytes")
    assert not home.exists()


def test_a_disk_error_fails_with_one_line_and_leaves_no_files(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hub.add("owner/repo", {"model.gguf": model()})
    monkeypatch.setattr(os, "fsync", full)
    assert_fails(cortex("pull", "owner/repo"), "the disk is full")
    assert not home.exists()


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert_fails(cortex("pull", "owner/repo"), "401")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/model.gguf")
    assert [asked.authorization for asked in hub.asked] == [None]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("HF_TOKEN", "\u00e9", "HF_TOKEN, or the token file, has no valid token"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc", "HF_HUB_DOWNLOAD_TIMEOUT is 'abc', which is not a whole number of seconds"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "-1", "HF_HUB_DOWNLOAD_TIMEOUT is '-1', which is not a whole number"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "9" * 20, "which is not a whole number of seconds up to 1,000,000"),
        ("HF_HUB_ETAG_TIMEOUT", "", "HF_HUB_ETAG_TIMEOUT is '', which is not a whole number of seconds"),
    ],
)
def test_an_invalid_environment_variable_fails_with_one_line(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    monkeypatch.setenv(name, value)
    with spawn("pull", "owner/repo") as pulling:
        out, err = pulling.communicate(timeout=SECONDS)
    assert_fails(subprocess.CompletedProcess("", pulling.returncode, out, err), reason)
    assert hub.paths == []
    assert not home.exists()


def test_an_invalid_token_file_fails_with_one_line(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_bytes("\u00e9".encode("latin-1"))
    with spawn("pull", "owner/repo") as pulling:
        out, err = pulling.communicate(timeout=SECONDS)
    assert_fails(subprocess.CompletedProcess("", pulling.returncode, out, err), "has no valid token: it is not ASCII")
    assert hub.paths == []


def test_offline_mode_fails_with_one_line(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the library reads it when it is imported
    with spawn("pull", "owner/repo") as pulling:
        out, err = pulling.communicate(timeout=SECONDS)
    reason = "cortex: nothing can be downloaded while HF_HUB_OFFLINE is set\n"
    assert (pulling.returncode, out, err) == (1, "", reason)
    assert hub.paths == []
    assert not home.exists()


def test_files_with_unusual_names_are_pulled_and_removed(hub: Hub, home: Path, cortex: Cortex) -> None:
    files = {"my model one.gguf": model(1), "sub/my+model: two.gguf": model(2)}
    hub.add("owner/repo", files)
    for file in files:
        assert_pulled(cortex("pull", f"owner/repo:{file}"), home / "models/owner/repo" / file)
    for file in files:
        assert cortex("models", "remove", f"owner/repo:{file}").returncode == 0
    assert not home.exists()


def test_an_unfinished_pull_can_be_removed_unless_it_still_runs(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    hub.budget, hub.waits = SIZE // 2, True
    with spawn("pull", "owner/repo") as pulling:
        wait_until(lambda: has_received(home, SIZE // 2), "half of it was received")
        assert_fails(cortex("models", "remove", "owner/repo"), "owner/repo is still being pulled")
        pulling.kill()
    result = cortex("models", "remove", "owner/repo")
    assert (result.returncode, result.stdout) == (0, "The unfinished files of owner/repo are removed.\n")
    assert not home.exists()
    assert_fails(cortex("models", "remove", "owner/repo"), "owner/repo is not on disk")


def test_only_the_named_unfinished_pull_is_removed(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    hub.add("cortexso/big", {"m.gguf": model(1)}, "8b")
    hub.add("cortexso/big", {"m.gguf": model(2)}, "70b")
    hub.add("owner/repo", {"m-Q4_K_M.gguf": model(3), "m-Q8_0.gguf": model(4)})
    for name in ("big:8b", "big:70b", "owner/repo", "owner/repo:Q8_0"):
        hub.budget = SIZE // 2
        assert cortex("pull", name).returncode == 1
    before = files_in(home)
    for name in ("cortexso/big", "big:13b", "big:8b:x", "cortexso/big:m.gguf", "owner/repo:Q6_K", "owner:repo"):
        assert_fails(cortex("models", "remove", name), f"{name} is not on disk")
    several = "owner/repo matches several unfinished models: owner/repo:m-Q4_K_M.gguf, owner/repo:m-Q8_0.gguf"
    assert_fails(cortex("models", "remove", "owner/repo"), several)
    assert files_in(home) == before
    for name, seed in (("big:8b", 1), ("owner/repo:q8_0", 4), ("owner/repo", 3), ("big:70b:m.gguf", 2)):
        result = cortex("models", "remove", name)
        assert (result.returncode, result.stdout) == (0, f"The unfinished files of {name} are removed.\n")
        gone = before.items() - files_in(home).items()
        assert model(seed)[: SIZE // 2] in [content for _, content in gone]
        assert len(gone) == 2
        before = files_in(home)
    assert not home.exists()


def test_an_unfinished_pull_can_be_removed_from_the_folder_of_another_model(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    hub.add("cortexso/one", {"m.gguf": model(1)}, "two")
    hub.add("one/two", {"m.gguf": model(2)})
    hub.budget = SIZE // 2
    cortex("pull", "one/two")
    hub.budget = None
    cortex("pull", "one:two")
    assert cortex("models", "remove", "one/two").returncode == 0
    assert files_in(home) == {"models/one/two/m.gguf": model(1), "models/one/two/.name": b"one:two"}
    assert_fails(cortex("models", "remove", "one/two"), "one/two needs the folder of another model, one:two")


def test_two_pulls_at_once_are_one_download(hub: Hub, home: Path) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    with spawn("pull", "owner/repo") as one, spawn("pull", "owner/repo") as two:
        results = [process.communicate(timeout=SECONDS) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0]
    assert [err for _, err in results] == ["", ""]
    assert hub.sent == SIZE
    assert files_in(home) == {"models/owner/repo/model.gguf": model(), "models/owner/repo/.name": b"owner/repo"}


def test_all_parts_of_a_model_are_downloaded(hub: Hub, home: Path, cortex: Cortex) -> None:
    names = [f"Q8_0/big-Q8_0-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
    parts = {name: model(seed) for seed, name in enumerate(names)}
    hub.add("owner/big", parts | {"big-F16.gguf": model(9)})
    first = home / "models/owner/big" / names[0]
    assert_pulled(cortex("pull", "owner/big:q8_0"), first)
    assert resolve("owner/big") == resolve("owner/big:Q8_0") == resolve(f"owner/big:{names[0]}") == first
    assert files_in(home / "models/owner/big") == parts | {".name": b"owner/big"}
    assert hub.sent == 3 * SIZE


def test_a_model_in_parts_is_resumed_at_the_interrupted_part(
    hub: Hub, home: Path, cortex: Cortex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "RETRY_SECONDS", ())
    parts = {f"big-{part:05}-of-00002.gguf": model(part) for part in (1, 2)}
    hub.add("owner/big", parts)
    hub.budget = SIZE + 1000
    assert_fails(cortex("pull", "owner/big"), f"{SIZE + 1000:,} of {2 * SIZE:,} bytes are on disk")
    hub.budget = None
    hub.asked.clear()
    assert cortex("pull", "owner/big").returncode == 0
    assert [(asked.file, asked.range) for asked in hub.asked] == [("big-00002-of-00002.gguf", "bytes=1000-")]
    assert hub.sent == 2 * SIZE


def test_a_missing_part_or_a_later_part_fails_with_one_line(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("owner/big", {f"big-{part:05}-of-00003.gguf": model(part) for part in (1, 3)})
    assert_fails(cortex("pull", "owner/big"), "only some parts", "big-00002-of-00003.gguf is missing")
    assert_fails(cortex("pull", "owner/big:big-00003-of-00003.gguf"), "is a later part of its model")
    assert not home.exists()


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf"], "m-Q4_K_M.gguf"),
        (["m.q8_0.gguf", "m.q4_k_m.gguf"], "m.q4_k_m.gguf"),
        (["m-F16.gguf", "m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q2_K.gguf"], "m-Q5_K_M.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-BF16.gguf"], "m-UD-Q4_K_XL.gguf"),
        (["m.gguf", "mmproj-m-Q4_K_M.gguf", "m.imatrix.gguf"], "m.gguf"),
        (["m-imatrix-Q4_K_M.gguf", "m-imatrix-Q8_0.gguf"], "m-imatrix-Q4_K_M.gguf"),
    ],
)
def test_one_of_several_files_is_selected(hub: Hub, cortex: Cortex, files: list[str], chosen: str) -> None:
    hub.add("owner/repo", {file: model(seed) for seed, file in enumerate(files)})
    assert cortex("pull", "owner/repo").returncode == 0
    assert [asked.file for asked in hub.asked] == [chosen]
    assert resolve("owner/repo").name == chosen


@pytest.mark.parametrize(
    ("name", "files", "reason"),
    [
        ("owner/repo", ["a.gguf", "b.gguf"], "owner/repo matches several models: a.gguf, b.gguf; specify one"),
        (
            "owner/repo",
            ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"],
            "matches several models: a-Q4_K_M.gguf, b-Q4_K_M.gguf; specify one",
        ),
        ("owner/repo:Q6_K", ["m-Q4_K_M.gguf", "m-Q8_0.gguf"], "has no file Q6_K; available: Q4_K_M, Q8_0"),
        ("owner/repo:n.gguf", ["m.gguf"], "has no file n.gguf; available: m.gguf"),
        ("owner/repo:mmproj.gguf", ["m.gguf", "mmproj.gguf"], "has no file mmproj.gguf; available: m.gguf"),
        ("owner/repo:m", ["m-1.gguf", "m-2.gguf"], "matches several models: m-1.gguf, m-2.gguf; specify one"),
        ("owner/repo", ["model.safetensors", "mmproj.gguf"], "owner/repo has no GGUF model"),
        (
            "owner/repo",
            ["../../m.gguf", "/m.gguf", ".m/m.gguf", "a//m.gguf", "\x1b[2Jm.gguf"],
            "owner/repo has no GGUF model",
        ),
    ],
)
def test_the_error_lists_the_available_files_if_none_can_be_selected(
    hub: Hub, home: Path, cortex: Cortex, name: str, files: list[str], reason: str
) -> None:
    hub.add("owner/repo", {file: model(seed) for seed, file in enumerate(files)})
    assert_fails(cortex("pull", name), reason)
    assert hub.asked == []
    assert not home.exists()


def test_two_quantizations_make_the_plain_name_ambiguous(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("owner/repo", {"m-Q4_K_M.gguf": model(1), "m-Q8_0.gguf": model(2)})
    folder = home / "models/owner/repo"
    assert_pulled(cortex("pull", "owner/repo:Q8_0"), folder / "m-Q8_0.gguf")
    assert resolve("owner/repo").name == "m-Q8_0.gguf"
    assert_pulled(cortex("pull", "owner/repo:Q4_K_M"), folder / "m-Q4_K_M.gguf")
    assert [resolve(f"owner/repo:{label}").name for label in ("Q4_K_M", "q8_0")] == ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    reason = "owner/repo matches several models on disk: owner/repo:Q4_K_M, owner/repo:Q8_0; specify one"
    for command in (("pull",), ("run", "-d"), ("serve",)):
        assert_fails(cortex(*command, "owner/repo"), reason)


def test_a_models_settings_are_stored_as_model_yaml(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("cortexso/tiny", {"model.gguf": model(), "model.yml": b"temperature: 0.5\n"}, "a")
    assert cortex("pull", "tiny:a").returncode == 0
    assert (home / "models/tiny/a/model.yaml").read_bytes() == b"temperature: 0.5\n"


def test_edited_settings_are_kept(hub: Hub, home: Path, cortex: Cortex) -> None:
    files = {"m-Q4_K_M.gguf": model(1), "m-Q8_0.gguf": model(2), "model.yaml": b"top_p: 0.5\n"}
    hub.add("owner/repo", files)
    cortex("pull", "owner/repo:Q8_0")
    (home / "models/owner/repo/model.yaml").write_text("top_p: 0.9\n")
    cortex("pull", "owner/repo:Q4_K_M")
    assert files_in(home / "models/owner/repo") == files | {"model.yaml": b"top_p: 0.9\n", ".name": b"owner/repo"}


def test_a_damaged_model_on_disk_is_pulled_again(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    cortex("pull", "owner/repo")
    path = home / "models/owner/repo/model.gguf"
    path.write_bytes(gguf()[:-1])
    assert_pulled(cortex("pull", "owner/repo"), path)
    assert path.read_bytes() == model()


def test_a_pull_beside_a_damaged_model_reports_the_new_file(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("owner/repo", {"m-Q4_K_M.gguf": model(1), "m-Q8_0.gguf": model(2)})
    cortex("pull", "owner/repo:Q8_0")
    damaged = home / "models/owner/repo/m-Q8_0.gguf"
    damaged.write_bytes(gguf()[:-1])
    assert_pulled(cortex("pull", "owner/repo"), home / "models/owner/repo/m-Q4_K_M.gguf")
    assert damaged.read_bytes() == gguf()[:-1]


def test_only_one_of_two_names_that_share_a_folder_can_be_on_disk(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("cortexso/one", {"m.gguf": model(1)}, "two")
    hub.add("one/two", {"m.gguf": model(2)})
    reason = "{} needs the folder of another model, {}; remove it with 'cortex models remove {}'"
    for there, other, content in (("one:two", "one/two", model(1)), ("one/two", "one:two", model(2))):
        path = home / "models/one/two/m.gguf"
        assert_pulled(cortex("pull", there), path)
        hub.paths.clear()
        for name in (other, f"{other}:m.gguf"):
            for command in (("pull",), ("run", "-d"), ("serve",), ("models", "get"), ("models", "remove")):
                assert_fails(cortex(*command, name), reason.format(other, there, there))
        assert hub.paths == []
        assert path.read_bytes() == content
        assert resolve(f"{there}:m.gguf") == resolve(there) == path
        assert cortex("models", "remove", there).returncode == 0


def test_an_imported_and_a_pulled_model_cannot_share_a_folder(
    hub: Hub, home: Path, cortex: Cortex, tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(model())
    hub.add("one/two", {"m.gguf": model(1)})
    assert cortex("models", "import", "one:two", str(tmp_path / "m.gguf")).returncode == 0
    assert_fails(cortex("pull", "one/two"), "one/two needs the folder of another model, one:two")
    assert cortex("models", "remove", "one:two").returncode == 0
    assert cortex("pull", "one/two").returncode == 0
    assert_fails(
        cortex("models", "import", "one:two", str(tmp_path / "m.gguf")),
        "one:two needs the folder of another model, one/two",
    )


@pytest.mark.parametrize("pulled", ["one:two", "one/two"])
def test_a_pull_fails_if_its_name_is_taken_during_the_download(
    hub: Hub, home: Path, cortex: Cortex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pulled: str
) -> None:
    (tmp_path / "mine.gguf").write_bytes(model())
    hub.add("cortexso/one", {"m.gguf": model(1)}, "two")
    hub.add("one/two", {"m.gguf": model(2)})
    check = downloads._check

    def check_during_an_import(*arguments: Any) -> None:
        check(*arguments)
        assert cortex("models", "import", "one:two", str(tmp_path / "mine.gguf")).returncode == 0

    monkeypatch.setattr(downloads, "_check", check_during_an_import)
    path = home / "models/one/two/mine.gguf"
    reason = (
        f"one:two was given to another model during the download: {path}"
        if pulled == "one:two"
        else "needs the folder of another model, one:two"
    )
    assert_fails(cortex("pull", pulled), reason)
    assert files_in(home) == {"models/one/two/mine.gguf": model(), "models/one/two/.name": b"one:two"}


def test_a_file_of_a_branch_can_be_named(hub: Hub, cortex: Cortex) -> None:
    hub.add("cortexso/tiny", {"a.gguf": model(1), "b.gguf": model(2)}, "x")
    assert_fails(cortex("pull", "tiny:x"), "tiny:x matches several models: a.gguf, b.gguf; specify one")
    for file in ("a.gguf", "b.gguf"):
        assert cortex("pull", f"tiny:x:{file}").returncode == 0
        assert resolve(f"tiny:x:{file}").name == file
    assert_fails(cortex("pull", "tiny:x"), "several models on disk: tiny:x:a.gguf, tiny:x:b.gguf; specify one")


def test_loading_on_demand_downloads_nothing(hub: Hub) -> None:
    from api.flags import ServerFlags

    hub.add("owner/repo", {"model.gguf": model()})
    find = ServerFlags(on_demand=True).options("smollm2:135m", Path("/m.gguf")).on_demand
    assert find("owner/repo") is None
    assert hub.paths == []


def test_loading_on_demand_finds_pulled_models_and_no_paths(
    hub: Hub, home: Path, cortex: Cortex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.flags import ServerFlags

    hub.add("owner/repo", {"m-Q4_K_M.gguf": model(1)})
    cortex("pull", "owner/repo")
    find = ServerFlags(on_demand=True).options("smollm2:135m", Path("/m.gguf")).on_demand
    path = home / "models/owner/repo/m-Q4_K_M.gguf"
    for name in ("owner/repo", "owner/repo:q4_k_m", "owner/repo:m-Q4_K_M.gguf"):
        found = find(name)
        assert found is not None
        assert (found.name, found.path) == (name, path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/file").write_bytes(model())
    monkeypatch.chdir(tmp_path)
    for name in ("here/file", str(path), "./here/file"):
        assert find(name) is None
    assert resolve_name("owner/repo") == path


def test_loading_on_demand_reports_an_ambiguous_name(hub: Hub, cortex: Cortex) -> None:
    from api.flags import ServerFlags

    hub.add("owner/repo", {"a-Q4_K_M.gguf": model(1), "a-Q8_0.gguf": model(2)})
    cortex("pull", "owner/repo:Q4_K_M")
    cortex("pull", "owner/repo:Q8_0")
    find = ServerFlags(on_demand=True).options("smollm2:135m", Path("/m.gguf")).on_demand
    with pytest.raises(ModelNotFoundError, match="specify one"):
        find("owner/repo")


def test_loading_on_demand_reports_why_a_model_is_unusable(hub: Hub, home: Path, cortex: Cortex) -> None:
    from api.flags import ServerFlags

    hub.add("owner/repo", {"model.gguf": model()})
    cortex("pull", "owner/repo")
    find = ServerFlags(on_demand=True).options("smollm2:135m", Path("/m.gguf")).on_demand
    folder = home / "models/owner/repo"
    (folder / "model.yaml").write_text("temperature: hot")
    with pytest.raises(ModelFilesError, match=r"model\.yaml: temperature"):
        find("owner/repo")
    (folder / "model.gguf").write_bytes(gguf()[:-1])
    with pytest.raises(ModelFilesError, match="cut short"):
        find("owner/repo")


def test_a_terminal_shows_a_bar_with_bytes_and_speed(hub: Hub) -> None:
    hub.add("owner/repo", {"model.gguf": model()})
    ours, theirs = os.openpty()
    command = [sys.executable, "-P", "-m", "api", "pull", "owner/repo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as pulling:
        os.close(theirs)
        reason = b""
        with suppress(OSError):  # a closed terminal raises it
            while piece := os.read(ours, 4096):
                reason += piece
        assert pulling.stdout is not None
        out = pulling.stdout.read()
    os.close(ours)
    assert (pulling.returncode, out.count("\n")) == (0, 1)
    for part in (b"owner/repo", b"390.6", b"KiB", b"/s"):
        assert part in reason


@pytest.fixture
def stopped(home: Path) -> Iterator[None]:
    """Ends the server that the test starts."""
    yield
    if record := read_record():
        end(record.pid, SECONDS)


@pytest.mark.usefixtures("stopped")
def test_run_pulls_a_missing_model_and_uses_its_defaults(
    hub: Hub, home: Path, tiny_model_path: str, tokenizer: Tokenizer
) -> None:
    settings = b"temperature: 0\nmax_tokens: 5\nctx_len: 256\nstop: [nothing of the kind]\nengine: llama-cpp\n"
    hub.add("cortexso/tiny", {"model.gguf": Path(tiny_model_path).read_bytes(), "model.yml": settings}, "135m-gguf")
    with spawn("run", "-d", "--port=0", "--max-seqs=2", "--kv-layout=pool", "tiny:135m-gguf") as starting:
        out, err = starting.communicate(timeout=SECONDS)
    record = read_record()
    assert record is not None, err
    assert (starting.returncode, out, err) == (0, f"tiny:135m-gguf is ready at {record.base_url}\n", "")
    assert record.model_path == str(home / "models/tiny/135m-gguf/model.gguf")
    [letter] = tokenizer.encode("a", parse_special=False)
    messages = [{"role": "user", "content": "Count from one to twenty."}]
    body = {"model": "tiny:135m-gguf", "messages": messages, "logit_bias": {str(letter): 100}}
    status, answer = ask(record, "POST", "/v1/chat/completions", body, timeout=SECONDS)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "a" * 5
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    health = ask_health(record, SECONDS)
    assert health is not None
    assert health.models[0].context_length == 256

    hub.paths.clear()
    with spawn("run", "-d", "tiny:135m-gguf") as again:
        out, err = again.communicate(timeout=SECONDS)
    assert (out, err, hub.paths) == (f"tiny:135m-gguf already runs at {record.base_url}\n", "", [])
    with spawn("models", "remove", "tiny:135m-gguf") as removing:
        out, err = removing.communicate(timeout=SECONDS)
    assert (removing.returncode, out) == (1, "")
    assert err == "cortex: tiny:135m-gguf is being served; stop it with 'cortex stop tiny:135m-gguf'\n"


def test_an_invalid_model_yaml_is_reported_before_anything_starts(hub: Hub, home: Path, cortex: Cortex) -> None:
    hub.add("owner/repo", {"model.gguf": model(), "model.yaml": b"temprature: 1\n"})
    for command in (("run", "-d"), ("serve",)):
        assert_fails(cortex(*command, "--port=0", "owner/repo"), "model.yaml: the key 'temprature' is unknown")
    assert {path.name for path in home.iterdir()} == {"models"}
