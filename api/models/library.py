"""Lists, finds, removes and imports models on disk."""

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
"""The key of an import's staging folder. It is the same for all imports, so the next one of a name clears it."""


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model on disk."""

    name: str
    """The shortest name that resolves to the model."""
    files: tuple[Path, ...]
    """Its existing parts, in order."""
    size_bytes: int
    modified: float
    """Seconds since the epoch."""
    embedded: bool
    """Whether it is inside a Python package."""

    @property
    def path(self) -> Path:
        """Its first file, which may be missing."""
        return self.files[0].with_name(first_part(self.files[0].name))

    @property
    def settings(self) -> Path | None:
        """Its model.yaml; None if it has none."""
        path = self.path.with_name(SETTINGS_NAME)
        return path if path.is_file() else None


def kept_models() -> list[KeptModel]:
    """All models on disk, sorted by folder, embedded ones first."""
    return [*_embedded(), *_kept()]


def find(name: str) -> KeptModel:
    """The model with this name.

    Raises ModelNotFoundError if it is not on disk, ModelFileError if it is damaged.
    """
    model = find_damaged(name)
    checked(model.path)
    return model


def find_damaged(name: str) -> KeptModel:
    """Like `find`, but without a check of the model's files."""
    if not is_name(name):
        raise ModelNotFoundError(f"{name!r} is not the name of a model; 'cortex models list' shows the names")
    path = locate(name)
    model = next((model for model in kept_models() if model.path == path), None)
    if model is None:  # such as an image projector
        raise ModelNotFoundError(f"{path} is not a model by itself")
    return model


def remove(model: KeptModel) -> None:
    """Delete a model's files. Raises ModelFilesError if it is inside a Python package."""
    if model.embedded:
        raise ModelFilesError(f"{model.name} is inside a Python package: pip uninstall {EMBEDDED[model.name]}")
    folder = models_folder().joinpath(*model.path.relative_to(models_folder()).parts[:2])
    with hold(folder):
        for file in model.files:  # the first file first: without it the model cannot be loaded
            file.unlink(missing_ok=True)
        if not any(model.path.parent.glob("*.gguf")):
            model.path.with_name(SETTINGS_NAME).unlink(missing_ok=True)
        if not kept_files(folder):
            (folder / NAME_FILE).unlink(missing_ok=True)
        prune(model.path.parent)


def remove_unfinished(name: str) -> bool:
    """Delete the files of an unfinished pull or import. Returns False if there are none.

    Raises ModelFilesError if it still runs, or if the name matches several models.
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
        raise ModelFilesError(f"{name} matches several unfinished models: {names}; specify one")
    keys = [key for file, key in found if file in files]
    for key in keys:
        try:
            with hold(target.folder, key, wait=False) as folder:
                discard(folder)
        except BlockingIOError:
            activity = "imported" if key == _IMPORT else "pulled"
            raise ModelFilesError(f"{name} is still being {activity}") from None
    return bool(keys)


def import_file(name: str, source: Path) -> KeptModel:
    """Import a model under a name `name:branch`, by hard links, or by copies where links fail. Copies its model.yaml.

    Raises ModelFilesError if the name or the file cannot be used, or if the name has a model already.
    """
    target = hub_name(name)
    if target is None or name != target.plain or "/" in name:
        raise ModelFilesError(f"{name!r} is not a valid name for an import; valid names are name:branch")
    _require_free(target)
    if not source.is_file():
        raise ModelNotFoundError(f"there is no file {source}")
    if source.suffix != ".gguf":
        raise ModelFileError(f"the name of {source} does not end in .gguf")
    if not is_plain_path(source.name):
        raise ModelFileError(f"{source.name!r} is hidden or not printable; rename it")
    files = list(all_parts(checked(source.absolute())))
    if not first_files([source.name]):
        kinds = "an image projector (mmproj) or an importance matrix (imatrix)"
        raise ModelFileError(f"{source} does not look like a model: its name is that of {kinds}")
    try:
        with hold(target.folder, _IMPORT, wait=False) as folder:
            discard(folder)  # left behind by an import that was killed
            try:
                _stage_and_place(target, files, folder)
            finally:
                discard(folder)
    except BlockingIOError:
        raise ModelFilesError(f"{name} is still being imported") from None
    return _model(name, tuple(target.folder / file.name for file in files))


def _stage_and_place(target: HubName, files: list[Path], folder: Path) -> None:
    label(folder, f"{target.plain}:{files[0].name}")
    names = [NAME_FILE, *(file.name for file in reversed(files))]
    (folder / NAME_FILE).write_text(target.plain)
    for file in files:
        _link(file.resolve(), folder / file.name)
    settings, own = files[0].with_name(SETTINGS_NAME), target.folder / SETTINGS_NAME
    if settings.is_file() and not own.exists():
        shutil.copyfile(settings, folder / SETTINGS_NAME)  # no link: an edit of one must not change the other
        names.insert(0, SETTINGS_NAME)
    with hold(target.folder):
        _require_free(target)
        place([(folder / name, target.folder / name) for name in names])


def _require_free(target: HubName) -> None:
    """Raises ModelFilesError if the name has a model already."""
    refuse_taken(target)
    if kept_files(target.folder):
        name = target.plain
        raise ModelFilesError(f"{name} is already on disk; remove it with 'cortex models remove {name}'")


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
    """The name of a model in a folder. `short` is None for the only model."""
    plain = spelled(folder)
    if short is not None:
        return f"{plain or f'{folder.parent.name}/{folder.name}'}:{short}"
    return plain or f"{folder.parent.name}:{folder.name}"
