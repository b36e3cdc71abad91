"""The models on disk: what there is, and taking some in or away."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.models.files import (
    EMBEDDED,
    NAME_FILE,
    SETTINGS_NAME,
    HubName,
    ModelFileError,
    ModelFilesError,
    ModelNotFoundError,
    all_parts,
    checked,
    hub_name,
    is_name,
    is_plain_path,
    kept_files,
    locate,
    models_folder,
    refuse_taken,
    resolve_name,
    spelled,
)
from api.models.staging import discard, hold, label, place, prune, unfinished
from api.models.variants import first_files, first_part, listed, matching, parts, short_names

_IMPORT: Final = "import"
"""The key of the place where a model lies that is being imported: one for each name, so that the next one clears it."""


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model on disk."""

    name: str
    """The shortest that leads to it."""
    files: tuple[Path, ...]
    """Those of its parts that are there, in order."""
    size_bytes: int
    modified: float
    """Seconds since the epoch."""
    embedded: bool
    """Whether it comes with a package."""

    @property
    def path(self) -> Path:
        """What it begins with, which may be missing."""
        return self.files[0].with_name(first_part(self.files[0].name))

    @property
    def settings(self) -> Path | None:
        """Its model.yaml."""
        path = self.path.with_name(SETTINGS_NAME)
        return path if path.is_file() else None


def kept_models() -> list[KeptModel]:
    """All of them by name, those of packages first."""
    return [*_embedded(), *_kept()]


def find(name: str) -> KeptModel:
    """Raises ModelNotFoundError for what is not on disk, ModelFileError for what is there and damaged."""
    model = find_damaged(name)
    checked(model.path)
    return model


def find_damaged(name: str) -> KeptModel:
    """The same, whether or not its files can be used."""
    if not is_name(name):
        raise ModelNotFoundError(f"{name!r} is not the name of a model; 'cortex models list' shows them")
    path = locate(name)
    model = next((model for model in kept_models() if model.path == path), None)
    if model is None:  # such as a projector of images
        raise ModelNotFoundError(f"{path} is no model of its own")
    return model


def remove(model: KeptModel) -> None:
    """Raises ModelFilesError for a model that comes with a package."""
    if model.embedded:
        raise ModelFilesError(f"{model.name} comes with a package: pip uninstall {EMBEDDED[model.name]}")
    folder = models_folder().joinpath(*model.path.relative_to(models_folder()).parts[:2])
    with hold(folder):
        for file in model.files:  # the first goes first: without it nobody takes the others for a model
            file.unlink(missing_ok=True)
        if not any(model.path.parent.glob("*.gguf")):
            model.path.with_name(SETTINGS_NAME).unlink(missing_ok=True)
        if not kept_files(folder):
            (folder / NAME_FILE).unlink(missing_ok=True)
        prune(model.path.parent)


def remove_unfinished(name: str) -> bool:
    """Remove what a pull or an import of a model has left when it was broken off; False if there is nothing.

    Raises ModelFilesError while one runs, and where the name may mean several.
    """
    target = hub_name(name)
    if target is None:
        return False
    found = [
        (whole.file, key)
        for key, name in unfinished(target.folder).items()
        if (whole := hub_name(name)) and whole.plain == target.plain and whole.file
    ]
    files = sorted({file for file, _ in found})
    if target.file is not None:
        files = matching(files, target.file)
    if len(files) > 1:
        names = listed(f"{target.plain}:{file}" for file in files)
        raise ModelFilesError(f"{name} may be several models that are not whole: {names}; say which")
    keys = [key for file, key in found if file in files]
    for key in keys:
        try:
            with hold(target.folder, key, wait=False) as folder:
                discard(folder)
        except BlockingIOError:
            way = "imported" if key == _IMPORT else "pulled"
            raise ModelFilesError(f"{name} is being {way} just now") from None
    return bool(keys)


def import_file(name: str, source: Path) -> KeptModel:
    """Know a model outside by a name `name:branch`, by hard links or else copies, with a copy of its defaults.

    Raises ModelFilesError.
    """
    target = hub_name(name)
    if target is None or name != target.plain or "/" in name:
        raise ModelFilesError(f"{name!r} is no name to give to a model; such names are name:branch")
    _require_free(target)
    if not source.is_file():
        raise ModelNotFoundError(f"there is no file {source}")
    if source.suffix != ".gguf":
        raise ModelFileError(f"{source} is not called .gguf")
    if not is_plain_path(source.name):
        raise ModelFileError(f"{source.name!r} is hidden, or cannot be shown: call it otherwise")
    files = list(all_parts(checked(source.absolute())))
    if not first_files([source.name]):
        kinds = "projectors of images (mmproj) and importance matrices (imatrix)"
        raise ModelFileError(f"{source} is no model by its name, which is one of {kinds}")
    try:
        with hold(target.folder, _IMPORT, wait=False) as folder:
            discard(folder)  # what an import that was killed has left
            try:
                _take_in(target, files, folder)
            finally:
                discard(folder)
    except BlockingIOError:
        raise ModelFilesError(f"{name} is being imported just now") from None
    return _model(name, tuple(target.folder / file.name for file in files))


def _take_in(target: HubName, files: list[Path], folder: Path) -> None:
    label(folder, f"{target.plain}:{files[0].name}")
    names = [NAME_FILE, *(file.name for file in reversed(files))]
    (folder / NAME_FILE).write_text(target.plain)
    for file in files:
        _link(file.resolve(), folder / file.name)
    settings, own = files[0].with_name(SETTINGS_NAME), target.folder / SETTINGS_NAME
    if settings.is_file() and not own.exists():
        shutil.copyfile(settings, folder / SETTINGS_NAME)  # whoever edits the original means no other model
        names.insert(0, SETTINGS_NAME)
    with hold(target.folder):
        _require_free(target)
        place([(folder / name, target.folder / name) for name in names])


def _require_free(target: HubName) -> None:
    """Raises ModelFilesError where a name leads to a model already."""
    refuse_taken(target)
    if kept_files(target.folder):
        name = target.plain
        raise ModelFilesError(f"{name} is on disk already; 'cortex models remove {name}' removes it")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        shutil.copyfile(source, target)


def _embedded() -> Iterator[KeptModel]:
    for name in EMBEDDED:
        with contextlib.suppress(ModelFilesError):
            yield _model(name, (resolve_name(name),), embedded=True)


def _kept() -> Iterator[KeptModel]:
    for folder in sorted(models_folder().glob("[!.]*/[!.]*/")):
        files = kept_files(folder)
        shorts = short_names(files)
        for file in files:
            found = tuple(path for part in parts(file) if (path := folder / part).is_file())
            yield _model(_name(folder, shorts[file] if len(files) > 1 else None), found)


def _model(name: str, files: tuple[Path, ...], *, embedded: bool = False) -> KeptModel:
    stats = [file.stat() for file in files]
    return KeptModel(name, files, sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats), embedded)


def _name(folder: Path, short: str | None) -> str:
    """Of one of several models in a folder, or of the only one."""
    plain = spelled(folder)
    if short is not None:
        return f"{plain or f'{folder.parent.name}/{folder.name}'}:{short}"
    return plain or f"{folder.parent.name}:{folder.name}"
