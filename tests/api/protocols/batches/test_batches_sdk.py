"""Batches through OpenAI's SDK, over the app of a fake server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from openai import BadRequestError, ConflictError, NotFoundError
from openai.types import Batch

from api.protocols.batches.types import Batch as WireBatch
from api.text.tokenizer import Tokenizer
from tests.api.fakes import MODEL
from tests.api.protocols.batches.desk import CHAT, Desk, jsonl, line
from tests.api.sdks import Sdks


@pytest.fixture
async def desk(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path, tokenizer)
    yield desk
    desk.close()


@pytest.fixture
async def sdks(desk: Desk) -> AsyncIterator[Sdks]:
    async with desk.running():
        yield Sdks(desk.server)


async def create(sdks: Sdks, lines: list[Any], endpoint: str = CHAT, **fields: Any) -> Batch:
    client = sdks.openai
    file = await sdks.call(client.files.create, file=("in.jsonl", jsonl(lines)), purpose="batch")
    return await sdks.call(
        client.batches.create, input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields
    )


async def ended(sdks: Sdks, batch: Batch) -> Batch:
    with trio.fail_after(60):
        while batch.status not in ("completed", "failed", "cancelled"):
            await trio.sleep(0.01)
            batch = await sdks.call(sdks.openai.batches.retrieve, batch_id=batch.id)
            WireBatch.model_validate(batch.to_dict())
    return batch


async def content(sdks: Sdks, file_id: str | None) -> str:
    assert file_id is not None
    answer = await sdks.call(sdks.openai.files.content, file_id=file_id)
    return answer.text


BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello", "store": True},
}


@pytest.mark.parametrize("endpoint", BODIES)
async def test_each_endpoint_answers_its_lines(desk: Desk, sdks: Sdks, endpoint: str) -> None:
    desk.server.answers("Fine.")
    body = {"model": MODEL, **BODIES[endpoint]}
    given = [{"custom_id": f"id-{n}", "method": "POST", "url": endpoint, "body": body} for n in range(3)]
    batch = await ended(sdks, await create(sdks, given, endpoint, metadata={"night": "1"}))
    assert (batch.status, batch.metadata, batch.model) == ("completed", {"night": "1"}, MODEL)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (3, 3)
    assert batch.usage is not None
    assert batch.usage.output_tokens == 3 * len(desk.server.encode("Fine."))
    assert (await content(sdks, batch.output_file_id)).count("Fine.") >= 3
    assert batch.error_file_id is None


async def test_responses_of_batches_do_not_drop_those_of_others(desk: Desk, sdks: Sdks) -> None:
    desk.server.answers("Fine.")
    body = {"model": MODEL, **BODIES["/v1/responses"]}
    batch = await create(
        sdks, [{"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}], "/v1/responses"
    )
    batch = await ended(sdks, batch)
    assert '"store":false' in await content(sdks, batch.output_file_id)


async def test_a_bad_file_fails_with_its_lines(sdks: Sdks) -> None:
    batch = await ended(sdks, await create(sdks, [line("a"), b"no json\n", line("a")]))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(each.code, each.line) for each in batch.errors.data] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
    ]
    assert batch.failed_at is not None


async def test_lists_go_on_after_a_batch(desk: Desk, sdks: Sdks) -> None:
    desk.server.answers()
    made = [(await ended(sdks, await create(sdks, [line("a")]))).id for _ in range(3)]
    first = await sdks.call(sdks.openai.batches.list, limit=2)
    assert [each.id for each in first.data] == [made[2], made[1]]
    assert first.has_more
    rest = await sdks.call(sdks.openai.batches.list, limit=2, after=first.data[-1].id)
    assert [each.id for each in rest.data] == [made[0]]
    with pytest.raises(BadRequestError, match="batch_none"):
        await sdks.call(sdks.openai.batches.list, after="batch_none")


async def test_cancel(desk: Desk, sdks: Sdks) -> None:
    batch = await create(sdks, [line("a")])
    with trio.fail_after(60):
        await desk.engine.wait_active()
    cancelling = await sdks.call(sdks.openai.batches.cancel, batch_id=batch.id)
    assert cancelling.status == "cancelling"
    batch = await ended(sdks, batch)
    assert batch.status == "cancelled"
    assert '"batch_cancelled"' in await content(sdks, batch.error_file_id)
    with pytest.raises(ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
        await sdks.call(sdks.openai.batches.cancel, batch_id=batch.id)


async def test_a_file_in_use_is_not_deleted(desk: Desk, sdks: Sdks) -> None:
    batch = await create(sdks, [line("a")])
    with pytest.raises(ConflictError, match=batch.id):
        await sdks.call(sdks.openai.files.delete, file_id=batch.input_file_id)


async def test_unknown_ids_and_files_are_refused(sdks: Sdks) -> None:
    client = sdks.openai
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(NotFoundError, match="batch_none"):
            await sdks.call(call, batch_id="batch_none")
    fields: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(BadRequestError, match="file-none"):
        await sdks.call(client.batches.create, input_file_id="file-none", **fields)
    other = await sdks.call(client.files.create, file=("a.txt", b"text"), purpose="user_data")
    with pytest.raises(BadRequestError, match="user_data"):
        await sdks.call(client.batches.create, input_file_id=other.id, **fields)


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "/v1/moderations"},
        {"completion_window": "48h"},
        {"output_expires_after": {"anchor": "created_at", "seconds": 10}},
        {"extra_body": {"unknown": 1}},
    ],
)
async def test_invalid_fields_are_refused(desk: Desk, sdks: Sdks, wrong: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(BadRequestError) as raised:
        await sdks.call(sdks.openai.batches.create, input_file_id="file-a", **fields | wrong)
    assert raised.value.param == next(iter(wrong.get("extra_body", wrong))) or "seconds" in str(raised.value.param)
