"""Messages are decoded to what was encoded. Any other line raises ValueError."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.config import EngineInfo
from scheduler.messages import (
    Cancel,
    Embed,
    Embedded,
    Failed,
    Inspect,
    Message,
    Output,
    Queue,
    Ready,
    Report,
    SamplingParams,
    Snapshot,
    Step,
    Stop,
    Submit,
    ThoughtLimit,
    Watch,
    decode,
    encode,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # UTF-8 cannot encode surrogates
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**63), 2**63 - 1)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=30)
PLAIN = st.dictionaries(TEXT, st.one_of(st.none(), st.booleans(), INTS, NUMBERS, TEXT), max_size=5)

THOUGHTS = st.builds(
    ThoughtLimit,
    INTS,
    TOKENS,
    st.lists(TEXT, max_size=2),
    st.lists(TEXT, max_size=2),
    st.booleans(),
    st.booleans(),
    TOKENS,
)
PARAMS = st.builds(
    SamplingParams,
    temperature=NUMBERS,
    top_p=NUMBERS,
    top_k=INTS,
    min_p=NUMBERS,
    frequency_penalty=NUMBERS,
    presence_penalty=NUMBERS,
    repeat_penalty=NUMBERS,
    seed=INTS,
    ignore_eos=st.booleans(),
)
INFOS = st.builds(
    EngineInfo,
    pid=INTS,
    description=TEXT,
    ctx_len=INTS,
    max_seqs=INTS,
    kv_tokens=INTS,
    kv_bytes=INTS,
    batch_tokens=INTS,
    threads=INTS,
    host_cache=INTS,
    disk_cache=INTS,
    gpu_layers=INTS,
    load_seconds=NUMBERS,
)
OUTPUTS = st.builds(
    Output,
    request_id=INTS,
    tokens=TOKENS,
    finish_reason=st.sampled_from([None, "stop", "length", "error"]),
    cached_tokens=INTS,
    error=st.none() | TEXT,
)
MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    Submit: st.builds(
        Submit, request_id=INTS, tokens=TOKENS, max_tokens=INTS, params=PARAMS, thoughts=st.none() | THOUGHTS
    ),
    Embed: st.builds(Embed, request_id=INTS, texts=st.lists(TOKENS, max_size=5)),
    Cancel: st.builds(Cancel, request_id=INTS),
    Inspect: st.builds(Inspect),
    Stop: st.builds(Stop),
    Ready: st.builds(Ready, info=INFOS),
    Failed: st.builds(Failed, reason=TEXT),
    Step: st.builds(Step, outputs=st.lists(OUTPUTS, max_size=5)),
    Queue: st.builds(Queue, request_ids=st.lists(INTS, max_size=5)),
    Embedded: st.builds(Embedded, request_id=INTS, embeddings=st.lists(TEXT, max_size=5), error=st.none() | TEXT),
    Watch: st.builds(Watch, st.booleans()),
    Snapshot: st.builds(
        Snapshot,
        st.lists(st.tuples(NUMBERS, st.lists(st.tuples(TEXT, INTS, INTS, INTS, INTS).map(list), max_size=2)).map(list)),
        st.dictionaries(TEXT, st.tuples(INTS, INTS).map(list), max_size=3),
        PLAIN,
        PLAIN,
        PLAIN,
    ),
    Report: st.builds(Report, scheduler=PLAIN, cache=PLAIN, embedder=PLAIN),
}


def test_all_types_of_messages_are_tested() -> None:
    assert set(MESSAGES) == set(Message.__args__)


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_a_message_is_decoded_to_the_same_message(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    line = encode(message)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1], "a message is one line, with any text in it"
    received = decode(line)
    assert type(received) is type(message)
    assert received == message


def test_messages_are_separated_by_lines() -> None:
    sent: list[Message] = [Submit(1, [5, 6], 3), Cancel(1), Inspect(), Failed("line one\nline two"), Stop()]
    stream = b"".join(map(encode, sent))
    assert [decode(line) for line in stream.splitlines()] == sent


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"Stop",
        b"\xff\xfe",
        b'{"type":"Stop"',
        b"null",
        b"3",
        b'"Stop"',
        b"[]",
        b"{}",
        as_json({"type": "Stop"}),
        as_json({"body": {}}),
        as_json({"type": "Begin", "body": {}}),
        as_json({"type": ["Stop"], "body": {}}),
        as_json({"type": None, "body": {}}),
        as_json({"type": "Submit", "body": None}),
        as_json({"type": "Submit", "body": []}),
        as_json({"type": "Submit", "body": {"request_id": 1, "tokens": [1], "max_tokens": 1}}),
        as_json({"type": "Submit", "body": {"request_id": 1, "tokens": [1], "max_tokens": 1, "params": 5}}),
        as_json({"type": "Submit", "body": {"params": {}, "request_id": 1}}),
        as_json({"type": "Embed", "body": {"request_id": 1}}),
        as_json({"type": "Embedded", "body": {"embeddings": []}}),
        as_json({"type": "Cancel", "body": {}}),
        as_json({"type": "Cancel", "body": {"request_id": 1, "why": "a later version's field"}}),
        as_json({"type": "Ready", "body": {"info": 5}}),
        as_json({"type": "Step", "body": {}}),
        as_json({"type": "Step", "body": {"outputs": 5}}),
        as_json({"type": "Step", "body": {"outputs": [5]}}),
        as_json({"type": "Step", "body": {"outputs": [{"tokens": []}]}}),
        as_json({"type": "Report", "body": {"scheduler": {}}}),
        b"[" * 100_000,
    ],
)
def test_an_invalid_line_raises_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        decode(line)


@given(st.binary(max_size=60))
def test_random_bytes_raise_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        decode(line)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "outputs", "Stop"]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["outputs", "info", "params", "tokens", "request_id"]), values, max_size=3)
    ),
    max_leaves=8,
)


@given(kind=st.sampled_from([*(kind.__name__ for kind in MESSAGES), "Begin"]), body=JSON)
def test_a_known_type_with_any_body_decodes_or_raises_value_error(kind: str, body: Any) -> None:
    """The API process handles no other exception."""
    try:
        message = decode(orjson.dumps({"type": kind, "body": body}))
    except ValueError:
        return
    assert type(message).__name__ == kind
