"""Downloads models from a hub: selects the files of a name, and resumes interrupted downloads."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from api.models import gguf
from api.models.files import (
    NAME_FILE,
    SETTINGS_NAME,
    HubName,
    ModelFilesError,
    ModelNotFoundError,
    checked,
    hub_name,
    is_plain_path,
    refuse_taken,
    resolve_name,
)
from api.models.repository import HubError, Listing, RefusedError, RemoteFile, Repository, UnreachableError
from api.models.staging import discard, hold, label, place
from api.models.variants import first_files, is_later_part, listed, matching, parts, preferred, short_names

RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
"""Pauses between attempts after a lost connection. An attempt that receives data starts the pauses again."""
_REMOTE_SETTINGS: Final = (SETTINGS_NAME, "model.yml")
_DISK_IS_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Watch = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of a download. Called with the total bytes and the bytes that are already on disk.

Yields a function to call with the size of each received piece. The size is negative if bytes are downloaded again.
"""


def pull(model: str, watch: Watch, busy: Callable[[], None]) -> Path:
    """Download a model from a hub, check it, and return its first file. Calls `busy` before it waits for another pull.

    Raises ModelNotFoundError if this is not a name on a hub, HubError if the download fails. After RefusedError and
    KeyboardInterrupt the received bytes are kept in a hidden folder for the next pull. After other errors they are
    deleted.
    """
    name = hub_name(model)
    if name is None:
        valid = "valid names are name:branch[:file] and owner/repo[:file]"
        raise ModelNotFoundError(f"{model!r} is not the name of a model on a hub; {valid}")
    refuse_taken(name)
    repository = Repository(name.repository, name.revision)
    listing = repository.listing()
    files = choose(model, name, listing, repository.host)
    path = name.folder / files[0].path
    with _turn(name.folder, _key(files[0]), busy) as folder:
        with suppress(ModelFilesError):
            return checked(path)  # another process has downloaded it
        staged = {file: folder / f"{number}-{_key(file)}" for number, file in enumerate(files)}
        download = _Download(model, repository, listing.commit, staged)
        is_kept = False
        try:
            label(folder, f"{name.plain}:{files[0].path}")
            download.run(watch)
            _check(staged)
            with hold(name.folder):
                _refuse_second(model, name)
                _place(name, staged, folder)
        except (RefusedError, KeyboardInterrupt):
            is_kept = download.num_on_disk() > 0
            raise
        finally:
            if not is_kept:
                discard(folder)
    return path


def _refuse_second(model: str, name: HubName) -> None:
    """Raises ModelFilesError if the name was given to another model during the download."""
    refuse_taken(name)
    if model == name.repository or name.file is not None:  # the folder may contain several models
        return
    try:
        path = resolve_name(model)
    except ModelFilesError:
        return
    raise HubError(f"{model} was given to another model during the download: {path}")


@contextmanager
def _turn(target: Path, key: str, busy: Callable[[], None]) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(hold(target, key, wait=False))
        except BlockingIOError:
            busy()
            folder = stack.enter_context(hold(target, key))
        yield folder


def choose(model: str, name: HubName, listing: Listing, host: str) -> list[RemoteFile]:
    """The files to download for a name; the model's first file comes first.

    Raises HubError if no model or several models match the name, or if a part is missing.
    """
    known = first_files(filter(is_plain_path, listing.files))
    if not known:
        raise HubError(f"{name.repository} has no GGUF model at {host}")
    wanted = name.file
    available = listed(short_names(known).values())
    if wanted is None:
        first = preferred(known)
        if first is None:
            raise HubError(f"{model} matches several models: {available}; specify one")
    else:
        if is_later_part(wanted):
            raise HubError(f"{wanted} is a later part of its model; name the first part, -00001-of-")
        found = matching(known, wanted)
        if not found:
            raise HubError(f"{name.repository} has no file {wanted}; available: {available}")
        if len(found) > 1:
            raise HubError(f"{model} matches several models: {listed(found)}; specify one")
        first = found[0]
    missing = [part for part in parts(first) if part not in listing.files]
    if missing:
        raise HubError(f"{name.repository} has only some parts of {first}: {missing[0]} is missing")
    files = [listing.files[part] for part in parts(first)]
    settings = _settings(first, listing)
    return [*files, settings] if settings else files


def _settings(first: str, listing: Listing) -> RemoteFile | None:
    """The model.yaml beside the model, or else the one at the top of the repository."""
    folders = dict.fromkeys((PurePosixPath(first).parent, PurePosixPath()))
    paths = (str(folder / name) for folder in folders for name in _REMOTE_SETTINGS)
    return next((listing.files[path] for path in paths if path in listing.files), None)


