"""Models from a hub: which files a name asks for, and their download, which goes on where it was broken off."""

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
"""Pauses before a lost connection is tried again, as long as nothing comes."""
_REMOTE_SETTINGS: Final = (SETTINGS_NAME, "model.yml")
_DISK_IS_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Watch = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]
"""Shows a download of so many bytes, of which so many are there; what it gives is called with each number that comes.

That is negative where bytes have to come again.
"""


def pull(model: str, watch: Watch, busy: Callable[[], None]) -> Path:
    """The file of a model that a hub has, downloaded and checked. Calls `busy` before it waits for another pull of it.

    Raises ModelNotFoundError for what is no such name, HubError. After RefusedError and KeyboardInterrupt what came is
    kept for the next time, out of sight; after all else nothing is.
    """
    name = hub_name(model)
    if name is None:
        such = "such names are name:branch[:file] and owner/repo[:file]"
        raise ModelNotFoundError(f"{model!r} names no model of a hub; {such}")
    refuse_taken(name)
    repository = Repository(name.repository, name.revision)
    listing = repository.listing()
    files = choose(model, name, listing, repository.host)
    path = name.folder / files[0].path
    with _turn(name.folder, _key(files[0]), busy) as folder:
        with suppress(ModelFilesError):
            return checked(path)  # somebody else was faster
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
            is_kept = download.num_here() > 0
            raise
        finally:
            if not is_kept:
                discard(folder)
    return path


def _refuse_second(model: str, name: HubName) -> None:
    """Raises ModelFilesError where somebody has given the name to another model since it was asked for."""
    refuse_taken(name)
    if model == name.repository or name.file is not None:  # where several models may lie
        return
    try:
        path = resolve_name(model)
    except ModelFilesError:
        return
    raise HubError(f"{model} has become another model meanwhile: {path}")


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
    """The files that a name asks for, the one that the model begins with first. Raises HubError."""
    known = first_files(filter(is_plain_path, listing.files))
    if not known:
        raise HubError(f"{name.repository} has no GGUF model at {host}")
    wanted = name.file
    there_is = f"there is {listed(short_names(known).values())}"
    if wanted is None:
        first = preferred(known)
        if first is None:
            raise HubError(f"{model} may be several models: {there_is}; say which")
    else:
        if is_later_part(wanted):
            raise HubError(f"{wanted} is a later part of its model; name the first, -00001-of-")
        found = matching(known, wanted)
        if not found:
            raise HubError(f"{name.repository} has no file {wanted}; {there_is}")
        if len(found) > 1:
            raise HubError(f"{model} may be several models: {listed(found)}; say which")
        first = found[0]
    missing = [part for part in parts(first) if part not in listing.files]
    if missing:
        raise HubError(f"{name.repository} has only some parts of {first}: {missing[0]} is missing")
    files = [listing.files[part] for part in parts(first)]
    settings = _settings(first, listing)
    return [*files, settings] if settings else files


def _settings(first: str, listing: Listing) -> RemoteFile | None:
    """A model.yaml, beside the model or else at the top."""
    folders = dict.fromkeys((PurePosixPath(first).parent, PurePosixPath()))
    paths = (str(folder / name) for folder in folders for name in _REMOTE_SETTINGS)
    return next((listing.files[path] for path in paths if path in listing.files), None)


def _key(file: RemoteFile) -> str:
    """Names the place where a file becomes whole: by what it holds, so that it is found again whatever else changes."""
    holds = file.sha256 or file.git_id or f"{file.path} {file.size}"
    return hashlib.sha256(holds.encode()).hexdigest()  # whatever a hub says, it is a name


class _Download:
    """The files of a model, on their way into a folder."""

    def __init__(self, model: str, repository: Repository, commit: str, staged: dict[RemoteFile, Path]) -> None:
        self._model = model
        self._repository = repository
        self._commit = commit
        self._staged = staged
        self._total = sum(file.size for file in staged)

    def run(self, watch: Watch) -> None:
        """Raises RefusedError once nothing comes any more, HubError for a full disk."""
        for file, path in self._staged.items():
            if path.exists() and path.stat().st_size > file.size:
                path.unlink()
        folder = next(iter(self._staged.values())).parent
        missing, free = self._total - self.num_here(), shutil.disk_usage(folder).free
        if missing > free:
            raise HubError(f"the disk is too full: {self._model} needs {missing:,} bytes, and {free:,} are free")
        try:
            with watch(self._total, self.num_here()) as advance:
                for file, path in self._staged.items():
                    with path.open("ab") as out:
                        self._get(file, out, advance)
        except RefusedError as error:
            if not self.num_here():
                raise
            here = f"{self.num_here():,} of {self._total:,} bytes are here"
            raise RefusedError(f"{error}; {here}, and 'cortex pull {self._model}' goes on from there") from error
        except OSError as error:
            if error.errno not in _DISK_IS_FULL:
                raise
            raise HubError(f"the disk is full: {self._model} takes {self._total:,} bytes") from error

    def num_here(self) -> int:
        """Bytes that have come, now or before."""
        return sum(path.stat().st_size for path in self._staged.values() if path.exists())

    def _get(self, file: RemoteFile, out: BinaryIO, advance: Callable[[int], None]) -> None:
        pauses = iter(RETRY_SECONDS)
        while (before := out.tell()) < file.size:
            try:
                self._go_on(file, out, advance)
            except UnreachableError:
                if out.tell() > before:
                    pauses = iter(RETRY_SECONDS)
                pause = next(pauses, None)
                if pause is None:
                    raise
                time.sleep(pause)
        os.fsync(out.fileno())

    def _go_on(self, file: RemoteFile, out: BinaryIO, advance: Callable[[int], None]) -> None:
        """What is missing of a file, as far as one answer brings it."""
        offset = out.tell()
        with self._repository.read(self._commit, file.path, offset) as (start, pieces):
            if start != offset:  # where a server knows no ranges it all comes again
                out.truncate(start)
                out.seek(start)
                advance(start - offset)
            for piece in pieces:
                if out.tell() + len(piece) > file.size:
                    raise HubError(f"{self._repository.host} sends more than the {file.size:,} bytes of {file.path}")
                out.write(piece)
                out.flush()  # so that it is kept, whatever becomes of this process
                advance(len(piece))
        if out.tell() < file.size:
            raise UnreachableError(f"{self._repository.host} broke off {file.path}")


def _check(staged: dict[RemoteFile, Path]) -> None:
    """Raises HubError for what is not what the hub says, or no model."""
    for file, path in staged.items():
        with path.open("rb") as content:
            if file.sha256 is not None:
                expected, found = file.sha256, hashlib.file_digest(content, "sha256").hexdigest()
            elif file.git_id is not None:
                expected, found = file.git_id, _git_id(content.read())
            else:
                continue
        if expected != found:
            raise HubError(
                f"{file.path} came damaged: its checksum is {found}, and the hub says {expected}; pull it again"
            )
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
