"""Simple models of routing policies: what a router knows about its nodes, and which one it chooses."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from kvcache.tree import PAGE_TOKENS

BLOCK_TOKENS: Final = 8
"""Of the approximate tree, in which real routers compare characters: about 40."""


class Node(Protocol):
    """A node as its router sees it."""

    @property
    def in_flight(self) -> int:
        """Requests that were sent to it and have not ended."""

    @property
    def unread_tokens(self) -> int:
        """Prompt tokens that must be computed, of requests whose response has not begun.

        Routers take the beginning of a response as a sign that the prompt is computed.
        """

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """How many tokens of the prompt its KV cache holds. A router knows it only from KV events."""


class Router(Protocol):
    """Chooses a node for each request."""

    @property
    def renders(self) -> bool:
        """Whether it first asks every node for the tokens of the prompt."""

    def choose(self, prompt: Sequence[int], nodes: Sequence[Node]) -> int:
        """Returns the index of the node. The request is then sent to it."""


class RoundRobin:
    """Every node in turn."""

    renders = False

    def __init__(self) -> None:
        self._sent = 0

    def choose(self, prompt: Sequence[int], nodes: Sequence[Node]) -> int:  # noqa: ARG002
        self._sent += 1
        return (self._sent - 1) % len(nodes)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When SMG's `cache_aware` leaves the node that has the prefix; see `smg launch --help`."""

    match: float = 0.3
    """The least share of the prompt that a node must have seen to be preferred."""
    absolute: float = 1
    """It must have this many requests more than the mean, ..."""
    relative: float = 1.1
    """... and this multiple of the mean."""


class PrefixAware:
    """The node that saw the longest prefix of the prompt, unless it is much busier than the mean.

    It remembers the prompts that it sent to each node. It does not know what a node has computed or evicted.
    """

    renders = False

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._seen: defaultdict[int, set[int]] = defaultdict(set)
        """The nodes that saw a prefix, by the hash of its blocks."""

    def choose(self, prompt: Sequence[int], nodes: Sequence[Node]) -> int:
        path = _path(prompt)
        holders: set[int] = set()
        depth = 0
        for block in path:
            if not (found := self._seen.get(block)):
                break
            holders, depth = found, depth + 1
        matched = depth * BLOCK_TOKENS > self._thresholds.match * len(prompt)
        chosen = _least_busy(nodes, holders if matched else range(len(nodes)))
        if matched and self._is_too_busy(nodes[chosen], nodes):
            chosen = _least_busy(nodes, range(len(nodes)))
        for block in path:
            self._seen[block].add(chosen)
        return chosen

    def _is_too_busy(self, node: Node, nodes: Sequence[Node]) -> bool:
        mean = sum(each.in_flight for each in nodes) / len(nodes)
        return node.in_flight > mean + self._thresholds.absolute and node.in_flight > mean * self._thresholds.relative


class KVEvents:
    """The node with the least product of its requests and its prompt tokens to compute, this prompt included.

    So vllm-router's `kv_aware` leaves the node that has the prefix if it is busier than another one. It knows from KV
    events which pages each node holds.
    """

    renders = True

    def choose(self, prompt: Sequence[int], nodes: Sequence[Node]) -> int:
        def cost(index: int) -> int:
            node = nodes[index]
            return (uncached(prompt, node) + node.unread_tokens) * (node.in_flight + 1)

        return min(range(len(nodes)), key=cost)


ROUTERS: Final[Mapping[str, Callable[[Thresholds], Router]]] = {
    "round_robin": lambda _: RoundRobin(),
    "cache_aware": PrefixAware,
    "kv_aware": lambda _: KVEvents(),
}
"""By the names that SMG and vllm-router give to these policies."""


def uncached(prompt: Sequence[int], node: Node) -> int:
    """How many tokens of the prompt a node must compute, as KV events show it.

    They show whole pages. The page with the prompt's last token does not count, because this token is always computed.
    """
    known = min(node.cached_tokens(prompt), len(prompt) - 1) // PAGE_TOKENS * PAGE_TOKENS
    return len(prompt) - known


def _least_busy(nodes: Sequence[Node], among: Sequence[int] | range | set[int]) -> int:
    return min(among, key=lambda index: (nodes[index].in_flight, index))


def _path(prompt: Sequence[int]) -> list[int]:
    """A hash of each prefix of whole blocks. Hashes of integers are the same in every process."""
    path, before = [], 0
    for start in range(0, len(prompt) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hash((before, *prompt[start : start + BLOCK_TOKENS]))
        path.append(before)
    return path
