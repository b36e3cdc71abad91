from datetime import date

import pytest

from api.serving.observer import RequestRecord
from api.serving.usage import UsageObserver
from api.tenants.usage import Used
from api.tenants.usage_buffer import UsageBuffer


class Recorder(UsageBuffer):
    def __init__(self) -> None:
        super().__init__(today=lambda: date(2030, 1, 1))
        self.added: list[tuple[str, str, Used]] = []

    def add(self, tenant: str, model: str, used: Used) -> None:
        self.added.append((tenant, model, used))


@pytest.mark.parametrize(
    ("submitted", "last_output", "added"),
    [
        (None, None, []),  # it was refused
        (1.0, None, [("alice", "m", Used(1))]),  # its client left while it waited
        (1.0, 2.0, [("alice", "m", Used(1, 20, 8, 5))]),
    ],
)
def test_a_request_is_counted_if_an_engine_got_it(
    submitted: float | None, last_output: float | None, added: list[tuple[str, str, Used]]
) -> None:
    buffer = Recorder()
    observer = UsageObserver(buffer)
    record = RequestRecord(tenant="alice", model="m", prompt_tokens=20, cached_tokens=8, answer_tokens=5)
    record.submitted, record.last_output = submitted, last_output
    observer.began(record)
    assert buffer.added == []
    observer.ended(record)
    assert buffer.added == added
