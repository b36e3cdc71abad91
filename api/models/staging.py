"""A place in a model's folder where it becomes whole, out of sight, before it takes its name at once."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from api.home import home

_PLACE: Final = ".pulls"
"""Within the folder itself, which may be a link to another disk: no name could be given from there."""
_LABEL: Final = "model"
"""Of the file that tells what becomes of the others."""


@contextlib.contextmanager
def hold(target: Path, key: str = "", *, wait: bool = True) -> Iterator[Path]:
    """A folder for what becomes a model in `target`, which no other process uses until the block ends.

    Waits until none does, or raises BlockingIOError. Who holds the one without a key decides which files have names in
    `target`. What a folder holds then stays for who comes next, unless it was discarded; folders that are empty go.
    """
    folder = target / _PLACE / key
    lock_path = folder / "lock"
    with contextlib.ExitStack() as stack:
        stack.callback(prune, folder)
        stack.enter_context(_locked(lock_path, wait=wait))
        stack.callback(lock_path.unlink, missing_ok=True)  # while it is still locked
        yield folder


def label(folder: Path, model: str) -> None:
    """Tell whoever comes later what model becomes whole in a folder."""
    (folder / _LABEL).write_text(model)


def unfinished(target: Path) -> dict[str, str]:
    """The models that were left half-done in `target`, by the keys of their folders."""
    labels = sorted((target / _PLACE).glob(f"*/{_LABEL}"))
    return {path.parent.name: path.read_text() for path in labels}


def discard(folder: Path) -> None:
    """Remove all that a folder holds but its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def place(moves: Sequence[tuple[Path, Path]]) -> None:
    """Give each file its name, in this order. What a model begins with comes last: until then the rest is none."""
    for staged, final in moves:
        while True:
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                staged.replace(final)
                break
            except FileNotFoundError:  # somebody just removed another model, and its empty folder
                if not staged.exists():
                    raise
    for folder in {final.parent for _, final in moves}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def prune(folder: Path) -> None:
    """Remove a folder and those it lies in, $CORTEX_HOME being the last, as far as they are empty."""
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
            if _is_still(path, file):  # else who held it before has removed it
                yield
                return


def _is_still(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
