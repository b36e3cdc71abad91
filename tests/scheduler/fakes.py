"""Fakes for tests of the scheduler without llama.cpp: an arithmetic model, and a clock that only steps advance."""

import base64
from collections import deque
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvcache.cache import KVCache
from kvcache.lanes import LaneLayout
from kvcache.layout import Layout
from kvcache.pages import PageTier
from kvcache.pool import PoolLayout
from kvcache.tier import NO_TIER, Tier
from kvcache.tree import num_pages_for
from scheduler.drafts.drafting import Drafting
from scheduler.failures import GrammarError, RequestError
from scheduler.grammar import Grammar
from scheduler.messages import Output, SamplingParams, Submit, ThoughtLimit, TokenLogprob
from scheduler.pacing import Pacer
from scheduler.plan import Chunk, Plan, Result, StepError, attempt_step
from scheduler.queue import Policy
from scheduler.scheduler import Scheduler
from scheduler.texts import Batch, Embedding, Pooled
from tests.kvcache.fakes import FakeLanes, FakeMemory

EOG = 0
GREEDY = SamplingParams(temperature=0.0)
MakePolicy = Callable[[Callable[[], float]], Policy]
"""Makes a policy with this clock."""


def next_token(tokens: list[int]) -> int:
    """Returns the fake model's next token. It depends on all `tokens`, and it never is an end token."""
    value = 1
    for token in tokens:
        value = (value * 31 + token) % 10_007
    return value + 1


class FakeRunner:
    """Computes into a FakeMemory, and samples from the tokens in that memory. So wrong sharing changes the answers."""

    def __init__(self, memory: FakeMemory, seconds: Callable[[Plan], float] = lambda _: 0.01) -> None:
        self.memory = memory
        self.plans: list[Plan] = []
        self.now = 0.0
        self.failures = 0
        """Number of next steps that fail."""
        self.step_error: Callable[[Plan], BaseException | None] = lambda _: None
        """Returns the exception that a step raises after it has computed, if any."""
        self.chunk_error: Callable[[Chunk], RequestError | None] = lambda _: None
        """Returns the failure of a chunk's request in a step that is valid for the others, if any."""
        self.sample: Callable[[list[int]], int] = next_token
        """Returns the next token after the tokens in memory."""
        self.num_tokens: Callable[[Chunk], int] = lambda _: 1
        """Returns how many tokens to sample for a chunk."""
        self._seconds = seconds

    def run(self, plan: Plan) -> Result:
        self.plans.append(plan)
        seconds = self._seconds(plan)
        self.now += seconds
        result = Result([], seconds)
        for chunk in plan.chunks:
            tokens = np.frombuffer(
                chunk.sequence.tokens(chunk.start, chunk.start + chunk.num_tokens), dtype="<i4"
            ).tolist()
            self.memory.compute(chunk.sequence.sequence_id, chunk.start, tokens + list(chunk.drafts))
            failure = self.chunk_error(chunk)
            if failure is not None:
                result.failures[chunk.sequence.request_id] = failure
            if chunk.scores:
                result.prompt_logprobs.append([] if failure is not None else score(chunk))
            if chunk.samples:
                sampled = [] if failure is not None else self._sample(chunk)
                result.tokens.append(sampled)
                wanted = sampled if chunk.sequence.logprobs is not None else []
                result.logprobs.append([logprob_of(token) for token in wanted])
        error = self.step_error(plan)
        if self.failures:
            self.failures -= 1
            error = StepError("injected failure")
        if error is not None:
            raise error
        if not any(result.logprobs):
            result.logprobs = []
        return result

    def _sample(self, chunk: Chunk) -> list[int]:
        known = self.memory.tokens(chunk.sequence.sequence_id)[: chunk.start + chunk.num_tokens]
        counter = deepcopy(chunk.sequence.thoughts)
        tokens: list[int] = []
        while len(tokens) < max(self.num_tokens(chunk), 1 + len(chunk.drafts)):
            forced = counter.forced if counter is not None else None
            tokens.append(self.sample(known + tokens) if forced is None else forced)
            if counter is not None:
                counter.accept(tokens[-1])
            if chunk.drafts and tokens[-1] not in chunk.drafts[len(tokens) - 1 :][:1]:
                break
        return tokens


