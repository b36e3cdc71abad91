"""Requests outlive their engines, in any order of deaths. Engines are tasks and the time is virtual."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from api.engine.client import EngineClient
from api.engine.connection import Connection
from api.engine.ending import Ending
from api.errors import ApiError
from scheduler.config import EngineInfo
from scheduler.messages import Cancel, Embed, Embedded, Failed, Message, Output, Ready, Step, Submit, decode, encode
from tests.api.fakes import INFO

STEP_SECONDS = 0.1
LOAD_SECONDS = 1.0
NEVER = 3000.0
"""Seconds of virtual time after which everything must have ended."""
SCORES_PER_STEP = 2
BATCH_TEXTS = 4

KILLED = Ending("was killed (SIGKILL), perhaps because memory ran out")
CRASHED = Ending("crashed (SIGSEGV)", crashed=True)
ABORTED = Ending("crashed (SIGABRT)", "GGML_ASSERT(x) failed", crashed=True)


@dataclass
class Sequence:
    """A sequence or the texts of a request in a fake engine."""

    submit: Submit | Embed
    num_done: int
    """Tokens or texts."""
    num_scored: int = 0
    num_alone: int = 0
    """Tokens that it must get alone."""


class DiedError(Exception):
    def __init__(self, ending: Ending, step: frozenset[int]) -> None:
        self.ending = Ending(ending.how, ending.detail, ending.crashed, step)


@dataclass
class Machine:
    """Starts fake engines. Seeds of sequences and tokens of texts say after how many tokens they crash an engine."""

    starts: list[str] = field(default_factory=list)
    """What happens at each start: `serves`, `fails`, `aborts` or `crashes idle`. Further engines serve."""
    deaths: list[tuple[int, str]] = field(default_factory=list)
    """After how many more steps an engine dies: `killed`, `crashed` in a step, or `crashed between` two steps."""
    crashes_alone: Counter[int] = field(default_factory=Counter)
    """How often an engine crashed while it computed only this request."""
    num_deaths: int = 0
    num_starts: int = 0
    loses_outputs: bool = False
    """Whether the outputs of a step are sent only after the next one, and are lost if the engine dies in it."""

    @asynccontextmanager
    async def launch(self) -> AsyncIterator[Connection]:
        self.num_starts += 1
        behaviour = self.starts.pop(0) if self.starts else "serves"
        ours, theirs = memory_stream_pair()
        endings: list[Ending] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._live, theirs, behaviour, endings)
            async with Connection.over(ours) as connection:
                yield connection
            nursery.cancel_scope.cancel()
        connection.ending = endings[0]

    async def _live(self, stream: trio.abc.Stream, behaviour: str, endings: list[Ending]) -> None:
        engine = Engine(self, stream)
        try:
            await engine.live(behaviour)
        except DiedError as death:
            self.num_deaths += 1
            endings.append(death.ending)
            if death.ending.crashed and len(death.ending.suspects) == 1:
                self.crashes_alone.update(death.ending.suspects)
        await trio.aclose_forcefully(stream)

    def public_reason(self, reason: str) -> str:
        return reason

    def resident_bytes(self, info: EngineInfo) -> int:
        return 1


class Engine:
    """A fake engine. Suspects run alone, and steps of one suspect and of all others alternate."""

    def __init__(self, machine: Machine, stream: trio.abc.Stream) -> None:
        self._machine = machine
        self._stream = stream
        self._sequences: dict[int, Sequence] = {}
        self._suspect_was_last = False
        self._unsent: list[Message] = []
        self._woken = trio.Event()

    async def live(self, behaviour: str) -> None:
        await trio.sleep(LOAD_SECONDS)
        if behaviour == "fails":
            await self._send(Failed("it is broken"))
            raise DiedError(Ending("exited with code 1"), frozenset())
        if behaviour == "aborts":
            raise DiedError(ABORTED, frozenset())
        await self._send(Ready(INFO))
        if behaviour == "crashes idle":
            raise DiedError(CRASHED, frozenset())
        death: list[DiedError] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            try:
                await self._run()
            except DiedError as error:
                death.append(error)
            nursery.cancel_scope.cancel()
        raise death[0]

    async def _send(self, message: Message) -> None:
        await self._stream.send_all(encode(message))

    async def _receive(self) -> None:
        pending = b""
        while data := await self._stream.receive_some():
            *lines, pending = (pending + data).split(b"\n")
            for message in map(decode, lines):
                match message:
                    case Submit(request_id, answer=answer, num_scored=num_scored, num_alone=num_alone):
                        self._sequences[request_id] = Sequence(
                            message, len(answer), num_scored, num_alone if message.suspect else 0
                        )
                    case Embed(request_id):
                        self._sequences[request_id] = Sequence(message, 0)
                    case Cancel(request_id):
                        self._sequences.pop(request_id, None)
            self._woken.set()

    async def _run(self) -> None:
        while True:
            while not self._sequences:
                await self._send_unsent()
                self._woken = trio.Event()
                await self._woken.wait()
            for step in self._steps():
                await trio.sleep(STEP_SECONDS)
                messages, cause = self._compute(step)
                death = self._death(step, cause)
                if not self._machine.loses_outputs:
                    self._unsent += messages
                if death is None or not self._machine.loses_outputs:
                    await self._send_unsent()
                if self._machine.loses_outputs:
                    self._unsent += messages
                if death:
                    raise death

    async def _send_unsent(self) -> None:
        for message in self._unsent:
            await self._send(message)
        self._unsent.clear()

    def _steps(self) -> list[list[int]]:
        """A step of sequences and a batch of texts, as the real engine takes turns."""
        sequences = [number for number, each in self._sequences.items() if isinstance(each.submit, Submit)]
        suspects = [number for number in sequences if self._sequences[number].num_alone > 0]
        others = [number for number in sequences if number not in suspects]
        self._suspect_was_last = bool(suspects) and not (self._suspect_was_last and others)
        texts = [number for number in self._sequences if number not in sequences]
        return [step for step in (suspects[:1] if self._suspect_was_last else others, texts[:BATCH_TEXTS]) if step]

    def _death(self, step: list[int], cause: Ending | None) -> DiedError | None:
        if cause is not None:
            return DiedError(cause, frozenset(step))
        if not self._machine.deaths:
            return None
        steps_left, kind = self._machine.deaths[0]
        if steps_left:
            self._machine.deaths[0] = (steps_left - 1, kind)
            return None
        del self._machine.deaths[0]
        if kind == "killed":
            return DiedError(KILLED, frozenset(step))
        return DiedError(CRASHED, frozenset(step if kind == "crashed" else ()))

    def _compute(self, step: list[int]) -> tuple[list[Message], Ending | None]:
        """The messages of a step, or why it crashes."""
        messages: list[Message] = []
        for number in step:
            sequence = self._sequences.get(number)
            if sequence is None:  # cancelled
                continue
            submit = sequence.submit
            if isinstance(submit, Embed):
                text = submit.texts[sequence.num_done]
                if text[0] < 0:
                    return [], ABORTED
                messages.append(Embedded(number, [str(text)]))
                sequence.num_done += 1
                if sequence.num_done == len(submit.texts):
                    del self._sequences[number]
                continue
            if sequence.num_done >= submit.params.seed > 0:
                return [], ABORTED
            messages.append(Step([self._output(number, sequence, submit)]))
        return messages, None

    def _output(self, number: int, sequence: Sequence, submit: Submit) -> Output:
        num_scores = len(submit.tokens) - 1 if submit.score_prompt else 0
        if sequence.num_scored < num_scores:
            scores = range(sequence.num_scored, min(num_scores, sequence.num_scored + SCORES_PER_STEP))
            sequence.num_scored = scores.stop
            return Output(number, prompt_logprobs=[(float(score), []) for score in scores])
        sequence.num_alone -= 1
        token = submit.tokens[0] + sequence.num_done
        sequence.num_done += 1
        if sequence.num_done == submit.max_tokens:
            del self._sequences[number]
            return Output(number, [token], "length")
        return Output(number, [token])


@dataclass(frozen=True)
class Request:
    """A request of a schedule."""

    num_choices: int = 1
    num_tokens: int = 8
    crashes_at: int = 0
    """The token of the first choice, or the text, that crashes an engine; 0 for none."""
    embeds: bool = False
    scores: bool = False
    starts_at: float = 0.0


class Users:
    """Send requests, and compare what they get with what they should get."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.client = EngineClient(machine)
        self.failed: dict[int, str] = {}
        """By request id: the messages of the requests that failed."""
        self.num_done = 0

    async def send(self, request: Request) -> None:
        await trio.sleep(request.starts_at)
        while self.client.info is None:  # noqa: ASYNC110 - as a user who retries after a 503
            await trio.sleep(1.0)
        await (self.embed(request) if request.embeds else self.generate(request))
        self.num_done += 1

    async def generate(self, request: Request) -> None:
        submits = [
            Submit(
                self.client.next_id(), [100 * choice, 1, 2, 3, 4, 5], request.num_tokens, score_prompt=request.scores
            )
            for choice in range(request.num_choices)
        ]
        submits[0] = _crashing(submits[0], request.crashes_at)
        tokens: list[list[int]] = [[] for _ in submits]
        scores: list[list[float]] = [[] for _ in submits]
        reasons: dict[int, str | None] = {}
        try:
            with self.client.generate(submits) as generation:
                while len(reasons) < len(submits):
                    for index, output in await generation.receive():
                        tokens[index] += output.tokens
                        scores[index] += [score for score, _ in output.prompt_logprobs]
                        if output.finish_reason:
                            reasons[index] = output.finish_reason
        except ApiError as error:
            [guilty] = [each.request_id for each in submits if self.machine.crashes_alone[each.request_id] > 1]
            self.failed[guilty] = error.message
            return
        for choice in range(request.num_choices):
            assert tokens[choice] == list(range(100 * choice, 100 * choice + request.num_tokens))
            assert scores[choice] == ([float(number) for number in range(5)] if request.scores else [])
            assert reasons[choice] == "length"

    async def embed(self, request: Request) -> None:
        texts = [[-1 if number == request.crashes_at else number] for number in range(1, request.num_tokens + 1)]
        with self.client.embed(texts) as embedding:
            [request_id] = [number for number, each in self.client._requests.items() if each is embedding]
            try:
                assert await embedding.receive() == [str(text) for text in texts]
            except ApiError as error:
                self.failed[request_id] = error.message

    async def play(self, requests: list[Request]) -> None:
        with trio.fail_after(NEVER):
            async with trio.open_nursery() as nursery:
                await nursery.start(self.client.run)
                async with trio.open_nursery() as sending:
                    for request in requests:
                        sending.start_soon(self.send, request)
                assert self.client.num_active == 0
                nursery.cancel_scope.cancel()

    def check(self, requests: list[Request]) -> None:
        assert self.num_done == len(requests)
        assert set(self.failed) == {number for number, count in self.machine.crashes_alone.items() if count > 1}
        assert max(self.machine.crashes_alone.values(), default=0) <= 2


