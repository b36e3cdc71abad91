"""A place beside the models where one becomes whole, out of sight, before it takes its name at once."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from api.home import home
from api.models.files import models_folder


@contextlib.contextmanager
def hold(key: str, *, wait: bool = True) -> Iterator[Path]:
    """A folder that no other process uses until the block ends; waits until none does, or raises BlockingIOError.

    What it holds then stays for who comes next, unless it was discarded. Folders that are empty go.
    """
    folder = _root() / key
    lock_path = folder / "lock"
    with contextlib.ExitStack() as stack:
        stack.callback(prune, folder)
        stack.enter_context(_locked(lock_path, wait=wait))
        stack.callback(lock_path.unlink, missing_ok=True)  # while it is still locked
        yield folder


def keys(beginning: str) -> list[str]:
    """Of the folders that were left, those within this one."""
    return [path.relative_to(_root()).as_posix() for path in sorted((_root() / beginning).glob("*/"))]


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


def _root() -> Path:
    return models_folder() / ".pulls"


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
