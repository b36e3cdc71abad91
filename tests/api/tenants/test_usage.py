import logging
import math
import sqlite3
from datetime import date
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from api.tenants import usage_buffer
from api.tenants.database import database
from api.tenants.tenant import OTHERS
from api.tenants.usage import By, Used, totals
from api.tenants.usage_buffer import FLUSH_SECONDS, UsageBuffer


def stored(by: By = "key") -> dict[str, Used]:
    with database() as connection:
        return dict(totals(connection, by))


def test_usage_adds_up_by_key_model_and_day() -> None:
    days = iter([date(2030, 1, 1), date(2030, 1, 1), date(2030, 1, 2), date(2030, 1, 2)])
    kept = UsageBuffer(today=lambda: next(days))
    kept.add("alice", "a", Used(1, 10, 5, 3))
    kept.add("alice", "a", Used(1, 10, 0, 4))
    kept.add("alice", "b", Used(1, 1, 1, 1))
    kept.flush()
    kept.add("bob", "b", Used(2, 4, 0, 0))
    kept.flush()
    kept.flush()
    assert stored("key") == {"alice": Used(3, 21, 6, 8), "bob": Used(2, 4, 0, 0)}
    assert stored("model") == {"a": Used(2, 20, 5, 7), "b": Used(3, 5, 1, 1)}
    assert stored("day") == {"2030-01-01": Used(2, 20, 5, 7), "2030-01-02": Used(3, 5, 1, 1)}


class Announcing(UsageBuffer):
    """Says when it has written for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.written = trio.Event()

    def flush(self) -> None:
        super().flush()
        trio.from_thread.run_sync(self.written.set)


async def test_usage_is_written_every_few_seconds_and_at_the_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_buffer, "LAST_FLUSH_SECONDS", math.inf)  # virtual time passes while a thread writes
    kept = Announcing()
    async with trio.open_nursery() as nursery:
        await nursery.start(kept.run)
        kept.add("alice", "a", Used(1))
        await trio.sleep(FLUSH_SECONDS / 2)
        assert stored() == {}
        await kept.written.wait()
        assert stored() == {"alice": Used(1)}
        kept.add("alice", "a", Used(1))
        nursery.cancel_scope.cancel()
    assert stored() == {"alice": Used(2)}


def test_a_disk_that_fails_is_logged_once_and_loses_nothing(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("not a folder")
    kept = UsageBuffer()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            kept.add("alice", "a", Used(1))
            kept.flush()
    assert len(caplog.messages) == 1
    assert "usage cannot be written" in caplog.text
    home.unlink()
    kept.flush()
    assert stored() == {"alice": Used(3)}


def test_a_full_disk_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    kept = UsageBuffer()
    kept.add("alice", "a", Used(1))
    with monkeypatch.context() as patch:
        patch.setattr(usage_buffer, "write", fail)
        kept.flush()
    kept.flush()
    assert stored() == {"alice": Used(1)}


def test_users_without_keys_are_counted_one_by_one_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_buffer, "MAX_KEYLESS", 2)
    days = iter([date(2030, 1, 1)] * 6 + [date(2030, 1, 2)])
    kept = UsageBuffer(today=lambda: next(days))
    for name in ("user:a", "user:b", "user:c", "user:d", "user:a", "alice", "user:c"):
        kept.add(name, "a", Used(1))
    kept.flush()
    assert stored() == {"user:a": Used(2), "user:b": Used(1), OTHERS: Used(2), "alice": Used(1), "user:c": Used(1)}