def logprob_of(token: int) -> TokenLogprob:
    """A fake log probability that identifies its token."""
    return -float(token), []


def score(chunk: Chunk) -> list[TokenLogprob]:
    """Returns a log probability for each prompt token of the chunk that is not scored yet."""
    sequence = chunk.sequence
    first = max(chunk.start, sequence.num_prompt - 1 - sequence.num_unscored)
    stop = min(chunk.start + chunk.num_tokens, sequence.num_prompt - 1)
    tokens = np.frombuffer(sequence.tokens(first + 1, max(first, stop) + 1), dtype="<i4").tolist()
    return [logprob_of(token) for token in tokens]


class FakeReader:
    """A reader with arithmetic token embeddings. So wrong pooling changes the embeddings of texts."""

    def __init__(self, pooling: str, *, max_tokens: int = 1 << 30) -> None:
        """`max_tokens`: the size of its memory."""
        self.batches: list[Batch] = []
        self.memory: dict[int, list[int]] = {}
        """The tokens of each sequence id."""
        self.read_tokens: list[int] = []
        self.fails: Callable[[int], bool] = lambda _: False
        """Whether the batch with this number fails."""
        self.batch_error: Callable[[Batch], BaseException | None] = lambda _: None
        """Returns the exception that a batch raises after it has computed, if any."""
        self.is_nan: Callable[[int], bool] = lambda _: False
        """Whether the embedding of a request's pieces has a NaN."""
        self.seconds_per_token = 0.001
        self.scale = 1.0
        self._pooling = pooling
        self._max_tokens = max_tokens

    def read(self, batch: Batch) -> Pooled:
        self.batches.append(batch)
        embeddings = []
        for piece in batch.pieces:
            known = self.memory.setdefault(piece.text.sequence_id, [])
            assert len(known) == piece.start, "a text is computed in order, with its own sequence id"
            tokens = piece.tokens.tolist()
            known += tokens
            self.read_tokens += tokens
            embedding = self.scale * pool_tokens(tokens, self._pooling)
            embeddings.append(embedding * np.nan if self.is_nan(piece.text.request_id) else embedding)
        assert sum(map(len, self.memory.values())) <= self._max_tokens
        error = StepError("injected failure") if self.fails(len(self.batches) - 1) else self.batch_error(batch)
        if error is not None:
            raise error
        return Pooled(embeddings, self.seconds_per_token * batch.num_tokens)

    def forget(self, sequence_id: int) -> None:
        del self.memory[sequence_id]


def pool_tokens(tokens: list[int], pooling: str) -> Embedding:
    each = np.array([[1.0, token, (31 * token) % 1009] for token in tokens], np.float32)
    pooled: Embedding = each.mean(axis=0) if pooling == "mean" else each[0] if pooling == "cls" else each[-1]
    return pooled


def expected_embedding(tokens: list[int], pooling: str) -> Embedding:
    """Returns the embedding of a text, at length 1."""
    pooled = pool_tokens(tokens, pooling)
    unit: Embedding = pooled / np.linalg.norm(pooled)
    return unit


def unwire(embedding: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(embedding), "<f4")


class FakeGrammar(Grammar):
    """Forces the next list of `forced` after each sampled token. After the last list the answer is complete."""

    def __init__(self, *forced: list[int], error: str = "") -> None:
        self._forced = deque(forced)
        self._error = error

    def advance(self, token: int, *, forces: bool = True) -> list[int]:
        if self._error:
            raise GrammarError(self._error)
        return self._forced.popleft() if forces else []

    def num_allowed(self, tokens: Iterable[int]) -> int:
        """Allows all tokens."""
        return len(list(tokens))

    def end(self, token: int) -> None:
        """Accepts an end anywhere."""

    @property
    def is_complete(self) -> bool:
        return not self._forced


@dataclass(frozen=True)
class FixedCosts:
    """What tokens cost for the policy of fair shares."""

    answer_cost: float = 1.0
    seconds_per_token: float = 1.0

    def num_tokens(self, seconds: float) -> int:
        return int(seconds / self.seconds_per_token)