def _key(file: RemoteFile) -> str:
    """The name for a file in staging. It depends only on the file's content, so the next pull finds it again."""
    content = file.sha256 or file.git_id or f"{file.path} {file.size}"
    return hashlib.sha256(content.encode()).hexdigest()  # valid as a file name for any id


class _Download:
    """The download of a model's files into a staging folder."""

    def __init__(self, model: str, repository: Repository, commit: str, staged: dict[RemoteFile, Path]) -> None:
        self._model = model
        self._repository = repository
        self._commit = commit
        self._staged = staged
        self._total = sum(file.size for file in staged)

    def run(self, watch: Watch) -> None:
        """Download the missing bytes. Raises RefusedError if the hub stops sending, HubError if the disk is full."""
        for file, path in self._staged.items():
            if path.exists() and path.stat().st_size > file.size:
                path.unlink()
        folder = next(iter(self._staged.values())).parent
        missing, free = self._total - self.num_on_disk(), shutil.disk_usage(folder).free
        if missing > free:
            raise HubError(f"the disk is too full: {self._model} needs {missing:,} bytes, and {free:,} are free")
        try:
            with watch(self._total, self.num_on_disk()) as advance:
                for file, path in self._staged.items():
                    with path.open("ab") as out:
                        self._get(file, out, advance)
        except RefusedError as error:
            if not self.num_on_disk():
                raise
            progress = f"{self.num_on_disk():,} of {self._total:,} bytes are on disk"
            raise RefusedError(f"{error}; {progress}, and 'cortex pull {self._model}' resumes the download") from error
        except OSError as error:
            if error.errno not in _DISK_IS_FULL:
                raise
            raise HubError(f"the disk is full: {self._model} takes {self._total:,} bytes") from error

    def num_on_disk(self) -> int:
        """Bytes on disk, received by this pull or earlier ones."""
        return sum(path.stat().st_size for path in self._staged.values() if path.exists())

    def _get(self, file: RemoteFile, out: BinaryIO, advance: Callable[[int], None]) -> None:
        pauses = iter(RETRY_SECONDS)
        while (before := out.tell()) < file.size:
            try:
                self._resume(file, out, advance)
            except UnreachableError:
                if out.tell() > before:
                    pauses = iter(RETRY_SECONDS)
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
        os.fsync(out.fileno())

    def _resume(self, file: RemoteFile, out: BinaryIO, advance: Callable[[int], None]) -> None:
        """Download the missing bytes of a file with one request, which may fail before the end."""
        offset = out.tell()
        with self._repository.read(self._commit, file.path, offset) as (start, pieces):
            if start != offset:  # a server without range support sends the whole file
                out.truncate(start)
                out.seek(start)
                advance(start - offset)
            for piece in pieces:
                if out.tell() + len(piece) > file.size:
                    raise HubError(f"{self._repository.host} sends more than the {file.size:,} bytes of {file.path}")
                out.write(piece)
                out.flush()  # so that it is kept if this process is killed
                advance(len(piece))
        if out.tell() < file.size:
            raise UnreachableError(f"{self._repository.host} closed the connection before the end of {file.path}")


def _check(staged: dict[RemoteFile, Path]) -> None:
    """Raises HubError if a checksum differs from the hub's or a file is not a complete model."""
    for file, path in staged.items():
        with path.open("rb") as content:
            if file.sha256 is not None:
                expected, found = file.sha256, hashlib.file_digest(content, "sha256").hexdigest()
            elif file.git_id is not None:
                expected, found = file.git_id, _git_id(content.read())
            else:
                continue
        if expected != found:
            raise HubError(f"{file.path} is damaged: its checksum is {found}, the hub's is {expected}; pull it again")
    for file, path in staged.items():
        if file.path.endswith(".gguf"):
            try:
                gguf.check(path)
            except gguf.GgufError as error:
                raise HubError(f"{file.path} {error}") from None


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def _place(name: HubName, staged: dict[RemoteFile, Path], folder: Path) -> None:
    models = {path: name.folder / file.path for file, path in staged.items() if file.path.endswith(".gguf")}
    settings = [path for path in staged.values() if path not in models]
    beside = next(iter(models.values())).parent
    moves = [(path, beside / SETTINGS_NAME) for path in settings if not (beside / SETTINGS_NAME).exists()]
    spelled = folder / NAME_FILE
    spelled.write_text(name.plain)
    place([*moves, (spelled, name.folder / NAME_FILE), *reversed(models.items())])