def _crashing(submit: Submit, crashes_at: int) -> Submit:
    """The seed says at which token the fake engine crashes."""
    return replace(submit, params=replace(submit.params, seed=crashes_at))


REQUESTS = st.lists(
    st.builds(
        Request,
        num_choices=st.sampled_from([1, 1, 3]),
        num_tokens=st.integers(1, 12),
        crashes_at=st.sampled_from([0, 0, 0, 0, 1, 4]),
        embeds=st.sampled_from([False, False, True]),
        scores=st.booleans(),
        starts_at=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    ),
    min_size=1,
    max_size=8,
)
DEATHS = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from(["killed", "killed", "crashed", "crashed between"])), max_size=12
)
STARTS = st.lists(st.sampled_from(["serves", "serves", "fails", "aborts", "crashes idle"]), max_size=12).filter(
    lambda starts: all("serves" in pair for pair in pairwise(starts))
)
"""With one crash between two steps, fewer than MAX_FAILED_STARTS starts fail in a row."""


@given(
    REQUESTS,
    DEATHS.filter(lambda deaths: [kind for _, kind in deaths].count("crashed between") < 2),
    STARTS,
    st.booleans(),
)
@example([Request(crashes_at=4), *[Request() for _ in range(7)]], [], [], True)
@example([Request(embeds=True, crashes_at=4), Request(embeds=True), Request(embeds=True)], [], [], True)
@example([Request(num_tokens=12)] * 8, [(5, "killed")] * 12, [], True)
@example([Request(num_tokens=12, num_choices=3, scores=True)] * 4, [(1, "crashed")] * 6, [], True)
def test_only_a_request_that_crashed_two_engines_alone_fails(
    requests: list[Request], deaths: list[tuple[int, str]], starts: list[str], loses_outputs: bool
) -> None:
    """All others complete, with each token, score and embedding once, whatever ends their engines."""
    users = Users(Machine(["serves", *starts], deaths, loses_outputs=loses_outputs))
    trio.run(users.play, requests, clock=MockClock(autojump_threshold=0))
    users.check(requests)


