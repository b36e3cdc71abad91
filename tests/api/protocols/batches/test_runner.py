"""Batches over a fake engine, in virtual time."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from api.storage.errors import StorageFullError
from api.tenants.tenant import Priority, Tenant
from api.text.tokenizer import Tokenizer
from scheduler.messages import Output, Submit
from tests.api.fakes import INFO, chat
from tests.api.protocols.batches.desk import Desk, line, text_of

Open = Callable[..., Desk]


@pytest.fixture
def desk(tmp_path: Path, tokenizer: Tokenizer) -> Iterator[Open]:
    desks: list[Desk] = []

    def make(**options: Any) -> Desk:
        for earlier in desks:
            earlier.close()
        desks.append(Desk(tmp_path, tokenizer, **options))
        return desks[-1]

    yield make
    for each in desks:
        each.close()


def number(prompt: str) -> str:
    found = re.search(r"number (\d+)", prompt)
    assert found is not None, prompt
    return found[1]


def numbered(count: int) -> list[dict[str, Any]]:
    return [line(f"id-{each}", f"This is number {each}") for each in range(count)]


def ids(results: list[dict[str, Any]]) -> list[str]:
    return [each["custom_id"] for each in results]


async def test_each_line_is_answered_in_the_order_of_the_input(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: f"It was {number(prompt)}.")
    async with here.running():
        batch = await here.ended(here.create(numbered(20)))
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 20, 20, 0)
    outputs, errors = here.results(batch)
    assert [(each["custom_id"], text_of(each)) for each in outputs] == [
        (f"id-{each}", f"It was {each}.") for each in range(20)
    ]
    assert errors == []
    assert batch.error_file is None
    assert len({each["id"] for each in outputs}) == len({each["response"]["request_id"] for each in outputs}) == 20
    bodies = [each["response"]["body"] for each in outputs]
    assert batch.usage.input_tokens == sum(each["usage"]["prompt_tokens"] for each in bodies)
    assert batch.usage.output_tokens == sum(each["usage"]["completion_tokens"] for each in bodies)
    times = batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at
    assert list(times) == sorted(time for time in times if time is not None)


async def test_lines_run_in_the_class_batch_of_their_tenant(desk: Open, autojump_clock: MockClock) -> None:
    here = desk(tenants=lambda keeper, name: Tenant(name, weight=3.0, priority=Priority.INTERACTIVE))
    here.answers_each(lambda prompt: "Fine.")
    async with here.running():
        await here.ended(here.create([line("a"), line("b", priority="interactive")]))
    assert {(each.tenant, each.weight, each.priority) for each in here.engine.submitted} == {
        ("user:ann", 3.0, Priority.BATCH)
    }


async def test_as_many_lines_run_at_once_as_the_engine_computes(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: None)
    async with here.running():
        here.create([line("first", n=2), *numbered(9)])
        await trio.sleep(5)
        assert here.engine.num_active == INFO.max_seqs


async def test_lines_take_no_place_from_clients(desk: Open, autojump_clock: MockClock) -> None:
    here = desk(max_waiting=3)
    here.answers_each(lambda prompt: None)
    async with here.running():
        here.create(numbered(50))
        await trio.sleep(5)
        running = here.engine.num_active
        assert running == INFO.max_seqs
        async with trio.open_nursery() as nursery:
            for _ in range(INFO.max_seqs + 3):
                nursery.start_soon(here.server.post, chat("Me"))
            await trio.sleep(1)
            assert here.engine.num_active == running + INFO.max_seqs + 3
            assert (await here.server.post(chat("One more"))).status_code == 429
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("num_clients", [1, INFO.max_seqs - 1, INFO.max_seqs + 2])
async def test_lines_take_only_the_room_that_clients_leave(
    desk: Open, autojump_clock: MockClock, num_clients: int
) -> None:
    here = desk()
    here.answers_each(lambda prompt: None)
    async with here.running(), trio.open_nursery() as nursery:
        for _ in range(num_clients):
            nursery.start_soon(here.server.post, chat("Me"))
        await trio.sleep(1)
        here.create(numbered(9))
        await trio.sleep(5)
        assert here.engine.num_active == max(INFO.max_seqs, num_clients + 1)
        nursery.cancel_scope.cancel()


async def test_lines_with_equal_beginnings_run_next_to_each_other(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    systems = ["You count. " * 30, "You sing. " * 30, "You draw. " * 30]
    lines = [
        line(str(each), messages=[{"role": "system", "content": systems[each % 3]}, {"role": "user", "content": "Hi"}])
        for each in range(30)
    ]
    async with here.running():
        await here.ended(here.create(lines))
    order = [next(each for each in systems if each in here.prompt(submit)) for submit in here.engine.submitted]
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert changes == 2


async def test_an_error_of_a_line_goes_to_the_error_file(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    lines = [
        line("good"),
        line("streams", stream=True),
        line("hot", temperature=99),
        line("unknown", model="no-such-model"),
        line("last"),
    ]
    async with here.running():
        batch = await here.ended(here.create(lines))
    outputs, errors = here.results(batch)
    assert ids(outputs) == ["good", "last"]
    assert [(each["custom_id"], each["response"]["status_code"], each["error"]) for each in errors] == [
        ("streams", 400, None),
        ("hot", 400, None),
        ("unknown", 404, None),
    ]
    assert [each["response"]["body"]["error"]["param"] for each in errors] == ["stream", "temperature", "model"]
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 5, 2, 3)


async def test_a_line_that_is_refused_for_now_is_tried_again(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    async with here.running():
        here.engine.info = None  # the engine is being restarted
        batch = here.create(numbered(5))
        await trio.sleep(100)
        assert here.batch(batch).completed == 0
        here.engine.info = INFO
        batch = await here.ended(batch)
    assert (batch.completed, batch.failed) == (5, 0)


async def test_a_line_that_the_server_stopped_is_tried_again(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: None)
    async with here.running():
        batch = here.create(numbered(5))
        await here.engine.wait_active()
        here.answers_each(lambda prompt: "Fine.")
        here.engine.fail_all("the model is being stopped")
        batch = await here.ended(batch)
    assert (batch.completed, batch.failed) == (5, 0)


async def test_a_line_that_ends_engines_is_answered_with_an_error(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()

    def outputs(submit: Submit) -> list[Output]:
        if "number 3" in here.prompt(submit):
            return [Output(submit.request_id, [], "error", error="the engine crashed twice")]
        return [Output(submit.request_id, here.server.encode("Fine."), "stop")]

    here.engine.answer = outputs
    async with here.running():
        batch = await here.ended(here.create(numbered(5)))
    outputs_, errors = here.results(batch)
    assert len(outputs_) == 4
    assert [(each["custom_id"], each["response"]["status_code"]) for each in errors] == [("id-3", 500)]


async def test_a_model_that_is_gone_is_waited_for(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: None)
    async with here.running():
        batch = here.create(numbered(3))
        await here.engine.wait_active()
        [model] = here.server.fleet.models
        here.server.fleet._forget(model)
        here.engine.fail_all("the model is being stopped")
        await trio.sleep(600)
        assert here.batch(batch).failed == 0
        here.answers_each(lambda prompt: "Fine.")
        here.server.fleet.adopt(model.options, here.server.service)
        batch = await here.ended(batch)
    assert batch.completed == 3


async def test_a_batch_goes_on_after_the_end_of_the_process(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "First life." if int(number(prompt)) % 2 else None)
    async with here.running():
        batch = here.create(numbered(6))
        await here.until(batch, lambda now: now.completed == 3)
    here = desk()
    here.answers_each(lambda prompt: "Second life.")
    async with here.running():
        batch = await here.ended(batch)
    outputs, errors = here.results(batch)
    assert [text_of(each) for each in outputs] == ["Second life.", "First life."] * 3
    assert errors == []
    assert len(here.engine.submitted) == 3


async def test_cancelling_ends_the_running_lines(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine." if len(here.engine.submitted) == 1 else None)
    async with here.running():
        batch = here.create(numbered(8))
        await here.until(batch, lambda now: now.completed == 1)
        cancelling = here.storage.batches.cancel("", batch.id)
        assert cancelling is not None
        assert cancelling.status == "cancelling"
        batch = await here.ended(batch)
    assert here.engine.num_active == 0
    outputs, errors = here.results(batch)
    assert batch.status == "cancelled"
    assert len(outputs) == 1
    assert ids(errors) == [f"id-{each}" for each in range(8) if f"id-{each}" not in ids(outputs)]
    assert {each["error"]["code"] for each in errors} == {"batch_cancelled"}
    assert {each["response"] for each in errors} == {None}
    assert (batch.total, batch.completed, batch.failed) == (8, 1, 7)


async def test_a_batch_expires_after_a_day(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine." if number(prompt) == "1" else None)
    async with here.running():
        batch = await here.ended(here.create(numbered(3)))
    assert batch.expired_at is not None
    assert (batch.status, batch.expired_at - batch.created_at) == ("expired", 24 * 3600)
    outputs, errors = here.results(batch)
    assert ids(outputs) == ["id-1"]
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}


async def test_a_batch_waits_while_its_tenant_has_no_key(desk: Open, autojump_clock: MockClock) -> None:
    known: list[Tenant] = []
    here = desk(tenants=lambda keeper, name: known[0] if known else None)
    here.answers_each(lambda prompt: "Fine.")
    async with here.running():
        batch = here.create(numbered(3))
        await trio.sleep(1000)
        assert here.batch(batch).status == "in_progress"
        assert here.engine.submitted == []
        known.append(Tenant("ann"))
        batch = await here.ended(batch)
    assert batch.completed == 3


async def test_the_models_of_a_tenant_bind_its_batches(desk: Open, autojump_clock: MockClock) -> None:
    here = desk(tenants=lambda keeper, name: Tenant(name, models=("another",)))
    async with here.running():
        batch = await here.ended(here.create(numbered(1)))
    _, [error] = here.results(batch)
    assert error["response"]["status_code"] == 403
    assert error["response"]["body"]["error"]["code"] == "model_not_allowed"


async def test_a_draining_server_starts_no_lines(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: None)
    async with here.running():
        batch = here.create(numbered(10))
        await here.engine.wait_active()
        await trio.sleep(1)
        started = len(here.engine.submitted)
        here.server.fleet.drain()
        here.engine.fail_all("the server is shutting down")
        await trio.sleep(100)
        assert len(here.engine.submitted) == started
    assert (here.batch(batch).completed, here.batch(batch).failed) == (0, 0)


async def test_a_full_disk_loses_no_answer(
    desk: Open, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    failures = iter([True] * 7)
    real = here.storage.batches.record

    def record(*args: Any) -> bool:
        if next(failures, False):
            raise StorageFullError("The server's disk is full.")
        return real(*args)

    monkeypatch.setattr(here.storage.batches, "record", record)
    async with here.running():
        batch = await here.ended(here.create(numbered(10)))
    assert batch.completed == 10
    assert len(here.engine.submitted) == 10


async def test_the_input_file_may_vanish(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: None)
    async with here.running():
        batch = here.create(numbered(3))
        await here.engine.wait_active()
    here.storage.files.delete("", batch.input_file)
    here = desk()
    async with here.running():
        batch = await here.ended(batch)
    _, errors = here.results(batch)
    assert [each["error"]["code"] for each in errors] == ["input_file_deleted"] * 3


@pytest.mark.parametrize("at", ["output", "error"])
async def test_files_are_written_once_after_an_end_between_them(
    desk: Open, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    real = here.storage.batches.end

    def end(number: int) -> None:
        raise StorageFullError("The process ends here.")

    monkeypatch.setattr(here.storage.batches, "end", end)
    async with here.running():
        batch = here.create([*numbered(2), line("bad", temperature=99)])
        await here.until(batch, lambda now: getattr(now, f"{at}_file") is not None)
    before = here.batch(batch)
    here = desk()
    assert real is not here.storage.batches.end
    async with here.running():
        batch = await here.ended(batch)
    assert getattr(batch, f"{at}_file") == getattr(before, f"{at}_file")
    assert len(here.storage.files.list("", "batch_output")) == 2
    outputs, errors = here.results(batch)
    assert ids(outputs + errors) == ["id-0", "id-1", "bad"]


async def test_the_lines_of_ended_batches_are_forgotten(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    async with here.running():
        await here.ended(here.create(numbered(3)))
        await trio.sleep(1)
    with here.storage.database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM batch_lines").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM batch_answers").fetchone() == (0,)


async def test_lines_are_counted_as_requests_of_their_tenant(desk: Open, autojump_clock: MockClock) -> None:
    here = desk()
    here.answers_each(lambda prompt: "Fine.")
    async with here.running():
        await here.ended(here.create([*numbered(2), line("bad", model="nope")]))
    text = (await (await here.server.client.get("/metrics")).get_data(as_text=False)).decode()
    assert 'cortex_http_requests_total{operation="chat_completions",status="200"} 2.0' in text
    assert 'cortex_http_requests_total{operation="chat_completions",status="404"} 1.0' in text
