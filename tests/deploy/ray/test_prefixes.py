"""Which replica a request goes to."""

from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.ray.prefixes import BLOCK_CHARS, Prefix, PrefixTable, blocks_of, prefix_of, prompt_text

CHAT = "/v1/chat/completions"
LONG = "be brief and precise " * 40


def conversation(*contents: str) -> bytes:
    messages = [{"role": "user", "content": each} for each in contents]
    return orjson.dumps({"model": "m", "messages": messages})


def test_a_longer_conversation_has_the_shorter_one_as_its_prefix() -> None:
    short = prefix_of(CHAT, (), conversation(LONG)).blocks
    long = prefix_of(CHAT, (), conversation(LONG, "yes", LONG)).blocks
    assert len(long) > len(short) > 1
    # The last whole block of the short one may have ended with its own closing bracket.
    assert long[: len(short)] == short


def test_texts_that_differ_early_share_no_block() -> None:
    one, two = blocks_of("1" + LONG), blocks_of("2" + LONG)
    assert not set(one) & set(two)


@given(st.text(max_size=20), st.integers(0, 60), st.text(max_size=20), st.integers(0, 60))
def test_blocks_of_a_longer_text_begin_with_those_of_the_shorter(text: str, times: int, more: str, again: int) -> None:
    text, more = text * times, more * again
    assert blocks_of(text + more)[: len(blocks_of(text))] == blocks_of(text)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}),
        (CHAT, {"tools": [{"type": "function", "function": {"name": LONG}}], "messages": []}),
        ("/v1/messages", {"system": LONG, "messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"instructions": LONG, "input": "hi"}),
        ("/v1/responses", {"input": [{"role": "user", "content": LONG}]}),
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/completions", {"prompt": [LONG, "b"]}),
        ("/v1/completions", {"prompt": list(range(500))}),
    ],
)
def test_the_prompt_of_each_protocol_is_a_prefix(path: str, fields: dict[str, object]) -> None:
    assert prefix_of(path, (), orjson.dumps(fields)).blocks


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b""),
        (CHAT, b"not json"),
        (CHAT, b"[1]"),
        (CHAT, b'{"messages": null}'),
        (CHAT, conversation("short")),
        ("/v1/embeddings", orjson.dumps({"input": LONG})),
    ],
)
def test_a_request_without_a_long_prompt_has_no_prefix(path: str, body: bytes) -> None:
    assert prefix_of(path, (), body) == Prefix()


def test_tools_and_system_come_before_messages() -> None:
    text = prompt_text({"messages": [{"content": "last"}], "system": "second", "tools": ["first"]})
    assert text.index("first") < text.index("second") < text.index("last")


def routed(table: PrefixTable, prefix: Prefix, loads: dict[str, int]) -> str:
    """Routes a request as the router does."""
    chosen = table.rank(prefix, loads)[0]
    table.record(prefix, chosen)
    loads[chosen] += 1
    return chosen


def test_the_replica_that_has_the_longest_prefix_gets_the_request() -> None:
    table = PrefixTable()
    first, second = Prefix(blocks_of(LONG * 2)), Prefix(blocks_of(LONG + "another" + LONG))
    table.record(first, "a")
    table.record(second, "b")
    assert table.rank(first, {"a": 1, "b": 0, "c": 0})[0] == "a"
    assert table.rank(second, {"a": 0, "b": 1, "c": 0})[0] == "b"


def test_a_replica_that_is_clearly_busier_does_not_get_it() -> None:
    table = PrefixTable(max_lead=4)
    prefix = Prefix(blocks_of(LONG))
    table.record(prefix, "a")
    assert table.rank(prefix, {"a": 5, "b": 2}) == ["a", "b"]
    assert table.rank(prefix, {"a": 6, "b": 2}) == ["b", "a"]


def test_a_shared_prefix_is_balanced_once_both_have_it() -> None:
    table, loads = PrefixTable(), {"a": 0, "b": 0}
    prefix = Prefix(blocks_of(LONG))
    for _ in range(16):
        routed(table, prefix, loads)
    assert max(loads.values()) <= 9


def test_requests_without_a_prefix_go_to_the_least_busy_replica() -> None:
    table, loads = PrefixTable(), {"a": 3, "b": 0, "c": 1}
    got = Counter(routed(table, Prefix(), loads) for _ in range(8))
    assert set(loads.values()) == {4}
    assert got == {"a": 1, "b": 4, "c": 3}


def test_new_conversations_spread_over_idle_replicas() -> None:
    table = PrefixTable()
    chosen = {table.rank(Prefix(blocks_of(f"{number} {LONG}")), {"a": 0, "b": 0})[0] for number in range(20)}
    assert chosen == {"a", "b"}


def test_two_routers_choose_the_same_replica() -> None:
    for number in range(10):
        prefix = Prefix(blocks_of(f"{number} {LONG}"))
        assert PrefixTable().rank(prefix, {"a": 0, "b": 0}) == PrefixTable().rank(prefix, {"b": 0, "a": 0})


def test_a_routing_key_stays_however_busy_its_replica_is() -> None:
    table = PrefixTable()
    prefix = prefix_of("/v1/responses", ((b"X-SMG-Routing-Key", b"alice"),), b"{}")
    chosen = routed(table, prefix, {"a": 0, "b": 0})
    loads = {"a": 0, "b": 0, "c": 0} | {chosen: 100}
    assert table.rank(prefix, loads)[0] == chosen


def test_an_ended_replica_is_forgotten() -> None:
    table = PrefixTable()
    table.record(Prefix(blocks_of(LONG)), "a")
    table.record(Prefix(blocks_of(LONG * 2)), "b")
    table.keep_only(["b"])
    assert table.rank(Prefix(blocks_of(LONG)), {"b": 0, "c": 0})[0] == "b"
    table.keep_only([])
    assert len(table) == 0


def test_no_replica_is_no_choice() -> None:
    assert PrefixTable().rank(Prefix(), {}) == []


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6), st.sampled_from("abc")), max_size=60))
def test_the_table_is_bounded_and_every_replica_is_ranked(requests: list[tuple[int, int, str]]) -> None:
    table = PrefixTable(max_blocks=8)
    idle = dict.fromkeys("abc", 0)
    for number, (subject, blocks, replica) in enumerate(requests, 1):
        prefix = Prefix(blocks_of(f"{subject:03d}" + "x" * BLOCK_CHARS * blocks))
        table.record(prefix, replica)
        assert len(table) <= 8
        ranked = table.rank(prefix, idle)
        assert sorted(ranked) == ["a", "b", "c"]
        # The whole prefix fits, so the first is a replica that got all of it.
        assert ranked[0] in {who for what, length, who in requests[:number] if what == subject and length >= blocks}
