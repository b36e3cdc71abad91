"""Hidden staging folders, in which a model is completed before its files get their final names."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from api.home import home

_PLACE: Final = ".pulls"
"""Inside the model's folder, because that may be on another disk, and files cannot be renamed across disks."""
_LABEL: Final = "model"
"""The name of the file with the name of the unfinished model."""


@contextlib.contextmanager
def hold(target: Path, key: str = "", *, wait: bool = True) -> Iterator[Path]:
    """Lock a staging folder in `target` against other processes until the block ends, and yield it.

    Waits until the folder is free. Without `wait`, raises BlockingIOError instead. The folder with an empty key is the
    lock for adding and removing final names in `target`. Files that are not discarded stay for the next holder. Empty
    folders are removed.
    """
    folder = target / _PLACE / key
    lock_path = folder / "lock"
    with contextlib.ExitStack() as stack:
        stack.callback(prune, folder)
        stack.enter_context(_locked(lock_path, wait=wait))
        stack.callback(lock_path.unlink, missing_ok=True)  # while it is still locked
        yield folder


def label(folder: Path, model: str) -> None:
    """Record in a staging folder the name of its unfinished model."""
    (folder / _LABEL).write_text(model)


def unfinished(target: Path) -> dict[str, str]:
    """The names of the unfinished models in `target`, by the keys of their staging folders."""
    labels = sorted((target / _PLACE).glob(f"*/{_LABEL}"))
    return {path.parent.name: path.read_text() for path in labels}


def discard(folder: Path) -> None:
    """Remove everything in a staging folder except its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def place(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move files to their final names, in this order. A model's first file must be last, to complete the model."""
    for staged, final in moves:
        while True:
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                staged.replace(final)
                break
            except FileNotFoundError:  # another process has just removed the empty folder
                if not staged.exists():
                    raise
    for folder in {final.parent for _, final in moves}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def prune(folder: Path) -> None:
    """Remove a folder and its parents up to $CORTEX_HOME, as far as they are empty."""
    for each in (folder, *folder.parents):
        if not each.is_relative_to(home()):
            return
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a")
        except FileNotFoundError:  # its folder was removed just now
            continue
        with file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(path, file):  # else the previous holder has removed it
                yield
                return


def _is_same_file(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