def test_the_guilty_request_gets_the_reason_and_all_others_their_answers() -> None:
    machine = Machine()
    users = Users(machine)
    trio.run(users.play, [Request(), Request(crashes_at=4), *[Request()] * 9], clock=MockClock(autojump_threshold=0))
    reason = "the engine crashed twice while it computed only this request: GGML_ASSERT(x) failed"
    assert list(users.failed.values()) == [reason]
    assert machine.num_deaths == 3, "once with the others, twice alone"


@pytest.mark.parametrize("embeds", [False, True])
def test_killed_engines_count_against_nobody(embeds: bool) -> None:
    requests = [Request(num_tokens=60, embeds=embeds)] * 3
    users = Users(Machine(deaths=[(2, "killed")] * 20))
    trio.run(users.play, requests, clock=MockClock(autojump_threshold=0))
    users.check(requests)
    assert (users.failed, users.machine.num_deaths) == ({}, 20)


def test_a_request_that_crashes_engines_at_a_late_token_is_found_though_the_last_tokens_are_lost() -> None:
    """Else it would get some tokens alone on each engine, and crash it together with all others."""
    machine = Machine(loses_outputs=True)
    users = Users(machine)
    requests = [Request(num_tokens=400), Request(num_tokens=400, crashes_at=200), Request(num_tokens=400)]
    trio.run(users.play, requests, clock=MockClock(autojump_threshold=0))
    users.check(requests)
    assert len(users.failed) == 1
    assert machine.num_deaths == 3
    machine = Machine(deaths=[(20, "crashed")] * 4, loses_outputs=True)
    users = Users(machine)
    trio.run(users.play, requests, clock=MockClock(autojump_threshold=0))
    users.check(requests)
    assert machine.num_deaths <= 4 + 3
