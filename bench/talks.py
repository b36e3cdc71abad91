"""The token ids of a workload's conversations, for the bare loop.

Answers are made up beforehand, so that the next turn of a conversation can continue from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random

from api.text.template import ChatTemplate
from api.text.tokenizer import Tokenizer
from bench.records import Message, Record
from bench.words import words
from bench.workloads import Session


@dataclass(frozen=True, slots=True)
class Request:
    """One turn: the whole prompt, and the tokens of the prepared answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One user's requests, on one sequence id. The first prompt may share a prefix with an earlier conversation's."""

    requests: tuple[Request, ...]
    at: float = 0.0
    source: int | None = None
    """The number of that earlier conversation."""
    shared: int = 0
    """Length of the shared prefix in tokens."""
    role: str = ""

    @property
    def length(self) -> int:
        last = self.requests[-1]
        return len(last.prompt) + len(last.answer)


def conversations(
    sessions: Sequence[Session], template: ChatTemplate, tokenizer: Tokenizer, rng: Random
) -> list[Conversation]:
    """The sessions as token ids, each with the longest prefix that it shares with an earlier one."""
    converted: list[Conversation] = []
    for session in sessions:
        requests = tuple(_requests(session, template, tokenizer, rng))
        prompt = requests[0].prompt[:-1]  # the last token must be computed, for its logits
        shared, source = max(
            ((common_prefix(prompt, other.requests[0].prompt), -i) for i, other in enumerate(converted)), default=(0, 0)
        )
        converted.append(Conversation(requests, session.at, -source if shared else None, shared, session.role))
    return converted


def _requests(session: Session, template: ChatTemplate, tokenizer: Tokenizer, rng: Random) -> list[Request]:
    history: list[Message] = []
    prompts, lengths = [], []
    for turn in session.turns:
        history.extend(turn.messages)
        rendered = tokenizer.encode(turn.prompt, parse_special=True) if turn.prompt else template.render_tokens(history)
        prompts.append(tuple(rendered))
        lengths.append(turn.max_tokens)
        history.append({"role": "assistant", "content": words(turn.max_tokens, rng)})
    requests = []
    for prompt, following, length in zip(prompts, [*prompts[1:], ()], lengths, strict=True):
        answer = following[len(prompt) :][:length]
        if following[: len(prompt)] != prompt or len(answer) < length:
            answer = tuple(1000 + i % 1000 for i in range(length))
        requests.append(Request(prompt, answer))
    return requests


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(slots=True)
class Talk:
    """A conversation in progress."""

    number: int
    conversation: Conversation
    sequence_id: int
    start: float
    num_own: int
    """Tokens that are stored for this conversation only."""
    source: int | None = None
    """The sequence id that holds the shared prefix."""
    turn: int = 0
    computed: int = 0
    """Tokens of the turn's prompt and answer that are in the KV cache."""
    cached: int = 0
    chunks: list[float] = field(default_factory=list)

    @property
    def request(self) -> Request:
        return self.conversation.requests[self.turn]

    @property
    def num_answered(self) -> int:
        """Tokens of the answer that are known. Each computed one gives the next."""
        return max(0, self.computed - len(self.request.prompt) + 1)

    def next_tokens(self, num_drafts: int) -> tuple[int, ...]:
        """The last known token of the answer and its next `num_drafts` tokens. The last token is never computed."""
        at = self.num_answered - 1
        return self.request.answer[at : min(at + 1 + num_drafts, len(self.request.answer) - 1)]

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.request.prompt)

    def next_turn(self, now: float) -> None:
        history = (*self.request.prompt, *self.request.answer)[: self.computed]
        self.turn += 1
        self.computed = self.cached = common_prefix(history, self.request.prompt[:-1])
        self.start, self.chunks = now, []

    def record(self) -> Record:
        return Record(
            role=self.conversation.role,
            start=self.start,
            chunks=tuple(self.chunks),
            end=self.chunks[-1],
            prompt_tokens=len(self.request.prompt),
            completion_tokens=len(self.request.answer),
            cached_tokens=self.cached,
            tokens_from_usage=True,
            finish_reason="length",
            error=None,
            aborted=False,
            text="",
        )
