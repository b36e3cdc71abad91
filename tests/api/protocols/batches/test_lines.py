"""Input files of batches: what is wrong with them, and the order of their lines."""

import io
import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.protocols.batches import lines
from api.protocols.batches.lines import BLOCK, InputIndex, beginning
from api.storage.batch import InputError
from tests.api.protocols.batches.desk import CHAT, jsonl, line


def index_of(data: bytes, max_lines: int = 100, num_bytes: int = 1 << 20) -> InputIndex:
    index = InputIndex(io.BytesIO(data), CHAT, max_lines=max_lines)
    while index.read(num_bytes):
        pass
    return index


def errors_of(*given: object, max_lines: int = 100) -> list[tuple[str, str | None, int | None]]:
    index = index_of(jsonl(given), max_lines)
    assert all(error.message for error in index.errors)
    return [(error.code, error.param, error.line) for error in index.errors]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in line("a").items() if key != name}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (b"{no json}\n", ("invalid_json_line", None, 2)),
        (b'{"custom_id": "\xff"}\n', ("invalid_json_line", None, 2)),
        (b"[1, 2]\n", ("invalid_request", None, 2)),
        (without("custom_id"), ("missing_required_parameter", "custom_id", 2)),
        (without("method"), ("missing_required_parameter", "method", 2)),
        (without("url"), ("missing_required_parameter", "url", 2)),
        (without("body"), ("missing_required_parameter", "body", 2)),
        (line("a") | {"custom_id": 7}, ("invalid_request", "custom_id", 2)),
        (line("a") | {"custom_id": ""}, ("invalid_request", "custom_id", 2)),
        (line("x" * 513), ("invalid_request", "custom_id", 2)),
        (line("a") | {"method": "GET"}, ("invalid_method", "method", 2)),
        (line("a", url="/v1/embeddings"), ("invalid_url", "url", 2)),
        (line("a") | {"body": "text"}, ("invalid_request", "body", 2)),
        (line("first"), ("duplicate_custom_id", "custom_id", 2)),
    ],
)
def test_each_fault_of_a_line_is_reported(given: object, error: tuple[str, str | None, int]) -> None:
    assert errors_of(line("first"), given, line("last")) == [error]


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\n"])
def test_a_file_without_requests_is_refused(data: bytes) -> None:
    assert [error.code for error in index_of(data).errors] == ["empty_file"]


def test_a_file_with_too_many_requests_is_refused() -> None:
    many = [line(str(number)) for number in range(6)]
    assert errors_of(*many[:5], max_lines=5) == []
    assert errors_of(*many, max_lines=5) == [("too_many_tasks", None, None)]


def test_at_most_a_hundred_errors_are_reported() -> None:
    assert len(errors_of(*[b"no\n"] * 300)) == 100


def test_a_line_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 500)
    assert errors_of(line("a"), line("b", "x" * 2000), line("c")) == [("invalid_request", None, 2)]


def test_the_last_line_needs_no_end() -> None:
    index = index_of(jsonl([line("a"), line("b")]).rstrip(b"\n"))
    assert index.errors == []
    assert len(index.lines()) == 2


@given(
    st.lists(st.sampled_from(["a", "b" * 300, "c" * 5000]), min_size=1, max_size=20),
    st.sampled_from([b"", b"\n", b"  \n"]),
    st.integers(1, 4000),
)
def test_lines_are_found_again_at_their_places(texts: list[str], gap: bytes, num_bytes: int) -> None:
    """However the file is read, and whatever empty lines it has."""
    data = b"".join(gap + jsonl([line(str(number), text)]) for number, text in enumerate(texts))
    index = index_of(data, num_bytes=num_bytes)
    found = index.lines()
    assert sorted(each.place for each in found) == list(range(len(texts)))
    for each in found:
        assert orjson.loads(data[each.start : each.start + each.size])["custom_id"] == each.custom_id
        number = data[: each.start].count(b"\n") + 1
        assert each.line == number


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_lines_with_equal_beginnings_are_neighbours(pairs: list[tuple[int, int]]) -> None:
    """Lines of one model are together, in them those of one system prompt, and in those those of one example."""
    given = [
        line(
            str(number),
            model=f"model-{number % 2}",
            messages=[
                {"role": "system", "content": f"{system} " * BLOCK},
                {"role": "user", "content": f"{example} " * BLOCK},
                {"role": "user", "content": str(number)},
            ],
        )
        for number, (system, example) in enumerate(pairs)
    ]
    ordered = [int(each.custom_id) for each in index_of(jsonl(given)).lines()]
    keys = [(number % 2, *pairs[number]) for number in ordered]
    for depth in (1, 2, 3):
        beginnings = [key[:depth] for key in keys]
        changes = sum(first != second for first, second in itertools.pairwise(beginnings))
        assert changes == len(set(beginnings)) - 1


@pytest.mark.parametrize("field", ["prompt", "input", "instructions", "tools"])
def test_every_kind_of_prompt_has_a_key(field: str) -> None:
    long = "word " * BLOCK
    assert beginning({field: long + "a"})[:-8] == beginning({field: long + "b"})[:-8] != b""
    assert beginning({field: long}) != beginning({field: "another " * BLOCK})


def test_an_error_names_the_first_of_two_lines() -> None:
    [error] = index_of(jsonl([line("a"), line("b"), line("a")])).errors
    assert error == InputError(
        "duplicate_custom_id", "The custom_id 'a' is a duplicate of the one in line 1.", "custom_id", 3
    )
