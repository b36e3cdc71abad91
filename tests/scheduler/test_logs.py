"""The format of log lines."""

import json
import logging
import os
from datetime import datetime

from scheduler.logs import JsonFormatter


def line(message: str, *arguments: object, error: Exception | None = None, **fields: object) -> dict[str, object]:
    exception = (type(error), error, None) if error else None
    record = logging.LogRecord("cortex.engine", logging.WARNING, __file__, 1, message, arguments, exception)
    if fields:
        record.fields = fields
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_each_line_is_an_object() -> None:
    found = line("two\nlines of %s", '"quotes"', request_id="r", seconds=1.5)
    assert datetime.fromisoformat(str(found.pop("time"))).tzinfo is not None
    assert found == {
        "level": "warning",
        "logger": "cortex.engine",
        "pid": os.getpid(),
        "message": 'two\nlines of "quotes"',
        "request_id": "r",
        "seconds": 1.5,
    }


def test_an_exception_is_a_field() -> None:
    found = line("it failed", error=ValueError("the reason"))
    assert "ValueError: the reason" in str(found["exception"])


def test_texts_that_are_no_unicode_are_written() -> None:
    assert line("a \ud800 surrogate")["message"] == "a \ud800 surrogate"