class System:
    """A scheduler on fakes, stepped by hand."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        num_ids: int = 64,
        max_seqs: int = 16,
        token_budget: int = 512,
        ctx_len: int = 2048,
        max_mixed_tokens: int | None = None,
        max_answers: int | None = None,
        seconds: Callable[[Plan], float] = lambda plan: 0.001 * plan.num_tokens,
        lanes: bool = False,
        policy: Policy | MakePolicy | None = None,
        piece: Callable[[int], bytes] = lambda _: b"",
        drafting: Drafting | None = None,
    ) -> None:
        """With `lanes`, there are `max_seqs` lanes of `ctx_len` tokens each.

        The clock is that of the steps: each step takes its `seconds`. A function `policy` gets the clock.
        """
        self.memory: FakeMemory
        self.layout: Layout
        tier: Tier = NO_TIER
        if lanes:
            lane_pages = num_pages_for(ctx_len)
            self.memory = FakeLanes(lane_pages)
            self.layout = LaneLayout(lane_pages, max_seqs, keeps_evicted=True)
            tier = PageTier(1 << 30)
        else:
            self.memory = FakeMemory(num_pages)
            self.layout = PoolLayout(num_pages, num_ids)
        self.cache = KVCache(self.memory, self.layout, tier)
        self.runner = FakeRunner(self.memory, seconds)
        self.scheduler = Scheduler(
            self.cache,
            Pacer(0.001, 0 if lanes else max_mixed_tokens),
            max_seqs=max_seqs,
            token_budget=token_budget,
            ctx_len=ctx_len,
            eog_tokens=frozenset({EOG}),
            piece=piece,
            max_answers=max_answers,
            in_lanes=lanes,
            policy=policy(self.clock) if callable(policy) else policy,
            drafting=drafting,
            clock=self.clock,
        )
        self.tokens: dict[int, list[int]] = {}
        self.outputs: dict[int, list[Output]] = {}

    def clock(self) -> float:
        return self.runner.now

    def submit(
        self,
        request_id: int,
        prompt: list[int],
        max_tokens: int = 4,
        *,
        ignore_eos: bool = False,
        score_prompt: bool = False,
        grammar: Grammar | None = None,
        answer: Iterable[int] = (),
        num_scored: int = 0,
        logprobs: int | None = None,
        suspect: bool = False,
        thoughts: ThoughtLimit | None = None,
        tenant: str = "",
        weight: float = 1.0,
        priority: int = 1,
        cache_salt: str = "",
    ) -> None:
        params = SamplingParams(temperature=0.0, ignore_eos=ignore_eos)
        submit = Submit(
            request_id,
            prompt,
            max_tokens,
            params,
            score_prompt=score_prompt,
            answer=list(answer),
            num_scored=num_scored,
            logprobs=logprobs,
            suspect=suspect,
            thoughts=thoughts,
            tenant=tenant,
            weight=weight,
            priority=priority,
            cache_salt=cache_salt,
        )
        refusal = self.scheduler.submit(submit, grammar)
        self.tokens[request_id], self.outputs[request_id] = [], []
        if refusal is not None:
            self.outputs[request_id].append(refusal)

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        assert plan.chunks, "each step computes something"
        result = attempt_step(self.runner.run, plan)
        if isinstance(result, StepError):
            outputs = self.scheduler.rollback(plan, result)
        else:
            outputs = self.scheduler.commit(plan, result)
        self.cache.check_integrity()
        for output in outputs:
            self.tokens[output.request_id] += output.tokens
            self.outputs[output.request_id].append(output)
        return plan

    def run(self, max_steps: int = 5000) -> None:
        """Step until all requests have ended."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("some request never ends")

    def finish_reason(self, request_id: int) -> str | None:
        return self.outputs[request_id][-1].finish_reason

    def chunks(self, plan: Plan) -> dict[int, Chunk]:
        return {chunk.sequence.request_id: chunk for chunk in plan.chunks}


def expected(prompt: list[int], count: int) -> list[int]:
    """Returns the fake model's answer to a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def prompt(start: int, length: int) -> list[int]:
    return list(range(start, start + length))
