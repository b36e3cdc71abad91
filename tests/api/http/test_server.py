"""A server that cannot start says why in one line."""

import errno
import os
from pathlib import Path

import pytest

from api.flags import ModelOptions, ServerOptions
from api.home import home
from api.http import server
from scheduler.config import EngineConfig


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Python names no file if a write fails."""

    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(server, "Clients", fail)
    monkeypatch.setattr("scheduler.logs.configure", lambda *_: None)
    options = ServerOptions(ModelOptions("a", Path("a.gguf"), EngineConfig("a.gguf")), port=0)
    assert server.serve(options) == 1
    assert caplog.messages == [f"{home()}: No space left on device"]
