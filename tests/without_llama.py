"""A pytest plugin (`-p tests.without_llama`): imports of llama.cpp fail, also in subprocesses."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

_FOLDER = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    assert "llama_cpp" not in sys.modules, "llama_cpp was imported before the plugin could hide it"
    sys.modules["llama_cpp"] = None  # type: ignore[assignment]  # import then raises ModuleNotFoundError
    folder = tempfile.TemporaryDirectory(prefix="without-llama-")
    config.stash[_FOLDER] = folder
    Path(folder.name, "llama_cpp.py").write_text("raise ModuleNotFoundError('llama_cpp is hidden')\n")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder.name, os.environ.get("PYTHONPATH")]))


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_FOLDER].cleanup()
