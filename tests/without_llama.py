"""A plugin of pytest's (`-p tests.without_llama`) with which llama.cpp cannot be imported, by subprocesses neither."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

_FOLDER = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    assert "llama_cpp" not in sys.modules, "imported before it could be hidden"
    sys.modules["llama_cpp"] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
    folder = tempfile.TemporaryDirectory(prefix="without-llama-")
    config.stash[_FOLDER] = folder
    Path(folder.name, "llama_cpp.py").write_text("raise ModuleNotFoundError('llama_cpp is hidden')\n")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder.name, os.environ.get("PYTHONPATH")]))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_FOLDER].cleanup()
